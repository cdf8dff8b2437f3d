"""How fast a GPU trains the trunk and a softmax over the whole catalogue, and how far that is from what it could do.

    python benchmarks/gpu_training.py

Steps are those of `omnifeed/training/next_item_loop.py` in bfloat16, with BLOCKS blocks, heads of 64 and all items in
the loss, on random items. First a grid of width x history x catalogue, every document as long as the history; then, at
each width, documents of a log's lengths (lognormal, median MEDIAN, sigma SIGMA, at most the longest history), read
three ways: padded, documents drawn at random into a batch; bucketed, documents of similar length; packed, the
bucketed batches as one row. The padded blocks are compiled too, for ordinary attention. A batch is TOKENS cells.

Floating point operations of a step, by which utilisation is counted, are those of the products of the forward pass,
three times (forward, and two gradients of each product); nothing computed twice or masked away counts:

    6 * tokens * P  +  6 * width * blocks * sum over documents of l (l + 1)  +  6 * tokens * catalogue * width

P: weights of the linear layers; l: a document's tokens, each of which reads itself and what is before it (two products
of 2 * width operations a pair). Utilisation is held against CEILING: the best of some large bfloat16 matrix products on
the same card. Writes results/gpu_training.json; without a GPU nothing is measured and nothing written.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from record import row, write_result
from torch import nn

from omnifeed.export.encode import Ints
from omnifeed.training import next_item
from omnifeed.training.next_item import NextItemConfig, NextItemNetwork, next_item_loss
from omnifeed.training.next_item_loop import MAX_GRADIENT, _batches

WIDTHS, HISTORIES, CATALOGUES = (256, 512, 1_024), (256, 1_024, 4_096), (100_000, 1_000_000, 10_000_000)
BLOCKS, HEAD, TOKENS = 8, 64, 32_768
MEDIAN, SIGMA = 50, 1.3
STEPS, DOCUMENT_TOKENS = 10, 16 * TOKENS
PRODUCT = 16_384  # rows, columns and depth of the ceiling's matrices
GOAL_UTILISATION, GOAL_PACKED, GOAL_LOSS = 0.5, 3.0, 1e-3
READINGS = ("padded", "bucketed", "packed")

Batch = tuple[Ints, Ints]  # histories and their next items, [B, L], 0 beyond a document's end


def config_of(width: int, history: int, tokens: int = TOKENS, blocks: int = BLOCKS) -> NextItemConfig:
    heads = max(width // HEAD, 1)
    return NextItemConfig(
        width=width, blocks=blocks, heads=heads, dropout=0.1, length=history, batch_tokens=tokens, negatives=0
    )


def documents(sizes: Ints, catalogue: int, rng: np.random.Generator) -> Batch:
    """Random items for documents of these sizes."""
    inside = np.arange(sizes.max()) < sizes[:, None]
    return tuple(np.where(inside, rng.integers(1, catalogue, inside.shape), 0) for _ in range(2))  # type: ignore[return-value]


def log_sizes(tokens: int, longest: int, rng: np.random.Generator) -> Ints:
    """Documents of a log's lengths, about so many tokens together."""
    mean = MEDIAN * np.exp(SIGMA**2 / 2)
    drawn = np.exp(rng.normal(np.log(MEDIAN), SIGMA, max(int(tokens / mean), 1)))
    return np.clip(drawn.astype(np.int64), 1, longest)


def at_random(sizes: Ints, tokens: int, rng: np.random.Generator) -> list[Ints]:
    """Documents in random order, as many in a batch as fit its cells padded to the longest."""
    result: list[Ints] = []
    batch: list[int] = []
    for document in rng.permutation(len(sizes)):
        if batch and (len(batch) + 1) * sizes[[*batch, document]].max() > tokens:
            result.append(np.array(batch))
            batch = []
        batch.append(document)
    return [*result, np.array(batch)]


def operations(network: NextItemNetwork, sizes: Ints) -> float:
    """Of a step on documents of these sizes; see above."""
    config, tokens = network.config, float(sizes.sum())
    weights = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
    pairs = config.blocks * float((sizes * (sizes + 1)).sum())
    return 6 * (tokens * weights + config.width * pairs + tokens * network.ids.num_embeddings * config.width)


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def ceiling(device: torch.device, size: int = PRODUCT, tries: int = 20) -> float:
    """Operations a second of a large bfloat16 matrix product, the best of some."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(seconds(device, lambda: left @ right) for _ in range(tries))


@contextmanager
def padded(network: NextItemNetwork) -> Iterator[None]:
    """Blocks that read padded rows, compiled on a GPU as the packed ones are."""
    if network.ids.weight.device.type == "cuda":
        for block in network.blocks:
            block.compile(dynamic=True)
    with mock.patch.object(next_item, "packing", return_value=None):
        yield


def train(network: NextItemNetwork, batches: list[Batch]) -> float:
    """Seconds of a step on each of these batches, the second time: the first compiles."""
    device = network.ids.weight.device
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    rng = np.random.default_rng(0)

    def step(history: Ints, target: Ints) -> None:
        loss = next_item_loss(network, history, target, rng, torch.bfloat16)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT)
        optimizer.step()

    def epoch() -> None:
        for batch in batches:
            step(*batch)

    return [seconds(device, epoch) for _ in range(2)][1]


def cell(device: torch.device, config: NextItemConfig, catalogue: int, steps: int = STEPS) -> dict[str, float]:
    """Tokens and operations a second where every document is as long as the history, and the peak of memory."""
    sizes = np.full(max(config.batch_tokens // config.length, 1), config.length)
    batch = documents(sizes, catalogue, np.random.default_rng(0))
    with device:
        network = NextItemNetwork(config, catalogue, None)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    spent = train(network, [batch] * steps)
    found = {
        "tokens_per_second": steps * float(sizes.sum()) / spent,
        "operations_per_second": steps * operations(network, sizes) / spent,
    }
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def reading(
    device: torch.device, config: NextItemConfig, catalogue: int, how: str, tokens: int = DOCUMENT_TOKENS
) -> float:
    """Real tokens a second on documents of a log's lengths, padding not counted."""
    rng = np.random.default_rng(0)
    sizes = log_sizes(tokens, config.length, rng)
    plan = (at_random if how == "padded" else _batches)(sizes, config.batch_tokens, rng)
    with device:
        network = NextItemNetwork(config, catalogue, None)
    batches = [documents(sizes[rows], catalogue, rng) for rows in plan]
    if how == "packed":
        return float(sizes.sum()) / train(network, batches)
    with padded(network):
        return float(sizes.sum()) / train(network, batches)


def disagreement(device: torch.device, config: NextItemConfig, catalogue: int) -> float:
    """How far the device's loss in bfloat16 is from a CPU's in float32 on the same batch, relative."""
    rng = np.random.default_rng(0)
    batch = documents(log_sizes(config.batch_tokens, config.length, rng), catalogue, rng)
    network = NextItemNetwork(config, catalogue, None).eval()
    there = copy.deepcopy(network).to(device)
    with torch.no_grad():
        wanted = next_item_loss(network, *batch, np.random.default_rng(0), torch.float32).item()
        return abs(next_item_loss(there, *batch, np.random.default_rng(0), torch.bfloat16).item() / wanted - 1)


def measure(device: torch.device) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows of the result, and the sizes that are more than the card's memory."""
    top = ceiling(device)
    rows = [row("ceiling_operations_per_second", top)]
    too_large: list[str] = []
    for width in WIDTHS:
        torch.compiler.reset()  # kernels of another width would count against the number kept
        for history, catalogue in itertools.product(HISTORIES, CATALOGUES):
            labels = {"width": width, "history": history, "catalogue": catalogue}
            try:
                found = cell(device, config_of(width, history), catalogue)
            except torch.OutOfMemoryError:
                too_large.append(f"width {width:,}, history {history:,}, catalogue {catalogue:,}")
                found = {}
            else:
                found["utilisation"] = found["operations_per_second"] / top
            torch.cuda.empty_cache()
            rows += [row(name, value, **labels) for name, value in found.items()]
            print(labels, {name: f"{value:.4g}" for name, value in found.items()} or "too large", flush=True)
        for how in READINGS:
            labels = {"width": width, "history": HISTORIES[-1], "catalogue": CATALOGUES[0]}
            speed = reading(device, config_of(width, HISTORIES[-1]), CATALOGUES[0], how)
            rows.append(row("tokens_per_second", speed, reading=how, **labels))
            print(labels, how, f"{speed:,.0f} tokens/s", flush=True)
    apart = disagreement(device, config_of(256, 256, 4_096), CATALOGUES[0])
    return [*rows, row("loss_disagreement", apart)], too_large


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("No GPU that torch can use is here: nothing was measured, and no result written.")
    rows, too_large = measure(torch.device("cuda"))
    write_result(
        "gpu_training",
        f"Training on a GPU ({torch.cuda.get_device_name()}): tokens a second, utilisation of the card, memory",
        rows,
        data="random items; documents as long as the history, or of lognormal lengths",
        seeds=[0],
        notes=[
            f"Goals: utilisation of {GOAL_UTILISATION:g} at width 1,024 and history 4,096; packed {GOAL_PACKED:g} "
            f"times padded at a log's lengths; a loss within {GOAL_LOSS:g} of a CPU's.",
            f"A log's lengths: lognormal, median {MEDIAN}, sigma {SIGMA:g}, at most {HISTORIES[-1]:,}; drawn, not "
            "measured.",
            "Utilisation counts the operations of the products by the formula of the script, against the ceiling, the "
            f"best product of two {PRODUCT:,} square matrices in bfloat16 on the same card.",
            f"More than the card's memory: {'; '.join(too_large) or 'none'}.",
        ],
    )


if __name__ == "__main__":
    main()
