"""How a side of sequence_speed.py is asked and how it measures: the standard library alone, for any environment.

A setting comes in as a line, the measurement goes out as a line, so that the sides can be asked in turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

WARMUP = 1  # steps that are not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is trained; the same width, depth, heads, length and dropout for everyone."""

    width: int
    blocks: int
    heads: int
    length: int
    dropout: float
    lr: float
    negatives: int  # 0: the whole catalogue
    model: str = "sasrec"  # or trunk, where the side has one
    precision: str = "float32"  # or bfloat16
    padded: bool = False  # Omnifeed alone: its batches, every window padded to the full length
    batch: int = 0  # sequences or targets of a step, as the side counts them
    steps: int = 0  # to measure; 0: one epoch
    seed: int = 0


@dataclass(slots=True)
class Measured:
    """Sums over the measured steps."""

    cpu_seconds: float = 0.0
    steps: int = 0
    targets: int = 0  # items that were predicted and are no padding
    filled: int = 0  # positions of the batches that hold an item
    cells: int = 0  # positions of the batches


class Watch:
    """Steps as they end: the first few warm up, the rest are counted, with the CPU-seconds since the warm-up's end."""

    def __init__(self, warmup: int = WARMUP) -> None:
        self.warmup = warmup
        self.measured = Measured()
        self.begun = 0.0

    def step(self, *, targets: int, filled: int, cells: int) -> None:
        """A step has ended."""
        now = time.process_time()
        if self.warmup:
            self.warmup -= 1
            self.begun = now
            return
        sums = self.measured
        sums.cpu_seconds = now - self.begun
        sums.steps += 1
        sums.targets += targets
        sums.filled += filled
        sums.cells += cells


def answer(measure: Callable[[Setting], Measured]) -> None:
    """Measure each setting that standard input names. What the library prints goes to standard error."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        print("ready", file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(asdict(measure(Setting(**json.loads(line))))), file=out, flush=True)
