"""Approximate retrieval gives what exact retrieval gives, nearly, and never what the filters would not pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from export.releases import config

from omnifeed.export.catalogue import load_snapshot, write_snapshot
from omnifeed.export.encode import EncodeSpec
from omnifeed.export.rows import Stack
from omnifeed.home import Home
from omnifeed.serving.recommend import nearest, retrieve
from omnifeed.serving.recommend.contract import Source
from omnifeed.serving.recommend.index import Index
from omnifeed.serving.recommend.nearest import with_near
from omnifeed.serving.recommend.texts import Texts

pytest.importorskip("faiss")

NOW = 1_772_409_600_000_000
ITEMS, WIDTH, COUNT = 40_000, 32, 200


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Items in 300 clusters; one in five trends, a few much."""
    home = Home(tmp_path_factory.mktemp("near"))
    rng = np.random.default_rng(5)
    trend = np.where(rng.random(ITEMS) < 0.2, rng.pareto(1.2, ITEMS), 0.0)
    columns = {"kind": "product", "created_ts": NOW - 1, "policy": "ALLOW"}
    items = {"item_id": [f"i{n}" for n in range(ITEMS)], **{name: [value] * ITEMS for name, value in columns.items()}}
    write_snapshot(home, items, {"feed": {"item_scenario_trending": trend}}, NOW)
    centres = rng.normal(size=(300, WIDTH))
    keys = centres[rng.integers(0, 300, ITEMS + 1)] + 0.5 * rng.normal(size=(ITEMS + 1, WIDTH))
    keys = (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32)
    text = np.eye(16, dtype=np.float32)[rng.integers(0, 16, ITEMS + 1)]
    stacks = {"item_vec": Stack(keys), "item_key": Stack(keys)}
    return Index(EncodeSpec.from_config(config()), load_snapshot(home), Texts(16).extended(text), stacks)


@pytest.fixture(scope="module")
def near(index: Index) -> Index:
    return with_near(index, 1_000)


def users(index: Index, count: int = 40) -> np.ndarray:
    rng = np.random.default_rng(6)
    mixed = index.key[rng.integers(1, ITEMS, (count, 3))].sum(1)
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("scenario", ["feed", "a scenario nobody knows"])
@pytest.mark.parametrize("weight", [0.0, 0.2])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_recall_at_200_is_at_least_98_percent(
    index: Index, near: Index, scenario: str, weight: float, share: float
) -> None:
    mask = np.random.default_rng(7).random(ITEMS) < share
    recalls = []
    for user in users(index):
        exact = retrieve.dense(index, user, scenario, None, mask, COUNT, np.float32(weight))
        found = retrieve.dense(near, user, scenario, None, mask, COUNT, np.float32(weight))
        assert mask[found.rows - 1].all()
        assert len(np.unique(found.rows)) == len(found.rows) == COUNT
        scored = dict(zip(exact.rows.tolist(), exact.scores.tolist(), strict=True))
        for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
            assert score == pytest.approx(scored.get(row, score), abs=1e-6)
        recalls.append(np.isin(exact.rows, found.rows).mean())
    assert np.mean(recalls) >= 0.98


def test_new_items_have_their_quota_in_both_ways_of_search(index: Index, near: Index) -> None:
    mask = np.random.default_rng(7).random(ITEMS) < 0.6
    new = np.random.default_rng(9).choice(ITEMS, 500, replace=False)
    for user in users(index, 5):
        exact, found = (
            retrieve.dense(one, user, "feed", None, mask, COUNT, np.float32(0.1), new) for one in (index, near)
        )
        shown = new[mask[new]]
        for candidates in (exact, found):
            assert len(np.unique(candidates.rows)) == len(candidates.rows) == COUNT
            assert mask[candidates.rows - 1].all()
            assert np.isin(candidates.rows[candidates.sources == Source.NEW] - 1, shown).all()
            assert np.isin(candidates.rows - 1, shown).sum() >= COUNT * retrieve.NEW_SHARE
        mine = [set(one.rows[one.sources == Source.NEW].tolist()) for one in (exact, found)]
        assert len(mine[0] ^ mine[1]) <= 4  # where approximate search misses one, the next takes its place


def test_few_that_may_be_shown_are_found_exactly_and_all(index: Index, near: Index) -> None:
    for shown in (0, 1, 150, 5_000):
        mask = np.zeros(ITEMS, np.bool_)
        mask[np.random.default_rng(8).choice(ITEMS, shown, replace=False)] = True
        for user in users(index, 5):
            exact = retrieve.dense(index, user, "feed", None, mask, COUNT, np.float32(0.1))
            found = retrieve.dense(near, user, "feed", None, mask, COUNT, np.float32(0.1))
            np.testing.assert_array_equal(found.rows, exact.rows)
            assert len(found.rows) == min(shown, COUNT)


def test_a_list_is_not_starved_where_nothing_near_may_be_shown(
    index: Index, near: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lists that a search reads are empty behind the filter: everything is looked at instead."""
    monkeypatch.setattr(nearest, "FEW", 0)
    user = users(index, 1)[0]
    scores = index.key[1:] @ user
    mask = scores < np.quantile(scores, 0.2)
    exact = retrieve.dense(index, user, "feed", None, mask, COUNT, np.float32(0))
    found = retrieve.dense(near, user, "feed", None, mask, COUNT, np.float32(0))
    assert len(found.rows) == COUNT
    assert mask[found.rows - 1].all()
    assert np.isin(exact.rows, found.rows).mean() >= 0.98


def test_what_came_after_it_was_built_is_found(index: Index, near: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    user = users(index, 1)[0]
    assert near.near is not None
    more = {name: stack.extended(np.ones((3, stack.rows.shape[1]), np.float32)) for name, stack in near.stacks.items()}
    more["item_key"] = near.stacks["item_key"].extended(np.stack([user] * 3))
    catalogue = index.catalogue
    size = len(catalogue)
    columns = ("successor", "former", "created_ts", "live_from", "live_until", "policy", "stock", "livestream")
    longer = {
        name: np.concatenate([getattr(catalogue, name), getattr(catalogue, name)[:3]])
        for name in (*columns, "author", "blocked", "locale")
    }
    features = catalogue.features.extended(np.arange(1, 4))
    grown = replace(catalogue, features=features, **longer)
    texts = near.texts.extended(np.eye(16, dtype=np.float32)[:3])
    later = replace(near, catalogue=grown, texts=texts, stacks=more)
    mask = np.ones(size + 3, np.bool_)
    found = retrieve.dense(later, user, "feed", None, mask, COUNT, np.float32(0))
    assert {size + 1, size + 2, size + 3} <= set(found.rows[:5].tolist())
    assert with_near(later, 1_000).near is near.near
    monkeypatch.setattr(nearest, "TAIL", 2)
    rebuilt = with_near(later, 1_000).near
    assert rebuilt is not None
    assert rebuilt.count == size + 3


def test_small_catalogues_and_releases_without_a_network_are_searched_exactly(index: Index) -> None:
    assert with_near(index, ITEMS).near is None
    assert with_near(replace(index, stacks={}), 1_000).near is None
