"""Softmax over a catalogue whose logits are never all in memory.

Rows are taken in blocks, on a CPU small enough to stay in its cache, on a GPU large enough to be worth reading the
catalogue for; a block's logits become odds and then gradients before the next one starts. The shift that keeps the
exponentials finite is the Cauchy-Schwarz bound of a row's logits, known before they are, so that it and the columns'
offsets ride along as two more dimensions of the product, and the sum over the catalogue as one more of the next: a
block is one product, one exponential, and two products for the gradients. Products run in bfloat16 where the
processor multiplies it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK_ROWS = 128  # on a CPU, and at least
BLOCK_CELLS = 2**30  # rows x columns of a block on a GPU, 2 GiB in bfloat16
ALIGNMENT = 8  # columns, 16 bytes in bfloat16, of which a GPU's fast products want a multiple


def sizes(device: torch.device, columns: int, width: int) -> tuple[int, int]:
    """Rows of a block of logits, and the width at which the products' factors are kept."""
    if device.type == "cpu":
        return BLOCK_ROWS, width
    return max(BLOCK_ROWS, BLOCK_CELLS // columns), -(-width // ALIGNMENT) * ALIGNMENT


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, user: Tensor, key: Tensor, target: Tensor, offset: Tensor, temperature: float, precision: torch.dtype
    ) -> Tensor:
        rows, width = user.shape
        scaled = user / temperature
        bound = (scaled.norm(dim=1, keepdim=True) * key.norm(dim=1).amax() + offset.amax()).to(precision)
        block, wide = sizes(user.device, len(key), width + 2)
        left = user.new_zeros(rows, wide, dtype=precision)
        table = key.new_zeros(len(key), wide, dtype=precision)
        left[:, :width], left[:, width], left[:, width + 1] = scaled, 1, -bound[:, 0]
        table[:, :width], table[:, width], table[:, width + 1] = key, offset, 1
        chosen = key[target]
        total = bound.double().sum() - (chosen * scaled).sum().double() - offset[target].sum()
        user_gradient = torch.empty_like(user)
        key_gradient = torch.zeros_like(key)
        for start in range(0, rows, block):
            part = slice(start, start + block)
            odds = (left[part] @ table.T).exp_()
            sums = (odds @ table).float()
            mass = 1 / sums[:, width + 1, None]
            total -= mass.log().sum()
            user_gradient[part] = sums[:, :width] * mass
            key_gradient += odds.T @ (scaled[part] * mass).to(precision)
        user_gradient -= chosen
        key_gradient.index_add_(0, target, scaled, alpha=-1)
        ctx.save_for_backward(user_gradient.div_(temperature * rows), key_gradient.div_(rows))
        loss: Tensor = (total / rows).to(user.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        user_gradient, key_gradient = ctx.saved_tensors
        return user_gradient * gradient, key_gradient * gradient, None, None, None, None


def full_softmax(
    user: Tensor,
    key: Tensor,
    target: Tensor,
    offset: Tensor,
    temperature: float,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Mean over rows of -log softmax(user · keys / temperature + offset) at the row's target.

    Args:
        user: float32 [N, d]. key: float32 [V, d].
        target: int64 [N], rows of `key`.
        offset: float32 [V], constants: the log of how many items a key stands for.
        temperature: divides the dot products.
        precision: of the large products.

    Returns:
        A scalar, float32; infinite where the shift of a row is so far above its logits that all odds vanish.
    """
    answer: Tensor = _FullSoftmax.apply(user, key, target, offset, temperature, precision)  # type: ignore[no-untyped-call]
    return answer
