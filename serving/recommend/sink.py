"""Where a server process appends what it has to say about its answers: JSON lines, one file a process.

One `write` a request to a file opened for appending: a killed process loses nothing that was answered, and lines of two
processes never mix. A thread writes and the request waits for it a moment only, so that a volume that hangs costs no
answer; what is not written by then is the caller's to count. A file is locked while it grows: who ships it elsewhere
(`omnifeed.experiment.shipping`) may remove it once nobody holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from omnifeed.home import Home
from omnifeed.serving.recommend.patience import Patience

#: A write takes far less; a machine so busy that a thread waits for its turn loses nothing by it. While a write hangs,
#: the next requests do not wait at all.
WAIT_S = 0.5
FILE_BYTES = 256 * 2**20  # then a new file: the old one can be shipped to its end and removed
CLOSE_S = 1.0


@dataclass(slots=True)
class _File:
    descriptor: int
    size: int = 0


class Sink:
    """`<home>/experiments/<experiment>/<kind>/<server start>-<process>[-<number>].jsonl`.

    Args:
        kind: the folder's name, `exposures` or `features`.
        started: when the server process started, UTC microseconds.
    """

    def __init__(self, home: Home, kind: str, started: int) -> None:
        self._home, self._kind = home, kind
        self._name = f"{started}-{os.getpid()}"
        self._files: dict[str, _File] = {}
        self._numbers: dict[str, int] = {}  # of the experiment's file, from 0
        self._writer = Patience[None](WAIT_S)

    def append(self, experiment: str, lines: Iterable[Mapping[str, Any]]) -> bool:
        """Write these lines, all or none.

        Returns:
            whether they were written within WAIT_S. Lines of a write that hangs may still arrive later.
        """
        raw = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace")
        try:
            self._writer.do(lambda: self._write(experiment, raw))
        except OSError:  # TimeoutError is one
            return False
        return True

    def close(self) -> None:
        """Close the files; a write that hangs is left behind."""
        self._writer.close(self._close, CLOSE_S)

    def _close(self) -> None:
        for file in self._files.values():
            os.close(file.descriptor)
        self._files.clear()

    def _write(self, experiment: str, raw: bytes) -> None:
        file = self._files.get(experiment) or self._opened(experiment)
        if os.write(file.descriptor, raw) != len(raw):
            os.ftruncate(file.descriptor, file.size)  # a full disk took a part: leave whole lines only
            raise OSError("the disk is full")
        file.size += len(raw)
        if file.size >= FILE_BYTES:
            os.close(self._files.pop(experiment).descriptor)
            self._numbers[experiment] = self._numbers.get(experiment, 0) + 1

    def _opened(self, experiment: str) -> _File:
        folder = self._home.experiments / experiment / self._kind
        folder.mkdir(parents=True, exist_ok=True)
        number = self._numbers.get(experiment, 0)
        path = folder / (f"{self._name}-{number}.jsonl" if number else f"{self._name}.jsonl")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        file = self._files[experiment] = _File(descriptor, os.fstat(descriptor).st_size)
        return file
