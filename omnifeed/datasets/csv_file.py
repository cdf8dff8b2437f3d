"""CSV files of public archives, read with the types that their pages publish."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from omnifeed.errors import InputError
from omnifeed.tables import TS


def read_csv(path: Path, types: Mapping[str, pa.DataType], *, every: bool = False) -> pa.Table:
    """The columns that `types` names, empty cells as nulls; with `every` all others too, their types guessed.

    Raises:
        InputError: the file is missing or is not CSV, lacks a column, or has a value of another type.
    """
    try:
        with pyarrow.csv.open_csv(path) as head:
            missing = [name for name in types if name not in head.schema.names]
        if missing:
            raise InputError(
                f"{path} has no column {missing[0]!r}.", f"Give a file with the columns {', '.join(types)}."
            )
        options = pyarrow.csv.ConvertOptions(
            column_types=dict(types), include_columns=[] if every else list(types), strings_can_be_null=True
        )
        in_order = pyarrow.csv.ReadOptions(use_threads=False)  # only then does an error name its row
        return pyarrow.csv.read_csv(path, in_order, convert_options=options)
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no {path.name}.", "Give the folder of the unpacked archive.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not readable CSV: {str(error).splitlines()[0]}.", "Download it again.") from error


def row_ids(table: pa.Table) -> list[str]:
    """An id a row, equal where all its values are: exact copies collide, for validation to find."""
    texts = [pc.fill_null(column.cast(pa.string()), "") for column in table.columns]
    joined = pc.binary_join_element_wise(*texts, "\x1f")
    return [hashlib.sha256(text.encode()).hexdigest()[:24] for text in joined.to_pylist()]


def micros(milliseconds: pa.ChunkedArray) -> pa.ChunkedArray:
    """Unix milliseconds, whole or as floats, as int64 microseconds; nulls stay."""
    return pc.multiply(pc.round(milliseconds.cast(pa.float64())).cast(pa.int64()), 1000)


def beijing_times(texts: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    """Dates and times of Beijing, `2023-04-22` or `2023-04-22 13:20:11`, as timestamp[us, UTC]; nulls stay.

    Raises:
        InputError: a text is neither.
    """
    full = pc.if_else(pc.equal(pc.utf8_length(texts), 10), pc.binary_join_element_wise(texts, "00:00:00", " "), texts)
    try:
        return pc.binary_join_element_wise(full, "+08:00", "").cast(TS)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: {str(error).splitlines()[0].rstrip('.')}.", "Download it again.") from error
