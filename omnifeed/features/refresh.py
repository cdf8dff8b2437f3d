"""Keeping features and catalogue as fresh as a platform would while a release is served.

Daily aggregates are computed as of each midnight, from the lake and from what the running experiment has served;
histories are pushed as events become known. A row stamped t holds only what was observed before t.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.datasets.served import served_events
from omnifeed.engine import EventSource
from omnifeed.export.catalogue import write_snapshot
from omnifeed.export.encode import Columns, action_ids
from omnifeed.features.aggregates import item_features_asof, user_features_asof
from omnifeed.features.history import histories_asof
from omnifeed.features.spec import ITEM_DENSE
from omnifeed.features.store import push_users
from omnifeed.home import Home
from omnifeed.quality.lake import accepted
from omnifeed.tables import OUTCOMES, TS, read_tables


def refresh_catalogue(home: Home, config: Config, items: pa.Table, events: Sequence[EventSource], now: int) -> str:
    """Write a catalogue snapshot: today's items with their aggregates as of the last midnight.

    Args:
        items: canonical items table.
        events: folders of table sets, or tables of events.
        now: UTC microseconds.

    Returns:
        The snapshot's version.
    """
    features = item_features_asof(events, now, config, item_ids=items["item_id"].to_pylist())
    by_scenario: dict[str, Columns] = {}
    for scenario in config.data.scenarios:
        mine = features.filter(pc.equal(features["scenario"], scenario))
        by_scenario[scenario] = {feature.name: mine[feature.name].to_numpy() for feature in ITEM_DENSE}
    plain = {
        name: items[name].to_pylist() for name in items.column_names if name not in ("image_embedding", "product_ids")
    }
    return write_snapshot(home, plain, by_scenario, now)


@dataclass(frozen=True, slots=True)
class Seen:
    """One event that a user saw, and when its outcomes become known."""

    user_id: str
    item_id: str
    scenario: str
    action: int
    ts: int
    observed_ts: int
    order: str  # breaks ties of (observed_ts, ts), as event ids do


def _still_unknown(folder: Path, users: Collection[str], start: int) -> list[Seen]:
    """Events of the lake whose outcomes become known only after `start`."""
    events = read_tables(folder).events
    late = pc.greater_equal(events["observed_ts"], pa.scalar(start, pa.int64()).cast(TS))
    mine = pc.is_in(events["user_id"], pa.array(sorted(users), pa.string()))
    events = events.filter(pc.and_(pc.and_(late, mine), pc.fill_null(events["viewed"], True)))
    actions = action_ids({name: pc.fill_null(events[name], False).to_numpy() for name in OUTCOMES})
    times = {name: events[name].cast(pa.int64()).to_pylist() for name in ("ts", "observed_ts")}
    columns = [events[name].to_pylist() for name in ("user_id", "item_id", "scenario")]
    rows = zip(
        *columns, actions.tolist(), times["ts"], times["observed_ts"], events["event_id"].to_pylist(), strict=True
    )
    return [Seen(*row) for row in rows]


class Freshness:
    """Midnight and hourly refreshes for the users of one experiment, in process."""

    def __init__(self, home: Home, config: Config, folder: Path, users: Collection[str], start: int) -> None:
        self._home, self._config, self._folder, self._users = home, config, folder, users
        packed = histories_asof([accepted(home)], start, config, users)
        self._histories: dict[str, list[tuple[str, int, str, int]]] = {user: [] for user in users}
        for row in packed.to_pylist():
            self._histories[row["user_id"]] = list(
                zip(row["history_item"], row["history_action"], row["history_scenario"], row["history_ts"], strict=True)
            )
        self._pending: dict[str, list[Seen]] = {user: [] for user in users}
        self.saw(_still_unknown(accepted(home), users, start))

    def midnight(self, items: pa.Table, ts: int) -> None:
        """Refresh the catalogue, and the daily aggregates of the users, as of a midnight."""
        events = [accepted(self._home), served_events(self._folder)]
        refresh_catalogue(self._home, self._config, items, events, ts)
        table = user_features_asof(events, ts)
        mine = table.filter(pc.is_in(table["user_id"], pa.array(sorted(self._users), pa.string())))
        push_users(self._home, mine, "user_daily", self._config)

    def saw(self, events: Sequence[Seen]) -> None:
        """Take note of events whose outcomes will become known."""
        for event in events:
            self._pending[event.user_id].append(event)

    def hour(self, users: Collection[str], ts: int) -> None:
        """Push the histories of these users as of `ts`, where something has become known since the last push."""
        rows = []
        for user in sorted(users):
            known = sorted(
                (event for event in self._pending[user] if event.observed_ts < ts),
                key=lambda event: (event.observed_ts, event.ts, event.order),
            )
            if not known:
                continue
            self._pending[user] = [event for event in self._pending[user] if event.observed_ts >= ts]
            history = self._histories[user]
            history += [(event.item_id, event.action, event.scenario, event.ts) for event in known]
            del history[: -self._config.features.history_length]
            rows.append((user, *map(list, zip(*history, strict=True))))
        if rows:
            columns = list(zip(*rows, strict=True))
            push_users(
                self._home,
                pa.table(
                    {
                        "user_id": pa.array(columns[0], pa.string()),
                        "event_timestamp": pa.array([ts] * len(rows), pa.int64()).cast(TS),
                        "history_item": pa.array(columns[1], pa.list_(pa.string())),
                        "history_action": pa.array(columns[2], pa.list_(pa.int64())),
                        "history_scenario": pa.array(columns[3], pa.list_(pa.string())),
                        "history_ts": pa.array(columns[4], pa.list_(pa.int64())),
                    }
                ),
                "user_history",
                self._config,
            )
