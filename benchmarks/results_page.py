"""docs/RESULTS.md from results/*.json: `make results`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def cell(row: dict[str, Any], name: str) -> str:
    if name == "interval":
        low, high = row.get("low"), row.get("high")
        return "" if low is None or high is None else f"{number(low)} to {number(high)}"
    value = row.get(name)
    return "" if value is None else number(value)


def section(result: dict[str, Any]) -> str:
    rows = result["rows"]
    labels = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("value", "low", "high")]
    header = [*labels, "value", *(["interval"] if any(row.get("low") is not None for row in rows) else [])]
    lines = [
        f"## {result['title']}",
        "",
        f"`{result['command']}` · data: {result['data']} · seeds: {', '.join(map(str, result['seeds'])) or 'none'} · "
        f"commit `{result['commit'][:10]}` · {result['machine']}",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(cell(row, name).replace("|", "\\|") for name in header) + " |" for row in rows),
        "",
        *(f"- {note}" for note in result["notes"]),
        "",
        *(["What it printed:", "", "```", result["printed"], "```", ""] if "printed" in result else []),
    ]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "results").glob("*.json"))]
    head = [
        "# Results",
        "",
        "Generated from `results/*.json` by `make results`; every number carries the command that made it. Timings are",
        "of a shared two-core machine: compare within one table. Nothing here was measured on a GPU.",
        "",
    ]
    return "\n".join([*head, *(section(result) for result in results)])


if __name__ == "__main__":
    (ROOT / "docs" / "RESULTS.md").write_text(page(), encoding="utf-8")
