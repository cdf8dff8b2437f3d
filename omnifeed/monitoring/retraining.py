"""Whether drift opens a retraining now: not beside a fault, not during a test, and not every day."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omnifeed.config import Config
from omnifeed.experiment.deploy import running_experiment
from omnifeed.home import Home, write_json
from omnifeed.monitoring.served import DAY_US
from omnifeed.monitoring.watch import State, Watch


@dataclass(frozen=True, slots=True)
class Retraining:
    """What follows from an interval."""

    wanted: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def opened_path(home: Home) -> Path:
    """The last retraining that drift opened."""
    return home.root / "monitoring" / "retraining.json"


def retraining(home: Home, config: Config, found: Watch) -> Retraining:
    """Decide; changes nothing.

    Drift that is not acted upon now is found again in the next interval.
    """
    if found.state is State.FAULT:
        return Retraining(False, "A fault is to be mended first: a model trained on it would learn it.")
    if found.state is not State.DRIFT:
        return Retraining(False, "Nothing has drifted beyond its bound.")
    experiment = running_experiment(home)
    if experiment is not None:
        return Retraining(
            False, f"Experiment {experiment.name} is running; drift opens a retraining when it has ended."
        )
    last = _last(home)
    if last is not None and found.now < last["now"] + config.monitoring.retrain_pause_days * DAY_US:
        return Retraining(False, f"Run {last['run']} was opened for drift less than a pause ago.")
    return Retraining(True, f"{len(found.alarms)} of {len(found.checks)} checks drifted beyond their bounds.")


def record_opened(home: Home, run: str, found: Watch) -> None:
    """Remember that a run retrains because of this interval."""
    write_json(opened_path(home), {"run": run, "now": found.now, "release": found.release})


def _last(home: Home) -> dict[str, Any] | None:
    """The last one that came to a comparison; one that broke down before counts as not opened."""
    try:
        last: dict[str, Any] = json.loads(opened_path(home).read_text(encoding="utf-8"))
        compared = json.loads((home.runs / last["run"] / "steps" / "evaluate.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return last if compared.get("state") == "done" else None
