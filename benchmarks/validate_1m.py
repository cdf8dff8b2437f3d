"""The validate step on one million events: wall time and peak memory of a fresh process, imports included.

    python benchmarks/validate_1m.py

The events are drawn here (numpy, seeded), 1 % of them bad and 2.4 % exact copies, KuaiRand's share, so that quarantine
works too. The second run compares with the first one's profile. Writes results/validate_1m.json.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EVENTS, USERS, ITEMS, DAYS, SEED, RUNS = 1_000_000, 50_000, 20_000, 14, 7, 3
START = 1_772_409_600_000_000  # 2026-03-02, UTC microseconds
DAY = 86_400_000_000


def generate(folder: Path) -> None:
    """Write the table set."""
    import numpy as np
    import pyarrow as pa

    from omnifeed.tables import OUTCOMES, TS, Tables, conform, write_tables

    generator = np.random.default_rng(SEED)
    number = np.arange(EVENTS)
    ts = START + np.sort(generator.integers(0, DAYS * DAY, EVENTS))
    scenario = generator.integers(0, 3, EVENTS)

    def texts(prefix: str, numbers: np.ndarray) -> pa.Array:
        return pa.array([f"{prefix}{n:08x}" for n in numbers.tolist()])

    columns = {
        "event_id": texts("0f3a77c1d2e94b5688a1c3d4", number),
        "request_id": texts("5be1a04477d04a0f", number // 10),
        "user_id": texts("user-", generator.integers(0, USERS, EVENTS)),
        "item_id": texts("item-", generator.integers(0, ITEMS, EVENTS)),
        "scenario": pa.array(["livestream", "short_video", "search"]).take(pa.array(scenario)),
        "ts": pa.array(ts, TS),
        "position": np.where(generator.random(EVENTS) < 0.01, -1, number % 10),
        "served": np.ones(EVENTS, bool),
        "viewed": generator.random(EVENTS) < 0.8,
        "query": pa.array(np.where(scenario == 2, "wireless headphones", None)),
        **{name: generator.random(EVENTS) < 0.1 for name in OUTCOMES},
        "dwell_ms": generator.integers(0, 60_000, EVENTS),
        "gmv": generator.random(EVENTS) * 20,
        "arm": pa.array(["champion"] * EVENTS),
        "release": pa.array(["0"] * EVENTS),
        "propensity": pa.array(generator.uniform(0.01, 1, EVENTS), mask=generator.random(EVENTS) < 0.9),
        "locale": pa.array(["en-GB"] * EVENTS),
        "device": pa.array(["phone"] * EVENTS),
        "observed_ts": pa.array(ts + generator.integers(0, DAY, EVENTS), TS),
    }
    events = conform(pa.table(columns), "events", "benchmark")
    copies = generator.integers(EVENTS // 2, EVENTS, round(EVENTS * 0.024))  # in place of as many first rows
    events = pa.concat_tables([events.slice(len(copies)), events.take(pa.array(copies))])
    created = np.full(ITEMS, START - DAY)
    items = pa.table(
        {
            "item_id": texts("item-", np.arange(ITEMS)),
            "kind": ["product"] * ITEMS,
            "policy": ["ALLOW"] * ITEMS,
            "price": generator.random(ITEMS) * 50,
            "created_ts": pa.array(created, TS),
        }
    )
    users = pa.table({"user_id": texts("user-", np.arange(USERS))})
    write_tables(Tables(events, conform(items, "items", "benchmark"), conform(users, "users", "benchmark")), folder)


def measure(folder: Path) -> None:
    """Validate once; print peak memory, processor time and the quarantined events as JSON."""
    from omnifeed.config import Config
    from omnifeed.quality.validate import validate

    report = validate(
        folder / "tables",
        folder / "accepted",
        folder / "quarantine",
        folder / "quality.html",
        Config(),
        START + DAYS * DAY,
        folder / "last.json",
    )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    processor = usage.ru_utime + usage.ru_stime
    print(json.dumps({"gib": usage.ru_maxrss / 2**20, "cpu": processor, "quarantined": report.quarantined["events"]}))


def main() -> None:
    from record import row, write_result

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "generate", folder], check=True)
        runs = []
        for _ in range(RUNS):
            start = time.perf_counter()
            out = subprocess.run([sys.executable, __file__, "measure", folder], check=True, stdout=subprocess.PIPE)
            runs.append({"s": time.perf_counter() - start, **json.loads(out.stdout)})
    rows = []
    print(f"{'':20}{'median':>10}{'low':>10}{'high':>10}{'at most':>10}")
    for metric, key, budget in (("wall time, s", "s", 30), ("processor time, s", "cpu", None), ("peak, GiB", "gib", 2)):
        low, median, high = (sorted(run[key] for run in runs)[at] for at in (0, RUNS // 2, -1))
        rows.append(row(metric, median, low, high, at_most=budget))
        print(f"{metric:20}{median:>10.2f}{low:>10.2f}{high:>10.2f}{budget or '':>10}")
    quarantined = runs[-1]["quarantined"]
    write_result(
        "validate_1m",
        "The validate step on one million events",
        rows,
        data=f"{EVENTS:,} generated events of {USERS:,} users and {ITEMS:,} items over {DAYS} days",
        seeds=[SEED],
        notes=[
            f"A fresh process each time, imports included; median, lowest and highest of {RUNS} runs.",
            f"{quarantined:,} events go to quarantine: exact copies, and positions below zero. From the second run on, "
            "the first one's profile is compared with as well.",
        ],
        libraries=("great_expectations", "pandas", "pyarrow"),
    )


if __name__ == "__main__":
    steps = {"generate": lambda: generate(Path(sys.argv[2]) / "tables"), "measure": lambda: measure(Path(sys.argv[2]))}
    steps[sys.argv[1]]() if sys.argv[1:] else main()
