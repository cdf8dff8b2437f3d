"""Doing what may hang without hanging with it."""

from __future__ import annotations

import threading
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
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._jobs: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
        self._late: Future[T] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], T]) -> T:
        """What the job returns.

        Raises:
            TimeoutError: it was not done in time, and may be done later; or one before it hangs, and it is never done.
            Exception: whatever the job raises.
        """
        if self._late is not None and not self._late.done():
            raise TimeoutError
        done: Future[T] = Future()
        self._jobs.put((done, job))
        try:
            return done.result(self._wait_s)
        except TimeoutError:
            if not done.done() and not done.cancel():
                self._late = done
            raise

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
