"""Reasons, rules and the paragraph in plain words: what the numbers mean, for a person who must sign."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from omnifeed.config import ExperimentConfig
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.experiment.decision import Code, Decision, MetricResult, Reason, Split, Verdict
from omnifeed.experiment.evidence import ALL, LogCounts


def percent(value: float | None) -> str:
    """A relative effect with its sign: 0.123 -> +12.3 %."""
    return "not estimable" if value is None else f"{value * 100:+.1f} %"


def moment(ts: int) -> str:
    """UTC microseconds -> 2026-03-02 00:00 UTC."""
    return f"{datetime.fromtimestamp(ts / 1_000_000, UTC):%Y-%m-%d %H:%M} UTC"


def place(scenario: str | None) -> str:
    """Where a result holds."""
    return "" if scenario is None else f" in {scenario}"


def _interval(result: MetricResult) -> str:
    if result.low is None or result.high is None:
        return f"{percent(result.relative)} ({result.champion:.4g} to {result.challenger:.4g}, interval not estimable)"
    return f"{percent(result.relative)} (interval {percent(result.low)} to {percent(result.high)})"


def no_data(experiment: Experiment, counts: LogCounts) -> Reason:
    """Nothing to read."""
    text = f"There is no live traffic: experiment {experiment.name} has logged no exposure"
    if counts.exposures:
        text += (
            f" under its own name and inside its time ({counts.exposures:,} lines lie outside, "
            f"{counts.exposures_foreign:,} of them under another name)"
        )
    return Reason(Code.NO_DATA, text + ". Without users who saw both releases nothing can be said about either.")


def config_changed(experiment: Experiment, digest: str) -> Reason:
    """The pre-registration is not the one of the start."""
    return Reason(
        Code.CONFIG_CHANGED,
        f"The [experiment] settings or the horizon are not those written down before the start (digest {digest[:12]}, "
        f"registered {experiment.config_digest[:12]}, horizon {moment(experiment.end_ts)}): metrics, margins and "
        "duration may not be chosen after seeing data.",
    )


def log_broken(counts: LogCounts) -> Reason:
    """Lines that cannot be trusted."""
    return Reason(
        Code.LOG_BROKEN,
        f"The log is broken: {counts.unreadable:,} unreadable lines, {counts.malformed:,} negative or infinite values, "
        f"{counts.exposures_foreign:,} exposures under another experiment's name.",
    )


def arm_missing(arm: Arm) -> Reason:
    """An arm without users."""
    return Reason(
        Code.ARM_MISSING,
        f"The {arm.name} (release {arm.release}) was planned for {arm.weight:.0%} of the users, and not one user of it "
        "is in the log.",
    )


def misassigned(experiment: Experiment, counts: LogCounts) -> Reason:
    """The log disagrees with the salt, or with itself."""
    if not experiment.salt:
        return Reason(
            Code.ASSIGNMENT_MISMATCH,
            f"{counts.users_misassigned:,} users were logged in two arms, or in an arm that is not declared: whoever "
            "assigns does not keep a user where they were.",
        )
    return Reason(
        Code.ASSIGNMENT_MISMATCH,
        f"{counts.users_misassigned:,} users were logged under an arm or a release that the experiment's salt does not "
        "give them, and the log does not explain it: the salt was changed, or somebody else assigns.",
    )


def not_held(users: int) -> Reason:
    """The log disagrees with the hold-back group, or with the ledger's champion."""
    return Reason(
        Code.ASSIGNMENT_MISMATCH,
        f"{users:,} users were not answered by the release that is theirs: the hold-back group's, or the champion's of "
        "the ledger. The group is spoilt, or somebody else assigns.",
    )


def mismatch(split: Split) -> Reason:
    """The users do not split as planned."""
    total = split.champion + split.challenger
    found = (
        f"{split.champion:,} champion users to {split.challenger:,} challenger users is {split.champion / total:.1%} "
        f"to {split.challenger / total:.1%}, where {split.planned_champion_share:.1%} to "
        f"{1 - split.planned_champion_share:.1%} was planned (p = {split.p_value:.2g})"
    )
    if split.dimension == "excluded":
        text = (
            f"Of the users left out as {split.value}, {found}. Who is left out depends on the arm, so that the users "
            "who remain are not comparable."
        )
        return Reason(Code.EXCLUSION_UNEVEN, text)
    text = f"Sample-ratio mismatch{group(split)}: {found}. Users are lost or doubled in one arm, so the arms are not "
    return Reason(Code.SAMPLE_RATIO_MISMATCH, text + "comparable.")


def group(split: Split) -> str:
    """Which users a split counts."""
    return {
        "scenario": f" in {split.value}",
        "day": f" among users first seen on day {int(split.value) + 1}" if split.dimension == "day" else "",
        "device": f" on {split.value}",
        "excluded": f" among users left out: {split.value}",
    }.get(split.dimension, "")


def incomplete(missing: float, unexposed: float, bound: float) -> Reason:
    """Lines that never came."""
    return Reason(
        Code.LOG_INCOMPLETE,
        f"The log is incomplete: {missing:.1%} of the positions of the answers have no exposure line, {unexposed:.1%} "
        f"of the outcomes have no exposure ({bound:.1%} is tolerated). What was lost need not be lost alike in both "
        "arms.",
    )


def clock_skew(before: float, early: float, skewed: float, bound: float) -> Reason:
    """Clocks that disagree."""
    return Reason(
        Code.CLOCK_SKEW,
        f"The clocks disagree: {before:.1%} of the exposures lie before the start, {early:.1%} of the outcomes "
        f"happened before their exposure and {skewed:.1%} were known before they happened ({bound:.1%} is tolerated). "
        "A log in another time zone looks like this; times are UTC.",
    )


def late_logging(name: str, champion: float, challenger: float) -> Reason:
    """One arm logs later."""
    return Reason(
        Code.LATE_LOGGING,
        f"Outcome {name} becomes known {champion / 3600:.1f} hours after it happened in the champion's arm and "
        f"{challenger / 3600:.1f} in the challenger's: at any look, one arm is judged on less.",
    )


def instrumentation_changed(name: str, day: int, rates: dict[str, tuple[float, ...]]) -> Reason:
    """One arm's logging changed on the way."""
    said = ", ".join(f"{arm} {before:.3g} before and {after:.3g} after" for arm, (before, after) in rates.items())
    each = "a request" if name == "exposures" else "an exposure"
    return Reason(
        Code.INSTRUMENTATION_CHANGED,
        f"The logging of {name} changed in one arm with day {day + 1}: {said}, {each}. The arms no longer count "
        "the same.",
    )


def row_unit() -> Reason:
    """No users in the log."""
    return Reason(
        Code.UNIT_NOT_USER,
        "The unit is the logged row, as declared: who saw both arms is not known, rows of one person are not "
        "independent and the split of users is not testable. The intervals are shown for reading beside other "
        "estimates; nothing is promoted on them.",
    )


def before_horizon(experiment: Experiment, section: ExperimentConfig, now: int) -> Reason:
    """Too early."""
    return Reason(
        Code.BEFORE_HORIZON,
        f"Success is read once, when all {section.days} days have passed and the {section.attribution_hours} hours of "
        f"attribution after {moment(experiment.end_ts)} are over; it is {moment(now)}. No harm is shown so far.",
    )


def ramping(experiment: Experiment, stage: Experiment) -> Reason:
    """Before the last stage."""
    number = [each.start_ts for each in experiment.stages].index(stage.start_ts)
    following = experiment.stages[number + 1]
    return Reason(
        Code.BEFORE_HORIZON,
        f"Stage {number + 1} of {len(experiment.stages)}: {stage.arms[1].weight:.0%} of the users have the challenger, "
        f"{following.share:.0%} from {moment(following.start_ts)} on. A stage is looked at for harm only, by itself; "
        "none is shown so far. Success is read on the last.",
    )


def early_harm(result: MetricResult) -> Reason:
    """Harm before the horizon."""
    return Reason(
        Code.EARLY_HARM,
        f"{result.title}{place(result.scenario)}: {percent(result.relative)}, a loss beyond doubt by a confidence "
        "sequence that holds at every look.",
    )


def harm(result: MetricResult) -> Reason:
    """Harm at the horizon."""
    code = Code.GUARDRAIL_HARM if result.scenario is None else Code.SCENARIO_HARM
    return Reason(
        code,
        f"{result.title}{place(result.scenario)}: {_interval(result)}. This is shown to be worse (one-sided p = "
        f"{result.p_harm:.2g}, Holm-corrected test), and by more than the {result.margin or 0:.0%} that is tolerated.",
    )


def not_non_inferior(result: MetricResult) -> Reason:
    """A guardrail that may be breached."""
    return Reason(
        Code.NON_INFERIORITY_NOT_SHOWN,
        f"{result.title}: {_interval(result)}. The data do not rule out a loss of {result.margin or 0:.0%} or more.",
    )


def quality_inferior(result: MetricResult) -> Reason:
    """A quality metric that fell."""
    return Reason(
        Code.QUALITY_INFERIOR,
        f"{result.title}: {_interval(result)}, shown to be worse (one-sided p = {result.p_harm:.2g}). A quality metric "
        "has no margin: somebody must look before this release is promoted.",
    )


def inferior(result: MetricResult) -> Reason:
    """A success metric that fell."""
    return Reason(
        Code.SUCCESS_INFERIOR,
        f"{result.title}: {_interval(result)}, shown to be worse (one-sided p = {result.p_harm:.2g}).",
    )


def superior(result: MetricResult) -> Reason:
    """A success metric that rose."""
    return Reason(
        Code.SUCCESS_SUPERIOR,
        f"{result.title}: {_interval(result)}, shown to be better (Holm-adjusted p = {result.p_adjusted or 0:.2g}).",
    )


def not_superior(result: MetricResult) -> Reason:
    """A success metric that shows nothing."""
    return Reason(
        Code.SUPERIORITY_NOT_SHOWN,
        f"{result.title}: {_interval(result)}, not shown to be better (Holm-adjusted p = "
        f"{result.p_adjusted or 0:.2g}).",
    )


def _listed(results: Sequence[MetricResult]) -> str:
    return "; ".join(
        f"{result.title}{place(result.scenario)} {percent(result.relative)}, {result.outcome}" for result in results
    )


def looked_at(rule: int, decision: Decision) -> str:
    """What was looked at in the rule with this number, from 0 in the order of the rules."""
    counts, results = decision.evidence.counts, decision.metrics
    overall = [result for result in results if result.scenario is None]
    users = ", ".join(f"{each.users:,} {each.arm} users" for each in decision.evidence.numbers if each.scope == ALL)
    return (
        f"{counts.exposures_used:,} exposures in {counts.requests:,} requests, {counts.outcomes_used:,} outcomes"
        + (f"; {users}" if users else ""),
        f"{decision.days_elapsed:.3g} days since {moment(decision.start_ts)}, horizon {moment(decision.end_ts)}",
        _splits(decision),
        _listed([result for result in overall if result.role != "success"]),
        _listed([result for result in overall if result.role == "success"]),
        _listed([result for result in results if result.scenario is not None and result.margin is not None]),
    )[rule]


def _splits(decision: Decision) -> str:
    if decision.section.unit == "row":
        return "sample ratio not testable: the unit is the logged row"
    shown = [
        f"{split.scenario or 'all traffic'} {split.champion:,} : {split.challenger:,}, p = {split.p_value:.2g}"
        for split in decision.splits
        if split.dimension in ("all", "scenario")
    ]
    for dimension, plural in (("day", "days of first exposure"), ("device", "devices"), ("excluded", "bot rules")):
        part = [split.p_value for split in decision.splits if split.dimension == dimension]
        if part:
            shown.append(f"{len(part)} {plural}, smallest p = {min(part):.2g}")
    closed = decision.end_ts + decision.section.attribution_hours * 3_600_000_000
    return "; ".join(shown) + ("; a sequential test, which holds at every look" if decision.now < closed else "")


def paragraph(decision: Decision) -> str:
    """The verdict in one paragraph."""
    what = {
        Verdict.PROMOTE: f"Release {decision.challenger} earned the place of release {decision.champion}.",
        Verdict.HOLD: (
            f"Release {decision.champion} stays; release {decision.challenger} has not earned its place."
            if decision.final
            else f"Keep the test of release {decision.challenger} against release {decision.champion} running."
        ),
        Verdict.REJECT: f"Release {decision.challenger} is rejected; release {decision.champion} stays.",
        Verdict.INVALID: (
            f"This test of release {decision.challenger} against release {decision.champion} proves nothing; "
            f"release {decision.champion} stays."
        ),
    }[decision.verdict]
    counts = decision.evidence.counts
    sentences = [what]
    split = next((split for split in decision.splits if split.dimension == "all"), None)
    if split is not None:
        sentences.append(
            f"In {decision.days_elapsed:.3g} days {split.challenger:,} users saw the challenger and {split.champion:,} "
            f"the champion, in {counts.requests:,} requests."
        )
    if any(reason.code is Code.EARLY_HARM for reason in decision.reasons):
        harmed = ", ".join(
            f"{result.title}{place(result.scenario)} ({percent(result.relative)})"
            for result in decision.metrics
            if result.outcome == "harm"
        )
        sentences.append(
            "It is stopped before its horizon: a confidence sequence, which holds at every look, shows a loss in "
            f"{harmed}."
        )
    else:
        sentences += [reason.text for reason in decision.reasons]
    if decision.verdict is Verdict.PROMOTE:
        guardrails = [each for each in decision.metrics if each.role != "success" and each.scenario is None]
        if guardrails:
            sentences.append(f"Every guardrail held ({_listed(guardrails)}), and no scenario is shown to lose.")
    bots = counts.users_too_busy + counts.users_clicking_all
    if bots and decision.with_bots:
        changes = ", ".join(
            f"{result.title} {percent(result.relative)}" for result in decision.with_bots if result.role == "success"
        )
        sentences.append(f"{bots:,} users were left out as bots by the rules fixed beforehand; with them: {changes}.")
    if counts.users_crossed:
        sentences.append(
            f"{counts.users_crossed:,} of the challenger's users were at times answered by the champion after a fault; "
            "they count as the challenger's."
        )
    return " ".join(sentences)
