"""Who answers a request: the experiment where one runs, the ledger's champion otherwise.

`experiments/current.json` is the one piece of state that routes traffic. It is read again when it changes, so a new
split, a promotion or a rollback takes effect without a restart.
"""

from __future__ import annotations

from dataclasses import dataclass

from omnifeed.errors import InputError, UnavailableError
from omnifeed.experiment.assignment import HELD, Experiment, Holdback, assign
from omnifeed.experiment.ledger import Ledger
from omnifeed.home import Home

CHAMPION = "champion"
NO_EXPERIMENT = "none"
HOLDBACK = "holdback.json"


@dataclass(frozen=True, slots=True)
class Route:
    """The arm, release and experiment of one request."""

    arm: str
    release: str
    fallback: str  # the champion: answers where the release cannot; the release itself if that is the champion
    experiment: str


@dataclass(frozen=True, slots=True)
class Routing:
    """The state that routes traffic, as of one reading."""

    experiment: Experiment | None
    champion: str | None  # the ledger's: answers everybody while no experiment runs
    holdback: Holdback | None = None  # users whom neither reaches, with an experiment or without

    def releases(self) -> tuple[str, ...]:
        """Every release that may be asked, the champion first."""
        arms = tuple(arm.release for arm in self.experiment.arms) if self.experiment else ()
        held = (self.holdback.release,) if self.holdback else ()
        return tuple(dict.fromkeys((*((self.champion,) if self.champion else ()), *arms, *held)))

    def route(self, user_id: str, arm: str | None, now: int) -> Route:
        """Sticky by hashed user while the experiment runs (start_ts <= now < end_ts); the champion before and after.
        The hold-back group's users have their own release at all times, and nothing else where that cannot answer.

        Args:
            arm: the caller's own assignment, if any.

        Raises:
            InputError: there is no such arm.
            UnavailableError: there is neither an experiment nor a champion.
        """
        running = (
            self.experiment if self.experiment and self.experiment.start_ts <= now < self.experiment.end_ts else None
        )
        arms = {one.name: one.release for one in self.experiment.arms} if self.experiment else {}
        if self.champion is not None and (running is None or CHAMPION not in arms):
            arms[CHAMPION] = self.champion
        if self.holdback is not None:
            arms[HELD] = self.holdback.release
        held = self.holdback is not None and self.holdback.holds(user_id)
        name = arm or (HELD if held else assign(running.stage(now), user_id).name if running else CHAMPION)
        if name not in arms:
            if arm is None:
                raise UnavailableError("No release is the champion yet.", "Bootstrap one (the training pipeline does).")
            raise InputError(f"There is no arm {arm!r}.", f"Leave it out, or use one of: {', '.join(sorted(arms))}.")
        fallback = arms[HELD] if name == HELD else arms.get(CHAMPION, arms[name])
        return Route(name, arms[name], fallback, running.name if running else NO_EXPERIMENT)


def read_routing(home: Home) -> Routing:
    """Read `experiments/current.json`, `experiments/holdback.json` and the ledger.

    Raises:
        OmnifeedError: a file is there and cannot be used; the caller keeps the former routing.
    """
    path = home.experiments / "current.json"
    try:
        experiment = Experiment.load(path)
    except FileNotFoundError:
        experiment = None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.", "Write the file again.") from error
    return Routing(experiment, Ledger(home).champion(), Holdback.load(home.experiments / HOLDBACK))


def routing_stamp(home: Home) -> tuple[int, ...]:
    """Changes whenever a file that `read_routing` reads was replaced or appended to."""
    stamp = []
    for path in (home.experiments / "current.json", home.experiments / HOLDBACK, Ledger(home).path):
        try:
            status = path.stat()
            stamp += [status.st_mtime_ns, status.st_size, status.st_ino]
        except FileNotFoundError:
            stamp += [0, 0, 0]
    return tuple(stamp)
