"""The GPU benchmark's parts on a CPU, at sizes of nothing, and its count of operations against torch's."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omnifeed.training.next_item import NextItemConfig, NextItemNetwork, next_item_loss

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_training

    return gpu_training


def test_operations_are_those_that_torch_counts(gpu: ModuleType) -> None:
    config = gpu.config_of(32, 4, tokens=128, blocks=2)
    network = NextItemNetwork(config, 300, None).train()
    sizes = np.full(32, 4)
    with FlopCounterMode(display=False) as counter:
        batch = gpu.documents(sizes, 300, np.random.default_rng(0))
        next_item_loss(network, *batch, np.random.default_rng(0), torch.float32).backward()
    assert gpu.operations(network, sizes) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_the_whole_measurement_runs_and_gives_every_row(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    config, ceiling, reading, cell = gpu.config_of, gpu.ceiling, gpu.reading, gpu.cell

    def none_beyond_a_hundred(device: torch.device, config: NextItemConfig, catalogue: int) -> dict[str, float]:
        if catalogue > 100:
            raise torch.OutOfMemoryError
        found: dict[str, float] = cell(device, config, catalogue, steps=1)
        return found

    monkeypatch.setattr(gpu, "WIDTHS", (16,))
    monkeypatch.setattr(gpu, "HISTORIES", (8, 64))
    monkeypatch.setattr(gpu, "CATALOGUES", (100, 200))
    monkeypatch.setattr(gpu, "config_of", lambda width, history, tokens=128: config(width, history, tokens, blocks=1))
    monkeypatch.setattr(gpu, "ceiling", lambda device: ceiling(device, 64, 1))
    monkeypatch.setattr(gpu, "reading", partial(reading, tokens=600))
    monkeypatch.setattr(gpu, "cell", none_beyond_a_hundred)
    rows, too_large = gpu.measure(CPU)
    assert all(entry["value"] > 0 for entry in rows)
    names = [entry["metric"] for entry in rows]
    assert names.count("utilisation") == names.count("operations_per_second") == 2
    assert {entry["reading"] for entry in rows if "reading" in entry} == {"padded", "bucketed", "packed"}
    assert too_large == [f"width 16, history {history}, catalogue 200" for history in (8, 64)]


def test_batches_drawn_at_random_hold_every_document_once_and_keep_their_size(gpu: ModuleType) -> None:
    rng = np.random.default_rng(0)
    sizes = gpu.log_sizes(20_000, 500, rng)
    assert sizes.sum() == pytest.approx(20_000, rel=0.3)
    plan = gpu.at_random(sizes, 1_000, rng)
    assert sorted(np.concatenate(plan)) == list(range(len(sizes)))
    assert all(len(rows) * sizes[rows].max() <= 1_000 for rows in plan)


def test_bfloat16_changes_the_loss_by_less_than_a_thousandth(gpu: ModuleType) -> None:
    """The rounding that a GPU adds, without the GPU."""
    torch.manual_seed(0)
    assert 0 < gpu.disagreement(CPU, gpu.config_of(64, 64, tokens=512, blocks=2), 500) < gpu.GOAL_LOSS


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so_and_writes_nothing() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_training.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing was measured" in done.stderr
    assert not (BENCHMARKS.parent / "results" / "gpu_training.json").exists()
