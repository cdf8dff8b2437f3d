"""How a benchmark leaves its numbers: `results/<name>.json`, from which docs/RESULTS.md is made."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from omnifeed.export.provenance import git_commit
from omnifeed.home import write_json

ROOT = Path(__file__).resolve().parents[1]


def row(
    metric: str, value: float, low: float | None = None, high: float | None = None, **labels: Any
) -> dict[str, Any]:
    """One measured value with its interval, and the labels that tell it from the others (scenario, model, ...)."""
    return {"metric": metric, "value": value, "low": low, "high": high, **labels}


def write_result(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    *,
    data: str,
    seeds: list[int],
    notes: list[str],
    libraries: tuple[str, ...] = ("torch", "numpy"),
    printed: str = "",
) -> Path:
    """Write the result; the command is the one that runs now.

    Args:
        title: one line that says what was measured, in which unit.
        data: which data, by the name of its README.
        notes: what a reader must know to trust the numbers, disappointing parts included.
        printed: what a command printed, word for word.
    """
    path = ROOT / "results" / f"{name}.json"
    has_gpu = shutil.which("nvidia-smi") is not None
    command = " ".join(["python", *(argument.removeprefix(f"{ROOT}/") for argument in sys.argv)])
    write_json(
        path,
        {
            "name": name,
            "title": title,
            "command": command,
            "commit": git_commit(),
            "data": data,
            "seeds": seeds,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {'a' if has_gpu else 'no'} GPU",
            "versions": {library: metadata.version(library) for library in libraries},
            "rows": rows,
            "notes": notes,
            **({"printed": printed} if printed else {}),
        },
    )
    return path
