"""How things stand: who answers whom, the last entries of the ledger, users that were lately answered, and one user."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omnifeed.errors import OmnifeedError, UnavailableError
from omnifeed.experiment.ledger import Entry, Ledger
from omnifeed.export.catalogue_state import Catalogue
from omnifeed.export.encode import ACTIONS
from omnifeed.export.release import load_release
from omnifeed.features.online import FeatureClient
from omnifeed.home import Home
from omnifeed.serving.recommend.routing import CHAMPION, read_routing
from omnifeed.serving.ui.slates import titles

TAIL = 65_536  # bytes of a log read from its end
LATELY = 8  # users, events and entries shown
READ_S = 0.5


@dataclass(frozen=True, slots=True)
class Side:
    """An arm, its release and its share of the users, percent."""

    name: str
    release: str
    share: float


@dataclass(frozen=True, slots=True)
class Line:
    """One entry of the ledger."""

    when: str
    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class Standing:
    """The experiment's state."""

    experiment: str  # "" where none runs
    sides: tuple[Side, ...]  # the champion first
    since: str
    until: str
    champion: str
    lines: tuple[Line, ...]  # the ledger's last, the newest first
    scenarios: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Person:
    """What the feature store knows of a user."""

    facts: tuple[str, ...]
    lately: tuple[str, ...]  # the newest event first


def moment(ts: int) -> str:
    """UTC microseconds as a person reads them."""
    return datetime.fromtimestamp(ts / 1e6, UTC).strftime("%Y-%m-%d %H:%M") if ts < 2**56 else "open"


def standing(home: Home, now: int) -> Standing:
    """Read routing and ledger.

    Args:
        now: UTC microseconds.

    Raises:
        UnavailableError: there is neither a champion nor an experiment.
        OmnifeedError: a file cannot be used.
    """
    routing = read_routing(home)
    releases = routing.releases()
    if not releases:
        raise UnavailableError(f"{home.root} has neither a champion nor an experiment.", "Run the training pipeline.")
    spec = load_release(home.releases / releases[0]).encode
    champion = routing.champion or releases[0]
    trial = routing.experiment
    sides: tuple[Side, ...] = (Side(CHAMPION, champion, 100.0),)
    if trial is not None:
        stage = trial.stage(now)
        arms = sorted(stage.arms, key=lambda arm: arm.name != CHAMPION)
        sides = tuple(Side(arm.name, arm.release, 100 * arm.weight) for arm in arms)
    return Standing(
        experiment=trial.name if trial else "",
        sides=sides,
        since=moment(trial.start_ts) if trial else "",
        until=moment(trial.end_ts) if trial else "",
        champion=champion,
        lines=tuple(_line(entry) for entry in reversed(Ledger(home).entries()[-LATELY:])),
        scenarios=tuple(spec["scenarios"]),
    )


def _line(entry: Entry) -> Line:
    body = entry.body
    what = {
        "DECISION": f"{body.get('verdict', '')} {body.get('paragraph', '')}".strip(),
        "DEPLOY": f"release {body.get('challenger', body.get('release', '?'))} in front of users",
    }.get(entry.kind, f"release {entry.champion} is the champion")
    return Line(moment(entry.ts), entry.kind, what)


def users(home: Home, experiment: str) -> tuple[str, ...]:
    """Users who were lately answered, the latest first."""
    folder = home.experiments / (experiment or "none") / "exposures"
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        for line in reversed(_tail(path)):
            found[str(line["user_id"])] = None
            if len(found) == LATELY:
                return tuple(found)
    return tuple(found)


def _tail(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as handle:
        handle.seek(max(path.stat().st_size - TAIL, 0))
        lines = handle.read().splitlines()
    whole = []
    for line in lines:
        try:
            whole.append(json.loads(line))
        except ValueError:
            continue  # the first line may be cut, the last is being written
    return [line for line in whole if "user_id" in line]


def person(features: FeatureClient | None, user: str, catalogue: Catalogue) -> Person | None:
    """What the feature store knows of a user; None where it does not answer.

    Raises:
        OmnifeedError: never; a store that is down is told by the slates.
    """
    if features is None:
        return None
    try:
        row = features.user(user, READ_S)
    except OmnifeedError:
        return None
    names = titles(catalogue, row.history_item[-LATELY:])
    events = zip(names, row.history_action[-LATELY:], row.history_scenario[-LATELY:], strict=False)
    lately = tuple(f"{ACTIONS[action - 1].replace('_', ' ')}: {name} ({scenario})" for name, action, scenario in events)
    facts = [
        f"{name.removeprefix('user_').replace('_', ' ')} {value}"
        for name, value in row.values.items()
        if isinstance(value, str)
    ]
    facts.append(f"{len(row.history_item)} events known")
    return Person(tuple(facts), tuple(reversed(lately)))
