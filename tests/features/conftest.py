"""One materialized home, made once: importing Feast takes seconds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

from features.market import START, small_market
from omnifeed.config import Config
from omnifeed.export.encode import DAY_US
from omnifeed.features.materialize import materialize
from omnifeed.features.training_set import TrainingSet
from omnifeed.home import Home
from omnifeed.tables import Tables, write_tables

HOLDOUT = frozenset({"u1", "u4"})
NOW = START + 5 * DAY_US + DAY_US // 2 + 7  # in the middle of the sixth day


@dataclass(frozen=True, slots=True)
class Market:
    tables: Tables
    accepted: Path
    out: Path
    home: Home
    config: Config
    result: TrainingSet


@pytest.fixture(scope="session")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    root = tmp_path_factory.mktemp("market")
    tables = small_market(seed=5, requests=120, days=6)
    write_tables(tables, root / "accepted")
    config = Config(features=dataclasses.replace(Config().features, history_length=4))
    home = Home(root / "home")
    result = materialize(root / "accepted", root / "out", home, config, NOW, HOLDOUT)
    return Market(tables, root / "accepted", root / "out", home, config, result)
