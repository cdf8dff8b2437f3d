"""The training sets of the networks that are compared keep the whole test and change only what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnifeed.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from unified_variants import ALONE_SHARE, BLIND, NO_QUERY, RETRIEVAL, SCENARIOS, SEPARATE, UNIFIED, VARIANTS

USERS = 400


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    rows = [
        {"user_id": f"u{user}", "scenario": scenario, "split": split, "query": "lamp", "scenario_hide_rate_7d": 0.5}
        | dict.fromkeys(BLIND_COLUMNS, 0.1)
        for user in range(USERS)
        for scenario in SCENARIOS
        for split in ("train", "valid", "test")
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    (folder / "meta.json").write_text(json.dumps({"encode": {"scenarios": list(SCENARIOS)}}))
    (folder / "history.parquet").write_bytes(b"as it was")
    return folder


BLIND_COLUMNS = (
    *("item_scenario_views_7d", "item_scenario_click_rate_7d", "item_scenario_long_view_rate_7d"),
    *("item_scenario_order_rate_7d", "item_scenario_trending", "scenario_click_rate_7d"),
    *("scenario_long_view_rate_7d", "scenario_like_rate_7d", "scenario_order_rate_7d"),
)


def counts(folder: Path) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for row in pq.read_table(folder / "rows.parquet").to_pylist():
        key = row["split"], row["scenario"]
        found[key] = found.get(key, 0) + 1
    return found


def test_names_and_folders_are_distinct() -> None:
    assert len({variant.folder for variant in VARIANTS}) == len(VARIANTS) == 15


def test_the_whole_is_the_base_itself(base: Path, tmp_path: Path) -> None:
    assert UNIFIED.training_set(base, tmp_path / "out") == base
    assert RETRIEVAL.training_set(base, tmp_path / "out") == base
    config = RETRIEVAL.config(Config(), 3)
    assert (config.training.ranking_weight, config.training.retrieval_weight, config.training.seed) == (0.0, 1.0, 3)


def test_one_scenario_alone_keeps_every_test_row(base: Path, tmp_path: Path) -> None:
    out = SEPARATE["search"].training_set(base, tmp_path / "out")
    expected = {("test", scenario): USERS for scenario in SCENARIOS}
    assert counts(out) == {**expected, ("train", "search"): USERS, ("valid", "search"): USERS}
    assert (out / "history.parquet").read_bytes() == b"as it was"


def test_a_starved_scenario_loses_training_rows_by_user(base: Path, tmp_path: Path) -> None:
    found = counts(ALONE_SHARE[20].training_set(base, tmp_path / "out"))
    assert 0.12 * USERS < found["train", "livestream"] < 0.28 * USERS
    assert found["valid", "livestream"] == found["test", "search"] == USERS
    assert ("train", "search") not in found


def test_who_is_blind_to_scenarios_has_none(base: Path, tmp_path: Path) -> None:
    out = BLIND.training_set(base, tmp_path / "out")
    assert json.loads((out / "meta.json").read_text())["encode"]["scenarios"] == []
    names = pq.read_schema(out / "rows.parquet").names
    assert set(names) == {"user_id", "scenario", "split", "query"}


def test_without_the_query_nobody_typed(base: Path, tmp_path: Path) -> None:
    table = pq.read_table(NO_QUERY.training_set(base, tmp_path / "out") / "rows.parquet")
    assert table["query"].null_count == table.num_rows
    assert table.schema.field("query").type == pa.string()
