"""docs/how-to/bring-your-own-logs.md does what it says: its files, its commands, from an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from omnifeed.errors import UnavailableError
from omnifeed.serving.server import triton_environment
from omnifeed.tables import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "bring-your-own-logs.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_names_every_required_column() -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [
        field.name
        for schema in SCHEMAS.values()
        for field in schema
        if not field.nullable and not re.search(rf"\b{field.name}\b", text)
    ]
    assert not missing


@pytest.mark.timeout(900)
def test_the_example_runs_from_an_empty_folder(tmp_path: Path) -> None:
    try:
        triton_environment()
    except UnavailableError as missing:
        pytest.skip(missing.problem)
    for body in [*blocks("python"), *blocks("toml")]:
        name = body.partition("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(body, encoding="utf-8")
    bin_folder = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euc", "\n".join(blocks("bash"))],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "OMNIFEED_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "INVALID: " in done.stdout
    assert "There is no live traffic" in done.stdout
    for name in ("auc_click", "logistic regression", "popularity, 7 days", "item rate", "search", "feed"):
        assert name in done.stdout, name
    steps = tmp_path / "home" / "runs" / "0001" / "steps"
    quality = json.loads((steps / "validate.json").read_text())["info"]
    assert quality["accepted"] == {"events": 18_000, "items": 80, "users": 300}
    metrics = json.loads((steps / "evaluate.json").read_text())["info"]
    auc = metrics["metrics"]["challenger"]["all"]["auc_click"]["value"]
    assert (
        auc > metrics["baselines"]["item rate"]["all"]["auc_click"]["value"] + 0.05
    )  # customers have a favourite shelf
