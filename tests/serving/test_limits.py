"""What one caller may ask: refused with a sentence on what to do, and forgotten in bounded memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from omnifeed.config import ServingConfig
from omnifeed.serving.recommend import limits
from omnifeed.serving.recommend.contract import INPUT_TYPES, MAX_VALUES, Refusal, RefusedError, Request, check
from omnifeed.serving.recommend.limits import REPLAY_S, Limits
from omnifeed.serving.recommend.tensors import request_from_tensors


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def request(number: int = 0, **fields: object) -> Request:
    return Request(**{"user_id": "u", "scenario": "search", "request_id": f"r{number}", **fields})  # type: ignore[arg-type]


def refusal(guard: Limits, asked: Request) -> Refusal | None:
    try:
        guard.admit(asked)
    except RefusedError as error:
        return error.kind
    return None


def test_a_user_may_burst_and_then_only_as_fast_as_the_rate() -> None:
    clock = Clock()
    guard = Limits(ServingConfig(user_burst=5, user_rate=2.0), clock)
    assert [refusal(guard, request(n)) for n in range(7)] == [None] * 5 + [Refusal.TOO_MANY] * 2
    assert refusal(guard, request(100, user_id="another")) is None
    clock.now += 0.5
    assert [refusal(guard, request(n)) for n in (10, 11)] == [None, Refusal.TOO_MANY]
    clock.now += 1_000
    assert [refusal(guard, request(n)) for n in range(20, 27)] == [None] * 5 + [Refusal.TOO_MANY] * 2


def test_asking_again_is_answered_and_a_replay_is_not() -> None:
    clock = Clock()
    guard = Limits(ServingConfig(repeats=2), clock)
    assert [refusal(guard, request()) for _ in range(4)] == [None, None, None, Refusal.REPLAYED]
    for other in ({"user_id": "v"}, {"scenario": "feed"}, {"query": "lamp"}, {"k": 3}, {"candidates": ("i",)}):
        assert refusal(guard, request(**other)) is Refusal.REPLAYED
    assert refusal(guard, request(1, user_id="v")) is None
    clock.now += REPLAY_S + 1
    assert refusal(guard, request(user_id="v")) is None


def test_zero_means_no_limit() -> None:
    guard = Limits(ServingConfig(user_burst=0, repeats=0), Clock())
    assert not any(refusal(guard, request(k=1 + n % 3)) for n in range(1_000))


def test_memory_is_bounded_and_the_longest_unheard_of_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REMEMBERED", 10)
    guard = Limits(replace(ServingConfig(), repeats=1), Clock())
    for n in range(50):
        guard.admit(request(n, user_id=f"u{n}"))
    assert len(guard._users) == len(guard._requests) == 10
    assert refusal(guard, request(49, user_id="somebody else")) is Refusal.REPLAYED
    assert refusal(guard, request(0, user_id="somebody else")) is None


def texts(*values: bytes) -> np.ndarray:
    return np.array(values, np.object_)


USUAL = {"user_id": texts(b"u"), "scenario": texts(b"search")}


@pytest.mark.parametrize("name", INPUT_TYPES)
def test_an_input_with_too_many_values_is_refused_before_it_is_read(name: str) -> None:
    count = MAX_VALUES.get(name, 1) + 1
    values = np.zeros(count, np.int64) if INPUT_TYPES[name] != "BYTES" else texts(*[b"\xff"] * count)
    with pytest.raises(RefusedError) as refused:
        request_from_tensors({**USUAL, name: values})
    assert refused.value.kind is Refusal.OVERSIZED
    assert name in refused.value.problem


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"user_id": texts(b"\xff")}, Refusal.MALFORMED),
        ({"user_id": texts()}, Refusal.MALFORMED),
        ({"user_id": texts(b"")}, Refusal.MALFORMED),
        ({"user_id": texts(b"x" * 129)}, Refusal.OVERSIZED),
        ({"query": texts(b"x" * 100_001)}, Refusal.OVERSIZED),
        ({"k": np.array([0])}, Refusal.MALFORMED),
        ({"k": np.array([501])}, Refusal.OVERSIZED),
        ({"now": np.array([-1])}, Refusal.MALFORMED),
        ({"history_item": texts(b"i")}, Refusal.MALFORMED),
    ],
)
def test_each_refusal_has_its_kind(tensors: dict[str, np.ndarray], kind: Refusal) -> None:
    with pytest.raises(RefusedError) as refused:
        check(request_from_tensors({**USUAL, **tensors}))
    assert refused.value.kind is kind
