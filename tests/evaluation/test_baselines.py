"""What the baselines answer, recomputed plainly from the training set's rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from omnifeed.config import Config
from omnifeed.evaluation.baselines import PRIOR_VIEWS, fit_baselines
from omnifeed.evaluation.scorer import EvaluationSet, Scored, Scorer


def silent(label: str, done: int, total: int) -> None: ...


@pytest.fixture(scope="module")
def baselines(training_set: Path, config: Config) -> dict[str, Scorer]:
    return {scorer.name: scorer for scorer in fit_baselines(training_set, config, "test")}


def scored(scorer: Scorer, training_set: Path, config: Config) -> tuple[EvaluationSet, Scored]:
    rows = EvaluationSet(training_set, config.model.tasks, "test")
    return rows, scorer.score(rows, silent)


def before_test(training_set: Path) -> pa.Table:
    rows = pq.read_table(training_set / "rows.parquet")
    return rows.filter(pc.not_equal(rows["split"], "test"))


def test_popularity_is_the_number_of_engaged_impressions_in_the_scenario(
    training_set: Path, config: Config, baselines: dict[str, Scorer]
) -> None:
    rows, answer = scored(baselines["popularity, all time"], training_set, config)
    data = rows.data()
    assert answer.retrieval is not None
    first = answer.retrieval(np.array([0]))[0]
    scenario = data.spec.scenarios[int(data.requests.scenario[0]) - 1]
    log = before_test(training_set).to_pylist()
    for place, item in list(enumerate(data.items.ids.to_pylist(), start=1))[:20]:
        engaged = [
            row
            for row in log
            if row["item_id"] == item
            and row["scenario"] == scenario
            and not row["hide"]
            and any(row[name] for name in ("click", "long_view", "cart", "order"))
        ]
        assert first[place] == len(engaged)


def test_an_items_rate_is_drawn_towards_the_rate_of_all(
    training_set: Path, config: Config, baselines: dict[str, Scorer]
) -> None:
    rows, answer = scored(baselines["item rate"], training_set, config)
    data = rows.data()
    log = before_test(training_set)
    clicks = np.asarray(log["click"])
    item = data.items.ids[int(data.impressions.item[0]) - 1].as_py()
    mine = clicks[np.asarray(log["item_id"]) == item]
    expected = (mine.sum() + PRIOR_VIEWS * clicks.mean()) / (len(mine) + PRIOR_VIEWS)
    assert answer.probabilities["click"][0] == pytest.approx(expected, rel=1e-5)


def test_no_baseline_reads_an_outcome_of_the_split_that_it_answers(
    training_set: Path, config: Config, baselines: dict[str, Scorer], tmp_path: Path
) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(training_set, spoiled)
    rows = pq.read_table(training_set / "rows.parquet")
    test = np.asarray(rows["split"]) == "test"
    for name in ("click", "long_view", "cart", "order", "hide"):
        turned = np.where(test, ~np.asarray(rows[name]), np.asarray(rows[name]))
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(turned))
    pq.write_table(rows, spoiled / "rows.parquet")
    for scorer in fit_baselines(spoiled, config, "test"):
        _, honest = scored(baselines[scorer.name], training_set, config)
        _, other = scored(scorer, spoiled, config)
        for task, probability in honest.probabilities.items():
            np.testing.assert_array_equal(other.probabilities[task], probability)


def test_a_task_that_nobody_ever_did_has_no_regression(training_set: Path, config: Config, tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    shutil.copytree(training_set, calm)
    rows = pq.read_table(training_set / "rows.parquet")
    never = pa.array(np.zeros(rows.num_rows, bool))
    pq.write_table(rows.set_column(rows.column_names.index("order"), "order", never), calm / "rows.parquet")
    (regression,) = (each for each in fit_baselines(calm, config, "test") if each.name == "logistic regression")
    _, answer = scored(regression, calm, config)
    assert set(answer.probabilities) == set(config.model.tasks) - {"order"}
