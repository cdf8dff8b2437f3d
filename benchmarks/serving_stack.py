"""A home to load a server with: a network of the default size, a catalogue of any size, users with full histories.

The weights are random: what a request costs does not depend on them. Everything else goes the pipeline's way on a small
simulated market, whose items are repeated under new ids until the catalogue is as large as asked for.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from in_process import prepare

from omnifeed.config import Config, ServingConfig
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.bundle import export_release, export_trending
from omnifeed.export.catalogue import write_snapshot
from omnifeed.export.encode import DAY_US, EncodeSpec
from omnifeed.export.item_features import OWN, SHARED, WITHIN
from omnifeed.export.provenance import git_commit
from omnifeed.features.aggregates import AS_OF
from omnifeed.features.spec import Feature
from omnifeed.features.store import push_users
from omnifeed.home import Home, write_json
from omnifeed.model.network import Network, save_network
from omnifeed.tables import TS

FOREVER = 2**60
USERS = 200
QUERIES = ("red lamp", "winter jacket", "phone case", "running shoes", "coffee", "summer dress", "desk", "toy train")
MARKER = "stack.json"


def settings() -> Config:
    """The tiny market, the default model, free ports, no limit on how often a user may ask."""
    config = Config.load(Path(__file__).resolve().parents[1] / "pipelines/configs/tiny.toml")
    default = Config()
    unlimited = {"explore_share": 0.0, "user_burst": 0, "repeats": 0}
    serving = ServingConfig(grpc_port=0, http_port=0, metrics_port=0, features_port=0, **unlimited)
    return replace(config, model=default.model, serving=serving)


def stack(folder: Path, items: int, config: Config) -> tuple[Home, int]:
    """The home, made where it is not there yet, and the time at which its catalogue and users stand."""
    home = Home(folder / "home")
    marker = folder / MARKER
    if marker.exists() and (made := json.loads(marker.read_text()))["items"] == items:
        return home, made["now"]
    torch.set_num_threads(1)
    market = prepare(config, folder)
    torch.manual_seed(0)
    network = Network(config.model, EncodeSpec.from_config(config), config.model.tasks).eval()
    save_network(network, folder / "checkpoint")
    export_trending(home, config, market.now, git_commit())
    export_release(folder / "checkpoint", market.training_set, home, config, market.now, {}, git_commit())
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, market.now)
    arms = (Arm("champion", "1", 0.5), Arm("challenger", "0", 0.5))
    write_json(home.experiments / "current.json", Experiment("latency", "salt", arms, 0, FOREVER, "").to_dict())
    ids = _catalogue(home, market.world.catalogue(market.now), items, config, market.now)
    _histories(home, ids, config, market.now)
    write_json(marker, {"items": items, "now": market.now})
    return home, market.now


def _catalogue(home: Home, table: pa.Table, items: int, config: Config, now: int) -> list[str]:
    rng = np.random.default_rng(0)
    source = rng.integers(0, table.num_rows, items)
    columns: dict[str, list[Any]] = {
        name: table[name].take(pa.array(source)).to_pylist() for name in table.column_names
    }
    ids = [f"n{number}" for number in range(items)]
    columns["item_id"] = ids
    columns["title"] = [f"{title} {number % 997}" for number, title in enumerate(columns["title"])]
    columns["author_id"] = [f"a{number}" for number in rng.integers(0, max(items // 20, 10), items).tolist()]
    columns["stock"] = [None] * items
    shared = _drawn(rng, SHARED, items)
    features = {
        scenario: {**shared, **_drawn(rng, WITHIN, items), **{one.name: [rng.random()] * items for one in OWN}}
        for scenario in config.data.scenarios
    }
    write_snapshot(home, columns, features, now)
    return ids


def _drawn(rng: np.random.Generator, features: tuple[Feature, ...], items: int) -> dict[str, list[float]]:
    return {one.name: rng.gamma(0.3, 10, items).round(2).tolist() for one in features}


def _histories(home: Home, ids: list[str], config: Config, now: int) -> None:
    """Every user with a full history."""
    rng = np.random.default_rng(1)
    length, scenarios = config.features.history_length, config.data.scenarios
    table = pa.table(
        {
            "user_id": [f"u{user}" for user in range(USERS)],
            AS_OF: pa.array([now - 1] * USERS, pa.int64()).cast(TS),
            "history_item": [[ids[row] for row in rng.integers(0, len(ids), length)] for _ in range(USERS)],
            "history_action": [rng.integers(1, 7, length).tolist() for _ in range(USERS)],
            "history_scenario": [[scenarios[n] for n in rng.integers(0, len(scenarios), length)] for _ in range(USERS)],
            "history_ts": [sorted((now - rng.integers(1, 7 * DAY_US, length)).tolist()) for _ in range(USERS)],
        }
    )
    push_users(home, table, "user_history", config)


def asked(number: int, now: int, config: Config, side: str) -> dict[str, Any]:
    """The number-th request of every side: the same users, scenarios and queries in the same order."""
    scenario = config.data.scenarios[number % len(config.data.scenarios)]
    return {
        "user_id": f"u{number * 7 % USERS}",
        "scenario": scenario,
        "query": QUERIES[number % len(QUERIES)] if scenario == "search" else None,
        "k": 50,
        "arm": "champion",
        "now": now,
        "request_id": f"{side}{number}",
    }
