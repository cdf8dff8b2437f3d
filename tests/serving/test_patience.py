"""A job that hangs costs its caller a moment, and those after it nothing; what hangs again and again is left alone."""

from __future__ import annotations

import threading
import time

import pytest

from omnifeed.serving.recommend import patience as module
from omnifeed.serving.recommend.patience import Patience

WAIT_S = 0.05


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def hang(patience: Patience[int]) -> None:
    """A job that is given up, and ends afterwards."""
    go = threading.Event()
    with pytest.raises(TimeoutError):
        patience.do(lambda: int(go.wait(10)))
    go.set()
    while patience._late is not None and not patience._late.done():
        time.sleep(0.001)


def test_what_ends_in_time_is_returned_or_raised(clock: Clock) -> None:
    patience = Patience[int](WAIT_S, 1.0)
    assert patience.do(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        patience.do(lambda: 1 // 0)
    assert not patience.resting()


def test_without_a_rest_the_next_job_is_begun_as_soon_as_the_former_ends(clock: Clock) -> None:
    patience = Patience[int](WAIT_S)
    hang(patience)
    assert patience.do(lambda: 7) == 7


def test_each_job_that_hangs_doubles_the_rest_until_one_is_in_time(clock: Clock) -> None:
    patience = Patience[int](WAIT_S, 4 * WAIT_S)
    for rest in (1, 2, 4, 4):
        hang(patience)
        clock.now += (rest - 0.1) * WAIT_S
        begun: list[int] = []
        with pytest.raises(TimeoutError):
            patience.do(lambda begun=begun: begun.append(1) or 1)
        assert patience.resting()
        assert not begun
        clock.now += 0.2 * WAIT_S
        assert not patience.resting()
    assert patience.do(lambda: 7) == 7
    hang(patience)
    clock.now += 1.1 * WAIT_S
    assert patience.do(lambda: 8) == 8
