"""Python environments that a benchmark makes for what it compares with, apart from Omnifeed's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from record import ROOT

from omnifeed.home import write_atomic


def own_python(environment: Path, packages: Sequence[str], *, torch: str = "", project: bool = False) -> Path:
    """Python of the environment, made where it is missing, unfinished or of other packages.

    Args:
        torch: installed first and with pip, since uv does not look where a local CPU build may lie.
        project: Omnifeed as well, without what it needs.

    Raises:
        CalledProcessError: a package cannot be had.
    """
    python = environment / "bin" / "python"
    asked = json.dumps([*packages, torch, project])
    made = environment / "made.json"
    if made.exists() and made.read_text(encoding="utf-8") == asked:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    uv = [
        str(Path(sys.executable).parent / "uv"),
        "pip",
        "install",
        "-q",
        "--compile-bytecode",
        "--python",
        str(python),
    ]
    if torch:
        subprocess.run([str(python), "-m", "pip", "install", "-q", torch], check=True)
    subprocess.run([*uv, *packages], check=True)
    if project:
        subprocess.run([*uv, "--no-deps", "-e", str(ROOT)], check=True)
    write_atomic(made, asked)
    return python
