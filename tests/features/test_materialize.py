"""The training set holds every impression that may train, with what was known before it and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from features.conftest import HOLDOUT, NOW, Market
from features.market import START, events_table, tables_of
from omnifeed.config import Config
from omnifeed.engine import DuckDBEngine
from omnifeed.errors import InputError, IntegrityError
from omnifeed.export.encode import DAY_US
from omnifeed.features import spec
from omnifeed.features.aggregates import AS_OF, daily_table
from omnifeed.features.history import histories_asof
from omnifeed.features.materialize import impressions, join_features, materialize
from omnifeed.features.spec import ITEM_DENSE, USER_DENSE
from omnifeed.features.store import feature_store, read_user
from omnifeed.features.training_set import TrainingSet, split_ends
from omnifeed.home import Home
from omnifeed.tables import EVENTS, TS, write_tables


def micros(table: pa.Table, name: str) -> np.ndarray:
    return table[name].cast(pa.int64()).to_numpy()


def test_every_impression_that_may_train_is_a_row(market: Market) -> None:
    rows = pq.read_table(market.out / "rows.parquet")
    frame = market.tables.events.to_pandas()
    first = frame.groupby("request_id")["ts"].transform("min")
    now = np.datetime64(NOW, "us")
    eligible = frame[
        (frame["viewed"] != False)  # noqa: E712 - null is seen
        & (frame["arm"] != "history")
        & ~frame["user_id"].isin(HOLDOUT)
        & (frame["observed_ts"].dt.tz_localize(None) < now)
        & (first.dt.tz_localize(None) < np.datetime64(START + 5 * DAY_US, "us"))
    ]
    assert sorted(rows["event_id"].to_pylist()) == sorted(eligible["event_id"])
    assert sum(market.result.rows.values()) == rows.num_rows
    seen = int((frame["viewed"] != False).sum())  # noqa: E712
    assert rows.num_rows + sum(market.result.left_out.values()) == seen
    assert all(market.result.left_out.values())
    assert rows.column_names == [*EVENTS.names, "split", *(f.name for f in (*USER_DENSE, *ITEM_DENSE))]


def test_splits_are_whole_days_of_whole_requests_in_order(market: Market) -> None:
    rows = pq.read_table(market.out / "rows.parquet")
    meta = json.loads((market.out / "meta.json").read_text())
    assert [meta[name] - START for name in ("train_end", "valid_end", "test_end")] == [
        3 * DAY_US,
        4 * DAY_US,
        5 * DAY_US,
    ]
    first = _request_ts(market)
    keys = []
    for row in rows.to_pylist():
        ts = first[row["request_id"]]
        expected = "train" if ts < meta["train_end"] else "valid" if ts < meta["valid_end"] else "test"
        assert row["split"] == expected
        keys.append((ts, row["request_id"], row["position"]))
    assert keys == sorted(keys)
    assert TrainingSet.load(market.out) == market.result


def test_a_request_that_straddles_midnight_stays_whole() -> None:
    end = START + 4 * DAY_US
    rows = [
        {"ts": end - 1, "request_id": "straddles", "event_id": "last", "viewed": False},
        {"ts": end + 1, "request_id": "straddles", "event_id": "next"},
    ]
    folder_rows, _ = impressions(_InMemory(events_table(rows)), Path(), Config(), START + 5 * DAY_US, ())
    assert folder_rows.select(["event_id", "split"]).to_pylist() == [{"event_id": "next", "split": "valid"}]


class _InMemory(DuckDBEngine):
    """DuckDB over one table, whatever the folder."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__()
        self._table = table

    def events(self, sources):
        return super().events([self._table])


ITEM_KEYS: dict[spec.Source, list[str]] = {
    "item_daily": ["item_id"],
    "item_monthly": ["item_id"],
    "item_scenario_daily": ["item_id", "scenario"],
    "scenario_daily": ["scenario"],
}


def test_features_are_those_of_the_midnight_before_the_request(market: Market) -> None:
    rows = pq.read_table(market.out / "rows.parquet")
    first = _request_ts(market)
    days = np.array([first[request] - first[request] % DAY_US for request in rows["request_id"].to_pylist()])
    engine = DuckDBEngine()
    events = engine.events([market.tables.events])
    checked = 0
    for source, keys, features in (
        ("user_daily", ["user_id"], USER_DENSE),
        *((source, keys, spec.of(source)) for source, keys in ITEM_KEYS.items()),
    ):
        table = daily_table(engine, events, source, sorted({int(day) for day in days}))
        known = {(*(row[key] for key in keys), int(row[AS_OF].timestamp() * 1e6)): row for row in table.to_pylist()}
        for day, row in zip(days, rows.to_pylist(), strict=True):
            expected = known.get((*(row[key] for key in keys), int(day)))
            default = {f.name: row[f.fallback] if f.fallback else f.default for f in features}
            assert [row[f.name] for f in features] == [(expected or default)[f.name] for f in features]
            checked += expected is not None
    assert checked > rows.num_rows


def _request_ts(market: Market) -> dict[str, int]:
    events = market.tables.events
    table = pa.table({"request_id": events["request_id"], "ts": events["ts"].cast(pa.int64())})
    grouped = table.group_by("request_id").aggregate([("ts", "min")])
    return dict(zip(grouped["request_id"].to_pylist(), grouped["ts_min"].to_pylist(), strict=True))


@pytest.mark.parametrize("at", [START + 2 * DAY_US, START + 3 * DAY_US + DAY_US // 2])
def test_no_row_sees_anything_observed_at_or_after_its_time(market: Market, tmp_path: Path, at: int) -> None:
    """Everything observed at or after `at` is turned over; rows and history prefixes up to `at` stay as they were."""
    events = market.tables.events
    late = pc.greater_equal(events["observed_ts"], pa.scalar(at).cast(TS))
    for name in ("click", "long_view", "order"):
        flipped = pc.if_else(late, pc.invert(pc.fill_null(events[name], False)), events[name])
        events = events.set_column(events.column_names.index(name), name, flipped)
    gmv = pc.if_else(late, pc.add(pc.fill_null(events["gmv"], 0.0), 100.0), events["gmv"])
    events = events.set_column(events.column_names.index("gmv"), "gmv", gmv)
    write_tables(dataclasses.replace(market.tables, events=events), tmp_path / "accepted")
    materialize(tmp_path / "accepted", tmp_path / "out", Home(tmp_path / "home"), market.config, NOW, HOLDOUT)

    names = ["event_id", *(feature.name for feature in (*USER_DENSE, *ITEM_DENSE))]
    before, after = (pq.read_table(folder / "rows.parquet") for folder in (market.out, tmp_path / "out"))
    past = pc.less_equal(before["ts"], pa.scalar(at).cast(TS))
    assert pc.sum(past).as_py() > 10
    assert before.filter(past).select(names).equals(after.filter(past).select(names))
    assert not before.select(names).equals(after.select(names))
    for one, other in zip(*(_histories(folder) for folder in (market.out, tmp_path / "out")), strict=True):
        size = int(np.searchsorted(one["history_observed_ts"], at))
        assert {name: values[:size] for name, values in one.items()} == {
            name: values[:size] for name, values in other.items()
        }


def _histories(folder: Path) -> list[dict]:
    return pq.read_table(folder / "history.parquet").to_pylist()


def test_histories_are_whole_and_of_the_users_who_train(market: Market) -> None:
    history = pq.read_table(market.out / "history.parquet")
    rows = pq.read_table(market.out / "rows.parquet")
    assert set(history["user_id"].to_pylist()) == set(rows["user_id"].to_pylist())
    assert max(len(row["history_ts"]) for row in history.to_pylist()) > market.config.features.history_length
    for row in history.to_pylist():
        assert row["history_observed_ts"] == sorted(row["history_observed_ts"])
        assert row["history_observed_ts"][-1] < NOW


def test_the_catalogue_can_be_scored_on_every_evaluation_day(market: Market) -> None:
    table = pq.read_table(market.out / "item_features.parquet")
    assert table.column_names == ["day_ts", "item_id", "scenario", *(feature.name for feature in ITEM_DENSE)]
    assert sorted(set(micros(table, "day_ts") - START)) == [3 * DAY_US, 4 * DAY_US, 5 * DAY_US]
    assert table.num_rows == 3 * market.tables.items.num_rows * len(market.config.data.scenarios)
    assert all(table[feature.name].null_count == 0 for feature in ITEM_DENSE)
    engine = DuckDBEngine()
    today = daily_table(engine, engine.events([market.tables.events]), "item_scenario_daily", [START + 5 * DAY_US])
    got = {
        (row["item_id"], row["scenario"]): row["item_scenario_trending"]
        for row in table.filter(pc.equal(table["day_ts"], pa.scalar(START + 5 * DAY_US).cast(TS))).to_pylist()
    }
    for row in today.to_pylist():
        assert got[row["item_id"], row["scenario"]] == row["item_scenario_trending"]


def test_online_and_offline_agree_at_the_same_instant(market: Market) -> None:
    """Feast's own point-in-time join at `now` gives what the online store answers; held-out users included."""
    users = sorted(set(market.tables.events["user_id"].to_pylist()))
    store = feature_store(market.home, market.config)
    keys = pa.table({"user_id": users, AS_OF: pa.array([NOW] * len(users), pa.int64()).cast(TS)})
    offline = store.get_historical_features(keys.to_pandas(), store.get_feature_service("recommend_user")).to_arrow()
    packed = {row["user_id"]: row for row in histories_asof([market.accepted], NOW, market.config).to_pylist()}
    assert offline.num_rows == len(users) > len(HOLDOUT)
    for row in offline.to_pylist():
        online = read_user(market.home, row["user_id"], market.config)
        names = [feature.name for feature in spec.of("user_profile", "user_daily")]
        assert dict(online.values) == {name: row[name] for name in names if row[name] is not None}
        for name in ("history_item", "history_action", "history_scenario", "history_ts"):
            assert list(getattr(online, name)) == list(row[name]) == packed[row["user_id"]][name]
        assert 0 < len(online.history_item) <= market.config.features.history_length


def test_rows_that_feast_loses_are_an_error(market: Market) -> None:
    """Guard: the file store drops impressions whose keys have only future feature rows (Feast 0.67)."""
    from feast import FeatureStore

    config = feature_store(market.home, market.config).config.model_copy(deep=True)
    config.offline_config = {"type": "dask"}
    config._offline_store = None
    rows, _ = impressions(DuckDBEngine(), market.accepted, market.config, NOW, HOLDOUT)
    with pytest.raises(IntegrityError, match=r"join returned \d+ rows for \d+ impressions"):
        join_features(FeatureStore(config=config), rows)


def test_a_log_too_short_for_its_splits_is_refused(tmp_path: Path) -> None:
    write_tables(tables_of(events_table([{"ts": START}]), ["u0"], ["i0"]), tmp_path / "accepted")
    with pytest.raises(InputError, match="no impression falls into the train days"):
        materialize(
            tmp_path / "accepted", tmp_path / "out", Home(tmp_path / "home"), Config(), START + DAY_US, frozenset()
        )
    assert not (tmp_path / "out").exists()


def test_split_ends_are_midnights() -> None:
    assert split_ends(Config(), START + 3 * DAY_US) == (START + DAY_US, START + 2 * DAY_US, START + 3 * DAY_US)
    assert split_ends(Config(), START + 3 * DAY_US + 5) == split_ends(Config(), START + 3 * DAY_US)


KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from omnifeed.config import Config
from omnifeed.features.materialize import materialize
from omnifeed.home import Home

write = pq.write_table
def write_then_die(table, path, **options):
    write(table, path, **options)
    if Path(path).name == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
pq.write_table = write_then_die
accepted, out, home = map(Path, sys.argv[2:5])
materialize(accepted, out, Home(home), Config.from_json(sys.argv[5]), int(sys.argv[6]), frozenset(sys.argv[7].split()))
"""


@pytest.mark.parametrize("file", ["item_daily.parquet", "history.parquet"])
def test_a_killed_run_leaves_the_last_good_one(market: Market, file: str) -> None:
    def state() -> dict[str, bytes]:
        files = [*market.out.iterdir(), *(market.home.features / "offline").iterdir()]
        return {str(path): path.read_bytes() for path in files}

    before = state()
    arguments = [file, market.accepted, market.out, market.home.root, market.config.to_json(), NOW, " ".join(HOLDOUT)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert state() == before
    assert read_user(market.home, "u1", market.config).history_item
    again = materialize(market.accepted, market.out, market.home, market.config, NOW, HOLDOUT)
    assert again == market.result
    assert state() == before
