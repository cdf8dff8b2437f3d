"""What the speed benchmark counts, and how it compares; the libraries themselves are not installed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL: dict[str, Any] = {
    "width": 8,
    "blocks": 1,
    "heads": 2,
    "length": 40,
    "dropout": 0.1,
    "lr": 1e-3,
    "negatives": 4,
}


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sequence_speed

    return sequence_speed


def test_steps_of_the_warm_up_are_not_counted(speed: ModuleType) -> None:
    import sequence_side

    watch = sequence_side.Watch(warmup=2)
    for targets in (100, 100, 3, 4):
        sum(range(200_000))
        watch.step(targets=targets, filled=5, cells=10)
    assert (watch.measured.steps, watch.measured.targets) == (2, 7)
    assert (watch.measured.filled, watch.measured.cells) == (10, 20)
    assert watch.measured.cpu_seconds > 0


def test_our_side_counts_every_target_once_and_padding_only_where_there_is_some(
    speed: ModuleType, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    sizes = [4, 6, 9, 25]  # of which 2, 4, 7 and 23 train, in one batch
    path = tmp_path / "Shop.txt"
    path.write_text(
        "\n".join(f"{user} " + " ".join(map(str, 1 + rng.integers(30, size=size))) for user, size in enumerate(sizes))
    )
    asked = "\n".join(json.dumps(SMALL | {"padded": padded}) for padded in (False, True))
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "omnifeed_side.py"), str(path)],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
    )
    ready, *lines = done.stdout.splitlines()
    assert ready == "ready"
    packed, padded = map(json.loads, lines)
    assert packed["targets"] == padded["targets"] == 1 + 3 + 6 + 22
    assert packed["filled"] == padded["filled"] == packed["targets"]
    assert packed["cells"] == 4 * 22
    assert padded["cells"] == 4 * SMALL["length"]


def test_a_ratio_is_split_into_fewer_positions_and_the_rest(speed: ModuleType) -> None:
    setting = speed.Setting(**SMALL)
    ours = speed.Case(speed.OURS, setting)
    theirs = speed.Case("RecTools", setting)
    other = speed.Case("RecTools", speed.Setting(**SMALL | {"negatives": 0}))  # nothing of ours to meet
    found = {
        ours: [speed.Measured(cpu_seconds=1, steps=1, targets=100, filled=100, cells=125) for _ in range(3)],
        theirs: [
            speed.Measured(cpu_seconds=seconds, steps=1, targets=10, filled=10, cells=100) for seconds in (2, 4, 3)
        ],
        other: [speed.Measured(cpu_seconds=1, steps=1, targets=1, filled=1, cells=1)] * 3,
    }
    times, fewer, faster = speed.comparisons(found)
    assert (times["value"], times["low"], times["high"]) == (30, 20, 40)
    assert times["against"] == "RecTools, float32"
    assert fewer["value"] == 8
    assert faster["value"] == 30 / 8
    assert speed.padding(found[theirs]) == pytest.approx(0.9)


def test_a_side_that_ends_says_what_it_said(speed: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such luck"):
        speed.Side("RecBole", [sys.executable, "-c", "raise SystemExit('no such luck')"], tmp_path)


def test_every_library_meets_ours_at_its_number_of_negatives(speed: ModuleType) -> None:
    cases = speed.cases()
    ours = {case.setting.negatives for case in cases if case.side == speed.OURS}
    for case in cases:
        assert case.setting.negatives in ours
        assert case.setting.width == speed.TRUNK.width
        assert case.side == speed.OURS or case.setting.steps
