"""Off-policy estimates against known truth: bias and coverage on the simulated market, and both ways on Open Bandit.

    python benchmarks/offpolicy.py

Writes results/offpolicy.json. Takes about fifteen minutes of one core, most of it to ask the market for every order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from record import row, write_result

from omnifeed.config import WorldConfig
from omnifeed.datasets.open_bandit import CAMPAIGNS
from omnifeed.experiment.offpolicy.estimators import Estimate, Estimator, RewardModel, estimate
from omnifeed.experiment.offpolicy.prune import Advice, Candidate, prune
from omnifeed.experiment.offpolicy.slates import Floats, Ints, LoggedSlates, user_folds
from omnifeed.tables import read_parquet
from omnifeed.world.market import World

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
#: The bounds of `Limits` were set by looking at seeds 11 and 12; this one was first run when they were fixed.
SEED = 13
POOL, SLATE = 5, 3
ORDERS = np.array(list(itertools.permutations(range(POOL), SLATE)))
DAYS = {"default": range(14, 17), "other": range(14, 15)}
REPETITIONS = 1_000
USERS = (1_000, 3_000)
TEMPERATURES = (2.0, 1.0, 0.5)
LEVEL = 0.95


@dataclass(frozen=True)
class Known:
    """Visits, and what every one of the 60 slates of each visit's five candidates would have earned."""

    clicks: Floats  # [N, 60, 3]
    user: Ints  # [N]
    worth: Floats  # [N, 5], expected GMV of each candidate, standardised within the visit


def known(law: str) -> Known:
    world = World(WorldConfig(law=law, seed=SEED, users=6_000))
    rng = np.random.default_rng(0)
    clicks, users, worth = [], [], []
    for day in DAYS[law]:
        items = world.catalogue(world.day_start(day)).to_pydict()
        ids, kinds = np.array(items["item_id"]), np.array(items["kind"])
        for visit in world.visits(day):
            kind = "product" if visit.scenario == "search" else "video"
            pool = rng.choice(ids[kinds == kind], POOL, replace=False).tolist()
            earned = [
                [response.outcomes["click"] for response in world.respond(visit, [pool[place] for place in order])]
                for order in ORDERS
            ]
            clicks.append(earned)
            users.append(visit.user_id)
            worth.append(world.value(visit.user_id, visit.scenario, visit.query, visit.ts, pool))
    return Known(
        np.array(clicks, float), np.unique(users, return_inverse=True)[1], standard(np.log(np.array(worth) + 1e-3))
    )


def standard(scores: Floats) -> Floats:
    spread = np.maximum(scores.std(1, keepdims=True), 1e-9)
    return np.asarray((scores - scores.mean(1, keepdims=True)) / spread)


def drawn(logits: Floats) -> Floats:
    """[N, 5] logits -> the Plackett-Luce probability of each position given those above, [N, 60, 3]."""
    picked = np.exp(logits - logits.max(1, keepdims=True))[:, ORDERS]
    total = np.exp(logits - logits.max(1, keepdims=True)).sum(1)
    above = np.concatenate([np.zeros_like(picked[..., :1]), np.cumsum(picked, 2)[..., :-1]], 2)
    return np.asarray(picked / (total[:, None, None] - above))


def cross_fitted(logits: Floats, slate: Ints, reward: Floats, user: Ints) -> RewardModel:
    """Mean clicks by (position, target's rank of the item), from the other half of the users."""
    count = len(slate)
    rank = np.argsort(np.argsort(-logits, axis=1), axis=1)
    places = ORDERS[slate]
    shown = np.take_along_axis(rank, places, axis=1)
    fold = user % 2
    logged, target = np.zeros((count, SLATE)), np.zeros((count, SLATE))
    chance = np.exp(logits - logits.max(1, keepdims=True))
    for position in range(SLATE):
        total = chance.sum(1, keepdims=True)
        for half in (0, 1):
            learn, apply = fold != half, fold == half
            hits = np.bincount(shown[learn, position], reward[learn, position], POOL)
            rate = (hits + 1) / (np.bincount(shown[learn, position], minlength=POOL) + 10)
            logged[apply, position] = rate[shown[apply, position]]
            target[apply, position] = (chance[apply] / total[apply] * rate[rank[apply]]).sum(1)
        np.put_along_axis(chance, places[:, position : position + 1], 0.0, axis=1)
    return RewardModel(logged, target)


class Market:
    """Draws logs of whole users, with replacement, and fresh slates for each visit."""

    def __init__(self, data: Known, log_logits: Floats) -> None:
        self.data, self.log = data, drawn(log_logits)
        self.cumulative = self.log.prod(2).cumsum(1)
        order = np.argsort(data.user, kind="stable")
        self.visits = np.split(order, np.flatnonzero(np.diff(data.user[order])) + 1)

    def truth(self, target: Floats) -> float:
        return float((target.prod(2)[..., None] * self.data.clicks).sum((1, 2)).mean())

    def sample(self, users: int, rng: np.random.Generator) -> tuple[LoggedSlates, Ints, Ints]:
        chosen = rng.integers(0, len(self.visits), users)
        rows = np.concatenate([self.visits[each] for each in chosen])
        user = np.repeat(np.arange(users), [len(self.visits[each]) for each in chosen])
        luck = rng.random((len(rows), 1)) * self.cumulative[rows, -1:]
        slate = (self.cumulative[rows] < luck).sum(1)
        shown = np.ones((len(rows), SLATE), bool)
        return LoggedSlates(user, shown, self.log[rows, slate], self.data.clicks[rows, slate]), rows, slate


def share_row(metric: str, hits: npt.NDArray[Any], **labels: Any) -> dict[str, Any]:
    """A share of repetitions with its 95 % interval (Wilson)."""
    count = len(hits)
    if not count:
        return row(metric, float("nan"), repetitions=0, **labels)
    share, z = float(hits.mean()), 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * float(np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)))
    return row(metric, share, max(centre - half, 0.0), min(centre + half, 1.0), repetitions=count, **labels)


def coverage(law: str, data: Known, temperature: float, users: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng([SEED, users, int(10 * temperature)])
    noise = standard(np.random.default_rng(1).normal(size=data.worth.shape))
    target_logits = standard(data.worth + 0.3 * noise) / temperature
    market, target = Market(data, 0.6 * noise / temperature), drawn(target_logits)
    truth = market.truth(target)
    found: dict[Estimator, list[tuple[float, ...]]] = {each: [] for each in Estimator}
    for _ in range(REPETITIONS):
        log, rows, slate = market.sample(users, rng)
        model = cross_fitted(target_logits[rows], slate, log.reward, log.user)
        for each in Estimator:
            got = estimate(each, log, target[rows, slate], model=model, alpha=1 - LEVEL)
            reach = got.overlap
            assert reach is not None
            assert got.value is not None
            assert got.low is not None
            assert got.high is not None
            found[each].append(
                (
                    got.value,
                    got.low <= truth <= got.high,
                    got.usable,
                    got.high - got.low,
                    reach.effective_answers / reach.answers,
                    reach.effective_events,
                )
            )
    result = []
    for each, lines in found.items():
        value, covered, usable, width, share, events = np.array(lines).T
        labels = {"law": law, "users": users, "temperature": temperature, "estimator": str(each)}
        error = 1.96 * value.std(ddof=1) / np.sqrt(len(value))
        bias = value.mean() - truth
        result.append(row("relative_bias", bias / truth, (bias - error) / truth, (bias + error) / truth, **labels))
        result.append(share_row("coverage_of_95", covered, **labels))
        result.append(share_row("coverage_of_95_where_not_refused", covered[usable > 0], **labels))
        result.append(row("share_refused", float(1 - usable.mean()), **labels))
        result.append(row("effective_share_median", float(np.median(share)), **labels))
        result.append(row("effective_events_median", float(np.median(events)), **labels))
        result.append(row("interval_width_relative_median", float(np.median(width) / truth), **labels))
        print(labels, *(f"{entry['metric']} {entry['value']:.3f}" for entry in result[-7:]), flush=True)
    return result


def pruning(data: Known) -> list[dict[str, Any]]:
    """How often a candidate is dropped whose loss is exactly the margin, and one that turns the champion round."""
    rng = np.random.default_rng([SEED, 5])
    noise = standard(np.random.default_rng(1).normal(size=data.worth.shape))
    champion_logits = 0.6 * standard(data.worth + noise)
    market = Market(data, champion_logits)
    own = market.truth(market.log)
    bad = drawn(-champion_logits)
    loss = 1 - market.truth(bad) / own
    result = []
    for name, margin in (("loss exactly the margin", loss), ("loss beyond a margin of 0", 0.0)):
        for users in USERS:
            advice = []
            for _ in range(REPETITIONS):
                log, rows, slate = market.sample(users, rng)
                (got,) = prune(log, [Candidate("bad", bad[rows, slate])], estimator=Estimator.SNRIPS, margin=margin)
                advice.append(got.advice)
            for each in Advice:
                hits = np.array([one is each for one in advice])
                labels = {"law": "default", "users": users, "case": f"{name} ({loss:.1%} lost)"}
                result.append(share_row(f"advice_{each.replace(' ', '_')}", hits, **labels))
    return result


def bandit_row(metric: str, got: Estimate, **labels: Any) -> dict[str, Any]:
    assert got.value is not None
    assert got.overlap is not None
    reasons = "; ".join(refusal.reason for refusal in got.refusals)
    events, answers = round(got.overlap.effective_events, 1), round(got.overlap.effective_answers)
    reach = {"effective_events": events, "effective_answers": answers, "refused": reasons}
    return row(metric, got.value, got.low, got.high, **labels, **reach)


def open_bandit(campaign: str) -> list[dict[str, Any]]:
    """Each policy's click rate from the other's log, beside its own; the row is the unit."""
    logs = {
        name: read_parquet(SHARED / "open_bandit_small" / f"{name}_{campaign}.parquet") for name in ("random", "bts")
    }
    column = {
        name: {key: np.array(log[key].to_pylist()) for key in ("item_id", "position", "propensity_score", "click")}
        for name, log in logs.items()
    }
    result = []
    for source, target in (("random", "bts"), ("bts", "random")):
        logged, wanted = column[source], column[target]
        items = int(max(column["random"]["item_id"].max(), column["bts"]["item_id"].max())) + 1
        if target == "random":
            chance = np.full((4, items), 1 / len(np.unique(wanted["item_id"])))
        else:  # the mean over time of a policy that learns: how often it showed the item at the position
            chance = np.zeros((4, items))
            np.add.at(chance, (wanted["position"], wanted["item_id"]), 1)
            chance /= np.maximum(chance.sum(1, keepdims=True), 1)
        count = len(logged["click"])
        clicks, place = logged["click"].astype(float), (logged["position"], logged["item_id"])
        fold = user_folds([f"{source}-{campaign}-{number}" for number in range(count)], 2)
        predicted, averaged = np.zeros(count), np.zeros(count)
        for half in (0, 1):
            learn = fold != half
            hits, seen = np.zeros((2, items))
            np.add.at(hits, logged["item_id"][learn], clicks[learn])
            np.add.at(seen, logged["item_id"][learn], 1)
            rate = (hits + 1_000 * clicks[learn].mean()) / (seen + 1_000)
            predicted[~learn] = rate[logged["item_id"][~learn]]
            averaged[~learn] = (chance @ rate)[logged["position"][~learn]]
        log = LoggedSlates(
            np.arange(count),
            np.ones((count, 1), bool),
            logged["propensity_score"].astype(float)[:, None],
            clicks[:, None],
        )
        labels = {"campaign": campaign, "log": source, "policy": target}
        for each in (Estimator.IPS, Estimator.SNIPS, Estimator.DR):
            model = RewardModel(predicted[:, None], averaged[:, None])
            got = estimate(each, log, chance[place][:, None], model=model)
            result.append(bandit_row("click_rate", got, estimator=str(each), clicks=int(clicks.sum()), **labels))
        ones = np.ones((len(wanted["click"]), 1))
        truth = LoggedSlates(np.arange(len(ones)), ones > 0, ones, wanted["click"].astype(float)[:, None])
        got = estimate(Estimator.IPS, truth, ones)
        labels = {"campaign": campaign, "log": target, "policy": target, "clicks": int(wanted["click"].sum())}
        result.append(row("click_rate", got.value, got.low, got.high, estimator="mean of its own log", **labels))
    return result


def main() -> None:
    rows: list[dict[str, Any]] = []
    if (SHARED / "open_bandit_small").is_dir():
        rows += [each for campaign in CAMPAIGNS for each in open_bandit(campaign)]
    for law in DAYS:
        data = known(law)
        for temperature, users in itertools.product(TEMPERATURES, USERS if law == "default" else USERS[-1:]):
            rows += coverage(law, data, temperature, users)
        if law == "default":
            rows += pruning(data)
    notes = [
        "Simulated market: every one of the 60 ordered slates of three of five candidates was asked of World.respond "
        "for each visit, so the target's value is known exactly. A repetition draws whole users with replacement and a "
        "fresh Plackett-Luce slate a visit; the interval is of level 95 %. Bots, who click everything, are left in.",
        "The bounds at which estimates are refused were set by looking at seeds 11 and 12 (there 1,000 users covered "
        "92.8 to 94.7 % where policies are close); seed 13, shown here, was first run when they were fixed.",
        "temperature divides the logits of both policies: the lower, the further apart they are.",
        "Intervals of coverage are binomial over repetitions, those of relative_bias over repetitions too.",
        "Under law other a click depends on what stands below as well (one choice a screen), which RIPS, SNRIPS and DR "
        "assume away: their relative_bias there is the price of that assumption.",
        "Open Bandit: 10,000 rows a file and 38 to 69 clicks, so every interval is wide and every estimate refused. "
        "The random log judges bts by how often bts showed each item at each position: bts learns, so its logged "
        "propensities vary over time, and their mean over the rows in which an item was shown is 1.7 to 3.7 times too "
        "high. That frequency is itself an estimate from 10,000 rows; its error is not in the intervals.",
    ]
    for entry in rows:
        if entry["metric"].startswith("coverage") and entry.get("repetitions") and abs(entry["value"] - LEVEL) > 0.02:
            labels = ", ".join(f"{name} {entry[name]}" for name in ("law", "users", "temperature", "estimator"))
            refused = "after refusals" if entry["metric"].endswith("refused") else "before refusals"
            notes.append(
                f"Beyond 2 points of 95 %, {refused}: {labels}: {entry['value']:.3f} of {entry['repetitions']}."
            )
    write_result(
        "offpolicy",
        "Off-policy estimates: bias and coverage against known truth, pruning, and Open Bandit both ways",
        [each for each in rows if each["value"] == each["value"]],
        data="the simulated market (laws default and other); ../shared/data/open_bandit_small",
        seeds=[SEED],
        notes=notes,
        libraries=("numpy",),
    )


if __name__ == "__main__":
    main()
