"""Which arm a user is in: a pure function of the user, the experiment's salt and the arms' weights.

Standard library only; the server, the traffic and the analysis call the same code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnifeed.errors import InputError


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of an experiment: the release that answers it, and its share of the users."""

    name: str  # "champion" or "challenger"
    release: str
    weight: float


@dataclass(frozen=True, slots=True)
class Experiment:
    """The content of experiment.json, the one piece of state that routes traffic. Times are UTC microseconds."""

    name: str
    salt: str
    arms: tuple[Arm, ...]
    start_ts: int
    end_ts: int
    config_digest: str  # of the Config whose [experiment] section fixed metrics, margins and horizon beforehand

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; the inverse of `from_dict`."""
        return {
            "name": self.name,
            "salt": self.salt,
            "arms": [{"name": arm.name, "release": arm.release, "weight": arm.weight} for arm in self.arms],
            "start_ts": self.start_ts,
            "end_ts": self.end_ts,
            "config_digest": self.config_digest,
        }

    @staticmethod
    def from_dict(raw: dict[str, Any], source: str = "experiment.json") -> Experiment:
        """Parse and check.

        Raises:
            InputError: a field is missing, or the weights do not add up to one.
        """
        try:
            experiment = Experiment(
                name=str(raw["name"]),
                salt=str(raw["salt"]),
                arms=tuple(Arm(str(arm["name"]), str(arm["release"]), float(arm["weight"])) for arm in raw["arms"]),
                start_ts=int(raw["start_ts"]),
                end_ts=int(raw["end_ts"]),
                config_digest=str(raw["config_digest"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source}: field {error} is missing or malformed.", "Write the file again.") from error
        total = sum(arm.weight for arm in experiment.arms)
        if abs(total - 1) > 1e-9 or any(arm.weight < 0 for arm in experiment.arms):
            raise InputError(
                f"{source}: the arms' weights are {[arm.weight for arm in experiment.arms]} and add up to {total:g}.",
                "Give non-negative weights that add up to 1.",
            )
        return experiment

    @staticmethod
    def load(path: Path) -> Experiment:
        """Read experiment.json."""
        return Experiment.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))


def unit_interval(salt: str, user_id: str) -> float:
    """A number in [0, 1) from the first 8 bytes of SHA-256(salt, NUL, user), the same in every process."""
    digest = hashlib.sha256(f"{salt}\0{user_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign(experiment: Experiment, user_id: str) -> Arm:
    """The user's arm: the first whose cumulative weight exceeds the user's number."""
    point, cumulative = unit_interval(experiment.salt, user_id), 0.0
    for arm in experiment.arms:
        cumulative += arm.weight
        if point < cumulative:
            return arm
    return experiment.arms[-1]
