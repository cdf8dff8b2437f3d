"""One error base: what is wrong, and what to do about it.

`retryable` tells a scheduler whether the same call may succeed later (a busy port, a slow server) or never will
(a missing column). A verdict that is merely unwelcome - worse than the champion, HOLD, REJECT - is data, not an error.
"""

from __future__ import annotations


class OmnifeedError(Exception):
    """Base of every error a user may meet.

    Args:
        problem: one sentence that names what is wrong (file, row, field).
        action: one sentence that names what to do.
    """

    retryable = False
    exit_code = 1

    def __init__(self, problem: str, action: str) -> None:
        super().__init__(f"{problem} {action}")
        self.problem = problem
        self.action = action

    def __reduce__(self) -> tuple[type[OmnifeedError], tuple[str, str]]:
        return type(self), (self.problem, self.action)


class InputError(OmnifeedError):
    """The caller's input cannot be used: configuration, table, argument, request."""

    exit_code = 2


class ContractBreach(InputError):  # noqa: N818
    """Data broke its contract badly enough to stop the pipeline before training."""


class IntegrityError(OmnifeedError):
    """Stored state is not what it was: a hash differs, a file is missing, a log was edited."""


class ConflictError(OmnifeedError):
    """Somebody else holds the lock or moved the pointer first."""

    retryable = True


class UnavailableError(OmnifeedError):
    """A server or a resource did not answer in time."""

    retryable = True
