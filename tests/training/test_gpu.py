"""The path of a GPU, as far as a CPU can follow it; what only a GPU can show skips and says so."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from omnifeed.model import blocks, packed
from omnifeed.model.network import Network
from omnifeed.training import full_softmax, next_item, objective
from omnifeed.training.batching import Batch, batches, build, sequences
from omnifeed.training.checkpoint import Progressed, load_checkpoint, save_checkpoint
from omnifeed.training.dataset import TrainingData, load_training_set
from omnifeed.training.full_softmax import BLOCK_CELLS
from omnifeed.training.loop import train
from omnifeed.training.next_item import NextItemConfig, NextItemNetwork, next_item_loss
from omnifeed.training.next_item_loop import fit
from omnifeed.training.objective import ItemTable, Loss
from omnifeed.training.processes import Processes, Step, clip_gradient
from omnifeed.training.sequences import leave_one_out

from .synthetic import small_config, with_model
from .test_next_item import SMALL, ring

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")  # the latter has shapes and types, and no numbers
CONFIG = with_model(small_config(), width=32, dropout=0.0, user_dropout=0.0, item_dropout=0.0, expert_dropout=0.0)
SEQUENCES = NextItemConfig(width=32, blocks=2, dropout=0.0, item_dropout=0.0, length=40, batch_tokens=256, negatives=20)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here: nothing but a GPU can show this")


@pytest.fixture(scope="module")
def data(training_set: Path) -> TrainingData:
    return load_training_set(training_set, CONFIG.model.tasks, ("train", "valid"))


@pytest.fixture(scope="module")
def batch(data: TrainingData) -> Batch:
    windows = sequences(data, data.requests.of("train"))
    return build(data, windows, batches(windows, 512, (0,))[0], 16, (0,))


def step_of(data: TrainingData, device: torch.device) -> Step:
    torch.manual_seed(0)
    network = Network(CONFIG.model, data.spec, data.tasks).to(device).eval()  # hides no scenario
    return Step(network, ItemTable(data.items, device), CONFIG.training, Processes())


def histories() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inside = np.arange(40) < rng.integers(1, 41, 6)[:, None]
    return tuple(np.where(inside, rng.integers(1, 90, inside.shape), 0) for _ in range(2))  # type: ignore[return-value]


def dense(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask) -> Tensor:
    """In place of flex_attention, which has no backward on a CPU; its own demands are kept."""
    assert q.dtype == k.dtype == v.dtype
    mask = create_mask(block_mask.mask_mod, None, None, q.shape[2], q.shape[2], device=str(q.device))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.fixture
def read_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows on any device."""

    def packing(layers: Any, sizes: np.ndarray, cells: int, tokens: int) -> packed.Packing:
        return packed.pack(sizes, cells, tokens, layers[0].qkv.weight.device)

    monkeypatch.setattr(blocks, "flex_attention", dense)
    monkeypatch.setattr(packed, "compiled", lambda: packed._read)
    for module in (next_item, objective):
        monkeypatch.setattr(module, "packing", packing)


def losses(data: TrainingData, batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Of both trainings on a CPU, and their gradients."""
    step = step_of(data, CPU)
    torch.manual_seed(0)
    network = NextItemNetwork(SEQUENCES, 90, None).train()
    torch.manual_seed(1)
    requests = step(batch, None).total
    sequence = next_item_loss(network, *histories(), np.random.default_rng(0), torch.float32)
    (requests + sequence).backward()
    gradients = [p.grad for module in (step.network, network) for p in module.parameters() if p.grad is not None]
    return requests.detach(), sequence.detach(), gradients


def test_a_packed_row_has_the_loss_and_gradient_of_the_padded_batch(
    data: TrainingData, batch: Batch, request: pytest.FixtureRequest
) -> None:
    *wanted, wanted_gradients = losses(data, batch)
    request.getfixturevalue("read_as_on_a_gpu")
    *found, gradients = losses(data, batch)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)


@pytest.mark.usefixtures("read_as_on_a_gpu")
def test_bfloat16_products_keep_types_together_and_the_loss_in_float32(data: TrainingData, batch: Batch) -> None:
    step = step_of(data, CPU)
    wanted = step(batch, None)
    with torch.autocast("cpu", torch.bfloat16):
        output = objective.forward(step.network, step.table, batch, 1.0, step.row_tokens)
    assert {value.dtype for value in (output.user_vec, output.item_key, output.logits)} == {torch.float32}
    found = objective.joint_loss(step.network, output, batch, 1.0, 1.0)
    found.total.backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in step.network.parameters() if p.grad is not None)
    assert found.total.item() == pytest.approx(wanted.total.item(), rel=5e-3)


@pytest.mark.usefixtures("read_as_on_a_gpu")
def test_a_step_neither_mixes_devices_nor_waits_for_a_number(
    data: TrainingData, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without numbers, of another device than the CPU: a tensor left behind, or a number asked for, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())  # knows no such device
    step = step_of(data, ELSEWHERE).train()
    network = NextItemNetwork(SEQUENCES, 90, None).to(ELSEWHERE).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        loss: Loss = step(batch, None)
        loss.total.backward()
        assert clip_gradient(step.network, Processes(), 1.0).device == ELSEWHERE
        sequence = next_item_loss(network, *histories(), np.random.default_rng(0), torch.float32)
        sequence.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        assert loss.total.device == sequence.device == ELSEWHERE
        with pytest.raises(RuntimeError, match=r"two different devices|same device"):
            step.network.user_encoder.last(torch.zeros(1, 32))


def test_an_optimizer_resumes_on_the_device_of_its_weights(data: TrainingData, tmp_path: Path) -> None:
    """A fused optimizer wants even the number of its steps there."""
    network = Network(CONFIG.model, data.spec, data.tasks)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    save_checkpoint(tmp_path, "", network, optimizer, Progressed(step=1), Processes())
    moved = Network(CONFIG.model, data.spec, data.tasks).to(ELSEWHERE)
    resumed = torch.optim.AdamW(moved.parameters(), fused=True)
    with pytest.warns(UserWarning, match="meta"):
        load_checkpoint(tmp_path, "", moved, resumed)
    kept = [value for state in resumed.state.values() for value in state.values()]
    assert len(kept) == 3 * len(list(moved.parameters()))
    assert {value.device for value in kept} == {ELSEWHERE}


@pytest.mark.parametrize("cells", [1, 50 * 170, BLOCK_CELLS])  # blocks of 128 rows, of 170, of all
def test_the_softmax_in_a_gpus_blocks_is_the_softmax(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(full_softmax, "BLOCK_CELLS", cells)
    of = full_softmax.sizes
    monkeypatch.setattr(full_softmax, "sizes", lambda device, columns, width: of(ELSEWHERE, columns, width))
    torch.manual_seed(0)
    user, key = torch.randn(300, 13, requires_grad=True), torch.randn(50, 13, requires_grad=True)
    target, offset = torch.randint(50, (300,)), torch.rand(50)
    wanted = functional.cross_entropy(user @ key.T / 0.5 + offset, target)
    found = full_softmax.full_softmax(user, key, target, offset, 0.5)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, (user, key)), torch.autograd.grad(wanted, (user, key)))


class Allocations(TorchDispatchMode):
    """Bytes of the tensors made inside: the most at once, and of the largest one."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self.largest = 0, 0
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.held = {key: entry for key, entry in self.held.items() if not entry[0].expired()}
        for storage in (value.untyped_storage() for value in tree_leaves(result) if isinstance(value, Tensor)):
            reference = StorageWeakRef(storage)
            self.held.setdefault(reference.cdata, (reference, storage.nbytes()))
            self.largest = max(self.largest, storage.nbytes())
        self.most = max(self.most, sum(size for _, size in self.held.values()))
        return result


def test_the_softmax_over_a_million_items_never_holds_its_logits() -> None:
    """A block of them at once, and beside it a few tables of the catalogue's size, however many rows there are."""
    most = []
    for rows in (8_192, 65_536):  # all logits: 16 and 131 GB in bfloat16
        user, key = (torch.empty(count, 1_024, device=ELSEWHERE, requires_grad=True) for count in (rows, 1_000_000))
        target, offset = (torch.empty(count, device=ELSEWHERE) for count in (rows, 1_000_000))
        with Allocations() as seen:
            loss = full_softmax.full_softmax(user, key, target.long(), offset, 0.07, torch.bfloat16)
            torch.autograd.grad(loss, (user, key))
        assert seen.largest <= max(2 * BLOCK_CELLS, 4 * key.numel())
        most.append((seen.most - 16 * user.numel()) / 2**30)
    assert most[1] == pytest.approx(most[0], rel=0.1)
    assert max(most) < 14


@needs_gpu
def test_a_gpu_has_the_loss_of_a_cpu(data: TrainingData, batch: Batch) -> None:
    gpu = torch.device("cuda")
    wanted, wanted_sequence, _ = losses(data, batch)
    assert step_of(data, gpu)(batch, None).total.item() == pytest.approx(wanted.item(), rel=1e-3)
    torch.manual_seed(0)
    network = NextItemNetwork(SEQUENCES, 90, None).to(gpu).train()
    for precision in (torch.float32, torch.bfloat16):
        loss = next_item_loss(network, *histories(), np.random.default_rng(0), precision)
        assert loss.item() == pytest.approx(wanted_sequence.item(), rel=1e-3)


@needs_gpu
def test_a_gpu_trains_and_goes_on_from_a_checkpoint(training_set: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(label: str, done: int, total: int) -> None:
        if done == 7:
            raise StoppedError

    config = with_model(small_config(checkpoint_every=5, device="cuda"), width=32)
    with pytest.raises(StoppedError):
        train(training_set, tmp_path, config, stop)
    result = train(training_set, tmp_path, config)
    assert result.losses[-1]["loss"] < result.losses[0]["loss"]


@needs_gpu
def test_a_gpu_learns_the_ring(tmp_path: Path) -> None:
    known = ring(tmp_path)
    config = replace(SMALL, width=32)
    found = fit(
        known, leave_one_out(known), config, 1, validate=None, precision=torch.bfloat16, device=torch.device("cuda")
    )
    assert found.epochs[-1].loss < 0.5 * found.epochs[0].loss
