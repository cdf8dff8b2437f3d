"""Packed text vectors say what the unpacked ones say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omnifeed.export.encode import Floats, text_vector
from omnifeed.serving.recommend.texts import BLOCK, Texts

DIMS = 64
WORDS = ("red", "lamp", "winter", "jacket", "红灯", "лампа", "a", "running", "shoes")


def vectors(*titles: str) -> Floats:
    return np.stack([text_vector(title, DIMS, "salt") for title in titles])


@given(st.lists(st.text(max_size=60), min_size=1, max_size=8), st.text(max_size=30))
@example(["", "red lamp"], "")
@settings(max_examples=150, deadline=None)
def test_a_match_is_the_product_of_the_vectors(titles: list[str], query: str) -> None:
    plain, asked = vectors(*titles), vectors(query)[0]
    texts = Texts(DIMS).extended(plain)
    np.testing.assert_allclose(texts.match(asked), plain @ asked, atol=1e-6)
    rows = np.arange(len(titles))[::-1]
    np.testing.assert_allclose(texts.match(asked, rows), plain[rows] @ asked, atol=1e-6)
    np.testing.assert_allclose(texts.dense(rows), plain[rows], rtol=1e-6)


def test_a_title_that_only_repeats_itself_is_rounded() -> None:
    plain = vectors("a " * 128 + "lamp", "ab " * 80)
    texts = Texts(DIMS).extended(plain)
    np.testing.assert_allclose(texts.match(plain[0]), plain @ plain[0], atol=0.01)


def test_states_share_rows_and_do_not_see_each_others() -> None:
    rng = np.random.default_rng(1)
    plain = vectors(*(" ".join(rng.choice(WORDS, 3)) for _ in range(BLOCK + 100)))
    query = text_vector("red lamp", DIMS, "salt")
    first = Texts(DIMS, 10).extended(plain[:10])
    second = first.extended(plain[10:])
    other = first.extended(plain[20:30])
    assert (len(first), len(second), len(other)) == (10, BLOCK + 100, 20)
    np.testing.assert_allclose(first.match(query), plain[:10] @ query, atol=1e-6)
    np.testing.assert_allclose(second.match(query), plain @ query, atol=1e-6)
    np.testing.assert_allclose(other.match(query)[10:], plain[20:30] @ query, atol=1e-6)
    third = second.extended(plain[:5])
    assert np.shares_memory(third._counts, second._counts)  # nothing was copied for five rows


@pytest.mark.parametrize("order", [[3, 1, 2, 0], [2, 2], []])
def test_rows_can_be_taken_in_any_order(order: list[int]) -> None:
    plain = vectors("red lamp", "winter jacket", "", "running shoes")
    taken = Texts(DIMS).extended(plain).taken(np.array(order, np.int64))
    np.testing.assert_allclose(taken.dense(np.arange(len(order))), plain[order], rtol=1e-6)
