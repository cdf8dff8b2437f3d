"""Reading a training set in parts into flat arrays that may lie on disk, so that memory is not what limits the log.

Arrays on disk are memory maps of files without a name: the kernel keeps of them in memory what is read, and frees their
space with the process.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omnifeed.errors import InputError, OmnifeedError

PART = 200_000  # rows read at a time
BUFFER = 1 << 18  # bytes of each column read ahead

Array = npt.NDArray[Any]


class Column:
    """An array that is made by appending; on disk where a folder is given."""

    def __init__(self, scratch: Path | None) -> None:
        self._parts: list[Array] = []
        self._rows = 0
        self._scratch = scratch
        self._file: IO[bytes] | None = tempfile.TemporaryFile(dir=scratch) if scratch else None  # noqa: SIM115

    def __len__(self) -> int:
        return self._rows

    def append(self, part: Array) -> None:
        """Add rows; every part has the same type and width, and there is at least one.

        Raises:
            OmnifeedError: the folder's disk is full.
        """
        if self._file is None or not self._parts:
            self._parts.append(part)
        if self._file is not None:
            try:
                self._file.write(np.ascontiguousarray(part, self._parts[0].dtype).data)
                self._file.flush()
            except OSError as error:
                raise OmnifeedError(
                    f"The training set's arrays could not be written to {self._scratch}: {error.strerror or error}.",
                    "Free some space there and run again; what was trained before is untouched.",
                ) from error
        self._rows += len(part)

    def array(self) -> Array:
        """All rows in their order."""
        if self._file is None or not self._rows:
            return np.concatenate(self._parts)
        first = self._parts[0]
        return np.memmap(self._file, first.dtype, "r", shape=(self._rows, *first.shape[1:]))


def parquet(path: Path) -> pq.ParquetFile:
    """An opened parquet file, of which no more is held than what is being read.

    Raises:
        InputError: it is missing or unreadable.
    """
    try:
        return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", "Run the materialize step again.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file.", "Run the materialize step again.") from error


def parts(path: Path, columns: Sequence[str], width: int = 1) -> Iterator[pa.Table]:
    """The file's rows, PART values at a time where a row holds about `width`, at least one table."""
    file = parquet(path)
    yield file.schema_arrow.empty_table().select(list(columns))
    for batch in file.iter_batches(max(PART // width, 1), columns=list(columns)):
        yield pa.Table.from_batches([batch]).select(list(columns))


def request_parts(path: Path, columns: Sequence[str], splits: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of these splits in parts of whole requests, at least one table; columns include request_id and split."""
    rest: pa.Table | None = None
    for part in parts(path, columns):
        rows = part.filter(pc.is_in(part["split"], pa.array(list(splits), pa.string())))
        rows = pa.concat_tables([rest, rows]) if rest is not None else rows
        ids = rows["request_id"]
        whole = 0
        if len(ids):
            other = pc.not_equal(ids, ids[-1]).to_numpy()
            whole = int(np.flatnonzero(other)[-1]) + 1 if other.any() else 0
        if rest is None or whole:
            yield rows.slice(0, whole).combine_chunks()
        rest = rows.slice(whole)
    assert rest is not None
    yield rest.combine_chunks()


def request_ids(path: Path, splits: Sequence[str], rows: Array) -> list[str]:
    """Ids of these requests, by their place among those of the splits; read again, as they are seldom asked for."""
    found: dict[int, str] = {}
    begin = 0
    for part in request_parts(path, ["request_id", "split"], splits) if len(rows) else ():
        ids = pc.unique(part["request_id"])
        inside = rows[(begin <= rows) & (rows < begin + len(ids))]
        found.update(zip(inside.tolist(), ids.take(pa.array(inside - begin)).to_pylist(), strict=True))
        begin += len(ids)
    return [found[row] for row in rows.tolist()]


def refuse_repeated(path: Path, splits: Sequence[str], keys: Array) -> None:
    """Check that no request stands in two places of the file.

    Args:
        keys: int64, a digest of the id of each request of the splits; the ids are compared where two are equal.

    Raises:
        InputError: one does.
    """
    ordered = np.sort(keys)
    again = np.flatnonzero(np.isin(keys, ordered[1:][ordered[1:] == ordered[:-1]]))
    ((name, places),) = Counter(request_ids(path, splits, again)).most_common(1) or [("", 0)]
    if places > 1:
        raise InputError(
            f"{path} is not grouped by request_id: {name} stands in {places} places.", "Write the training set again."
        )


def events_before(times: Array, first: Array, stop: Array, ts: Array) -> Array:
    """How many of the ascending `times[first[i]:stop[i]]` are below `ts[i]`, int64 [N]: bisection of all at once."""
    low, high = first.astype(np.int64), stop.astype(np.int64)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        below = np.zeros(len(low), bool)
        below[open_] = times[middle[open_]] < ts[open_]
        low, high = np.where(open_ & below, middle + 1, low), np.where(open_ & ~below, middle, high)
    result: Array = low - first
    return result


def moments(values: Array, rows: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of these rows, float64 [width], without a copy of all of them."""
    blocks = np.array_split(rows, len(rows) // PART + 1)
    mean = sum(values[block].sum(0, dtype=np.float64) for block in blocks) / len(rows)
    squares = sum(np.square(values[block] - mean).sum(0, dtype=np.float64) for block in blocks)
    return mean, np.sqrt(squares / len(rows))
