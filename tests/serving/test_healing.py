"""A model's process is killed: answers go on without it, and within seconds it is there again. The real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from export.releases import NOW, config, copied, experiment

from omnifeed.errors import OmnifeedError, UnavailableError
from omnifeed.serving import server as server_module
from omnifeed.serving.client import Client
from omnifeed.serving.recommend.contract import Reason
from omnifeed.serving.server import LocalServer, triton_environment
from serving.test_operations import counted

try:
    triton_environment()
except UnavailableError as missing:
    pytest.skip(missing.problem, allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    home = copied(tmp_path_factory.mktemp("healing") / "home")
    experiment(home, ("champion", "1", 1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "DRAIN_S", 1.0)  # once a process of it has crashed, Triton waits to the end of it
        with LocalServer(home, config(), simulated_clock=True, features=False) as running:
            yield running


@pytest.fixture
def watched(server: LocalServer) -> Iterator[LocalServer]:
    """As `omnifeed serve` watches it."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1):
            server.watch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield server
    stop.set()
    watcher.join()


def kill(server: LocalServer, model: str) -> None:
    """One process of a model."""
    running = psutil.Process(server.children[0].pid).children(recursive=True)
    stubs = [one for one in running if one.status() != psutil.STATUS_ZOMBIE and f"/{model}/" in " ".join(one.cmdline())]
    stubs[0].kill()


def test_answers_go_on_without_a_part_that_died_and_it_comes_back(watched: LocalServer) -> None:
    broken = Reason.RANKER_FAILED
    with Client(watched.url, deadline_s=5) as client:
        assert broken not in client.recommend("u", "search", now=NOW).degraded
        key = (
            "omnifeed_degraded_total",
            frozenset({("reason", broken.value), ("scenario", "search"), ("arm", "champion")}),
        )
        before, died = counted(watched)[key], time.monotonic()
        kill(watched, "ranker_1")
        took, without, whole = [], 0, 0
        while whole < 20:
            start = time.monotonic()
            answer = client.recommend(f"u{len(took)}", "search", now=NOW)
            took.append(time.monotonic() - start)
            assert len(answer.item_ids) == 10
            without += broken in answer.degraded
            whole = 0 if broken in answer.degraded else whole + 1
            assert time.monotonic() - died < 8
        assert without > 0
        assert sum(ms > 0.5 for ms in took) <= 6  # one call a second and process finds out that it is still dead
        end = time.monotonic() + 5
        while counted(watched)[key] - before != without:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_process_of_recommend_that_died_comes_back(watched: LocalServer) -> None:
    kill(watched, "recommend")
    died, answered, failed = time.monotonic(), 0, 0
    with Client(watched.url, deadline_s=8) as client:
        while answered < 30:
            try:
                client.recommend(f"u{answered}", "search", now=NOW)
                answered += 1
            except OmnifeedError:
                answered, failed = 0, failed + 1
            assert time.monotonic() - died < 25
    assert failed > 0
