"""The client's side of the edge: a request as Triton's tensors, an answer from them, and errors that say what to do.

Shared by the client that waits and the one that awaits.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from omnifeed.errors import InputError, OmnifeedError, UnavailableError
from omnifeed.serving.recommend.contract import ERROR_SEPARATOR, INPUT_TYPES, History, Reason, Source, Stage

MODEL = "recommend"
#: What a server says that is about to stop; another one, or the same a little later, will answer.
DRAINING = "has no available versions"
RETRY_S = 0.1  # pause before a draining server is asked again

# Only what never reached a model, or may reach it twice: a request carries its own id. The throttle stops a client from
# answering an overload with more of it: after a row of failures nothing is retried until answers come again.
_SERVICE = {
    "loadBalancingConfig": [{"round_robin": {}}],
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
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.1},
}
# channel_args replaces tritonclient's own defaults, so the message sizes and the keep-alive stand here as well.
CHANNEL_ARGS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_SERVICE)),
    ("grpc.enable_retries", 1),
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A replica that went away is looked up again and tried again within a second, not within gRPC's two minutes.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


class Options(TypedDict, total=False):
    """What a request may say beside user, scenario and query."""

    k: int  # 1 to 500 items; 10 where absent
    candidates: Sequence[str] | None  # rank these, and only these, instead of retrieving
    arm: str | None  # where your own platform assigns; else by the experiment's hash of the user
    now: int | None  # UTC microseconds; only for a server with a simulated clock
    exclude: Sequence[str]  # items not to be shown
    request_id: str | None  # makes a repetition recognisable; else a random one
    locale: str | None
    device: str | None
    history: History | None  # overrides the stored events
    probe: bool  # answered in full and logged nowhere: for health checks
    deadline_s: float | None  # of this call, retries included
    traceparent: str | None  # W3C trace context, as `opentelemetry.propagate.inject` writes it


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One answer. The lists are parallel; `degraded` says what the answer had to do without."""

    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    sources: tuple[Source, ...]
    propensities: tuple[float | None, ...]  # None unless the slate was sampled
    interstitial: tuple[bool, ...]  # to be shown behind a warning
    degraded: tuple[Reason, ...]
    arm: str
    release: str
    experiment: str
    request_id: str
    stage_ms: dict[Stage, float] = field(default_factory=dict, compare=False)  # where the server's time went


def request_tensors(user_id: str, scenario: str, query: str | None, options: Options) -> list[triton.InferInput]:
    """The inputs of `recommend`; what is not said stays out."""
    history = options.get("history")
    values: dict[str, Any] = {
        "user_id": [user_id],
        "scenario": [scenario],
        "k": [options.get("k", 10)],
        "query": [query] if query is not None else None,
        "candidates": options.get("candidates"),
        "exclude": options.get("exclude") or None,
        "request_id": [options.get("request_id") or uuid.uuid4().hex],
        "history_item": history.items if history is not None else None,
        "history_action": history.actions if history is not None else None,
        "history_scenario": history.scenarios if history is not None else None,
        "history_ts": history.ts if history is not None else None,
        "probe": [True] if options.get("probe") else None,
    }
    for name in ("arm", "now", "locale", "device"):
        value = options.get(name)
        values[name] = [value] if value is not None else None
    return [tensor(name, value, INPUT_TYPES[name]) for name, value in values.items() if value is not None]


def headers(options: Options) -> dict[str, str] | None:
    """gRPC metadata of a request."""
    traceparent = options.get("traceparent")
    return {"traceparent": traceparent} if traceparent else None


def recommendation(result: triton.InferResult) -> Recommendation:
    """The answer in Triton's result."""

    def texts(name: str) -> tuple[str, ...]:
        return tuple(value.decode() for value in result.as_numpy(name))

    return Recommendation(
        item_ids=texts("item_ids"),
        scores=tuple(float(value) for value in result.as_numpy("scores")),
        sources=tuple(Source(value) for value in texts("sources")),
        propensities=tuple(None if np.isnan(value) else float(value) for value in result.as_numpy("propensities")),
        interstitial=tuple(bool(value) for value in result.as_numpy("interstitial")),
        degraded=tuple(Reason(value) for value in texts("degraded")),
        arm=texts("arm")[0],
        release=texts("release")[0],
        experiment=texts("experiment")[0],
        request_id=texts("request_id")[0],
        stage_ms={
            stage: float(ms) for stage, ms in zip(Stage, result.as_numpy("stage_ms"), strict=True) if not np.isnan(ms)
        },
    )


def translated(error: InferenceServerException, url: str) -> OmnifeedError:
    """What went wrong and what to do, as the server said it or as gRPC's code means it."""
    problem, _, action = str(error.message()).partition(ERROR_SEPARATOR)
    status = str(error.status())
    if "INVALID_ARGUMENT" in status:
        return InputError(problem, action or "Correct the request.")
    if "UNAVAILABLE" in status or "DEADLINE_EXCEEDED" in status or "NOT_FOUND" in status:
        if action:
            return UnavailableError(problem, action)
        if "DEADLINE_EXCEEDED" in status:
            return UnavailableError(
                f"The server at {url} did not answer within the deadline.",
                "Ask again, with the same request_id; if it lasts, allow more time or add replicas.",
            )
        return UnavailableError(
            f"The server at {url} did not answer: {problem}.", "Start it (omnifeed serve), or ask again."
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
