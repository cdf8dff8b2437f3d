"""The gate on a home: the running experiment, and the period before it as covariate."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.experiment.gate import decide_current, period_before
from omnifeed.home import Home
from omnifeed.tables import EVENTS, ITEMS, USERS, Tables, conform, write_tables

DAY = 86_400_000_000
START = 1_773_619_200_000_000


def event(number: int, user: str, ts: int, observed: int, **outcomes: object) -> dict[str, object]:
    fields = {
        "event_id": f"e{number}",
        "request_id": f"r{number}",
        "user_id": user,
        "item_id": "i",
        "scenario": "search",
    }
    return {**fields, "ts": ts, "observed_ts": observed, "served": True, "viewed": True, **outcomes}


def test_only_what_was_known_before_the_start_counts_and_money_is_capped(tmp_path: Path) -> None:
    rows = [
        event(1, "a", START - DAY, START - 1, click=True, order=True, gmv=400.0),
        event(2, "a", START - DAY, START - 1, click=True, order=True, gmv=400.0),
        event(3, "a", START - DAY, START + 1, click=True),  # became known too late
        event(4, "a", START + DAY, START + DAY, click=True),  # happened too late
        event(5, "b", START - 29 * DAY, START - 20 * DAY, click=True),  # before the period
        event(6, "b", START - 2 * DAY, START - DAY, dwell_ms=3_000),
    ]
    names = sorted({name for row in rows for name in row})
    table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    for name in ("ts", "observed_ts"):
        table = table.set_column(names.index(name), name, table[name].cast(EVENTS.field(name).type))
    write_tables(Tables(conform(table, "events", "test"), ITEMS.empty_table(), USERS.empty_table()), tmp_path)
    before = period_before(tmp_path, START, gmv_cap=500.0)
    assert before is not None
    totals = {row["user_id"]: row for row in before.to_pylist()}
    assert (totals["a"]["clicks_per_user"], totals["a"]["orders_per_user"], totals["a"]["gmv_per_user"]) == (2, 2, 500)
    assert (totals["b"]["clicks_per_user"], totals["b"]["dwell_per_user"]) == (0, pytest.approx(3.0))


def test_without_accepted_events_there_is_no_covariate_and_without_an_experiment_no_verdict(tmp_path: Path) -> None:
    assert period_before(tmp_path, START, 500.0) is None
    with pytest.raises(InputError, match="No experiment is running"):
        decide_current(Home(tmp_path), Config(), START)
