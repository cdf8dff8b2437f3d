"""Takes a model whose process has died out of Triton and puts it in again.

A Python model's process that crashed is not started again by Triton 2.51: every call of it waits a second and fails,
while all health endpoints stay at 200. Whoever watches a server (`LocalServer.watch`, the canary of a pod) looks here
every second or two.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from omnifeed.serving.recommend.contract import DEAD, INPUT_TYPES
from omnifeed.serving.wire import MODEL, tensor

log = logging.getLogger(__name__)

DEADLINE_S = 5.0
LOAD_S = 60.0
PAUSE_S, LONGEST_S = 5.0, 300.0  # between two tries of the same model; doubled each time
ASKED = 3  # probes at once: one more than instances, so that one waits for whichever is free next
SLOW_NS = 500_000_000  # of failed calls between two looks; a refusal takes a thousandth of it
SUSPECT_S = 2.5
PROBE = {"user_id": ["canary"], "scenario": ["canary"], "k": [1], "probe": [True]}  # logged nowhere, of an unknown user


def probe(client: InferenceServerClient) -> None:
    """Ask `recommend` for one real answer. Raises InferenceServerException where there is none."""
    inputs = [tensor(name, value, INPUT_TYPES[name]) for name, value in PROBE.items()]
    client.infer(MODEL, inputs, client_timeout=DEADLINE_S)


@dataclass(frozen=True, slots=True)
class _Calls:
    """Of one model."""

    answered: int
    failed: int
    failed_ns: int  # the time that these took

    def since(self, before: _Calls) -> _Calls:
        """The calls after those."""
        return _Calls(self.answered - before.answered, self.failed - before.failed, self.failed_ns - before.failed_ns)


class Healer:
    """Watches one server.

    Args:
        headers: gRPC metadata that the server's restricted model-repository protocol asks for.
        clock: seconds that never run back.
    """

    def __init__(
        self,
        client: InferenceServerClient,
        headers: dict[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._headers, self._clock = client, headers, clock
        self._counts: dict[str, _Calls] = {}  # by model
        self._pauses: dict[str, tuple[float, float]] = {}  # by model: not before, and the pause after that

    def look(self) -> tuple[str, ...]:
        """Reload what is dead; returns the models' names. A server that does not answer at all is left alone.

        A release's model is only asked by `recommend`: when all of its calls since the last look have failed, it is
        dead. Failures of `recommend` may be its callers' fault, so it is asked itself, and for longer when calls of it
        took long to fail: one of its instances may live, and the dead one be held by a caller for a second a time.
        """
        before = self._counts
        try:
            statistics = self._client.get_inference_statistics(client_timeout=DEADLINE_S).model_stats
            self._counts = {
                one.name: _Calls(
                    one.inference_stats.success.count, one.inference_stats.fail.count, one.inference_stats.fail.ns
                )
                for one in statistics
            }
            since = {name: calls.since(before[name]) for name, calls in self._counts.items() if name in before}
            own = since.pop(MODEL, _Calls(0, 0, 0))
            dead = [name for name, calls in since.items() if calls.failed > 0 >= calls.answered]
            if self._gone(SUSPECT_S if own.failed_ns > SLOW_NS else 0.0):
                dead.append(MODEL)
        except InferenceServerException:
            return ()
        return tuple(name for name in dead if self._reloaded(name))

    def _gone(self, seconds: float) -> bool:
        """Whether a process of `recommend` is gone, asked in rounds for so long."""

        def asked(_: int) -> bool:
            try:
                probe(self._client)
            except InferenceServerException as error:
                return DEAD in str(error.message())
            return False

        end = self._clock() + seconds
        with ThreadPoolExecutor(ASKED) as several:
            while not any([*several.map(asked, range(ASKED))]):
                if self._clock() >= end:
                    return False
        return True

    def _reloaded(self, name: str) -> bool:
        due, pause = self._pauses.get(name, (0.0, PAUSE_S))
        if self._clock() < due:
            return False
        self._pauses[name] = self._clock() + pause, min(2 * pause, LONGEST_S)
        try:
            self._client.unload_model(name, headers=self._headers, client_timeout=LOAD_S)
            self._client.load_model(name, headers=self._headers, client_timeout=LOAD_S)
        except InferenceServerException as error:
            log.error("%s has died and cannot be loaded again: %s", name, error.message())
            return False
        log.warning("%s had died and was loaded again", name)
        return True
