"""The server's log: one JSON object a line, with a request's id and without what a user is or typed.

Refused and slow requests are named by their request_id; user ids, queries and items stay out, and so do the messages
of exceptions, which may quote them: a fault is its type and the places in the code.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from omnifeed.serving.recommend.contract import MAX_ID_CHARS, Answer, Request, Stage

log = logging.getLogger(__name__)

PER_SECOND = 20  # lines of one logger and process; what is beyond is counted in the next line that passes
SLOW_MS = 500.0  # a request that takes longer is logged with its stages


class JsonFormatter(logging.Formatter):
    """ts (UTC seconds), level, logger, message, and what was given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info is not None and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__
            line["at"] = [f"{one.name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)]
        return json.dumps(line, ensure_ascii=False, default=str)


class Flood(logging.Filter):
    """Lets so many lines a second pass; a later line says how many did not."""

    def __init__(self, per_second: int = PER_SECOND) -> None:
        super().__init__()
        self._per_second = per_second
        self._second, self._passed, self._left_out = 0, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line passes."""
        second = int(record.created)
        if second != self._second:
            self._second, self._passed = second, 0
        if self._passed >= self._per_second:
            self._left_out += 1
            return False
        self._passed += 1
        if self._left_out:
            record.fields = {**getattr(record, "fields", {}), "left_out": self._left_out}
            self._left_out = 0
        return True


def named(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """`extra` that names a request by its id, where it gave one."""
    given = tensors.get("request_id")
    raw = given.reshape(-1)[0] if given is not None and given.size else b""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
    return {"fields": {"request_id": text[:MAX_ID_CHARS]}}


def note_slow(request: Request, answer: Answer) -> None:
    """Log a slow answer with its stages."""
    total = answer.stages.get(Stage.TOTAL, 0.0)
    if total < SLOW_MS:
        return
    fields = {
        "request_id": request.request_id,
        "arm": answer.arm,
        "release": answer.release,
        "experiment": answer.experiment,
        "degraded": list(answer.degraded),
        "stage_ms": {stage.value: round(ms, 1) for stage, ms in answer.stages.items()},
    }
    log.warning("slow answer", extra={"fields": fields})


def start() -> None:
    """Send every logger of this process to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(Flood())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
