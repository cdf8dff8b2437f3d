"""What a user of KServe would write: `recommend` as a custom model of its Python server.

Started by serving_latency.py in an environment of its own; the engine, the feature server, the exposure log and the
answers are the same. Every worker is a process of its own, which makes its engine at the first request.
"""

from __future__ import annotations

import argparse
from typing import Any

from kserve import Model, ModelServer
from web_engine import answered


class Recommend(Model):
    """KServe's first protocol: a list of instances in, as many predictions out."""

    def __init__(self) -> None:
        super().__init__("recommend")
        self.ready = True

    async def predict(self, payload: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        """One at a time in each worker, as in an instance of a model server."""
        return {"predictions": [answered(asked) for asked in payload["instances"]]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option in ("--port", "--workers"):
        parser.add_argument(option, type=int, required=True)
    given = parser.parse_args()
    server = ModelServer(http_port=given.port, workers=given.workers, enable_grpc=False, enable_latency_logging=False)
    server.start([Recommend()])
