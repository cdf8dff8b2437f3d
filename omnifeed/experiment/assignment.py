"""Which arm a user is in: a pure function of the user, the experiment's salt and the arms' weights.

Standard library only; the server, the traffic and the analysis call the same code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
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
class Stage:
    """A step of a ramp: from when on, and the challenger's share of the users from then on."""

    start_ts: int
    share: float


HELD = "holdback"  # the arm of the users of the hold-back group


@dataclass(frozen=True, slots=True)
class Holdback:
    """The content of holdback.json: users who are shown no tested and no promoted release, in no experiment ever.

    The release that was champion when the group began answers them for good, so that what all promotions since have
    brought together can be read. Its salt is its own: who is in it has nothing to do with any experiment's split.
    """

    salt: str
    share: float  # of all users
    release: str
    start_ts: int  # UTC microseconds

    def holds(self, user_id: str) -> bool:
        """Whether the user is in the group."""
        return unit_interval(self.salt, user_id) < self.share

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; the inverse of `from_dict`."""
        return {"salt": self.salt, "share": self.share, "release": self.release, "start_ts": self.start_ts}

    @staticmethod
    def from_dict(raw: dict[str, Any], source: str = "holdback.json") -> Holdback:
        """Parse and check.

        Raises:
            InputError: a field is missing or malformed.
        """
        try:
            group = Holdback(str(raw["salt"]), float(raw["share"]), str(raw["release"]), int(raw["start_ts"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source}: field {error} is missing or malformed.", "Restore the file.") from error
        if not 0 < group.share < 1 or not group.salt:
            raise InputError(
                f"{source}: the share is {group.share:g}, the salt {group.salt!r}.",
                "Restore the file: who is in the group must stay in it.",
            )
        return group

    @staticmethod
    def load(path: Path) -> Holdback | None:
        """Read holdback.json; None where there is no group."""
        try:
            return Holdback.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}.", "Restore the file.") from error


@dataclass(frozen=True, slots=True)
class Experiment:
    """The content of experiment.json, the one piece of state that routes traffic. Times are UTC microseconds.

    With stages the challenger's share grows; the last stage is the test itself, at the arms' weights. The salt keeps
    arms nested: who has the challenger at 5 % keeps it at 25 %, since the challenger's users are those whose number
    lies highest.
    """

    name: str
    salt: str
    arms: tuple[Arm, ...]
    start_ts: int
    end_ts: int
    config_digest: str  # of the Config whose [experiment] section fixed metrics, margins and horizon beforehand
    stages: tuple[Stage, ...] = ()  # empty: one stage, at the arms' weights from the start
    holdback: Holdback | None = None  # users who are in none of the arms; weights are shares of the others

    def stage(self, ts: int) -> Experiment:
        """The stage that a time falls into, as an experiment of one stage: its weights, its start and end."""
        number = sum(stage.start_ts <= ts for stage in self.stages[1:])
        if not self.stages:
            return self
        now, later = self.stages[number], self.stages[number + 1 :]
        (champion, challenger) = self.arms
        return replace(
            self,
            arms=(replace(champion, weight=1 - now.share), replace(challenger, weight=now.share)),
            start_ts=now.start_ts,
            end_ts=later[0].start_ts if later else self.end_ts,
            stages=(),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; the inverse of `from_dict`."""
        stages = [{"start_ts": stage.start_ts, "share": stage.share} for stage in self.stages]
        return {
            **({"stages": stages} if stages else {}),
            **({"holdback": self.holdback.to_dict()} if self.holdback else {}),
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
            InputError: a field is missing, the weights do not add up to one, the end is not after the start, the
                hold-back group shares the salt, or the stages are no ramp.
        """
        try:
            experiment = Experiment(
                name=str(raw["name"]),
                salt=str(raw["salt"]),
                arms=tuple(Arm(str(arm["name"]), str(arm["release"]), float(arm["weight"])) for arm in raw["arms"]),
                start_ts=int(raw["start_ts"]),
                end_ts=int(raw["end_ts"]),
                config_digest=str(raw["config_digest"]),
                stages=tuple(Stage(int(stage["start_ts"]), float(stage["share"])) for stage in raw.get("stages", ())),
                holdback=Holdback.from_dict(raw["holdback"], source) if "holdback" in raw else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source}: field {error} is missing or malformed.", "Write the file again.") from error
        total = sum(arm.weight for arm in experiment.arms)
        if abs(total - 1) > 1e-9 or any(arm.weight < 0 for arm in experiment.arms):
            raise InputError(
                f"{source}: the arms' weights are {[arm.weight for arm in experiment.arms]} and add up to {total:g}.",
                "Give non-negative weights that add up to 1.",
            )
        if experiment.end_ts <= experiment.start_ts:
            raise InputError(
                f"{source}: the horizon ({experiment.end_ts}) is not after the start ({experiment.start_ts}).",
                "Give end_ts a later time, in UTC microseconds.",
            )
        if experiment.holdback is not None and experiment.holdback.salt == experiment.salt:
            raise InputError(
                f"{source}: the arms and the hold-back group split the users by the same salt {experiment.salt!r}.",
                "Give each a salt of its own: with one salt the group would be cut out of one arm.",
            )
        if experiment.stages and not _is_ramp(experiment):
            raise InputError(
                f"{source}: the stages are no ramp to the arms' weights.",
                "Let the first begin at start_ts, each later one with a larger share, the last with the challenger's "
                "weight; name the champion first, then the challenger.",
            )
        return experiment

    @staticmethod
    def load(path: Path) -> Experiment:
        """Read experiment.json."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}.", "Write the file again.") from error
        return Experiment.from_dict(raw, str(path))


def _is_ramp(experiment: Experiment) -> bool:
    times = [stage.start_ts for stage in experiment.stages]
    shares = [stage.share for stage in experiment.stages]
    return (
        [arm.name for arm in experiment.arms] == ["champion", "challenger"]
        and times[0] == experiment.start_ts
        and sorted(set(times)) == times
        and times[-1] < experiment.end_ts
        and sorted(set(shares)) == shares
        and shares[0] > 0
        and shares[-1] == experiment.arms[1].weight
    )


def unit_interval(salt: str, user_id: str) -> float:
    """A number in [0, 1) from the first 8 bytes of SHA-256(salt, NUL, user), the same in every process."""
    digest = hashlib.sha256(f"{salt}\0{user_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign(experiment: Experiment, user_id: str) -> Arm:
    """The user's arm: the hold-back group's where the user is in it, else the first whose cumulative weight exceeds the
    user's number. With stages, pass one of them.
    """
    if experiment.holdback is not None and experiment.holdback.holds(user_id):
        return Arm(HELD, experiment.holdback.release, experiment.holdback.share)
    point, cumulative = unit_interval(experiment.salt, user_id), 0.0
    for arm in experiment.arms:
        cumulative += arm.weight
        if point < cumulative:
            return arm
    return experiment.arms[-1]
