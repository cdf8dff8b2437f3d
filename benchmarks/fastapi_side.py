"""What a user would build instead of a model server: `recommend` behind FastAPI, its graphs in the same process.

Started by serving_latency.py with uvicorn in an environment of its own; the engine, the feature server, the exposure
log and the answers are the same.
"""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from omnifeed.config import Config
from omnifeed.export.onnx_parts import OnnxParts
from omnifeed.features.online import FeatureClient
from omnifeed.home import Home
from omnifeed.serving.recommend.contract import Request
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.live import Live

held: dict[str, Recommender] = {}


@asynccontextmanager
async def lifespan(_: FastAPI):
    """One engine a worker."""
    home = Home.from_env()
    config = Config.from_json(Path(os.environ["OMNIFEED_CONFIG"]).read_text(encoding="utf-8"))
    live = Live(home, config, lambda number: OnnxParts(home.releases / number, threads=config.serving.threads))
    while not live.refresh():
        pass
    host, _, port = os.environ["OMNIFEED_FEATURES"].rpartition(":")
    log = ExposureLog(home, time.time_ns() // 1_000)
    held["engine"] = Recommender(
        live, FeatureClient(host, int(port)), log, config.serving, lambda: 0, simulated_clock=True
    )
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/recommend")
async def recommend(asked: dict[str, Any]) -> dict[str, Any]:
    """One at a time in each worker, as in an instance of a model server."""
    answer = held["engine"].recommend(Request(**asked))
    return {"item_ids": answer.item_ids, "scores": answer.scores, "degraded": answer.degraded}
