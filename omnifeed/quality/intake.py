"""Reading a table set that may be broken: every file's state is data here, so that the contract can name it.

`omnifeed.tables.read_tables` stops at the first fault. This reader goes on, keeps the rows as they stood in their files
for the quarantine, and says of each file whether it is readable and of each column whether it is there and casts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.errors import InputError
from omnifeed.tables import SCHEMAS, TS, conform, read_parquet

Rows = npt.NDArray[np.int64]
_CASTS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)


@dataclass(frozen=True, slots=True)
class RawFile:
    """One parquet file of a table set, as it was found."""

    table: str  # events, items or users
    path: Path
    rows: pa.Table | None  # null when the file cannot be read
    error: str | None


def read_files(root: Path) -> list[RawFile]:
    """Every file of the table set; a missing one is listed with its error."""
    events = sorted((root / "events").glob("day=*/*.parquet"))
    paths = [("items", root / "items.parquet"), ("users", root / "users.parquet")]
    paths += [("events", path) for path in events]
    if not events and not (root / "events").is_dir():
        paths.append(("events", root / "events"))
    files = []
    for table, path in paths:
        try:
            files.append(RawFile(table, path, read_parquet(path), None))
        except InputError as error:
            files.append(RawFile(table, path, None, error.problem))
    return files


def files_frame(files: list[RawFile]) -> pa.Table:
    """One row a file: path, table, error (null when readable)."""
    return pa.table(
        {
            "path": [str(file.path) for file in files],
            "table": [file.table for file in files],
            "error": pa.array([file.error for file in files], pa.string()),
        }
    )


def columns_frame(files: list[RawFile]) -> pa.Table:
    """One row a file and canonical column, required or found: column (and where), found (type, null if
    absent), fault (null if it casts, else the first row that does not).
    """
    where, found, faults = [], [], []
    for file in files:
        if file.rows is None:
            continue
        for field in SCHEMAS[file.table]:
            present = field.name in file.rows.column_names
            if not present and field.nullable:
                continue
            where.append(f"{file.table}.{field.name} in {file.path} ({file.rows.num_rows:,} rows)")
            found.append(str(file.rows.schema.field(field.name).type) if present else None)
            faults.append(_cast_fault(file.rows[field.name], field.type) if present else None)
    return pa.table(
        {
            "column": pa.array(where, pa.string()),
            "found": pa.array(found, pa.string()),
            "fault": pa.array(faults, pa.string()),
        }
    )


def _cast_fault(column: pa.ChunkedArray, kind: pa.DataType) -> str | None:
    def casts(start: int, length: int) -> bool:
        try:
            column.slice(start, length).cast(kind)
        except _CASTS:
            return False
        return True

    if column.type == kind or casts(0, len(column)):
        return None
    start, length = 0, len(column)
    while length > 1:  # the half that holds the first row that does not cast
        half = length // 2
        start, length = (start + half, length - half) if casts(start, half) else (start, half)
    value = f"{column[start].as_py()!r:.80} in row {start}" if len(column) else "no rows"
    return f"{column.type} does not cast to {kind}: {value}"


def conformed(files: list[RawFile], table: str) -> pa.Table:
    """The table's files as one canonical table, in the order of the files."""
    parts = [conform(file.rows, table, str(file.path)) for file in files if file.table == table]
    return pa.concat_tables(parts) if parts else SCHEMAS[table].empty_table()


def original_rows(files: list[RawFile], table: str, rows: Rows) -> pa.Table:
    """Rows by their number in `conformed`, with every column of their file as text.

    Args:
        rows: int64, ascending.
    """
    parts, start = [], 0
    for file in files:
        if file.table != table or file.rows is None:
            continue
        inside = rows[(rows >= start) & (rows < start + file.rows.num_rows)] - start
        part = file.rows.take(pa.array(inside))
        parts.append(pa.table({name: as_text(part[name]) for name in part.column_names}))
        start += file.rows.num_rows
    if not parts:
        return pa.table({field.name: pa.array([], pa.string()) for field in SCHEMAS[table]})
    return pa.concat_tables(parts, promote_options="default")


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of any type as strings: lists as JSON, bytes as hexadecimal, times as ISO 8601; null stays null."""
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if kind == TS:
        return pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")
    try:
        if not pa.types.is_binary(kind):
            return column.cast(pa.string())
    except _CASTS:
        pass
    texts = [None if value is None else _plain(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


def codes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64: equal values, equal codes; null stays null."""
    flat = as_text(column) if pa.types.is_nested(column.type) else column
    chunks = [chunk.indices for chunk in flat.dictionary_encode().chunks]  # of one dictionary, shared by the chunks
    return pa.chunked_array(chunks, pa.int32()).cast(pa.int64())


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False, default=str)
