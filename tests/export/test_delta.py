"""Deltas: checked fields, whole files, one order for any number of writers."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from omnifeed.errors import InputError, IntegrityError, OmnifeedError
from omnifeed.export.delta import (
    FieldError,
    append_delta,
    change_of,
    last_sequence,
    read_delta,
    retire,
    sequences,
)
from omnifeed.home import Home

NOW = 1_772_409_600_000_000


def test_a_delta_comes_back_as_it_was_written(tmp_path: Path) -> None:
    home = Home(tmp_path)
    changes = [change_of({"item_id": "直播", "stock": 0, "price": 3, "title": None, "locales": ["de", "de", "at"]})]
    written = append_delta(home, changes, now=NOW, block=["a"], unblock=["b"])
    assert read_delta(home, 1) == written
    assert written.changes[0].values == {"stock": 0, "price": 3.0, "title": None, "locales": ["at", "de"]}
    assert read_delta(home, 2) is None


@pytest.mark.parametrize(
    "moment", [NOW + 7, datetime(2026, 3, 2, microsecond=7, tzinfo=UTC), "2026-03-02T01:00:00.000007+01:00"]
)
def test_a_time_is_taken_in_three_forms(moment: Any) -> None:
    assert change_of({"item_id": "i", "live_until": moment}).values["live_until"] == NOW + 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("item_id", ""),
        ("item_id", None),
        ("item_id", "x" * 129),
        ("item_id", "new\nline"),
        ("stock", -1),
        ("stock", 1.5),
        ("stock", True),
        ("stock", 2**63),
        ("price", float("nan")),
        ("price", -1),
        ("price", "3.50"),
        ("policy", "SOMETIMES"),
        ("policy", None),
        ("kind", "podcast"),
        ("created_ts", None),
        ("live_from", "2026-03-02T01:00:00"),
        ("live_from", "soon"),
        ("live_from", -1),
        ("live_until", 2**62),
        ("title", 7),
        ("title", "x" * 10_001),
        ("locales", "de"),
        ("locales", [""]),
        ("colour", "red"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(field: str, value: Any) -> None:
    with pytest.raises(FieldError) as refusal:
        change_of({"item_id": "i", field: value})
    assert refusal.value.field == field
    assert field in refusal.value.problem
    assert refusal.value.action


def test_an_empty_delta_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        append_delta(Home(tmp_path), now=NOW)
    assert sequences(Home(tmp_path)) == []


def test_writers_at_once_get_a_number_each_and_none_is_lost(tmp_path: Path) -> None:
    home = Home(tmp_path)

    def write(writer: int) -> None:
        for n in range(20):
            append_delta(home, [change_of({"item_id": f"{writer}-{n}", "stock": n})], now=NOW)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sequences(home) == list(range(1, 81))
    found = {change.item_id for n in sequences(home) for change in read_delta(home, n).changes}  # type: ignore[union-attr]
    assert len(found) == 80
    assert len(list((home.catalogue / "deltas").iterdir())) == 80  # no temporary file is left


def test_time_never_runs_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    append_delta(home, now=NOW, block=["a"])
    assert append_delta(home, now=NOW - 5, block=["b"]).now == NOW


def test_a_damaged_delta_is_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    append_delta(home, now=NOW, block=["a"])
    path = home.catalogue / "deltas" / f"{1:012d}"
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    with pytest.raises(IntegrityError, match="not what was written"):
        read_delta(home, 1)


def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_added(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.catalogue.mkdir()
    (home.catalogue / "deltas").write_text("a file where the folder should be")
    with pytest.raises(OmnifeedError, match="could not be written"):
        append_delta(home, now=NOW, block=["a"])


def test_old_deltas_retire_and_numbers_only_rise(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for n in range(5):
        append_delta(home, now=NOW + n, block=[str(n)])
    retire(home, 5, kept_us=2)
    assert sequences(home) == [3, 4, 5]
    retire(home, 3, kept_us=0)
    assert sequences(home) == [4, 5]
    retire(home, 5, kept_us=-1)
    assert last_sequence(home) == 5
    assert append_delta(home, now=NOW, block=["x"]).sequence == 6
