"""Requests as a hostile or careless caller may send them: every input of `recommend`, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from export.releases import config
from hypothesis import strategies as st

from omnifeed.errors import InputError, OmnifeedError, UnavailableError
from omnifeed.export.encode import ACTIONS
from omnifeed.serving.recommend.contract import MAX_K, Answer, Request
from omnifeed.serving.recommend.tensors import answer_tensors, request_from_tensors

Tensors = dict[str, Any]

#: Limits by user and request_id are for test_limits: here they would refuse what is meant to be answered.
UNLIMITED = replace(config().serving, user_burst=0, repeats=0)


def _bytes(*values: bytes) -> Any:
    return np.array(values, np.object_)


def _texts(values: st.SearchStrategy[bytes], low: int, high: int) -> st.SearchStrategy[Any]:
    return st.lists(values, min_size=low, max_size=high).map(lambda drawn: _bytes(*drawn))


def _numbers(values: st.SearchStrategy[int], low: int, high: int, kind: Any) -> st.SearchStrategy[Any]:
    return st.lists(values, min_size=low, max_size=high).map(lambda drawn: np.array(drawn, kind))


@st.composite
def tensors(draw: st.DrawFn, now: int, items: list[str], scenarios: list[str]) -> Tensors:
    """A request that could be right, in which up to three inputs are then anything at all: any bytes, any numbers."""
    word = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20).map(str.encode)
    item = st.sampled_from([one.encode() for one in items]) | word
    scenario = st.sampled_from([one.encode() for one in scenarios]) | word
    ts = st.integers(now - 10**12, now + 10**6)
    events = draw(st.integers(0, 6))
    right: dict[str, st.SearchStrategy[Any]] = {
        "user_id": _texts(st.sampled_from([b"known", b"nobody"]) | word, 1, 1),
        "scenario": _texts(scenario, 1, 1),
        "k": _numbers(st.integers(1, MAX_K), 1, 1, np.int32),
        "query": _texts(st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore")), 1, 1),
        "candidates": _texts(item, 0, 30),
        "exclude": _texts(item, 0, 30),
        "arm": _texts(st.sampled_from([b"champion", b"challenger"]), 1, 1),
        "now": _numbers(st.just(now) | ts, 1, 1, np.int64),
        "request_id": _texts(st.uuids().map(lambda value: value.hex.encode()), 1, 1),
        "locale": _texts(st.just(b"de-AT") | word, 1, 1),
        "device": _texts(word, 1, 1),
        "probe": st.booleans().map(lambda value: np.array([value])),
    }
    history: dict[str, st.SearchStrategy[Any]] = {
        "history_item": _texts(item, events, events),
        "history_action": _texts(st.sampled_from([one.encode() for one in ACTIONS]), events, events),
        "history_scenario": _texts(scenario, events, events),
        "history_ts": _numbers(ts | st.integers(0, 2**61 - 1), events, events, np.int64),
    }
    required = {name: right.pop(name) for name in ("user_id", "scenario")}
    given = draw(st.fixed_dictionaries(required, optional=right))
    if draw(st.booleans()):
        given |= draw(st.fixed_dictionaries(history))
    text = st.text(max_size=40).map(lambda value: value.encode("utf-8", "surrogatepass"))
    long = st.integers(100, 100_001).map(lambda size: b"x" * size)
    wrong = _texts(st.binary(max_size=40) | text | long, 0, 3)
    numbers = {"k": np.int32, "now": np.int64, "history_ts": np.int64}
    for name in draw(st.lists(st.sampled_from([*required, *right, *history]), max_size=3, unique=True)):
        if name in numbers:
            bounds = np.iinfo(numbers[name])
            given[name] = draw(_numbers(st.integers(int(bounds.min), int(bounds.max)), 0, 3, numbers[name]))
        elif name != "probe":
            given[name] = draw(wrong)
    return given


def answered(
    recommend: Callable[[Request], Answer], given: Tensors, eligible: Callable[[int], set[str]], now: int
) -> str:
    """Ask, and hold the answer to what every answer promises.

    Returns:
        `answered`, or the name of the documented refusal.
    """
    try:
        request = request_from_tensors(given)
        answer = recommend(request)
    except (InputError, UnavailableError) as refusal:
        said: OmnifeedError | None = refusal
    else:
        said = None
    if said is not None:
        assert said.problem
        assert said.action
        return type(said).__name__
    outputs = answer_tensors(answer)
    assert len(answer.item_ids) == len(set(answer.item_ids)) <= request.k
    lengths = {len(outputs[name]) for name in ("item_ids", "scores", "sources", "propensities", "interstitial")}
    assert lengths == {len(answer.item_ids)}
    assert np.isfinite(outputs["scores"]).all()
    shown = set(answer.item_ids)
    assert not shown & set(request.exclude)
    assert shown <= eligible(request.now if request.now is not None else now)
    if request.candidates is not None:
        assert shown <= set(request.candidates)
    return "answered"
