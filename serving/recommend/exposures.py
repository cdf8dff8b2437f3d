"""The exposure log: what was served, written before the answer leaves. What cannot be written is counted."""

from __future__ import annotations

from omnifeed.home import Home
from omnifeed.serving.recommend.contract import Answer, Request
from omnifeed.serving.recommend.sink import Sink


class ExposureLog:
    """`<home>/experiments/<experiment>/exposures/<server start>-<process>.jsonl`.

    Args:
        started: when the server process started, UTC microseconds.
    """

    def __init__(self, home: Home, started: int) -> None:
        self._sink = Sink(home, "exposures", started)
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
            "latency_ms": round(answer.elapsed_ms, 3),
        }
        lines = [
            {
                **shared,
                "item_id": item,
                "position": position,
                "propensity": answer.propensities[position] if answer.propensities is not None else None,
                "source": answer.sources[position],
                "tail_creator": answer.tail_creators[position],
            }
            for position, item in enumerate(answer.item_ids)
        ]
        written = self._sink.append(answer.experiment, lines)
        self.lost += not written
        return written

    def close(self) -> None:
        """Close the files."""
        self._sink.close()
