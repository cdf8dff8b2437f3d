"""A typed client of `recommend` over gRPC: deadlines, retries of what is safe, errors that say what to do.

A request carries its own id, so that one sent twice is logged twice under the same id and counted once; only an
unavailable server is asked again.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from omnifeed.errors import InputError, OmnifeedError, UnavailableError
from omnifeed.serving.recommend.contract import ERROR_SEPARATOR, INPUT_TYPES, History, Reason, Source

MODEL = "recommend"
#: What a server says that is about to stop; another one, or the same a little later, will answer.
DRAINING = "has no available versions"
RETRY_S = 0.1  # pause before a draining server is asked again

_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
# channel_args replaces tritonclient's own defaults, so the message sizes and the keep-alive stand here as well.
CHANNEL_ARGS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.enable_retries", 1),
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One answer. The four lists are parallel; `degraded` says what the answer had to do without."""

    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    sources: tuple[Source, ...]
    propensities: tuple[float | None, ...]  # None unless the slate was sampled
    degraded: tuple[Reason, ...]
    arm: str
    release: str
    experiment: str
    request_id: str


class Client:
    """One gRPC channel; safe to share between threads.

    Args:
        url: host:port of the server's gRPC.
        deadline_s: of a whole call, retries included.
    """

    def __init__(self, url: str, deadline_s: float = 2.0) -> None:
        self._url = url
        self._deadline_s = deadline_s
        self._triton: triton.InferenceServerClient | None = triton.InferenceServerClient(url, channel_args=CHANNEL_ARGS)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel, and let go of it: tritonclient closes again, noisily, when the interpreter ends."""
        if self._triton is not None:
            self._triton.close()
            self._triton = None

    def recommend(
        self,
        user_id: str,
        scenario: str,
        query: str | None = None,
        k: int = 10,
        candidates: Sequence[str] | None = None,
        arm: str | None = None,
        now: int | None = None,
        exclude: Sequence[str] = (),
        request_id: str | None = None,
        locale: str | None = None,
        device: str | None = None,
        history: History | None = None,
        probe: bool = False,
        deadline_s: float | None = None,
    ) -> Recommendation:
        """Ask for a slate.

        Args:
            query: what the user typed; None outside search.
            k: 1 to 500 items.
            candidates: rank these, and only these, instead of retrieving.
            arm: where your own platform assigns; None: by the experiment's hash of the user.
            now: UTC microseconds; only for a server with a simulated clock.
            exclude: items not to be shown.
            request_id: makes a repetition recognisable; None: a random one.
            history: overrides the stored events.
            probe: answered in full and logged nowhere; for health checks.
            deadline_s: of this call.

        Raises:
            InputError: the server refused the request.
            UnavailableError: no answer within the deadline; asking again is safe with the same request_id.
            OmnifeedError: the server failed.
        """
        values: dict[str, Any] = {
            "user_id": [user_id],
            "scenario": [scenario],
            "k": [k],
            "query": [query] if query is not None else None,
            "candidates": candidates,
            "exclude": exclude or None,
            "arm": [arm] if arm is not None else None,
            "now": [now] if now is not None else None,
            "request_id": [request_id or uuid.uuid4().hex],
            "locale": [locale] if locale is not None else None,
            "device": [device] if device is not None else None,
            "history_item": history.items if history is not None else None,
            "history_action": history.actions if history is not None else None,
            "history_scenario": history.scenarios if history is not None else None,
            "history_ts": history.ts if history is not None else None,
            "probe": [True] if probe else None,
        }
        inputs = [tensor(name, value, INPUT_TYPES[name]) for name, value in values.items() if value is not None]
        result = self._infer(inputs, deadline_s or self._deadline_s)

        def texts(name: str) -> tuple[str, ...]:
            return tuple(value.decode() for value in result.as_numpy(name))

        return Recommendation(
            item_ids=texts("item_ids"),
            scores=tuple(float(value) for value in result.as_numpy("scores")),
            sources=tuple(Source(value) for value in texts("sources")),
            propensities=tuple(None if np.isnan(value) else float(value) for value in result.as_numpy("propensities")),
            degraded=tuple(Reason(value) for value in texts("degraded")),
            arm=texts("arm")[0],
            release=texts("release")[0],
            experiment=texts("experiment")[0],
            request_id=texts("request_id")[0],
        )

    def _infer(self, inputs: list[triton.InferInput], deadline_s: float) -> triton.InferResult:
        if self._triton is None:
            raise OmnifeedError("This client is closed.", "Make another.")
        end = time.monotonic() + deadline_s
        while True:
            left = end - time.monotonic()
            try:
                return self._triton.infer(MODEL, inputs, client_timeout=max(left, 0.001))
            except InferenceServerException as error:
                if DRAINING not in str(error.message()) or time.monotonic() + RETRY_S >= end:
                    raise self._translated(error) from None
                time.sleep(RETRY_S)

    def _translated(self, error: InferenceServerException) -> OmnifeedError:
        problem, _, action = str(error.message()).partition(ERROR_SEPARATOR)
        status = str(error.status())
        if "INVALID_ARGUMENT" in status:
            return InputError(problem, action or "Correct the request.")
        if "UNAVAILABLE" in status or "DEADLINE_EXCEEDED" in status or "NOT_FOUND" in status:
            if action:
                return UnavailableError(problem, action)
            return UnavailableError(
                f"The server at {self._url} did not answer: {problem}.", "Start it (omnifeed serve), or ask again."
            )
        return OmnifeedError(problem, action or "See the server's log.")


def tensor(name: str, value: Sequence[Any], kind: str) -> triton.InferInput:
    """A one-dimensional input tensor of a Triton type."""
    if kind == "BYTES":
        array = np.array([str(one).encode("utf-8", "surrogatepass") for one in value], np.object_)
    else:
        array = np.array(value, {"INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}[kind])
    result = triton.InferInput(name, [len(array)], kind)
    result.set_data_from_numpy(array)
    return result
