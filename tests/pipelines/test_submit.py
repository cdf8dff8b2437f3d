"""Submitting to Kubeflow with its own client.

The endpoint is a test double: a loopback HTTP server that answers the five calls the client makes, in the shapes of the
v2beta1 API. What rests on it is that our requests are the client's well-formed ones, not that a cluster runs them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from omnifeed.config import Config
from omnifeed.pipelines.submit import submit_run


class Endpoint(ThreadingHTTPServer):
    """Remembers what was posted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.posted: dict[str, list[dict[str, Any]]] = {}
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def answer(self, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("authorization"))
        experiment = {"experiment_id": "e1", "display_name": "Default", "namespace": "shop"}
        self.answer({"experiments": [experiment], "multi_user": True} if "experiments" in self.path else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        kind = self.path.split("?")[0].rsplit("/", 1)[-1]
        self.server.posted.setdefault(kind, []).append(body)
        answers = {"runs": {"run_id": "r1"}, "recurringruns": {"recurring_run_id": "j1"}}
        self.answer({**answers.get(kind, {"experiment_id": "e1"}), "display_name": "x"})


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_carries_the_compiled_pipeline_the_settings_and_the_token(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_TOKEN", "a-token")
    started = submit_run(endpoint.url, "training", Config(), "shop", None)
    assert started == {"kind": "run", "id": "r1", "url": f"{endpoint.url}/#/runs/details/r1"}
    (posted,) = endpoint.posted["runs"]
    assert posted["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "omnifeed-training"
    assert Config.from_json(posted["runtime_config"]["parameters"]["config"]) == Config()
    assert "Bearer a-token" in endpoint.tokens


def test_a_recurring_run_starts_on_its_schedule_one_at_a_time(endpoint: Endpoint) -> None:
    started = submit_run(endpoint.url, "promotion", Config(), "shop", "0 0 2 * * *")
    assert (started["kind"], started["id"]) == ("recurring run", "j1")
    (posted,) = endpoint.posted["recurringruns"]
    assert posted["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *"
    assert int(posted["max_concurrency"]) == 1
    assert "omnifeed-promotion" in yaml.safe_dump(posted["pipeline_spec"])
