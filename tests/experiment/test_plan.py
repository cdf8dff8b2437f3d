"""The design before the start: against statsmodels, and as the pre-registration that an experiment is held to."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from experiment_logs import DAY, START
from statsmodels.stats.power import zt_ind_solve_power

from omnifeed.config import Config, ExperimentConfig
from omnifeed.errors import InputError
from omnifeed.experiment.deploy import open_experiment, pending_plan
from omnifeed.experiment.ledger import Ledger
from omnifeed.experiment.plan import Plan, log_end, make_plan, plan_text, register
from omnifeed.home import Home
from omnifeed.tables import ITEMS, USERS, Tables, conform, write_tables

CONFIG = Config(
    experiment=ExperimentConfig(
        days=7,
        success=("orders_per_user", "click_rate"),
        guardrails=("hides_per_user",),
        guardrail_margins=(0.2,),
        min_effect=0.1,
        challenger_share=0.4,
    )
)
NOW = START + 14 * DAY


@pytest.fixture(scope="module")
def events() -> pa.Table:
    """600 users over 14 days, each with a taste of their own, so that the first week tells something of the second."""
    random = np.random.default_rng(3)
    rows = []
    for number in range(600):
        taste = random.gamma(1, 1)
        for visit in range(int(random.poisson(9 * taste)) + 1):
            ts = START + int(random.integers(0, 14 * DAY))
            click = bool(random.random() < 0.4)
            rows.append(
                {
                    "event_id": f"{number}-{visit}", "request_id": f"{number}-{visit}", "user_id": f"u{number}",
                    "item_id": "i", "scenario": "search" if random.random() < 0.3 else "feed", "ts": ts,
                    "served": True, "viewed": True, "click": click, "order": click and random.random() < 0.8,
                    "hide": bool(random.random() < 0.1), "observed_ts": ts + 1,
                }
            )  # fmt: skip
    return conform(pa.Table.from_pylist(rows), "events", "made")


@pytest.fixture(scope="module")
def accepted(events: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lake") / "accepted"
    write_tables(Tables(events, ITEMS.empty_table(), USERS.empty_table()), root)
    return root


@pytest.fixture(scope="module")
def plan(accepted: Path) -> Plan:
    return make_plan(accepted, CONFIG, NOW)


def totals(events: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One total a user of the second week, and of the first week."""
    second: dict[str, float] = {}
    first: dict[str, float] = {}
    for row in events.select(["user_id", "ts", name]).to_pylist():
        late = row["ts"].timestamp() * 1_000_000 >= START + 7 * DAY
        table = second if late else first
        table[row["user_id"]] = table.get(row["user_id"], 0.0) + float(row[name])
    return np.array(list(second.values())), np.array([first.get(user, 0.0) for user in second])


def test_users_needed_are_those_of_statsmodels_on_the_cuped_variance(plan: Plan, events: pa.Table) -> None:
    y, x = totals(events, "order")
    orders = next(each for each in plan.metrics if (each.metric, each.scenario) == ("orders_per_user", None))
    assert (plan.window_days, plan.before_days, plan.users) == (7, 7, len(y))
    assert orders.mean == pytest.approx(y.mean(), rel=1e-9)
    assert orders.deviation == pytest.approx(y.std(ddof=1), rel=1e-9)
    left = 1 - np.corrcoef(y, x)[0, 1] ** 2
    assert orders.variance_left == pytest.approx(left, rel=0.02)
    assert left < 0.9
    ratio = 0.4 / 0.6
    size = 0.1 * y.mean() / (y.std(ddof=1) * math.sqrt(left))
    champion = zt_ind_solve_power(effect_size=size, alpha=0.025, power=0.9, ratio=ratio, alternative="larger")
    assert orders.users_needed == pytest.approx(champion * (1 + ratio), rel=0.001)
    assert orders.alpha == 0.025  # two success metrics
    assert orders.weeks == math.ceil(orders.users_needed / plan.users)


def test_what_can_be_found_with_the_expected_users_has_the_planned_power(plan: Plan) -> None:
    for each in plan.metrics:
        assert each.users_needed is not None
        assert each.power is not None
        assert each.detectable is not None
        enough = each.users_expected >= each.users_needed
        assert (each.power >= 0.9) == enough == (each.detectable <= each.effect)
    roles = [(each.metric, each.role, each.scenario) for each in plan.metrics]
    assert ("hides_per_user", "guardrail", None) in roles
    assert [scenario for _, _, scenario in roles if scenario] == ["feed", "search"]
    assert plan_text(plan).count("\n") >= len(plan.metrics)


def test_less_traffic_takes_longer(accepted: Path, plan: Plan) -> None:
    half = make_plan(accepted, CONFIG, NOW, traffic_share=0.5)
    for one, other in zip(plan.metrics, half.metrics, strict=True):
        assert one.users_needed == other.users_needed
        assert (one.weeks or 0) <= (other.weeks or 0) <= 2 * (one.weeks or 0)
    with pytest.raises(InputError, match="traffic share"):
        make_plan(accepted, CONFIG, NOW, traffic_share=0.0)


@pytest.mark.parametrize("metric", ["carts_per_user", "latency"])  # nobody does it; past events do not tell it
def test_a_metric_that_never_happens_is_not_planned_for(accepted: Path, metric: str) -> None:
    config = dataclasses.replace(CONFIG, experiment=dataclasses.replace(CONFIG.experiment, success=(metric,)))
    plan = make_plan(accepted, config, NOW)
    assert (plan.metrics[0].users_needed, plan.metrics[0].power, plan.weeks) == (None, None, None)
    assert "nothing can be planned" in plan_text(plan)


def test_a_plan_needs_events(tmp_path: Path) -> None:
    for ask in (lambda: make_plan(tmp_path, CONFIG, NOW), lambda: log_end(tmp_path)):
        with pytest.raises(InputError, match="holds no events"):
            ask()


def test_the_end_of_the_log_is_the_midnight_after_it(accepted: Path) -> None:
    assert log_end(accepted) == NOW


# The pre-registration


def test_the_command_plans_from_the_lake_and_leaves_the_registration(
    accepted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omnifeed.pipelines.cli import cli

    home = Home(tmp_path)
    shutil.copytree(accepted, home.lake / "accepted")
    monkeypatch.setenv("OMNIFEED_HOME", str(home.root))
    answer = CliRunner().invoke(cli, ["experiment", "plan", "--traffic-share", "0.5", "--json"])
    printed = json.loads(answer.output)
    assert printed.pop("written") == str(pending_plan(home))
    assert printed == json.loads(pending_plan(home).read_text())
    assert (printed["created_ts"], printed["traffic_share"], printed["section"]["days"]) == (NOW, 0.5, 14)
    assert "users needed" in CliRunner().invoke(cli, ["experiment", "plan"]).output


def test_an_experiment_is_held_to_its_plan(tmp_path: Path, plan: Plan) -> None:
    home = Home(tmp_path)
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, START)
    register(home, plan)
    other = dataclasses.replace(CONFIG, experiment=dataclasses.replace(CONFIG.experiment, alpha=0.1))
    with pytest.raises(InputError, match="written for other"):
        open_experiment(home, "0", "1", other, NOW)
    experiment = open_experiment(home, "0", "1", CONFIG, NOW)
    assert experiment.config_digest == plan.config_digest
    kept = json.loads((home.experiments / experiment.name / "plan.json").read_text())
    assert kept == json.loads(json.dumps(plan.to_dict()))
    assert not pending_plan(home).exists()
