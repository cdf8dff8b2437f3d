"""Several processes train what one would: the same losses, checkpoints for any number of them, a killed one resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omnifeed.errors import InputError
from omnifeed.model import encoders
from omnifeed.training import launch
from omnifeed.training.batching import batches, sequences
from omnifeed.training.dataset import load_training_set
from omnifeed.training.loop import train

from .synthetic import small_config, with_model, write_training_set

#: Tables of 100 rows and more are divided. Dropout is off: its draws are each process's own.
CONFIG = with_model(
    small_config(epochs=2, shard_rows=100, checkpoint_every=5),
    dropout=0.0,
    user_dropout=0.0,
    item_dropout=0.0,
    expert_dropout=0.0,
)
WORKER = """
import os, signal, sys
from pathlib import Path
from omnifeed.model import encoders
from omnifeed.training.loop import train
from training.test_processes import CONFIG, stopped_at
encoders.SCENARIO_DROPOUT = 0.0
folder, killed, stop = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
def watch(label, done, total):
    if done == killed and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    stopped_at(stop)(label, done, total)
train(Path(sys.argv[1]), folder, CONFIG, watch)
"""


class StoppedError(Exception):
    pass


def stopped_at(step: int) -> Any:
    def stop(label: str, done: int, total: int) -> None:
        if done == step:
            raise StoppedError

    return stop


def in_two_processes(training_set: Path, out: Path, killed: int = 0, stop: int = 0, restarts: int = 0) -> Any:
    tests = Path(__file__).resolve().parents[1]
    script = out.with_suffix(".py")
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.2"]
    command += [str(script), str(training_set), str(out), str(killed), str(stop)]
    environment = {**os.environ, **launch.AGENT, "PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


def curve(folder: Path) -> Any:
    """Losses and gradient norm of each step; the norm shows what AdamW hides, a gradient of another scale."""
    names = ("loss", "retrieval", "gradient_norm")
    steps = json.loads((folder / "losses.json").read_text())["steps"]
    return np.array([[*(step[name] for name in names), *step["tasks"].values()] for step in steps])


@pytest.fixture(scope="module")
def alone(training_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "SCENARIO_DROPOUT", 0.0)
        folder = tmp_path_factory.mktemp("alone")
        train(training_set, folder, CONFIG)
        yield folder


def same(first: Path, second: Path) -> None:
    np.testing.assert_allclose(curve(first), curve(second), rtol=1e-4)
    left, right = (load_file(folder / "weights.safetensors") for folder in (first, second))
    for name, value in left.items():
        assert value.shape == right[name].shape
        torch.testing.assert_close(value, right[name], rtol=0, atol=5e-3)


def test_two_processes_go_on_where_one_stopped_and_after_one_of_them_was_killed(
    training_set: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        train(training_set, out, CONFIG, stopped_at(8))
    assert (out / "checkpoint" / "current").read_text() == "step-00000005"
    done = in_two_processes(training_set, out, killed=13, restarts=1)
    assert done.returncode == 0, done.stderr
    assert "SIGKILL" in done.stderr or "exitcode: -9" in done.stderr
    same(out, alone)


def test_one_process_goes_on_where_two_stopped(training_set: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "StoppedError" in in_two_processes(training_set, out, stop=8).stderr
    assert (out / "checkpoint" / "current").read_text() == "step-00000005"
    train(training_set, out, CONFIG)
    same(out, alone)


def test_a_training_in_processes_reports_and_returns_like_one(tmp_path: Path) -> None:
    """Some batches hold one sequence, so one process has none."""
    config = small_config(epochs=1, processes=2, shard_rows=100, batch_tokens=64)
    write_training_set(tmp_path / "set", config, users=20, items=40, requests=12)
    data = load_training_set(tmp_path / "set", config.model.tasks, ("train",))
    sizes = [len(rows) for rows in batches(sequences(data, data.requests.of("train")), 64, (0, 0))]
    assert min(sizes) == 1
    news: list[tuple[Any, ...]] = []
    result = launch.run_training(tmp_path / "set", tmp_path / "out", config, lambda *told: news.append(told), None)
    assert [done for _, done, _ in news] == list(range(1, result.steps + 1))
    assert result.steps == len(sizes)
    assert all(np.isfinite(entry["loss"]) for entry in result.losses)
    assert (tmp_path / "out" / "weights.safetensors").exists()


def test_an_error_of_the_training_is_the_launchers(
    training_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "elastic_launch", lambda _, work: lambda *given: {0: work(*given)})
    config = with_model(small_config(processes=2), tasks=("purr",))
    with pytest.raises(InputError, match="'purr'"):
        launch.run_training(training_set, tmp_path, config, print, None)
