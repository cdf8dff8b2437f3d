"""Off-policy estimates: against naive formulae, against the market's truth, and what they refuse to say."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, norm

from omnifeed.config import WorldConfig
from omnifeed.datasets.served import served_events
from omnifeed.errors import InputError
from omnifeed.experiment.offpolicy.estimators import Estimator, RewardModel, estimate, linearised, weights
from omnifeed.experiment.offpolicy.overlap import Limits, Reason
from omnifeed.experiment.offpolicy.plackett_luce import reordering, slate_propensities
from omnifeed.experiment.offpolicy.prune import Advice, Candidate, prune
from omnifeed.experiment.offpolicy.slates import (
    Floats,
    LoggedSlates,
    explored_slates,
    target_probabilities,
    user_folds,
)
from omnifeed.serving.recommend.slate import fill
from omnifeed.tables import read_parquet
from omnifeed.world.market import World

OPEN_BANDIT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "open_bandit_small"
ANYTHING = Limits(users=0, effective_share=0, weight_share=1, events=0, outside=1, deviation=np.inf)


def random_log(seed: int, answers: int = 300, width: int = 4) -> tuple[LoggedSlates, Floats, RewardModel]:
    rng = np.random.default_rng(seed)
    length = rng.integers(1, width + 1, answers)
    shown = np.arange(width) < length[:, None]
    propensity = np.where(shown, rng.uniform(0.1, 1, (answers, width)), 1.0)
    target = np.where(shown, rng.uniform(0, 1, (answers, width)), 1.0)
    reward = np.where(shown, rng.exponential(1, (answers, width)) * (rng.random((answers, width)) < 0.3), 0.0)
    log = LoggedSlates(rng.integers(0, 60, answers), shown, propensity, reward)
    model = RewardModel(rng.uniform(0, 1, (answers, width)), rng.uniform(0, 1, (answers, width)))
    return log, target, model


def naive(kind: Estimator, log: LoggedSlates, target: Floats, model: RewardModel) -> tuple[float, list[float]]:
    """Value and users' influences, in loops over answers and positions."""
    answers, width = log.shown.shape
    top, bottom = defaultdict(float), defaultdict(float)
    mine: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    for i in range(answers):
        product, total = 1.0, 0.0
        for k in range(width):
            above = product
            if log.shown[i, k]:
                product *= target[i, k] / log.propensity[i, k]
            earned = log.reward[i, k] if log.shown[i, k] else 0.0
            total += earned
            part = 0 if kind in (Estimator.IPS, Estimator.SNIPS) else k
            if kind in (Estimator.IPS, Estimator.SNIPS):
                if k < width - 1:
                    continue
                a, b = product * total, product if kind is Estimator.SNIPS else 1.0
            elif kind is Estimator.DR:
                q, v = model.logged[i, k], model.target[i, k]
                a, b = (product * (earned - q) + above * v if log.shown[i, k] else 0.0), 1.0
            else:
                a, b = product * earned, product if kind is Estimator.SNRIPS else 1.0
            top[part] += a
            bottom[part] += b
            mine[int(log.user[i])][part][0] += a
            mine[int(log.user[i])][part][1] += b
    influence = [
        sum((a - top[part] / bottom[part] * b) / bottom[part] for part, (a, b) in parts.items())
        for _, parts in sorted(mine.items())
    ]
    return sum(top[part] / bottom[part] for part in top), influence


@pytest.mark.parametrize("kind", Estimator)
@pytest.mark.parametrize("seed", range(3))
def test_every_estimator_equals_its_naive_formula(kind: Estimator, seed: int) -> None:
    log, target, model = random_log(seed)
    got = estimate(kind, log, target, model=model, limits=ANYTHING, alpha=0.1)
    value, influence = naive(kind, log, target, model)
    users = len(influence)
    error = np.sqrt(users / (users - 1) * sum(e * e for e in influence))
    skew = sum(e**3 for e in influence) / sum(e * e for e in influence) ** 1.5

    def hall(t: float) -> float:
        return float(t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6)

    low, high = (
        value - error * brentq(lambda t, q=q: hall(t) - q, -1e3, 1e3, xtol=1e-14) for q in norm.ppf([0.95, 0.05])
    )
    assert (got.value, got.standard_error) == pytest.approx((value, error), rel=1e-9)
    assert (got.low, got.high) == pytest.approx((low, high), rel=1e-9)


def test_standard_errors_agree_with_a_bootstrap_of_users() -> None:
    log, target, model = random_log(0, answers=1000)
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(log.user == user) for user in range(60)]
    for kind in Estimator:
        values = []
        for _ in range(400):
            drawn = np.concatenate([rows[user] for user in rng.integers(0, 60, 60)])
            part = RewardModel(model.logged[drawn], model.target[drawn])
            values.append(linearised(kind, log.take(drawn), target[drawn], part)[0].value)
        # A standard deviation of 400 draws is known to 3.5 %; four of those and a little for 60 users.
        assert linearised(kind, log, target, model)[0].standard_error == pytest.approx(np.std(values), rel=0.17), kind


def test_the_logging_policy_judges_itself_by_its_plain_mean() -> None:
    log, _, _ = random_log(1)
    mean = log.reward.sum(1).mean()
    for kind in (Estimator.IPS, Estimator.SNIPS, Estimator.RIPS, Estimator.SNRIPS):
        assert linearised(kind, log, log.propensity)[0].value == pytest.approx(mean, rel=1e-12)


def test_effective_sizes_are_kishs() -> None:
    log, target, _ = random_log(2, width=1)
    reach = linearised(Estimator.IPS, log, target)[1]
    weight = (target / log.propensity)[:, 0]
    assert reach.effective_answers == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-9)
    rewarded = len({int(user) for user, reward in zip(log.user, log.reward[:, 0], strict=True) if reward})
    assert reach.effective_events == pytest.approx(rewarded * reach.effective_answers / 300, rel=1e-9)
    heaviest = max(weight[log.user == user].sum() for user in np.unique(log.user))
    assert reach.largest_user_share == pytest.approx(heaviest / weight.sum(), rel=1e-9)


# --- the market: every slate's answer is known, so is every policy's value ---

ORDERS = list(itertools.permutations(range(4), 2))


class Known:
    """A day's visits with the clicks of all twelve slates of two out of four candidates."""

    def __init__(self, law: str) -> None:
        world = World(WorldConfig(law=law, seed=5, users=1200))
        items = world.catalogue(world.day_start(14))
        ids = items.filter(pa.compute.equal(items["kind"], "product"))["item_id"].to_pylist()
        visits, rng = world.visits(14), np.random.default_rng(0)
        pools = [rng.choice(ids, 4, replace=False).tolist() for _ in visits]
        self.clicks = np.array(
            [
                [[r.outcomes["click"] for r in world.respond(visit, [pool[i] for i in order])] for order in ORDERS]
                for visit, pool in zip(visits, pools, strict=True)
            ],
            float,
        )
        self.user = np.unique([visit.user_id for visit in visits], return_inverse=True)[1]
        none = np.full(4, -1)
        draws = [
            [
                [
                    slate_propensities(scores, none, np.array(order), creator_limit=9, temperature=1.0)
                    for order in ORDERS
                ]
                for scores in rng.normal(size=(len(visits), 4))
            ]
            for _ in range(2)
        ]
        self.log, self.target = np.array(draws)  # [N, 12, 2] each
        self.truth = float((self.target.prod(2) * self.clicks.sum(2)).sum(1).mean())

    def sample(self, rows: np.ndarray, user: np.ndarray, rng: np.random.Generator) -> tuple[LoggedSlates, Floats]:
        chance = self.log[rows].prod(2).cumsum(1)
        slate = (chance < rng.random((len(rows), 1)) * chance[:, -1:]).sum(1)
        log = LoggedSlates(user, np.ones((len(rows), 2), bool), self.log[rows, slate], self.clicks[rows, slate])
        return log, self.target[rows, slate]


@pytest.fixture(scope="module")
def market() -> Known:
    return Known("default")


def expectation(known: Known, whole: bool) -> float:
    """Of IPS or RIPS over the log's draws: the sum over all slates, each with its probability."""
    count = len(known.user)
    total = 0.0
    for slate in range(len(ORDERS)):
        log = LoggedSlates(known.user, np.ones((count, 2), bool), known.log[:, slate], known.clicks[:, slate])
        weight = weights(log, known.target[:, slate])
        earned = weight[:, 1] * log.reward.sum(1) if whole else (weight * log.reward).sum(1)
        total += float((known.log[:, slate].prod(1) * earned).mean())
    return total


def test_expectations_over_the_logs_draws_are_the_truth(market: Known) -> None:
    assert market.clicks.sum() > 100
    assert expectation(market, whole=True) == pytest.approx(market.truth, rel=1e-9)
    assert expectation(market, whole=False) == pytest.approx(market.truth, rel=1e-9)  # people read from the top


def test_ripss_assumption_has_a_price_where_one_choice_a_screen_is_made() -> None:
    other = Known("other")
    assert expectation(other, whole=True) == pytest.approx(other.truth, rel=1e-9)
    assert abs(expectation(other, whole=False) / other.truth - 1) > 0.001


def test_sampled_logs_estimate_the_truth_and_intervals_cover_it(market: Known) -> None:
    rng = np.random.default_rng(1)
    users = int(market.user.max()) + 1
    visits = [np.flatnonzero(market.user == user) for user in range(users)]
    repetitions, hits, values = 200, defaultdict(int), defaultdict(list)
    for _ in range(repetitions):
        drawn = rng.integers(0, users, 1500)
        rows = np.concatenate([visits[user] for user in drawn])
        user = np.repeat(np.arange(1500), [len(visits[user]) for user in drawn])
        log, target = market.sample(rows, user, rng)
        model = RewardModel(np.full(target.shape, 0.1), np.full(target.shape, 0.1))  # wrong and cross-fitted
        for kind in Estimator:
            got = estimate(kind, log, target, model=model, limits=ANYTHING)
            assert got.value is not None
            assert got.low is not None
            assert got.high is not None
            hits[kind] += got.low <= market.truth <= got.high
            values[kind].append(got.value)
    for kind in Estimator:
        error = np.std(values[kind], ddof=1) / np.sqrt(repetitions)
        assert abs(np.mean(values[kind]) - market.truth) < 4 * error + 0.002 * market.truth, kind
        # Within two points of 95 %, as far as 200 repetitions can tell: one run in 1,000 fails a true 93 or 97 %.
        assert binom.ppf(0.001, repetitions, 0.93) <= hits[kind] <= binom.ppf(0.999, repetitions, 0.97), kind


# --- refusals ---


def plain(users: int = 2000, seed: int = 0) -> LoggedSlates:
    rng = np.random.default_rng(seed)
    clicked = (rng.random((users, 1)) < 0.3).astype(float)
    return LoggedSlates(np.arange(users), np.ones((users, 1), bool), np.full((users, 1), 0.5), clicked)


def reasons(log: LoggedSlates, target: Floats, **given: float) -> set[Reason]:
    return {refusal.reason for refusal in estimate(Estimator.IPS, log, target, **given).refusals}


def test_a_sound_log_is_not_refused() -> None:
    log = plain()
    assert estimate(Estimator.IPS, log, log.propensity).usable


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, Reason.PROPENSITY_MISSING),
        (0.0, Reason.PROPENSITY_INVALID),
        (-0.1, Reason.PROPENSITY_INVALID),
        (1.1, Reason.PROPENSITY_INVALID),
    ],
)
def test_one_bad_propensity_refuses_any_number(value: float, reason: Reason) -> None:
    log = plain()
    log.propensity[7] = value
    got = estimate(Estimator.SNIPS, log, np.full((2000, 1), 0.5))
    assert [refusal.reason for refusal in got.refusals] == [reason]
    assert "1 of 2,000 logged positions" in got.refusals[0].text
    assert got.value is None


def test_bad_targets_and_rewards_refuse_any_number() -> None:
    log = plain()
    target = log.propensity.copy()
    target[3], target[4] = np.nan, 1.5
    log.reward[5] = np.inf
    assert reasons(log, target) == {Reason.TARGET_MISSING, Reason.TARGET_INVALID, Reason.REWARD_INVALID}


def test_too_little_overlap_is_refused() -> None:
    log = plain()
    one = np.full((2000, 1), 0.0)
    one[:5] = 1.0
    found = reasons(log, one)
    assert {Reason.LOW_EFFECTIVE_SIZE, Reason.ONE_WEIGHT_RULES, Reason.TOO_FEW_EVENTS} <= found
    assert reasons(plain(50), np.full((50, 1), 0.5)) >= {Reason.TOO_FEW_USERS}


def test_violated_support_is_refused() -> None:
    log = plain()
    # The target shows logged items less often than its own probabilities could add up to: the rest it shows elsewhere.
    assert reasons(log, 0.8 * log.propensity) == {Reason.WEIGHTS_NOT_ONE}
    assert reasons(log, log.propensity, outside=0.2) == {Reason.OUTSIDE_SUPPORT}


def test_shapes_that_do_not_fit_are_named() -> None:
    log = plain(200)
    with pytest.raises(InputError, match=r"Target has shape \(200, 2\)"):
        estimate(Estimator.IPS, log, np.ones((200, 2)))
    with pytest.raises(InputError, match="DR has no predictions"):
        estimate(Estimator.DR, log, log.propensity)
    with pytest.raises(InputError, match="a gap"):
        LoggedSlates(np.zeros(1, int), np.array([[False, True]]), np.ones((1, 2)), np.zeros((1, 2)))
    with pytest.raises(InputError, match="no answers"):
        estimate(Estimator.IPS, log.take(np.zeros(200, bool)), np.ones((0, 1)))


# --- pruning ---


def two_items(users: int, seed: int = 0) -> tuple[LoggedSlates, Floats, Floats]:
    """A fair coin between a good item (40 % click) and a bad one (20 %); targets that favour one or the other."""
    rng = np.random.default_rng(seed)
    good = rng.random((users, 1)) < 0.5
    clicked = (rng.random((users, 1)) < np.where(good, 0.4, 0.2)).astype(float)
    log = LoggedSlates(np.arange(users), np.ones((users, 1), bool), np.full((users, 1), 0.5), clicked)
    return log, np.where(good, 0.9, 0.1), np.where(good, 0.1, 0.9)


def test_pruning_drops_the_worse_keeps_the_better_and_promotes_nothing() -> None:
    log, better, worse = two_items(4000)
    unknown = np.full((4000, 1), np.nan)
    candidates = [Candidate("better", better), Candidate("worse", worse), Candidate("unknown", unknown)]
    got = prune(log, candidates, estimator=Estimator.SNIPS, margin=0.05)
    assert [each.advice for each in got] == [Advice.KEEP, Advice.DROP, Advice.CANNOT_SAY]
    assert "no probability under the target" in got[2].text
    assert {str(advice) for advice in Advice} == {"keep", "drop", "cannot say"}
    hides = prune(log, candidates[:2], estimator=Estimator.SNIPS, margin=0.05, lower_is_better=True)
    assert [each.advice for each in hides] == [Advice.DROP, Advice.KEEP]


def test_a_loss_within_the_margin_or_not_shown_is_kept() -> None:
    log, _, worse = two_items(4000)
    (wide,) = prune(log, [Candidate("worse", worse)], estimator=Estimator.SNIPS, margin=0.5)
    assert wide.advice is Advice.KEEP
    few = two_items(300)
    (unsure,) = prune(
        few[0], [Candidate("worse", few[2])], estimator=Estimator.SNIPS, margin=0.15, limits=Limits(users=0, events=20)
    )
    assert unsure.advice is Advice.KEEP
    # Against another champion the same candidate is no worse at all.
    (same,) = prune(log, [Candidate("worse", worse)], estimator=Estimator.SNIPS, margin=0.0, champion=worse)
    assert same.relative == pytest.approx(0)
    assert same.advice is Advice.KEEP


def test_nothing_is_said_where_the_champion_itself_cannot_be_read() -> None:
    log, better, _ = two_items(60)
    (got,) = prune(log, [Candidate("better", better)], estimator=Estimator.IPS, margin=0.05)
    assert got.advice is Advice.CANNOT_SAY
    assert "champion's own value cannot be read: 60 users" in got.text
    with pytest.raises(InputError, match="The margin is 1"):
        prune(log, [], estimator=Estimator.IPS, margin=1.0)


# --- Omnifeed's own explored traffic ---


@pytest.mark.parametrize("seed", range(5))
def test_propensities_are_servings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, authors, new = rng.normal(size=60), rng.integers(-1, 6, 60), rng.random(60) < 0.2
    policy = {"creator_limit": 2, "temperature": 0.5, "new_every": 4}
    drawn = fill(scores, authors, new, 10, **policy, request_id=f"request-{seed}", sampled=True)
    part = np.union1d(np.argsort(-scores)[:50], np.flatnonzero(new))
    places = np.searchsorted(part, drawn.places)
    assert sum(drawn.kept) == 2
    found = slate_propensities(scores[part], authors[part], places, new=new[part], **policy)
    assert found.tolist() == pytest.approx(list(drawn.propensities or ()), rel=1e-12)


def test_orders_given_what_was_shown_equal_their_enumeration() -> None:
    rng = np.random.default_rng(3)
    scores, fresh, none = rng.normal(size=9), rng.normal(size=9), np.full(9, -1)
    slate = np.array([4, 0, 7, 2, 5])
    log = LoggedSlates(
        np.zeros(1, int),
        np.ones((1, 5), bool),
        slate_propensities(scores, none, slate, creator_limit=9, temperature=0.5)[None],
        np.zeros((1, 5)),
    )
    got = reordering(log, fresh[slate][None], none[slate][None], 9, 0.7, depth=4)
    orders = list(itertools.permutations(slate[:4].tolist()))
    chance = [
        slate_propensities(scores, none, np.array(order), creator_limit=9, temperature=0.5).prod() for order in orders
    ]
    for place in range(4):

        def share(count: int) -> float:
            same = [one for order, one in zip(orders, chance, strict=True) if order[:count] == tuple(slate[:count])]
            return sum(same) / sum(chance)

        assert got.slates.propensity[0, place] == pytest.approx(share(place + 1) / share(place), rel=1e-9)
    assert got.target[0, :4] == pytest.approx(
        slate_propensities(fresh[slate[:4]], none[:4], np.arange(4), creator_limit=9, temperature=0.7)
    )
    assert (got.slates.propensity[0, 4], got.target[0, 4]) == (1, 1)


def serve(folder: Path, requests: int, pool: int = 12) -> dict[str, float]:
    """Explored traffic of a market where an item's number says how well it is clicked; its truth by enumeration."""
    rng = np.random.default_rng(9)
    names = [f"i{number}" for number in range(pool)]
    appeal = np.linspace(0.1, 0.8, pool)
    authors = np.arange(pool)
    exposures, outcomes = [], []
    for number in range(requests):
        request, user = f"q{number}", f"u{number % (requests // 2)}"
        scores = rng.normal(size=pool).astype(np.float32)
        drawn = fill(scores, authors, np.zeros(pool, bool), 4, creator_limit=3, new_every=0, temperature=1.0,
                     request_id=request, sampled=True)  # fmt: skip
        assert drawn.propensities is not None
        for position, place in enumerate(drawn.places):
            common = {"request_id": request, "item_id": names[place]}
            exposures.append({**common, "position": position, "user_id": user, "scenario": "search", "query": None,
                              "arm": "champion", "release": "1", "ts": number + 1, "locale": None, "device": None,
                              "propensity": drawn.propensities[position] if number % 10 else None})  # fmt: skip
            if rng.random() < appeal[place] / (1 + position):
                outcomes.append({**common, "name": "click", "value": 1, "ts": number + 2, "observed_ts": number + 2})
    for name, lines in (("exposures", exposures), ("outcomes", outcomes)):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return dict(zip(names, appeal.tolist(), strict=True))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, dict[str, float]]:
    folder = tmp_path_factory.mktemp("served")
    appeal = serve(folder, 5000)
    return served_events(folder), appeal


def test_a_new_order_of_explored_answers_is_judged_from_the_logs_alone(
    served: tuple[pa.Table, dict[str, float]],
) -> None:
    events, appeal = served
    explored = explored_slates(events, "click")
    assert len(explored.request_id) == 4500  # every tenth was not explored
    scores = np.array([[appeal[item] for item in row] for row in explored.item_id])
    authors = np.array([[int(item[1:]) for item in row] for row in explored.item_id])
    got = reordering(explored.slates, scores, authors, 3, 0.8, depth=3)
    assert got.crowded == 0
    # The truth given what was shown: enumerate the orders of the first three items, the fourth stays.
    truth, orders = 0.0, list(itertools.permutations(range(3)))
    for row in scores:
        for order in orders:
            chance = slate_propensities(
                row[:3], np.full(3, -1), np.array(order), creator_limit=9, temperature=0.8
            ).prod()
            truth += chance * sum(row[place] / (1 + rank) for rank, place in enumerate((*order, 3)))
    truth /= len(scores)
    for kind in (Estimator.IPS, Estimator.SNIPS, Estimator.RIPS, Estimator.SNRIPS):
        found = estimate(kind, got.slates, got.target, alpha=0.001)
        assert found.usable, found.refusals
        assert found.low < truth < found.high, kind
    assert truth > explored.slates.reward.sum(1).mean() * 1.02  # and it is another one than the log's own


def test_probabilities_of_the_wrong_pool_are_refused(served: tuple[pa.Table, dict[str, float]]) -> None:
    events, appeal = served
    explored = explored_slates(events, "click")
    lines = []
    for request, row in zip(explored.request_id, explored.item_id, strict=True):
        among_shown = slate_propensities(
            np.array([appeal[item] for item in row]), np.full(4, -1), np.arange(4), creator_limit=9, temperature=1.0
        )
        lines += [(request, str(item), chance) for item, chance in zip(row, among_shown, strict=True)]
    target = target_probabilities(explored, *zip(*lines, strict=True))
    found = estimate(Estimator.RIPS, explored.slates, target)
    assert Reason.WEIGHTS_NOT_ONE in {refusal.reason for refusal in found.refusals}
    missing = target_probabilities(explored, *zip(*lines[1:], strict=True))
    assert [each.reason for each in estimate(Estimator.IPS, explored.slates, missing).refusals] == [
        Reason.TARGET_MISSING
    ]


def test_crowded_sets_and_incomplete_answers_are_left_out(served: tuple[pa.Table, dict[str, float]]) -> None:
    events, _ = served
    first = events.filter(pa.compute.is_valid(events["propensity"]))
    torn = pa.concat_tables([first.slice(0, 1), first.slice(2)])  # the second position of the first answer is lost
    explored = explored_slates(torn, "click")
    assert (explored.incomplete, len(explored.request_id)) == (1, 4499)
    with pytest.raises(InputError, match="no reward 'smile'"):
        explored_slates(events, "smile")
    with pytest.raises(InputError, match="not a number"):
        explored_slates(events, "arm")
    assert explored_slates(events.slice(0, 0), "click").slates.shown.shape == (0, 0)
    authors = np.zeros(explored.slates.shown.shape, int)
    authors[1:] = np.arange(4)
    got = reordering(explored.slates, np.ones(authors.shape), authors, 3, 1.0, depth=3)
    assert (got.crowded, got.rows.sum()) == (1, 4498)


def test_folds_belong_to_users() -> None:
    users = [f"u{number % 50}" for number in range(200)]
    folds = user_folds(users, 5)
    assert set(folds.tolist()) == set(range(5))
    assert (folds[:50] == folds[50:100]).all()


# --- a real log ---


@pytest.mark.skipif(not OPEN_BANDIT.is_dir(), reason="Open Bandit is not here")
@pytest.mark.parametrize("campaign", ["all", "men", "women"])
def test_open_bandit_has_too_few_clicks_to_be_believed(campaign: str) -> None:
    log = read_parquet(OPEN_BANDIT / f"bts_{campaign}.parquet")
    other = read_parquet(OPEN_BANDIT / f"random_{campaign}.parquet")
    chance = other["propensity_score"].to_numpy()
    count = log.num_rows
    slates = LoggedSlates(
        np.arange(count),
        np.ones((count, 1), bool),
        log["propensity_score"].to_numpy()[:, None],
        log["click"].to_numpy().astype(float)[:, None],
    )
    got = estimate(Estimator.IPS, slates, np.full((count, 1), chance[0]))
    assert Reason.TOO_FEW_EVENTS in {refusal.reason for refusal in got.refusals}
    assert got.low < other["click"].to_numpy().mean() < got.high
