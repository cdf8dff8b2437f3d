"""What a step leaves behind for a person: its state, duration, progress and numbers in `runs/<run>/steps/<step>.json`.

Kubeflow's local runner keeps no history, and an exception in a step reaches the caller as a bare failure. This file is
where the report, the command line's progress and its error sentences come from, locally and on a cluster alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnifeed.errors import OmnifeedError
from omnifeed.home import Home, write_json

_WRITE_EVERY_S = 0.3


@dataclass
class StepRecord:
    """One step's record; `info` is what the report shows of it."""

    run: str
    folder: Path  # of the run
    step: str
    started: float
    info: dict[str, Any] = field(default_factory=dict)
    _written: float = 0.0

    def progress(self, label: str, done: int, total: int) -> None:
        """Say how far the step is; written at most every 0.3 s."""
        if time.monotonic() - self._written > _WRITE_EVERY_S:
            self._written = time.monotonic()
            self.write("running", label=label, done=int(done), total=int(total))

    def write(self, state: str, **more: Any) -> None:
        """Write the record with its duration so far, in seconds."""
        body = {
            "step": self.step,
            "state": state,
            "started": self.started,
            "seconds": round(time.time() - self.started, 3),
            "info": self.info,
        }
        write_json(self.folder / "steps" / f"{self.step}.json", {**body, **more})


@contextmanager
def recording(home: str, run_id: str, step: str) -> Iterator[StepRecord]:
    """Record a step from start to end; an OmnifeedError is recorded with its two sentences and raised again.

    No run starts in this home while the step works.

    Args:
        run_id: the run's name; empty on a cluster, where recurring runs share their arguments and Kubeflow's own id of
            the run is taken from OMNIFEED_RUN.
    """
    run, state = run_id or os.environ["OMNIFEED_RUN"], Home(Path(home))
    record = StepRecord(run, state.runs / run, step, time.time())
    with state.step():
        record.write("running")
        try:
            yield record
        except OmnifeedError as error:
            record.write("failed", error=type(error).__name__, problem=error.problem, action=error.action)
            raise
        except Exception as error:
            record.write("failed", error=type(error).__name__, problem=f"{step}: {error}", action="See the run's log.")
            raise
        record.write("done")
