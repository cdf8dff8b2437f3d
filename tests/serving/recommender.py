"""The server's code over onnxruntime in this process, with parts and stores that fail on demand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from export.releases import NOW, config

from omnifeed.config import ServingConfig
from omnifeed.errors import UnavailableError
from omnifeed.export.encode import UserRow
from omnifeed.export.onnx_parts import OnnxParts
from omnifeed.home import Home
from omnifeed.serving.recommend.contract import Answer, Request
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.live import Live
from omnifeed.serving.recommend.parts import Arrays, Parts


class Store:
    """A feature store that holds one user, and can be down."""

    def __init__(self) -> None:
        self.down = False
        self.asked = 0
        items = ("i1", "i2", "no longer in the catalogue")
        self.rows = {
            "known": UserRow({"locale": "de", "user_views_7d": 3.0}, items, (1, 2, 5), ("search",) * 3, (1, 2, 3))
        }

    def user(self, user_id: str, timeout_s: float) -> UserRow:
        self.asked += 1
        if self.down:
            raise UnavailableError("down", "wait")
        return self.rows.get(user_id, UserRow({}))


class Breaking:
    """Parts of which some raise, or whose user encoder lets the trend weigh more; counts the items encoded."""

    def __init__(self, inner: Parts, broken: set[str]) -> None:
        self.inner, self.broken, self.encoded = inner, broken, 0
        self.trend_weight = 0.0

    def _call(self, part: str, inputs: Arrays) -> Arrays:
        if part in self.broken:
            raise RuntimeError(f"{part} is broken")
        result: Arrays = getattr(self.inner, part)(inputs)
        return result

    def item_encoder(self, inputs: Arrays) -> Arrays:
        self.encoded += len(inputs["kind"])
        return self._call("item_encoder", inputs)

    def user_encoder(self, inputs: Arrays) -> Arrays:
        outputs = self._call("user_encoder", inputs)
        return {**outputs, "trend_weight": outputs["trend_weight"] + np.float32(self.trend_weight)}

    def ranker(self, inputs: Arrays) -> Arrays:
        return self._call("ranker", inputs)

    def resting(self) -> str | None:
        return self.inner.resting()


class Server:
    """One home and its recommender."""

    def __init__(self, home: Home, serving: ServingConfig | None = None) -> None:
        self.home = home
        self.store = Store()
        self.parts: dict[str, Breaking] = {}
        self.broken: dict[str, set[str]] = {}
        self.live = Live(home, config(), self.open)
        self.log = ExposureLog(home, 123)
        unlimited = replace(serving or config().serving, user_burst=0, repeats=0)
        self.recommender = Recommender(self.live, self.store, self.log, unlimited, lambda: NOW, simulated_clock=True)

    def open(self, number: str) -> Parts:
        broken = self.broken.setdefault(number, set())
        self.parts[number] = Breaking(OnnxParts(self.home.releases / number, threads=1), broken)
        return self.parts[number]

    def ask(self, **fields: Any) -> Answer:
        usual: dict[str, Any] = {"user_id": "known", "scenario": "search", "request_id": "r", "k": 5}
        return self.recommender.recommend(Request(**{**usual, **fields}))

    def exposures(self, name: str = "trial") -> list[dict[str, Any]]:
        files = sorted((self.home.experiments / name / "exposures").glob("*.jsonl"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]
