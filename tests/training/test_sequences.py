"""Files of sequences: what is read, what is refused and why, what trains and what is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from omnifeed.errors import InputError
from omnifeed.training.sequences import (
    SequenceData,
    hold_out_sessions,
    leave_one_out,
    load_attributes,
    load_sequences,
    swap_neighbours,
    with_validation,
    without_last,
)


def written(folder: Path, *lines: str) -> Path:
    path = folder / "log.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def items_of(data: SequenceData, sequence: int) -> list[str]:
    return [data.names[row - 1] for row in data.items[data.offsets[sequence] : data.offsets[sequence + 1]]]


def test_a_sequence_keeps_its_order_and_its_repetitions(tmp_path: Path) -> None:
    data = load_sequences(written(tmp_path, "1 30 10 30 20", "2 10 20"))
    assert items_of(data, 0) == ["30", "10", "30", "20"]
    assert items_of(data, 1) == ["10", "20"]
    assert data.rows == 4
    assert data.items.min() == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("1 2 3 4", "7"), "line 2 is not a user and its items"),
        (("1 2 3", "2 5 x 6"), "line 2 is not a user and its items"),
        (("1 2 3", "", "2 3 4"), "line 2 is not a user and its items"),
        (("1 2 3", "4 5 6", "1 7 8"), "line 3 is user 1 again, after line 1"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, lines: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_sequences(written(tmp_path, *lines))


def test_files_that_are_missing_empty_or_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_sequences(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="holds no sequences"):
        load_sequences(tmp_path / "empty.txt")
    (tmp_path / "bytes.txt").write_bytes(b"1 2 \xff")
    with pytest.raises(InputError, match="is not text"):
        load_sequences(tmp_path / "bytes.txt")


def test_leave_one_out_asks_the_last_two_and_trains_on_the_rest(tmp_path: Path) -> None:
    data = load_sequences(written(tmp_path, "1 10 20 30 40", "2 10 20", "3 50", "4 10 20 30"))
    split = leave_one_out(data)
    assert split.train_stop.tolist() == [2, 2, 1, 1]  # users of fewer than three items only train
    assert split.valid.sequence.tolist() == [0, 3]
    assert [data.names[row - 1] for row in split.valid.targets(data)] == ["30", "20"]
    assert [data.names[row - 1] for row in split.test.targets(data)] == ["40", "30"]
    assert with_validation(split).train_stop.tolist() == [3, 2, 1, 2]
    with pytest.raises(InputError, match="No sequence has three items"):
        leave_one_out(load_sequences(written(tmp_path, "1 10 20")))


def test_prefixes_are_the_latest_items_left_aligned(tmp_path: Path) -> None:
    data = load_sequences(written(tmp_path, "1 10 20 30 40", "2 10 20 30"))
    split = leave_one_out(data)
    found = data.prefixes(split.test.sequence, split.test.stop, 2)
    assert [[data.names[row - 1] for row in line] for line in found] == [["20", "30"], ["10", "20"]]
    longer = data.prefixes(split.test.sequence, split.test.stop, 5)
    assert longer.shape == (2, 3)
    assert longer[1, 2] == 0


def test_held_out_sessions_are_asked_at_every_position_and_train_nowhere(tmp_path: Path) -> None:
    lines = [" ".join(str(place + line % 7) for place in range(2 + line % 3)) for line in range(40)]
    data = load_sequences(written(tmp_path, *lines, "5"), sessions=True)
    split = hold_out_sessions(data, 0)
    for queries in (split.valid, split.test):
        sequences = np.unique(queries.sequence)
        assert len(sequences) == 4
        assert (split.train_stop[sequences] == 0).all()
        assert len(queries) == (data.lengths[sequences] - 1).sum()
        assert (queries.stop >= 1).all()
    assert not set(split.valid.sequence) & set(split.test.sequence)
    assert split.train_stop.sum() == data.lengths.sum() - sum(
        data.lengths[np.unique(queries.sequence)].sum() for queries in (split.valid, split.test)
    )
    with pytest.raises(InputError, match="sessions of two items"):
        hold_out_sessions(load_sequences(written(tmp_path, "1 2", "3 4"), sessions=True), 0)


def test_attributes_may_know_less_or_more_than_the_log(tmp_path: Path) -> None:
    data = load_sequences(written(tmp_path, "1 10 20 30"))
    path = tmp_path / "attributes.json"
    path.write_text(json.dumps({"10": [7, 7, 8], "20": [7], "99": [8, 9]}))
    found = load_attributes(path, data)
    sizes = dict(zip(data.names, np.diff(found.offsets)[1:].tolist(), strict=True))
    assert sizes == {"10": 1, "20": 1, "30": 0}  # 8 describes one item of the log alone: no more than its id
    assert found.count == 1
    path.write_text(json.dumps({"99": [1]}))
    with pytest.raises(InputError, match="describes none of the 3 items"):
        load_attributes(path, data)
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match="not a JSON object of lists"):
        load_attributes(path, data)


def test_one_item_earlier_nothing_of_the_test_is_left(tmp_path: Path) -> None:
    data = load_sequences(written(tmp_path, "1 10 11 12 13", "2 11 12", "3 14", "4 12 10 15"))
    earlier = without_last(data)
    assert [items_of(earlier, sequence) for sequence in range(4)] == [
        ["10", "11", "12"],
        ["11", "12"],
        ["14"],
        ["12", "10"],
    ]
    assert earlier.names == data.names


def test_swapping_moves_items_by_one_place_at_most(tmp_path: Path) -> None:
    data = load_sequences(written(tmp_path, "1 " + " ".join(map(str, range(200))), "2 5 6 7"))
    swapped = swap_neighbours(data, 3)
    assert sorted(swapped.items[:200]) == sorted(data.items[:200])
    place = {row: index for index, row in enumerate(data.items[:200])}
    moved = np.array([abs(place[row] - index) for index, row in enumerate(swapped.items[:200])])
    assert moved.max() == 1
    assert 0.3 < moved.mean() < 0.7
