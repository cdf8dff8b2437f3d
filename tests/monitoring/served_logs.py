"""Served days as a server would have logged them, drawn from a seed; what is planted is an argument."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from omnifeed.export.encode import CANDIDATE_DIMS, DAY_US, USER_DIMS
from omnifeed.monitoring.profile import CANDIDATE_NAMES

START = 1_772_409_600_000_000  # 2026-03-02 00:00 UTC
SCENARIOS = ("livestream", "search")
TASKS = ("click", "order")
SLATE = 4
Change = Callable[[dict[str, Any]], None]


def write_day(
    folder: Path,
    day: int,
    requests: int = 120,
    click_rate: float = 0.25,
    change: Change = lambda line: None,
    late_us: int = 0,
    release: str = "1",
) -> None:
    """One day of an experiment's folder: exposures, outcomes and features of every request.

    Args:
        change: mends each feature line before it is written.
        late_us: from a click until it is known.
    """
    rng = np.random.default_rng([day, 5])
    lines: dict[str, list[dict[str, Any]]] = {"exposures": [], "outcomes": [], "features": []}
    for number in range(requests):
        request, user = f"d{day}r{number}", f"u{rng.integers(0, 60)}"
        ts = START + day * DAY_US + int(rng.random() * DAY_US)
        scenario = SCENARIOS[number % len(SCENARIOS)]
        items = [f"i{item}" for item in rng.choice(80, SLATE, replace=False)]
        appeal = rng.normal(0.0, 0.4)
        p = 1 / (1 + np.exp(1.1 - appeal - rng.normal(0, 0.3, SLATE)))
        shared = {
            "request_id": request,
            "user_id": user,
            "scenario": scenario,
            "query": "red shoe"[: rng.integers(3, 9)] if scenario == "search" else None,
            "release": release,
            "ts": ts,
            "degraded": [],
        }
        more = {"arm": "champion", "experiment": folder.name, "locale": "en", "device": "phone"}
        for position, item in enumerate(items):
            lines["exposures"].append({**shared, **more, "item_id": item, "position": position})
            told = {"request_id": request, "item_id": item, "value": 1.0, "ts": ts}
            lines["outcomes"].append({**told, "name": "viewed", "observed_ts": ts})
            if rng.random() < p[position] * click_rate / 0.25:
                lines["outcomes"].append({**told, "name": "click", "observed_ts": ts + 1 + late_us})
        line = {
            **shared,
            "user_dense": np.abs(rng.normal(1.0 + 0.2 * appeal, 0.5, USER_DIMS)).tolist(),
            "user_daily_as_of": START + day * DAY_US,
            "user_history_as_of": ts - 1,
            "history_given": False,
            **{name: [] for name in ("history_item", "history_action", "history_scenario", "history_ts")},
            "item_id": items,
            "kind": rng.choice(["video", "product"], SLATE).tolist(),
            "category": rng.choice(["c1", "c2", "c3"], SLATE).tolist(),
            "candidate_dense": np.abs(rng.normal(2.0, 0.7, (SLATE, CANDIDATE_DIMS))).tolist(),
            "probabilities": np.stack([p, p / 10], 1).tolist(),
            "tasks": list(TASKS),
            "catalogue_ts": START + day * DAY_US,
        }
        change(line)
        lines["features"].append(line)
    for kind, rows in lines.items():
        path = folder / kind / f"{day:04d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def twice(name: str) -> Change:
    """A candidate feature in another unit."""
    place = CANDIDATE_NAMES.index(name)

    def change(line: dict[str, Any]) -> None:
        for row in line["candidate_dense"]:
            row[place] *= 2

    return change
