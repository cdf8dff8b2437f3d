"""The online store, a real Redis, is stopped and started again: users count as new meanwhile, and are known again."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from export.releases import NOW, config, copied, experiment

from omnifeed.errors import UnavailableError
from omnifeed.export.encode import DAY_US
from omnifeed.features.aggregates import AS_OF
from omnifeed.features.store import apply, push_users
from omnifeed.serving.client import Client
from omnifeed.serving.processes import free_ports
from omnifeed.serving.recommend.contract import Reason
from omnifeed.serving.server import LocalServer, triton_environment
from omnifeed.tables import TS

try:
    triton_environment()
except UnavailableError as missing:
    pytest.skip(missing.problem, allow_module_level=True)
if shutil.which("redis-server") is None:
    pytest.skip("redis-server is not installed", allow_module_level=True)

CONFIG = dataclasses.replace(config(), features=dataclasses.replace(config().features, online_store="redis"))


def started(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A Redis that keeps what it knows, as the cluster's does."""
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
    server = subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 10
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert server.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    return server


def until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def test_redis_is_restarted_under_a_running_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports((0,))
    folder = tmp_path / "redis"
    folder.mkdir()
    redis = started(folder, port)
    try:
        monkeypatch.setenv("OMNIFEED_REDIS", f"127.0.0.1:{port}")
        home = copied(tmp_path / "home")
        experiment(home, ("champion", "1", 1.0))
        apply(home, CONFIG)
        row = {
            "user_id": ["known"],
            AS_OF: pa.array([NOW - DAY_US], pa.int64()).cast(TS),
            "history_item": [["i1", "i2"]],
            "history_action": [[2, 2]],
            "history_scenario": [["search", "search"]],
            "history_ts": [[NOW - DAY_US - 2, NOW - DAY_US - 1]],
        }
        assert push_users(home, pa.table(row), "user_history", CONFIG) == 1
        with LocalServer(home, CONFIG, simulated_clock=True) as server, Client(server.url, deadline_s=5) as client:

            def degraded() -> tuple[Reason, ...]:
                answer = client.recommend("known", "search", now=NOW)
                assert len(answer.item_ids) == 10
                return answer.degraded

            until(lambda: degraded() == (), 10)
            redis.terminate()
            redis.wait(10)
            start = time.monotonic()
            for _ in range(10):
                assert degraded() == (Reason.NO_FEATURES,)
            assert time.monotonic() - start < 10 * 0.4  # the deadline is 0.1 s
            redis = started(folder, port)
            until(lambda: degraded() == (), 5)
    finally:
        redis.kill()
        redis.wait()
