"""The parity test: the features of a logged request, computed again offline as of the same moments, value by value.

What a model is served must be what it would have been trained on. Each logged line says as of when its rows were
computed; the same aggregates and histories are computed as of those moments from the lake and from what was served
since, by the code that makes training rows. A value that differs beyond the tolerance is skew: a wrong unit, a push
that did not arrive, a default where a number should be, a catalogue with yesterday's features. That a row was computed
long ago is not skew but age, which `freshness` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from omnifeed.config import Config
from omnifeed.datasets.served import served_events
from omnifeed.engine import DuckDBEngine, Engine, EventSource
from omnifeed.export.affinity import affinity, item_keys
from omnifeed.export.catalogue_state import Catalogue
from omnifeed.export.encode import (
    CANDIDATE_DIMS,
    EncodeSpec,
    UserRow,
    candidate_dense,
    dense,
    encode_items,
    encode_request,
    unknown_item,
)
from omnifeed.features.aggregates import AS_OF, daily_table, item_features_asof, midnight
from omnifeed.features.history import known_events, pack
from omnifeed.features.spec import AFFINITY_FEATURES, ITEM_DENSE, ITEM_PLAIN_FEATURES, USER_DENSE
from omnifeed.monitoring.profile import CANDIDATE_NAMES
from omnifeed.tables import read_parquet

HISTORY = ("history_item", "history_action", "history_scenario", "history_ts")
NO_FEATURES = "no_features"  # an answer that says so read nothing; see the server's reasons
LARGEST = 1e9  # difference; also of what is not a number
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Skew:
    """One feature over the logged requests of an interval."""

    feature: str
    requests: int  # compared
    differing: int  # requests in which any value is beyond the tolerance
    largest: float  # difference
    p_value: float  # that so many differ although their share is within the bound

    @property
    def share(self) -> float:
        """Of the requests."""
        return self.differing / self.requests if self.requests else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "share": self.share}


@dataclass(frozen=True, slots=True)
class Parity:
    """What the parity test found."""

    skew: tuple[Skew, ...]
    behind: int  # requests whose stored history lacked an event that was known by then: the delay of the pushes
    requests: int  # compared at all


def known_sources(accepted: Path, folders: Sequence[Path]) -> list[EventSource]:
    """The lake's events and what was served since, each once: a request that the lake holds is the lake's."""
    parts = sorted((accepted / "events").glob("day=*/*.parquet"))
    held = [read_parquet(path)["request_id"] for path in parts]
    sources: list[EventSource] = [accepted] if parts else []
    known = pc.unique(pa.chunked_array([chunk for column in held for chunk in column.chunks], pa.string()))
    for folder in folders:
        events = served_events(folder)
        fresh = events.filter(pc.invert(pc.is_in(events["request_id"], known)))
        if fresh.num_rows:
            sources.append(fresh)
    return sources


def parity(
    lines: Sequence[Mapping[str, Any]],
    sources: Sequence[EventSource],
    catalogue: Catalogue,
    spec: EncodeSpec,
    config: Config,
    engine: Engine | None = None,
) -> Parity:
    """Compare logged lines with their recomputation.

    Args:
        lines: rows of `logged`, of one release.
        sources: every event that was known when the lines were written; see `known_sources`.
        catalogue: holds the items' times, titles, creators and categories. What it does not know any more is not
            compared: items that have left it, affinities of a history that holds such items, and prices and lengths,
            of which it has today's.
        spec: the release's encoding.
    """
    read = [line for line in lines if NO_FEATURES not in (line["degraded"] or ())]
    if not read or not sources:
        return Parity((), 0, len(read))
    engine = engine or DuckDBEngine()
    bounds = config.monitoring
    differences: dict[str, list[float]] = {}
    _users(read, sources, engine, bounds.skew_tolerance, differences)
    behind = _histories(read, sources, config, engine, differences)
    _items(read, sources, catalogue, spec, config, engine, differences)
    skew = []
    for feature, each in sorted(differences.items()):
        count = sum(value > 0 for value in each)
        p = float(stats.binom.sf(count - 1, len(each), bounds.max_skew_share))
        skew.append(Skew(feature, len(each), count, max(each), p))
    return Parity(tuple(skew), behind, len(read))


def _beyond(served: npt.ArrayLike, offline: npt.ArrayLike, tolerance: float) -> Floats:
    """Differences, 0 where they are within the tolerance."""
    left, right = np.asarray(served, np.float64), np.asarray(offline, np.float64)
    difference = np.abs(left - right)
    within = difference <= tolerance * np.maximum(1.0, np.abs(right))
    return np.where(within, 0.0, np.minimum(np.nan_to_num(difference, nan=LARGEST), LARGEST)).astype(np.float32)


def _users(
    lines: Sequence[Mapping[str, Any]],
    sources: Sequence[EventSource],
    engine: Engine,
    tolerance: float,
    differences: dict[str, list[float]],
) -> None:
    """Daily aggregates as of the midnight that the row names; without a row, as of the request's own midnight."""
    moments = [line["user_daily_as_of"] or midnight(line["ts"]) for line in lines]
    wanted = pa.array(sorted({line["user_id"] for line in lines}))
    table = daily_table(engine, engine.events(sources), "user_daily", sorted({midnight(at) for at in moments}))
    table = table.filter(pc.is_in(table["user_id"], wanted))
    offline = dense({f.name: table[f.name].to_numpy() for f in USER_DENSE}, USER_DENSE, table.num_rows)
    at = table[AS_OF].cast(pa.int64()).to_pylist()
    rows = {key: row for row, key in enumerate(zip(table["user_id"].to_pylist(), at, strict=True))}
    nothing = dense({}, USER_DENSE, 1)[0]
    for line, moment in zip(lines, moments, strict=True):
        row = rows.get((line["user_id"], midnight(moment)))
        found = _beyond(line["user_dense"], nothing if row is None else offline[row], tolerance)
        for feature, value in zip(USER_DENSE, found.tolist(), strict=True):
            differences.setdefault(feature.name, []).append(value)


def _histories(
    lines: Sequence[Mapping[str, Any]],
    sources: Sequence[EventSource],
    config: Config,
    engine: Engine,
    differences: dict[str, list[float]],
) -> int:
    """The packed prefix as of the row's moment, element by element; returns how many lacked what was known by then."""
    last = max(line["ts"] for line in lines)
    events = engine.events(sources)
    events = events.filter(events.user_id.isin(sorted({line["user_id"] for line in lines})))
    packed = {row["user_id"]: row for row in pack(engine.collect(known_events(events, last))).to_pylist()}
    behind = 0
    for line in lines:
        if line["history_given"]:
            continue
        row = packed.get(line["user_id"])
        stored = line["user_history_as_of"]
        offline = _prefix(row, line["ts"] if stored is None else stored, config.features.history_length)
        for name in HISTORY:
            same = list(line[name]) == offline[name]
            differences.setdefault(name, []).append(0.0 if same else 1.0)
        behind += _prefix(row, line["ts"], config.features.history_length) != offline
    return behind


def _prefix(row: Mapping[str, Any] | None, moment: int, length: int) -> dict[str, list[Any]]:
    known = 0 if row is None else int(np.searchsorted(row["history_observed_ts"], moment))
    return {name: [] if row is None else list(row[name][max(known - length, 0) : known]) for name in HISTORY}


def _items(
    lines: Sequence[Mapping[str, Any]],
    sources: Sequence[EventSource],
    catalogue: Catalogue,
    spec: EncodeSpec,
    config: Config,
    engine: Engine,
    differences: dict[str, list[float]],
) -> None:
    """Item aggregates as of the catalogue's midnight, and what is computed from item, query, history and time."""
    place = {item: row for row, item in enumerate(catalogue.texts["item_id"])}
    by_day: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["scenario"] in config.data.scenarios and len(line["candidate_dense"][0]) == CANDIDATE_DIMS:
            by_day.setdefault(midnight(line["catalogue_ts"]), []).append(line)
    for day, mine in sorted(by_day.items()):
        named = {item for line in mine for item in (*line["item_id"], *line["history_item"]) if item in place}
        if not named:
            continue
        local = {item: row for row, item in enumerate(sorted(named), start=1)}
        numbers = [place[item] for item in local]
        items = encode_items(catalogue.columns(numbers), spec)
        unknown = unknown_item(spec)
        items = {name: np.concatenate([unknown[name], items[name]]) for name in items}
        table = item_features_asof(sources, day, config, engine, item_ids=list(local))
        offline = dense({f.name: table[f.name].to_numpy() for f in ITEM_DENSE}, ITEM_DENSE, table.num_rows)
        keys = zip(table["item_id"].to_pylist(), table["scenario"].to_pylist(), strict=True)
        rows = {key: row for row, key in enumerate(keys)}
        for line in mine:
            there = [n for n, item in enumerate(line["item_id"]) if item in place]
            if not there:
                continue
            candidates = np.array([local[line["item_id"][n]] for n in there])
            at = np.array(numbers)[candidates - 1]
            user = UserRow({}, *(line[name] for name in HISTORY))
            request = encode_request(line["user_id"], line["scenario"], line["query"], line["ts"], user, local, spec)
            now = np.array([line["ts"]])
            again = candidate_dense(
                offline[[rows[line["item_id"][n], line["scenario"]] for n in there]],
                catalogue.created_ts[at],
                catalogue.on_air(line["ts"])[at],
                items["text"][candidates],
                request["query"][0],
                line["ts"],
                items["item_dense"][candidates],
                affinity(item_keys(items), request, candidates[None], request["scenario"], now)[0],
            )
            served = np.array([line["candidate_dense"][n] for n in there])
            found = _beyond(served, again, config.monitoring.skew_tolerance).max(axis=0)
            known = all(item in place for item in line["history_item"])
            unknown_now = ITEM_PLAIN_FEATURES if known else (*ITEM_PLAIN_FEATURES, *AFFINITY_FEATURES)
            for name, value in zip(CANDIDATE_NAMES, found.tolist(), strict=True):
                if name not in unknown_now:
                    differences.setdefault(name, []).append(value)


def freshness(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Age in hours of the newest row of each view that the interval's requests read, at the time of the last of them.

    Views that no line names are left out.
    """
    newest: dict[str, int] = {}
    last = 0
    for line in lines:
        last = max(last, line["ts"])
        for view, column in (
            ("user_daily", "user_daily_as_of"),
            ("user_history", "user_history_as_of"),
            ("catalogue", "catalogue_ts"),
        ):
            if line[column] is not None:
                newest[view] = max(newest.get(view, 0), line[column])
    return {view: (last - moment) / 3_600_000_000 for view, moment in sorted(newest.items())}
