"""docs/faults.md and the table of docs/serving-operations.md name tests; each is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving-operations.md").read_text(encoding="utf-8")
PAGE = FAULTS + SERVING.split("## What a fault costs")[1]
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not re.match(r"\| (fault|killed in) ", line)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_row_is_shown_by_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
    assert named
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"
