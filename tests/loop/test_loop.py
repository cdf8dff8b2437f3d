"""The loop once, through the command line: what it prints, what it leaves, and what a second run would start from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from omnifeed.config import Config
from omnifeed.experiment.assignment import Experiment, assign
from omnifeed.experiment.decision import Verdict
from omnifeed.experiment.ledger import Ledger
from omnifeed.home import Home
from omnifeed.tables import read_tables

from .conftest import Loop, omnifeed
from .state import assert_sound
from .steps import Artifacts, Steps

STEPS = {
    "ingest", "validate", "materialize", "champion", "train", "evaluate", "export", "infra_validate", "deploy",
    "traffic", "gate", "act", "collect", "end_of_training", "end_of_promotion",
}  # fmt: skip


@pytest.fixture
def experiment(loop: Loop) -> Experiment:
    return Experiment.load(loop.deployed.experiments / "current.json")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]


def test_every_step_is_recorded_as_done(loop: Loop) -> None:
    records = [json.loads(path.read_text()) for path in (loop.home.runs / "0001" / "steps").glob("*.json")]
    assert {record["step"] for record in records} == STEPS
    assert {record["state"] for record in records} == {"done"}


def test_the_verdict_is_printed_with_its_reasons_and_the_report(loop: Loop) -> None:
    decision = json.loads((loop.home.runs / "0001" / "decision.json").read_text())
    assert loop.outcome["verdict"] == decision["verdict"]
    assert loop.outcome["verdict"] in {verdict.value for verdict in Verdict}
    assert loop.outcome["paragraph"] == decision["paragraph"]
    assert decision["reasons"]
    page = Path(loop.outcome["report"]).read_text()
    assert loop.outcome["verdict"] in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)[^"']*|@import|url\((?!#|["']?data:)""", page)


def test_champion_and_ledger_follow_from_the_verdict(loop: Loop) -> None:
    assert_sound(loop.home)
    promoted = loop.outcome["verdict"] == "PROMOTE"
    kinds = [entry.kind for entry in Ledger(loop.home).entries()]
    assert kinds == ["BOOTSTRAP", "DEPLOY", "DECISION", *(["PROMOTE"] if promoted else [])]
    assert loop.outcome["champion"] == Ledger(loop.home).champion() == ("1" if promoted else "0")
    assert not (loop.home.experiments / "current.json").exists()
    verified = omnifeed(loop.home.root, "ledger", "verify", "--json")
    assert verified.code == 0
    assert verified.json() == {"entries": len(kinds), "decisions": 1, "discrepancies": []}
    shown = omnifeed(loop.home.root, "ledger", "--json")
    assert [entry["kind"] for entry in shown.json()["entries"]] == kinds


def test_what_was_served_is_logged_by_the_arm_of_its_user_and_kept_for_training(
    loop: Loop, experiment: Experiment, config: Config
) -> None:
    folder = loop.home.experiments / experiment.name
    exposures, outcomes = lines_of(folder / "exposures"), lines_of(folder / "outcomes")
    places = {(line["request_id"], line["item_id"]) for line in exposures}
    assert len(places) == len(exposures)
    assert len({line["request_id"] for line in exposures}) == config.experiment.max_requests
    assert all(line["arm"] == assign(experiment, line["user_id"]).name for line in exposures)
    assert {(line["request_id"], line["item_id"]) for line in outcomes} <= places
    assert any(line["name"] == "click" for line in outcomes)
    kept = read_tables(loop.home.lake / "served" / experiment.name).events
    assert kept.num_rows == len(exposures)


def test_users_of_the_experiment_were_held_out_of_training(loop: Loop, experiment: Experiment) -> None:
    import pyarrow.parquet as pq

    training = Artifacts.of(loop.home.root, "0001", "training")
    rows = pq.read_table(training.path("materialize", "training_set") / "rows.parquet", columns=["user_id"])
    served = {line["user_id"] for line in lines_of(loop.home.experiments / experiment.name / "exposures")}
    assert served.isdisjoint(rows["user_id"].to_pylist())


def test_a_second_run_reads_what_was_served_and_challenges_the_champion_that_it_finds(
    loop: Loop, copied: Home, experiment: Experiment, config: Config, steps: Steps, tmp_path: Path
) -> None:
    """Its first steps, after a promotion; the model of the first run stands in for the one it would train."""
    ledger, shared = Ledger(copied), {"home": str(copied.root), "run_id": "0002", "config": config.to_json()}
    if ledger.champion() == "0":
        ledger.append("PROMOTE", {"release": "1"}, experiment.end_ts, expected_champion="0")
    read = steps.run("ingest", tmp_path / "ingest", shared)
    assert read.output == experiment.end_ts
    assert set(read_tables(read.folder / "tables").events["arm"].to_pylist()) >= {"champion", "challenger", "logging"}
    found = steps.run("champion", tmp_path / "champion", {**shared, "now": read.output})
    assert found.output == "1"
    training = Artifacts.of(loop.home.root, "0001", "training")
    same = {"training_set": training.path("materialize", "training_set"), "model": training.path("train", "model")}
    compared = steps.run("evaluate", tmp_path / "evaluate", {**shared, "champion": found.output, **same})
    assert (compared.output, compared.error) == ("yes", None)
    differences = json.loads((copied.runs / "0002" / "steps" / "evaluate.json").read_text())["info"]["differences"]
    assert differences
    assert all(row["challenger"] == pytest.approx(row["champion"], abs=1e-4) for row in differences)


@pytest.mark.parametrize("held", [Home.lock, Home.step])
def test_a_home_in_use_is_not_touched_by_a_second_command(
    copied: Home, config_file: Path, held: Callable[[Home], AbstractContextManager[None]]
) -> None:
    with held(copied):  # step: what a run that was killed alone leaves behind
        refused = omnifeed(copied.root, "run", "--config", config_file)
    assert refused.code == 75
    problem, action = refused.sentences()
    assert "is in use by process" in problem
    assert action.startswith("Wait")
