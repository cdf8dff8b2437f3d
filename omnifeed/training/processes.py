"""One training in several processes: the trunk is replicated, a step's sequences are divided, gradients add up.

A step's loss is a mean over the whole batch, wherever its rows are: every process counts what its own terms rest on
and weighs its means by its share of the counts, so the sum over the processes is the loss that one process would have.
Their number is no hyperparameter, and a run may go on with another number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from omnifeed.config import TrainingConfig
from omnifeed.export.encode import Ints
from omnifeed.model.embedding import shard, sharded
from omnifeed.model.network import Network
from omnifeed.training.batching import Batch
from omnifeed.training.objective import ItemTable, Loss, forward, joint_loss


@dataclass(frozen=True, slots=True)
class Processes:
    """Who this process is among those of one training."""

    rank: int = 0
    count: int = 1
    tables: dist.ProcessGroup | None = None  # for the sharded tables, apart from the gradients' traffic

    def rows(self, rows: Ints) -> Ints:
        """This process's part of a batch's sequences; one of them, which is to count nothing, where it has none."""
        own = rows[self.rank :: self.count]
        return own if len(own) else rows[:1]

    def idle(self, rows: Ints) -> bool:
        """Whether the batch has no sequence for this process."""
        return self.rank >= len(rows)

    def share(self, batch: Batch, idle: bool) -> Tensor | None:
        """What this process's means count in those of the whole batch: retrieval, then the tasks; None if all."""
        if self.count == 1:
            return None
        known = (batch.labels >= 0).sum(axis=(0, 1))
        own = torch.tensor([float(batch.positive_weight.sum()), *known.tolist()]) * (0.0 if idle else 1.0)
        return own / self.sum(own).clamp(min=1e-6)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count == 1:
            return values
        total = values.to(_device(), copy=True)
        dist.all_reduce(total)
        return total.to(values.device)


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started together with this one, or this one alone."""
    if not dist.is_torchelastic_launched():
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), dist.new_group())
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


class Step(nn.Module):
    """The joint loss of a batch as a module, as DistributedDataParallel wants it."""

    def __init__(self, network: Network, table: ItemTable, settings: TrainingConfig, processes: Processes) -> None:
        super().__init__()
        self.network, self.table, self.settings = network, table, settings
        self.row_tokens = settings.batch_tokens
        if processes.count > 1:  # its part of a batch, rounded up to a sequence
            self.row_tokens = settings.batch_tokens // processes.count + 2 * network.spec.history_length + 1

    def forward(self, batch: Batch, share: Tensor | None) -> Loss:
        """See `omnifeed.training.objective.joint_loss`; a GPU multiplies in bfloat16, its weights are in float32."""
        device = next(self.network.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            output = forward(self.network, self.table, batch, self.settings.ranking_trunk_gradient, self.row_tokens)
        weights = self.settings.retrieval_weight, self.settings.ranking_weight
        return joint_loss(self.network, output, batch, *weights, share)


def parallel(step: Step, processes: Processes) -> nn.Module:
    """The step with large tables shared out and all other gradients summed over the processes."""
    if processes.tables is None:
        return step
    shard(step.network, processes.tables, step.settings.shard_rows)
    ignored = [f"network.{name}" for name in sharded(step.network)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(step, ignored)  # type: ignore[no-untyped-call]
    model = DistributedDataParallel(step, forward_sync_buffers=False)
    model.register_comm_hook(None, lambda _, bucket: _added_up(bucket.buffer()))
    return model


def _added_up(gradient: Tensor) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(gradient, async_op=True)
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return summed


def clip_gradient(network: Network, processes: Processes, limit: float) -> Tensor:
    """Scale the gradient of the whole network to a norm of at most `limit`; returns the norm it had."""
    tables = sharded(network)
    own = [p.grad for name, p in network.named_parameters() if p.grad is not None and name not in tables]
    norm = get_total_norm(own)
    if tables:
        parts = [module.weight.grad for module in tables.values() if module.weight.grad is not None]
        norm = torch.sqrt(norm.square() + processes.sum(get_total_norm(parts).square()))
    clip_grads_with_norm_(network.parameters(), limit, norm)
    return norm
