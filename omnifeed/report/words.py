"""Numbers as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any


def count(value: float) -> str:
    """12345 -> 12,345."""
    return f"{int(value):,}"


def percent(value: float | None) -> str:
    """A relative change with its sign: 0.123 -> +12.3 %; a true minus; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{abs(value) * 100:.1f}" if abs(value) < 10 else f"{abs(value) * 100:,.0f}"
    sign = "±" if float(text.replace(",", "")) == 0 else "+" if value > 0 else "−"
    return f"{sign}{text} %"


def share(value: float) -> str:
    """0.498 -> 49.8 %."""
    return f"{value * 100:.1f} %"


def metric(value: float | None) -> str:
    """Three or four significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def p_value(value: float | None) -> str:
    """0.0312, or 4e-11."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}" if value > 0 else "< 1e-300"


def seconds(value: float) -> str:
    """0.4 s, 12 s, 2 min 05 s."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 100:
        return f"{value:.0f} s"
    return f"{int(value) // 60} min {int(value) % 60:02d} s"


def money(value: float) -> str:
    """Two decimals."""
    return f"{value:,.2f}"


def moment(ts: int) -> str:
    """UTC microseconds -> 2026-03-02 00:00."""
    return f"{datetime.fromtimestamp(ts / 1_000_000, UTC):%Y-%m-%d %H:%M}"


def ledger_what(entry: dict[str, Any]) -> str:
    """An entry's body in a few words."""
    body = entry["body"]
    match entry["kind"]:
        case "DECISION":
            codes = ", ".join(reason["code"] for reason in body.get("reasons", ()))
            return f"{body.get('verdict', '')} in {body.get('experiment', '')} ({codes})"
        case "DEPLOY":
            return f"release {body.get('release')} in front of users: {body.get('id', '')}"
        case "ROLLBACK":
            return f"release {body.get('from')} → {body.get('release')}: {body.get('reason') or 'no reason given'}"
        case _:
            return f"release {body.get('release')}"
