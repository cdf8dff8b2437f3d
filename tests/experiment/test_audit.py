"""The ledger as an auditor meets it: every decision computed again, and the whole of it as one table."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from experiment_logs import CONFIG, DAY, HORIZON, START, experiment, traffic

from omnifeed.errors import IntegrityError
from omnifeed.experiment.audit import audit, export, recompute
from omnifeed.experiment.decision import Decision
from omnifeed.experiment.ledger import Ledger
from omnifeed.experiment.release_control import act
from omnifeed.experiment.verdict import decide
from omnifeed.home import Home

TEST = experiment()


@pytest.fixture(scope="module")
def decisions(tmp_path_factory: pytest.TempPathFactory) -> list[Decision]:
    """One that waits, one that promotes, one without data."""
    rates = {"viewed": 0.9, "click": 0.3, "order": 0.08, "hide": 0.12}
    logs = traffic(TEST, users=3000, seed=1, rates=rates, challenger=lambda name, _: 1.5 if name == "order" else 1.0)
    folder = logs.write(tmp_path_factory.mktemp("experiment"))
    found = [decide(folder, TEST, CONFIG, now) for now in (START + 3 * DAY, HORIZON)]
    return [*found, decide(tmp_path_factory.mktemp("nothing"), TEST, CONFIG, HORIZON)]


@pytest.fixture
def home(tmp_path: Path, decisions: list[Decision]) -> Home:
    home = Home(tmp_path)
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, START)
    for decision in decisions[:2]:
        act(home, decision.ruling, decision.now)
    return home


def test_a_decision_is_computed_again_from_its_json(decisions: list[Decision]) -> None:
    for decision in decisions:
        body = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
        again = json.loads(json.dumps(recompute(body).to_dict()))
        assert {**again, "daily": body["daily"]} == body


def test_the_audit_finds_every_decision_as_it_was_written(home: Home) -> None:
    found = audit(Ledger(home))
    assert (found.entries, found.decisions, found.discrepancies) == (4, 2, ())


def test_a_decision_written_by_hand_does_not_come_out(home: Home, decisions: list[Decision]) -> None:
    body = decisions[0].to_dict()
    forged = {**body, "verdict": "PROMOTE", "final": True}
    moved = json.loads(json.dumps(body))
    moved["numbers"][0]["mean"]["orders_per_user"] *= 1.1
    for number, each in enumerate((forged, moved, {"verdict": "PROMOTE"})):
        Ledger(home).append("DECISION", each, HORIZON, once=f"by hand {number}")
    by_hand, numbers, bare = audit(Ledger(home)).discrepancies
    assert set(by_hand.fields) == {"final", "verdict"}
    assert "metrics" in numbers.fields
    assert bare.fields == ("it holds no 'registration'",)


def test_the_whole_ledger_is_one_parquet(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "out" / "ledger.parquet"
    assert export(Ledger(home), path) == 4
    table = pq.read_table(path).to_pylist()
    entries = Ledger(home).entries()
    assert [row["kind"] for row in table] == ["BOOTSTRAP", "DECISION", "DECISION", "PROMOTE"]
    assert [row["verdict"] for row in table] == [None, "HOLD", "PROMOTE", None]
    assert table[2]["reasons"] == ["SUCCESS_SUPERIOR", "SUCCESS_SUPERIOR"]
    assert [json.loads(row["body"]) for row in table] == [entry.body for entry in entries]
    assert [row["digest"] for row in table] == [entry.digest for entry in entries]
    assert export(Ledger(Home(tmp_path / "empty")), tmp_path / "empty.parquet") == 0


def test_the_command_verifies_and_exports(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnifeed.pipelines.cli import cli

    monkeypatch.setenv("OMNIFEED_HOME", str(home.root))
    path = tmp_path / "audit.parquet"
    answer = CliRunner().invoke(cli, ["ledger", "verify", "--json"])
    assert json.loads(answer.output) == {"entries": 4, "decisions": 2, "discrepancies": []}
    answer = CliRunner().invoke(cli, ["ledger", "export", str(path), "--json"])
    assert (json.loads(answer.output)["entries"], path.exists()) == (4, True)
    Ledger(home).append("DECISION", {"verdict": "PROMOTE"}, HORIZON, once="by hand")
    answer = CliRunner().invoke(cli, ["ledger", "verify"])
    assert isinstance(answer.exception, IntegrityError)
    assert "entry 4" in answer.exception.problem
