"""Golden requests: inputs of every part and what PyTorch answers, kept in the bundle and asked again by whoever serves.

One `golden/<part>-<case>.npz` a call, `in.<name>` and `out.<name>`, no pickle. numpy and the standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.errors import IntegrityError
from omnifeed.export.encode import Floats

Arrays = dict[str, npt.NDArray[Any]]

TOLERANCE = 1e-5  # absolute, fp32 on a CPU
TOP_K = 50


@dataclass(frozen=True, slots=True)
class Golden:
    """One call of one part, and its answer."""

    part: str
    case: str
    inputs: Arrays
    outputs: Arrays


def write_golden(folder: Path, golden: Golden) -> None:
    """Write one call into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"in.{name}": value for name, value in golden.inputs.items()}
    arrays |= {f"out.{name}": value for name, value in golden.outputs.items()}
    np.savez_compressed(folder / f"{golden.part}-{golden.case}.npz", **arrays)  # type: ignore[arg-type]


def read_golden(folder: Path) -> tuple[Golden, ...]:
    """Every golden call of a bundle's `golden` folder, by name.

    Raises:
        IntegrityError: a file is damaged.
    """
    result = []
    for path in sorted(folder.glob("*.npz")):
        part, _, case = path.stem.partition("-")
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{path} cannot be read: {error}.", "Export the release again.") from error
        inputs = {name[3:]: value for name, value in arrays.items() if name.startswith("in.")}
        outputs = {name[4:]: value for name, value in arrays.items() if name.startswith("out.")}
        result.append(Golden(part, case, inputs, outputs))
    return tuple(result)


def max_abs_error(expected: Mapping[str, npt.NDArray[Any]], found: Mapping[str, npt.NDArray[Any]]) -> float:
    """The largest absolute difference over all outputs; infinite where a shape differs or a value is not finite."""
    worst = 0.0
    for name, value in expected.items():
        other = found.get(name)
        if other is None or other.shape != value.shape:
            return float("inf")
        if value.size:
            difference = np.abs(value.astype(np.float64) - other.astype(np.float64))
            worst = max(worst, float(difference.max()) if np.isfinite(difference).all() else float("inf"))
    return worst


def same_top_k(expected: Floats, found: Floats, k: int = TOP_K, tolerance: float = TOLERANCE) -> bool:
    """Whether two score vectors of the same items put the same ones on top, but for ties.

    A tie: the place is taken by another item whose expected score differs by no more than twice the tolerance.
    """
    best = expected[np.argsort(-expected, kind="stable")[:k]]
    chosen = expected[np.argsort(-found, kind="stable")[:k]]
    return bool(np.abs(best.astype(np.float64) - chosen.astype(np.float64)).max(initial=0.0) <= 2 * tolerance)
