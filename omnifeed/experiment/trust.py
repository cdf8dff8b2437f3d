"""Whether an experiment's log can be believed at all: looked at before any effect, by rules fixed beforehand.

Each check asks whether something differs between the arms, or changes on the way, that no release can cause: how many
users there are of a kind settled before they were answered, how many lines were lost, what the clocks say, how late an
arm logs, and whether an arm began or ceased to log something. Bounds are wide on purpose: z beyond 6 with users not
kept apart, and a factor of two, so that an honest experiment is all but never stopped by them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from omnifeed.config import ExperimentConfig
from omnifeed.experiment import wording
from omnifeed.experiment.decision import Reason, Split
from omnifeed.experiment.estimate import sample_ratio_p_value
from omnifeed.experiment.evidence import ALL, CHALLENGER, CHAMPION, Evidence
from omnifeed.experiment.log import DAY, HOUR

Z = 6.0  # events cluster by user: about 3 for an outcome whose variance is four times that of a coin
FACTOR = 2.0  # of change against the other arm from one day to the next


def splits(evidence: Evidence, champion_share: float, section: ExperimentConfig) -> tuple[Split, ...]:
    """The sample-ratio test: over all traffic at srm_alpha; by scenario, by day of the first exposure, by device and
    over the users left out as bots at srm_alpha divided by the number of groups of that kind.
    """
    groups: dict[str, dict[str, dict[str, int]]] = {"all": {}, "scenario": {}}
    for numbers in evidence.numbers:
        kind = "all" if numbers.scope == ALL else "scenario"
        groups[kind].setdefault(numbers.scope, {})[numbers.arm] = numbers.users
    for group in evidence.groups:
        groups.setdefault(group.dimension, {}).setdefault(group.value, {})[group.arm] = group.users
    found = []
    for dimension, values in groups.items():
        for value, arms in values.items():
            champion, challenger = arms.get(CHAMPION, 0), arms.get(CHALLENGER, 0)
            found.append(
                Split(
                    scenario=value if dimension == "scenario" else None,
                    champion=champion,
                    challenger=challenger,
                    planned_champion_share=champion_share,
                    p_value=sample_ratio_p_value(champion, challenger, champion_share),
                    threshold=section.srm_alpha / len(values),
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
        if abs(difference) > max(bound, Z * error):
            yield wording.late_logging(name, champion.mean, challenger.mean)


def _changed(evidence: Evidence, closed: int) -> Iterator[Reason]:
    """An event that one arm began or ceased to log, or logs at another rate from some day on, the other arm apart.

    For each event and each boundary between two days, a 2 x 2 table of arm by before and after; G test of independence.
    Only days whose attribution windows have closed are read, since the others are not complete in either arm.
    """
    series: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
    days = range(max(0, min(closed, max((log.day for log in evidence.day_logs), default=-1) + 1)))
    for log in evidence.day_logs:
        for name, events in log.events.items():
            series[name][log.arm, log.day] = events
    for name, events_of in sorted(series.items()):
        worst, at = 0.0, 0
        for boundary in days[1:]:
            table = [
                [sum(events_of.get((arm, day), 0) for day in part) for part in (days[:boundary], days[boundary:])]
                for arm in (CHAMPION, CHALLENGER)
            ]
            found = _g(table)
            if found > worst and _factor(table) > FACTOR:
                worst, at = found, boundary
        if worst > Z**2:
            yield wording.instrumentation_changed(
                name,
                at,
                {
                    arm: tuple(
                        sum(events_of.get((arm, day), 0) for day in part) / len(part) for part in (days[:at], days[at:])
                    )
                    for arm in (CHAMPION, CHALLENGER)
                },
            )


def _g(table: Sequence[Sequence[int]]) -> float:
    total = sum(map(sum, table))
    columns = [sum(column) for column in zip(*table, strict=True)]
    return 2 * sum(
        value * math.log(value * total / (sum(row) * column))
        for row in table
        for value, column in zip(row, columns, strict=True)
        if value
    )


def _factor(table: Sequence[Sequence[int]]) -> float:
    (a, b), (c, d) = [[value + 0.5 for value in row] for row in table]
    odds = a * d / (b * c)
    return max(odds, 1 / odds)


def _share(bad: int, good: int) -> float:
    return bad / (bad + good) if bad else 0.0
