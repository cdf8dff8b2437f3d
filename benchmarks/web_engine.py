"""The server's engine for a web server's worker, its graphs in the same process; settings come from the environment."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from omnifeed.config import Config
from omnifeed.export.onnx_parts import OnnxParts
from omnifeed.features.online import FeatureClient
from omnifeed.home import Home
from omnifeed.serving.recommend.contract import Request
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.live import Live


@cache
def engine() -> Recommender:
    """One a process, with the index of every release; made at the first call."""
    home = Home.from_env()
    config = Config.from_json(Path(os.environ["OMNIFEED_CONFIG"]).read_text(encoding="utf-8"))
    live = Live(home, config, lambda number: OnnxParts(home.releases / number, threads=config.serving.threads))
    while not live.refresh():
        pass
    host, _, port = os.environ["OMNIFEED_FEATURES"].rpartition(":")
    log = ExposureLog(home, time.time_ns() // 1_000)
    return Recommender(live, FeatureClient(host, int(port)), log, config.serving, lambda: 0, simulated_clock=True)


def answered(asked: dict[str, Any]) -> dict[str, Any]:
    """What the server answers, as JSON holds it."""
    answer = engine().recommend(Request(**asked))
    return {"item_ids": answer.item_ids, "scores": answer.scores, "degraded": answer.degraded}
