"""Exploration through the recommender's whole path: true propensities in its log, and true estimates from that log."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.releases import NOW, catalogue_columns, config, copied, experiment, workshop

from omnifeed.config import ServingConfig, WorldConfig
from omnifeed.datasets.served import served_events
from omnifeed.experiment.offpolicy.estimators import Estimator, estimate
from omnifeed.experiment.offpolicy.overlap import Reason
from omnifeed.experiment.offpolicy.plackett_luce import slate_propensities
from omnifeed.experiment.offpolicy.slates import Floats, explored_slates, target_probabilities
from omnifeed.export.catalogue import write_snapshot
from omnifeed.export.encode import DAY_US
from omnifeed.serving.recommend import slate
from omnifeed.serving.recommend.contract import Source
from omnifeed.serving.recommend.slate import Slate
from serving.market import Shop
from serving.recommender import Server

REQUESTS = 1_500


def test_explored_answers_log_their_propensities_and_others_none(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "1", 1.0))
    server = Server(home, replace(config().serving, explore_share=0.5))
    server.live.refresh()
    for n in range(40):
        server.ask(request_id=f"request {n}", k=10)
    by_request: dict[str, list[float | None]] = defaultdict(list)
    for line in server.exposures():
        by_request[line["request_id"]].append(line["propensity"])
    sampled = [values for values in by_request.values() if values[0] is not None]
    assert 8 <= len(sampled) <= 32
    assert all(0 < value <= 1 for values in sampled for value in values if value is not None)
    assert all(None not in values for values in sampled)
    assert all(set(values) == {None} for values in by_request.values() if values[0] is None)


def test_logged_propensities_equal_observed_frequencies_through_the_whole_path(tmp_path: Path) -> None:
    """Six items of a network: two of one creator with a limit of one, two new, and diversity that bends the order."""
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "1", 1.0))
    items, features = catalogue_columns(workshop() / "training_set")
    items["author_id"] = [f"a{min(row, 4)}" for row in range(len(items["item_id"]))]
    new = {"i2", "i3"}
    items["created_ts"] = [NOW - (1 if item in new else 30) * DAY_US for item in items["item_id"]]
    items["kind"] = ["product"] * len(items["item_id"])
    features = {name: {**columns, "item_views_7d": [0.0] * len(items["item_id"])} for name, columns in features.items()}
    write_snapshot(home, items, features, NOW)
    explore = {"explore_share": 1.0, "explore_temperature": 1.5, "creator_limit": 1, "new_every": 3, "diversity": 0.5}
    server = Server(home, replace(config().serving, **explore))
    assert server.live.refresh()
    left = {f"i{n}" for n in range(6)}
    others = tuple(str(item) for item in items["item_id"] if item not in left)
    seen: Counter[tuple[str, ...]] = Counter({(): REQUESTS})
    for n in range(REQUESTS):
        answer = server.ask(request_id=f"request {n}", k=3, exclude=others)
        assert answer.degraded == ()
        for length in (1, 2, 3):
            seen[answer.item_ids[:length]] += 1
    logged: dict[tuple[str, ...], float] = {}
    prefix: tuple[str, ...] = ()
    for line in server.exposures():
        prefix = (*(prefix if line["position"] else ()), line["item_id"])
        assert logged.setdefault(prefix, line["propensity"]) == pytest.approx(line["propensity"], rel=1e-6)
        if line["source"] == Source.NEW and line["position"] == 2:
            assert line["item_id"] in new
    assert len(logged) > 60
    for prefix, propensity in logged.items():
        trials = seen[prefix[:-1]]
        error = np.sqrt(propensity * (1 - propensity) / trials)
        assert abs(seen[prefix] / trials - propensity) < 5 * error + 1 / trials, prefix
    for length in (0, 1, 2):  # what was drawn at least once covers nearly all that could be
        parents = [prefix for prefix in [(), *logged] if len(prefix) == length and seen[prefix] > 200]
        for parent in parents:
            total = sum(
                value for prefix, value in logged.items() if prefix[:-1] == parent and len(prefix) == length + 1
            )
            assert total == pytest.approx(1.0, abs=0.02)


# --- estimates from the recommender's own log, against what the market would have paid ---


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What every slate was drawn from, by request_id."""
    kept: dict[str, dict[str, Any]] = {}
    inner = slate.fill

    def fill(scores: Any, authors: Any, new: Any, k: int, **policy: Any) -> Slate:
        chosen = inner(scores, authors, new, k, **policy)
        part = new.copy()
        part[np.argsort(-scores, kind="stable")[: max(slate.DEPTH, 2 * k)]] = True
        places = np.searchsorted(np.flatnonzero(part), chosen.places)
        kept[policy["request_id"]] = {"scores": scores[part], "authors": authors[part], "new": new[part], "at": places}
        return chosen

    monkeypatch.setattr(slate, "fill", fill)
    return kept


def test_estimates_from_the_recommenders_log_recover_what_the_market_would_have_paid(
    tmp_path: Path, drawn: dict[str, dict[str, Any]]
) -> None:
    """The log explores at one temperature; what another one would earn is asked of it, and of the market itself."""
    policy = {"creator_limit": 1, "new_every": 3}
    logging = ServingConfig(
        explore_share=1.0, explore_temperature=1.5, user_burst=0, repeats=0, diversity=0.2, **policy
    )
    world = WorldConfig(
        users=5_500, requests_per_user_day=6.0, items=150, new_items_per_day=10, livestreams_per_day=20, history_days=1
    )
    shop = Shop(tmp_path, world)
    shop.midnight(1)
    visits = list({visit.user_id: visit for visit in shop.world.visits(1)}.values())
    recommender = shop.recommender(logging)
    for visit in visits:
        shop.serve(recommender, visit, k=3, request_id=f"log {visit.visit_id}")
    shop.outcomes.flush()
    explored = explored_slates(served_events(shop.folder), "click")
    assert len(explored.request_id) == len(visits) > 2_000

    wanted = replace(logging, explore_temperature=0.4)

    def target(**known: Any) -> Floats:
        """The wanted policy's probability of what was logged."""
        lines = []
        for number, request in enumerate(explored.request_id):
            pool = drawn[request]
            given = {"new": pool["new"], "temperature": 0.4, **policy, **known}
            chance = slate_propensities(pool["scores"], pool["authors"], pool["at"], **given)
            lines += [(request, str(item), value) for item, value in zip(explored.item_id[number], chance, strict=True)]
        return target_probabilities(explored, *zip(*lines, strict=True))

    recommender = shop.recommender(wanted)
    answers = [(visit, shop.ask(recommender, visit, k=3, probe=True)) for visit in visits]
    truth = float(np.mean([shop.world.expected(visit, answer.item_ids).clicks.sum() for visit, answer in answers]))
    assert truth > 1.05 * explored.slates.reward.sum(1).mean()
    probabilities = target()
    for kind in (Estimator.SNIPS, Estimator.RIPS, Estimator.SNRIPS):
        found = estimate(kind, explored.slates, probabilities, alpha=0.01)
        assert found.usable, found.refusals
        assert found.low < truth < found.high, kind
    forgotten = estimate(Estimator.RIPS, explored.slates, target(new_every=0))  # as if no place were kept
    assert Reason.WEIGHTS_NOT_ONE in {refusal.reason for refusal in forgotten.refusals}
