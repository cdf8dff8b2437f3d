"""The verdict on markets whose truth is known: visits of the simulated market, answered in process by plain policies.

Every policy answers every visit once; an experiment is a split of the users by its salt, its logs written by the
traffic's own writer. So many experiments cost little more than one, and no server is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from experiment.experiment_logs import Logs
from scipy.stats import binom

from omnifeed.config import Config, ExperimentConfig, WorldConfig
from omnifeed.experiment.assignment import Arm, Experiment, assign
from omnifeed.experiment.decision import Decision, Verdict
from omnifeed.experiment.metrics import experiment_digest
from omnifeed.experiment.verdict import decide
from omnifeed.pipelines.traffic import OutcomeLog
from omnifeed.world.laws import LAWS, SCENARIOS
from omnifeed.world.market import Response, Visit, World

DAY = 86_400_000_000
FIRST, DAYS, SLATE = 14, 7, 6
TASTERS = 12  # users whose mean value orders the unpersonal policy
AA_SALTS = 6
SALTS = 3
SECTION = ExperimentConfig(days=DAYS, guardrail_margins=(0.25, 0.10))
Answers = dict[str, list[tuple[Visit, list[Response]]]]


class Shelf:
    """One day's catalogue, with what the average user thinks of each item in each scenario."""

    def __init__(self, world: World, day: int) -> None:
        table = world.catalogue(world.day_start(day))
        sold_out = pc.and_(pc.equal(table["kind"], "product"), pc.fill_null(pc.equal(table["stock"], 0), False))
        table = table.filter(pc.and_(pc.not_equal(table["policy"], "DROP"), pc.invert(sold_out)))
        self.ids = np.array(table["item_id"].to_pylist())
        self.begins, self.ends = (
            table[name].cast(pa.int64()).fill_null(bound).to_numpy()
            for name, bound in (("live_from", 0), ("live_until", 2**62))
        )
        noon = world.day_start(day) + DAY // 2
        users = sorted(world.holdout_users())[:TASTERS]
        self.trend = {
            scenario: np.mean([world.value(user, scenario, None, noon, self.ids.tolist()) for user in users], axis=0)
            for scenario in SCENARIOS
        }


def slates(world: World, shelf: Shelf, visit: Visit) -> dict[str, list[str]]:
    """What each policy answers: what trends, a little shuffled; what this visitor values least; and what trends with
    what this visitor values.
    """
    here = np.flatnonzero((shelf.begins <= visit.ts) & (visit.ts < shelf.ends))
    luck = np.random.default_rng(int(visit.visit_id[1:], 16)).gumbel(size=len(here))
    trend = np.log(shelf.trend[visit.scenario][here] + 1e-9) + luck / 2
    value = np.log(world.value(visit.user_id, visit.scenario, visit.query, visit.ts, shelf.ids[here].tolist()) + 1e-9)
    scores = {"trending": trend, "broken": -value, "better": trend + value}
    return {name: shelf.ids[here[np.argsort(-score, kind="stable")[:SLATE]]].tolist() for name, score in scores.items()}


@pytest.fixture(scope="module", params=sorted(LAWS))
def market(request: pytest.FixtureRequest) -> tuple[World, Answers]:
    """A world, and every policy's answer to every visit of a week with what came of it."""
    world = World(
        WorldConfig(
            law=request.param,
            users=2_000,
            items=400,
            creators=60,
            livestreams_per_day=60,
            new_items_per_day=10,
            requests_per_user_day=0.5,
        )
    )
    answers: Answers = {"trending": [], "broken": [], "better": []}
    for day in range(FIRST, FIRST + DAYS):
        shelf = Shelf(world, day)
        for visit in world.visits(day):
            for policy, slate in slates(world, shelf, visit).items():
                answers[policy].append((visit, world.respond(visit, slate)))
    return world, answers


def verdict(folder: Path, market: tuple[World, Answers], challenger: str, salt: str) -> Decision:
    """Split the users by the salt, log what they were shown and did, and judge."""
    world, answers = market
    config = Config(experiment=SECTION)
    start = world.day_start(FIRST)
    test = Experiment(
        name=salt,
        salt=salt,
        arms=(Arm("champion", "0", 0.5), Arm("challenger", "1", 0.5)),
        start_ts=start,
        end_ts=start + DAYS * DAY,
        config_digest=experiment_digest(config),
    )
    logs, outcomes = Logs(), OutcomeLog(folder)
    for arm, policy in (("champion", "trending"), ("challenger", challenger)):
        for visit, responses in answers[policy]:
            given = assign(test, visit.user_id)
            if given.name != arm:
                continue
            request = f"{salt}-{visit.visit_id}"
            shared = {
                "request_id": request,
                "user_id": visit.user_id,
                "scenario": visit.scenario,
                "arm": arm,
                "release": given.release,
                "experiment": salt,
                "ts": visit.ts,
                "degraded": [],
            }
            logs.exposures += [{**shared, "item_id": r.item_id, "position": r.position} for r in responses]
            outcomes.write(visit, request, responses)
    logs.write(folder)
    outcomes.flush()
    horizon = test.end_ts + SECTION.attribution_hours * 3_600_000_000
    return decide(folder, test, config, horizon)


def test_the_same_policy_in_both_arms_is_promoted_no_oftener_than_chance(
    market: tuple[World, Answers], tmp_path: Path
) -> None:
    decisions = [verdict(tmp_path / str(n), market, "trending", f"aa-{n}") for n in range(AA_SALTS)]
    called = [decision.verdict for decision in decisions]
    assert Verdict.INVALID not in called
    assert called.count(Verdict.PROMOTE) <= binom.ppf(0.999, AA_SALTS, SECTION.alpha)
    assert called.count(Verdict.REJECT) <= binom.ppf(0.999, AA_SALTS, SECTION.alpha)
    assert called.count(Verdict.HOLD) > AA_SALTS / 2


@pytest.mark.parametrize("salt", range(SALTS))
def test_a_deliberately_broken_challenger_is_rejected(market: tuple[World, Answers], tmp_path: Path, salt: int) -> None:
    decision = verdict(tmp_path, market, "broken", f"broken-{salt}")
    assert decision.verdict is Verdict.REJECT
    assert decision.final
    assert "worse" in decision.paragraph


@pytest.mark.parametrize("salt", range(SALTS))
def test_a_challenger_that_knows_its_users_is_promoted(
    market: tuple[World, Answers], tmp_path: Path, salt: int
) -> None:
    decision = verdict(tmp_path, market, "better", f"better-{salt}")
    assert decision.verdict is Verdict.PROMOTE
    gmv = next(m for m in decision.metrics if m.name == "gmv_per_user" and m.scenario is None)
    assert gmv.relative is not None
    assert gmv.relative > 0
