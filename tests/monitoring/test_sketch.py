"""Sketches add up; the stability index is the textbook's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.monitoring.sketch import GROUPS, Groups, Sketch, middle, psi

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(numbers, numbers)
def test_the_sketch_of_two_days_is_the_sum_of_their_sketches(one: list[float], other: list[float]) -> None:
    merged = Sketch.merged([Sketch.of_numbers(one, 1), Sketch.of_numbers(other, 2)])
    assert merged == Sketch.of_numbers(one + other, 3)


@given(numbers)
def test_a_bin_keeps_the_order_of_the_numbers(values: list[float]) -> None:
    bins = [int(next(iter(Sketch.of_numbers([value], 1).counts))) for value in sorted(values)]
    assert bins == sorted(bins)


def test_psi_is_the_symmetrised_divergence() -> None:
    """0.5 a group is added: ((30.5/61 - 20.5/61) ln(30.5/20.5) + (30.5/61 - 40.5/61) ln(30.5/40.5))."""
    now, before = np.array([30.0, 30.0]), np.array([20.0, 40.0])
    assert psi(now, before) == pytest.approx(10 / 61 * (np.log(30.5 / 20.5) - np.log(30.5 / 40.5)), abs=1e-12)
    assert psi(now, now) == 0.0


def test_groups_hold_about_a_tenth_of_the_reference_each() -> None:
    reference = Sketch.of_numbers(np.random.default_rng(0).normal(3, 1, 20_000), 1)
    tally = Groups(reference).tally(reference)
    assert len(tally) <= GROUPS + 2
    assert tally[0] == tally[-1] == 0  # for values that the reference never saw
    assert (tally[1:-1] / tally.sum() < 0.16).all()


def test_what_the_reference_never_saw_is_a_group_of_its_own() -> None:
    constant, words = Sketch.of_numbers(np.zeros(100), 100), Sketch.of_words(["a", "b"] * 50, 100)
    same = psi(Groups(constant).tally(constant), Groups(constant).tally(constant))
    moved = psi(Groups(constant).tally(Sketch.of_numbers(np.full(50, 0.4), 50)), Groups(constant).tally(constant))
    assert (same, moved > 5) == (0.0, True)
    assert Groups(words).tally(Sketch.of_words(["a", "new", "newer"], 3)).tolist() == [1, 0, 2]


def test_not_numbers_are_not_counted() -> None:
    assert sum(Sketch.of_numbers([np.nan, np.inf, 1.0], 3).counts.values()) == 1


def test_a_reader_sees_the_median_or_the_commonest_word() -> None:
    assert float(middle(Sketch.of_numbers([1.0, 2.0, 100.0], 3))) == pytest.approx(2.0, rel=0.05)
    assert middle(Sketch.of_words(["video", "video", "product"], 3)) == "video 67%"
