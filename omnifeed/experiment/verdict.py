"""PROMOTE, HOLD, REJECT or INVALID: the rules, in the order in which they were written down beforehand.

data present -> whole weeks elapsed and attribution windows closed -> sample ratio, overall, by scenario, day and
device, and a log that can be believed -> guardrails non-inferior -> success metrics superior (Holm) -> no harm in any
scenario.

- No data, a broken log, a changed pre-registration, a sample-ratio mismatch or a log that no release explains (see
  `trust`): INVALID, at any time, since neither success nor harm can be read from such an experiment. It is final, with
  one exception: before the horizon traffic may still come, so an experiment without data, or with too few users for a
  missing arm to mean anything, is INVALID for now and goes on.
- The users' split is looked at again and again before the horizon, so there it is judged by a sequential test; at the
  horizon once, by an ordinary one.
- Before the horizon: HOLD, unless harm is shown by a confidence sequence: REJECT.
- At the horizon: harm in a guardrail or a scenario shown -> REJECT; non-inferiority not shown -> HOLD; every success
  metric inferior -> REJECT; a quality metric shown to be worse (Holm) -> HOLD; any superior -> PROMOTE; otherwise HOLD,
  final.
- On a ramp each stage is judged apart, on its own exposures, until its attribution window has closed, and only for
  harm: HOLD, or REJECT by a confidence sequence whose alpha the stages share. Success is read on the last stage, which
  is the test itself.
- Where the unit is the logged row, intervals are shown and the verdict is INVALID.

"Harm is shown" means: worse at a family-wise alpha (Holm over guardrails and scenarios), and the estimate is beyond the
margin. A loss that is certain but within its margin is what the margin was granted for.

All guardrails must pass, so each is tested at alpha without correction; of the success metrics one suffices, so they
share alpha (Schultzberg, Ankargren, Franberg, "Risk-aware product decisions in A/B tests with multiple metrics", 2024,
arXiv:2402.11609).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from omnifeed.config import Config, ExperimentConfig
from omnifeed.errors import InputError
from omnifeed.experiment import trust, wording
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.experiment.decision import (
    Code,
    DayPoint,
    Decision,
    MetricResult,
    Outcome,
    Reason,
    Rule,
    Split,
    State,
    Verdict,
)
from omnifeed.experiment.estimate import Effect, effect, holm, null_standard_error
from omnifeed.experiment.evidence import ALL, CHALLENGER, CHAMPION, Evidence
from omnifeed.experiment.log import DAY, HOUR
from omnifeed.experiment.metrics import METRICS, experiment_digest, judged_metrics
from omnifeed.experiment.read import folder_log
from omnifeed.experiment.results import effects
from omnifeed.experiment.sequential import sequence_factor, sequential_sample_ratio_p_value
from omnifeed.experiment.totals import observe

RULES = (
    "Data present and log sound",
    "Whole weeks elapsed, attribution closed",
    "Sample ratio as planned, log believable",
    "Guardrails non-inferior",
    "Success metrics superior",
    "No harm in any scenario",
)


def decide(folder: Path, experiment: Experiment, config: Config, now: int, before: pa.Table | None = None) -> Decision:
    """Read an experiment's logs and judge them.

    Args:
        folder: `experiments/<name>`, with `exposures/*.jsonl` and `outcomes/*.jsonl`; what was read and computed of
            whole days is kept in `read/`, so that the next look reads only what is new.
        experiment: what was written down before the start.
        config: the settings of today; its [experiment] section must be the one of the start.
        now: UTC microseconds.
        before: per-user totals in a period before the start (user_id and, by name, any of the metrics), for CUPED.

    Raises:
        InputError: the [experiment] section is not usable, or the experiment's arms are not champion and challenger.
    """
    decision = None
    for at in open_stages(experiment, config, now):
        evidence = observe(folder_log(folder), experiment, config, now, before, keep=folder / "read", at=at)
        decision = judge(experiment, config, now, evidence, at)
        if decision.final:
            break
    assert decision is not None
    return decision


def open_stages(experiment: Experiment, config: Config, now: int) -> list[int]:
    """A moment of each stage that is judged: of those past whose attribution windows are open, then of the present one.

    Without the past ones, what a stage showed in its last hours, or became known later, would be looked at by nobody.
    """
    window = config.experiment.attribution_hours * HOUR
    starts = [stage.start_ts for stage in experiment.stages]
    past = [start for start, end in itertools.pairwise(starts) if end <= now < end + window]
    return [*past, now]


def judge(experiment: Experiment, config: Config, now: int, evidence: Evidence, at: int | None = None) -> Decision:
    """The verdict as a pure function of the pre-registration and the numbers.

    Args:
        evidence: as of `now`, of one stage.
        at: a moment of that stage; default `now`.
    """
    section = config.experiment
    judged_metrics(section)
    arms = {arm.name: arm for arm in experiment.arms}
    if set(arms) != {CHAMPION, CHALLENGER} or len(experiment.arms) != 2:
        raise InputError(
            f"Experiment {experiment.name} has the arms {[arm.name for arm in experiment.arms]}.",
            "The verdict compares one champion with one challenger; write experiment.json again.",
        )
    stage = experiment.stage(now if at is None else at)
    judged = _Judged(experiment, stage, section, now, evidence, {arm.name: arm for arm in stage.arms})
    broken = judged.broken(experiment_digest(config))
    if broken:
        return judged.decision(Verdict.INVALID, broken, ("failed",), (), waiting=judged.may_still_come(broken))
    horizon: State = "passed" if judged.closed else "open"
    if section.unit == "row":
        results = judged.results(early=False)
        failed: tuple[State, ...] = ("passed", horizon, "failed")
        return judged.decision(Verdict.INVALID, (wording.row_unit(),), failed, (), results, waiting=not judged.closed)
    splits = trust.splits(evidence, judged.arms[CHAMPION].weight, section, judged.looks)
    doubts = (*trust.mismatches(splits), *trust.findings(evidence, section, stage.start_ts, now))
    if doubts:
        return judged.decision(Verdict.INVALID, doubts, ("passed", horizon, "failed"), splits)
    if not judged.closed:
        results = judged.results(early=True)
        harmed = tuple(wording.early_harm(result) for result in results if result.outcome == "harm")
        if harmed:
            found = ("passed", "open", "passed", *_early_states(results))
            return judged.decision(Verdict.REJECT, harmed, found, splits, results)
        waiting = (wording.before_horizon(experiment, section, now),)
        if judged.ramping:
            waiting = (wording.ramping(experiment, stage),)
        return judged.decision(Verdict.HOLD, waiting, ("passed", "open", "passed"), splits, results, waiting=True)
    results = judged.results(early=False)
    verdict, reasons, states = _at_horizon(results)
    return judged.decision(verdict, reasons, ("passed", "passed", "passed", *states), splits, results)


def _early_states(results: Sequence[MetricResult]) -> tuple[State, ...]:
    """Guardrails, success, scenarios before the horizon: failed where harm is shown, open elsewhere."""
    harmed = {"scenario" if each.scenario else each.role for each in results if each.outcome == "harm"}
    return tuple("failed" if group in harmed else "open" for group in ("guardrail", "success", "scenario"))


def _loss(result: MetricResult) -> float:
    """Relative loss, positive where the challenger is worse."""
    if result.champion <= 0:  # any loss is beyond every margin
        return math.inf if result.lower_is_better and result.challenger > 0 else 0.0
    change = result.challenger / result.champion - 1
    return change if result.lower_is_better else -change


def _beyond_sequence(found: Effect, null_error: float | None, lower_is_better: bool, factor: float) -> bool:
    """Whether a loss is beyond chance at every look; with the larger of the standard errors, its own and the null's."""
    if found.standard_error is None:
        return False
    loss = found.difference if lower_is_better else -found.difference
    return loss > factor * max(found.standard_error, null_error or 0.0)


def _outcome(
    result: MetricResult, p_adjusted: float | None, harm: bool, worse: bool, alpha: float, early: bool
) -> Outcome:
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
    if result.role == "quality":
        return "inferior" if worse else "no harm shown"
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
    fallen = [result for result in results if result.role == "quality" and result.outcome == "inferior"]
    states: tuple[State, ...] = (
        "failed" if unshown or fallen else "passed",
        "passed" if superior else "failed",
        "failed" if any(result.outcome == "harm" for result in scenarios) else "passed",
    )
    if harmed:
        return Verdict.REJECT, tuple(wording.harm(result) for result in harmed), states
    if unshown:
        return Verdict.HOLD, tuple(wording.not_non_inferior(result) for result in unshown), states
    if all(result.outcome == "inferior" for result in success):
        return Verdict.REJECT, tuple(wording.inferior(result) for result in success), states
    if fallen:
        return Verdict.HOLD, tuple(wording.quality_inferior(result) for result in fallen), states
    if superior:
        return Verdict.PROMOTE, tuple(wording.superior(result) for result in superior), states
    return Verdict.HOLD, tuple(wording.not_superior(result) for result in success), states


@dataclass(frozen=True, slots=True)
class _Judged:
    experiment: Experiment
    stage: Experiment  # the experiment itself where there is no ramp
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
        section = self.section
        last = self.experiment.stage(self.experiment.end_ts)
        ramp = tuple(each.share for each in self.experiment.stages[:-1])
        as_planned = ramp == section.ramp and last.end_ts - last.start_ts == section.days * DAY
        if digest != self.experiment.config_digest or not as_planned:
            reasons.append(wording.config_changed(self.experiment, digest))
        if counts.unreadable or counts.malformed or counts.exposures_foreign:
            reasons.append(wording.log_broken(counts))
        missing = [name for name in (CHAMPION, CHALLENGER) if self.evidence.arm(ALL, name) is None]
        reasons += [wording.arm_missing(self.arms[name]) for name in missing]
        if counts.users_misassigned:
            reasons.append(wording.misassigned(self.experiment, counts))
        return tuple(reasons)

    @property
    def closed(self) -> bool:
        """Whether the horizon has passed and the last attribution window with it."""
        return self.now >= self.experiment.end_ts + self.section.attribution_hours * HOUR

    @property
    def looks(self) -> trust.Looks | None:
        """Of the users' split before the horizon; None at the horizon, where it is read once."""
        days = math.ceil((self.stage.end_ts - self.stage.start_ts) / DAY)
        return None if self.closed else trust.Looks(days, max(len(self.experiment.stages), 1))

    @property
    def ramping(self) -> bool:
        """Whether it is not the last stage that is judged."""
        return self.stage.end_ts < self.experiment.end_ts

    def may_still_come(self, broken: Sequence[Reason]) -> bool:
        """Whether all that is wrong is that few users, or none, have come yet."""
        codes = {reason.code for reason in broken}
        if self.closed or not codes <= {Code.NO_DATA, Code.ARM_MISSING}:
            return False
        users = [numbers.users if (numbers := self.evidence.arm(ALL, name)) else 0 for name in (CHAMPION, CHALLENGER)]
        share = self.arms[CHAMPION].weight
        return not any(users) or sequential_sample_ratio_p_value(users[0], users[1], share) > self.section.srm_alpha

    def _elapsed(self) -> float:
        """Share of the stage's planned duration."""
        planned = self.stage.end_ts - self.stage.start_ts
        return min(max((self.now - self.stage.start_ts) / planned, 0.0), 1.0)

    def results(self, *, early: bool) -> tuple[MetricResult, ...]:
        """Every metric over all traffic and in every scenario, with what it shows.

        Before the horizon (`early`) the only thing that can be shown is harm, by a confidence sequence at alpha shared
        by all that could show it.
        """
        section = self.section
        watched = effects(self.evidence.numbers, section)
        may_harm = [key for key, (result, _) in watched.items() if result.margin is not None]
        if early:
            may_harm += [f"{name}@{ALL}" for name in section.success]
            factor = sequence_factor(
                max(self._elapsed(), 1e-6), section.alpha / len(may_harm) / max(len(self.experiment.stages), 1)
            )
            harmed = {key for key in may_harm if self._harmed_early(*watched[key], factor)}
        else:
            adjusted = holm({key: watched[key][1].p_worse for key in may_harm}, section.alpha)
            harmed = {key for key in may_harm if adjusted[key] <= section.alpha}
        success = holm({name: watched[f"{name}@{ALL}"][1].p_better for name in section.success}, section.alpha)
        worse = holm({f"{name}@{ALL}": watched[f"{name}@{ALL}"][1].p_worse for name in section.quality}, section.alpha)
        results = []
        for key, (result, _) in watched.items():
            p_adjusted = success.get(result.name) if result.scenario is None else None
            harm = key in harmed and _loss(result) > (result.margin or 0.0)
            fallen = worse.get(key, 1.0) <= section.alpha
            outcome = _outcome(result, p_adjusted, harm, fallen, section.alpha, early)
            results.append(replace(result, p_adjusted=p_adjusted, outcome=outcome))
        return tuple(results)

    def _harmed_early(self, result: MetricResult, found: Effect, factor: float) -> bool:
        scope = result.scenario or ALL
        arms = (self.evidence.arm(scope, CHAMPION), self.evidence.arm(scope, CHALLENGER))
        champion, challenger = (arm for arm in arms if arm is not None)  # both, or there were no result
        null_error = null_standard_error(champion, challenger, METRICS[result.name])
        return _beyond_sequence(found, null_error, result.lower_is_better, factor)

    def daily(self) -> tuple[DayPoint, ...]:
        """Cumulative effects by day, with the ordinary interval and the confidence sequence."""
        points = []
        planned_days = (self.stage.end_ts - self.stage.start_ts) / DAY
        for day in self.evidence.days:
            arms = {numbers.arm: numbers for numbers in day.arms}
            if set(arms) != {CHAMPION, CHALLENGER}:
                continue
            factor = sequence_factor((day.day + 1) / planned_days, self.section.alpha)
            for name in (*self.section.success, *self.section.guardrails, *self.section.quality):
                found = effect(arms[CHAMPION], arms[CHALLENGER], METRICS[name], self.section.alpha)
                half = None
                if found.standard_error is not None and found.low is not None:
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
        *,
        waiting: bool = False,
    ) -> Decision:
        decision = Decision(
            verdict=verdict,
            final=not waiting,
            experiment=self.experiment.name,
            champion=self.arms[CHAMPION].release,
            challenger=self.arms[CHALLENGER].release,
            start_ts=self.stage.start_ts,
            end_ts=self.experiment.end_ts,
            now=self.now,
            days_elapsed=self._elapsed() * (self.stage.end_ts - self.stage.start_ts) / DAY,
            config_digest=self.experiment.config_digest,
            alpha=self.section.alpha,
            reasons=reasons,
            path=(),
            metrics=results,
            splits=splits,
            daily=self.daily(),
            evidence=self.evidence,
            with_bots=tuple(result for result, _ in effects(self.evidence.unfiltered, self.section).values())
            if results
            else (),
            registered=self.experiment,
            section=self.section,
            paragraph="",
        )
        return replace(decision, path=_path(decision, states), paragraph=wording.paragraph(decision))


def _path(decision: Decision, states: Sequence[State]) -> tuple[Rule, ...]:
    path = []
    for number, name in enumerate(RULES):
        state: State = states[number] if number < len(states) else "not reached"
        path.append(Rule(name, state, wording.looked_at(number, decision) if state != "not reached" else ""))
    return tuple(path)
