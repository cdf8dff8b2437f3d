"""The demo's experiment with both answers to every visit known, split between the arms again and again.

Each arm answers all planned visits of all users; a user's history holds what their own arm has shown them. Aggregates
and trending come from the log of one reference split, the demo's own, as in the demo. A fresh salt then decides whose
totals come from which arm, and the gate's own `judge` decides on the numbers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from in_process import Engine, Market, Standing, UserTable

from omnifeed.datasets.served import served_events
from omnifeed.experiment.assignment import Arm, Experiment, assign
from omnifeed.experiment.decision import Decision
from omnifeed.experiment.evidence import (
    ALL,
    CHALLENGER,
    CHAMPION,
    ArmNumbers,
    DayLog,
    Evidence,
    LogCounts,
    UserGroup,
)
from omnifeed.experiment.gate import period_before
from omnifeed.experiment.metrics import Metric, cap_of, experiment_digest, judged_metrics, totals_of
from omnifeed.experiment.verdict import decide, judge
from omnifeed.export.encode import action_ids
from omnifeed.model.network import Network
from omnifeed.pipelines.traffic import DAY_US, HOUR_US, OutcomeLog, planned_visits
from omnifeed.quality.lake import accepted
from omnifeed.tables import OUTCOMES
from omnifeed.world.market import Response
from omnifeed.world.traffic import Visit

Floats = npt.NDArray[np.float64]
ARMS = (CHAMPION, CHALLENGER)
#: What the gate counts by arm and day, to see whether an arm began or ceased to log something.
LOGGED = ("requests", "exposures", "viewed", "dwell_ms", "gmv", *OUTCOMES)


@dataclass
class Played:
    """What every user did under each arm."""

    market: Market
    experiment: Experiment
    users: list[str]
    scenarios: list[str]
    totals: tuple[Metric, ...]
    values: Floats  # [arm, user, scenario, total], attributed and known by the horizon
    views: Floats  # [arm, user]
    clicks: Floats  # [arm, user]
    items: Floats  # [arm, user, scenario], exposures
    logged: Floats  # [arm, user, day, LOGGED]
    first_day: npt.NDArray[np.int64]  # [user]
    device: list[str | None]  # [user], of the first visit
    before: pa.Table | None
    reference: Decision  # the gate's own decision on the logs of the reference split
    horizon: int


@dataclass
class _Pending:
    history: list[tuple[str, int, str, int]]
    waiting: list[tuple[int, int, str, tuple[str, int, str, int]]] = field(default_factory=list)

    def as_of(self, ts: int) -> list[tuple[str, int, str, int]]:
        known = sorted(event for event in self.waiting if event[0] < ts)
        self.waiting = [event for event in self.waiting if event[0] >= ts]
        self.history += [event[-1] for event in known]
        return self.history

    def saw(self, visit: Visit, request_id: str, responses: list[Response]) -> None:
        for response in responses:
            if response.viewed:
                action = int(action_ids({name: np.array([true]) for name, true in response.outcomes.items()})[0])
                event = (response.item_id, action, visit.scenario, visit.ts)
                order = f"{request_id}/{response.position:04d}"
                self.waiting.append((visit.ts + response.delay_us, visit.ts, order, event))


def registered(market: Market) -> Experiment:
    """The demo's pre-registration."""
    section = market.config.experiment
    name, share = "release-1-vs-0", section.challenger_share
    arms = (Arm(CHAMPION, "0", 1 - share), Arm(CHALLENGER, "1", share))
    return Experiment(
        name, name, arms, market.now, market.now + section.days * DAY_US, experiment_digest(market.config)
    )


def play(market: Market, challenger: Network) -> Played:
    """Both arms answer every planned visit; the logs are those of the reference split."""
    config, world, experiment = market.config, market.world, registered(market)
    totals = totals_of(judged_metrics(config.experiment))
    planned = planned_visits(world, experiment, config.experiment.max_requests)
    visits = [visit for day in planned.values() for visit in day]
    users = sorted({visit.user_id for visit in visits})
    scenarios = sorted({visit.scenario for visit in visits})
    row, column = ({name: place for place, name in enumerate(names)} for names in (users, scenarios))
    values = np.zeros((2, len(users), len(scenarios), len(totals)))
    views, clicks = np.zeros((2, len(users))), np.zeros((2, len(users)))
    items = np.zeros((2, len(users), len(scenarios)))
    logged = np.zeros((2, len(users), config.experiment.days, len(LOGGED)))
    first_day = np.full(len(users), -1)
    device: list[str | None] = [None] * len(users)
    horizon = experiment.end_ts + config.experiment.attribution_hours * HOUR_US
    table = UserTable(market, users)
    engine = Engine(market, Standing(config, experiment, {"0": None, "1": challenger}), table, config.serving)
    start = table.histories([accepted(market.home)], market.now)
    pending = {arm: {user: _Pending(list(start[user])) for user in users} for arm in ARMS}
    folder = market.home.experiments / experiment.name
    log = OutcomeLog(folder)
    for day, of_day in planned.items():
        midnight = world.day_start(day)
        events = [accepted(market.home), served_events(folder)]
        engine.midnight(events, midnight)
        table.midnight(events, midnight)
        for visit in of_day:
            user, hour = row[visit.user_id], visit.ts - (visit.ts - midnight) % HOUR_US
            number = (visit.ts - experiment.start_ts) // DAY_US
            if first_day[user] < 0:
                first_day[user], device[user] = number, visit.device
            request_id = f"{experiment.name}-{visit.visit_id}"
            for place, arm in enumerate(ARMS):
                mine = assign(experiment, visit.user_id).name == arm
                table.put(visit.user_id, pending[arm][visit.user_id].as_of(hour))
                answer = engine.ask(visit, arm, request_id, log=mine)
                assert not answer.degraded, answer.degraded
                responses = world.respond(visit, answer.item_ids)
                pending[arm][visit.user_id].saw(visit, request_id, responses)
                if mine:
                    log.write(visit, request_id, responses)
                items[place, user, column[visit.scenario]] += len(responses)
                logged[place, user, number, :2] += 1, len(responses)
                for response in responses:
                    logged[place, user, number, 2] += response.viewed
                    views[place, user] += response.viewed
                    if visit.ts + response.delay_us > horizon:
                        continue
                    logged[place, user, number, 3:] += (
                        response.viewed,
                        response.gmv > 0,
                        *(response.outcomes.get(name, False) for name in OUTCOMES),
                    )
                    clicks[place, user] += response.outcomes["click"]
                    values[place, user, column[visit.scenario]] += [_amount(total, response) for total in totals]
        log.flush()
    before = period_before(accepted(market.home), experiment.start_ts, config.experiment.gmv_cap)
    reference = decide(folder, experiment, config, horizon, before)
    return Played(
        market, experiment, users, scenarios, totals, values, views, clicks, items, logged, first_day, device,
        before, reference, horizon,
    )  # fmt: skip


def _amount(total: Metric, response: Response) -> float:
    if total.outcome == "gmv":
        return response.gmv
    if not total.counts or total.outcome not in response.outcomes:
        raise NotImplementedError(f"The benchmark does not add up {total.name}.")
    return float(response.outcomes[total.outcome])


class Resplit:
    """Judges splits of the played users."""

    def __init__(self, played: Played) -> None:
        self.played = played
        section = played.market.config.experiment
        caps = [cap_of(total, section) or np.inf for total in played.totals]
        self.overall = np.minimum(played.values.sum(2), caps)
        self.scoped = np.minimum(played.values, caps)
        self.bot = (played.views >= section.bot_views) & (played.clicks >= played.views)
        self.past = self._covariates(caps)

    def _covariates(self, caps: list[float]) -> Floats:
        if self.played.before is None:
            raise NotImplementedError("There is always a period before.")
        known = {line["user_id"]: line for line in self.played.before.to_pylist()}
        names = [total.name for total in self.played.totals]
        return np.array(
            [
                [min(float(known.get(user, {}).get(name) or 0), cap) for name, cap in zip(names, caps, strict=True)]
                for user in self.played.users
            ]
        )

    def evidence(self, chosen: npt.NDArray[np.int64], side: npt.NDArray[np.bool_], same: bool) -> Evidence:
        """The numbers of one split.

        Args:
            chosen: the users, [n].
            side: who of them is the challenger's, [n].
            same: both arms answer as the champion does.
        """
        played, numbers, logs = self.played, [], []
        groups: dict[tuple[str, str, str], int] = defaultdict(int)
        for place, arm in enumerate(ARMS):
            mine = chosen[side == (arm == CHALLENGER)]
            source = 0 if same else place
            mine = mine[~self.bot[source, mine]]
            numbers.append(self._moments(ALL, arm, self.overall[source, mine], self.past[mine]))
            for column, scenario in enumerate(played.scenarios):
                there = mine[played.items[source, mine, column] > 0]
                numbers.append(self._moments(scenario, arm, self.scoped[source, there, column], self.past[there]))
            for day, counts in enumerate(played.logged[source, mine].sum(0)):
                told = {name: int(count) for name, count in zip(LOGGED, counts, strict=True) if count}
                logs += [DayLog(arm, day, told)] if told else []
            for user in mine:
                groups["day", str(played.first_day[user]), arm] += 1
                groups["device", str(played.device[user]), arm] += 1
        requests, exposures = (int(played.logged[0, chosen, :, place].sum()) for place in (0, 1))
        return Evidence(
            LogCounts(exposures=exposures, exposures_used=exposures, requests=requests),
            tuple(numbers),
            groups=tuple(UserGroup(*key, users) for key, users in sorted(groups.items())),
            day_logs=tuple(logs),
        )

    def _moments(self, scope: str, arm: str, values: Floats, past: Floats) -> ArmNumbers:
        names = [total.name for total in self.played.totals]
        users = len(values)
        spread = users / max(users - 1, 1)
        mean, past_mean = values.mean(0), past.mean(0)
        return ArmNumbers(
            scope,
            arm,
            users,
            dict(zip(names, mean.tolist(), strict=True)),
            dict(zip(names, (values.var(0) * spread).tolist(), strict=True)),
            dict(zip(names, past_mean.tolist(), strict=True)),
            dict(zip(names, (past.var(0) * spread).tolist(), strict=True)),
            dict(zip(names, (((values - mean) * (past - past_mean)).mean(0) * spread).tolist(), strict=True)),
        )

    def decision(self, salt: str, *, same: bool = False, resampled: bool = False) -> Decision:
        """The gate's decision on the split of one salt.

        Args:
            resampled: the users are drawn again, with replacement, each draw a user of its own.
        """
        played, count = self.played, len(self.played.users)
        experiment = replace(played.experiment, salt=salt)
        chosen, names = np.arange(count), played.users
        if resampled:
            chosen = np.random.default_rng(int.from_bytes(salt.encode())).integers(0, count, count)
            names = [f"{played.users[user]}/{place}" for place, user in enumerate(chosen)]
        side = np.array([assign(experiment, name).name == CHALLENGER for name in names])
        return judge(experiment, played.market.config, played.horizon, self.evidence(chosen, side, same))

    def agrees(self) -> float:
        """The largest relative difference between these numbers and the gate's own, on the reference split.

        Raises:
            AssertionError: the verdicts differ, or users are counted otherwise.
        """
        mine, gate = self.decision(self.played.experiment.salt), self.played.reference
        assert mine.verdict == gate.verdict, (mine.paragraph, gate.paragraph)
        worst = 0.0
        for left, right in zip(mine.metrics, gate.metrics, strict=True):
            assert (left.name, left.scenario, left.users_champion) == (right.name, right.scenario, right.users_champion)
            for a, b in ((left.champion, right.champion), (left.challenger, right.challenger), (left.low, right.low)):
                if a is not None and b is not None:
                    worst = max(worst, abs(a - b) / max(abs(b), 1e-9))
        return worst
