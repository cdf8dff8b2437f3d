"""The command line: exit codes and sentences of the commands that need no server and no run."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from omnifeed.experiment.ledger import Ledger
from omnifeed.home import Home
from omnifeed.pipelines.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("OMNIFEED_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture
def run(home: Home, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, standard output and standard error of a command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def sentences(err: str) -> tuple[str, str]:
    first, second = err.splitlines()
    assert first.startswith("Error: ")
    assert second.startswith("       ")
    return first.removeprefix("Error: "), second.strip()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("text", "problem", "action"),
    [
        ("[training]\nepoch = 3\n", "Setting training.epoch is unknown.", "Known here: "),
        ("[training]\nepochs = 'many'\n", "Setting training.epochs is 'many'", "Correct the value."),
        ("training\n", "is not TOML", "Correct the file."),
    ],
)
@pytest.mark.parametrize("command", ["run", "serve", "gate"])
def test_a_run_config_that_cannot_be_used_is_named(
    run: Run, home: Home, tmp_path: Path, command: str, text: str, problem: str, action: str
) -> None:
    (tmp_path / "mine.toml").write_text(text)
    code, _, err = run(command, "--config", tmp_path / "mine.toml")
    assert code == 2
    said, advised = sentences(err)
    assert problem in said
    assert advised.startswith(action)
    assert not home.root.exists()


def test_a_data_source_without_a_config_is_named(run: Run) -> None:
    code, _, err = run("run", "--data", "nowhere")
    assert code == 2
    assert "nowhere.toml does not exist" in sentences(err)[0]


def test_without_an_experiment_there_is_nothing_to_decide_or_to_send_traffic_to(run: Run) -> None:
    for arguments in (["gate"], ["traffic"]):
        code, _, err = run(*arguments, "--data", "tiny")
        assert (code, *sentences(err)) == (
            2,
            "No experiment is running.",
            "Deploy a challenger first: omnifeed run.",
        ), arguments


def test_a_rollback_needs_a_champion_to_go_back_to(run: Run, home: Home) -> None:
    code, _, err = run("rollback", "--reason", "too slow")
    assert code == 2
    assert sentences(err)[0] == "There is no earlier champion to go back to."
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, 1)
    Ledger(home).append("PROMOTE", {"release": "1"}, 2, expected_champion="0")
    code, out, _ = run("rollback", "--reason", "too slow")
    assert (code, out) == (0, "The champion is release 0 again.\n")
    code, _, err = run("rollback", "--to", "7", "--reason", "too slow")
    assert code == 2
    assert sentences(err)[0] == "Release 7 never was a champion."


def test_the_ledger_is_shown_and_an_edited_one_is_refused(run: Run, home: Home) -> None:
    code, out, _ = run("ledger")
    assert (code, out) == (0, "The ledger is empty: nothing has run yet.\n")
    ledger = Ledger(home)
    ledger.append("BOOTSTRAP", {"release": "0"}, 1)
    code, out, _ = run("ledger", "--json")
    assert code == 0
    assert json.loads(out)["champion"] == "0"
    code, out, _ = run("ledger", "verify")
    assert (code, out) == (0, "1 entries in an unbroken chain; 0 decisions computed again, alike.\n")
    ledger.path.write_text(ledger.path.read_text().replace('"0"', '"9"'))
    code, _, err = run("ledger", "verify")
    assert code == 1
    assert "line 1" in sentences(err)[0]


def test_the_pipelines_are_written(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("compile", "--out", tmp_path / "compiled", "--json")
    assert code == 0
    names = [Path(path).name for path in json.loads(out)["written"]]
    assert names == ["omnifeed-training.yaml", "omnifeed-promotion.yaml", "omnifeed-monitoring.yaml"]
    assert all((tmp_path / "compiled" / name).read_text().startswith("# PIPELINE DEFINITION") for name in names)


def test_nobody_listening_is_worth_another_try(run: Run, closed_port: int) -> None:
    url = f"127.0.0.1:{closed_port}"
    code, _, err = run("recommend", "--user", "u1", "--scenario", "search", "--url", url)
    assert code == 75
    problem, action = sentences(err)
    assert problem.startswith(f"The server at {url} did not answer")
    assert action == "Start it (omnifeed serve), or ask again."


def test_a_kubeflow_that_is_not_there_is_worth_another_try(run: Run, closed_port: int) -> None:
    host = f"http://127.0.0.1:{closed_port}"
    code, _, err = run("submit", "--host", host)
    assert code == 75
    problem, action = sentences(err)
    assert problem.startswith(f"Kubeflow Pipelines at {host} did not accept the training pipeline")
    assert action.startswith("Check --host")


def test_a_home_that_cannot_be_made_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OMNIFEED_HOME", os.fspath(tmp_path / "file" / "home"))
    code, _, err = run("run", "--data", "tiny")
    assert code == 1
    problem, action = sentences(err)
    assert str(tmp_path / "file") in problem
    assert action.startswith("Free some space or fix the permissions")
