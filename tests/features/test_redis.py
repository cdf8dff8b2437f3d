"""The cluster's online store, a real Redis with a password: the same rules as on the laptop's."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from features.test_store import history_rows
from omnifeed.config import Config
from omnifeed.features.store import apply, push_users, read_user
from omnifeed.home import Home

CONFIG = dataclasses.replace(Config(), features=dataclasses.replace(Config().features, online_store="redis"))
PASSWORD = "only-for-this-test"
NOW = 1_773_619_200_000_000


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home whose features stand in a Redis of this test's own."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", ""]
    server = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            assert server.poll() is None
        monkeypatch.setenv("OMNIFEED_REDIS", f"127.0.0.1:{port},password={PASSWORD}")
        home = Home(tmp_path / "home")
        apply(home, CONFIG)
        yield home
    finally:
        server.terminate()
        server.wait()


def rows(user: str, stamp: int, *items: str) -> pa.Table:
    return history_rows([user], [stamp], [list(items)])


def test_what_was_pushed_is_read_and_an_older_push_changes_nothing(redis: Home) -> None:
    assert push_users(redis, rows("u1", NOW, "a", "b"), "user_history", CONFIG) == 1
    assert push_users(redis, rows("u1", NOW - 1, "old"), "user_history", CONFIG) == 0
    assert list(read_user(redis, "u1", CONFIG).history_item) == ["a", "b"]
    assert push_users(redis, rows("u1", NOW + 1, "a", "b", "c"), "user_history", CONFIG) == 1
    assert list(read_user(redis, "u1", CONFIG).history_item) == ["a", "b", "c"]


def test_a_user_that_redis_does_not_know_is_an_empty_row(redis: Home) -> None:
    user = read_user(redis, "nobody", CONFIG)
    assert not user.values
    assert not user.history_item
