"""Omnifeed's side of sequence_speed.py: one epoch of the loop that trains, its start and its end included."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from sequence_side import Measured, Setting, answer

from omnifeed.export.encode import Ints
from omnifeed.training import next_item_loop
from omnifeed.training.next_item import NextItemConfig
from omnifeed.training.sequences import SequenceData, Split, leave_one_out, load_sequences

EXAMPLES = next_item_loop._examples


def measure(data: SequenceData, split: Split, setting: Setting) -> Measured:
    """Train one epoch, and count what its batches hold."""
    sums = Measured()

    def counted(*given: Any) -> tuple[Ints, Ints]:
        history, target = EXAMPLES(*given)
        if setting.padded:
            room = ((0, 0), (0, setting.length - history.shape[1]))
            history, target = np.pad(history, room), np.pad(target, room)
        sums.steps += 1
        sums.targets += int(np.count_nonzero(target))
        sums.filled += int(np.count_nonzero(history))
        sums.cells += history.size
        return history, target

    config = NextItemConfig(
        model=setting.model,
        width=setting.width,
        blocks=setting.blocks,
        heads=setting.heads,
        length=setting.length,
        dropout=setting.dropout,
        lr=setting.lr,
        negatives=setting.negatives,
        epochs=1,
    )
    with mock.patch.object(next_item_loop, "_examples", counted):
        begun = time.process_time()
        next_item_loop.fit(
            data, split, config, setting.seed, validate=None, precision=getattr(torch, setting.precision)
        )
        sums.cpu_seconds = time.process_time() - begun
    return sums


if __name__ == "__main__":
    torch.set_num_threads(1)
    loaded = load_sequences(Path(sys.argv[1]))
    trained = leave_one_out(loaded)
    answer(lambda setting: measure(loaded, trained, setting))
