"""A small clean table set, built by hand, and a validation of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnifeed.config import Config
from omnifeed.quality.outcome import QualityReport
from omnifeed.quality.validate import validate
from omnifeed.tables import EVENTS, ITEMS, OUTCOMES, USERS, Tables, conform, read_tables, write_tables

DAY = 86_400_000_000
START = 1_772_409_600_000_000  # 2026-03-02
NOW = START + 4 * DAY
SCENARIOS = ("livestream", "short_video", "search")


def event(number: int) -> dict[str, Any]:
    """Event `number` of a log of one event every eight minutes: clicks on every second, orders on every tenth."""
    ts = START + number * 8 * 60_000_000
    row: dict[str, Any] = {
        "event_id": f"e{number}",
        "request_id": f"r{number // 5}",
        "user_id": f"u{number % 20}",
        "item_id": f"i{number % 30}",
        "scenario": SCENARIOS[number % 3],
        "ts": ts,
        "position": number % 5,
        "served": True,
        "viewed": True,
        "query": "red shoes" if number % 3 == 2 else None,
        "dwell_ms": 1_500,
        "gmv": 0.0,
        "propensity": 0.5,
        "locale": "en",
        "device": "phone",
        "observed_ts": ts + 60_000_000,
    }
    return {**row, **dict.fromkeys(OUTCOMES, False), "click": number % 2 == 0, "order": number % 10 == 0}


def item(number: int) -> dict[str, Any]:
    return {
        "item_id": f"i{number}",
        "author_id": f"a{number % 4}",
        "kind": "product",
        "title": f"Product {number}",
        "price": 9.5,
        "created_ts": START - DAY,
        "product_ids": [f"i{number}"],
        "policy": "ALLOW",
        "stock": 3,
    }


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([field.with_nullable(True) for field in schema]))


@dataclass
class Market:
    """Rows that a test may spoil before it writes them."""

    root: Path
    events: list[dict[str, Any]]
    items: list[dict[str, Any]]
    users: list[dict[str, Any]]

    @property
    def tables_dir(self) -> Path:
        return self.root / "tables"

    @property
    def accepted(self) -> Path:
        return self.root / "accepted"

    @property
    def page(self) -> Path:
        return self.root / "quality.html"

    @property
    def last_profile(self) -> Path:
        return self.root / "last.json"

    def write(self) -> Path:
        """Write the tables and return the file of the first day."""
        tables = Tables(
            conform(table(self.events, EVENTS), "events", "test"),
            conform(table(self.items, ITEMS), "items", "test"),
            conform(table(self.users, USERS), "users", "test"),
        )
        write_tables(tables, self.tables_dir)
        return next(iter(sorted(self.tables_dir.glob("events/*/*.parquet"))), self.tables_dir / "events")

    def validate(self, config: Config | None = None) -> QualityReport:
        """Validate what is on disk."""
        return validate(
            self.tables_dir,
            self.accepted,
            self.root / "quarantine",
            self.page,
            config or Config(),
            NOW,
            self.last_profile,
        )

    def quarantined(self, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.root / "quarantine" / f"{name}.parquet").to_pylist()

    def accepted_tables(self) -> Tables:
        return read_tables(self.accepted)


@pytest.fixture
def make_market(tmp_path: Path) -> Callable[[int], Market]:
    def make(events: int) -> Market:
        return Market(
            tmp_path,
            [event(number) for number in range(events)],
            [item(number) for number in range(30)],
            [{"user_id": f"u{number}", "locale": "en", "signup_ts": START - DAY} for number in range(20)],
        )

    return make


@pytest.fixture
def market(make_market: Callable[[int], Market]) -> Market:
    return make_market(600)
