"""Doing what may hang without hanging with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Patience(Generic[T]):
    """One thread that does what it is asked, in order, for callers who wait a moment only.

    While something that was given up still hangs, nothing else is begun and nobody waits.

    Args:
        wait_s: how long a caller waits.
        rest_s: longest rest. Of jobs that hang in a row, the first is followed by a rest of wait_s, and each further
            one by twice the rest before, in which nothing is begun either.
    """

    def __init__(self, wait_s: float, rest_s: float = 0.0) -> None:
        self._wait_s, self._longest_s = wait_s, rest_s
        self._rest_s, self._until = 0.0, 0.0
        self._jobs: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
        self._late: Future[T] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], T]) -> T:
        """What the job returns.

        Raises:
            TimeoutError: it was not done in time, and may be done later; or one before it hangs, or has made the rest
                necessary, and it is never done.
            Exception: whatever the job raises.
        """
        if self.resting():
            raise TimeoutError
        done: Future[T] = Future()
        self._jobs.put((done, job))
        try:
            result = done.result(self._wait_s)
        except TimeoutError:
            if not done.done() and not done.cancel():
                self._late = done
                self._rest_s = min(2 * self._rest_s or self._wait_s, self._longest_s)
                self._until = time.monotonic() + self._rest_s
            raise
        self._rest_s = 0.0
        return result

    def resting(self) -> bool:
        """Whether nothing would be begun now."""
        return (self._late is not None and not self._late.done()) or time.monotonic() < self._until

    def close(self, last: Callable[[], T], timeout_s: float) -> None:
        """End the thread, with a last job; after so long, what hangs is left behind."""
        self._jobs.put((Future(), last))
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (asked := self._jobs.get()) is not None:
            done, job = asked
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(job())
            except BaseException as error:
                done.set_exception(error)
