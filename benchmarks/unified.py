"""Does one model help? One network with both heads for every scenario, beside networks that share less.

    python benchmarks/unified.py [--seeds 5] [--jobs 2] [--minutes M]

On the simulated market of `make demo`. What is compared and what would refute it was written down before it was run:
docs/decisions/0008-does-one-model-help.md. Writes results/unified.json once every network of every seed is there;
trained networks are kept under $OMNIFEED_HOME/unified, so a command that was ended, by --minutes or by a kill, goes on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from in_process import Market, Pair, prepare
from market_slates import answered, asked_visits
from record import ROOT, row, write_result
from unified_variants import (
    ALONE_SHARE,
    BLIND,
    NO_QUERY,
    PLAIN,
    RANKING,
    RETRIEVAL,
    SCENARIOS,
    SEPARATE,
    SHARED_SHARE,
    STARVED,
    UNIFIED,
    VARIANTS,
    Variant,
)

from omnifeed.config import Config
from omnifeed.evaluation.measure import ALL, Metrics, Population, engaged_ranks, measure
from omnifeed.evaluation.metrics import Ratio, poisson_weights
from omnifeed.evaluation.scorer import EvaluationSet, NetworkScorer, Scored
from omnifeed.export.encode import DAY_US
from omnifeed.features.training_set import TrainingSet
from omnifeed.home import Home
from omnifeed.model.network import Network, load_network
from omnifeed.model.parts import TorchParts
from omnifeed.training.dataset import TrainingData
from omnifeed.training.loop import train
from omnifeed.world.market import World

RESAMPLES = 1_000
K = 50
FOUND = ("recall@50", "ndcg@10")
RANKED = ("auc_click", "auc_order")
AGES = ((0, 1), (1, 3), (3, 7), (7, 10_000))  # days since an item's upload
Floats = npt.NDArray[np.float64]
#: By (scenario, metric): the value with every user once, then RESAMPLES values with the users drawn again.
Draws = dict[tuple[str, str], Floats]


def market_of(folder: Path) -> Market:
    """The demo's market up to its training set; made once."""
    config = Config.load(ROOT / "pipelines" / "configs" / "world.toml")
    if not (folder / "ready").exists():
        prepare(config, folder)
        (folder / "ready").touch()
    training_set = TrainingSet.load(folder / "training_set")
    return Market(config, World(config.world), Home(folder / "home"), training_set.folder, training_set.now)


def fit(folder: Path, index: int, seed: int) -> float:
    """Train VARIANTS[index]; returns its processor seconds."""
    torch.set_num_threads(1)
    variant = VARIANTS[index]
    begun = time.process_time()
    market = market_of(folder / "market")
    training_set = variant.training_set(market.training_set, folder / "sets" / variant.folder)
    train(training_set, folder / "networks" / variant.folder / str(seed), variant.config(market.config, seed))
    return time.process_time() - begun


def fit_all(folder: Path, seeds: int, jobs: int, minutes: float) -> bool:
    """Train what is missing, seed by seed; whether everything is there."""
    market = market_of(folder / "market")
    for variant in VARIANTS:
        variant.training_set(market.training_set, folder / "sets" / variant.folder)
    missing = [
        (variant, seed)
        for seed in range(seeds)
        for variant in VARIANTS
        if not (folder / "networks" / variant.folder / str(seed) / "losses.json").exists()
    ]
    end = time.monotonic() + 60 * minutes
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        while missing and time.monotonic() < end:
            part, missing = missing[:jobs], missing[jobs:]
            running = [pool.submit(fit, folder, VARIANTS.index(variant), seed) for variant, seed in part]
            for (variant, seed), future in zip(part, running, strict=True):
                print(f"{variant.name}, seed {seed}: {future.result():.0f} CPU-seconds", flush=True)
    return not missing


def cold(scored: Scored, data: TrainingData, population: Population) -> Metrics:
    """Recall@50 of engaged items by the days since their upload."""
    pairs, ranks = engaged_ranks(scored, data, population, lambda *_: None)
    hit = ranks < K
    age = (data.requests.ts[pairs[0]] - data.items.created[pairs[1]]) / DAY_US
    user = population.request_user[pairs[0]]
    result: Metrics = {}
    for low, high in AGES:
        chosen = (age >= low) & (age < high)
        counts = np.bincount(user[chosen], minlength=population.users).astype(np.float64)
        hits = np.bincount(user[chosen], hit[chosen], population.users)
        result[ALL, f"recall@50 of items {low} to {high} days old" if high < 1_000 else "recall@50 of older"] = Ratio(
            hits, counts
        )
    return result


def offline(folder: Path, market: Market, variant: Variant, seed: int) -> Draws:
    """Every metric of one network on the test day."""
    own = variant.training_set(market.training_set, folder / "sets" / variant.folder)
    rows = EvaluationSet(own if variant.asked_blind else market.training_set, market.config.model.tasks, "test")
    data = rows.data()
    population = Population.of(data)
    network = load_network(folder / "networks" / variant.folder / str(seed))
    scored = NetworkScorer(TorchParts(network), network.spec, network.tasks).score(rows)
    found = measure(scored, data, population, (10, K), lambda *_: None) | cold(scored, data, population)
    weights = poisson_weights(population.users, RESAMPLES, 0)
    return {key: np.concatenate([[metric.value()], metric.resampled(weights)]) for key, metric in found.items()}


def cascade(market: Market, arms: Mapping[str, Network | Pair]) -> dict[str, Floats]:
    """NDCG@10 of each arm's slates: gains are the items' expected GMV, the ideal is the best of what may be shown."""
    rng = np.random.default_rng(0)
    asked = asked_visits(market, rng)
    users = sorted({visit.user_id for visits in asked.values() for visit in visits})
    number = {user: place for place, user in enumerate(users)}
    sums, counts = {arm: np.zeros(len(users)) for arm in arms}, np.zeros(len(users))
    discount = 1 / np.log2(np.arange(2, 12))
    for visit, slates, worth in answered(market, asked, arms, rng):
        ideal = (np.sort(list(worth.values()))[::-1][:10] * discount).sum()
        if ideal <= 0:
            continue
        counts[number[visit.user_id]] += 1
        for arm in arms:
            gains = np.array([worth[item] for item in slates[arm][:10]])
            sums[arm][number[visit.user_id]] += (gains * discount[: len(gains)]).sum() / ideal
    weights = np.concatenate([np.ones((1, len(users))), poisson_weights(len(users), RESAMPLES, 1)])
    return {arm: (weights @ total) / (weights @ counts) for arm, total in sums.items()}


def against(label: str, scenario: str, metric: str, ours: Sequence[Draws], theirs: Sequence[Draws]) -> dict[str, Any]:
    """Relative difference of the means over seeds, in per cent, with its interval over users."""
    mine, other = (np.mean([draws[scenario, metric] for draws in side], axis=0) for side in (ours, theirs))
    with np.errstate(all="ignore"):
        ratio = 100 * (mine / other - 1)
    low, high = np.nanquantile(ratio[1:], (0.025, 0.975))
    labels = {"of": f"{metric}, unified against {label}", "scenario": scenario}
    return row("per cent", float(ratio[0]), float(low), float(high), **labels)


def compared(found: Mapping[str, Sequence[Draws]]) -> list[dict[str, Any]]:
    """Every comparison that the decision names."""
    ours, rows = found[UNIFIED.name], []
    for scenario in (ALL, *SCENARIOS):
        rows += [against(RETRIEVAL.name, scenario, metric, ours, found[RETRIEVAL.name]) for metric in FOUND]
        rows += [against(RANKING.name, scenario, metric, ours, found[RANKING.name]) for metric in RANKED]
        for other in (BLIND, PLAIN):
            rows += [against(other.name, scenario, name, ours, found[other.name]) for name in (*FOUND, *RANKED)]
    for scenario, other in SEPARATE.items():
        rows += [against(other.name, scenario, name, ours, found[other.name]) for name in (*FOUND, *RANKED)]
    for share, other in ALONE_SHARE.items():
        both = found[SHARED_SHARE[share].name], found[other.name]
        rows += [against(other.name, STARVED, name, *both) for name in (*FOUND, *RANKED)]
    rows += [against(NO_QUERY.name, "search", name, ours, found[NO_QUERY.name]) for name in (*FOUND, *RANKED)]
    for _, metric in (key for key in ours[0] if "old" in key[1]):
        rows.append(against(RETRIEVAL.name, ALL, metric, ours, found[RETRIEVAL.name]))
    return rows


def plain(found: Mapping[str, Sequence[Draws]]) -> list[dict[str, Any]]:
    """Each network's own figures, mean over seeds."""
    rows = []
    for name, seeds in found.items():
        for scenario, metric in seeds[0]:
            if metric in (*FOUND, *RANKED):
                values = np.mean([draws[scenario, metric] for draws in seeds], axis=0)
                low, high = np.nanquantile(values[1:], (0.025, 0.975))
                rows.append(row(metric, float(values[0]), float(low), float(high), network=name, scenario=scenario))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, each with one thread")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no further training begins")
    options = parser.parse_args()
    folder = Path(os.environ.get("OMNIFEED_HOME", ".omnifeed")).absolute() / "unified"
    if not fit_all(folder, options.seeds, options.jobs, options.minutes):
        sys.exit("Not every network is trained; the same command goes on.")
    market = market_of(folder / "market")
    torch.set_num_threads(1)
    found: dict[str, list[Draws]] = {}
    for variant in VARIANTS:
        found[variant.name] = [offline(folder, market, variant, seed) for seed in range(options.seeds)]
        print(f"measured {variant.name}", flush=True)
    arms: dict[str, Network | Pair] = {}
    for seed in range(options.seeds):
        one, first, second = (
            load_network(folder / "networks" / variant.folder / str(seed)) for variant in (UNIFIED, RETRIEVAL, RANKING)
        )
        arms |= {f"one-{seed}": one, f"two-{seed}": Pair(first, second)}
    slates = cascade(market, arms)
    one, two = (
        [{(ALL, "ndcg@10 of slates"): slates[arm]} for arm in arms if arm.startswith(kind)] for kind in ("one", "two")
    )
    rows = [*compared(found), against("two models", ALL, "ndcg@10 of slates", one, two), *plain(found)]
    write_result(
        "unified",
        "One network for both heads and every scenario, beside networks that share less",
        rows,
        data="simulated market of the demo (default law, seed 7); test day, and expected GMV for the slates",
        seeds=list(range(options.seeds)),
        notes=[
            "Registered before it was run: docs/decisions/0008-does-one-model-help.md.",
            "Per cent: relative difference of the means over seeds; intervals 95 % over users (Poisson bootstrap, "
            f"{RESAMPLES:,} resamples, the same for both sides). They hold the seeds fixed.",
        ],
    )


if __name__ == "__main__":
    main()
