"""Sources merged with quotas, and who counts as new."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from export.releases import NOW, copied
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.export.catalogue_state import Catalogue
from omnifeed.export.encode import DAY_US
from omnifeed.export.following import load_catalogue
from omnifeed.export.item_features import VIEWS_7D
from omnifeed.export.rows import Stack
from omnifeed.serving.recommend import newcomers as module
from omnifeed.serving.recommend.contract import Source
from omnifeed.serving.recommend.newcomers import HOUR_US, Newcomers, newcomers
from omnifeed.serving.recommend.retrieve import Offer, merged

ROWS = st.lists(st.integers(0, 30), unique=True, max_size=31)


@given(ROWS, ROWS, ROWS, st.tuples(*[st.integers(0, 12)] * 3), st.integers(0, 40))
def test_every_source_has_its_quota_and_nothing_is_given_twice(
    dense: list[int], trend: list[int], new: list[int], quotas: tuple[int, int, int], count: int
) -> None:
    named = zip((Source.DENSE, Source.TRENDING, Source.NEW), (dense, trend, new), quotas, strict=True)
    offers = [Offer(source, np.array(rows, np.int64), quota) for source, rows, quota in named]
    rows, sources = merged(offers, count)
    everything = {row for offer in offers for row in offer.rows.tolist()}
    assert len(set(rows.tolist())) == len(rows) == len(sources) == min(count, len(everything))
    taken: set[int] = set()
    places = count
    for offer in offers:
        fresh = [row for row in offer.rows.tolist() if row not in taken][: min(offer.quota, places)]
        given_by = rows[[source == offer.source for source in sources]].tolist()
        assert given_by[: len(fresh)] == fresh, "a source did not get the best of its own within its quota"
        taken |= set(fresh)
        places -= len(fresh)


def test_what_a_source_leaves_goes_to_the_others() -> None:
    rows, sources = merged([Offer(Source.DENSE, np.arange(10), 2), Offer(Source.NEW, np.array([1, 7]), 3)], 6)
    assert rows.tolist() == [0, 1, 7, 2, 3, 4]
    assert sources.tolist() == [Source.DENSE] * 2 + [Source.NEW] + [Source.DENSE] * 3


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    loaded = load_catalogue(copied(tmp_path_factory.mktemp("new") / "home"))
    rng, count = np.random.default_rng(0), len(loaded)
    shared = loaded.features.shared.rows.copy()
    shared[:, VIEWS_7D] = np.log1p(rng.integers(0, 40, count))
    features = replace(loaded.features, shared=Stack(shared))
    return replace(loaded, created_ts=NOW - rng.integers(0, 14 * DAY_US, count), features=features)


@given(st.lists(st.integers(-5 * 24, 5 * 24), max_size=20))
def test_who_is_new_is_remembered_for_an_hour_and_no_longer(catalogue: Catalogue, hours: list[int]) -> None:
    remembered = Newcomers()
    for hour in hours:
        for count in (len(catalogue), len(catalogue) - 3):
            now = NOW // HOUR_US * HOUR_US + hour * HOUR_US
            expected = np.flatnonzero(newcomers(catalogue, slice(count), now, 20))
            assert remembered.rows(catalogue, count, now, 20).tolist() == expected.tolist()
            assert remembered.rows(catalogue, count, now + HOUR_US - 1, 20).tolist() == expected.tolist()
            for row in expected.tolist():
                assert round(float(np.expm1(catalogue.views_7d[row]))) < 20
                assert catalogue.created_ts[row] > now - 7 * DAY_US
    other = replace(catalogue, created_ts=catalogue.created_ts - 30 * DAY_US)
    assert not len(remembered.rows(other, len(other), NOW, 20))


def test_of_too_many_those_seen_least_are_remembered(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = np.flatnonzero(newcomers(catalogue, slice(None), NOW, 20))
    monkeypatch.setattr(module, "MOST", 5)
    few = Newcomers().rows(catalogue, len(catalogue), NOW, 20)
    assert len(few) == 5 < len(everybody)
    rest = np.setdiff1d(everybody, few)
    assert catalogue.views_7d[few].max() <= catalogue.views_7d[rest].min()
