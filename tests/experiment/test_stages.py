"""The ramp: arms nested, stages judged apart and only for harm, success read on the last."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from experiment_logs import DAY, HOUR, START, Logs, outcome, traffic
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.config import Config, ExperimentConfig
from omnifeed.errors import InputError
from omnifeed.experiment.assignment import Experiment, assign
from omnifeed.experiment.audit import recompute
from omnifeed.experiment.decision import Decision, Verdict
from omnifeed.experiment.deploy import open_experiment
from omnifeed.experiment.ledger import Ledger
from omnifeed.experiment.metrics import judged_metrics
from omnifeed.experiment.verdict import decide
from omnifeed.home import Home

CONFIG = Config(
    experiment=ExperimentConfig(
        days=7, ramp=(0.05, 0.25), ramp_hours=24, guardrails=("hides_per_user",), guardrail_margins=(0.25,)
    )
)
RATES = {"click": 0.3, "order": 0.08, "hide": 0.12}
LAST = START + 2 * DAY  # the test itself begins


@pytest.fixture(scope="module")
def test(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    home = Home(tmp_path_factory.mktemp("home"))
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, START)
    return open_experiment(home, "0", "1", CONFIG, START)


def ramped(test: Experiment, factor: Callable[[int, str], float] = lambda stage, name: 1.0, users: int = 3000) -> Logs:
    """Every stage's traffic, under the arms of that stage; the factor is on an outcome's probability, by stage."""
    logs = Logs()
    for number, stage in enumerate(test.stages):
        part = test.stage(stage.start_ts)
        days = (part.end_ts - part.start_ts) // DAY
        made = traffic(
            part, users=users, seed=1, rates=RATES, days=days, challenger=lambda name, _, n=number: factor(n, name)
        )
        shift = part.start_ts - START
        for line in (*made.exposures, *made.outcomes):
            line["request_id"] += f"/{number}"
            line["ts"] += shift
            if "observed_ts" in line:
                line["observed_ts"] += shift
        logs.exposures += made.exposures
        logs.outcomes += made.outcomes
    return logs


@pytest.fixture
def judged(tmp_path: Path, test: Experiment) -> Callable[[Logs, int], Decision]:
    return lambda logs, now: decide(logs.write(tmp_path / "experiment"), test, CONFIG, now)


def test_opening_writes_the_ramp_and_a_file_without_one_is_as_before(test: Experiment) -> None:
    assert [(stage.start_ts, stage.share) for stage in test.stages] == [
        (START, 0.05), (START + DAY, 0.25), (LAST, 0.5),
    ]  # fmt: skip
    assert test.end_ts == LAST + 7 * DAY
    assert Experiment.from_dict(json.loads(json.dumps(test.to_dict()))) == test
    plain = dataclasses.replace(test, stages=())
    assert "stages" not in plain.to_dict()
    assert plain.stage(START) is plain


@given(st.text(min_size=1))
def test_who_has_the_challenger_keeps_it(user: str) -> None:
    raw = {"name": "t", "salt": "t", "start_ts": 0, "end_ts": 9, "config_digest": ""}
    arms = [{"name": "champion", "release": "0", "weight": 0.5}, {"name": "challenger", "release": "1", "weight": 0.5}]
    stages = [{"start_ts": number, "share": share} for number, share in enumerate((0.01, 0.05, 0.25, 0.5))]
    test = Experiment.from_dict({**raw, "arms": arms, "stages": stages})
    found = [assign(test.stage(ts), user).name for ts in range(4)]
    assert found == sorted(found, reverse=True)  # champion, ..., challenger: once there, there for good


@pytest.mark.parametrize(
    "stages",
    [
        [{"start_ts": 5, "share": 0.5}],
        [{"start_ts": 0, "share": 0.3}, {"start_ts": 1, "share": 0.1}, {"start_ts": 2, "share": 0.5}],
        [{"start_ts": 0, "share": 0.1}, {"start_ts": 1, "share": 0.4}],
        [{"start_ts": 0, "share": 0.1}, {"start_ts": 99, "share": 0.5}],
    ],
)
def test_stages_that_are_no_ramp_are_refused(stages: list[dict[str, float]]) -> None:
    raw = {"name": "t", "salt": "t", "start_ts": 0, "end_ts": 9, "config_digest": "", "stages": stages}
    arms = [{"name": "champion", "release": "0", "weight": 0.5}, {"name": "challenger", "release": "1", "weight": 0.5}]
    with pytest.raises(InputError, match="no ramp"):
        Experiment.from_dict({**raw, "arms": arms})
    with pytest.raises(InputError, match="does not rise"):
        judged_metrics(dataclasses.replace(CONFIG.experiment, ramp=(0.25, 0.6)))


def test_a_stage_is_looked_at_for_harm_only(judged: Callable[..., Decision], test: Experiment) -> None:
    logs = ramped(test, lambda stage, name: 1.5 if name == "order" else 1.0)
    for number, now in enumerate((START + 12 * HOUR, START + 36 * HOUR)):
        decision = judged(logs, now)
        assert (decision.verdict, decision.final) == (Verdict.HOLD, False)
        assert f"Stage {number + 1} of 3" in decision.paragraph
        assert decision.splits[0].planned_champion_share == 1 - test.stages[number].share
    decision = judged(logs, LAST + 3 * DAY)
    assert (decision.verdict, decision.reasons[0].code.value) == (Verdict.HOLD, "BEFORE_HORIZON")


def test_harm_on_the_ramp_ends_the_test(judged: Callable[..., Decision], test: Experiment) -> None:
    logs = ramped(test, lambda stage, name: 4.0 if name == "hide" and stage == 1 else 1.0)
    decision = judged(logs, START + 47 * HOUR)
    assert (decision.verdict, decision.final) == (Verdict.REJECT, True)
    assert {reason.code.value for reason in decision.reasons} == {"EARLY_HARM"}
    body = json.loads(json.dumps(decision.to_dict()))
    assert recompute(body).verdict is Verdict.REJECT


def test_a_stage_is_judged_until_its_attribution_window_closes(
    judged: Callable[..., Decision], test: Experiment
) -> None:
    """A look at every midnight, when a stage begins, would otherwise judge nothing but stages without data."""
    logs = ramped(test, lambda stage, name: 4.0 if name == "hide" and stage == 1 else 1.0)
    window = CONFIG.experiment.attribution_hours * HOUR
    for now in (LAST, LAST + window - 1):
        decision = judged(logs, now)
        assert (decision.verdict, decision.start_ts) == (Verdict.REJECT, test.stages[1].start_ts)
        body = json.loads(json.dumps(decision.to_dict()))
        assert json.loads(json.dumps(recompute(body).to_dict())) == {**body, "daily": []}
    after = judged(logs, LAST + window)
    assert (after.verdict, after.start_ts) == (Verdict.HOLD, LAST)


def test_stages_are_never_pooled(judged: Callable[..., Decision], test: Experiment) -> None:
    """A holiday on the ramp, when few had the challenger, would make any challenger look poor in a pooled reading."""
    logs = ramped(test, lambda stage, name: 1.5 if name == "order" else 1.0)
    for line in [line for line in logs.exposures if line["ts"] < LAST]:
        logs.outcomes.append(outcome(line["request_id"], line["item_id"], "order", 1, line["ts"] + 1))
    alone = Logs(
        [line for line in logs.exposures if line["ts"] >= LAST],
        [line for line in logs.outcomes if line["request_id"].endswith("/2")],
    )
    horizon = test.end_ts + 48 * HOUR
    whole, last = judged(logs, horizon), judged(alone, horizon)
    assert whole.verdict is last.verdict is Verdict.PROMOTE
    assert (whole.metrics, whole.splits) == (last.metrics, last.splits)
    assert whole.counts.exposures_outside == len(logs.exposures) - len(alone.exposures)
    assert whole.counts.exposures_before == 0


def test_a_ramp_that_is_not_the_registered_one_is_invalid(tmp_path: Path, test: Experiment) -> None:
    other = dataclasses.replace(test, stages=(test.stages[0], test.stages[2]))
    decision = decide(ramped(test, users=300).write(tmp_path), other, CONFIG, test.end_ts + 48 * HOUR)
    assert "CONFIG_CHANGED" in [reason.code.value for reason in decision.reasons]
