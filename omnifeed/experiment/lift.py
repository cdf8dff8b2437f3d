"""What all promotions together have brought: the present champion against the hold-back group's release.

The hold-back group (see `assignment.Holdback`) has kept the release that was champion when it began. Every change of
the champion since begins a period; in each, the group is compared with the users whom the champion answered. Periods
are never pooled: the last one says what all promotions together amount to today, the ones before it how that came
about. Users who had a challenger in an experiment of the period, at any of its stages, are left out; experiments'
salts have nothing to do with the group's, so those who remain are still a random sample.

Nothing is decided here. The same trust checks as for a verdict come first; where they fail no effect is shown.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from omnifeed.config import Config
from omnifeed.experiment import trust, wording
from omnifeed.experiment.assignment import HELD, Arm, Experiment, Holdback
from omnifeed.experiment.decision import MetricResult, Reason, Split
from omnifeed.experiment.deploy import holdback_path
from omnifeed.experiment.evidence import CHALLENGER, CHAMPION, LogCounts
from omnifeed.experiment.ledger import MOVES, Ledger
from omnifeed.experiment.log import DAY, point_sql
from omnifeed.experiment.read import Lines, Log, literal, select_exposures, select_outcomes
from omnifeed.experiment.results import effects
from omnifeed.experiment.totals import observe
from omnifeed.home import Home

GRACE = 60_000_000  # microseconds after a change of the champion in which servers take notice of it


@dataclass(frozen=True, slots=True)
class Period:
    """The time of one champion, against the hold-back group."""

    champion: str  # release
    start_ts: int
    end_ts: int  # UTC microseconds; of the present champion, when it was looked at
    held: int  # users of the group
    others: int  # users whom the champion answered, without those of experiments
    results: tuple[MetricResult, ...]  # "challenger" is the champion of the time, "champion" the group's release
    splits: tuple[Split, ...]
    doubts: tuple[Reason, ...]  # where there are any, `results` is empty
    counts: LogCounts


@dataclass(frozen=True, slots=True)
class Lift:
    """The hold-back group, and what every champion since has brought against its release."""

    group: Holdback
    now: int
    alpha: float
    periods: tuple[Period, ...]  # oldest first; the last is the present champion's

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """What the command prints."""
        lines = [
            f"{self.group.share:.1%} of the users are held back on release {self.group.release} since "
            f"{wording.moment(self.group.start_ts)}."
        ]
        for period in self.periods:
            lines += [
                "",
                f"release {period.champion} from {wording.moment(period.start_ts)} to {wording.moment(period.end_ts)}: "
                f"{period.others:,} users, {period.held:,} held back",
                *(f"  {reason.code.value}: {reason.text}" for reason in period.doubts),
                *(f"  {_line(result)}" for result in period.results),
            ]
        return "\n".join(lines)


def _line(result: MetricResult) -> str:
    interval = "interval not estimable"
    if result.low is not None and result.high is not None:
        interval = f"{wording.percent(result.low)} to {wording.percent(result.high)}"
    return f"{result.title + wording.place(result.scenario):<44}{wording.percent(result.relative):>12}   {interval}"


def cumulative_lift(home: Home, config: Config, now: int, before: pa.Table | None = None) -> Lift | None:
    """Compare every champion since the hold-back group began with the group's release.

    Args:
        home: its hold-back group, ledger and experiments' logs.
        config: its [experiment] section names the metrics, caps and bounds.
        now: UTC microseconds; what was observed later is not read.
        before: totals a user in a period before the group began, for CUPED; see `totals.observe`.

    Returns:
        None where there is no group.

    Raises:
        InputError: the [experiment] section or the group's file is not usable.
    """
    group = Holdback.load(holdback_path(home))
    if group is None:
        return None
    moves = [(entry.ts, entry.champion) for entry in Ledger(home).entries() if entry.kind in MOVES]
    begun = [champion for ts, champion in moves if ts <= group.start_ts][-1:]
    changes = [(group.start_ts, begun[0] if begun else group.release)]
    changes += [(ts + GRACE, champion) for ts, champion in moves if group.start_ts < ts < now - GRACE]
    ends = [start - GRACE for start, _ in changes[1:]] + [now]
    periods = [
        _period(home, config, group, str(champion), start, end, now, before)
        for (start, champion), end in zip(changes, ends, strict=True)
        if end > start
    ]
    return Lift(group, now, config.experiment.alpha, tuple(periods))


def _period(
    home: Home, config: Config, group: Holdback, champion: str, start: int, end: int, now: int, before: pa.Table | None
) -> Period:
    tests = _tests(home, start, end)
    arms = (Arm(CHAMPION, group.release, group.share), Arm(CHALLENGER, champion, 1 - group.share))
    name = ", ".join(["held back", *(f"without {test.name}" for test in tests)])
    period = Experiment(name, group.salt, arms, start, end, "")
    section, kept = config.experiment, home.experiments / "lift" / str(start)
    evidence = observe(_log(home, period, tests), period, config, now, before, keep=kept)
    free = (1 - group.share) * math.prod(test.arms[0].weight for test in tests)
    looks = trust.Looks(math.ceil((end - start) / DAY), 1)
    splits = trust.splits(evidence, group.share / (group.share + free), section, looks)
    doubts = [*trust.mismatches(splits)]
    doubts += trust.findings(evidence, section, start, now)
    if evidence.counts.users_misassigned:
        doubts.append(wording.not_held(evidence.counts.users_misassigned))
    users = {each.arm: each.users for each in evidence.numbers if not each.scope}
    results = () if doubts else tuple(result for result, _ in effects(evidence.numbers, section).values())
    return Period(
        champion=champion,
        start_ts=start,
        end_ts=end,
        held=users.get(CHAMPION, 0),
        others=users.get(CHALLENGER, 0),
        results=results,
        splits=splits,
        doubts=tuple(doubts),
        counts=evidence.counts,
    )


def _tests(home: Home, start: int, end: int) -> list[Experiment]:
    """The experiments that ran at some time of a period; their challenger is the arm of the highest numbers."""
    entries = Ledger(home).entries()
    decided = [entry for entry in entries if entry.kind == "DECISION" and entry.body["final"]]
    closed = {entry.body["experiment"]: entry.ts for entry in decided}
    ran = [Experiment.from_dict(entry.body["experiment"], "the ledger") for entry in entries if entry.kind == "DEPLOY"]
    return [test for test in ran if test.start_ts < end and closed.get(test.name, end) > start]


def _log(home: Home, period: Experiment, tests: Sequence[Experiment]) -> Log:
    """The lines of every experiment and of none; under another name those of former periods, and those of users who
    had a challenger of `tests`.
    """
    held = f"{point_sql(period.salt)} < {period.arms[0].weight!r}::DOUBLE"
    had = [f"{point_sql(test.salt)} >= {test.arms[0].weight!r}::DOUBLE" for test in tests]
    tested = f"(NOT {held} AND ({' OR '.join(had)}))" if had else "false"

    def exposures(files: Sequence[Path]) -> str:
        return (
            f"SELECT * REPLACE (CASE arm WHEN '{HELD}' THEN '{CHAMPION}' ELSE '{CHALLENGER}' END AS arm, "
            f"CASE WHEN ts < {period.start_ts} OR {tested} THEN 'left out' ELSE {literal([period.name])} END "
            f"AS experiment, false AS crossed) FROM ({select_exposures(files)})"
        )

    def files(what: str) -> tuple[Path, ...]:
        return tuple(path for path in sorted(home.experiments.glob(f"*/{what}/*.jsonl")) if path.stat().st_size)

    return Log(
        Lines("exposures", str(home.experiments), files("exposures"), True, exposures),
        Lines("outcomes", str(home.experiments), files("outcomes"), True, select_outcomes),
    )
