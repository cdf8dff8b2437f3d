"""Between Triton's tensors and `Request` and `Answer`: both directions of the edge, on the server's side."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.serving.recommend.contract import (
    MAX_QUERY_BYTES,
    MAX_VALUES,
    Answer,
    History,
    Refusal,
    RefusedError,
    Request,
    Stage,
)

Array = npt.NDArray[Any]


def request_from_tensors(tensors: Mapping[str, Array]) -> Request:
    """A request; an empty string of an optional input counts as absent, a missing request_id gets a random one.

    Sizes are looked at before anything is decoded.

    Raises:
        RefusedError: a tensor holds more or fewer values than it may, or is not UTF-8.
    """
    for name, tensor in tensors.items():
        limit = MAX_VALUES.get(name, 1)
        if tensor.size > limit:
            raise RefusedError(Refusal.OVERSIZED, f"{name} has {tensor.size:,} values.", f"Send at most {limit:,}.")

    def one(name: str) -> Any:
        tensor = tensors.get(name)
        if tensor is None:
            return None
        if tensor.size != 1:
            kind = Refusal.OVERSIZED if tensor.size else Refusal.MALFORMED
            raise RefusedError(kind, f"{name} has {tensor.size} values.", "Send one.")
        return tensor.reshape(-1)[0]

    def text(name: str) -> str | None:
        value = one(name)
        return _decoded(name, value) or None if value is not None else None

    def texts(name: str) -> tuple[str, ...] | None:
        tensor = tensors.get(name)
        return None if tensor is None else tuple(_decoded(name, value) for value in tensor.reshape(-1))

    def number(name: str) -> int | None:
        value = one(name)
        return None if value is None else int(value)

    history = None
    items = texts("history_item")
    if items is not None:
        history = History(
            items=items,
            actions=texts("history_action") or (),
            scenarios=texts("history_scenario") or (),
            ts=tuple(int(value) for value in tensors.get("history_ts", np.zeros(0, np.int64)).reshape(-1)),
        )
    k = number("k")
    return Request(
        user_id=text("user_id") or "",
        scenario=text("scenario") or "",
        request_id=text("request_id") or uuid.uuid4().hex,
        k=10 if k is None else k,
        query=text("query"),
        candidates=texts("candidates"),
        exclude=texts("exclude") or (),
        arm=text("arm"),
        now=number("now"),
        locale=text("locale"),
        device=text("device"),
        history=history,
        probe=bool(one("probe")),
    )


def answer_tensors(answer: Answer) -> dict[str, Array]:
    """The output tensors, in the order of the configuration."""
    count = len(answer.item_ids)
    propensities = answer.propensities if answer.propensities is not None else [np.nan] * count
    return {
        "item_ids": _texts(*answer.item_ids),
        "scores": np.array(answer.scores, np.float32),
        "sources": _texts(*answer.sources),
        "propensities": np.array(propensities, np.float32),
        "interstitial": np.array(answer.interstitial, np.bool_),
        "degraded": _texts(*answer.degraded),
        "arm": _texts(answer.arm),
        "release": _texts(answer.release),
        "experiment": _texts(answer.experiment),
        "request_id": _texts(answer.request_id),
        "stage_ms": np.array([answer.stages.get(stage, np.nan) for stage in Stage], np.float32),
    }


def _texts(*values: str) -> Array:
    return np.array([str(value).encode() for value in values], np.object_)


def _decoded(name: str, value: Any) -> str:
    raw = value if isinstance(value, bytes) else str(value).encode()
    if len(raw) > MAX_QUERY_BYTES:
        problem = f"{name} has more than {MAX_QUERY_BYTES:,} bytes."
        raise RefusedError(Refusal.OVERSIZED, problem, "Send a shorter one.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(Refusal.MALFORMED, f"{name} is not UTF-8.", "Send UTF-8 text.") from None
