"""A challenger that never answers costs its own users half a second once in a while, and the champion's nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from export.releases import NOW, config, copied, experiment, never_answers, variant

from omnifeed.errors import UnavailableError
from omnifeed.serving.client import Client
from omnifeed.serving.recommend.contract import PART_S, Reason
from omnifeed.serving.server import LocalServer, triton_environment

try:
    triton_environment()
except UnavailableError as missing:
    pytest.skip(missing.problem, allow_module_level=True)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    home = copied(tmp_path / "home")
    variant(home, "2", never_answers)
    experiment(home, ("champion", "1", 0.5), ("challenger", "2", 0.5))
    with (
        LocalServer(home, config(), simulated_clock=True, features=False) as server,
        Client(server.url, deadline_s=10) as one,
    ):
        yield one


def test_a_challenger_that_hangs_leaves_the_champion_on_time(client: Client) -> None:
    took: dict[str, list[float]] = {"champion": [], "challenger": []}
    for n in range(60):
        for arm, times in took.items():
            start = time.monotonic()
            answer = client.recommend(f"u{n}", "search", arm=arm, now=NOW)
            times.append(time.monotonic() - start)
            assert (answer.release, answer.arm, len(answer.item_ids)) == ("1", arm, 10)
            hung = {Reason.RANKER_FAILED, Reason.CHAMPION_ANSWER} if arm == "challenger" else set()
            assert set(answer.degraded) == {Reason.NO_FEATURES} | hung
    waited = [seconds for seconds in took["challenger"] if seconds >= PART_S]
    assert len(waited) <= 2 * 4  # a process, in the seconds that this takes: at 0, 1, 2.5 and 5
    assert max(took["champion"]) < PART_S
    assert float(np.median(took["champion"])) < 0.1
