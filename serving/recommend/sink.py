"""Where a server process appends what it has to say about its answers: JSON lines, one file a process.

One `write` a request to a file opened for appending: a killed process loses nothing that was answered, and lines of two
processes never mix. What cannot be written is the caller's to count, never waited for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from omnifeed.home import Home


class Sink:
    """`<home>/experiments/<experiment>/<kind>/<server start>-<process>.jsonl`.

    Args:
        kind: the folder's name, `exposures` or `features`.
        started: when the server process started, UTC microseconds.
    """

    def __init__(self, home: Home, kind: str, started: int) -> None:
        self._home, self._kind = home, kind
        self._name = f"{started}-{os.getpid()}.jsonl"
        self._files: dict[str, int] = {}

    def append(self, experiment: str, lines: Iterable[Mapping[str, Any]]) -> bool:
        """Write these lines, all or none. Returns whether they were written."""
        raw = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace")
        try:
            self._write(experiment, raw)
        except OSError:
            return False
        return True

    def _write(self, experiment: str, raw: bytes) -> None:
        descriptor = self._files.get(experiment)
        if descriptor is None:
            folder = self._home.experiments / experiment / self._kind
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / self._name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._files[experiment] = descriptor
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, raw) != len(raw):
            os.ftruncate(descriptor, size)  # a full disk took a part: leave whole lines only
            raise OSError("the disk is full")

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
