"""What one caller may ask of one server process: no flood of one user, no request_id used again for something else.

Memory is bounded: users and request ids that were not heard of for longest are forgotten first. Several replicas count
each for itself, so behind n of them a user may have up to n times the rate.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from omnifeed.config import ServingConfig
from omnifeed.serving.recommend.contract import Refusal, RefusedError, Request

REMEMBERED = 50_000  # users, and as many request ids
REPLAY_S = 600.0  # how long a request_id is remembered


class Limits:
    """Admits or refuses requests.

    Args:
        clock: seconds that never run back.
    """

    def __init__(self, config: ServingConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._lock = threading.Lock()
        self._users: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when that was so
        self._requests: OrderedDict[str, tuple[int, int, float]] = OrderedDict()  # what, how often, since when

    def admit(self, request: Request) -> None:
        """Count a request.

        A client that got no answer asks again with the same request_id and the same request: that is answered.

        Raises:
            RefusedError: it is one too many of its user, or its request_id is not its own or came too often.
        """
        now = self._clock()
        with self._lock:
            if self._config.user_burst:
                self._take(request.user_id, now)
            if self._config.repeats:
                self._recognise(request, now)

    def _take(self, user: str, now: float) -> None:
        left, before = self._users.pop(user, (float(self._config.user_burst), now))
        left = min(self._config.user_burst, left + (now - before) * self._config.user_rate)
        self._users[user] = (max(left - 1, 0.0) if left >= 1 else left, now)
        _forget(self._users)
        if left < 1:
            raise RefusedError(
                Refusal.TOO_MANY,
                f"User {user!r} asks more than {self._config.user_rate:g} times a second.",
                f"Ask again in {(1 - left) / self._config.user_rate:.1f} s.",
            )

    def _recognise(self, request: Request, now: float) -> None:
        what = hash((request.user_id, request.scenario, request.query, request.k, request.arm, request.candidates))
        known, times, since = self._requests.pop(request.request_id, (what, 0, now))
        if now - since > REPLAY_S:
            known, times, since = what, 0, now
        self._requests[request.request_id] = (known, times + 1, since)
        _forget(self._requests)
        if known != what:
            raise RefusedError(
                Refusal.REPLAYED,
                f"The request_id {request.request_id!r} belongs to another request.",
                "Give every request an id of its own.",
            )
        if times > self._config.repeats:
            raise RefusedError(
                Refusal.REPLAYED,
                f"The request_id {request.request_id!r} came {times + 1} times.",
                "Give every request an id of its own.",
            )


def _forget(memory: OrderedDict[str, Any]) -> None:
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)
