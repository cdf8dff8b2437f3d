"""A column of nullable strings that a million titles fit into: two arrays, and a list of what was added since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt


class Strings(Sequence["str | None"]):
    """Packed strings; a million titles cost their bytes and 5 more each. `extended` shares what is packed."""

    def __init__(
        self,
        blob: npt.NDArray[np.uint8],
        ends: npt.NDArray[np.unsignedinteger],
        null: npt.NDArray[np.bool_],
        added: tuple[str | None, ...] = (),
    ) -> None:
        self.blob, self.ends, self.null, self._added = blob, ends, null, added
        self._bytes = np.ascontiguousarray(blob).data

    @staticmethod
    def of(values: Iterable[str | None]) -> Strings:
        """Pack."""
        raw = [None if value is None else str(value).encode("utf-8", "surrogatepass") for value in values]
        ends = np.cumsum([len(value or b"") for value in raw], dtype=np.uint64)
        blob = np.frombuffer(b"".join(value or b"" for value in raw), np.uint8)
        small = ends.astype(np.uint32) if len(blob) < 2**32 else ends
        return Strings(blob, small, np.array([v is None for v in raw], np.bool_))

    def extended(self, values: Iterable[str | None]) -> Strings:
        """These strings and more after them."""
        return Strings(self.blob, self.ends, self.null, (*self._added, *values))

    def __len__(self) -> int:
        return len(self.ends) + len(self._added)

    @overload
    def __getitem__(self, row: int) -> str | None: ...
    @overload
    def __getitem__(self, row: slice) -> list[str | None]: ...
    def __getitem__(self, row: int | slice) -> str | list[str | None] | None:
        """One string, or a list of them."""
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        index = row + len(self) if row < 0 else row
        if not 0 <= index < len(self):
            raise IndexError(row)
        if index >= len(self.ends):
            return self._added[index - len(self.ends)]
        if self.null[index]:
            return None
        start = int(self.ends[index - 1]) if index else 0
        return bytes(self._bytes[start : int(self.ends[index])]).decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str | None]:
        return (self[index] for index in range(len(self)))
