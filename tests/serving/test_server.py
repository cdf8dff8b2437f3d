"""The real server: Triton, its stubs, its gRPC. One server answers most tests; those that harm it start their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from export.releases import (
    NOW,
    answers_nan,
    catalogue_columns,
    config,
    copied,
    count_first,
    experiment,
    variant,
    workshop,
)

from omnifeed.errors import InputError, IntegrityError, UnavailableError
from omnifeed.experiment.assignment import Experiment, assign
from omnifeed.export.catalogue import write_snapshot
from omnifeed.home import Home
from omnifeed.serving.client import Client
from omnifeed.serving.infra import infra_validate
from omnifeed.serving.recommend.contract import MAX_K, History, Reason, Source
from omnifeed.serving.server import TRITON_ENV, LocalServer, triton_environment

try:
    triton_environment()
except UnavailableError as missing:
    pytest.skip(missing.problem, allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """Three arms: what trends, a network, and a network that answers NaN. No feature server."""
    home = copied(tmp_path_factory.mktemp("server") / "home")
    variant(home, "2", answers_nan("ranker", "probabilities"))
    experiment(home, ("champion", "0", 0.4), ("challenger", "1", 0.4), ("broken", "2", 0.2))
    with LocalServer(home, config(), simulated_clock=True, features=False) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.url, deadline_s=10) as one:
        yield one


def exposures(home: Home, name: str = "trial") -> list[dict[str, Any]]:
    files = sorted((home.experiments / name / "exposures").glob("*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def server_answers(client: Client, arm: str) -> tuple[str, bool]:
    """The release that answered for an arm, and whether that was the champion in its stead."""
    answer = client.recommend("u1", "search", arm=arm, now=NOW, probe=True)
    return answer.release, Reason.RELEASE_REFUSED in answer.degraded and Reason.CHAMPION_ANSWER in answer.degraded


def wait_for(condition: Any, seconds: float) -> float:
    """Seconds until the condition held; fails after the limit."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - start


def test_both_releases_answer_their_own_users_and_arms_are_sticky(server: LocalServer, client: Client) -> None:
    trial = Experiment.load(server.home.experiments / "current.json")
    for n in range(30):
        arm = assign(trial, f"u{n}")
        answer = client.recommend(f"u{n}", "search", now=NOW)
        again = client.recommend(f"u{n}", "livestream", now=NOW)
        assert answer.arm == again.arm == arm.name
        assert answer.release == ("0" if arm.name == "broken" else arm.release)
        assert len(answer.item_ids) == 10


def test_exposures_are_on_the_disk_when_the_answer_arrives(server: LocalServer, client: Client) -> None:
    answer = client.recommend("u1", "search", "red lamp", k=7, now=NOW, locale="de", device="phone")
    lines = [line for line in exposures(server.home) if line["request_id"] == answer.request_id]
    assert [line["item_id"] for line in lines] == list(answer.item_ids)
    assert {(line["ts"], line["query"], line["locale"], line["arm"]) for line in lines} == {
        (NOW, "red lamp", "de", answer.arm)
    }


def test_a_challenger_that_answers_nan_is_answered_by_the_champion(client: Client) -> None:
    answer = client.recommend("u1", "search", arm="broken", now=NOW)
    assert (answer.arm, answer.release) == ("broken", "0")
    assert {Reason.NAN_SCORES, Reason.CHAMPION_ANSWER} <= set(answer.degraded)
    assert np.isfinite(answer.scores).all()


def test_requests_that_break_servers(client: Client) -> None:
    for arm in ("champion", "challenger"):
        usual = {"arm": arm, "now": NOW, "k": 5}
        assert len(client.recommend("nobody", "search", **usual).item_ids) == 5
        assert Reason.UNKNOWN_SCENARIO in client.recommend("u1", "no such", **usual).degraded
        assert Reason.FEWER_THAN_K in client.recommend("u1", "search", **{**usual, "k": MAX_K}).degraded
        assert len(client.recommend("u1", "search", history=History((), (), (), ()), **usual).item_ids) == 5
        odd = History(("never seen",), ("click",), ("no such",), (NOW - 1,))
        assert len(client.recommend("u1", "search", history=odd, **usual).item_ids) == 5
        assert len(client.recommend("u1", "search", "직물 램프 🪔 مصباح", **usual).item_ids) == 5
        assert Reason.QUERY_TRUNCATED in client.recommend("u1", "search", "x" * 10_000, **usual).degraded
        own = client.recommend("u1", "search", candidates=["i1", "i2"], **usual)
        assert set(own.sources) == {Source.CANDIDATE}


@pytest.mark.parametrize(
    "fields", [{"k": 0}, {"k": MAX_K + 1}, {"user_id": "x" * 1_000}, {"user_id": ""}, {"arm": "nobody's"}, {"now": -5}]
)
def test_a_refusal_says_what_to_do_and_names_no_path(client: Client, fields: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refusal:
        client.recommend(**{"user_id": "u1", "scenario": "search", "now": NOW, **fields})
    assert refusal.value.action not in ("", "Correct the request.")
    assert "/" not in str(refusal.value)


def test_any_triton_client_can_ask(server: LocalServer) -> None:
    """What the README shows: no code of ours on the client's side."""
    plain = triton.InferenceServerClient(server.url)
    inputs = []
    for name, value in (("user_id", b"u1"), ("scenario", b"search"), ("query", b"red lamp")):
        one = triton.InferInput(name, [1], "BYTES")
        one.set_data_from_numpy(np.array([value], np.object_))
        inputs.append(one)
    answer = plain.infer("recommend", inputs)
    assert len(answer.as_numpy("item_ids")) == 10
    plain.close()


def test_a_livestream_that_starts_is_there_and_one_that_sells_out_is_gone_without_a_restart(
    server: LocalServer, client: Client
) -> None:
    items, features = catalogue_columns(workshop() / "training_set")
    items = {name: [*values, None] for name, values in items.items()}
    new = {"item_id": "on-air", "author_id": "new", "kind": "livestream", "title": "a kite show", "policy": "ALLOW"}
    for name, value in {**new, "created_ts": NOW - 2, "live_from": NOW - 1, "live_until": NOW + 10, "stock": 3}.items():
        items[name][-1] = value
    features = {scenario: {n: [*v, 0.0] for n, v in columns.items()} for scenario, columns in features.items()}

    def shown(now: int = NOW) -> bool:
        """In both arms, by either instance."""
        with ThreadPoolExecutor(2) as two:
            answers = two.map(
                lambda arm: client.recommend("u1", "search", "kite show", k=MAX_K, arm=arm, now=now, probe=True),
                ["champion", "challenger"] * 4,
            )
            return all("on-air" in answer.item_ids for answer in answers)

    def hidden() -> bool:
        return not any(
            "on-air" in client.recommend("u1", "search", "kite show", k=MAX_K, arm=arm, now=NOW, probe=True).item_ids
            for arm in ["champion", "challenger"] * 4
        )

    write_snapshot(server.home, items, features, NOW)
    assert wait_for(shown, 10) < 10
    assert not shown(NOW + 10)  # off the air by the clock alone
    items["stock"][-1] = 0
    write_snapshot(server.home, items, features, NOW + 1)
    assert wait_for(hidden, 10) < 10


def test_a_release_is_loaded_and_unloaded_beside_the_others(server: LocalServer, client: Client) -> None:
    variant(server.home, "3", lambda folder: None)
    former = (server.home.experiments / "current.json").read_text()
    experiment(server.home, ("champion", "0", 0.5), ("challenger", "3", 0.5))
    server.watch()
    answer = client.recommend("u1", "search", arm="challenger", now=NOW)
    assert (answer.release, set(answer.degraded)) == ("3", {Reason.NO_FEATURES})
    (server.home.experiments / "current.json").write_text(former)
    server.refresh()
    assert client.recommend("u1", "search", arm="challenger", now=NOW).release == "1"


def test_a_release_with_one_byte_changed_is_refused_and_the_others_go_on(server: LocalServer, client: Client) -> None:
    variant(server.home, "4", lambda folder: None)
    path = server.home.releases / "4" / "models" / "ranker_4" / "1" / "model.onnx"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"model.onnx has changed"):
        server.load("4")
    assert client.recommend("u1", "search", arm="challenger", now=NOW).release == "1"
    former = (server.home.experiments / "current.json").read_text()
    experiment(server.home, ("champion", "1", 0.5), ("challenger", "4", 0.5))
    server.watch()  # complains in the log and goes on
    wait_for(lambda: server_answers(client, "challenger") == ("1", True), 5)
    (server.home.experiments / "current.json").write_text(former)
    server.watch()


def test_two_clients_at_once_lose_no_exposure(server: LocalServer, client: Client) -> None:
    with ThreadPoolExecutor(4) as four:
        answers = list(four.map(lambda n: client.recommend(f"u{n}", "search", now=NOW), range(100)))
    logged = {line["request_id"] for line in exposures(server.home)}
    assert {answer.request_id for answer in answers} <= logged


def test_a_release_is_not_started_with_one_byte_changed(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "1", 1.0))
    with (home.releases / "1" / "weights.safetensors").open("r+b") as handle:
        handle.seek(300)
        handle.write(b"\xff\x00\xff")
    with pytest.raises(IntegrityError, match=r"weights.safetensors has changed"), LocalServer(home, config()):
        pass


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "0", 1.0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = replace(config(), serving=replace(config().serving, http_port=port))
        with pytest.raises(UnavailableError, match=f"Port {port}"), LocalServer(home, settings, features=False):
            pass


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    variant(home, "2", lambda folder: (folder / "models/ranker_2/1/model.onnx").write_bytes(b"no graph") and None)
    experiment(home, ("champion", "2", 1.0))
    running = LocalServer(home, config(), features=False)
    with pytest.raises(UnavailableError, match="ranker_2"), running:
        pass
    assert running.children == ()


def test_without_releases_catalogue_or_environment_the_caller_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match="neither a champion"), LocalServer(Home(tmp_path), config()):
        pass
    experiment(Home(tmp_path), ("champion", "0", 1.0))
    with pytest.raises(UnavailableError, match="no catalogue"), LocalServer(Home(tmp_path), config()):
        pass
    monkeypatch.setenv(TRITON_ENV, str(tmp_path / "nowhere"))
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "0", 1.0))
    with pytest.raises(UnavailableError, match="no Triton environment"), LocalServer(home, config()):
        pass


def test_nobody_listening_is_unavailable_within_the_deadline() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with Client(f"127.0.0.1:{port}", deadline_s=1.0) as one, pytest.raises(UnavailableError):
        one.recommend("u", "search")
    assert time.monotonic() - start < 3


def test_stopping_under_load_answers_or_says_unavailable_and_leaves_no_process(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "0", 1.0))
    answered: list[str] = []
    failed: list[Exception] = []
    stop = threading.Event()

    def traffic(client: Client) -> None:
        while not stop.is_set():
            try:
                answered.append(client.recommend("u", "search", now=NOW).request_id)
            except UnavailableError as error:
                failed.append(error)

    with LocalServer(home, config(), simulated_clock=True, features=False) as running:
        pids = [child.pid for child in running.children]
        processes = [p for pid in pids for p in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]]
        assert len(processes) >= 3  # the server and two stubs
        with Client(running.url, deadline_s=1.0) as client:
            threads = [threading.Thread(target=traffic, args=(client,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            wait_for(lambda: len(answered) > 50, 10)
            running.stop()
            stop.set()
            for thread in threads:
                thread.join(10)
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    logged = {line["request_id"] for line in exposures(home)}
    assert set(answered) <= logged


def test_a_server_whose_triton_ended_says_so(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "0", 1.0))
    with LocalServer(home, config(), features=False) as running:
        running.watch()
        triton_process = psutil.Process(running.children[0].pid)
        triton_process.kill()
        wait_for(lambda: not running.children[0].alive(), 10)
        with pytest.raises(UnavailableError, match="Triton has ended"):
            running.watch()


def test_a_parent_that_is_killed_leaves_no_server(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "0", 1.0))
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from export.releases import config\n"
        "from omnifeed.home import Home\n"
        "from omnifeed.serving.server import LocalServer\n"
        "with LocalServer(Home(Path(sys.argv[1])), config(), features=False) as running:\n"
        "    print(running.children[0].pid, flush=True); time.sleep(600)\n"
    )
    tests = str(Path(__file__).resolve().parents[1])
    parent = subprocess.Popen([sys.executable, "-c", program, str(home.root), tests], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 20)


def test_infra_validation_passes_a_good_release_and_names_what_fails_in_a_bad_one(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    good = infra_validate(home, "1", config())
    assert good.passed, [check for check in good.checks if not check.passed]
    assert {"golden item_encoder items", "an unknown user", "a query of 10,000 characters"} <= {
        check.name for check in good.checks
    }
    assert all(check.latency_ms > 0 for check in good.checks)
    variant(home, "2", answers_nan("ranker", "probabilities"))
    bad = infra_validate(home, "2", config())
    failed = {check.name for check in bad.checks if not check.passed}
    assert {"golden ranker empty", "an unknown user"} <= failed
    assert "golden user_encoder empty" not in failed
    (home.releases / "2" / "release.json").write_text("{}")
    refused = infra_validate(home, "2", config())
    assert [(check.name, check.passed) for check in refused.checks] == [("hashes", False)]
    assert not home.experiments.exists()  # nothing of it was logged
    assert json.dumps(refused.to_dict())


def test_infra_validation_refuses_a_release_that_is_slow(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    variant(home, "2", lambda folder: count_first(folder, 300_000))
    slow = infra_validate(home, "2", config())
    failed = [check for check in slow.checks if not check.passed]
    assert [check.name for check in failed] == ["time of the ranker"]
    assert re.match(r"It takes \d+ ms \(median of 15\), more than serving.part_ms, 100\.", failed[0].detail)


def test_the_readmes_plain_triton_example_runs_as_it_stands(
    server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "tritonclient" in block)
    exec(compile(example.replace("127.0.0.1:8001", server.url), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(np.isfinite(float(line.split()[1])) for line in lines)
