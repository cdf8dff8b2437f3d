"""What a challenger whose ranker hangs costs the champion's users: their latency beside a healthy challenger's time.

    python benchmarks/challenger_cost.py [--items 20000] [--rounds 7] [--seconds 8]

One server with two challengers: a copy of the champion, and one that counts to a trillion before it ranks, at full load
of one core. Four clients ask for users of the champion and of one challenger in turn, round by round, and the
champion's are timed. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from record import ROOT, row, write_result
from serving_stack import FOREVER, asked, settings, stack

sys.path.insert(0, str(ROOT / "tests"))

from export.releases import never_answers, variant

from omnifeed.config import Config
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.home import Home, write_json
from omnifeed.serving.client import Client
from omnifeed.serving.server import LocalServer

CLIENTS = 4
HEALTHY, HANGING = "2", "3"
WARM_S = 2.0


def route(home: Home) -> None:
    """A third of the users to each."""
    arms = (Arm("champion", "1", 0.34), Arm(HEALTHY, HEALTHY, 0.33), Arm(HANGING, HANGING, 0.33))
    write_json(home.experiments / "current.json", Experiment("cost", "salt", arms, 0, FOREVER, "").to_dict())


def timed(client: Client, challenger: str, seconds: float, now: int, config: Config, label: str) -> list[float]:
    """Milliseconds of the champion's answers while as many are asked of the challenger."""
    end = time.perf_counter() + seconds

    def one(number: int) -> list[float]:
        times: list[float] = []
        for turn in range(10**6):
            if time.perf_counter() >= end:
                return times
            request = asked(number * 10**6 + turn, now, config, f"{label}-")
            request["arm"] = ("champion", challenger)[turn % 2]
            begun = time.perf_counter()
            client.recommend(**request)
            if request["arm"] == "champion":
                times.append((time.perf_counter() - begun) * 1_000)
        return times

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [ms for part in pool.map(one, range(CLIENTS)) for ms in part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    options = parser.parse_args()
    folder, config = Path(tempfile.mkdtemp(prefix="omnifeed-cost-")), settings()
    home, now = stack(folder, options.items, config)
    variant(home, HEALTHY, lambda _: None)
    variant(home, HANGING, never_answers)
    figures: dict[str, list[np.ndarray]] = {HEALTHY: [], HANGING: []}
    route(home)
    with LocalServer(home, config, simulated_clock=True) as server, Client(server.url, deadline_s=20) as client:
        for number in range(options.rounds):
            for challenger, rounds in figures.items():
                timed(client, challenger, WARM_S, now, config, f"warm-{number}-{challenger}")
                times = timed(client, challenger, options.seconds, now, config, f"{number}-{challenger}")
                rounds.append(np.percentile(times, [50, 99]))
                print(f"round {number} challenger {challenger}  p50, p99 {rounds[-1].round(1)} ms", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    for place, name in enumerate(("p50", "p99")):
        healthy, hanging = (np.array(figures[number])[:, place] for number in (HEALTHY, HANGING))
        for label, values in (("healthy", healthy), ("hanging", hanging)):
            rows.append(row(f"ms, {name}", float(np.median(values)), values.min(), values.max(), challenger=label))
        ratios = hanging / healthy
        of = f"champion's {name}, hanging to healthy challenger"
        rows.append(row("ratio", float(np.median(ratios)), ratios.min(), ratios.max(), of=of))
    write_result(
        "challenger_cost",
        f"The champion's latency beside a challenger that hangs: {CLIENTS} clients, k 50, {options.items:,} items",
        rows,
        data="simulated market, tiny, its items repeated; histories of 100; random weights of the default model",
        seeds=[0],
        notes=[
            "Wanted: p99 at most 1.1 times. Median of the rounds, with the least and the greatest.",
            "The hanging ranker is stopped after half a second by the stand-in for the ONNX Runtime backend, and asked "
            "again ever more rarely, at last every 30 s. NVIDIA's C++ backend was not run.",
        ],
        libraries=("numpy", "onnxruntime", "tritonclient"),
    )


if __name__ == "__main__":
    main()
