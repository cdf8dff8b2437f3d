"""One day in numbers: what came in, what the model was given, what it said, and what came of it.

Everything that a model sees or says is of the requests that one release answered, so that a change of its share of the
traffic is no drift; the volume is of all traffic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from omnifeed.export.encode import CANDIDATE_DIMS, USER_DIMS
from omnifeed.features.spec import ITEM_DENSE, REQUEST_TIME_FEATURES, USER_DENSE
from omnifeed.monitoring.served import DAY_US
from omnifeed.monitoring.sketch import Sketch
from omnifeed.tables import OUTCOMES

HOUR_US = 3_600_000_000
CANDIDATE_NAMES = (*(feature.name for feature in ITEM_DENSE), *REQUEST_TIME_FEATURES)
LOG_ODDS_LIMIT = 1e-7  # of a probability from 0 and 1
Floats = npt.NDArray[np.float64]


class Kind(StrEnum):
    """What a check is about."""

    VOLUME = "volume"  # requests a day
    TRAFFIC = "traffic"  # who asks, when, for what
    DEGRADED = "degraded"  # answers that had to do without something
    FEATURE = "feature"  # the model's inputs
    PREDICTION = "prediction"  # the model's outputs for the items shown
    LABEL = "label"  # what users did with the items they saw
    CALIBRATION = "calibration"  # observed against predicted, over logged items that were seen


@dataclass(frozen=True, slots=True)
class Rate:
    """A number of events, and what it is a share of: rows, one day, or the sum of predicted probabilities."""

    events: float
    base: float
    error: float = 0.0  # standard error of log(events / base), users as the units; 0: as counts have it

    @property
    def value(self) -> float:
        """events / base; 0 of nothing."""
        return self.events / self.base if self.base else 0.0


Key = tuple[Kind, str, str]  # kind, scenario, name


@dataclass(frozen=True, slots=True)
class Profile:
    """One day of one release."""

    day: int  # midnight at which it begins, UTC microseconds
    sketches: Mapping[Key, Sketch]
    rates: Mapping[Key, Rate]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "day": self.day,
            "sketches": [[*key, asdict(sketch)] for key, sketch in self.sketches.items()],
            "rates": [[*key, asdict(rate)] for key, rate in self.rates.items()],
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Profile:
        """The inverse of `to_dict`."""
        return Profile(
            raw["day"],
            {(Kind(kind), scenario, name): Sketch(**body) for kind, scenario, name, body in raw["sketches"]},
            {(Kind(kind), scenario, name): Rate(**body) for kind, scenario, name, body in raw["rates"]},
        )


def profile(connection: duckdb.DuckDBPyConnection, day: int, release: str) -> Profile:
    """The profile of one day of `served`'s tables."""
    sketches: dict[Key, Sketch] = {}
    rates: dict[Key, Rate] = {}
    _traffic(connection, day, release, sketches, rates)
    _labels(connection, day, release, rates)
    _model(connection, day, release, sketches, rates)
    return Profile(day, sketches, rates)


def _traffic(
    connection: duckdb.DuckDBPyConnection,
    day: int,
    release: str,
    sketches: dict[Key, Sketch],
    rates: dict[Key, Rate],
) -> None:
    for scenario, requests in connection.execute(
        "SELECT scenario, count(*) FROM request WHERE day = ? GROUP BY ALL", [day]
    ).fetchall():
        rates[Kind.VOLUME, scenario, "requests"] = Rate(requests, 1)
        columns = connection.execute(
            f"SELECT ts % {DAY_US} // {HOUR_US} AS hour, length(query) AS query, coalesce(device, '') AS device, "
            "coalesce(locale, '') AS locale, degraded FROM request WHERE day = ? AND scenario = ? AND release = ?",
            [day, scenario, release],
        ).to_arrow_table()
        count = columns.num_rows
        if not count:
            continue
        hours = columns["hour"].to_numpy()
        sketches[Kind.TRAFFIC, scenario, "hour"] = Sketch.of_numbers(hours, count)
        lengths = [-1 if length is None else length for length in columns["query"].to_pylist()]
        sketches[Kind.TRAFFIC, scenario, "query_length"] = Sketch.of_numbers(lengths, count)
        for name in ("device", "locale"):
            sketches[Kind.TRAFFIC, scenario, name] = Sketch.of_words(columns[name].to_pylist(), count)
        reasons = [reason for each in columns["degraded"].to_pylist() for reason in each or ()]
        for reason in sorted(set(reasons)):
            rates[Kind.DEGRADED, scenario, reason] = Rate(reasons.count(reason), count)
        rates[Kind.DEGRADED, scenario, "any"] = Rate(sum(bool(each) for each in columns["degraded"].to_pylist()), count)


def _labels(connection: duckdb.DuckDBPyConnection, day: int, release: str, rates: dict[Key, Rate]) -> None:
    counted = ", ".join(f'count(*) FILTER ("{name}")' for name in OUTCOMES)
    for scenario, shown, viewed, *events in connection.execute(
        f"SELECT scenario, count(*), count(*) FILTER (viewed), {counted} FROM shown WHERE day = ? AND release = ? "
        "GROUP BY scenario",
        [day, release],
    ).fetchall():
        rates[Kind.LABEL, scenario, "viewed"] = Rate(viewed, shown)
        for name, count in zip(OUTCOMES, events, strict=True):
            rates[Kind.LABEL, scenario, name] = Rate(min(count, viewed), viewed)


def _model(
    connection: duckdb.DuckDBPyConnection,
    day: int,
    release: str,
    sketches: dict[Key, Sketch],
    rates: dict[Key, Rate],
) -> None:
    table = connection.execute(
        "SELECT request_id, user_id, scenario, user_dense, candidate_dense, kind, category, probabilities, tasks, "
        f"item_id, len(history_item) AS history FROM logged WHERE day = ? AND release = ? AND len(user_dense) = "
        f"{USER_DIMS} AND len(candidate_dense) > 0 AND len(candidate_dense[1]) = {CANDIDATE_DIMS} ORDER BY request_id",
        [day, release],
    ).to_arrow_table()
    outcomes = _outcomes(connection, day, release)
    by_scenario: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_scenario.setdefault(row["scenario"], []).append(row)
    for scenario, rows in sorted(by_scenario.items()):
        count = len(rows)
        users = np.array([row["user_dense"] for row in rows])
        items = np.concatenate([np.array(row["candidate_dense"]) for row in rows])
        for place, feature in enumerate(USER_DENSE):
            sketches[Kind.FEATURE, scenario, feature.name] = Sketch.of_numbers(users[:, place], count)
        for place, name in enumerate(CANDIDATE_NAMES):
            sketches[Kind.FEATURE, scenario, name] = Sketch.of_numbers(items[:, place], count)
        sketches[Kind.FEATURE, scenario, "history_length"] = Sketch.of_numbers([row["history"] for row in rows], count)
        for name in ("kind", "category"):
            words = [word for row in rows for word in row[name]]
            sketches[Kind.FEATURE, scenario, f"item_{name}"] = Sketch.of_words(words, count)
        answered = [row for row in rows if row["probabilities"]]
        if answered:
            _predictions(answered, scenario, outcomes, sketches, rates)


def _predictions(
    rows: Sequence[Mapping[str, Any]],
    scenario: str,
    outcomes: Mapping[tuple[str, str], Mapping[str, bool]],
    sketches: dict[Key, Sketch],
    rates: dict[Key, Rate],
) -> None:
    for place, task in enumerate(rows[0]["tasks"]):
        said = np.concatenate([[item[place] for item in row["probabilities"]] for row in rows])
        safe = np.clip(said, LOG_ODDS_LIMIT, 1 - LOG_ODDS_LIMIT)
        sketches[Kind.PREDICTION, scenario, task] = Sketch.of_numbers(np.log(safe / (1 - safe)), len(rows))
        if task in OUTCOMES:
            predicted: dict[str, float] = {}
            happened: dict[str, float] = {}
            for row in rows:
                for item, probabilities in zip(row["item_id"], row["probabilities"], strict=True):
                    seen = outcomes.get((row["request_id"], item))
                    if seen is not None:
                        user = row["user_id"]
                        predicted[user] = predicted.get(user, 0.0) + probabilities[place]
                        happened[user] = happened.get(user, 0.0) + seen[task]
            if predicted:
                rates[Kind.CALIBRATION, scenario, task] = _ratio(
                    np.array([happened[user] for user in predicted]), np.array(list(predicted.values()))
                )


def _ratio(happened: Floats, predicted: Floats) -> Rate:
    """Observed over predicted with the delta method's error, users as the units.

    Args:
        happened: [users], events of each.
        predicted: [users], sum of the probabilities of each.
    """
    events, base = float(happened.sum()), float(predicted.sum())
    residual = happened - predicted * (events / base)
    error = math.sqrt(float((residual**2).sum())) / events if events else 0.0
    return Rate(events, base, error)


def _outcomes(connection: duckdb.DuckDBPyConnection, day: int, release: str) -> dict[tuple[str, str], dict[str, bool]]:
    """Outcomes of the logged requests' items that were seen, by (request, item)."""
    names = ", ".join(f's."{name}"' for name in OUTCOMES)
    rows = connection.execute(
        f"SELECT s.request_id, s.item_id, {names} FROM shown s SEMI JOIN logged l USING (request_id) "
        "WHERE s.day = ? AND s.release = ? AND s.viewed",
        [day, release],
    ).fetchall()
    return {(request, item): dict(zip(OUTCOMES, values, strict=True)) for request, item, *values in rows}
