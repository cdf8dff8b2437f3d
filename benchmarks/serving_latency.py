"""`recommend` under load, beside the same engine without a server, and behind FastAPI and KServe's Python server.

k = 50, 200 candidates, histories of 100 events, one Triton with two instances of `recommend`, two cores. All sides run
at the same time on the machine and are asked in turn, round by round, so that a noisy minute falls on all of them; of
each number the median of the rounds is given, with the least and the greatest. The load comes from threads of this
process, on the same cores.

    python benchmarks/serving_latency.py [--items 100000] [--rounds 5] [--seconds 4]

With --items 1000000 only Triton and the engine in process run (two more copies of that catalogue would not fit).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton
from record import row, write_result
from serving_stack import asked, settings, stack
from web_sides import WEB, WORKERS, Side, serving

from omnifeed.config import Config
from omnifeed.export.onnx_parts import OnnxParts
from omnifeed.features.online import FeatureClient
from omnifeed.features.store import read_user
from omnifeed.home import Home
from omnifeed.serving import server as server_module
from omnifeed.serving.client import Client
from omnifeed.serving.processes import HOST
from omnifeed.serving.recommend.contract import Request, Stage
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.live import Live
from omnifeed.serving.server import LocalServer

CLIENTS = (1, 4, 16)
WARM = 40
COMPARED = 60  # requests whose answers must be the same on every side
WEB_NOTE = f"FastAPI (uvicorn) and KServe's Python server: {WORKERS} workers each, the same engine, JSON over HTTP."
MODELS = ("recommend", "user_encoder_1", "ranker_1")


def measured(
    side: Side, clients: int, seconds: float, now: int, config: Config, start: int
) -> tuple[list[float], float]:
    """Milliseconds of each answer, and answers a second."""
    end = time.perf_counter() + seconds

    def one(client: int) -> list[float]:
        ask, times, number = side.caller(), [], start + client * 100_000
        while time.perf_counter() < end:
            request = asked(number, now, config, f"{side.name}-")
            begun = time.perf_counter()
            answer = ask(request)
            times.append((time.perf_counter() - begun) * 1_000)
            number += 1
            if clients == 1:
                stages = getattr(answer, "stage_ms", None) or getattr(answer, "stages", None) or {}
                for stage, ms in stages.items():
                    side.stages[stage.value].append(ms)
        return times

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = [ms for part in pool.map(one, range(clients)) for ms in part]
    return times, len(times) / (time.perf_counter() - begun)


def engine(home: Home, config: Config, folder: Path, features: Any) -> Recommender:
    """The server's engine in this process."""
    live = Live(home, config, lambda number: OnnxParts(home.releases / number, threads=config.serving.threads))
    while not live.refresh():
        pass
    return Recommender(live, features, ExposureLog(Home(folder / "log"), 1), config.serving, lambda: 0, True)


class OwnStore:
    """Feast read in this process, without its server."""

    def __init__(self, home: Home, config: Config) -> None:
        self._home, self._config = home, config

    def user(self, user_id: str, timeout_s: float) -> Any:
        return read_user(self._home, user_id, self._config)


def memory_mib(pid: int) -> float:
    """Proportional set size of a process and its children; shared memory is counted once."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes) / 2**20


class Peak:
    """The greatest memory of a process tree, looked at twice a second."""

    def __init__(self) -> None:
        self.mib, self._pid, self._stop = 0.0, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def of(self, pid: int) -> None:
        self._pid = pid

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            if self._pid:
                try:
                    self.mib = max(self.mib, memory_mib(self._pid))
                except psutil.Error:
                    continue

    def stop(self) -> float:
        self._stop.set()
        self._thread.join()
        return self.mib


def statistics(url: str) -> dict[str, tuple[int, float, float]]:
    """By model: executions, milliseconds in its queue and in computing, all told."""
    client = triton.InferenceServerClient(url)
    result = {}
    for name in MODELS:
        stats = client.get_inference_statistics(name).model_stats[0].inference_stats
        compute = sum(part.ns for part in (stats.compute_input, stats.compute_infer, stats.compute_output))
        result[name] = (stats.success.count, stats.queue.ns / 1e6, compute / 1e6)
    client.close()
    return result


def same_answers(sides: list[Side], now: int, config: Config) -> float:
    """The share of requests that all sides answer with the same items in the same order."""
    callers = [side.caller() for side in sides]
    equal = 0
    for number in range(COMPARED):
        answers = []
        for side, ask in zip(sides, callers, strict=True):
            answer = ask(asked(number, now, config, "same-"))
            items, degraded = (
                (answer["item_ids"], answer["degraded"])
                if isinstance(answer, dict)
                else (answer.item_ids, answer.degraded)
            )
            if degraded:
                raise RuntimeError(f"{side.name} answered without {list(degraded)}")
            answers.append(tuple(items))
        equal += len(set(answers)) == 1
    return equal / COMPARED


def compare(sides: list[Side], rounds: int, seconds: float, now: int, config: Config) -> None:
    """Ask the sides in turn."""
    for side in sides:
        ask = side.caller()
        for number in range(WARM):
            ask(asked(number, now, config, f"{side.name}-warm-"))
    for number in range(rounds):
        for clients in CLIENTS:
            for side in sides:
                if clients > 1 and not side.concurrent:
                    continue
                times, rate = measured(side, clients, seconds, now, config, number * 10_000)
                for name, value in (
                    ("p50", np.percentile(times, 50)),
                    ("p99", np.percentile(times, 99)),
                    ("rate", rate),
                ):
                    side.figures[name, clients].append(float(value))
                print(
                    f"round {number} {side.name:<28} {clients:>2} clients  p50 {np.percentile(times, 50):7.2f}  "
                    f"p99 {np.percentile(times, 99):7.2f} ms  {rate:7.1f}/s",
                    flush=True,
                )


def rows_of(sides: list[Side]) -> list[dict[str, Any]]:
    """One row a side, number of clients and figure."""
    units = {"p50": "ms, p50", "p99": "ms, p99", "rate": "requests/s"}
    return [
        row(units[name], float(np.median(values)), min(values), max(values), side=side.name, clients=clients)
        for side in sides
        for (name, clients), values in side.figures.items()
    ]


def shares(server: Side, local: Side, before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Where a single client's time goes in Triton, and what of it is Triton's own."""
    rows = []
    for stage in Stage:
        mine, theirs = server.stages.get(stage.value), local.stages.get(stage.value)
        if mine and theirs:
            rows.append(row("ms, median", float(np.median(mine)), side=server.name, stage=stage.value))
            rows.append(row("ms, median", float(np.median(theirs)), side=local.name, stage=stage.value))
    trip = float(np.median(server.figures["p50", 1]))
    inside = float(np.median(server.stages["total"]))
    rows.append(row("ms, median", trip - inside, side=server.name, stage="gRPC, queue and the way into recommend"))
    for model in MODELS[1:]:
        count = after[model][0] - before[model][0]
        queue, compute = (after[model][n] - before[model][n] for n in (1, 2))
        rows.append(row("ms, mean", queue / count, side=server.name, stage=f"{model}: its queue"))
        rows.append(row("ms, mean", compute / count, side=server.name, stage=f"{model}: in its process"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--folder", type=Path, help="kept and used again; default: a temporary one")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="omnifeed-latency-"))
    server_module.START_S = 1_800.0  # a million items take their time to encode
    config = settings()
    home, now = stack(folder / str(options.items), options.items, config)
    try:
        comparison(home, now, config, options, folder)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def others_of(large: bool) -> str:
    """Beside what `recommend` is measured."""
    return "its engine in process" if large else "its engine in process, FastAPI and KServe"


def comparison(home: Home, now: int, config: Config, options: argparse.Namespace, folder: Path) -> None:
    """All sides in turn."""
    large = options.items > 200_000
    peak, begun = Peak(), time.monotonic()
    with LocalServer(home, config, simulated_clock=True) as server, Client(server.url, deadline_s=30) as client:
        started = time.monotonic() - begun
        peak.of(server.children[0].pid)
        port = server.config.serving.features_port
        local = engine(home, server.config, folder, FeatureClient(HOST, port))
        sides = [
            Side("Triton", lambda: lambda request: client.recommend(**request)),
            Side("in process", lambda: lambda request: local.recommend(Request(**request)), concurrent=False),
        ]
        if not large:
            bare = engine(home, server.config, folder, OwnStore(home, server.config))
            sides.append(
                Side("in process, Feast as well", lambda: lambda request: bare.recommend(Request(**request)), False)
            )
        rows: list[dict[str, Any]] = []
        with contextlib.ExitStack() as others:
            if not large:
                sides += [others.enter_context(serving(web, home, server.config, folder, now)) for web in WEB]
            equal = same_answers(sides, now, config)
            before = statistics(server.url)
            compare(sides, options.rounds, options.seconds, now, config)
            after = statistics(server.url)
            rows.append(row("share of equal answers", equal))
            rows.append(row("processes that wanted to run, mean of 5 minutes", os.getloadavg()[1], side="the machine"))
            rows.extend(rows_of(sides))
            first = sides[0].figures
            for name, bound in (("p50", 2), ("p99", 3)):
                for other in sides[1:3]:
                    pairs = zip(first[name, 1], other.figures[name, 1], strict=True)
                    ratios = [mine / theirs for mine, theirs in pairs]
                    against = f"Triton to {other.name}, one client, {name} (wanted: at most {bound})"
                    rows.append(row("ratio", float(np.median(ratios)), min(ratios), max(ratios), of=against))
            rows.extend(shares(sides[0], sides[1], before, after))
        rows.append(row("MiB", memory_mib(server.children[0].pid), side="Triton, all its processes"))
        rows.append(row("MiB, peak", peak.stop(), side="Triton, all its processes"))
        rows.append(row("s", started, side="Triton with the feature server", stage="start until every arm answers"))
    name = "serving_latency" if options.items == 100_000 else f"serving_latency_{options.items}"
    write_result(
        name,
        f"`recommend` beside {others_of(large)}: k 50, 200 candidates, {options.items:,} items",
        rows,
        data="simulated market, tiny, its items repeated; histories of 100; random weights of the default model",
        seeds=[0],
        notes=[
            "Median of the rounds, with the least and the greatest. The load generator and all sides share two cores.",
            "In process: the server's engine over onnxruntime, the user's row from the same feature server by HTTP"
            + ("." if large else "; 'Feast as well' reads Feast's SQLite store in the same process."),
            *([] if large else [WEB_NOTE]),
            "The clients of all servers, and the engine in process, run in the load generator's process.",
            "On a machine that others use as well (see the load), one busy thread waits longer for a core than several "
            "processes that sleep between their parts: the ratios then flatter Triton. A quiet machine decides.",
        ],
        libraries=("numpy", "onnxruntime", "tritonclient"),
    )


if __name__ == "__main__":
    main()
