"""How a GPU reads histories of many lengths: one after the other in one row of a fixed number of tokens.

The blocks alone see the row. Batches, embeddings and heads are those of a CPU, where sequences of similar length are
padded and read by ordinary attention (eleven times faster there than a mask over a packed row); so both devices have
the same loss on the same batch. On a GPU the row's one shape is compiled once, its attention skips whatever lies in
another document, and linear layers see no padding but the row's end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from omnifeed.export.encode import Ints
from omnifeed.model.blocks import CausalBlock

BLOCK = 128  # tokens of a tile of the attention's mask
HEAD_WIDTH = 16  # of the compiled attention, at least


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the tokens of B padded sequences, T cells each, stand in a row of N."""

    cell: Tensor  # int64 [N], that a token comes from; the row's end repeats cell 0, and nobody reads it
    token: Tensor  # int64 [B, T], that a cell's state comes from; padding has the state of its sequence's last token
    position: Tensor  # float32 [N], of a token in its document, from 0
    documents: BlockMask  # a token reads its own document up to itself


def packing(blocks: nn.ModuleList, sizes: Ints, cells: int, tokens: int) -> Packing | None:
    """How these blocks read a batch; None: as it is, padded.

    Args:
        sizes: [B], tokens of each sequence, at least 1.
        cells: T, tokens of the longest.
        tokens: N, of the row, rounded up to whole tiles; a multiple of it where the sequences have more together.
    """
    first = next(iter(blocks), None)
    if not isinstance(first, CausalBlock) or first.qkv.in_features // first.heads < HEAD_WIDTH:
        return None
    device = first.qkv.weight.device
    return None if device.type == "cpu" else pack(sizes, cells, tokens, device)


def pack(sizes: Ints, cells: int, tokens: int, device: torch.device) -> Packing:
    """The row of these sequences; see `packing`."""
    total = int(sizes.sum())
    row = -(-tokens // BLOCK) * BLOCK
    count = -(-total // row) * row
    size = np.concatenate([sizes, np.ones(count - total, np.int64)])  # the row's end: documents of one token
    start = np.repeat(np.cumsum(size) - size, size)
    position = np.arange(count) - start
    cell = np.repeat(np.arange(len(size)) * cells, size) + position
    cell[total:] = 0
    token = (np.cumsum(sizes) - sizes)[:, None] + np.minimum(np.arange(cells), sizes[:, None] - 1)
    return Packing(
        torch.from_numpy(cell).to(device),
        torch.from_numpy(token).to(device),
        torch.from_numpy(position.astype(np.float32)).to(device),
        document_mask(start, device),
    )


def document_mask(start: Ints, device: torch.device) -> BlockMask:
    """A causal mask within documents that follow each other; torch's own way to it looks at all N x N pairs.

    Args:
        start: int64 [N], of each token the first token of its document; N is a multiple of BLOCK.
    """
    block = np.arange(len(start) // BLOCK)
    first = start[::BLOCK, None] // BLOCK  # the first block that any token of a block reads
    whole = -(-start[BLOCK - 1 :: BLOCK, None] // BLOCK)  # the first that all of them read, and read whole
    full = (block >= whole) & (block < block[:, None])
    part = (block >= first) & (block <= block[:, None]) & ~full
    beginning = torch.from_numpy(start.astype(np.int32)).to(device)

    def reads(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= beginning[query])

    return BlockMask.from_kv_blocks(*_listed(part, device), *_listed(full, device), BLOCK_SIZE=BLOCK, mask_mod=reads)


def _listed(grid: npt.NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """How many columns of each row are true, int32 [1, 1, Q], and these columns before the others, [1, 1, Q, K]."""
    order = np.argsort(~grid, axis=1, kind="stable").astype(np.int32)
    number = grid.sum(1, dtype=np.int32)
    return torch.from_numpy(number[None, None]).to(device), torch.from_numpy(order[None, None]).to(device)


def through(blocks: nn.ModuleList, x: Tensor, packed: Packing | None) -> Tensor:
    """The blocks over padded sequences: [B, T, width] to [B, T, width]."""
    if packed is None:
        for block in blocks:
            x = block(x)
        return x
    row = nn.functional.embedding(packed.cell, x.flatten(0, 1))[None]
    for block in blocks:
        row = compiled()(block, row, packed.position, packed.documents)
    return nn.functional.embedding(packed.token, row[0])


@cache
def compiled() -> Callable[[nn.Module, Tensor, Tensor, BlockMask], Tensor]:
    """A block as fused kernels: made at the first call, the same for all blocks of one size and all steps."""
    torch._dynamo.config.optimize_ddp = False  # a block is one graph already; several processes would have it cut up
    return torch.compile(_read, fullgraph=True, dynamic=False)


def _read(block: nn.Module, row: Tensor, position: Tensor, documents: BlockMask) -> Tensor:
    result: Tensor = block(row, position, documents)
    return result
