"""A packed row says what padded rows say. On a CPU the attention's kernel is replaced by a dense mask where gradients
are asked for: flex_attention has none there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from omnifeed.model import blocks, packed
from omnifeed.model.packed import document_mask, pack, packing, through

CPU = torch.device("cpu")
SIZES = np.array([1, 37, 130, 5, 128, 2, 61])  # 364 tokens, some documents longer than a tile


def trunk(heads: int = 2) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(blocks.CausalBlock(32, heads, 0.0) for _ in range(2))


def dense(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask) -> Tensor:
    """The same attention with a mask of all pairs."""
    size = q.shape[2]
    mask = create_mask(block_mask.mask_mod, None, None, size, size, device=str(q.device))
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def read(layers: nn.ModuleList, is_packed: bool) -> tuple[Tensor, list[Tensor]]:
    """States of the real cells, and the gradients of a loss over them."""
    torch.manual_seed(1)
    cells = int(SIZES.max())
    x = torch.randn(len(SIZES), cells, 32, requires_grad=torch.is_grad_enabled())
    real = torch.arange(cells) < torch.from_numpy(SIZES)[:, None]
    states = through(layers, x, pack(SIZES, cells, 512, CPU) if is_packed else None)[real]
    if not torch.is_grad_enabled():
        return states, []
    gradients = torch.autograd.grad((states * torch.randn_like(states)).sum(), [x, *layers.parameters()])
    return states, [gradients[0][real], *gradients[1:]]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "compiled", lambda: packed._read)


@pytest.mark.usefixtures("uncompiled")
def test_a_packed_row_has_the_states_and_gradients_of_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "flex_attention", dense)
    layers = trunk()
    states, gradients = read(layers, is_packed=True)
    wanted, wanted_gradients = read(layers, is_packed=False)
    torch.testing.assert_close(states, wanted, atol=1e-5, rtol=1e-5)
    for found, gradient in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(found, gradient, atol=1e-4, rtol=1e-4)


def test_one_compiled_block_serves_all_blocks_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole block is captured, with the real flex_attention."""
    counter = CompileCounter()
    compiled = torch.compile(packed._read, backend=counter, fullgraph=True, dynamic=False)
    monkeypatch.setattr(packed, "compiled", lambda: compiled)
    layers = trunk()
    with torch.no_grad():
        states, _ = read(layers, is_packed=True)
        torch.testing.assert_close(states, read(layers, is_packed=False)[0], atol=1e-5, rtol=1e-5)
        for sizes in ([3, 4], [512], [9, 200, 200]):
            through(layers, torch.randn(len(sizes), max(sizes), 32), pack(np.array(sizes), max(sizes), 512, CPU))
    assert counter.frame_count == 1


def test_the_documents_mask_is_what_torch_makes_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for sizes in (SIZES, rng.integers(1, 400, 12), np.array([512]), np.ones(256, np.int64)):
        count = -(-int(sizes.sum()) // packed.BLOCK) * packed.BLOCK
        sizes = np.append(sizes, count - sizes.sum())
        start = np.repeat(np.cumsum(sizes) - sizes, sizes)
        mine = document_mask(start, CPU)
        wanted = create_block_mask(mine.mask_mod, None, None, count, count, device="cpu")
        assert mine.shape == wanted.shape
        torch.testing.assert_close(mine.to_dense(), wanted.to_dense())
        for name in ("kv", "full_kv", "q", "full_q"):
            number, theirs = getattr(mine, f"{name}_num_blocks"), getattr(wanted, f"{name}_num_blocks")
            torch.testing.assert_close(number, theirs)
            for block in range(count // packed.BLOCK):
                lists = [getattr(m, f"{name}_indices")[0, 0, block, : number[0, 0, block]] for m in (mine, wanted)]
                torch.testing.assert_close(*lists)
        document = np.repeat(np.arange(len(sizes)), sizes)
        causal = np.tril(document[:, None] == document)
        assert np.array_equal(create_mask(mine.mask_mod, None, None, count, count, device="cpu")[0, 0].numpy(), causal)


def test_a_row_has_its_fixed_tokens_and_a_multiple_only_where_a_batch_has_more() -> None:
    assert len(pack(np.array([3, 4]), 4, 500, CPU).cell) == 512
    assert len(pack(np.array([300, 300]), 300, 512, CPU).cell) == 1_024
    made = pack(np.array([2, 3]), 3, 128, CPU)
    assert made.cell[:5].tolist() == [0, 1, 3, 4, 5]
    assert made.position[:6].tolist() == [0, 1, 0, 1, 2, 0]
    assert made.token.tolist() == [[0, 1, 1], [2, 3, 4]]


def test_a_cpu_reads_padded_rows_and_so_does_a_gpu_whose_heads_are_too_narrow() -> None:
    there = torch.device("meta")  # stands for whatever is no CPU
    assert packing(trunk(), SIZES, 130, 512) is None
    assert packing(trunk(heads=4).to(there), SIZES, 130, 512) is None
    assert packing(nn.ModuleList(), SIZES, 130, 512) is None
    assert packing(trunk().to(there), SIZES, 130, 512) is not None
