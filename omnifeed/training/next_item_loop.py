"""Training for next-item prediction: a function of (data, split, config, seed), the epoch chosen on validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from omnifeed.errors import InputError, OmnifeedError
from omnifeed.export.encode import Ints
from omnifeed.training.next_item import NextItemConfig, NextItemNetwork, next_item_loss
from omnifeed.training.sequences import Attributes, SequenceData, Split

MAX_GRADIENT = 1.0  # norm
FIRST_CHECK = 0.6  # share of the epochs before the first validation


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch's end."""

    epoch: int  # from 1
    loss: float
    score: float | None  # of the validation; None where it was not asked


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained network, in evaluation mode, with the weights of its best epoch."""

    network: NextItemNetwork
    best_epoch: int
    epochs: tuple[Epoch, ...]
    predictions: int  # targets trained on, all epochs together
    cpu_seconds: float  # of this process, validation included


def windows(split: Split, offsets: Ints, length: int) -> tuple[Ints, Ints]:
    """Cut what trains into histories of at most `length` items, so that each position is a target once.

    Returns:
        first int64 [W] (index of the first item in `SequenceData.items`), size int64 [W]; targets stand one later.
    """
    predictions = np.maximum(split.train_stop - 1, 0)
    pieces = -(-predictions // length)
    sequence = np.repeat(np.arange(len(predictions)), pieces)
    back = np.arange(len(sequence)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 0: the latest piece
    stop = predictions[sequence] - back * length
    start = np.maximum(stop - length, 0)
    return offsets[sequence] + start, stop - start


def fit(
    data: SequenceData,
    split: Split,
    config: NextItemConfig,
    seed: int,
    *,
    attributes: Attributes | None = None,
    validate: Callable[[NextItemNetwork], float] | None,
    precision: torch.dtype = torch.float32,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> Fitted:
    """Train one network.

    Args:
        validate: score of a network on the validation's questions, higher is better; None trains all epochs and keeps
            the last (to refit on more data after the number of epochs was chosen).
        precision: of the large products, float32 or bfloat16.
        device: that trains, and holds the network afterwards.

    Raises:
        InputError: nothing to train on.
        OmnifeedError: the loss is no finite number.
    """
    begun = time.process_time()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    first, size = windows(split, data.offsets, config.length)
    if not len(first):
        raise InputError("No sequence has two items to train on.", "Give longer sequences.")
    network = NextItemNetwork(config, data.rows, attributes).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=config.lr,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    plan = [_batches(size, config.batch_tokens, rng) for _ in range(config.epochs)]
    total, step = sum(map(len, plan)), 0
    best: dict[str, torch.Tensor] = {}
    epochs: list[Epoch] = []
    for number, batches in enumerate(plan, start=1):
        network.train()
        losses = 0.0
        for rows in batches:
            history, target = _examples(data, first[rows], size[rows])
            loss = next_item_loss(network, history, target, rng, precision)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT)
            value = loss.item()
            if not math.isfinite(value):
                raise OmnifeedError(f"The loss of step {step + 1} is {value:g}.", "Lower lr or init_std.")
            for group in optimizer.param_groups:
                group["lr"] = config.lr * _schedule(step, total, config.warmup_steps)
            optimizer.step()
            step += 1
            losses += value
            progress("train", step, total)
        score = None
        if number == config.epochs or (validate and number >= FIRST_CHECK * config.epochs and number % 2 == 0):
            network.eval()
            score = validate(network) if validate else float(number)
            if score > max((entry.score for entry in epochs if entry.score is not None), default=-math.inf):
                best = {name: value.detach().clone() for name, value in network.state_dict().items()}
        epochs.append(Epoch(number, losses / len(batches), score))
    network.load_state_dict(best)
    chosen = max((entry for entry in epochs if entry.score is not None), key=lambda entry: entry.score or 0.0)
    return Fitted(
        network.eval(), chosen.epoch, tuple(epochs), int(size.sum()) * config.epochs, time.process_time() - begun
    )


def _schedule(step: int, total: int, warmup: int) -> float:
    """Linear warm-up (at most a tenth of all steps), then linear decay to zero after the last step."""
    warmup = max(1, min(warmup, total // 10))
    return min((step + 1) / warmup, (total - step) / max(total - warmup, 1))


def _batches(size: Ints, tokens: int, rng: np.random.Generator) -> list[Ints]:
    """Windows of similar size, at most `tokens` cells together; batches in random order."""
    order = np.lexsort((rng.random(len(size)), size))
    result, begin = [], 0
    for position, window in enumerate(order):
        if position > begin and (position - begin + 1) * size[window] > tokens:
            result.append(order[begin:position])
            begin = position
    result.append(order[begin:])
    return [result[index] for index in rng.permutation(len(result))]


def _examples(data: SequenceData, first: Ints, size: Ints) -> tuple[Ints, Ints]:
    """Histories and their next items, int64 [B, L], 0 beyond a window's end."""
    place = np.arange(int(size.max()))
    inside = place < size[:, None]
    index = np.where(inside, first[:, None] + place, 0)
    return np.where(inside, data.items[index], 0), np.where(inside, data.items[index + inside], 0)
