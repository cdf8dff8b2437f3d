"""One look at yesterday: every check, what they come to, and whether to train again.

Two kinds of alarm lead to two acts. Drift (users, items or outcomes are not what the champion was promoted on) opens a
retraining. A fault (features that are not what they would be offline, or old; answers that had to do without; traffic
that is missing) must be mended first: a model trained on it would learn the fault, so no retraining is opened while
one is there, whatever else has drifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import duckdb

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.encode import EncodeSpec
from omnifeed.export.following import load_catalogue
from omnifeed.export.release import load_release
from omnifeed.home import Home
from omnifeed.monitoring.drift import MIN_DAYS, MIN_HISTORY, Check, compare
from omnifeed.monitoring.kept import ProfileStore
from omnifeed.monitoring.parity import NO_FEATURES, Parity, Skew, freshness, known_sources, parity
from omnifeed.monitoring.profile import HOUR_US, Key, Kind, profile
from omnifeed.monitoring.served import DAY_US, Window, experiment_folders, first_answer, served
from omnifeed.quality.lake import accepted

SKEW, AGE = "skew", "freshness"
#: Alarms of these kinds are faults; of the others, drift.
FAULTS = (Kind.VOLUME.value, Kind.DEGRADED.value, SKEW, AGE)
SHOWN = 5  # alarms that the paragraph names
NEVER = 87_600.0  # hours, ten years: the age of what was never written


class State(StrEnum):
    """What an interval comes to."""

    QUIET = "QUIET"
    DRIFT = "DRIFT"
    FAULT = "FAULT"
    UNTESTED = "UNTESTED"  # there was nothing to compare


@dataclass(frozen=True, slots=True)
class SkewCheck:
    """One feature of the parity test, held against its bound."""

    skew: Skew
    p_adjusted: float
    alarm: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**self.skew.to_dict(), "p_adjusted": self.p_adjusted, "alarm": self.alarm}


@dataclass(frozen=True, slots=True)
class Age:
    """The newest row of one view that the interval's requests read."""

    view: str
    hours: float
    bound: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class Watch:
    """Everything about one interval."""

    release: str
    start: int  # the interval: one UTC day, microseconds
    end: int
    now: int
    first: tuple[int, ...]  # midnights of the champion's first days
    before: tuple[int, ...]  # and of the days before this one, on which it answered
    checks: tuple[Check, ...]
    skew: tuple[SkewCheck, ...]
    ages: tuple[Age, ...]
    logged: int  # requests whose features were logged in the interval
    behind: int  # of these: their stored history lacked an event that was known by then
    untested: tuple[str, ...]  # what could not be looked at, and why

    @property
    def alarms(self) -> tuple[tuple[str, str], ...]:
        """(kind, where and what) of every alarm, faults first."""
        found = [(check.kind, f"{check.name} in {check.scenario}") for check in self.checks if check.alarm]
        found += [(SKEW, each.skew.feature) for each in self.skew if each.alarm]
        found += [(AGE, age.view) for age in self.ages if age.alarm]
        return tuple(sorted(found, key=lambda alarm: alarm[0] not in FAULTS))

    @property
    def state(self) -> State:
        """Faults come before drift: they explain it more often than the other way round."""
        kinds = {kind for kind, _ in self.alarms}
        if kinds & set(FAULTS):
            return State.FAULT
        if kinds:
            return State.DRIFT
        return State.QUIET if self.checks or self.skew else State.UNTESTED

    @property
    def paragraph(self) -> str:
        """The interval in words."""
        day = datetime.fromtimestamp(self.start / 1e6, UTC).strftime("%Y-%m-%d")
        count = len(self.checks) + len(self.skew) + len(self.ages)
        head = f"{day}, release {self.release}: {count} checks"
        match self.state:
            case State.UNTESTED:
                return f"{day}, release {self.release}: nothing could be tested. {' '.join(self.untested)}"
            case State.QUIET:
                return f"{head}, no alarm."
            case _:
                names = [f"{kind}: {what}" for kind, what in self.alarms]
                more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                return f"{head}, {len(names)} alarms ({'; '.join(names[:SHOWN])}{more})."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "state": self.state.value,
            "paragraph": self.paragraph,
            "release": self.release,
            "start": self.start,
            "end": self.end,
            "now": self.now,
            "first": list(self.first),
            "before": list(self.before),
            "checks": [check.to_dict() for check in self.checks],
            "skew": [each.to_dict() for each in self.skew],
            "ages": [{"view": a.view, "hours": a.hours, "bound": a.bound, "alarm": a.alarm} for a in self.ages],
            "alarms": [{"kind": kind, "what": what} for kind, what in self.alarms],
            "logged": self.logged,
            "behind": self.behind,
            "untested": list(self.untested),
        }


def watch(home: Home, config: Config, now: int) -> Watch:
    """Look at the last whole UTC day before `now`.

    Args:
        now: UTC microseconds. Outcomes count that were known by then, in whole hours after the end of the day, and for
            every other day with the same delay.

    Raises:
        InputError: there is no champion, or nothing was ever served.
        IntegrityError: the champion's bundle is not what was exported.
    """
    release = Ledger(home).champion()
    folders = experiment_folders(home)
    if release is None or not folders:
        lacks = "no champion" if release is None else "no exposure log"
        raise InputError(f"{home.root} has {lacks}: there is nothing to monitor.", "Run the loop first: omnifeed run.")
    end = now - now % DAY_US
    today, lag = end - DAY_US, (now - end) // HOUR_US * HOUR_US
    first, before, untested = _days(folders, release, config, today)
    kept = ProfileStore(home, release, lag)
    past = {day: kept.read(day) for day in {*first, *before}}
    missing = tuple(sorted(day for day, found in past.items() if found is None))
    with served(folders, Window(missing, today, lag)) as connection:
        lines = _lines(connection, today, release)
        for day in missing:
            past[day] = kept.write(profile(connection, day, release))
        current = kept.write(profile(connection, today, release))
    found = _parity(home, config, folders, release, lines, untested)
    more: dict[Key, float] = {(Kind.FEATURE, SKEW, each.feature): each.p_value for each in found.skew}
    checks, adjusted = compare(
        [each for each in map(past.get, first) if each is not None],
        [each for each in map(past.get, before) if each is not None],
        current,
        config.monitoring,
        more,
    )
    bound = config.monitoring.max_skew_share
    skew = tuple(
        SkewCheck(
            each,
            adjusted[Kind.FEATURE, SKEW, each.feature],
            adjusted[Kind.FEATURE, SKEW, each.feature] <= config.monitoring.alpha and each.share > bound,
        )
        for each in found.skew
    )
    return Watch(
        release=release,
        start=today,
        end=end,
        now=now,
        first=first,
        before=before,
        checks=tuple(checks),
        skew=skew,
        ages=_ages(lines, config.monitoring.max_age_hours),
        logged=len(lines),
        behind=found.behind,
        untested=tuple(untested),
    )


def _days(
    folders: list[Path], release: str, config: Config, today: int
) -> tuple[tuple[int, ...], tuple[int, ...], list[str]]:
    """The whole days before today on which the release answered: the first of them, and the last."""
    start = first_answer(folders, release)
    if start is None:
        return (), (), [f"Release {release} has never answered."]
    days = tuple(range(-(-start // DAY_US) * DAY_US, today, DAY_US))
    first, before = days[: config.monitoring.reference_days], days[-config.monitoring.history_days :]
    if len(days) >= MIN_HISTORY:
        return first, before, []
    said = f"Release {release} has answered on {len(days)} whole days before; "
    return first, before, [f"{said}rates need {MIN_DAYS}, distributions {MIN_HISTORY}."]


def _lines(connection: duckdb.DuckDBPyConnection, day: int, release: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        connection.execute(
            "SELECT * FROM logged WHERE day = ? AND release = ? AND len(candidate_dense) > 0 ORDER BY ts, request_id",
            [day, release],
        )
        .to_arrow_table()
        .to_pylist()
    )
    return rows


def _parity(
    home: Home,
    config: Config,
    folders: list[Path],
    release: str,
    lines: Sequence[Mapping[str, Any]],
    untested: list[str],
) -> Parity:
    manifest = load_release(home.releases / release)
    if manifest.kind != "network":
        untested.append(f"Release {release} has no network: there are no features or predictions to look at.")
        return Parity((), 0, 0)
    if not lines:
        untested.append("No features were logged in the interval: monitoring.log_share may be 0, or nobody asked.")
        return Parity((), 0, 0)
    sources = known_sources(accepted(home), folders)
    return parity(lines, sources, load_catalogue(home), EncodeSpec.from_dict(manifest.encode), config)


def _ages(lines: Sequence[Mapping[str, Any]], bounds: Mapping[str, float]) -> tuple[Age, ...]:
    """Each view with a bound; one that no line names although features were read was never written."""
    read = [line for line in lines if NO_FEATURES not in (line["degraded"] or ())]
    found = freshness(read)
    ages = {view: found.get(view, NEVER) for view in bounds} if read else {}
    return tuple(Age(view, hours, bounds[view], hours > bounds[view]) for view, hours in sorted(ages.items()))
