"""Every estimate against an independent computation from the raw lines (numpy, scipy, statsmodels), to 1e-9."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from experiment_logs import CONFIG, HORIZON, Logs, experiment, traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import zt_ind_solve_power

from omnifeed.experiment.assignment import assign
from omnifeed.experiment.decision import Decision, MetricResult
from omnifeed.experiment.estimate import holm, sample_ratio_p_value
from omnifeed.experiment.plan import required_users
from omnifeed.experiment.sequential import sequence_factor
from omnifeed.experiment.verdict import decide

TEST = experiment()
NAMES = {"gmv_per_user": "gmv", "orders_per_user": "order", "hides_per_user": "hide"}


def totals(logs: Logs, outcome: str, scenario: str | None = None, cap: float = math.inf) -> dict[str, dict[str, float]]:
    """Arm -> user -> total, in plain Python."""
    home = {}
    users: dict[str, dict[str, float]] = {"champion": defaultdict(float), "challenger": defaultdict(float)}
    for line in logs.exposures:
        if scenario in (None, line["scenario"]):
            arm = assign(TEST, line["user_id"]).name
            home[line["request_id"], line["item_id"]] = users[arm], line["user_id"]
            users[arm][line["user_id"]] += 0
    for line in logs.outcomes:
        key = line["request_id"], line["item_id"]
        if line["name"] == outcome and key in home:
            arm_users, user = home[key]
            arm_users[user] += line["value"]
    return {arm: {user: min(total, cap) for user, total in each.items()} for arm, each in users.items()}


def result(decision: Decision, name: str, scenario: str | None = None) -> MetricResult:
    return next(each for each in decision.metrics if (each.name, each.scenario) == (name, scenario))


@pytest.fixture(scope="module")
def logs() -> Logs:
    return traffic(TEST, users=1500, seed=3, challenger=lambda outcome, scenario: 1.2)


@pytest.fixture(scope="module")
def folder(logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logs.write(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def decision(folder: Path) -> Decision:
    return decide(folder, TEST, CONFIG, HORIZON)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scenario", [None, "search"])
def test_effect_interval_and_p_values_are_those_of_welch_and_the_delta_method(
    decision: Decision, logs: Logs, name: str, scenario: str | None
) -> None:
    cap = CONFIG.experiment.gmv_cap if name == "gmv_per_user" else math.inf
    raw = totals(logs, NAMES[name], scenario, cap)
    champion, challenger = (np.array(list(raw[arm].values())) for arm in ("champion", "challenger"))
    found = result(decision, name, scenario)
    assert (found.users_champion, found.users_challenger) == (len(champion), len(challenger))
    assert found.champion == pytest.approx(champion.mean(), rel=1e-9)
    assert found.challenger == pytest.approx(challenger.mean(), rel=1e-9)
    better = "less" if name == "hides_per_user" else "greater"
    welch = scipy.stats.ttest_ind(challenger, champion, equal_var=False, alternative=better)
    assert found.p_value == pytest.approx(welch.pvalue, abs=1e-9)
    assert found.p_harm == pytest.approx(1 - welch.pvalue, abs=1e-9)
    ratio = challenger.mean() / champion.mean()
    parts = [each.var(ddof=1) / each.mean() ** 2 / len(each) for each in (champion, challenger)]
    degrees = sum(parts) ** 2 / sum(
        part**2 / (len(each) - 1) for part, each in zip(parts, (champion, challenger), strict=True)
    )
    width = scipy.stats.t.ppf(1 - CONFIG.experiment.alpha, degrees) * math.sqrt(sum(parts))
    assert found.relative == pytest.approx(ratio - 1, abs=1e-9)
    assert found.low == pytest.approx(ratio * math.exp(-width) - 1, abs=1e-9)
    assert found.high == pytest.approx(ratio * math.exp(width) - 1, abs=1e-9)


def test_cuped_is_the_regression_on_the_period_before(folder: Path, logs: Logs) -> None:
    raw = totals(logs, "order")
    random = np.random.default_rng(5)
    users = [user for arm in raw.values() for user in arm][:-100]  # a hundred users have no past: zeros
    past = {user: round(raw[assign(TEST, user).name][user] + float(random.normal()), 6) for user in users}
    before = pa.table({"user_id": list(past), "orders_per_user": list(past.values())})
    found = result(decide(folder, TEST, CONFIG, HORIZON, before), "orders_per_user")

    y = {arm: np.array(list(each.values())) for arm, each in raw.items()}
    x = {arm: np.array([past.get(user, 0.0) for user in each]) for arm, each in raw.items()}
    all_y, all_x = np.concatenate(list(y.values())), np.concatenate(list(x.values()))
    theta = np.cov(all_y, all_x)[0, 1] / all_x.var(ddof=1)
    adjusted = {arm: y[arm] - theta * (x[arm] - all_x.mean()) for arm in y}
    welch = scipy.stats.ttest_ind(adjusted["challenger"], adjusted["champion"], equal_var=False, alternative="greater")
    assert found.champion == pytest.approx(adjusted["champion"].mean(), abs=1e-9)
    assert found.relative == pytest.approx(adjusted["challenger"].mean() / adjusted["champion"].mean() - 1, abs=1e-9)
    assert found.p_value == pytest.approx(welch.pvalue, abs=1e-9)
    plain = result(decide(folder, TEST, CONFIG, HORIZON), "orders_per_user")
    assert found.low is not None
    assert found.high is not None
    assert plain.low is not None
    assert plain.high is not None
    assert found.high - found.low < plain.high - plain.low  # what CUPED is for


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_holm_is_statsmodels_holm(p_values: dict[str, float], alpha: float) -> None:
    reject, adjusted, *_ = multipletests(list(p_values.values()), alpha=alpha, method="holm")
    ours = holm(p_values, alpha)
    assert list(ours.values()) == pytest.approx(list(adjusted), abs=1e-9)
    clear = [abs(value - alpha) > 1e-9 for value in adjusted]
    assert [ours[name] <= alpha for name, sure in zip(p_values, clear, strict=True) if sure] == [
        bool(each) for each, sure in zip(reject, clear, strict=True) if sure
    ]


@pytest.mark.parametrize(("champion", "challenger", "share"), [(500, 499, 0.5), (1200, 800, 0.5), (1790, 210, 0.9)])
def test_the_sample_ratio_test_is_the_binomial_one(champion: int, challenger: int, share: float) -> None:
    exact = scipy.stats.binomtest(challenger, champion + challenger, 1 - share).pvalue
    found = sample_ratio_p_value(champion, challenger, share)
    if champion + challenger < 1000:
        assert found == pytest.approx(exact, abs=1e-9)
    else:  # normal approximation with continuity correction
        total = champion + challenger
        z = (abs(challenger - total * (1 - share)) - 0.5) / math.sqrt(total * share * (1 - share))
        assert found == pytest.approx(2 * scipy.stats.norm.sf(z), abs=1e-9)


def test_the_sequence_is_the_published_formula() -> None:
    n, planned, alpha, deviation = 300, 1000, 0.05, 2.0  # Theorem 2.2 in observations, sigma and t
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / planned
    half = deviation * math.sqrt(2 * (n * rho2 + 1) / (n**2 * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha))
    assert sequence_factor(n / planned, alpha) * deviation / math.sqrt(n) == pytest.approx(half, rel=1e-12)
    # FACTS: at the horizon about 1.55 times the width of a fixed-horizon 95 % interval
    assert sequence_factor(1.0, 0.05) / scipy.stats.norm.ppf(0.975) == pytest.approx(1.55, abs=0.02)


def test_a_day_in_the_series_is_the_experiment_cut_at_that_day(folder: Path) -> None:
    full = decide(folder, TEST, CONFIG, HORIZON)
    last = [point for point in full.daily if point.day == 6]
    assert [(point.relative, point.low, point.high) for point in last] == [
        (each.relative, each.low, each.high) for each in full.metrics if each.scenario is None
    ]
    assert all(
        point.sequence_low < point.low and point.high < point.sequence_high
        for point in full.daily
        if None not in (point.low, point.high, point.sequence_low, point.sequence_high)
    )
    assert [point.users for point in full.daily if point.metric == "gmv_per_user"] == sorted(
        point.users for point in full.daily if point.metric == "gmv_per_user"
    )


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_planned_size_is_that_of_statsmodels(share: float) -> None:
    ratio = share / (1 - share)
    champion = zt_ind_solve_power(
        effect_size=0.1 * 5 / math.sqrt(40), alpha=0.05, power=0.9, ratio=ratio, alternative="larger"
    )
    assert required_users(5, 40, 0.1, 0.05, 0.9, share) == math.ceil(champion * (1 + ratio))
    assert required_users(5, 40, -0.1, 0.05, 0.9, share) == required_users(5, 40, 0.1, 0.05, 0.9, share)
    assert required_users(5, 40, 0.1, 0.05, 0.9, share, 0.6) == pytest.approx(
        0.64 * required_users(5, 40, 0.1, 0.05, 0.9, share), rel=1e-2
    )


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1), st.floats(0.01, 0.99))
def test_sql_and_python_assign_alike(user: str, share: float) -> None:
    import duckdb

    from omnifeed.experiment.log import arm_sql

    test = experiment(share=share, name="salt'é")
    found = duckdb.connect().execute(f"SELECT {arm_sql(test)} FROM (SELECT ? AS user_id)", [user]).fetchall()
    assert found == [(assign(test, user).name,)]
