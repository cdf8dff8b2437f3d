"""The baseline's features of a day are blind to the labels of that day and of every later one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import kuairand_lightgbm as trees

DAY = trees.DAY_US
START = 19_000 * DAY
USERS, ITEMS, DAYS = 60, 50, 4


def events(rng: np.random.Generator, count: int, begin: int, end: int) -> trees.Past:
    ts = np.sort(rng.integers(begin, end, count))
    asked = trees.Asked(rng.integers(0, USERS, count), rng.integers(0, ITEMS, count), rng.integers(0, 5, count), ts)
    labels = {name: rng.integers(0, 2, count).astype(np.float64) for name in (*trees.TASKS, "like")}
    return trees.Past(asked, ts + 60_000_000, labels)


def catalogue(rng: np.random.Generator) -> trees.Catalogue:
    return trees.Catalogue(
        item={name: rng.integers(0, 9, ITEMS) for name in ("author", "tag", "music", "duration")},
        item_plain={"seconds": rng.random(ITEMS)},
        user_plain={"age": rng.random(USERS)},
    )


def test_labels_of_a_day_and_later_change_no_feature_of_that_day() -> None:
    rng = np.random.default_rng(0)
    history = events(rng, 3000, START - 10 * DAY, START)
    log, known = events(rng, 800, START, START + DAYS * DAY), catalogue(rng)
    before, names = trees.features(history, log, known)
    day = log.asked.ts // DAY - START // DAY
    for first in range(1, DAYS):
        late = np.flatnonzero(log.observed >= START + first * DAY)
        labels = {name: value.copy() for name, value in log.labels.items()}
        for value in labels.values():
            value[late] = rng.permutation(1 - value[late])
        after, _ = trees.features(history, trees.Past(log.asked, log.observed, labels), known)
        np.testing.assert_array_equal(after[day <= first], before[day <= first])
        if first < DAYS - 1:
            changed = [name for index, name in enumerate(names) if (after[:, index] != before[:, index]).any()]
            assert {"item_click", "user_tab_long_view", "effect_all_click", "both_user_item_long"} <= set(changed)


def test_a_label_that_is_known_only_after_midnight_waits_for_the_next() -> None:
    rng = np.random.default_rng(1)
    history = events(rng, 3000, START - 10 * DAY, START)
    asked = trees.Asked(*(np.zeros(3, np.int64) for _ in range(3)), START + np.array([DAY - 1, DAY + 1, 2 * DAY + 1]))
    log = trees.Past(asked, asked.ts + 60_000_000, {name: np.ones(3) for name in (*trees.TASKS, "like")})
    x, names = trees.features(history, log, catalogue(rng))
    assert x[:, names.index("item_views")].round(4).tolist() == [0.0, 0.0, np.float32(np.log(3)).round(4)]
