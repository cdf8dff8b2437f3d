"""PROMOTE, HOLD, REJECT or INVALID: the rules, in the order in which they were written down beforehand.

data present -> whole weeks elapsed and attribution windows closed -> sample ratio, overall and by scenario ->
guardrails non-inferior -> success metrics superior (Holm) -> no harm in any scenario.

- No data, a broken log, a changed pre-registration or a sample-ratio mismatch: INVALID, at any time, since neither
  success nor harm can be read from such an experiment.
- Before the horizon: HOLD, unless harm is shown by a confidence sequence: REJECT.
- At the horizon: harm in a guardrail or a scenario shown -> REJECT; non-inferiority not shown -> HOLD; every success
  metric inferior -> REJECT; any superior -> PROMOTE; otherwise HOLD, final.

"Harm is shown" means: worse at a family-wise alpha (Holm over guardrails and scenarios), and the estimate is beyond the
margin. A loss that is certain but within its margin is what the margin was granted for.

All guardrails must pass, so each is tested at alpha without correction; of the success metrics one suffices, so they
share alpha (Schultzberg, Ankargren, Franberg, "Risk-aware product decisions in A/B tests with multiple metrics", 2024,
arXiv:2402.11609).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from omnifeed.config import Config, ExperimentConfig
from omnifeed.errors import InputError
from omnifeed.experiment import wording
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.experiment.decision import DayPoint, Decision, MetricResult, Outcome, Reason, Rule, Split, State, Verdict
from omnifeed.experiment.estimate import Effect, effect, holm, sample_ratio_p_value
from omnifeed.experiment.evidence import ALL, CHALLENGER, CHAMPION, ArmNumbers, Evidence
from omnifeed.experiment.log import DAY, HOUR
from omnifeed.experiment.metrics import METRICS, experiment_digest, judged_metrics
from omnifeed.experiment.sequential import sequence_factor
from omnifeed.experiment.totals import observe

RULES = (
    "Data present and log sound",
    "Whole weeks elapsed, attribution closed",
    "Sample ratio as planned",
    "Guardrails non-inferior",
    "Success metrics superior",
    "No harm in any scenario",
)


def decide(folder: Path, experiment: Experiment, config: Config, now: int, before: pa.Table | None = None) -> Decision:
    """Read an experiment's logs and judge them.

    Args:
        folder: `experiments/<name>`, with `exposures/*.jsonl` and `outcomes/*.jsonl`.
        experiment: what was written down before the start.
        config: the settings of today; its [experiment] section must be the one of the start.
        now: UTC microseconds.
        before: per-user totals in a period before the start (user_id and, by name, any of the metrics), for CUPED.

    Raises:
        InputError: the [experiment] section is not usable, or the experiment's arms are not champion and challenger.
    """
    return judge(experiment, config, now, observe(folder, experiment, config, now, before))


def judge(experiment: Experiment, config: Config, now: int, evidence: Evidence) -> Decision:
    """The verdict as a pure function of the pre-registration and the numbers."""
    section = config.experiment
    judged_metrics(section)
    arms = {arm.name: arm for arm in experiment.arms}
    if set(arms) != {CHAMPION, CHALLENGER} or len(experiment.arms) != 2:
        raise InputError(
            f"Experiment {experiment.name} has the arms {[arm.name for arm in experiment.arms]}.",
            "The verdict compares one champion with one challenger; write experiment.json again.",
        )
    judged = _Judged(experiment, section, now, evidence, arms)
    broken = judged.broken(experiment_digest(config))
    if broken:
        return judged.decision(Verdict.INVALID, broken, ("failed",), ())
    splits = judged.splits()
    mismatched = tuple(wording.mismatch(split) for split in splits if split.p_value <= split.threshold)
    closed = now >= experiment.end_ts + section.attribution_hours * HOUR
    horizon: State = "passed" if closed else "open"
    if mismatched:
        return judged.decision(Verdict.INVALID, mismatched, ("passed", horizon, "failed"), splits)
    if not closed:
        results = judged.results(early=True)
        harmed = tuple(wording.early_harm(result) for result in results if result.outcome == "harm")
        if harmed:
            states = ("passed", "open", "passed", *_early_states(results))
            return judged.decision(Verdict.REJECT, harmed, states, splits, results)
        waiting = (wording.before_horizon(experiment, section, now),)
        return judged.decision(Verdict.HOLD, waiting, ("passed", "open", "passed"), splits, results)
    results = judged.results(early=False)
    verdict, reasons, states = _at_horizon(results)
    return judged.decision(verdict, reasons, ("passed", "passed", "passed", *states), splits, results)


def _early_states(results: Sequence[MetricResult]) -> tuple[State, ...]:
    """Guardrails, success, scenarios before the horizon: failed where harm is shown, open elsewhere."""
    harmed = {"scenario" if each.scenario else each.role for each in results if each.outcome == "harm"}
    return tuple("failed" if group in harmed else "open" for group in ("guardrail", "success", "scenario"))


def _loss(result: MetricResult) -> float:
    """Relative loss, positive where the challenger is worse."""
    if result.relative is None:  # the champion's mean is zero: any loss is beyond every margin
        return math.inf if result.lower_is_better and result.challenger > 0 else 0.0
    return result.relative if result.lower_is_better else -result.relative


def _beyond_sequence(found: Effect, lower_is_better: bool, factor: float) -> bool:
    if found.standard_error is None:
        return False
    loss = found.difference if lower_is_better else -found.difference
    return loss > factor * found.standard_error


def _result(
    name: str,
    champion: ArmNumbers,
    challenger: ArmNumbers,
    found: Effect,
    margin: float | None,
    section: ExperimentConfig,
) -> MetricResult:
    metric = METRICS[name]
    return MetricResult(
        name=name,
        title=metric.title,
        role="success" if name in section.success else "guardrail",
        scenario=champion.scope or None,
        lower_is_better=metric.lower_is_better,
        users_champion=champion.users,
        users_challenger=challenger.users,
        champion=found.champion,
        challenger=found.challenger,
        relative=found.relative,
        low=found.low,
        high=found.high,
        margin=margin,
        p_value=found.p_better,
        p_adjusted=None,
        p_harm=found.p_worse,
        outcome="not judged",
    )


def _outcome(result: MetricResult, p_adjusted: float | None, harm: bool, alpha: float, early: bool) -> Outcome:
    if harm:
        return "harm"
    if result.scenario is not None:
        return "no harm shown" if result.margin is not None else "not judged"
    if early:
        return "not judged"
    if result.role == "guardrail":
        worst = result.high if result.lower_is_better else result.low
        loss = None if worst is None else worst if result.lower_is_better else -worst
        return "non-inferior" if loss is not None and loss < (result.margin or 0.0) else "not shown"
    if p_adjusted is not None and p_adjusted <= alpha:
        return "superior"
    return "inferior" if result.p_harm <= alpha else "not shown"


def _at_horizon(results: Sequence[MetricResult]) -> tuple[Verdict, tuple[Reason, ...], tuple[State, ...]]:
    guardrails = [result for result in results if result.role == "guardrail" and result.scenario is None]
    success = [result for result in results if result.role == "success" and result.scenario is None]
    scenarios = [result for result in results if result.scenario is not None and result.margin is not None]
    harmed = [result for result in (*guardrails, *scenarios) if result.outcome == "harm"]
    unshown = [result for result in guardrails if result.outcome != "non-inferior"]
    superior = [result for result in success if result.outcome == "superior"]
    states: tuple[State, ...] = (
        "failed" if unshown else "passed",
        "passed" if superior else "failed",
        "failed" if any(result.outcome == "harm" for result in scenarios) else "passed",
    )
    if harmed:
        return Verdict.REJECT, tuple(wording.harm(result) for result in harmed), states
    if unshown:
        return Verdict.HOLD, tuple(wording.not_non_inferior(result) for result in unshown), states
    if all(result.outcome == "inferior" for result in success):
        return Verdict.REJECT, tuple(wording.inferior(result) for result in success), states
    if superior:
        return Verdict.PROMOTE, tuple(wording.superior(result) for result in superior), states
    return Verdict.HOLD, tuple(wording.not_superior(result) for result in success), states


@dataclass(frozen=True, slots=True)
class _Judged:
    experiment: Experiment
    section: ExperimentConfig
    now: int
    evidence: Evidence
    arms: dict[str, Arm]

    def broken(self, digest: str) -> tuple[Reason, ...]:
        """Why nothing may be read from this experiment; empty when it may."""
        counts = self.evidence.counts
        if not counts.exposures_used:
            return (wording.no_data(self.experiment, counts),)
        reasons = []
        planned = self.section.days * DAY
        if digest != self.experiment.config_digest or self.experiment.end_ts - self.experiment.start_ts != planned:
            reasons.append(wording.config_changed(self.experiment, digest))
        if counts.unreadable or counts.malformed or counts.exposures_foreign:
            reasons.append(wording.log_broken(counts))
        missing = [name for name in (CHAMPION, CHALLENGER) if self.evidence.arm(ALL, name) is None]
        reasons += [wording.arm_missing(self.arms[name]) for name in missing]
        if counts.users_misassigned:
            reasons.append(wording.misassigned(counts))
        return tuple(reasons)

    def _users(self, scope: str, arm: str) -> int:
        numbers = self.evidence.arm(scope, arm)
        return numbers.users if numbers else 0

    def splits(self) -> tuple[Split, ...]:
        """The sample-ratio test over all traffic at srm_alpha, and by scenario at srm_alpha divided by their number."""
        scenarios = self.evidence.scenarios()
        share = self.arms[CHAMPION].weight
        found = []
        for scope in (ALL, *scenarios):
            champion, challenger = self._users(scope, CHAMPION), self._users(scope, CHALLENGER)
            found.append(
                Split(
                    scenario=scope or None,
                    champion=champion,
                    challenger=challenger,
                    planned_champion_share=share,
                    p_value=sample_ratio_p_value(champion, challenger, share),
                    threshold=self.section.srm_alpha / (len(scenarios) if scope else 1),
                )
            )
        return tuple(found)

    def _elapsed(self) -> float:
        """Share of the planned duration."""
        planned = self.experiment.end_ts - self.experiment.start_ts
        return min(max((self.now - self.experiment.start_ts) / planned, 0.0), 1.0)

    def results(self, *, early: bool) -> tuple[MetricResult, ...]:
        """Every metric over all traffic and in every scenario, with what it shows.

        Before the horizon (`early`) the only thing that can be shown is harm, by a confidence sequence at alpha shared
        by all that could show it.
        """
        section = self.section
        margins = dict(zip(section.guardrails, section.guardrail_margins, strict=True))
        watched: dict[str, tuple[MetricResult, Effect]] = {}
        for scope in (ALL, *self.evidence.scenarios()):
            champion, challenger = self.evidence.arm(scope, CHAMPION), self.evidence.arm(scope, CHALLENGER)
            if champion is None or challenger is None:
                continue
            for name in (*section.success, *section.guardrails):
                margin = margins.get(name) if not scope else None
                if scope and name == section.success[0]:
                    margin = section.scenario_harm_margin
                found = effect(champion, challenger, METRICS[name], section.alpha)
                watched[f"{name}@{scope}"] = (_result(name, champion, challenger, found, margin, section), found)
        may_harm = [key for key, (result, _) in watched.items() if result.margin is not None]
        if early:
            may_harm += [f"{name}@{ALL}" for name in section.success]
            factor = sequence_factor(max(self._elapsed(), 1e-6), section.alpha / len(may_harm))
            harmed = {
                key for key in may_harm if _beyond_sequence(watched[key][1], watched[key][0].lower_is_better, factor)
            }
        else:
            adjusted = holm({key: watched[key][1].p_worse for key in may_harm}, section.alpha)
            harmed = {key for key in may_harm if adjusted[key] <= section.alpha}
        success = holm({name: watched[f"{name}@{ALL}"][1].p_better for name in section.success}, section.alpha)
        results = []
        for key, (result, _) in watched.items():
            p_adjusted = success.get(result.name) if result.scenario is None else None
            harm = key in harmed and _loss(result) > (result.margin or 0.0)
            outcome = _outcome(result, p_adjusted, harm, section.alpha, early)
            results.append(replace(result, p_adjusted=p_adjusted, outcome=outcome))
        return tuple(results)

    def daily(self) -> tuple[DayPoint, ...]:
        """Cumulative effects by day, with the ordinary interval and the confidence sequence."""
        points = []
        planned_days = (self.experiment.end_ts - self.experiment.start_ts) / DAY
        for day in self.evidence.days:
            arms = {numbers.arm: numbers for numbers in day.arms}
            if set(arms) != {CHAMPION, CHALLENGER}:
                continue
            factor = sequence_factor((day.day + 1) / planned_days, self.section.alpha)
            for name in (*self.section.success, *self.section.guardrails):
                found = effect(arms[CHAMPION], arms[CHALLENGER], METRICS[name], self.section.alpha)
                half = None
                if found.standard_error is not None and found.relative is not None:
                    half = factor * found.standard_error / found.champion
                points.append(
                    DayPoint(
                        metric=name,
                        day=day.day,
                        users=sum(numbers.users for numbers in day.arms),
                        relative=found.relative,
                        low=found.low,
                        high=found.high,
                        sequence_low=None if half is None or found.relative is None else found.relative - half,
                        sequence_high=None if half is None or found.relative is None else found.relative + half,
                    )
                )
        return tuple(points)

    def decision(
        self,
        verdict: Verdict,
        reasons: tuple[Reason, ...],
        states: tuple[State, ...],
        splits: tuple[Split, ...],
        results: tuple[MetricResult, ...] = (),
    ) -> Decision:
        closed = self.now >= self.experiment.end_ts + self.section.attribution_hours * HOUR
        decision = Decision(
            verdict=verdict,
            final=verdict is not Verdict.HOLD or closed,
            experiment=self.experiment.name,
            champion=self.arms[CHAMPION].release,
            challenger=self.arms[CHALLENGER].release,
            start_ts=self.experiment.start_ts,
            end_ts=self.experiment.end_ts,
            now=self.now,
            days_elapsed=self._elapsed() * (self.experiment.end_ts - self.experiment.start_ts) / DAY,
            config_digest=self.experiment.config_digest,
            alpha=self.section.alpha,
            reasons=reasons,
            path=(),
            metrics=results,
            splits=splits,
            daily=self.daily(),
            evidence=self.evidence,
            paragraph="",
        )
        return replace(decision, path=_path(decision, states), paragraph=wording.paragraph(decision))


def _path(decision: Decision, states: Sequence[State]) -> tuple[Rule, ...]:
    path = []
    for number, name in enumerate(RULES):
        state: State = states[number] if number < len(states) else "not reached"
        path.append(Rule(name, state, wording.looked_at(number, decision) if state != "not reached" else ""))
    return tuple(path)
