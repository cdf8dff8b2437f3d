"""Both engines compute the same tables from the same expression."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from features.market import START, small_market
from omnifeed.config import Config
from omnifeed.engine import DuckDBEngine, SparkEngine
from omnifeed.errors import InputError
from omnifeed.export.encode import DAY_US
from omnifeed.features.aggregates import ITEM_VIEWS, daily_table
from omnifeed.features.history import histories_asof
from omnifeed.tables import write_tables


def test_events_read_from_a_folder_equal_events_in_memory(tmp_path: Path) -> None:
    tables = small_market(seed=1)
    write_tables(tables, tmp_path / "accepted")
    engine, midnights = DuckDBEngine(), [START + DAY_US * day for day in (1, 3)]
    from_folder = daily_table(engine, engine.events([tmp_path / "accepted"]), "item_scenario_daily", midnights)
    assert from_folder.num_rows > 0
    assert from_folder.equals(daily_table(engine, engine.events([tables.events]), "item_scenario_daily", midnights))


def test_several_sources_are_added_up(tmp_path: Path) -> None:
    tables = small_market(seed=2)
    write_tables(tables, tmp_path / "accepted")
    late = tables.events.slice(tables.events.num_rows // 2)
    early = tables.events.slice(0, tables.events.num_rows // 2)
    engine, midnights = DuckDBEngine(), [START + DAY_US * 4]
    together = daily_table(engine, engine.events([early, late]), "user_daily", midnights)
    assert together.equals(daily_table(engine, engine.events([tmp_path / "accepted"]), "user_daily", midnights))


def test_a_folder_without_events_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no events\."):
        DuckDBEngine().events([tmp_path])
    with pytest.raises(InputError, match=r"No events were given\."):
        DuckDBEngine().events([])


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="pyspark is not installed")
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java runtime")
def test_spark_computes_what_duckdb_computes(tmp_path: Path) -> None:
    tables = small_market(seed=3)
    write_tables(tables, tmp_path / "accepted")
    duck, spark = DuckDBEngine(), SparkEngine()
    midnights = [START + DAY_US * day for day in range(1, 6)]
    for source in ("user_daily", *ITEM_VIEWS):
        left, right = (
            daily_table(engine, engine.events([tmp_path / "accepted"]), source, midnights) for engine in (duck, spark)
        )
        assert left.num_rows > 0
        assert left.equals(right), source
    left, right = (
        histories_asof([tmp_path / "accepted"], START + DAY_US * 4 + 1, Config(), engine=engine)
        for engine in (duck, spark)
    )
    assert left.equals(right)
