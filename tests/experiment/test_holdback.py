"""The hold-back group: in no arm of any experiment, never shown a promotion, and what it says of all of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from experiment_logs import CONFIG, DAY, HORIZON, HOUR, START, Logs, traffic
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.experiment.assignment import HELD, Arm, Experiment, Holdback, assign
from omnifeed.experiment.decision import Decision, Verdict
from omnifeed.experiment.deploy import close_experiment, holdback_path, open_experiment, running_experiment
from omnifeed.experiment.gate import lift_current
from omnifeed.experiment.ledger import Ledger
from omnifeed.experiment.lift import Lift, cumulative_lift
from omnifeed.experiment.metrics import judged_metrics
from omnifeed.experiment.release_control import act
from omnifeed.experiment.verdict import decide
from omnifeed.home import Home
from omnifeed.pipelines.cli import cli
from omnifeed.report.page import write_report
from omnifeed.report.summary import RunSummary

HOLDING = Config(experiment=dataclasses.replace(CONFIG.experiment, holdback=0.2))
RATES = {"click": 0.3, "order": 0.08, "hide": 0.12}
GROUP = Holdback("held", 0.2, "0", START)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, START - DAY)
    return home


def write(home: Home, name: str, logs: Logs) -> Path:
    return logs.write(home.experiments / name)


def test_the_group_begins_on_the_champion_and_outlives_experiments(home: Home) -> None:
    first = open_experiment(home, "0", "1", HOLDING, START)
    assert first.holdback == Holdback(f"holdback-{START}", 0.2, "0", START)
    assert Experiment.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    close_experiment(home)
    Ledger(home).append("PROMOTE", {"release": "1"}, START + DAY, expected_champion="0")
    second = open_experiment(home, "1", "2", HOLDING, START + 9 * DAY)
    assert second.holdback == first.holdback
    assert second.salt != first.salt
    users = [f"u{number}" for number in range(3000)]
    held = {user for user in users if assign(first, user).name == HELD}
    assert held == {user for user in users if assign(second, user).name == HELD}
    assert 0.17 < len(held) / 3000 < 0.23
    split = [assign(second, user).name for user in users if assign(first, user).name == "challenger"]
    assert 0.45 < split.count("challenger") / len(split) < 0.55
    assert HELD not in split


@given(st.text(min_size=1))
def test_a_held_user_has_the_groups_release_in_every_stage(user: str) -> None:
    arms = (Arm("champion", "3", 0.5), Arm("challenger", "4", 0.5))
    test = Experiment("t", "t", arms, START, START + DAY, "", holdback=GROUP)
    plain = dataclasses.replace(test, holdback=None)
    assert assign(test, user) == (Arm(HELD, "0", 0.2) if GROUP.holds(user) else assign(plain, user))


@pytest.mark.parametrize("change", ["another share", "none", "not JSON", "no share", "everybody"])
def test_a_group_that_does_not_fit_is_refused_and_nothing_begins(home: Home, change: str) -> None:
    open_experiment(home, "0", "1", HOLDING, START)
    close_experiment(home)
    share = {"another share": 0.1, "none": 0.0}.get(change, 0.2)
    if change == "not JSON":
        holdback_path(home).write_text("{")
    elif change in ("no share", "everybody"):
        raw = json.loads(holdback_path(home).read_text())
        raw = {**raw, "share": 1.0} if change == "everybody" else {"salt": "x"}
        holdback_path(home).write_text(json.dumps(raw))
    config = Config(experiment=dataclasses.replace(CONFIG.experiment, holdback=share))
    with pytest.raises(InputError, match=r"holdback|hold-back"):
        open_experiment(home, "0", "2", config, START)
    assert running_experiment(home) is None


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"holdback is 0\.7"):
        judged_metrics(dataclasses.replace(CONFIG.experiment, holdback=0.7))


def judged(home: Home, change: Callable[[dict[str, Any]], None] = lambda line: None) -> Decision:
    test = open_experiment(home, "0", "1", HOLDING, START)
    logs = traffic(test, users=2500, rates=RATES, challenger=lambda name, _: 1.8 if name == "order" else 1.0)
    for line in logs.exposures:
        change(line)
    return decide(write(home, test.name, logs), test, HOLDING, HORIZON)


def test_held_users_are_in_neither_arm(home: Home) -> None:
    decision = judged(home)
    assert decision.verdict is Verdict.PROMOTE
    arms = {each.arm: each.users for each in decision.evidence.numbers if not each.scope}
    assert set(arms) == {"champion", "challenger"}
    assert sum(arms.values()) + decision.counts.users_held == 2500
    assert 0.17 < decision.counts.users_held / 2500 < 0.23
    assert decision.splits[0].planned_champion_share == 0.5
    assert not any(split.mismatched for split in decision.splits)


@pytest.mark.parametrize("spoilt", ["shown the challenger", "not held"])
def test_a_group_that_is_not_kept_apart_is_found(home: Home, spoilt: str) -> None:
    def change(line: dict[str, Any]) -> None:
        if spoilt == "shown the challenger" and line["arm"] == HELD and line["request_id"].startswith("u0-1"):
            line.update(arm="challenger", release="1")
        elif spoilt == "not held" and line["arm"] == "champion" and line["request_id"].startswith("u0-1"):
            line.update(arm=HELD)

    decision = judged(home, change)
    assert (decision.verdict, decision.reasons[0].code.value) == (Verdict.INVALID, "ASSIGNMENT_MISMATCH")


def after(home: Home, champion: str, start: int, days: int, gain: float, name: str = "none") -> Logs:
    """Traffic without an experiment: the champion, which sells `gain` times what the group's release sells."""
    group = Holdback.load(holdback_path(home))
    arms = (Arm("champion", champion, 1.0),)
    test = Experiment(name, "", arms, start, start + days * DAY, "", holdback=group)
    logs = traffic(
        test,
        users=2500,
        seed=int(champion) + 7,
        rates=RATES,
        challenger=lambda outcome, _: gain if outcome == "order" else 1.0,
        days=days,
        start=start,
        better="champion",
    )
    write(home, name, logs)
    return logs


@pytest.fixture
def promoted(home: Home) -> Home:
    """Release 1 was promoted, and has answered for a week since."""
    act(home, judged(home).ruling, HORIZON)
    after(home, "1", HORIZON + HOUR, 7, 1.8)
    return home


NOW = HORIZON + 10 * DAY


def test_each_champions_time_is_compared_with_the_group_alone(promoted: Home) -> None:
    found = cumulative_lift(promoted, HOLDING, NOW)
    assert found is not None
    first, second = found.periods
    assert [(period.champion, period.doubts) for period in found.periods] == [("0", ()), ("1", ())]
    orders = [_orders(period.results) for period in found.periods]
    assert orders[0].low < 0 < orders[0].high  # the same release in both
    assert orders[1].low > 0.3
    assert orders[1].low < 0.8 < orders[1].high
    assert {each.scenario for each in second.results} == {None, "livestream", "search", "short_video"}
    # of the first week's users those of the challenger's arm are left out
    assert first.others < 0.6 * second.others
    assert first.held == pytest.approx(second.held, rel=0.2)
    body = json.loads(json.dumps(found.to_dict()))
    page = promoted.root / "report.html"
    write_report(page, RunSummary(title="t", now=NOW, lift=body))
    assert "What all promotions together have brought" in page.read_text()
    assert "Orders per user" in found.text()


def _orders(results: Any) -> Any:
    return next(each for each in results if (each.name, each.scenario) == ("orders_per_user", None))


def test_looking_again_reads_the_same(promoted: Home) -> None:
    first = cumulative_lift(promoted, HOLDING, NOW)
    assert lift_current(promoted, HOLDING, NOW) == first
    assert isinstance(first, Lift)
    # an experiment that begins changes who is left out
    close_experiment(promoted)
    test = open_experiment(promoted, "1", "2", HOLDING, HORIZON + 8 * DAY)
    again = cumulative_lift(promoted, HOLDING, NOW)
    assert again is not None
    assert again.periods[1].others == pytest.approx(first.periods[1].others / 2, rel=0.1)
    assert test.holdback == first.group


def test_a_group_that_saw_the_champion_shows_no_lift(promoted: Home) -> None:
    path = promoted.experiments / "none" / "exposures" / "1.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[:400]:
        line.update(arm="champion", release="1")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = cumulative_lift(promoted, HOLDING, NOW)
    assert found is not None
    assert found.periods[1].results == ()
    assert "ASSIGNMENT_MISMATCH" in {reason.code.value for reason in found.periods[1].doubts}


def test_without_a_group_there_is_no_lift(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cumulative_lift(home, CONFIG, NOW) is None
    monkeypatch.setenv("OMNIFEED_HOME", str(home.root))
    answer = CliRunner().invoke(cli, ["lift"])
    assert isinstance(answer.exception, InputError)


def test_the_command_prints_the_lift(promoted: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIFEED_HOME", str(promoted.root))
    (tmp_path / "c.toml").write_text(
        '[experiment]\nsuccess = ["orders_per_user"]\nguardrails = []\nguardrail_margins = []\n'
    )
    answer = CliRunner().invoke(cli, ["lift", "--now", str(NOW), "--json", "--config", str(tmp_path / "c.toml")])
    periods = json.loads(answer.output)["periods"]
    assert [period["champion"] for period in periods] == ["0", "1"]
    assert periods[1]["results"][0]["low"] > 0.3
