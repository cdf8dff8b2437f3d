"""A figure shows every number that it is given."""

from __future__ import annotations

from typing import Any

import pytest

from omnifeed.report.figures import forest


def row(relative: float | None) -> dict[str, Any]:
    ends = (None, None) if relative is None else (relative - 0.2, relative + 0.2)
    known = {"label": "orders", "relative": relative, "low": ends[0], "high": ends[1]}
    return {**known, "tone": "good", "margin": None, "lead": True}


@pytest.mark.parametrize(("relative", "shown"), [(2.82, "+282"), (-3.0, "300")])
def test_an_effect_beyond_the_axis_is_told_in_figures(relative: float, shown: str) -> None:
    assert shown in forest([row(0.1), row(relative)], "effects", "effects", "relative")
    assert shown not in forest([row(0.1), row(0.2)], "effects", "effects", "relative")


def test_an_effect_that_is_not_known_says_so() -> None:
    assert "not estimable" in forest([row(0.1), row(None)], "effects", "effects", "relative")
