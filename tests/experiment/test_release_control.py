"""From a challenger's deployment to what a verdict does: repeated steps, kills between them, and rivals."""

from __future__ import annotations

import dataclasses
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NoReturn

import pytest
from experiment_logs import CONFIG, DAY, HORIZON, START, traffic

from omnifeed.config import Config
from omnifeed.errors import ConflictError, InputError
from omnifeed.experiment import release_control
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.decision import Decision, Ruling, Verdict
from omnifeed.experiment.deploy import close_experiment, current_path, open_experiment, running_experiment
from omnifeed.experiment.ledger import Entry, Ledger
from omnifeed.experiment.metrics import experiment_digest
from omnifeed.experiment.release_control import act
from omnifeed.experiment.verdict import decide
from omnifeed.home import Home

RATES = {"click": 0.3, "order": 0.08, "hide": 0.12}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, now=START)
    return home


def judged(home: Home, experiment: Experiment, gain: float, now: int = HORIZON) -> Decision:
    """Real traffic on the experiment's folder, judged."""
    logs = traffic(experiment, users=2000, rates=RATES, challenger=lambda name, _: gain if name == "order" else 1.0)
    return decide(logs.write(home.experiments / experiment.name), experiment, CONFIG, now)


def kill(*args: object, **kwargs: object) -> NoReturn:
    raise KeyboardInterrupt


def kinds(home: Home) -> list[str]:
    return [entry.kind for entry in Ledger(home).entries()]


def test_opening_writes_the_pre_registration_and_routes(home: Home) -> None:
    experiment = open_experiment(home, "0", "1", CONFIG, START)
    assert experiment.name == experiment.salt == "release-1-vs-0"
    assert (experiment.start_ts, experiment.end_ts) == (START, START + 7 * DAY)
    assert experiment.config_digest == experiment_digest(CONFIG)
    assert running_experiment(home) == experiment
    assert Experiment.load(home.experiments / experiment.name / "experiment.json") == experiment
    assert kinds(home) == ["BOOTSTRAP", "DEPLOY"]
    assert Ledger(home).champion() == "0"


def test_a_repeated_deployment_finds_the_running_one_and_a_rival_is_refused(home: Home) -> None:
    first = open_experiment(home, "0", "1", CONFIG, START)
    assert open_experiment(home, "0", "1", CONFIG, START + DAY) == first
    with pytest.raises(ConflictError, match="release-1-vs-0 is running"):
        open_experiment(home, "0", "2", CONFIG, START)
    assert kinds(home) == ["BOOTSTRAP", "DEPLOY"]


def test_a_killed_deployment_is_completed_by_the_next(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "append", kill)
    with pytest.raises(KeyboardInterrupt):
        open_experiment(home, "0", "1", CONFIG, START)
    monkeypatch.undo()
    open_experiment(home, "0", "1", CONFIG, START + DAY)
    assert kinds(home) == ["BOOTSTRAP", "DEPLOY"]


def test_a_name_and_its_salt_are_used_once(home: Home) -> None:
    open_experiment(home, "0", "1", CONFIG, START)
    close_experiment(home)
    assert open_experiment(home, "0", "1", CONFIG, START).name == "release-1-vs-0-2"
    close_experiment(home)
    named = Config(experiment=dataclasses.replace(CONFIG.experiment, name="spring"))
    assert open_experiment(home, "0", "1", named, START).salt == "spring"
    close_experiment(home)
    with pytest.raises(InputError, match="spring was run before"):
        open_experiment(home, "0", "1", named, START)


def test_only_the_champion_is_challenged_and_not_by_itself(home: Home) -> None:
    with pytest.raises(ConflictError, match="champion is release 0, not 5"):
        open_experiment(home, "5", "1", CONFIG, START)
    with pytest.raises(InputError, match="against itself"):
        open_experiment(home, "0", "0", CONFIG, START)
    assert running_experiment(home) is None


def test_a_promotion_moves_the_champion_and_ends_the_experiment(home: Home) -> None:
    experiment = open_experiment(home, "0", "1", CONFIG, START)
    decision = judged(home, experiment, gain=1.8)
    assert decision.verdict is Verdict.PROMOTE
    entry = act(home, decision.ruling, HORIZON)
    assert (entry.kind, entry.champion) == ("PROMOTE", "1")
    assert running_experiment(home) is None
    assert kinds(home) == ["BOOTSTRAP", "DEPLOY", "DECISION", "PROMOTE"]
    recorded = Ledger(home).entries()[2].body
    assert recorded["verdict"] == "PROMOTE"
    assert {numbers["arm"] for numbers in recorded["numbers"]} == {"champion", "challenger"}
    assert Ledger(home).rollback(HORIZON + DAY).champion == "0"


@pytest.mark.parametrize("step", ["append", "close"])
def test_a_promotion_killed_between_its_steps_is_completed_once(
    home: Home, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = open_experiment(home, "0", "1", CONFIG, START)
    decision = judged(home, experiment, gain=1.8)
    whole = Ledger.append

    def until_the_promotion(self: Ledger, kind: Any, *args: Any, **kwargs: Any) -> Entry:
        return kill() if kind == "PROMOTE" else whole(self, kind, *args, **kwargs)

    if step == "close":
        monkeypatch.setattr(release_control, "close_experiment", kill)
    else:
        monkeypatch.setattr(Ledger, "append", until_the_promotion)
    with pytest.raises(KeyboardInterrupt):
        act(home, decision.ruling, HORIZON)
    monkeypatch.undo()
    assert running_experiment(home) is not None
    later = judged(home, experiment, gain=1.8, now=HORIZON + DAY)  # the next scheduled run reads the logs again
    act(home, later.ruling, HORIZON + DAY)
    act(home, later.ruling, HORIZON + DAY)
    assert kinds(home) == ["BOOTSTRAP", "DEPLOY", "DECISION", "PROMOTE"]
    assert Ledger(home).champion() == "1"
    assert running_experiment(home) is None


@pytest.mark.parametrize(("gain", "verdict"), [(1.0, Verdict.HOLD), (0.1, Verdict.REJECT)])
def test_a_final_verdict_that_is_no_promotion_keeps_the_champion_and_ends_the_test(
    home: Home, gain: float, verdict: Verdict
) -> None:
    experiment = open_experiment(home, "0", "1", CONFIG, START)
    decision = judged(home, experiment, gain)
    assert decision.verdict is verdict
    assert act(home, decision.ruling, HORIZON).kind == "DECISION"
    assert Ledger(home).champion() == "0"
    assert running_experiment(home) is None


def test_no_traffic_ends_the_test_and_keeps_the_champion(home: Home) -> None:
    experiment = open_experiment(home, "0", "1", CONFIG, START)
    decision = decide(home.experiments / experiment.name, experiment, CONFIG, HORIZON)
    assert act(home, decision.ruling, HORIZON).body["reasons"][0]["code"] == "NO_DATA"
    assert (Ledger(home).champion(), running_experiment(home)) == ("0", None)


def test_a_hold_before_the_horizon_leaves_the_test_running_and_is_recorded_once_a_look(home: Home) -> None:
    experiment = open_experiment(home, "0", "1", CONFIG, START)
    early = judged(home, experiment, gain=1.8, now=START + 2 * DAY)
    for _ in range(2):
        act(home, early.ruling, START + 2 * DAY)
    act(home, judged(home, experiment, gain=1.8, now=START + 3 * DAY).ruling, START + 3 * DAY)
    assert kinds(home) == ["BOOTSTRAP", "DEPLOY", "DECISION", "DECISION"]
    assert running_experiment(home) == experiment


def test_a_champion_that_changed_meanwhile_is_not_replaced(home: Home) -> None:
    experiment = open_experiment(home, "0", "1", CONFIG, START)
    decision = judged(home, experiment, gain=1.8)
    Ledger(home).append("PROMOTE", {"release": "7"}, HORIZON, expected_champion="0")
    with pytest.raises(ConflictError):
        act(home, decision.ruling, HORIZON)
    assert Ledger(home).champion() == "7"


def _act(root: Path, ruling: Ruling, barrier: Barrier) -> None:
    barrier.wait()
    act(Home(root), ruling, HORIZON)


def test_the_same_verdict_acted_on_by_two_processes_promotes_once(home: Home) -> None:
    experiment = open_experiment(home, "0", "1", CONFIG, START)
    decision = judged(home, experiment, gain=1.8)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_act, args=(home.root, decision.ruling, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert kinds(home) == ["BOOTSTRAP", "DEPLOY", "DECISION", "PROMOTE"]
    assert not current_path(home).exists()
