"""Distributions as small counts that add up: a day is read once, compared with any reference later.

Numbers fall into fine bins of fixed relative width, whatever their range, so sketches of different days merge without
having agreed on anything; words are counted as they are. For a comparison the fine bins are put together to groups of
about equal weight in the reference.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS_PER_DOUBLING = 16  # a bin is 4.4 % wide
SMALLEST = 1e-3  # values closer to zero share the middle bins
GROUPS = 10
RARE = 0.01  # a word with a smaller share of the reference is compared together with the other rare ones


@dataclass(frozen=True, slots=True)
class Sketch:
    """Counts by fine bin (numbers) or word, and the number of independent units (requests) behind them."""

    numeric: bool
    counts: Mapping[str, int]  # by bin number or word
    units: int

    @staticmethod
    def of_numbers(values: npt.ArrayLike, units: int) -> Sketch:
        """Count finite numbers."""
        flat = np.asarray(values, np.float64).ravel()
        flat = flat[np.isfinite(flat)]
        size = np.floor(np.log2(1.0 + np.abs(flat) / SMALLEST) * BINS_PER_DOUBLING)
        bins, counts = np.unique((np.sign(flat) * size).astype(np.int64), return_counts=True)
        return Sketch(True, dict(zip(map(str, bins.tolist()), counts.tolist(), strict=True)), units)

    @staticmethod
    def of_words(values: Iterable[str], units: int) -> Sketch:
        """Count words."""
        return Sketch(False, dict(Counter(values)), units)

    @staticmethod
    def merged(sketches: Sequence[Sketch]) -> Sketch:
        """The sum."""
        total: Counter[str] = Counter()
        for sketch in sketches:
            total.update(sketch.counts)
        return Sketch(sketches[0].numeric, dict(total), sum(sketch.units for sketch in sketches))


class Groups:
    """Groups of bins or words, made from a reference; every other sketch is counted in them.

    Args:
        reference: not empty.
    """

    def __init__(self, reference: Sketch) -> None:
        total = sum(reference.counts.values())
        self._edges: list[int] = []  # numbers: the last bin of each group but the last
        self._words: dict[str, int] = {}
        if reference.numeric:
            ordered = sorted((int(name), count) for name, count in reference.counts.items())
            gathered = 0
            self._edges.append(ordered[0][0] - 1)  # values that the reference never saw are groups of their own
            for bin_number, count in ordered:
                gathered += count
                if gathered >= total / GROUPS or bin_number == ordered[-1][0]:
                    self._edges.append(bin_number)
                    gathered = 0
            self.count = len(self._edges) + 1
        else:
            common = sorted(word for word, count in reference.counts.items() if count >= RARE * total)
            self._words = {word: place for place, word in enumerate(common)}
            self.count = len(common) + 1

    def tally(self, sketch: Sketch) -> npt.NDArray[np.float64]:
        """float64 [count]: how much of a sketch falls into each group."""
        result = np.zeros(self.count)
        for name, count in sketch.counts.items():
            group = bisect.bisect_left(self._edges, int(name)) if sketch.numeric else self._words.get(name, -1)
            result[group] += count
        return result


def psi(now: npt.NDArray[np.float64], before: npt.NDArray[np.float64]) -> float:
    """Population stability index of two tallies: the symmetrised Kullback-Leibler divergence, natural logarithm.

    Half a count is added to every group, so that an empty one costs what it may mean and not infinity.
    """
    p = (now + 0.5) / (now.sum() + 0.5 * len(now))
    q = (before + 0.5) / (before.sum() + 0.5 * len(before))
    return float(((p - q) * np.log(p / q)).sum())


def number_of(bin_name: str) -> float:
    """The middle of a bin, for a reader."""
    place = int(bin_name)
    return math.copysign(SMALLEST * (2 ** ((abs(place) + 0.5) / BINS_PER_DOUBLING) - 1), place) if place else 0.0


def middle(sketch: Sketch) -> str:
    """A distribution in a word: the median, or the commonest word and its share."""
    total = sum(sketch.counts.values())
    if not total:
        return "nothing"
    if not sketch.numeric:
        word, count = max(sketch.counts.items(), key=lambda item: (item[1], item[0]))
        return f"{word or 'none'} {count / total:.0%}"
    gathered = 0
    for place in sorted(sketch.counts, key=int):
        gathered += sketch.counts[place]
        if 2 * gathered >= total:
            return f"{number_of(place):.3g}"
    raise AssertionError("the counts add up to their total")
