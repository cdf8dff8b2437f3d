"""A user's own logs with a fault in them, through the whole command: refused before training, nothing accepted lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnifeed.home import Home

from .conftest import Loop, omnifeed
from .state import assert_sound, state
from .steps import Artifacts


@pytest.fixture
def logs(loop: Loop, tmp_path: Path) -> Path:
    """The simulated market's tables as somebody's own parquet files."""
    folder = Artifacts.of(loop.home.root, "0001", "training").path("ingest", "tables")
    shutil.copytree(folder, tmp_path / "logs")
    return tmp_path / "logs"


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    pq.write_table(change(pq.ParquetFile(path).read()), path)
    return path


def without_column(logs: Path) -> tuple[str, ...]:
    path = rewrite(sorted(logs.glob("events/*/*"))[2], lambda table: table.drop_columns(["scenario"]))
    return str(path), "'scenario'"


def cut_file(logs: Path) -> tuple[str, ...]:
    path = logs / "items.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    return str(path), "not a readable parquet file"


def empty_table(logs: Path) -> tuple[str, ...]:
    rewrite(logs / "users.parquet", lambda table: table.slice(0, 0))
    return "users", "empty"


def wrong_type(logs: Path) -> tuple[str, ...]:
    def words(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index("ts"), "ts", pa.array(["yesterday"] * table.num_rows))

    path = rewrite(sorted(logs.glob("events/*/*"))[0], words)
    return str(path), "'ts'", "string"


def far_future(logs: Path) -> tuple[str, ...]:
    """A log ends where its last row is; were that believed, all the others would be ancient."""
    year = 365 * 86_400_000_000

    def later(table: pa.Table) -> pa.Table:
        ts = pa.compute.add(table["ts"].cast(pa.int64()), 174 * year).cast(pa.timestamp("us", "UTC"))
        return table.set_column(table.column_names.index("ts"), "ts", ts)

    rewrite(sorted(logs.glob("events/*/*"))[-1], later)
    return "ts is not in the future", "22"


@pytest.mark.parametrize("fault", [without_column, cut_file, empty_table, wrong_type, far_future])
def test_a_faulty_log_ends_the_run_before_training(
    copied: Home, logs: Path, fault: Callable[[Path], tuple[str, ...]]
) -> None:
    named = fault(logs)
    before = state(copied)
    refused = omnifeed(copied.root, "run", "--data", "parquet", "--path", logs, "--json")
    assert refused.code == 2, refused.err
    problem, action = refused.sentences()
    assert all(word in problem for word in named), problem
    assert action.endswith(".")
    assert state(copied) == before
    assert_sound(copied)
    ran = {path.stem for path in (copied.runs / "0002" / "steps").glob("*.json")}
    assert ran <= {"ingest", "validate", "end_of_training"}
    assert problem in (copied.runs / "0002" / "report.html").read_text().replace("&#39;", "'")
