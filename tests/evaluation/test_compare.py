"""The offline comparison on real scorers: what it measures, what it blesses, what it refuses and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from omnifeed.config import Config, EvaluationConfig
from omnifeed.errors import InputError
from omnifeed.evaluation.baselines import baseline_estimates
from omnifeed.evaluation.compare import Evaluation, evaluate
from omnifeed.evaluation.measure import Population, measure
from omnifeed.evaluation.metrics import positive_ranks
from omnifeed.evaluation.scorer import EvaluationSet, NetworkScorer, Progress, Scored, TrendingScorer
from omnifeed.export.encode import DAY_US
from omnifeed.export.trending import trending_scores
from omnifeed.model.network import load_network
from omnifeed.model.parts import TorchParts


def silent(label: str, done: int, total: int) -> None: ...


def network_scorer(trained: Path) -> NetworkScorer:
    network = load_network(trained)
    return NetworkScorer(TorchParts(network), network.spec, network.tasks)


@dataclass(frozen=True)
class Worsened:
    """Another scorer's answers, spoiled."""

    inner: NetworkScorer
    noise: float
    only_scenario: int | None = None
    name: str = "worsened"

    def score(self, rows: EvaluationSet, progress: Progress) -> Scored:
        scored = self.inner.score(rows)
        data = rows.data()
        rng = np.random.default_rng(0)
        request = np.repeat(np.arange(len(data.requests)), np.diff(data.requests.first))
        hit = np.ones(len(request), bool)
        if self.only_scenario is not None:
            hit = data.requests.scenario[request] == self.only_scenario
        spoiled: Mapping[str, np.ndarray] = {
            task: np.where(hit, (1 - self.noise) * p + self.noise * rng.random(len(p)), p).astype(np.float32)
            for task, p in scored.probabilities.items()
        }
        return Scored(spoiled, scored.retrieval)


@pytest.fixture(scope="module")
def evaluation(training_set: Path, trained: Path, config: Config) -> Evaluation:
    return evaluate(training_set, network_scorer(trained), TrendingScorer(), config)


def test_a_trained_network_beats_trending_and_is_blessed(evaluation: Evaluation) -> None:
    assert evaluation.blessed, evaluation.reasons
    assert evaluation.value("network", "auc_click") > evaluation.value("trending", "auc_click") + 0.02
    assert evaluation.value("network", "ndcg@50") > evaluation.value("trending", "ndcg@50")
    assert 0.8 < evaluation.value("network", "calibration_click") < 1.25


def test_every_metric_is_there_overall_and_by_scenario_with_its_interval(evaluation: Evaluation) -> None:
    found = {(row.model, row.scenario, row.metric) for row in evaluation.metrics}
    for model in ("network", "trending"):
        for scenario in ("all", "livestream", "short_video", "search"):
            for metric in ("auc_click", "grouped_auc_click", "log_loss_click", "calibration_click", "recall@10", "mrr"):
                assert (model, scenario, metric) in found
    inside = [row.low <= row.value <= row.high for row in evaluation.metrics if row.metric == "auc_click"]
    assert all(inside)
    body = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert body["metrics"]["network"]["all"]["auc_click"]["value"] == evaluation.value("network", "auc_click")
    assert body["roc"]["fpr"][-1] == body["roc"]["tpr"][-1] == 1.0
    assert set(body["calibration"]) == {"click", "long_view", "cart", "order", "hide"}


def test_a_model_beside_itself_shows_no_difference(training_set: Path, trained: Path, config: Config) -> None:
    scorer = network_scorer(trained)
    result = evaluate(training_set, scorer, replace(scorer, name="twin"), config)
    assert result.blessed
    assert {(row.relative, row.low, row.high) for row in result.differences} == {(0.0, 0.0, 0.0)}


def test_a_worse_model_is_refused_with_the_numbers(training_set: Path, trained: Path, config: Config) -> None:
    champion = network_scorer(trained)
    result = evaluate(training_set, Worsened(champion, 0.9), champion, config)
    assert not result.blessed
    assert any("auc_click over all scenarios" in reason and "is certain" in reason for reason in result.reasons)


def test_harm_in_one_scenario_is_enough_and_is_named(training_set: Path, trained: Path, config: Config) -> None:
    champion = network_scorer(trained)
    result = evaluate(training_set, Worsened(champion, 0.95, only_scenario=3), champion, config)
    assert not result.blessed
    assert any("auc_click in search" in reason for reason in result.reasons)
    assert not any("in livestream" in reason for reason in result.reasons)


def test_the_absolute_floor_holds_whatever_the_champion(training_set: Path, trained: Path, config: Config) -> None:
    strict = replace(config, evaluation=EvaluationConfig(min_auc=0.99, bootstrap=20))
    result = evaluate(training_set, network_scorer(trained), TrendingScorer(), strict)
    assert not result.blessed
    assert "below the floor of 0.99" in result.reasons[0]


def test_two_models_of_one_name_and_an_absent_split_are_refused(
    training_set: Path, trained: Path, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="named 'trending'"):
        evaluate(training_set, TrendingScorer(), TrendingScorer(), config)
    import pyarrow.parquet as pq

    for path in training_set.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = pq.read_table(tmp_path / "rows.parquet")
    pq.write_table(rows.filter(rows["split"].to_numpy() != "test"), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="no test rows"):
        evaluate(tmp_path, network_scorer(trained), TrendingScorer(), config)


def test_a_champion_with_another_encoding_is_read_in_its_own(training_set: Path, trained: Path, config: Config) -> None:
    """Salt and vocabulary belong to the release: the champion's rows are encoded with the champion's."""
    scorer = network_scorer(trained)
    rows = EvaluationSet(training_set, config.model.tasks, "test")
    other = replace(scorer.spec, salt="other", scenarios=(*scorer.spec.scenarios, "new"))
    first, second = rows.data(scorer.spec), rows.data(other)
    assert first.requests.key.tolist() == second.requests.key.tolist()
    assert first.impressions.item.tolist() == second.impressions.item.tolist()
    assert (first.items.inputs["id_bucket"] != second.items.inputs["id_bucket"]).any()


def test_network_answers_do_not_depend_on_the_batch(training_set: Path, trained: Path, config: Config) -> None:
    rows = EvaluationSet(training_set, config.model.tasks, "test")
    scorer = network_scorer(trained)
    small, large = replace(scorer, batch_requests=7).score(rows), scorer.score(rows)
    every = np.arange(len(rows.data().requests))
    for task in scorer.tasks:
        np.testing.assert_allclose(small.probabilities[task], large.probabilities[task], atol=1e-5)
    assert small.retrieval is not None
    assert large.retrieval is not None
    np.testing.assert_allclose(small.retrieval(every), large.retrieval(every), atol=1e-5)


def test_trending_retrieves_by_the_days_trend_and_by_text_in_search(training_set: Path, config: Config) -> None:
    rows = EvaluationSet(training_set, config.model.tasks, "test")
    data = rows.data()
    retrieve = TrendingScorer().score(rows).retrieval
    assert retrieve is not None
    for request in [0, int(np.argmax(data.requests.query > 0))]:
        name = data.spec.scenarios[int(data.requests.scenario[request]) - 1]
        trend = rows.trends().column(int(data.requests.ts[request]) // DAY_US * DAY_US, name)
        assert trend.max() > 0
        query = data.queries[data.requests.query[request]]
        match = data.items.inputs["text"] @ query if data.requests.query[request] else None
        np.testing.assert_array_equal(retrieve(np.array([request]))[0], trending_scores(trend, match))


def test_what_matches_the_query_stands_above_what_trends() -> None:
    trending = np.array([1000.0, 0.0, 5.0, 5.0], np.float32)
    plain = trending_scores(trending, None)
    assert plain.argmax() == 0
    assert ((plain >= 0) & (plain < 1)).all()
    asked = trending_scores(trending, np.array([0.0, 0.9, 0.5, 0.3], np.float32))
    assert asked[0] < 1 <= asked[1:].min()
    assert asked[2] > asked[3]


def test_items_of_the_future_and_streams_off_air_are_not_in_the_catalogue(training_set: Path, config: Config) -> None:
    """A scorer that puts only unavailable items ahead of everything loses nothing by it."""
    rows = EvaluationSet(training_set, config.model.tasks, "test")
    data = rows.data()
    population = Population.of(data)
    blank = np.zeros(len(data.items.created), np.float32)
    late = np.where(data.items.created > data.requests.ts.min(), 1.0, 0.0).astype(np.float32)
    early = np.flatnonzero(data.requests.ts <= data.items.created.max())
    assert late.sum() == 0 or len(early) > 0

    def metrics(column: np.ndarray) -> float:
        scored = Scored({}, lambda requests: np.repeat(column[None], len(requests), 0))
        return measure(scored, data, population, (10,), silent)["all", "mrr"].value()

    gone = replace(data.items, livestream=data.items.livestream, live_until=np.where(data.items.livestream, 0, 2**62))
    off_air = replace(data, items=gone)
    ahead = np.where(data.items.livestream, 1.0, 0.5).astype(np.float32)
    scored = Scored({}, lambda requests: np.repeat(ahead[None], len(requests), 0))
    with_streams = measure(scored, data, population, (10,), silent)["all", "mrr"].value()
    without = measure(scored, off_air, population, (10,), silent)["all", "mrr"].value()
    assert without > with_streams
    assert metrics(blank) < without
    assert positive_ranks(np.zeros((1, 3)), np.array([[False, True, True]]), np.array([0]), np.array([1])).tolist() == [
        1
    ]


def test_the_trend_joins_a_network_s_retrieval_as_the_server_adds_it(
    training_set: Path, trained: Path, config: Config
) -> None:
    rows = EvaluationSet(training_set, config.model.tasks, "test")
    requests = np.arange(5)
    network = load_network(trained)
    found = []
    for weight in (0.0, 0.5):
        network.user_encoder.trend_weight.fill_(weight)
        found.append(NetworkScorer(TorchParts(network), network.spec, network.tasks).score(rows).retrieval)
    cosine, leaning = found
    assert cosine is not None
    assert leaning is not None
    for row, request in enumerate(requests):
        data = rows.data()
        scenario = data.spec.scenarios[int(data.requests.scenario[request]) - 1]
        trend = rows.trends().column(int(data.requests.ts[request]) // DAY_US * DAY_US, scenario)
        assert trend.max() > 0
        np.testing.assert_allclose(leaning(requests)[row], cosine(requests)[row] + 0.5 * np.log1p(trend), atol=1e-5)


def test_baselines_stand_in_the_same_table(training_set: Path, config: Config, evaluation: Evaluation) -> None:
    rows = {(row.model, row.scenario, row.metric): row for row in baseline_estimates(training_set, config)}
    models = {model for model, _, _ in rows}
    assert models == {"popularity, all time", "popularity, 7 days", "item rate", "logistic regression"}
    assert ("popularity, 7 days", "search", "recall@10") in rows
    assert ("popularity, 7 days", "all", "log_loss_click") not in rows  # a count is no probability
    for model in ("item rate", "logistic regression"):
        assert rows[model, "all", "auc_click"].value > 0.52
        assert 0.8 < rows[model, "all", "calibration_click"].value < 1.25
    best = max(rows[model, "all", "auc_click"].value for model in models)
    assert evaluation.value("network", "auc_click") > best - 0.02
