"""What a user would build instead of a model server: `recommend` behind FastAPI.

Started by serving_latency.py with uvicorn in an environment of its own; the engine, the feature server, the exposure
log and the answers are the same.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from web_engine import answered

app = FastAPI()


@app.post("/recommend")
async def recommend(asked: dict[str, Any]) -> dict[str, Any]:
    """One at a time in each worker, as in an instance of a model server."""
    return answered(asked)
