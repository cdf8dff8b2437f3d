"""The exposure log: what was served, written before the answer leaves.

One file a server process and experiment, opened for appending, one `write` a request: a killed process loses nothing
that was answered, and lines of two processes never mix. What cannot be written is counted, never waited for.
"""

from __future__ import annotations

import json
import os

from omnifeed.home import Home
from omnifeed.serving.recommend.contract import Answer, Request


class ExposureLog:
    """`<home>/experiments/<experiment>/exposures/<server start>-<process>.jsonl`.

    Args:
        started: when the server process started, UTC microseconds.
    """

    def __init__(self, home: Home, started: int) -> None:
        self._home = home
        self._name = f"{started}-{os.getpid()}.jsonl"
        self._files: dict[str, int] = {}
        self.lost = 0  # requests whose exposures could not be written

    def append(self, request: Request, answer: Answer, query: str | None, ts: int) -> bool:
        """Write one line an item. Returns whether they were written.

        Args:
            query: as it was used (truncated).
            ts: of the request, UTC microseconds.
        """
        shared = {
            "request_id": answer.request_id,
            "user_id": request.user_id,
            "scenario": request.scenario,
            "query": query,
            "arm": answer.arm,
            "release": answer.release,
            "experiment": answer.experiment,
            "ts": ts,
            "degraded": list(answer.degraded),
            "locale": request.locale,
            "device": request.device,
        }
        lines = [
            {
                **shared,
                "item_id": item,
                "position": position,
                "propensity": answer.propensities[position] if answer.propensities is not None else None,
                "source": answer.sources[position],
            }
            for position, item in enumerate(answer.item_ids)
        ]
        raw = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace")
        try:
            self._write(answer.experiment, raw)
        except OSError:
            self.lost += 1
            return False
        return True

    def _write(self, experiment: str, raw: bytes) -> None:
        descriptor = self._files.get(experiment)
        if descriptor is None:
            folder = self._home.experiments / experiment / "exposures"
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
