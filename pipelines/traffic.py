"""Simulated users in front of the real server: the traffic of a local A/B test, over gRPC.

Held-out users of the simulated market visit day by day. Each visit is one `recommend` call; the market decides what was
looked at and what came of it, and the outcomes are logged late, some twice, out of order, as a platform would. At every
simulated midnight the catalogue and the daily aggregates are refreshed; at every simulated hour the histories of the
users about to visit are pushed with what has become known since. Killed and started again, it goes on where it was:
answers already logged are not asked for again.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omnifeed.config import Config
from omnifeed.errors import OmnifeedError, UnavailableError
from omnifeed.experiment.assignment import Experiment
from omnifeed.export.encode import action_ids
from omnifeed.home import Home

if TYPE_CHECKING:
    from omnifeed.features.refresh import Seen
    from omnifeed.serving.client import Client
    from omnifeed.world.market import Response, Visit, World

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
REPEAT_SHARE = 0.01  # of outcomes, logged a second time

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was sent, and how it was answered."""

    requests: int
    failed: int
    users: int
    seconds: float
    p50_ms: float
    p99_ms: float
    by_arm: dict[str, int]
    degraded: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(slots=True)
class _Tally:
    latencies: list[float] = field(default_factory=list)
    failed: int = 0
    by_arm: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)


def planned_visits(world: World, experiment: Experiment, limit: int) -> dict[int, list[Visit]]:
    """The visits of the experiment by day: whole users, in the order of a hash, until `limit` requests are reached."""
    first = (experiment.start_ts - world.day_start(0)) // DAY_US
    last = (experiment.end_ts - world.day_start(0)) // DAY_US
    days = {day: world.visits(day) for day in range(first, last)}
    count = Counter(visit.user_id for visits in days.values() for visit in visits)
    chosen, total = set(), 0
    for user in sorted(count, key=lambda user: hashlib.sha256(f"{experiment.salt} traffic {user}".encode()).digest()):
        if total + count[user] > limit:
            break
        chosen.add(user)
        total += count[user]
    return {day: [visit for visit in visits if visit.user_id in chosen] for day, visits in days.items()}


def send_traffic(
    home: Home, config: Config, experiment: Experiment, client: Client, progress: Progress = lambda *_: None
) -> Traffic:
    """Play the experiment from its first day to its horizon.

    Raises:
        OmnifeedError: more than 5 % of the requests failed.
    """
    from omnifeed.features.refresh import Freshness
    from omnifeed.world.market import World

    world = World(config.world)
    started = time.monotonic()
    days = planned_visits(world, experiment, config.experiment.max_requests)
    total = sum(map(len, days.values()))
    users = sorted({visit.user_id for visits in days.values() for visit in visits})
    folder = home.experiments / experiment.name
    log = OutcomeLog(folder)
    answered = _answered(folder)
    freshness = Freshness(home, config, folder, users, experiment.start_ts)
    tally, done = _Tally(), 0
    with ThreadPoolExecutor(config.experiment.clients) as pool:
        for day, visits in days.items():
            midnight = world.day_start(day)
            freshness.midnight(world.catalogue(midnight), midnight)
            for hour_start, hour in _hours(visits, midnight):
                freshness.hour({visit.user_id for visit in hour}, hour_start)
                by_user: dict[str, list[Visit]] = defaultdict(list)
                for visit in hour:
                    by_user[visit.user_id].append(visit)
                for answers in pool.map(
                    lambda mine: [
                        _visit(world, client, experiment, visit, answered, config.world.slate, tally) for visit in mine
                    ],
                    by_user.values(),
                ):
                    for visit, request_id, responses in answers:
                        log.write(visit, request_id, responses)
                        freshness.saw(_seen(visit, request_id, responses))
                done += len(hour)
                progress("traffic", done, total)
            log.flush()
    if tally.failed > 0.05 * total:
        raise OmnifeedError(
            f"{tally.failed} of {total} requests got no answer.",
            "Read the server's log under the home's serving folder.",
        )
    ordered = sorted(tally.latencies) or [0.0]
    return Traffic(
        requests=total,
        failed=tally.failed,
        users=len(users),
        seconds=round(time.monotonic() - started, 1),
        p50_ms=round(1e3 * ordered[len(ordered) // 2], 2),
        p99_ms=round(1e3 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 2),
        by_arm=dict(tally.by_arm),
        degraded=dict(tally.degraded),
    )


def _hours(visits: Iterable[Visit], midnight: int) -> Iterator[tuple[int, list[Visit]]]:
    hours: dict[int, list[Visit]] = defaultdict(list)
    for visit in visits:
        hours[(visit.ts - midnight) // HOUR_US].append(visit)
    for hour in sorted(hours):
        yield midnight + hour * HOUR_US, hours[hour]


def _visit(
    world: World,
    client: Client,
    experiment: Experiment,
    visit: Visit,
    answered: dict[str, list[str]],
    slate: int,
    tally: _Tally,
) -> tuple[Visit, str, list[Response]]:
    request_id = f"{experiment.name}-{visit.visit_id}"
    if request_id in answered:
        return visit, request_id, world.respond(visit, answered[request_id])
    begun = time.perf_counter()
    try:
        answer = client.recommend(
            visit.user_id,
            visit.scenario,
            query=visit.query,
            k=slate,
            now=visit.ts,
            request_id=request_id,
            locale=visit.locale,
            device=visit.device,
        )
    except UnavailableError:
        tally.failed += 1
        return visit, request_id, []
    tally.latencies.append(time.perf_counter() - begun)
    tally.by_arm[answer.arm] += 1
    tally.degraded.update(answer.degraded)
    return visit, request_id, world.respond(visit, answer.item_ids)


def _seen(visit: Visit, request_id: str, responses: Iterable[Response]) -> list[Seen]:
    from omnifeed.features.refresh import Seen

    viewed = [response for response in responses if response.viewed]
    return [
        Seen(
            user_id=visit.user_id,
            item_id=response.item_id,
            scenario=visit.scenario,
            action=int(action_ids({name: np.array([true]) for name, true in response.outcomes.items()})[0]),
            ts=visit.ts,
            observed_ts=visit.ts + response.delay_us,
            order=f"{request_id}/{response.position:04d}",
        )
        for response in viewed
    ]


def _answered(folder: Path) -> dict[str, list[str]]:
    """The slates that a killed run had already been given, by request; a torn last line is not one of them."""
    slates: dict[str, dict[int, str]] = defaultdict(dict)
    for path in sorted((folder / "exposures").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            slates[row["request_id"]].setdefault(int(row["position"]), row["item_id"])
    return {request: [slate[position] for position in sorted(slate)] for request, slate in slates.items()}


class OutcomeLog:
    """Appends outcomes the way platforms do: late, some repeated, in no order."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "outcomes" / "market.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():  # a killed writer's torn line would spoil the first of ours
            with self._path.open("r+b") as handle:
                handle.truncate(handle.read().rfind(b"\n") + 1)
        self._lines: list[str] = []
        self._random = random.Random(folder.name)

    def write(self, visit: Visit, request_id: str, responses: Iterable[Response]) -> None:
        """Queue the outcomes of one answer."""
        for response in responses:
            values: dict[str, float] = {name: 1.0 for name, true in response.outcomes.items() if true}
            if response.viewed:
                values |= {"viewed": 1.0, "dwell_ms": float(response.dwell_ms)}
            if response.gmv:
                values["gmv"] = response.gmv
            for name, value in values.items():
                delay = 0 if name == "viewed" else response.delay_us
                row = {
                    "request_id": request_id,
                    "item_id": response.item_id,
                    "name": name,
                    "value": value,
                    "ts": visit.ts,
                    "observed_ts": visit.ts + delay,
                }
                line = json.dumps(row, separators=(",", ":"))
                self._lines += [line] * (2 if self._random.random() < REPEAT_SHARE else 1)

    def flush(self) -> None:
        """Append what is queued, out of order."""
        self._random.shuffle(self._lines)
        with self._path.open("a", encoding="utf-8") as handle:
            handle.writelines(f"{line}\n" for line in self._lines)
        self._lines.clear()
