"""Ranks in the full catalogue: ties against us, seen items masked or not, and baselines that do what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnifeed.evaluation.next_item import gains, ranks, summary
from omnifeed.evaluation.next_item_baselines import item_knn, latest_popularity, popularity
from omnifeed.training.sequences import SequenceData, leave_one_out, load_sequences


@pytest.fixture
def data(tmp_path: Path) -> SequenceData:
    path = tmp_path / "log.txt"
    path.write_text("1 10 20 30 40\n2 20 10 30 10\n3 10 50 20 30\n")
    return load_sequences(path)


def scorer(data: SequenceData, scores: dict[str, float]):  # type: ignore[no-untyped-def]
    row = np.array([99.0, *(scores[name] for name in data.names)], np.float32)
    return lambda queries: np.broadcast_to(row, (len(queries), len(row)))


def test_ranks_count_ties_against_the_right_item_and_mask_what_was_seen(data: SequenceData) -> None:
    test = leave_one_out(data).test
    found = ranks(scorer(data, {"10": 5, "20": 4, "30": 3, "40": 3, "50": 3}), data, test)
    # user 1 wants 40 after 10, 20, 30: 50 ties with it; user 2 wants 10 again; user 3 wants 30, and 40 ties with it
    assert found.masked.tolist() == [1, 0, 1]
    assert found.unmasked.tolist() == [4, 0, 4]


def test_a_score_that_is_no_number_counts_against_the_right_item(data: SequenceData) -> None:
    test = leave_one_out(data).test
    found = ranks(scorer(data, {"10": 5, "20": 4, "30": np.nan, "40": np.nan, "50": 3}), data, test)
    assert found.unmasked.tolist() == [4, 2, 4]


def test_metrics_of_known_ranks() -> None:
    each = gains(np.array([0, 1, 9, 10]), 10)
    assert each["HR@10"].tolist() == [1, 1, 1, 0]
    assert each["NDCG@10"] == pytest.approx([1, 1 / np.log2(3), 1 / np.log2(11), 0])
    assert each["MRR@10"] == pytest.approx([1, 0.5, 0.1, 0])
    metrics = {metric.name: metric for metric in summary([np.array([0, 99]), np.array([99, 99])], (10,))}
    assert metrics["HR@10"].value == 0.25
    assert metrics["HR@10"].low < 0.25 < metrics["HR@10"].high


def test_baselines_count_only_what_trains(data: SequenceData) -> None:
    split = leave_one_out(data)  # trains on 10 20 | 20 10 | 10 50
    row = {name: index for index, name in enumerate(data.names, start=1)}

    def score(made, name: str) -> float:  # type: ignore[no-untyped-def]
        return float(made(split.test)[0, row[name]])

    popular, latest = popularity(data, split), latest_popularity(data, split)
    assert [score(popular, name) for name in ("10", "20", "30", "40", "50")] == [3, 2, 0, 0, 1]
    assert [score(latest, name) for name in ("10", "20", "30", "40", "50")] == [1, 1, 0, 0, 1]
    near = item_knn(data, split, decay=0.5, shrink=0.0)
    # user 1's prefix is 10 20 30; 50 was bought with 10 once of three and one times, two places before the last
    assert score(near, "50") == pytest.approx(0.25 / np.sqrt(3 * 1))
    assert score(near, "40") == 0
