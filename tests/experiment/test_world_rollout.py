"""A challenger's whole way on the simulated market: ramp, harm check, rollback or promotion, and the hold-back group.

Visits of the market are routed as the server routes them, answered in process by plain policies in the releases'
stead, and logged by the traffic's own writer. The promotion pipeline's two steps, judge and act, run every six hours on
the ramp, later once a day.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from omnifeed.config import Config, ExperimentConfig, WorldConfig
from omnifeed.experiment.decision import Decision, Verdict
from omnifeed.experiment.deploy import open_experiment, running_experiment
from omnifeed.experiment.gate import decide_current, lift_current
from omnifeed.experiment.ledger import Ledger
from omnifeed.experiment.release_control import act
from omnifeed.home import Home
from omnifeed.pipelines.traffic import OutcomeLog
from omnifeed.serving.recommend.routing import read_routing
from omnifeed.world.laws import SCENARIOS
from omnifeed.world.market import Response, Visit, World

DAY, HOUR = 86_400_000_000, 3_600_000_000
FIRST, SLATE, EVERY = 14, 6, 6 * HOUR
USERS = 1_500
HOLDBACK = 0.15
SECTION = ExperimentConfig(
    days=7,
    ramp=(0.01, 0.05, 0.25),
    ramp_hours=24,
    success=("dwell_per_user", "gmv_per_user"),
    guardrails=("hides_per_user",),
    guardrail_margins=(0.25,),
    holdback=HOLDBACK,
)
CONFIG = Config(experiment=SECTION)
USUAL, BETTER, BROKEN = "0", "1", "2"  # the releases


class Market:
    """The world, and what each release's policy answers to a visit: what trends, what trends among what this visitor
    values, and what trends least.
    """

    def __init__(self, users: int) -> None:
        self.world = World(
            WorldConfig(
                users=users,
                items=200,
                creators=40,
                livestreams_per_day=30,
                new_items_per_day=4,
                requests_per_user_day=0.5,
            )
        )
        self.start = self.world.day_start(FIRST)

    @functools.cache  # noqa: B019 - lives as long as the module
    def shelf(self, day: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        table = self.world.catalogue(self.world.day_start(day))
        sold_out = pc.and_(pc.equal(table["kind"], "product"), pc.fill_null(pc.equal(table["stock"], 0), False))
        table = table.filter(pc.and_(pc.not_equal(table["policy"], "DROP"), pc.invert(sold_out)))
        ids = np.array(table["item_id"].to_pylist())
        begins, ends = (
            table[name].cast(pa.int64()).fill_null(bound).to_numpy()
            for name, bound in (("live_from", 0), ("live_until", 2**62))
        )
        noon = self.world.day_start(day) + DAY // 2
        users = sorted(self.world.holdout_users())[:8]
        trend = {
            scenario: np.mean([self.world.value(user, scenario, None, noon, ids.tolist()) for user in users], axis=0)
            for scenario in SCENARIOS
        }
        return ids, begins, ends, trend

    @functools.cache  # noqa: B019
    def answered(self, day: int, number: int, release: str) -> list[Response]:
        """What comes of a visit of the day that this release answers."""
        visit = self.visits(day)[number]
        ids, begins, ends, trend = self.shelf(day)
        here = np.flatnonzero((begins <= visit.ts) & (visit.ts < ends))
        score = np.log(trend[visit.scenario][here] + 1e-9)
        if release == BETTER:
            score += np.log(
                self.world.value(visit.user_id, visit.scenario, visit.query, visit.ts, ids[here].tolist()) + 1e-9
            )
        order = np.argsort(score if release == BROKEN else -score, kind="stable")
        return self.world.respond(visit, ids[here[order[:SLATE]]].tolist())

    @functools.cache  # noqa: B019
    def visits(self, day: int) -> list[Visit]:
        return self.world.visits(day)


@pytest.fixture
def market() -> Market:
    return Market(USERS)


@pytest.fixture
def home(tmp_path: Path, market: Market) -> Home:
    home = Home(tmp_path)
    Ledger(home).append("BOOTSTRAP", {"release": USUAL}, market.start)
    return home


def serve(home: Home, market: Market, day: int, since: int, until: int) -> None:
    """Answer and log the day's visits between two moments, as the routing of the moment has it."""
    routing, lines, logs = read_routing(home), {}, {}
    for number, visit in enumerate(market.visits(day)):
        if not since <= visit.ts < until:
            continue
        route = routing.route(visit.user_id, None, visit.ts)
        responses = market.answered(day, number, route.release)
        folder, request = home.experiments / route.experiment, f"{route.experiment}-{visit.visit_id}"
        shared = {
            "request_id": request,
            "user_id": visit.user_id,
            "scenario": visit.scenario,
            "arm": route.arm,
            "release": route.release,
            "experiment": route.experiment,
            "ts": visit.ts,
            "degraded": [],
            "device": visit.device,
        }
        lines.setdefault(folder, []).extend(
            json.dumps({**shared, "item_id": each.item_id, "position": each.position}) + "\n" for each in responses
        )
        if folder not in logs:
            logs[folder] = OutcomeLog(folder)
        logs[folder].write(visit, request, responses)
    for folder, new in lines.items():
        (folder / "exposures").mkdir(exist_ok=True)
        with (folder / "exposures" / f"{FIRST}.jsonl").open("a") as file:
            file.writelines(new)
        logs[folder].flush()


def rollout(home: Home, market: Market, days: int) -> Iterator[tuple[int, Decision]]:
    """Traffic, and every six hours a look and what it calls for; each look's time and decision."""
    for day in range(FIRST, FIRST + days):
        midnight = market.world.day_start(day)
        for since in range(midnight, midnight + DAY, EVERY):
            serve(home, market, day, since, since + EVERY)
            now = since + EVERY
            if running_experiment(home) is not None and (day < FIRST + 4 or now == midnight + DAY):
                decision = decide_current(home, CONFIG, now)
                act(home, decision.ruling, now)
                yield now, decision


def test_a_harmful_challenger_is_taken_away_on_the_ramp_within_one_interval(tmp_path: Path) -> None:
    market, home = Market(4 * USERS), Home(tmp_path)
    Ledger(home).append("BOOTSTRAP", {"release": USUAL}, market.start)
    test = open_experiment(home, USUAL, BROKEN, CONFIG, market.start)
    *before, (at, last) = rollout(home, market, 3)
    assert not any(decision.final for _, decision in before)
    assert {decision.verdict for _, decision in before} <= {Verdict.HOLD, Verdict.INVALID}  # INVALID: no data yet
    assert last.verdict is Verdict.REJECT
    assert {reason.code.value for reason in last.reasons} == {"EARLY_HARM"}
    # At 1 % and 5 % too few had it. At 25 % its harm shows at the look that sees the stage whole, when the next one
    # has just begun.
    assert (last.start_ts, at) == (test.stages[2].start_ts, test.stages[3].start_ts)
    assert last.splits[0].planned_champion_share == 0.75
    # Nobody has it from that moment on.
    assert running_experiment(home) is None
    serve(home, market, FIRST + 3, at, at + EVERY)
    assert Ledger(home).champion() == USUAL
    log = home.experiments / test.name / "exposures" / f"{FIRST}.jsonl"
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert max(line["ts"] for line in logged if line["release"] == BROKEN) < at


def test_a_good_challenger_goes_through_all_stages_and_its_lift_is_read_from_the_held_back(
    home: Home, market: Market
) -> None:
    test = open_experiment(home, USUAL, BETTER, CONFIG, market.start)
    looks = list(rollout(home, market, 12))
    *before, (at, last) = looks
    assert not any(decision.final for _, decision in before)
    assert (last.verdict, at) == (Verdict.PROMOTE, test.end_ts + SECTION.attribution_hours * HOUR)
    # Each look judges the stage that it falls into, on that stage's users alone.
    for stage in test.stages:
        part = test.stage(stage.start_ts)
        inside = [each for now, each in looks if part.start_ts <= now < part.end_ts]
        assert inside
        for decision in inside:
            assert decision.start_ts == part.start_ts
            assert decision.splits == () or decision.splits[0].planned_champion_share == 1 - stage.share
    assert last.start_ts == test.stages[-1].start_ts
    assert last.counts.exposures_outside > 0
    assert last.counts.exposures_used + last.counts.exposures_outside == last.counts.exposures
    shares = {each.arm: each.users for each in last.evidence.numbers if not each.scope}
    assert last.counts.users_held / (last.counts.users_held + sum(shares.values())) == pytest.approx(HOLDBACK, abs=0.03)
    # Four days of the new champion, against the users who never saw it.
    for day in range(FIRST + 12, FIRST + 16):
        midnight = market.world.day_start(day)
        serve(home, market, day, midnight, midnight + DAY)
    now = market.world.day_start(FIRST + 18)
    lift = lift_current(home, CONFIG, now)
    assert lift is not None
    assert [(period.champion, period.doubts) for period in lift.periods] == [(USUAL, ()), (BETTER, ())]
    before_it, since = ({each.name: each for each in p.results if each.scenario is None} for p in lift.periods)
    assert before_it["gmv_per_user"].low < 0 < before_it["gmv_per_user"].high
    assert since["gmv_per_user"].low > 0
    truth = _truth(market, range(FIRST + 12, FIRST + 16))
    assert since["gmv_per_user"].low < truth < since["gmv_per_user"].high


def _truth(market: Market, days: range) -> float:
    """What the new champion really brings: every visit answered by both, the same users, the same luck."""
    gmv = {
        release: sum(
            response.gmv
            for day in days
            for number in range(len(market.visits(day)))
            for response in market.answered(day, number, release)
        )
        for release in (USUAL, BETTER)
    }
    return gmv[BETTER] / gmv[USUAL] - 1
