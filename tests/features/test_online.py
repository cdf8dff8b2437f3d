"""The model server's side of the feature server: the same user row as in process, or an error in time."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from features.conftest import NOW, Market
from features.test_store import history_rows
from omnifeed.config import Config
from omnifeed.errors import UnavailableError
from omnifeed.export.encode import UserRow
from omnifeed.features.online import FeatureClient, user_row_from_response
from omnifeed.features.serve import HOST, command, environment
from omnifeed.features.store import push_users, read_user


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def client(market: Market) -> Iterator[FeatureClient]:
    serving = dataclasses.replace(Config().serving, features_port=free_port())
    config = dataclasses.replace(market.config, serving=serving)
    with open(market.home.root / "server.log", "wb") as log:
        server = subprocess.Popen(
            command(market.home, config), env=environment(market.home, config), stdout=log, stderr=log
        )
    connection = FeatureClient(HOST, config.serving.features_port)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                connection.user("u0", 2.0)
                break
            except UnavailableError:
                assert server.poll() is None, (market.home.root / "server.log").read_text()
                assert time.monotonic() < deadline, "the feature server did not start within 90 s"
                time.sleep(0.1)
        yield connection
    finally:
        connection.close()
        server.terminate()
        server.wait(30)


def test_http_and_in_process_answer_alike(market: Market, client: FeatureClient) -> None:
    for user in [*sorted(set(market.tables.events["user_id"].to_pylist())), "nobody"]:
        assert client.user(user, 5.0) == read_user(market.home, user, market.config)
    assert client.user("u0", 5.0).history_item
    assert client.user("nobody", 5.0) == UserRow({})


def test_a_push_is_served_at_once(market: Market, client: FeatureClient) -> None:
    for stamp in (NOW, NOW + 1):
        push_users(market.home, history_rows(["live"], [stamp], [[f"at{stamp}"]]), "user_history", market.config)
        assert client.user("live", 5.0).history_item == (f"at{stamp}",)


def test_awkward_user_ids_are_only_unknown(client: FeatureClient) -> None:
    for user in ("", 'é 漢字 "quoted" \\ \n', "x" * 10_000):
        assert client.user(user, 5.0) == UserRow({})


class OneAnswer:
    """A server that answers each connection once with `raw`, then closes it."""

    def __init__(self, raw: bytes) -> None:
        self.connections = 0
        self._raw = raw
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.connections += 1
                connection.recv(65_536)
                connection.sendall(self._raw)

    def close(self) -> None:
        self._listener.close()


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_a_connection_that_the_server_closed_is_opened_again() -> None:
    body = b'{"metadata": {"feature_names": ["locale"]}, "results": [{"values": ["de"]}]}'
    server = OneAnswer(answer(body))
    client = FeatureClient(HOST, server.port)
    try:
        assert [client.user("u", 2.0) for _ in range(3)] == [UserRow({"locale": "de"})] * 3
        assert server.connections == 3
    finally:
        client.close()
        server.close()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (answer(b"boom", "500 Internal Server Error"), "answered 500: boom"),
        (answer(b"[]"), "malformed"),
        (answer(b'{"metadata": {"feature_names": ["locale"]}, "results": []}'), "malformed"),
        (answer(b"not json"), "gave no answer"),
        (b"", "gave no answer"),
    ],
)
def test_a_bad_answer_is_unavailable(raw: bytes, message: str) -> None:
    server = OneAnswer(raw)
    client = FeatureClient(HOST, server.port)
    try:
        with pytest.raises(UnavailableError, match=message):
            client.user("u", 2.0)
    finally:
        client.close()
        server.close()


def test_a_silent_server_costs_the_deadline_and_no_more() -> None:
    with socket.create_server((HOST, 0)) as listener:
        client = FeatureClient(HOST, int(listener.getsockname()[1]))
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="within 100 ms"):
            client.user("u", 0.1)
        assert time.monotonic() - started < 1.0
        client.close()


def test_no_server_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="ConnectionRefused"):
        FeatureClient(HOST, free_port()).user("u", 1.0)


def test_null_features_are_absent() -> None:
    names = ["user_id", "locale", "user_views_7d", "history_item", "history_action", "history_scenario", "history_ts"]
    values = ["u", None, 3.5, ["i1"], ["2"], ["search"], [7]]
    response = {"metadata": {"feature_names": names}, "results": [{"values": [value]} for value in values]}
    assert user_row_from_response(response) == UserRow({"user_views_7d": 3.5}, ("i1",), (2,), ("search",), (7,))


def test_the_client_needs_only_numpy() -> None:
    heavy = "{'feast', 'pyarrow', 'pandas', 'ibis', 'duckdb', 'torch'}"
    modules = "omnifeed.features.online, omnifeed.features.serve, omnifeed.features.training_set"
    code = f"import sys, {modules}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
