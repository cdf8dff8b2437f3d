"""Two releases that do not fit into the memory are refused before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from export.releases import NOW, config, copied, experiment, variant

from omnifeed.errors import OmnifeedError, UnavailableError
from omnifeed.home import Home
from omnifeed.serving import preflight
from omnifeed.serving.client import Client
from omnifeed.serving.preflight import LIMIT, MIB, check_memory, memory_limit, needed
from omnifeed.serving.server import LocalServer, triton_environment


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Releases 0, 1 and 2, of which 1 and 2 are networks."""
    home = copied(tmp_path / "home")
    variant(home, "2", lambda folder: None)
    return home


def test_every_release_and_instance_counts(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = needed(home, config(), ["1"]), needed(home, config(), ["1", "2"])
    models = 3 * preflight.PROCESS + 2 * sum(path.stat().st_size for path in home.releases.glob("2/models/*/1/*.onnx"))
    assert two - one >= models
    assert needed(home, config(), ["0", "1"]) == one
    instances = preflight._instances
    monkeypatch.setattr(preflight, "_instances", lambda settings: instances(settings) * 3)
    assert 2.5 < (needed(home, config(), ["1"]) - preflight.SERVER) / (one - preflight.SERVER) < 3.1


def test_what_does_not_fit_is_refused_in_a_sentence(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = needed(home, config(), ["1", "2"])
    monkeypatch.setenv(LIMIT, str(int(wanted / 0.8) + MIB))
    check_memory(home, config(), ["1", "2"])
    monkeypatch.setenv(LIMIT, str(int(wanted / 0.8) - MIB))
    text = r"Releases 1, 2 side by side need about \d[\d,]* MiB .* in 2 instances of recommend.*more than 80%"
    with pytest.raises(OmnifeedError, match=text):
        check_memory(home, config(), ["1", "2"])
    check_memory(home, config(), ["1"])  # there is nothing to go back to


def test_the_limit_is_the_least_that_the_machine_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT, raising=False)
    group = tmp_path / "memory.max"
    monkeypatch.setattr(preflight, "_LIMITS", (str(group), str(tmp_path / "none")))
    machine = memory_limit()
    group.write_text("max\n")
    assert memory_limit() == machine
    group.write_text("1048576\n")
    assert memory_limit() == 1048576 < machine


def test_a_server_goes_on_with_what_it_has(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        triton_environment()
    except UnavailableError as missing:
        pytest.skip(missing.problem)
    experiment(home, ("champion", "0", 1.0))
    settings = config()
    with LocalServer(home, settings, simulated_clock=True, features=False) as server, Client(server.url, 10) as client:
        monkeypatch.setenv(LIMIT, str(needed(home, settings, ["0", "1"])))
        experiment(home, ("champion", "0", 0.5), ("challenger", "1", 0.5))
        server.watch()
        assert server.loaded == {"0"}
        for n in range(10):
            answer = client.recommend(f"u{n}", "search", now=NOW)
            assert (answer.release, len(answer.item_ids)) == ("0", 10)
        monkeypatch.setenv(LIMIT, str(2 * needed(home, settings, ["0", "1"])))
        experiment(home, ("champion", "0", 0.6), ("challenger", "1", 0.4))
        server.watch()
        assert server.loaded == {"0", "1"}
    monkeypatch.setenv(LIMIT, str(MIB))
    with pytest.raises(OmnifeedError, match=re.escape("80%")):
        LocalServer(home, settings, features=False).__enter__()
