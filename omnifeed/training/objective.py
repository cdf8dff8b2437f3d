"""The joint loss of a batch: retrieval and ranking over one trunk pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omnifeed.model.losses import sampled_softmax, task_losses
from omnifeed.model.network import Network
from omnifeed.model.packed import packing
from omnifeed.model.parts import INPUTS
from omnifeed.training.batching import Batch
from omnifeed.training.dataset import Items


@dataclass(frozen=True, slots=True)
class Forward:
    """What the network says of a batch."""

    user_vec: Tensor  # [R, d]
    logits: Tensor  # [R, K, tasks], uncalibrated
    member_logits: Tensor  # [R, K, members, tasks], whose mean `logits` is
    item_key: Tensor  # [M, d]


@dataclass(frozen=True, slots=True)
class Loss:
    """Scalars with gradient, and the tasks' losses [tasks] without."""

    total: Tensor
    retrieval: Tensor
    tasks: Tensor


class ItemTable:
    """The item encoder's inputs of the whole catalogue as tensors, from which a batch takes its rows."""

    def __init__(self, items: Items, device: torch.device) -> None:
        self.inputs = {name: torch.from_numpy(items.inputs[name]).to(device) for name in INPUTS["item_encoder"]}

    def encode(self, network: Network, rows: Tensor) -> tuple[Tensor, Tensor]:
        """item_vec and item_key of these rows, [M, d] each."""
        answer: tuple[Tensor, Tensor] = network.item_encoder(
            *(value.index_select(0, rows) for value in self.inputs.values())
        )
        return answer


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None  # type: ignore[attr-defined]


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """The identity, with the gradient multiplied by `scale` on its way back."""
    if scale == 1:
        return x
    result: Tensor = _ScaleGradient.apply(x, scale)  # type: ignore[no-untyped-call]
    return result


def forward(
    network: Network, table: ItemTable, batch: Batch, trunk_gradient: float = 1.0, row_tokens: int | None = None
) -> Forward:
    """Run the network over a batch: items once, the trunk once, then every request and its candidates.

    Args:
        trunk_gradient: scale of the ranker's gradient into the trunk and the request's state.
        row_tokens: of the packed row in which a GPU's trunk reads the batch; None to read it padded.
    """
    device = next(iter(table.inputs.values())).device

    def tensor(array: np.ndarray) -> Tensor:  # type: ignore[type-arg]
        return torch.from_numpy(array).to(device)

    def gather(source: Tensor, index: np.ndarray) -> Tensor:  # type: ignore[type-arg]
        return torch.nn.functional.embedding(tensor(index), source)

    users, ranker = network.user_encoder, network.ranker
    packed = packing(users.blocks, batch.size, batch.hist_item.shape[1] + 1, row_tokens) if row_tokens else None
    item_vec, item_key = table.encode(network, tensor(batch.items))
    states = users.trunk(
        gather(item_vec, batch.hist_item),
        tensor(batch.hist_action),
        tensor(batch.hist_scenario),
        tensor(batch.hist_gap),
        tensor(batch.user_bucket),
        tensor(batch.profile),
        packed,
    )
    row, mask = tensor(batch.row), tensor(batch.mask)
    scenario = users.hide_scenario(tensor(batch.scenario))
    last = torch.nn.functional.embedding(row * states.shape[1] + tensor(batch.last), states.flatten(0, 1))
    user_vec, request_state = users.read(
        last,
        users.reader.memory(states).index_select(0, row),
        mask,
        tensor(batch.user_dense),
        scenario,
        tensor(batch.now_gap),
        tensor(batch.hour),
        tensor(batch.query),
    )
    member_logits = ranker.member_logits(
        ranker.reader.memory(scale_gradient(states, trunk_gradient)).index_select(0, row),
        mask,
        scale_gradient(request_state, trunk_gradient),
        scenario,
        gather(item_vec, batch.cand_item),
        tensor(batch.cand_dense),
    ).float()
    return Forward(user_vec, member_logits.mean(dim=2), member_logits, item_key)


def joint_loss(
    network: Network,
    output: Forward,
    batch: Batch,
    retrieval_weight: float,
    ranking_weight: float,
    share: Tensor | None = None,
) -> Loss:
    """Sampled softmax of the engaged items plus the sum of the tasks' cross-entropies, each with its weight.

    Args:
        share: [1 + tasks], what this batch's means count where it is a part of a larger one; by default all.
    """
    device = output.user_vec.device

    def tensor(array: np.ndarray) -> Tensor:  # type: ignore[type-arg]
        return torch.from_numpy(array).to(device)

    retrieval = sampled_softmax(
        output.user_vec,
        tensor(batch.positive_request),
        torch.nn.functional.embedding(tensor(batch.positive_item), output.item_key),
        tensor(batch.positive_weight),
        torch.nn.functional.embedding(tensor(batch.negatives), output.item_key),
        tensor(batch.negative_mask),
        network.config.temperature,
    )
    labels = tensor(batch.labels)[:, :, None].expand(output.member_logits.shape)
    tasks = task_losses(output.member_logits, labels, network.ranker.parents)
    if share is not None:
        share = share.to(device)
        retrieval, tasks = retrieval * share[0], tasks * share[1:]
    total = retrieval_weight * retrieval + ranking_weight * tasks.sum()
    return Loss(total, retrieval.detach(), tasks.detach())
