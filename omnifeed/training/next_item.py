"""Next-item prediction by the trunk's own blocks, for logs that hold nothing but sequences of items.

The unified network reads requests, actions and clocks that such a log lacks. What is left of it here: the item's
table and attributes, the causal gated blocks, and retrieval by cosine. Item vectors enter without a norm: the vector
of an item that was rarely seen is short, and so it says little. Every prefix of a sequence predicts the item after it,
in one pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from omnifeed.model.blocks import CausalBlock, embedding, split_heads, unit
from omnifeed.model.encoders import forget
from omnifeed.model.packed import Packing, packing, through
from omnifeed.training.full_softmax import full_softmax
from omnifeed.training.sequences import Attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class NextItemConfig:
    """Network and training; the defaults are those of a quick trial, an epoch of 150,000 targets in 5 CPU-seconds."""

    model: str = "trunk"  # or sasrec: plain blocks, dot products (Kang & McAuley 2018, with a softmax loss)
    width: int = 64
    blocks: int = 1
    heads: int = 2
    dropout: float = 0.5
    item_dropout: float = 0.15  # share of the history's items replaced by "unknown" in training
    id_dropout: float = 0.0  # share of item-id embeddings left out in training, where there are attributes
    temperature: float = 0.07  # of the cosine logits
    init_std: float = 0.03
    length: int = 50  # items of a history, the latest
    epochs: int = 20
    batch_tokens: int = 2_048  # padding included
    negatives: int = 1_024  # drawn uniformly a step, beside the step's own targets; 0: all other items
    lr: float = 4e-3
    weight_decay: float = 0.01
    beta2: float = 0.98
    warmup_steps: int = 60


class PlainBlock(nn.Module):
    """SASRec's block: causal self-attention and a ReLU feed-forward of the same width, pre-norm, no gate."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes [B, T, width] to [B, T, width]; row t reads rows 0..t only."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(self.norm(x)).chunk(3, dim=-1))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        result: Tensor = x + self.dropout(self.feed_forward(x))
        return result


class NextItemNetwork(nn.Module):
    """A table of items and a trunk over their sequences.

    Args:
        rows: of the item table, the unknown item (row 0) included.
        attributes: their mean embedding joins the id's; None for ids alone.
    """

    values: Tensor
    offsets: Tensor

    def __init__(self, config: NextItemConfig, rows: int, attributes: Attributes | None) -> None:
        super().__init__()
        self.config = config
        width, std = config.width, config.init_std
        self.ids = embedding(rows, width, std)
        self.attributes = None
        if attributes is not None:
            self.attributes = nn.EmbeddingBag(attributes.count, width, mode="mean", include_last_offset=True)
            nn.init.normal_(self.attributes.weight, std=std)
            self.register_buffer("values", torch.from_numpy(attributes.values), persistent=False)
            self.register_buffer("offsets", torch.from_numpy(attributes.offsets), persistent=False)
        self.positions = nn.Parameter(torch.randn(config.length, width) * std)
        self.plain = config.model == "sasrec"
        block = PlainBlock if self.plain else CausalBlock
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(block(width, config.heads, config.dropout) for _ in range(config.blocks))
        self.out_norm = nn.LayerNorm(width)
        self.retrieval = nn.Identity() if self.plain else nn.Linear(width, width)
        if isinstance(self.retrieval, nn.Linear):
            nn.init.eye_(self.retrieval.weight)
            nn.init.zeros_(self.retrieval.bias)

    @property
    def temperature(self) -> float:
        """Divides the product of a user's vector and an item's key."""
        return 1.0 if self.plain else self.config.temperature

    def items(self) -> Tensor:
        """Raw vectors of all items, [rows, width]."""
        if self.attributes is None:
            return self.ids.weight
        rows = torch.arange(self.ids.num_embeddings, device=self.ids.weight.device)
        described: Tensor = self.attributes(self.values, self.offsets)
        result: Tensor = self.ids(forget(rows, self.config.id_dropout, self.training)) + described
        return result

    def keys(self, items: Tensor) -> Tensor:
        """What a user's vector is multiplied with, [N, width] from raw vectors: of unit length, but for SASRec."""
        return items if self.plain else unit(items)

    def users(self, items: Tensor, history: Tensor, packed: Packing | None = None) -> Tensor:
        """The user's vector after each item of left-aligned histories.

        Args:
            items: [rows, width], `self.items()`.
            history: int64 [B, L], item rows, 0 beyond the end.
            packed: how the blocks read them; by default as they are.

        Returns:
            [B, L, width], of unit length but for SASRec.
        """
        seen = forget(history.flatten(), self.config.item_dropout, self.training).view_as(history)
        x = functional.embedding(seen, items) * math.sqrt(self.config.width) + self.positions[: history.shape[1]]
        x = self.dropout(x)
        x = through(self.blocks, x, packed)
        x = self.retrieval(self.out_norm(x)).float()
        return x if self.plain else unit(x)


def next_item_loss(
    network: NextItemNetwork, history: np.ndarray, target: np.ndarray, rng: np.random.Generator, precision: torch.dtype
) -> Tensor:
    """Mean cross-entropy of every position's next item.

    The partition sum has two strata: the targets of the batch, all of them, and items drawn uniformly from the rest,
    each of which stands for (rest / drawn) items. So it is unbiased, whatever the targets' popularity, and exact where
    nothing is left to draw.

    Args:
        history, target: int64 [B, L]; target is 0 where there is none to predict.
        rng: of the draw.
        precision: of the large products, in the trunk and the softmax; the rest is in float32.
    """
    wanted = target > 0
    chosen, place = np.unique(target[wanted], return_inverse=True)
    others = np.ones(network.ids.num_embeddings, bool)
    others[0] = others[chosen] = False
    rest = np.flatnonzero(others)
    drawn = rest
    if 0 < network.config.negatives < len(rest):
        drawn = rng.choice(rest, network.config.negatives, replace=False, shuffle=False)
    offset = np.zeros(len(chosen) + len(drawn), np.float32)
    offset[len(chosen) :] = math.log(len(rest) / len(drawn)) if len(drawn) else 0

    device = network.ids.weight.device
    items = network.items()
    packed = packing(network.blocks, wanted.sum(1), history.shape[1], network.config.batch_tokens)
    with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
        users = network.users(items, torch.from_numpy(history).to(device), packed)
    columns = torch.from_numpy(np.concatenate([chosen, drawn])).to(device)
    return full_softmax(
        users.flatten(0, 1).index_select(0, torch.from_numpy(np.flatnonzero(wanted)).to(device)),
        network.keys(functional.embedding(columns, items)),
        torch.from_numpy(place.reshape(-1)).to(device),
        torch.from_numpy(offset).to(device),
        network.temperature,
        precision,
    )
