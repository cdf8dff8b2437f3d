"""Files of changes: what can be used is applied, the rest is set aside with its row and field."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnifeed.errors import InputError, UnavailableError
from omnifeed.export.catalogue import write_snapshot
from omnifeed.export.delta import sequences
from omnifeed.export.delta_file import apply_file
from omnifeed.export.following import load_catalogue
from omnifeed.home import Home

NOW = 1_772_409_600_000_000


@pytest.fixture
def home(tmp_path: Path) -> Home:
    one = Home(tmp_path / "home")
    columns = {"kind": "product", "created_ts": NOW - 1, "policy": "ALLOW"}
    write_snapshot(one, {"item_id": ["i0", "i1"], **{name: [value] * 2 for name, value in columns.items()}}, {}, NOW)
    return one


def test_bad_rows_are_set_aside_by_row_and_field_and_the_rest_is_applied(home: Home, tmp_path: Path) -> None:
    lines = [
        '{"item_id": "i0", "stock": 0}',
        '{"item_id": "i1", "stock": "none"}',
        "{not json",
        "[1]",
        '{"item_id": "new", "stock": 3}',
        "",
        '{"item_id": "show", "kind": "livestream", "created_ts": 5, "policy": "ALLOW", "live_from": 7}',
        '{"item_id": "show", "stock": 2}',
    ]
    path = tmp_path / "changes.jsonl"
    path.write_text("\n".join(lines))
    result = apply_file(home, path, NOW + 1)
    assert [change.item_id for change in result.delta.changes] == ["i0", "show", "show"]
    assert [(bad.row, bad.field) for bad in result.bad] == [(2, "stock"), (3, ""), (4, ""), (5, "kind")]
    assert result.quarantine is not None
    kept = [json.loads(line) for line in result.quarantine.read_text().splitlines()]
    assert kept[0]["content"] == lines[1]
    assert all(row["problem"] and row["action"] for row in kept)
    assert result.to_dict()["applied"] == 3
    catalogue = load_catalogue(home)
    assert catalogue.stock[catalogue.rows["i0"] - 1] == 0
    assert catalogue.stock[catalogue.rows["show"] - 1] == 2


def test_parquet_is_read_with_its_times_and_lists(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "changes.parquet"
    moment = datetime(2026, 3, 2, 1, tzinfo=UTC)
    table = pa.table(
        {
            "item_id": ["i0", "i1"],
            "live_until": pa.array([moment, None], pa.timestamp("us", "UTC")),
            "price": [1.5, -1.0],
            "locales": [["de"], None],
        }
    )
    pq.write_table(table, path)
    result = apply_file(home, path, NOW + 1)
    assert [(bad.row, bad.field) for bad in result.bad] == [(2, "price")]
    values = result.delta.changes[0].values
    assert values == {"live_until": NOW + 3_600_000_000, "price": 1.5, "locales": ["de"]}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("none.jsonl", None, "does not exist"),
        ("odd.csv", b"item_id,stock\n", "ends in neither"),
        ("empty.jsonl", b"\n\n", "no row"),
        ("bad.jsonl", b'{"item_id": ""}\n', "Row 1: item_id is ''"),
        ("latin.jsonl", b"\xff\xfe", "cannot be read"),
        ("broken.parquet", b"PAR1", "not a readable parquet"),
    ],
)
def test_a_file_that_cannot_be_used_changes_nothing(
    home: Home, tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        apply_file(home, path, NOW)
    assert sequences(home) == []


def test_without_a_catalogue_the_caller_is_told(tmp_path: Path) -> None:
    path = tmp_path / "changes.jsonl"
    path.write_text('{"item_id": "i0", "stock": 0}')
    with pytest.raises(UnavailableError, match="no catalogue"):
        apply_file(Home(tmp_path / "empty"), path, NOW)
