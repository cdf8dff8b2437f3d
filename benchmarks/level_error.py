"""What a slate loses where a task's probabilities have the wrong level, as a frozen calibration's have after some days.

    python benchmarks/level_error.py [--seeds 3]

The unified networks of benchmarks/unified.py, which trains and keeps them, answer the same visits as there, with each
task's log-odds as calibrated and moved. Measure and days are those of its slates. Writes results/level_error.json.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from record import row, write_result
from unified import RESAMPLES, Floats, cascade, market_of
from unified_variants import UNIFIED

from omnifeed.model.network import Network, load_network

MOVED = (-0.2, 0.2)  # log-odds; KuaiRand's frozen calibration is about .13 low at most (docs/ranking.md)
ALL_TASKS, EXACT = "all", "exact"


def moved(checkpoint: Path, task: str, by: float) -> Network:
    """The network with a task's calibration moved; the order's is its conditional one."""
    network = load_network(checkpoint)
    chosen = slice(None) if task == ALL_TASKS else network.tasks.index(task)
    network.ranker.calibration_bias[:, chosen] += by
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    folder = Path(os.environ.get("OMNIFEED_HOME", ".omnifeed")).absolute() / "unified"
    market = market_of(folder / "market")
    cases = [(task, by) for task in (ALL_TASKS, *market.config.model.tasks) for by in MOVED]
    draws: dict[tuple[str, float], list[Floats]] = {case: [] for case in cases}
    exact = []
    for seed in seeds:
        checkpoint = folder / "networks" / UNIFIED.folder / str(seed)
        arms = {f"{task} {by}": moved(checkpoint, task, by) for task, by in cases}
        answered = cascade(market, {EXACT: load_network(checkpoint), **arms})
        exact.append(answered[EXACT])
        for task, by in cases:
            draws[task, by].append(answered[f"{task} {by}"])
        print(f"seed {seed} answered", flush=True)
    usual, rows = np.mean(exact, axis=0), []
    for (task, by), found in draws.items():
        ratio = 100 * (np.mean(found, axis=0) / usual - 1)
        low, high = np.quantile(ratio[1:], (0.025, 0.975))
        rows.append(row("per cent", float(ratio[0]), float(low), float(high), task=task, log_odds=by))
    write_result(
        "level_error",
        "NDCG@10 of slates where a task's log-odds are off",
        rows,
        data="simulated market of the demo (default law, seed 7); expected GMV of the slates",
        seeds=list(seeds),
        notes=[
            "Relative difference to the same networks as calibrated, in per cent; 95 % over users (Poisson bootstrap, "
            f"{RESAMPLES:,} resamples). Visits, days and gains as in results/unified.json; nothing is chosen by them.",
            "A log-odds of -.1 is a twentieth less of a probability of .5 and a tenth less of a small one. The order's "
            "are those after a click; where clicks move, orders move with them.",
        ],
    )


if __name__ == "__main__":
    main()
