"""Training: learns, resumes to the bit after SIGKILL, stops on a loss that is no number."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from omnifeed.errors import InputError, IntegrityError, OmnifeedError
from omnifeed.model.network import load_network
from omnifeed.training.loop import train

from .synthetic import small_config, with_model, write_training_set

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses.json"


@pytest.fixture(scope="module")
def trained(training_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(training_set, folder, small_config(checkpoint_every=5))
    return folder


def test_the_loss_curve_is_the_golden_one(trained: Path, request: pytest.FixtureRequest) -> None:
    """Refresh with `pytest tests/training/test_loop.py --refresh-goldens`; 1e-3 relative leaves room for other CPUs."""
    curve = [
        [entry["loss"], entry["retrieval"]] for entry in json.loads((trained / "losses.json").read_text())["epochs"]
    ]
    if request.config.getoption("--refresh-goldens"):
        GOLDEN.write_text(json.dumps(curve, indent=2) + "\n")
    np.testing.assert_allclose(curve, json.loads(GOLDEN.read_text()), rtol=1e-3)


def test_training_leaves_weights_description_and_losses_and_no_checkpoint(trained: Path) -> None:
    assert {"weights.safetensors", "model.json", "losses.json"} <= {path.name for path in trained.iterdir()}
    assert not list((trained / "checkpoint").glob("step-*"))
    losses = json.loads((trained / "losses.json").read_text())
    assert losses["epochs"][-1]["loss"] < losses["steps"][0]["loss"]
    assert losses["epochs"][losses["best_epoch"] - 1]["score"] == max(e["score"] for e in losses["epochs"])
    assert load_network(trained).tasks == ("click", "long_view", "cart", "order", "hide")


KILLED = """
import os, signal, sys
from pathlib import Path
from training.synthetic import small_config
from omnifeed.training.loop import train
def kill(label, done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
train(Path(sys.argv[1]), Path(sys.argv[2]), small_config(checkpoint_every=5), kill)
"""


def test_a_run_that_was_killed_ends_with_the_same_weights(training_set: Path, trained: Path, tmp_path: Path) -> None:
    tests = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": tests}
    for step in (8, 13):  # killed twice: between two checkpoints, each time
        command = [sys.executable, "-c", KILLED, str(training_set), str(tmp_path), str(step)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert (tmp_path / "checkpoint" / "current").read_text() == f"step-{step // 5 * 5:08d}"
    train(training_set, tmp_path, small_config(checkpoint_every=5))
    for name in ("weights.safetensors", "model.json", "losses.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_a_checkpoint_of_another_configuration_is_refused(training_set: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(label: str, done: int, total: int) -> None:
        if done == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(training_set, tmp_path, small_config(checkpoint_every=5), stop)
    with pytest.raises(InputError, match="another configuration"):
        train(training_set, tmp_path, small_config(checkpoint_every=5, lr=1e-4))
    (tmp_path / "checkpoint" / "step-00000005.safetensors").write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="cannot be read"):
        train(training_set, tmp_path, small_config(checkpoint_every=5))


def test_a_loss_that_is_no_number_names_the_requests_and_keeps_the_checkpoint(
    training_set: Path, tmp_path: Path
) -> None:
    with pytest.raises(OmnifeedError, match=r"The loss of step \d+ is (nan|inf).* r\d+") as caught:
        train(training_set, tmp_path, small_config(lr=1e30, checkpoint_every=1, warmup_steps=1))
    bad = json.loads((tmp_path / "bad_batch.json").read_text())
    assert bad["requests"][0] in caught.value.problem
    kept = (tmp_path / "checkpoint" / "current").read_text()
    assert kept == f"step-{bad['step'] - 1:08d}"


def test_a_tiny_set_is_learned_by_heart(tmp_path: Path) -> None:
    config = with_model(
        small_config(epochs=60, lr=1e-2, batch_tokens=256, negatives=20, warmup_steps=5),
        dropout=0.0,
        user_dropout=0.0,
        item_dropout=0.0,
        expert_dropout=0.0,
        width=32,
    )
    write_training_set(tmp_path / "set", config, users=4, items=20, requests=10, seed=3)
    result = train(tmp_path / "set", tmp_path / "out", config)
    first, last = result.losses[0], result.losses[-1]
    assert last["tasks"]["click"] < 0.25 < 0.5 < first["tasks"]["click"]
    assert last["retrieval"] < 0.6 * first["retrieval"]


def test_probabilities_are_calibrated_on_the_validation_days(training_set: Path, trained: Path) -> None:
    from omnifeed.evaluation.scorer import EvaluationSet, NetworkScorer
    from omnifeed.model.parts import TorchParts

    network = load_network(trained)
    rows = EvaluationSet(training_set, network.tasks, "valid")
    answers = NetworkScorer(TorchParts(network), network.spec, network.tasks).score(rows).probabilities
    labels = rows.data().impressions.labels
    for task in ("click", "long_view"):
        observed = labels[:, network.tasks.index(task)].mean()
        assert answers[task].mean() == pytest.approx(observed, rel=0.03)


def test_a_task_without_labels_is_left_out_and_none_left_is_an_error(training_set: Path, tmp_path: Path) -> None:
    for path in training_set.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = with_model(small_config(epochs=1), tasks=("click", "like"))
    assert train(tmp_path, tmp_path / "out", config).tasks == ("click",)
    with pytest.raises(InputError, match="like, share"):
        train(tmp_path, tmp_path / "none", with_model(config, tasks=("like", "share")))


def test_a_set_without_training_rows_is_refused(training_set: Path, tmp_path: Path) -> None:
    for path in training_set.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = pq.read_table(tmp_path / "rows.parquet")
    pq.write_table(rows.slice(0, 0), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="no training row"):
        train(tmp_path, tmp_path / "out", small_config())


def test_without_validation_days_the_last_epoch_is_kept(training_set: Path, tmp_path: Path) -> None:
    for path in training_set.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = pq.read_table(tmp_path / "rows.parquet")
    pq.write_table(rows.filter(rows["split"].to_numpy() == "train"), tmp_path / "rows.parquet")
    result = train(tmp_path, tmp_path / "out", small_config())
    assert result.best_epoch == 2
    assert result.valid == {}


def test_the_trunk_feels_the_ranker_by_the_configured_scale(training_set: Path) -> None:
    from omnifeed.model.network import Network
    from omnifeed.training.batching import batches, build, sequences
    from omnifeed.training.dataset import load_training_set
    from omnifeed.training.objective import ItemTable, forward, joint_loss

    config = with_model(small_config(), dropout=0.0)
    data = load_training_set(training_set, config.model.tasks, ("train",))
    packed = sequences(data, data.requests.of("train"))
    batch = build(data, packed, batches(packed, 512, (0,))[0], 16, (0,))
    torch.manual_seed(0)
    network = Network(config.model, data.spec, data.tasks).eval()
    torch.nn.init.normal_(network.ranker.head)
    norms = []
    for scale in (0.0, 0.5, 1.0):
        network.zero_grad()
        output = forward(network, ItemTable(data.items, torch.device("cpu")), batch, scale)
        joint_loss(network, output, batch, 0.0, 1.0).total.backward()  # the ranker's loss alone
        gradient = network.user_encoder.blocks[0].qkv.weight.grad
        norms.append(float(gradient.norm()) if gradient is not None else 0.0)
    assert norms[0] == 0
    assert norms[1] == pytest.approx(norms[2] / 2, rel=1e-4)
    assert math.isfinite(norms[2])
    assert norms[2] > 0


def test_validation_ranks_a_few_requests_at_a_time_as_it_does_all(
    training_set: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omnifeed.training import validation
    from omnifeed.training.batching import sequences
    from omnifeed.training.dataset import load_training_set
    from omnifeed.training.objective import ItemTable

    network = load_network(trained)
    data = load_training_set(training_set, network.tasks, ("valid",))
    packed, table = sequences(data, data.requests.of("valid")), ItemTable(data.items, torch.device("cpu"))
    whole = validation.validate(network, table, data, packed, 512, 10)
    monkeypatch.setattr(validation, "SCORES", 3 * len(data.items.created))
    parts = validation.validate(network, table, data, packed, 512, 10)
    assert parts.recall == pytest.approx(whole.recall, abs=1e-9)
    assert 0 < whole.recall < 1
    assert parts.loss == whole.loss


def test_two_seeds_differ(training_set: Path, tmp_path: Path, trained: Path) -> None:
    train(training_set, tmp_path, small_config(checkpoint_every=5, seed=1))
    assert (tmp_path / "weights.safetensors").read_bytes() != (trained / "weights.safetensors").read_bytes()
