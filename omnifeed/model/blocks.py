"""The layers that the trunk and the heads are built from.

Plain PyTorch that exports to ONNX: no nested tensors, no custom kernels. Sublayers are pre-norm and gated by their
input (LiGR, Borisyuk et al. 2025, eq. 3-5), feed-forwards are SwiGLU (Shazeer 2020), positions enter the trunk by
rotation (Su et al. 2021), so a window of a longer history reads like the history itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from omnifeed.export.encode import ACTIONS

SIMILARITY = 10.0  # see StateAttention.start_as_similarity
TRACES = len(ACTIONS) + 1  # channels of a state that hold the event's action, one-hot
TRACE_SCALE = 6.0  # of these channels, so that their means vary by about one


class SwiGLU(nn.Module):
    """W2 (SiLU(W1 x) * W3 x), hidden width twice the input's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes [..., width] to [..., width]."""
        gate, value = self.inner(x).chunk(2, dim=-1)
        result: Tensor = self.outer(functional.silu(gate) * value)
        return result


class GatedFeedForward(nn.Module):
    """x + sigmoid(G x) * SwiGLU(norm(x))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.feed_forward = SwiGLU(width)
        self.gate = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes [..., width] to [..., width]."""
        result: Tensor = x + self.dropout(torch.sigmoid(self.gate(x)) * self.feed_forward(self.norm(x)))
        return result


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads * D] to [B, heads, T, D]."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def rotate(x: Tensor, frequencies: Tensor, position: Tensor | None = None) -> Tensor:
    """Rotary position of each row: pairs (i, i + D/2) turned by position * frequency.

    Angles are of the frequencies' precision: bfloat16 knows no odd position above 256.

    Args:
        x: [B, heads, T, D].
        frequencies: [D/2], radians a position.
        position: [T]; by default 0..T-1.
    """
    if position is None:
        position = torch.arange(x.shape[2], device=x.device, dtype=frequencies.dtype)
    angle = position[:, None] * frequencies
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class CausalBlock(nn.Module):
    """One trunk block: gated causal self-attention, then a gated feed-forward."""

    frequencies: Tensor

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = GatedFeedForward(width, dropout)
        half = width // heads // 2
        frequencies = torch.pow(10_000.0, -torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor, position: Tensor | None = None, documents: BlockMask | None = None) -> Tensor:
        """Shapes [B, T, width] to [B, T, width]; row t reads rows 0..t only.

        Args:
            position: [T] and documents: of a row that holds several sequences (`omnifeed.model.packed`).
        """
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm(x)).chunk(3, dim=-1))
        q, k = rotate(q, self.frequencies, position), rotate(k, self.frequencies, position)
        if documents is None:
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            attended = flex_attention(q, k, v, block_mask=documents)
        merged = attended.transpose(1, 2).flatten(2)
        x = x + self.dropout(torch.sigmoid(self.gate(x)) * self.out(merged))
        result: Tensor = self.feed_forward(x)
        return result


class StateAttention(nn.Module):
    """Queries read the trunk's states; they never read each other.

    The last TRACES channels of a state are not learned: they say what the user did. Each head hands back their mean
    under its attention, so what a user did with items like the candidate is a feature from the first step on.
    Recency is a learned power law: head h adds -s_h log(1 + r) to the logit of the r-th most recent state, and a
    learned constant to that of the user prefix (position 0).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.trace = nn.Linear(heads * TRACES, width, bias=False)
        self.gate = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.slope = nn.Parameter(torch.linspace(0.0, 1.0, heads))
        self.prefix = nn.Parameter(torch.zeros(heads))
        self.feed_forward = GatedFeedForward(width, dropout)

    def start_as_similarity(self) -> None:
        """Initialise queries and keys by one orthogonal matrix, so that a query reads the states that are like it.

        Equal vectors of unit variance have the logit SIMILARITY in every head. From a random start a target attention
        learns on small logs what is like what only after it has learned the items by heart.
        """
        width = self.query.in_features
        gain = (SIMILARITY / (width // self.heads) ** 0.5) ** 0.5
        nn.init.orthogonal_(self.query.weight, gain)
        with torch.no_grad():
            self.key_value.weight[:width] = self.query.weight
            self.key_value.weight[:width, -TRACES:] = 0

    def memory(self, states: Tensor) -> Tensor:
        """Keys, values and traces of states: [..., width] to [..., 2 * width + TRACES]."""
        return torch.cat([self.key_value(states), states[..., -TRACES:]], dim=-1)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One read.

        Args:
            x: [R, K, width] queries.
            memory: [R, T, 2 * width + TRACES], `self.memory` of the states.
            mask: bool [R, T], which states a row's queries may read; position 0 is always readable.

        Returns:
            [R, K, width], and the mean traces [R, K, heads * TRACES].
        """
        q = split_heads(self.query(self.query_norm(x)), self.heads)
        width = x.shape[2]
        k, v = (split_heads(part, self.heads) for part in (memory[..., :width], memory[..., width : 2 * width]))
        index = torch.arange(mask.shape[1], device=mask.device)
        rank = (last_index(mask)[:, None] - index[None, :]).clamp(min=0).to(x.dtype)
        recency = -self.slope[None, :, None] * torch.log1p(rank)[:, None, :]
        bias = torch.where((index == 0)[None, None, :], self.prefix[None, :, None], recency)
        bias = bias.masked_fill(~mask[:, None, :], -1e9)[:, :, None, :]
        logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5) + bias
        weights = torch.softmax(logits, dim=-1)
        merged = (weights @ v).transpose(1, 2).flatten(2)
        traces = (weights @ memory[:, None, :, 2 * width :]).transpose(1, 2).flatten(2)
        x = x + self.dropout(torch.sigmoid(self.gate(x)) * (self.out(merged) + self.trace(traces)))
        return self.feed_forward(x), traces


def last_index(mask: Tensor) -> Tensor:
    """Index of the last true entry of each row, int64 [R]; mask is bool [R, T]."""
    index = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, index[None, :], 0).amax(dim=1)


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to length one, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


def embedding(rows: int, width: int, std: float) -> nn.Embedding:
    """A table with entries from a normal of this standard deviation; row 0, the unknown, starts at zero."""
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=std)
    with torch.no_grad():
        table.weight[0] = 0
    return table
