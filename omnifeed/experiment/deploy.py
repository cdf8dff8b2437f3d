"""Putting a challenger in front of a share of the users, and taking it away again.

Standard library only. `experiments/current.json` is the one piece of state that routes traffic: it appears and
disappears by a rename, so a server reads the old experiment or the new one, never a half. An experiment's name is its
salt, and is never used twice, so that two tests never share a split of the users.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnifeed.config import Config
from omnifeed.errors import ConflictError, InputError
from omnifeed.experiment.assignment import Arm, Experiment, Holdback, Stage
from omnifeed.experiment.ledger import Ledger
from omnifeed.experiment.metrics import experiment_digest, judged_metrics
from omnifeed.home import Home, write_json

DAY = 86_400_000_000  # microseconds
HOUR = 3_600_000_000


def current_path(home: Home) -> Path:
    """The file that routes traffic."""
    return home.experiments / "current.json"


def holdback_path(home: Home) -> Path:
    """The hold-back group; absent where there is none. It outlives every experiment; deleting the file ends it."""
    return home.experiments / "holdback.json"


def pending_plan(home: Home) -> Path:
    """The pre-registration of the next experiment, as `omnifeed experiment plan` leaves it; absent where none was made.

    Opening the experiment moves it into the experiment's folder.
    """
    return home.experiments / "plan.json"


def running_experiment(home: Home) -> Experiment | None:
    """The experiment that routes traffic; None when the champion answers everybody."""
    path = current_path(home)
    return Experiment.load(path) if path.exists() else None


def the_experiment(home: Home) -> Experiment:
    """The experiment that routes traffic.

    Raises:
        InputError: none runs.
    """
    experiment = running_experiment(home)
    if experiment is None:
        raise InputError("No experiment is running.", "Deploy a challenger first: omnifeed run.")
    return experiment


def open_experiment(home: Home, champion: str, challenger: str, config: Config, now: int) -> Experiment:
    """Write the pre-registration and route traffic by it.

    A repetition (a run that was killed and started again) returns the experiment that is already running.

    Args:
        home: its ledger's champion must be `champion`.
        champion: release number that answers today.
        challenger: release number to test.
        config: the [experiment] section to be held to.
        now: start of the experiment, UTC microseconds.

    Raises:
        ConflictError: another experiment is running, or the ledger's champion is another release.
        InputError: the section is not usable or not the one that was planned, the releases are the same, the
            configured name was used before, or there is a hold-back group of another share.
    """
    judged_metrics(config.experiment)
    if champion == challenger:
        raise InputError(f"Release {champion} cannot be tested against itself.", "Name another challenger.")
    ledger, digest = Ledger(home), experiment_digest(config)
    with _locked(home):
        experiment = running_experiment(home)
        if experiment is not None:
            releases = {arm.name: arm.release for arm in experiment.arms}
            if releases != {"champion": champion, "challenger": challenger} or experiment.config_digest != digest:
                raise ConflictError(
                    f"Experiment {experiment.name} is running.",
                    "Let it end, or close it, before another release is tested.",
                )
        else:
            if ledger.champion() != champion:
                raise ConflictError(
                    f"The champion is release {ledger.champion()}, not {champion}.", "Test against the champion."
                )
            name = _unused_name(home, ledger, config.experiment.name, f"release-{challenger}-vs-{champion}")
            section = config.experiment
            share, step = section.challenger_share, section.ramp_hours * HOUR
            shares = (*section.ramp, share)
            experiment = Experiment(
                name=name,
                salt=name,
                arms=(Arm("champion", champion, 1 - share), Arm("challenger", challenger, share)),
                start_ts=now,
                end_ts=now + len(section.ramp) * step + section.days * DAY,
                config_digest=digest,
                stages=tuple(Stage(now + number * step, each) for number, each in enumerate(shares) if section.ramp),
                holdback=_holdback(home, champion, section.holdback, now),
            )
            plan = _registered_plan(home, digest)
            write_json(home.experiments / name / "experiment.json", experiment.to_dict())
            if plan is not None:
                os.replace(plan, home.experiments / name / "plan.json")
            write_json(current_path(home), experiment.to_dict())
        record_deployment(home, experiment)
        return experiment


def record_deployment(home: Home, experiment: Experiment) -> None:
    """The DEPLOY entry of a running experiment; one that is there already stays the only one."""
    challenger = next(arm.release for arm in experiment.arms if arm.name == "challenger")
    body = {"release": challenger, "experiment": experiment.to_dict()}
    Ledger(home).append("DEPLOY", body, experiment.start_ts, once=experiment.name)


def close_experiment(home: Home, name: str | None = None) -> None:
    """Stop routing by the running experiment; its folder stays. With a name, only if that one is running."""
    with _locked(home):
        running = running_experiment(home)
        if running is not None and name in (None, running.name):
            current_path(home).unlink()


def _holdback(home: Home, champion: str, share: float, now: int) -> Holdback | None:
    """The group that there is; where one is wanted and there is none, it begins now, on the present champion."""
    path = holdback_path(home)
    group = Holdback.load(path)
    if group is None and share > 0:
        group = Holdback(f"holdback-{now}", share, champion, now)
        write_json(path, group.to_dict())
    if group is not None and group.share != share:
        raise InputError(
            f"[experiment] holdback is {share:g}; the hold-back group that there is has a share of {group.share:g}.",
            f"Give that share, or end the group by deleting {path}: who left it once is of no use in it.",
        )
    return group


def _registered_plan(home: Home, digest: str) -> Path | None:
    path = pending_plan(home)
    if not path.exists():
        return None
    if json.loads(path.read_text(encoding="utf-8"))["config_digest"] != digest:
        raise InputError(
            f"{path} was written for other [experiment] settings.",
            "Restore the settings that were planned, or plan again before the start: omnifeed experiment plan.",
        )
    return path


def _unused_name(home: Home, ledger: Ledger, configured: str, default: str) -> str:
    """The configured name, or the default with a number where an earlier test took it."""
    taken = {entry.body.get("id") for entry in ledger.entries() if entry.kind == "DEPLOY"}

    def used(name: str) -> bool:
        return name in taken or any((home.experiments / name).glob("exposures/*"))

    if configured:
        if used(configured):
            raise InputError(
                f"An experiment with the name {configured} was run before.", "Give [experiment] another name."
            )
        return configured
    names = itertools.chain([default], (f"{default}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not used(name))


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    home.experiments.mkdir(parents=True, exist_ok=True)
    with open(home.experiments / "lock", "a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # held for a few file operations; dropped with the process
        yield
