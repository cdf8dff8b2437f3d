"""What people type means what they want, in every script and with slips."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.world.vocabulary import LANGUAGES, Query, Vocabulary

WORDS = Vocabulary()
luck = st.floats(min_value=0, max_value=1, exclude_max=True)


@given(
    leaf=st.integers(0, len(WORDS.categories) - 1),
    language=st.integers(0, len(LANGUAGES) - 1),
    drawn=st.tuples(luck, luck, luck, luck, luck),
)
def test_a_typed_query_means_the_category_it_was_typed_for(
    leaf: int, language: int, drawn: tuple[float, float, float, float, float]
) -> None:
    query = WORDS.typed(leaf, language, drawn)
    assert WORDS.meaning(query).leaf == leaf
    assert WORDS.meaning(query.upper()).leaf == leaf


def test_a_slip_means_the_same_word() -> None:
    whole = WORDS.meaning("headphones")
    assert whole.leaf == WORDS.categories.index("electronics/audio")
    for slip in ("haedphones", "headph", "HEADPHONES"):
        assert WORDS.meaning(slip) == whole
    assert WORDS.meaning("耳机").leaf == whole.leaf


def test_queries_slip_now_and_then() -> None:
    rng = np.random.default_rng(0)
    exact = {word.casefold() for word in WORDS.words}
    typed = [WORDS.typed(int(rng.integers(30)), 0, tuple(rng.random(5))) for _ in range(500)]
    slipped = sum(any(word not in exact for word in query.split()) for query in typed)
    assert 20 < slipped < 120


def test_what_nobody_knows_means_nothing() -> None:
    for query in (None, "", "   ", "qqqq zzzz", "\x00", "🦄"):
        assert WORDS.meaning(query) == Query(-1, ())
    assert WORDS.meaning("lamp " * 5_000).leaf == WORDS.categories.index("home/furniture")


def test_a_noun_belongs_to_one_category() -> None:
    for leaf, by_language in enumerate(WORDS.nouns):
        for word in (word for ids in by_language for word in ids):
            assert WORDS.leaf_of_word[word] == leaf, WORDS.words[word]
    spelt = [word.casefold() for word in WORDS.words]
    assert len(set(spelt)) == len(spelt)
