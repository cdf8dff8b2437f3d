"""The remembered mask is the one that would be computed, at every moment and in every order of moments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from export.releases import NOW, copied
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.export.catalogue_state import Catalogue
from omnifeed.export.following import load_catalogue
from omnifeed.serving.recommend.eligibility import REMEMBERED, Eligibility


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    loaded = load_catalogue(copied(tmp_path_factory.mktemp("eligible") / "home"))
    rng = np.random.default_rng(0)
    count = len(loaded)
    start = NOW + rng.integers(-50, 50, count)
    return replace(
        loaded,
        created_ts=NOW + rng.integers(-60, 60, count),
        livestream=rng.random(count) < 0.5,
        live_from=start,
        live_until=start + rng.integers(0, 30, count),
    )


@given(st.lists(st.tuples(st.integers(-100, 100), st.sampled_from([None, "de", "fr"])), max_size=30))
def test_at_every_moment_it_is_what_would_be_computed(
    catalogue: Catalogue, asked: list[tuple[int, str | None]]
) -> None:
    remembered = Eligibility()
    for offset, locale in asked:
        for rows in (len(catalogue), len(catalogue) - 3):
            mask = remembered.mask(catalogue, rows, NOW + offset, locale)
            assert np.array_equal(mask, catalogue.eligible_within(rows, NOW + offset, locale))
            mask[:] = False  # the caller's own copy


def test_another_state_of_the_catalogue_counts_at_once(catalogue: Catalogue) -> None:
    remembered = Eligibility()
    rows = len(catalogue)
    assert remembered.mask(catalogue, rows, NOW, None).any()
    sold_out = replace(catalogue, stock=np.zeros(rows, np.int64))
    assert not remembered.mask(sold_out, rows, NOW, None).any()


def test_it_computes_once_between_two_changes_and_forgets_the_oldest(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    compute = Catalogue.eligible_within

    def counting(self: Catalogue, rows: int, now: int, locale: str | None = None) -> object:
        calls.append(rows)
        return compute(self, rows, now, locale)

    monkeypatch.setattr(Catalogue, "eligible_within", counting)
    remembered = Eligibility()
    for _ in range(10):
        remembered.mask(catalogue, len(catalogue), NOW + 10_000, None)
    assert len(calls) == 1
    for rows in range(1, REMEMBERED + 2):
        remembered.mask(catalogue, rows, NOW, None)
    assert len(remembered._held) == REMEMBERED
