"""What an experiment's logs say, reduced to numbers that add up: the input of the verdict, and what the ledger keeps.

Counts, means, variances and covariances of per-user totals, by arm, for all traffic and for each scenario; users by day
and by device; what each arm logged on each day. A decision can be computed again from these alone; nothing of a user is
in them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

#: The scope of the numbers over all scenarios; every other scope is the name of a scenario.
ALL = ""
CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True, slots=True)
class LogCounts:
    """What was read, and what was left out and why. Numbers of log lines, but for `requests` and `users_*`."""

    exposures: int = 0  # readable lines of the exposure log
    exposures_used: int = 0  # first of their (request, item), inside the experiment's time
    exposures_viewed: int = 0  # of those used: served, and known to have reached the screen
    exposures_repeated: int = 0
    exposures_missing: int = 0  # positions of an answer that no line tells of, where positions are logged
    exposures_outside: int = 0  # before the start, after the horizon or after `now`
    exposures_before: int = 0  # of those outside: before the start, under this experiment's name: a wrong clock
    exposures_foreign: int = 0  # logged under another experiment's name
    requests: int = 0  # with an exposure used
    outcomes: int = 0  # readable lines of the outcome log, known by `now`
    outcomes_used: int = 0
    outcomes_repeated: int = 0  # beyond the first of their (request, item, name)
    outcomes_unexposed: int = 0  # no such exposure: counted, never joined
    outcomes_outside: int = 0  # of an exposure that is not used: outside the time, or under another name
    outcomes_late: int = 0  # happened after the attribution window
    outcomes_early: int = 0  # happened before their exposure: a wrong clock
    outcomes_skewed: int = 0  # known before they happened: a wrong clock
    outcomes_unknown: int = 0  # a name that no metric reads
    unreadable: int = 0  # lines that do not parse, beyond one torn line a file
    torn: int = 0  # one unreadable line of a file: a writer was killed
    malformed: int = 0  # a negative or infinite value
    users_crossed: int = 0  # challenger's users whom the champion answered at least once, by the log's own word
    users_misassigned: int = 0  # logged under an arm or a release that the salt does not give them, unexplained
    users_held: int = 0  # of the hold-back group: their exposures are read, and are in neither arm
    users_too_busy: int = 0  # bots: more requests on a day than the rule allows; left out
    users_clicking_all: int = 0  # bots: clicked everything they viewed; left out


@dataclass(frozen=True, slots=True)
class ArmNumbers:
    """Per-user totals of one arm in one scope: moments by total; covariates are the totals before the start."""

    scope: str  # ALL or a scenario
    arm: str
    users: int
    mean: dict[str, float]
    variance: dict[str, float]  # of the sample
    covariate_mean: dict[str, float]  # empty where no period before is known
    covariate_variance: dict[str, float]
    covariance: dict[str, float]  # between a total and its covariate
    cross: dict[str, float] = field(default_factory=dict)  # "a b": between two totals of a ratio; before_a: covariate


@dataclass(frozen=True, slots=True)
class DayNumbers:
    """Cumulative numbers up to and including one day, all scenarios."""

    day: int  # from 0
    arms: tuple[ArmNumbers, ...]


@dataclass(frozen=True, slots=True)
class UserGroup:
    """Users of one arm, by something that was settled before the arm could change it."""

    dimension: str  # "day" (of their first exposure), "device" (of that exposure) or "excluded" (as bots)
    value: str
    arm: str
    users: int


@dataclass(frozen=True, slots=True)
class DayLog:
    """What one arm logged about one day's exposures."""

    arm: str
    day: int  # from 0
    events: dict[str, int]  # "requests", "exposures", and each outcome by name


@dataclass(frozen=True, slots=True)
class Lag:
    """How long one arm's outcomes of one name took to become known, in seconds."""

    arm: str
    name: str
    outcomes: int
    mean: float
    variance: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the verdict is computed from."""

    counts: LogCounts
    numbers: tuple[ArmNumbers, ...]
    days: tuple[DayNumbers, ...] = ()
    groups: tuple[UserGroup, ...] = ()
    day_logs: tuple[DayLog, ...] = ()
    lags: tuple[Lag, ...] = ()
    unfiltered: tuple[ArmNumbers, ...] = ()  # all traffic with the bots left in; empty where there were none

    def arm(self, scope: str, arm: str) -> ArmNumbers | None:
        """The numbers of one arm in one scope; None when none of its users was seen there."""
        return next((each for each in self.numbers if (each.scope, each.arm) == (scope, arm)), None)

    def scenarios(self) -> tuple[str, ...]:
        """The scenarios with traffic, by name."""
        return tuple(sorted({each.scope for each in self.numbers} - {ALL}))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form of all that the verdict reads; the cumulative days are for the picture only."""
        lists = ("numbers", "groups", "day_logs", "lags", "unfiltered")
        return {
            "counts": dataclasses.asdict(self.counts),
            **{name: [dataclasses.asdict(each) for each in getattr(self, name)] for name in lists},
        }

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> Evidence:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError: something is missing, or is not a field.
        """
        return Evidence(
            counts=LogCounts(**raw["counts"]),
            numbers=tuple(ArmNumbers(**each) for each in raw["numbers"]),
            groups=tuple(UserGroup(**each) for each in raw["groups"]),
            day_logs=tuple(DayLog(**each) for each in raw["day_logs"]),
            lags=tuple(Lag(**each) for each in raw["lags"]),
            unfiltered=tuple(ArmNumbers(**each) for each in raw["unfiltered"]),
        )
