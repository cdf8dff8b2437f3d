"""One call from a configuration to the canonical tables, whatever they are made from.

An adapter maps names, types and units; it mends nothing. Duplicates, strange times and unknown ids go on to validation,
which counts them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.tables import TS, Tables

DAY_US = 86_400_000_000
SOURCES = ("world", "kuairand", "kuaisar", "kuailive", "amazon", "open_bandit", "parquet")
#: Arm of rows whose policy the source does not name. Never null, so that "arm != 'history'" is never unknown.
LOG_ARM = "log"


@dataclass(frozen=True, slots=True)
class Source:
    """The canonical tables and what is known about them."""

    tables: Tables
    holdout_users: frozenset[str]  # their rows never train
    now: int  # end of the log, exclusive: the moment the pipeline pretends to run at, UTC microseconds
    description: str  # one line for the report


def load_tables(config: Config) -> Source:
    """The tables that `config.data` names.

    Raises:
        InputError: the source is unknown, or its files are missing, unreadable or lack a column.
    """
    if config.data.source not in SOURCES:
        raise InputError(f"Setting data.source is {config.data.source!r}.", f"Known sources: {', '.join(SOURCES)}.")
    adapter = importlib.import_module(f"omnifeed.datasets.{config.data.source}")
    source: Source = adapter.load(config)
    return source


def folder_of(config: Config) -> Path:
    """The source's folder.

    Raises:
        InputError: `data.path` is not a folder.
    """
    folder = Path(config.data.path)
    if not config.data.path or not folder.is_dir():
        raise InputError(
            f"Setting data.path is {config.data.path!r}, which is not a folder.",
            f"Give the folder that holds the {config.data.source} files.",
        )
    return folder


def required(table: pa.Table, columns: tuple[str, ...], path: Path) -> pa.Table:
    """These columns of a file's table.

    Raises:
        InputError: one is missing.
    """
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}.", f"Give a file with the columns {', '.join(columns)}.")
    return table.select(list(columns))


def midnight_after(ts: pa.ChunkedArray, path: Path) -> int:
    """The first midnight after the last time, UTC microseconds.

    Raises:
        InputError: there is no time at all.
    """
    last = pc.max(ts.cast(TS).cast(pa.int64())).as_py()
    if last is None:
        raise InputError(f"{path} holds no events.", "Give a log with at least one row.")
    return int((last // DAY_US + 1) * DAY_US)
