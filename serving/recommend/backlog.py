"""How many requests wait for `recommend`, and which of them are refused at once.

Triton 2.51 has no queue that refuses without stalling (docs/decisions/0006), and a model does not see its own queue.
The server's metrics do, so each process looks there while it is busy. What waits beyond the limit is refused as it
comes up, without work: the callers who have waited longest hear that they should ask again, and those behind them are
answered in time.
"""

from __future__ import annotations

import http.client
import re

LOOK_S = 0.25
TIMEOUT_S = 1.0
_WAITING = re.compile(rb'^nv_inference_pending_request_count\{model="recommend"[^}]*\} (\S+)$', re.M)


class Backlog:
    """Of one process; one thread looks, another refuses.

    Args:
        address: host:port of Triton's metrics.
        limit: requests that may wait for the model.
        instances: processes that share what is to be refused.
    """

    def __init__(self, address: str, limit: int, instances: int) -> None:
        self._address, self._limit, self._instances = address, limit, instances
        self._busy = False
        self._excess = 0

    def look(self) -> None:
        """Read how many wait, if anybody asked since the last look.

        Raises:
            OSError: the metrics cannot be read; nothing is refused.
        """
        self._excess = 0
        if not self._busy:
            return
        self._busy = False
        connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
        try:
            connection.request("GET", "/metrics")
            waiting = sum(float(value) for value in _WAITING.findall(connection.getresponse().read()))
        finally:
            connection.close()
        self._excess = max(0, round((waiting - self._limit) / self._instances))

    def refuses(self) -> bool:
        """Whether the request that has come up is one too many."""
        self._busy = True
        if self._excess <= 0:
            return False
        self._excess -= 1
        return True
