"""Ratios, retention, variety, quality and caps: each against an independent computation from the raw lines."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from experiment_logs import DAY, HOUR, START, Logs, experiment, outcome, traffic

from omnifeed.config import Config, ExperimentConfig
from omnifeed.errors import InputError
from omnifeed.experiment.assignment import assign
from omnifeed.experiment.decision import Decision, MetricResult, Verdict
from omnifeed.experiment.estimate import effect
from omnifeed.experiment.evidence import ALL, ArmNumbers
from omnifeed.experiment.metrics import DERIVED, METRICS, judged_metrics
from omnifeed.experiment.verdict import decide

CONFIG = Config(
    experiment=ExperimentConfig(
        days=14,
        success=("click_rate", "orders_per_user"),
        guardrails=("hide_rate", "views_per_user", "retention"),
        guardrail_margins=(0.3, 0.1, 0.1),
        quality=("diversity", "likes_per_user", "latency", "tail_share"),
        caps={"orders_per_user": 2.0},
    )
)
TEST = experiment(CONFIG)
HORIZON = START + 14 * DAY + 48 * HOUR
RATES = {"viewed": 0.7, "click": 0.4, "order": 0.3, "hide": 0.1, "like": 0.2}


@pytest.fixture(scope="module")
def logs() -> Logs:
    made = traffic(TEST, users=1500, seed=6, rates=RATES, days=14, challenger=lambda name, _: 1.1)
    luck = random.Random(4)
    took = {line["request_id"]: luck.choice([None, 3.25, 8.5, 40.125]) for line in made.exposures}
    for line in made.exposures:  # some answers say not how long they took, some items have no creator
        line["latency_ms"] = took[line["request_id"]]
        line["tail_creator"] = luck.choice([None, False, True])
    return made


@pytest.fixture(scope="module")
def folder(logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logs.write(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def decision(folder: Path) -> Decision:
    return decide(folder, TEST, CONFIG, HORIZON)


def by_user(logs: Logs, name: str) -> dict[str, np.ndarray]:
    """Arm -> one total a user, users in one order for every name."""
    users: dict[str, dict[str, float]] = {"champion": {}, "challenger": {}}
    owner, shown, served = {}, set(), defaultdict(float)
    for line in sorted(logs.exposures, key=lambda line: line["ts"]):
        user = line["user_id"]
        owner[line["request_id"], line["item_id"]] = user
        users[assign(TEST, user).name].setdefault(user, 0.0)
        new = (user, line["scenario"], line["item_id"]) not in shown
        shown.add((user, line["scenario"], line["item_id"]))
        last = line["ts"] >= START + 7 * DAY
        served[user] = max(served[user], float(last)) if name == "last_week" else served[user] + (name == "served")
        served[user] += name == "first_shown" and new
        timed = line["position"] == 0 and line["latency_ms"] is not None
        served[user] += {
            "answered": float(timed),
            "waited": (line["latency_ms"] or 0) / 1000 * timed,
            "authored": float(line["tail_creator"] is not None),
            "of_tail": float(line["tail_creator"] is True),
        }.get(name, 0.0)
    if name in DERIVED:
        return {arm: np.array([served[user] for user in sorted(each)]) for arm, each in users.items()}
    for line in logs.outcomes:
        if line["name"] == name:
            user = owner[line["request_id"], line["item_id"]]
            users[assign(TEST, user).name][user] += line["value"]
    return {arm: np.array([each[user] for user in sorted(each)]) for arm, each in users.items()}


def result(decision: Decision, name: str) -> MetricResult:
    return next(each for each in decision.metrics if (each.name, each.scenario) == (name, None))


@pytest.mark.parametrize(
    ("name", "above", "below"),
    [
        ("click_rate", "click", "viewed"),
        ("hide_rate", "hide", "viewed"),
        ("diversity", "first_shown", "served"),
        ("latency", "waited", "answered"),
        ("tail_share", "of_tail", "authored"),
    ],
)
def test_a_ratio_is_tested_by_the_delta_method_over_users(
    decision: Decision, logs: Logs, name: str, above: str, below: str
) -> None:
    y, x = by_user(logs, above), by_user(logs, below)
    found, rates, parts, counts = result(decision, name), {}, {}, {}
    for arm in y:
        rates[arm] = y[arm].mean() / x[arm].mean()
        residual = (y[arm] - rates[arm] * x[arm]) / x[arm].mean()  # linearised: one number a user
        parts[arm] = residual.var(ddof=1) / len(residual)
        counts[arm] = len(residual)
    assert (found.champion, found.challenger) == pytest.approx((rates["champion"], rates["challenger"]), rel=1e-9)
    difference, error = rates["challenger"] - rates["champion"], math.sqrt(sum(parts.values()))
    degrees = error**4 / sum(part**2 / (counts[arm] - 1) for arm, part in parts.items())
    upper = scipy.stats.t.sf(difference / error, degrees)
    assert found.p_value == pytest.approx(1 - upper if found.lower_is_better else upper, abs=1e-9)


def test_cuped_adjusts_a_ratio_by_the_ratio_before(folder: Path, logs: Logs) -> None:
    y, x = by_user(logs, "click"), by_user(logs, "viewed")
    luck = np.random.default_rng(2)
    users: dict[str, list[str]] = {"champion": [], "challenger": []}
    for user in sorted({line["user_id"] for line in logs.exposures}):
        users[assign(TEST, user).name].append(user)
    past_x = {arm: np.maximum(x[arm] + luck.integers(-1, 2, len(x[arm])), 1.0) for arm in x}
    past_y = {arm: np.round(y[arm] * past_x[arm] / np.maximum(x[arm], 1)) for arm in x}
    before = pa.table(
        {
            "user_id": [*users["champion"], *users["challenger"]],
            "clicks_per_user": np.concatenate([past_y["champion"], past_y["challenger"]]),
            "views_per_user": np.concatenate([past_x["champion"], past_x["challenger"]]),
        }
    )
    found = result(decide(folder, TEST, CONFIG, HORIZON, before), "click_rate")

    both = {name: np.concatenate([each["champion"], each["challenger"]]) for name, each in
            (("y", y), ("x", x), ("py", past_y), ("px", past_x))}  # fmt: skip
    linear = (both["y"] - both["y"].mean() / both["x"].mean() * both["x"]) / both["x"].mean()
    linear_past = (both["py"] - both["py"].mean() / both["px"].mean() * both["px"]) / both["px"].mean()
    theta = np.cov(linear, linear_past)[0, 1] / linear_past.var(ddof=1)
    overall = both["py"].mean() / both["px"].mean()
    adjusted = {
        arm: y[arm].mean() / x[arm].mean() - theta * (past_y[arm].mean() / past_x[arm].mean() - overall) for arm in y
    }
    assert found.champion == pytest.approx(adjusted["champion"], rel=1e-9)
    assert found.challenger == pytest.approx(adjusted["challenger"], rel=1e-9)
    plain = result(decide(folder, TEST, CONFIG, HORIZON), "click_rate")
    assert None not in (found.low, found.high, plain.low, plain.high)
    assert (found.high or 0) - (found.low or 0) < 0.8 * ((plain.high or 0) - (plain.low or 0))


def test_retention_is_the_share_of_users_who_were_there_in_the_last_week(decision: Decision, logs: Logs) -> None:
    active, found = by_user(logs, "last_week"), result(decision, "retention")
    assert (found.champion, found.challenger) == pytest.approx(
        (active["champion"].mean(), active["challenger"].mean()), rel=1e-9
    )
    assert 0.5 < found.champion < 1
    with pytest.raises(InputError, match="retention is judged after one week"):
        judged_metrics(dataclasses.replace(CONFIG.experiment, days=7))


def test_a_cap_holds_for_one_user_over_the_experiment(decision: Decision, logs: Logs) -> None:
    orders, found = by_user(logs, "order"), result(decision, "orders_per_user")
    assert orders["champion"].max() > 2
    assert found.champion == pytest.approx(np.minimum(orders["champion"], 2).mean(), rel=1e-9)


def test_views_and_serves_are_told_apart(decision: Decision, logs: Logs) -> None:
    viewed = by_user(logs, "viewed")
    assert result(decision, "views_per_user").champion == pytest.approx(viewed["champion"].mean(), rel=1e-9)


# Quality


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.PROMOTE), (0.3, Verdict.HOLD)])
def test_a_quality_metric_shown_to_be_worse_stops_a_promotion(tmp_path: Path, factor: float, verdict: Verdict) -> None:
    config = Config(
        experiment=ExperimentConfig(
            days=7, guardrails=("hides_per_user",), guardrail_margins=(0.25,), quality=("likes_per_user",)
        )
    )
    test = experiment(config)
    rates = {"order": 0.1, "hide": 0.12, "like": 0.2}
    factors = {"order": 1.5, "like": factor}
    logs = traffic(test, users=3000, seed=1, rates=rates, challenger=lambda name, _: factors.get(name, 1.0))
    decision = decide(logs.write(tmp_path), test, config, START + 7 * DAY + 48 * HOUR)
    assert (decision.verdict, decision.final) == (verdict, True)
    likes = result(decision, "likes_per_user")
    assert (likes.role, likes.margin) == ("quality", None)
    if verdict is Verdict.HOLD:
        assert [reason.code.value for reason in decision.reasons] == ["QUALITY_INFERIOR"]
        assert likes.outcome == "inferior"


# What cannot be estimated


def arm(name: str, mean: float, **changes: Any) -> ArmNumbers:
    fields: dict[str, Any] = {
        "covariate_mean": {"orders_per_user": 1.0},
        "covariate_variance": {"orders_per_user": 4.0},
        "covariance": {"orders_per_user": 3.0},
    }
    return ArmNumbers(
        scope=ALL,
        arm=name,
        users=20,
        mean={"orders_per_user": mean},
        variance={"orders_per_user": 4.0},
        **(fields | changes),
    )


def test_an_adjusted_mean_below_zero_gives_no_relative_effect() -> None:
    unlucky = arm("challenger", 0.05, covariate_mean={"orders_per_user": 2.5})
    found = effect(arm("champion", 1.0), unlucky, METRICS["orders_per_user"], 0.05)
    assert found.challenger < 0
    assert (found.relative, found.low, found.high) == (None, None, None)
    assert found.p_worse < 0.05  # the test itself stands


def test_an_interval_wider_than_a_thousand_percent_is_not_estimable() -> None:
    plain: dict[str, Any] = {"covariate_mean": {}, "covariate_variance": {}, "covariance": {}}
    found = effect(arm("champion", 0.1, **plain), arm("challenger", 0.2, **plain), METRICS["orders_per_user"], 0.05)
    assert found.relative == pytest.approx(1.0)
    assert (found.low, found.high) == (None, None)


def test_what_is_not_estimable_reads_so(tmp_path: Path) -> None:
    config = Config(experiment=ExperimentConfig(days=7, guardrails=("hides_per_user",), guardrail_margins=(0.25,)))
    test = experiment(config)
    logs = traffic(test, users=200, seed=1, rates={"order": 0.1, "hide": 0.0})
    first = next(line for line in logs.exposures if line["arm"] == "challenger")  # the champion has none to divide by
    logs.outcomes.append(outcome(first["request_id"], first["item_id"], "hide", 1, first["ts"] + 1))
    decision = decide(logs.write(tmp_path), test, config, START + 7 * DAY + 48 * HOUR)
    assert decision.verdict is Verdict.HOLD
    assert "not estimable" in decision.paragraph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quality": ("click_rate",)}, "named twice"),
        ({"caps": {"click_rate": 1.0}}, "caps names"),
        ({"caps": {"orders_per_user": 0.0}}, "cap is not positive"),
        ({"unit": "session"}, "the unit is"),
        ({"bot_views": 0}, "bot_views"),
        ({"max_lost_share": 2.0}, "max_lost_share"),
    ],
)
def test_a_declaration_that_cannot_hold_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        judged_metrics(dataclasses.replace(CONFIG.experiment, **change))
