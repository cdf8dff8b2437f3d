"""Next-item training: the loss is the softmax it says, the same seed gives the same weights, and rules are learned."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omnifeed.errors import InputError, OmnifeedError
from omnifeed.evaluation.next_item import network_scorer, ranks
from omnifeed.training.full_softmax import full_softmax
from omnifeed.training.next_item import NextItemConfig, NextItemNetwork, next_item_loss
from omnifeed.training.next_item_loop import fit, windows
from omnifeed.training.sequences import Attributes, SequenceData, leave_one_out, load_sequences

SMALL = NextItemConfig(width=16, dropout=0.1, item_dropout=0.05, epochs=6, batch_tokens=512, warmup_steps=10, lr=1e-2)


def ring(folder: Path, users: int = 150, items: int = 40) -> SequenceData:
    """Users who walk round a ring of items: the next item is the last one's successor."""
    rng = np.random.default_rng(0)
    path = folder / "ring.txt"
    lines = []
    for user in range(1, users + 1):
        start, length = rng.integers(items), rng.integers(4, 10)
        lines.append(" ".join(map(str, [user, *((start + np.arange(length)) % items + 1)])))
    path.write_text("\n".join(lines))
    return load_sequences(path)


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_blockwise_softmax_is_the_softmax(precision: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    user, key = torch.randn(300, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    target, offset = torch.randint(50, (300,)), torch.rand(50)
    wanted = torch.nn.functional.cross_entropy(user @ key.T / 0.5 + offset, target)
    found = full_softmax(user, key, target, offset, 0.5, precision)
    assert abs(found.item() - wanted.item()) < tolerance * wanted.item()
    for mine, theirs in zip(
        torch.autograd.grad(found, (user, key)), torch.autograd.grad(wanted, (user, key)), strict=True
    ):
        assert float((mine - theirs).norm() / theirs.norm()) < tolerance


def test_drawn_negatives_estimate_the_whole_partition_sum() -> None:
    """Mean over draws of exp(loss) against the exact one: the estimate of a partition sum is unbiased."""
    torch.manual_seed(0)
    history, target = np.array([[3]]), np.array([[5]])

    def loss(negatives: int, seed: int) -> float:
        torch.manual_seed(1)
        config = NextItemConfig(width=8, dropout=0, item_dropout=0, init_std=1, negatives=negatives)
        network = NextItemNetwork(config, 200, None)
        return next_item_loss(network, history, target, np.random.default_rng(seed), torch.float32).item()

    exact = loss(0, 0)
    assert loss(1000, 0) == pytest.approx(exact, rel=1e-6)
    drawn = [math.exp(loss(60, seed) - exact) for seed in range(60)]
    assert np.mean(drawn) == pytest.approx(1, abs=4 * np.std(drawn) / len(drawn) ** 0.5)
    assert np.std(drawn) > 0.01


def test_each_position_is_a_target_once_however_long_the_sequence(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("1 " + " ".join(map(str, range(1, 24))) + "\n2 4 5 6\n3 4\n")
    data = load_sequences(path)
    split = leave_one_out(data)
    first, size = windows(split, data.offsets, 8)
    targets = np.concatenate([start + 1 + np.arange(n) for start, n in zip(first, size, strict=True)])
    assert sorted(targets) == list(range(1, 21))  # 21 of 23 items train, the first is no target; user 2 has none left
    assert size.max() == 8


def test_training_learns_the_ring_and_repeats_to_the_bit(tmp_path: Path) -> None:
    data = ring(tmp_path)
    split = leave_one_out(data)

    def hit_rate(network: NextItemNetwork) -> float:
        return float((ranks(network_scorer(network, data), data, split.valid).masked == 0).mean())

    first = fit(data, split, SMALL, 1, validate=hit_rate)
    assert hit_rate(first.network) > 0.9
    assert first.epochs[-1].loss < 0.5 * first.epochs[0].loss
    again = fit(data, split, SMALL, 1, validate=hit_rate)
    for mine, theirs in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_sasrec_trains_by_the_same_loop(tmp_path: Path) -> None:
    data = ring(tmp_path)
    plain = replace(SMALL, model="sasrec", epochs=15)
    losses = [epoch.loss for epoch in fit(data, leave_one_out(data), plain, 0, validate=None).epochs]
    assert losses[-1] < losses[0] - 0.5


def test_an_item_that_never_trained_stands_with_those_of_its_attribute(tmp_path: Path) -> None:
    data = ring(tmp_path)
    path = tmp_path / "ring.txt"
    path.write_text(path.read_text() + "\n999 1 2 3 777\n")  # 777 is nothing but a test's answer
    data = load_sequences(path)
    group = {name: 5 // 2 if name == "777" else int(name) // 2 for name in data.names}  # 777 is like 4 and 5
    bags = Attributes(np.array([group[name] for name in data.names]), np.concatenate([[0], np.arange(data.rows)]), 21)
    network = fit(data, leave_one_out(data), SMALL, 0, attributes=bags, validate=None).network
    with torch.no_grad():
        keys = network.keys(network.items())
    row = {name: index for index, name in enumerate(data.names, start=1)}
    likeness = {name: float(keys[row["777"]] @ keys[row[name]]) for name in data.names if name != "777"}
    assert set(sorted(likeness, key=lambda name: likeness[name])[-4:]) >= {"4", "5"}


def test_a_later_item_never_changes_an_earlier_prediction(tmp_path: Path) -> None:
    network = NextItemNetwork(SMALL, 30, None).eval()
    items = network.items()
    history = torch.tensor([[3, 4, 5, 6]])
    changed = torch.tensor([[3, 4, 9, 0]])
    before, after = network.users(items, history), network.users(items, changed)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_nothing_to_train_on_and_a_loss_that_is_no_number_are_said(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("1 4 5 6\n2 5 6\n".replace("2 5 6", "2 5"))
    data = load_sequences(path)
    with pytest.raises(InputError, match="two items to train on"):
        fit(data, leave_one_out(data), SMALL, 0, validate=None)
    data = ring(tmp_path)
    with pytest.raises(OmnifeedError, match="loss of step 1"):
        fit(data, leave_one_out(data), replace(SMALL, init_std=math.inf), 0, validate=None)
