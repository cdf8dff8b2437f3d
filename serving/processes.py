"""Child processes that never outlive their parent, and the ports they listen on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from omnifeed.errors import UnavailableError

HOST = "127.0.0.1"

# Runs in the child before the program: the kernel sends SIGTERM when the parent dies, however it dies (prctl 1 is
# PR_SET_PDEATHSIG, kept across exec). A preexec_fn would do the same and may deadlock in a process with threads.
_LAUNCH = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit(1)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)


#: How Triton, Python's logging, the log of `recommend` and Python itself begin a line about an error.
_ERROR = re.compile(r"E\d{4} |ERROR|CRITICAL|\w*(Error|Exception):|\{.*\"level\": \"(ERROR|CRITICAL)\"")


class Child:
    """One running program, in its own process group, its output in a file.

    The thread that starts it must live as long as it: the kernel counts a thread's end as the parent's.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def stop(self, timeout_s: float) -> None:
        """SIGTERM, wait for what is in flight, then SIGKILL to whatever of its group is left."""
        if self.alive():
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def failure(self, what: str) -> UnavailableError:
        """An error that ends with the last lines of the log."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR.match(line)]  # once each: a server repeats itself while it ends
        tail = "\n".join(dict.fromkeys([*list(dict.fromkeys(errors))[-6:], *lines[-4:]]))
        return UnavailableError(
            f"{self.name} {what}. The last lines of {self.log}:\n{tail}\n", "Mend it and start again."
        )


def free_ports(wanted: Sequence[int]) -> tuple[int, ...]:
    """The wanted ports, each 0 replaced by one that is free.

    Raises:
        UnavailableError: somebody listens on a wanted port.
    """
    with contextlib.ExitStack() as stack:
        chosen = []
        for port in wanted:
            one = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((HOST, port))
            except OSError:
                raise UnavailableError(
                    f"Port {port} of {HOST} is taken.", "Stop who listens there, or choose another port in [serving]."
                ) from None
            chosen.append(one.getsockname()[1])
    return tuple(chosen)


def listening(port: int) -> bool:
    """Whether a connection to the port is accepted."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.settimeout(0.2)
        return one.connect_ex((HOST, port)) == 0
