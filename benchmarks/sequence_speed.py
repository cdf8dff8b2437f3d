"""Training targets a CPU-second beside RecTools' and RecBole's SASRec, and the seconds from raw file to test.

    python benchmarks/sequence_speed.py [FILE] [--rounds 3]

Each library gets an environment of its own under $OMNIFEED_HOME/environments and a process of one thread; the sides
are asked in turns, so that what else the machine does meets them all. A target is an item that is predicted and is no
padding, whoever counts. Writes results/sequence_speed.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from own_environment import own_python
from record import ROOT, row, write_result
from sequence_side import Measured, Setting
from sequential import SASREC, TRUNK, Job, precision, train

from omnifeed.home import Home
from omnifeed.training.sequences import SequenceData, Split, leave_one_out, load_sequences

BEAUTY = ROOT.parent / "shared" / "data" / "amazon2014_5core" / "beauty" / "Beauty.txt"
BENCHMARKS = ROOT / "benchmarks"
TORCH = "torch==2.13.0"
OURS = "Omnifeed"
PACKAGES = {"RecTools": ("rectools[torch]==0.19.0",), "RecBole": ("recbole==1.2.1", "numpy==1.26.4", "pandas==2.3.3")}
TIMES = "times its targets a CPU-second"
GOAL = 20  # times either library
GOAL_SECONDS = 240  # from raw file to test metrics


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One side with one setting."""

    side: str
    setting: Setting

    def labels(self) -> dict[str, Any]:
        setting = self.setting
        return {
            "side": self.side,
            "model": "trunk" if setting.model == "trunk" else "SASRec",
            "negatives": setting.negatives or "all",
            "precision": setting.precision,
            "batches": "padded" if self.side != OURS or setting.padded else "by length",
        }


def cases() -> list[Case]:
    """Ours and theirs by number of negatives; as many of the libraries' steps as take some seconds."""
    same = Setting(
        width=TRUNK.width,
        blocks=TRUNK.blocks,
        heads=TRUNK.heads,
        length=TRUNK.length,
        dropout=TRUNK.dropout,
        lr=SASREC.lr,
        negatives=0,
    )
    fast = str(precision()).removeprefix("torch.")
    precisions = dict.fromkeys(("float32", fast))

    def case(side: str, **changes: Any) -> Case:
        return Case(side, dataclasses.replace(same, **changes))

    drawn = TRUNK.negatives
    return [
        *(case(OURS, precision=kind) for kind in precisions),
        case(OURS, model="trunk", precision=fast),
        *(case("RecTools", batch=128, steps=4, precision=kind) for kind in precisions),
        *(case("RecBole", batch=2048, steps=2, precision=kind) for kind in precisions),
        *(case(OURS, negatives=drawn, precision=kind) for kind in precisions),
        case(OURS, negatives=drawn, model="trunk", precision=fast),
        case(OURS, negatives=drawn, padded=True),
        case("RecTools", negatives=drawn, batch=32, steps=8),
        case(OURS, negatives=1),
        case("RecTools", negatives=1, batch=128, steps=30),
        case("RecBole", negatives=1, batch=2048, steps=2),
    ]


class Side:
    """A process that measures what it is asked."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.said = folder / f"{name}.log"
        with self.said.open("w") as log:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env={**{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}, **one},
            )
        self.heard()

    def heard(self) -> str:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: {self.said.read_text(errors='replace')[-2000:]}")
        return line

    def measure(self, setting: Setting) -> Measured:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(dataclasses.asdict(setting)) + "\n")
        self.child.stdin.flush()
        return Measured(**json.loads(self.heard()))


@contextlib.contextmanager
def sides(path: Path, data: SequenceData, split: Split, missing: list[str]) -> Iterator[dict[str, Side]]:
    """Everyone who could be installed and started; who could not is named in `missing`."""
    environments = Home.from_env().root / "environments"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared = folder / "sequences.npz"
        np.savez(prepared, items=data.items, offsets=data.offsets, train_stop=split.train_stop)
        started = {OURS: Side(OURS, [sys.executable, str(BENCHMARKS / "omnifeed_side.py"), str(path)], folder)}
        try:
            for name, packages in PACKAGES.items():
                script = str(BENCHMARKS / f"{name.lower()}_side.py")
                try:
                    python = own_python(environments / name, packages, torch=TORCH)
                    started[name] = Side(name, [str(python), script, str(prepared)], folder)
                except (subprocess.CalledProcessError, RuntimeError) as error:
                    missing.append(f"{name} could not be run: {type(error).__name__}.")
                    print(f"{name}: {error}", file=sys.stderr, flush=True)
            yield started
        finally:
            for side in started.values():
                side.child.communicate()  # its input ends, and so does it


def speed(measured: Measured) -> float:
    return measured.targets / measured.cpu_seconds


def positions(found: list[Measured]) -> float:
    """Positions computed for each target."""
    return sum(one.cells for one in found) / sum(one.targets for one in found)


def padding(found: list[Measured]) -> float:
    """Share of the positions that hold no item."""
    return 1 - sum(one.filled for one in found) / sum(one.cells for one in found)


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, least, most."""
    return statistics.median(values), min(values), max(values)


def comparisons(found: dict[Case, list[Measured]]) -> list[dict[str, Any]]:
    """Rows of ours against each library at the same number of negatives, round by round, and how much of it comes
    from computing fewer positions a target. A library's own float32 meets all of ours, other precisions the same."""
    rows = []
    for theirs, other in found.items():
        for ours, own in found.items():
            if theirs.side == OURS or ours.side != OURS or ours.setting.padded:
                continue
            if ours.setting.negatives != theirs.setting.negatives:
                continue
            if theirs.setting.precision not in ("float32", ours.setting.precision):
                continue
            times = [speed(mine) / speed(its) for mine, its in zip(own, other, strict=True)]
            fewer = positions(other) / positions(own)
            labels = ours.labels() | {"against": f"{theirs.side}, {theirs.setting.precision}"}
            rows += [
                row(TIMES, *spread(times), **labels),
                row("of it: fewer positions a target", fewer, **labels),
                row("of it: faster at a position", statistics.median(times) / fewer, **labels),
            ]
    return rows


def whole_run(path: Path) -> float:
    """CPU-seconds of this process, once the default model is trained, chosen on validation and tested."""
    train(Job(str(path), False, "trunk, ids", "strict", False, TRUNK, 0), test=True)
    return time.process_time()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=BEAUTY, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    path = options.file.resolve()
    data = load_sequences(path)
    split = leave_one_out(data)
    missing: list[str] = []
    found: dict[Case, list[Measured]] = {}
    begun = time.monotonic()
    with sides(path, data, split, missing) as started:
        asked = [case for case in cases() if case.side in started]
        for name, side in started.items():
            side.measure(next(case.setting for case in asked if case.side == name))  # warms up
        for turn in range(options.rounds):
            for case in asked:
                measured = started[case.side].measure(dataclasses.replace(case.setting, seed=turn))
                found.setdefault(case, []).append(measured)
                said = " ".join(map(str, case.labels().values()))
                print(f"{said}: {speed(measured):,.0f} a CPU-second, {measured.cpu_seconds:.1f} s", flush=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        whole = pool.submit(whole_run, path).result()
    cpu = whole + sum(one.cpu_seconds for many in found.values() for one in many)
    took = f"The whole run: {cpu:.0f} measured CPU-seconds, {time.monotonic() - begun:.0f} seconds by the clock."
    report(path, data, split, found, whole, [took, *missing])


def report(
    path: Path, data: SequenceData, split: Split, found: dict[Case, list[Measured]], whole: float, notes: list[str]
) -> None:
    rows = comparisons(found)
    short = [
        f"{one['model']} {one['precision']}, {one['negatives']} negatives, against {one['against']}: {one['value']:.1f}"
        for one in rows
        if one["metric"] == TIMES and one["value"] < GOAL
    ]
    for case, many in found.items():
        rows += [
            row("targets a CPU-second", *spread([speed(one) for one in many]), **case.labels()),
            row("positions computed a target", positions(many), **case.labels()),
            row("share of positions that is padding", padding(many), **case.labels()),
        ]
    default = Case(OURS, dataclasses.replace(cases()[2].setting, negatives=TRUNK.negatives))
    rows.append(row("CPU-seconds, raw file to test metrics", whole, **default.labels()))
    written = write_result(
        "sequence_speed",
        f"Speed of training on {path.stem}, one thread",
        rows,
        data=path.name,
        seeds=list(range(len(next(iter(found.values()))))),
        notes=[
            f"{len(data):,} sequences, {len(data.names):,} items, all but the last two of each train: "
            f"{int(np.maximum(split.train_stop - 1, 0).sum()):,} targets. Everyone: width {TRUNK.width}, "
            f"{TRUNK.blocks} block, {TRUNK.heads} heads, length {TRUNK.length}, dropout {TRUNK.dropout}, a "
            "feed-forward of the same width (the trunk's is gated and twice as wide), Adam or AdamW.",
            *NOTES,
            f"Goal: {GOAL} times either library. Below it: {'; '.join(short) or 'nothing'}. From raw file to test "
            f"metrics: {whole:.0f} CPU-seconds of {GOAL_SECONDS}, one process of one seed, its imports included.",
            *notes,
        ],
    )
    print(f"results/{written.name}: {len(rows)} rows; below {GOAL}: {short}")


NOTES = (
    "Values are the median of the rounds, intervals the least and the most; ratios are taken round by round. "
    "CPU-seconds are those of the training process, its memory's administration by the system included: of ours a "
    "whole epoch with its start and its end, of the libraries some steps after the first (the numbers are in the "
    "script), with their own loaders and samplers; imports and reading the data are in neither.",
    "A target is an item that is predicted and is no padding. A position is a place of a batch that goes through the "
    "blocks. RecTools pads each sequence to the full length, RecBole makes a row of the full length for each prefix, "
    "with one target; ours puts windows of similar length together, every prefix a target. The ratio is split into "
    "fewer positions a target, and the rest, which is below one where their loss does less at a position: RecBole's "
    "meets one position of a row, ours every one. Our row `padded` is our loop with the same batches, each window "
    "padded to the full length, padding left out of the loss only.",
    "All negatives: softmax over the catalogue, the default of both libraries. 1,024: ours shares them in a step and "
    "adds the step's other targets, RecTools draws them for each position anew (sampled_softmax); RecBole has no such "
    "loss. 1: RecTools' BCE, RecBole's BPR; our loss with one drawn item still has all targets of the step as "
    "negatives, about 1,550, and does that much more work: no like for like.",
    "Batches: the libraries' defaults, 128 sequences (RecTools) and 2,048 prefixes (RecBole), but 32 sequences for "
    "RecTools with 1,024 negatives, whose embeddings take 0.84 GB then, and 3.4 GB at the default; ours 2,048 "
    "positions. RecBole's feed-forward and activation were set to SASRec's own (the same width, ReLU), which is less "
    "work than its default.",
    f"Environments: {'; '.join(', '.join(packages) for packages in PACKAGES.values())}; {TORCH} in all. The "
    "libraries' bfloat16 is their own mixed precision.",
)


if __name__ == "__main__":
    main()
