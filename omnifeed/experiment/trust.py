"""Whether an experiment's log can be believed at all: looked at before any effect, by rules fixed beforehand.

Each check asks whether something differs between the arms, or changes on the way, that no release can cause: how many
users there are of a kind settled before they were answered, how many lines were lost, what the clocks say, how late an
arm logs, and whether an arm began or ceased to log something. Bounds are wide on purpose, so that an honest experiment
is all but never stopped by them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from omnifeed.config import ExperimentConfig
from omnifeed.experiment import wording
from omnifeed.experiment.decision import Reason, Split
from omnifeed.experiment.estimate import sample_ratio_p_value
from omnifeed.experiment.evidence import ALL, CHALLENGER, CHAMPION, Evidence
from omnifeed.experiment.log import DAY, HOUR
from omnifeed.experiment.sequential import sequential_sample_ratio_p_value

Z = 4.0
DISPERSION = 10.0  # events cluster by user and by answer: their variance against that of independent ones
FACTOR = 2.0  # of change against the other arm from some day on


@dataclass(frozen=True, slots=True)
class Looks:
    """What is looked at again and again shares srm_alpha, whenever it comes."""

    days: int  # of the stage, planned: each day's first comers are a group
    stages: int  # of the ramp


def splits(
    evidence: Evidence, champion_share: float, section: ExperimentConfig, looks: Looks | None
) -> tuple[Split, ...]:
    """The sample-ratio test: over all traffic at srm_alpha; by scenario, by day of the first exposure, by device and
    over the users left out as bots at srm_alpha divided by the number of groups of that kind.

    Args:
        looks: before the horizon, where the split is looked at again and again: a sequential test, and the stages of a
            ramp share srm_alpha. None: at the horizon, once; an ordinary test.
    """
    groups: dict[str, dict[str, dict[str, int]]] = {"all": {}, "scenario": {}}
    for numbers in evidence.numbers:
        kind = "all" if numbers.scope == ALL else "scenario"
        groups[kind].setdefault(numbers.scope, {})[numbers.arm] = numbers.users
    for group in evidence.groups:
        groups.setdefault(group.dimension, {}).setdefault(group.value, {})[group.arm] = group.users
    test = sequential_sample_ratio_p_value if looks else sample_ratio_p_value
    found = []
    for dimension, values in groups.items():
        tests = max(len(values), looks.days if looks and dimension == "day" else 0) * (looks.stages if looks else 1)
        for value, arms in values.items():
            champion, challenger = arms.get(CHAMPION, 0), arms.get(CHALLENGER, 0)
            found.append(
                Split(
                    scenario=value if dimension == "scenario" else None,
                    champion=champion,
                    challenger=challenger,
                    planned_champion_share=champion_share,
                    p_value=test(champion, challenger, champion_share),
                    threshold=section.srm_alpha / tests,
                    dimension=dimension,
                    value=value,
                )
            )
    return tuple(found)


def mismatches(found: Sequence[Split]) -> tuple[Reason, ...]:
    """The groups that do not split as planned; where all traffic does not, its parts add nothing."""
    wrong = [split for split in found if split.mismatched]
    overall = [split for split in wrong if split.dimension == "all"]
    excluded = [split for split in wrong if split.dimension == "excluded"]
    parts = [split for split in wrong if split.dimension not in ("all", "excluded")]
    return tuple(wording.mismatch(split) for split in [*(overall or parts), *excluded])


def findings(evidence: Evidence, section: ExperimentConfig, start_ts: int, now: int) -> tuple[Reason, ...]:
    """What else stands against the log."""
    closed_days = (now - start_ts - section.attribution_hours * HOUR) // DAY
    return (
        *_lost(evidence, section),
        *_clocks(evidence, section),
        *_late(evidence, section),
        *_changed(evidence, closed_days),
    )


def _lost(evidence: Evidence, section: ExperimentConfig) -> Iterator[Reason]:
    counts = evidence.counts
    missing = _share(counts.exposures_missing, counts.exposures_used)
    joined = counts.outcomes_used + counts.outcomes_late + counts.outcomes_early + counts.outcomes_outside
    unexposed = _share(counts.outcomes_unexposed, joined)
    if max(missing, unexposed) > section.max_lost_share:
        yield wording.incomplete(missing, unexposed, section.max_lost_share)


def _clocks(evidence: Evidence, section: ExperimentConfig) -> Iterator[Reason]:
    counts = evidence.counts
    before = _share(counts.exposures_before, counts.exposures_used)
    early = _share(counts.outcomes_early, counts.outcomes_used + counts.outcomes_late)
    skewed = _share(counts.outcomes_skewed, counts.outcomes - counts.outcomes_skewed)
    if max(before, early, skewed) > section.max_lost_share:
        yield wording.clock_skew(before, early, skewed, section.max_lost_share)


def _late(evidence: Evidence, section: ExperimentConfig) -> Iterator[Reason]:
    """Outcomes that become known much later in one arm: at any look, that arm is judged on less."""
    bound = section.attribution_hours * 3600 / 8
    lags = {(lag.arm, lag.name): lag for lag in evidence.lags}
    for name in sorted({lag.name for lag in evidence.lags}):
        champion, challenger = lags.get((CHAMPION, name)), lags.get((CHALLENGER, name))
        if champion is None or challenger is None or min(champion.outcomes, challenger.outcomes) < 2:
            continue
        error = math.sqrt(champion.variance / champion.outcomes + challenger.variance / challenger.outcomes)
        difference = challenger.mean - champion.mean
        if abs(difference) > max(bound, Z * math.sqrt(DISPERSION) * error):
            yield wording.late_logging(name, champion.mean, challenger.mean)


def _changed(evidence: Evidence, closed: int) -> Iterator[Reason]:
    """An event that one arm began or ceased to log, or logs at another rate from some day on, the other arm apart.

    Rates are outcomes an exposure, and exposures a request: how often people come clusters too much to be read. For
    each boundary between two days, a table of arm by before and after; the likelihood ratio test of "both arms' rates
    changed by one factor". Only days whose attribution windows have closed are read, since the others are complete in
    neither arm.
    """
    series: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
    days = range(max(0, min(closed, max((log.day for log in evidence.day_logs), default=-1) + 1)))
    for log in evidence.day_logs:
        for name, events in log.events.items():
            series[name][log.arm, log.day] = events
    for name, events_of in sorted(series.items()):
        base = series.get("requests" if name == "exposures" else "exposures", {})
        if name == "requests" or not base:
            continue
        worst, at = 0.0, 0
        for boundary in days[1:]:
            counts, opportunities = _table(events_of, days, boundary), _table(base, days, boundary)
            if min(map(min, opportunities)) == 0 or _factor(counts, opportunities) <= FACTOR:
                continue
            found = _likelihood_ratio(counts, opportunities)
            if found > worst:
                worst, at = found, boundary
        if worst > Z**2 * DISPERSION:
            counts, opportunities = _table(events_of, days, at), _table(base, days, at)
            rates = [
                (before / shown_before, after / shown_after)
                for (before, after), (shown_before, shown_after) in zip(counts, opportunities, strict=True)
            ]
            yield wording.instrumentation_changed(name, at, dict(zip((CHAMPION, CHALLENGER), rates, strict=True)))


def _table(events: dict[tuple[str, int], int], days: range, boundary: int) -> list[list[int]]:
    """Arm by before and after."""
    return [
        [sum(events.get((arm, day), 0) for day in part) for part in (days[:boundary], days[boundary:])]
        for arm in (CHAMPION, CHALLENGER)
    ]


def _likelihood_ratio(counts: Sequence[Sequence[int]], opportunities: Sequence[Sequence[int]]) -> float:
    """G statistic, one degree of freedom: Poisson counts with a factor an arm and a factor a period, fitted by scaling
    the opportunities to the counts' margins.
    """
    fitted = [[float(value) for value in row] for row in opportunities]
    rows, columns = [sum(row) for row in counts], [sum(column) for column in zip(*counts, strict=True)]
    if min(*rows, *columns) == 0:  # one arm or one period without any: a factor explains it
        return 0.0
    for _ in range(50):
        fitted = [[value * total / sum(row) for value in row] for row, total in zip(fitted, rows, strict=True)]
        sums = [sum(column) for column in zip(*fitted, strict=True)]
        fitted = [[value * columns[at] / sums[at] for at, value in enumerate(row)] for row in fitted]
    return 2 * sum(
        count * math.log(count / expected)
        for row, expectations in zip(counts, fitted, strict=True)
        for count, expected in zip(row, expectations, strict=True)
        if count
    )


def _factor(counts: Sequence[Sequence[int]], opportunities: Sequence[Sequence[int]]) -> float:
    (a, b), (c, d) = (
        [(count + 0.5) / shown for count, shown in zip(row, base, strict=True)]
        for row, base in zip(counts, opportunities, strict=True)
    )
    return max(a * d / (b * c), b * c / (a * d))


def _share(bad: int, good: int) -> float:
    return bad / (bad + good) if bad else 0.0
