"""A home whose champion is a real network, asked in process by users whose rows come from the lake's events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from export.releases import NOW, config, copied, experiment, workshop

from omnifeed.config import Config, MonitoringConfig
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.encode import UserRow
from omnifeed.export.onnx_parts import OnnxParts
from omnifeed.features.aggregates import user_features_asof
from omnifeed.features.history import histories_asof
from omnifeed.features.online import user_row
from omnifeed.features.refresh import refresh_catalogue
from omnifeed.home import Home
from omnifeed.quality.lake import accepted
from omnifeed.serving.recommend.contract import Request
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.feature_log import FeatureLog
from omnifeed.serving.recommend.live import Live
from omnifeed.tables import EVENTS, Tables, read_parquet, write_tables

HOUR = 3_600_000_000
USERS = tuple(f"u{number}" for number in range(20))
Spoil = Callable[[dict[str, Any]], Mapping[str, Any]]


def settings() -> Config:
    return replace(config(), monitoring=MonitoringConfig(log_share=1.0))


def prepared(folder: Path) -> Home:
    """Releases, a ledger that says 1 is the champion, the lake, and the catalogue as of NOW."""
    home = copied(folder)
    experiment(home, ("champion", "1", 1.0))
    Ledger(home).append("BOOTSTRAP", {"release": "1"}, NOW, expected_champion=None)
    training = workshop() / "training_set"
    events = read_parquet(training / "rows.parquet").select(EVENTS.names)
    items = read_parquet(training / "items.parquet")
    write_tables(Tables(events, items, read_parquet(training / "users.parquet")), accepted(home))
    refresh_catalogue(home, settings(), items, [accepted(home)], NOW)
    return home


class Rows:
    """What the feature server would answer as of NOW, spoilt where a test says so."""

    def __init__(self, home: Home, spoil: Spoil = dict) -> None:
        daily = _by_user(user_features_asof([accepted(home)], NOW))
        histories = _by_user(histories_asof([accepted(home)], NOW, settings(), USERS))
        self.rows: dict[str, UserRow] = {}
        for user in USERS:
            stamps = {
                f"{view}_as_of": NOW
                for view, rows in (("user_daily", daily), ("user_history", histories))
                if user in rows
            }
            self.rows[user] = user_row(spoil({**daily.get(user, {}), **histories.get(user, {}), **stamps}))

    def user(self, user_id: str, timeout_s: float) -> UserRow:
        return self.rows.get(user_id, UserRow({}))


def _by_user(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row.pop("user_id"): row for row in table.to_pylist()}


def ask_everybody(home: Home, rows: Rows) -> None:
    """Two requests a user, a search and another, in the hours after NOW."""
    live = Live(home, settings(), lambda number: OnnxParts(home.releases / number, threads=1))
    assert live.refresh()
    exposures, features = ExposureLog(home, 1), FeatureLog(home, 1, settings().monitoring)
    recommender = Recommender(live, rows, exposures, settings().serving, lambda: NOW, True, features)
    for number, user in enumerate(USERS):
        for scenario, query in (("search", "red shoe"), ("livestream", None)):
            now = NOW + (1 + number) * HOUR
            recommender.recommend(
                Request(user_id=user, scenario=scenario, query=query, k=5, now=now, request_id=f"{user}{scenario}")
            )
    exposures.close()
    features.close()
