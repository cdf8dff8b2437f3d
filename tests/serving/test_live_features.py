"""The whole stack: `recommend` in Triton reads users from Feast's feature server over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pyarrow as pa
import pytest
from export.releases import NOW, config, copied, experiment

from omnifeed.errors import UnavailableError
from omnifeed.export.encode import DAY_US
from omnifeed.features.aggregates import AS_OF
from omnifeed.features.store import apply, push_users
from omnifeed.home import Home
from omnifeed.serving.client import Client, Recommendation
from omnifeed.serving.recommend.contract import Reason
from omnifeed.serving.server import LocalServer, triton_environment
from omnifeed.tables import TS

try:
    triton_environment()
except UnavailableError as missing:
    pytest.skip(missing.problem, allow_module_level=True)


def push_history(home: Home, user_id: str, at: int, *items: str) -> None:
    table = pa.table(
        {
            "user_id": [user_id],
            AS_OF: pa.array([at], pa.int64()).cast(TS),
            "history_item": [list(items)],
            "history_action": [[2] * len(items)],
            "history_scenario": [["search"] * len(items)],
            "history_ts": [[at - len(items) + n for n in range(len(items))]],
        }
    )
    assert push_users(home, table, "user_history", config()) == 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    home = copied(tmp_path_factory.mktemp("features") / "home")
    experiment(home, ("champion", "1", 1.0))
    apply(home, config())
    push_history(home, "known", NOW - DAY_US, "i1", "i2")
    with LocalServer(home, config(), simulated_clock=True) as running:
        yield running


def ask(server: LocalServer, user_id: str) -> Recommendation:
    with Client(server.url, deadline_s=5) as client:
        return client.recommend(user_id, "search", k=20, now=NOW)


def test_a_stored_user_is_answered_from_the_stored_history(server: LocalServer) -> None:
    answer = ask(server, "known")
    assert answer.degraded == ()
    stranger = ask(server, "stranger")
    assert stranger.degraded == (Reason.UNKNOWN_USER,)
    assert stranger.scores != answer.scores


def test_the_freshest_event_is_seen_by_the_next_request(server: LocalServer) -> None:
    before = ask(server, "known")
    push_history(server.home, "known", NOW - 1, "i1", "i2", "i7")
    assert ask(server, "known").scores != before.scores


def test_without_the_feature_server_answers_go_on_and_say_so(server: LocalServer) -> None:
    """Last in this module: the feature server does not come back."""
    server.children[1].stop(10)
    start = time.monotonic()
    answer = ask(server, "known")
    assert time.monotonic() - start < 1
    assert answer.degraded == (Reason.NO_FEATURES,)
    assert len(answer.item_ids) == 20
