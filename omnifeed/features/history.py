"""Histories: what a user did, in the order in which it became known.

A request at time t sees the prefix of the user's list with observed_ts < t, the last `history_length` of it. The whole
list trains (`history.parquet`); the end of the prefix is pushed online. Both come from the same packing, so what a
model is trained on is what it is served.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.engine import DuckDBEngine, Engine, EventSource
from omnifeed.export.encode import action_ids
from omnifeed.features.aggregates import AS_OF, micros, seen
from omnifeed.tables import OUTCOMES, TS

if TYPE_CHECKING:
    import ibis


def known_events(events: ibis.Table, now: int) -> ibis.Table:
    """The seen events that were observed before `now`, ordered by user, then (observed_ts, ts, event_id).

    Returns:
        user_id, item_id, scenario, ts_us int64, observed_us int64, event_id, and the outcomes as booleans.
    """
    table = seen(events)
    table = table.select(
        "user_id",
        "item_id",
        "scenario",
        "event_id",
        *OUTCOMES,
        ts_us=micros(table.ts),
        observed_us=micros(table.observed_ts),
    )
    return table.filter(table.observed_us < now).order_by("user_id", "observed_us", "ts_us", "event_id")


def pack(table: pa.Table, last: int | None = None) -> pa.Table:
    """Pack the rows of `known_events` into one row a user.

    Args:
        last: keep only the end of each list; None keeps all.

    Returns:
        user_id, history_item list<string>, history_action list<int64>, history_scenario list<string>, history_ts
        list<int64>, history_observed_ts list<int64>.
    """
    users = table["user_id"].combine_chunks().dictionary_encode()
    codes = np.asarray(users.indices)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    ends = np.append(starts[1:], len(codes))
    if last is not None:
        sizes = np.minimum(ends - starts, last)
        keep = np.arange(len(codes)) >= np.repeat(ends - sizes, ends - starts)
        table, ends = table.filter(pa.array(keep)), np.cumsum(sizes)
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    outcomes = {name: np.asarray(pc.fill_null(table[name], False)) for name in OUTCOMES}
    columns = {
        "history_item": table["item_id"],
        "history_action": pa.array(action_ids(outcomes)),
        "history_scenario": table["scenario"],
        "history_ts": table["ts_us"],
        "history_observed_ts": table["observed_us"],
    }
    packed = {
        name: pa.ListArray.from_arrays(
            offsets, values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        )
        for name, values in columns.items()
    }
    return pa.table({"user_id": users.dictionary.take(pa.array(codes[starts])), **packed})


def histories_asof(
    events: Sequence[EventSource],
    now: int,
    config: Config,
    users: Collection[str] | None = None,
    engine: Engine | None = None,
) -> pa.Table:
    """The rows of `user_history` at a time, ready for `push_users`.

    Args:
        events: folders of table sets, or tables of events.
        now: UTC microseconds; only what was observed before counts.
        users: only these; None for all.

    Returns:
        user_id, event_timestamp (`now`), and the four history lists, at most `history_length` long, oldest first.
        Users without events are absent.
    """
    engine = engine or DuckDBEngine()
    table = known_events(engine.events(events), now)
    if users is not None:
        table = table.filter(table.user_id.isin(sorted(users)))
    packed = pack(engine.collect(table), config.features.history_length).drop_columns(["history_observed_ts"])
    return packed.add_column(1, AS_OF, pa.array([now] * packed.num_rows, pa.int64()).cast(TS))
