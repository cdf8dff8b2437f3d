"""Pictures as inline SVG that follow the page: its fonts, and its colours in light and in dark.

Matplotlib draws with stand-in colours which are replaced by the page's CSS variables afterwards; text stays text, so
that it can be read aloud, searched and copied.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Stand-in colours -> CSS variables of style.css.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--challenger)",
    "#050505": "var(--champion)",
    "#060606": "var(--good)",
    "#070707": "var(--bad)",
    "#080808": "var(--band)",
}
INK, MUTED, LINE, CHALLENGER, CHAMPION, GOOD, BAD, BAND = _COLOURS

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def learning_curves(losses: dict[str, Any]) -> str:
    """Training loss by step, and what the validation days said after each epoch."""
    steps, epochs = losses.get("steps") or [], losses.get("epochs") or []
    valid = [epoch.get("valid") or {} for epoch in epochs]
    names = [name for name in (valid[0] if valid else {}) if name != "loss"][:4]
    with mpl.rc_context(_STYLE):
        figure, (left, right) = _figure(8.6, 2.9, 2)
        keys = [key for key, value in (steps[0] if steps else {}).items() if key != "step" and _number(value)]
        for shade, key in zip((CHALLENGER, CHAMPION, MUTED), keys, strict=False):
            left.plot([step["step"] for step in steps], [step[key] for step in steps], color=shade, label=key, lw=1.4)
        left.set(title="Training loss", xlabel="step")
        left.legend()
        xs = list(range(1, len(epochs) + 1))
        for shade, name in zip((CHALLENGER, CHAMPION, GOOD, MUTED), names, strict=False):
            right.plot(xs, [each.get(name, float("nan")) for each in valid], "o-", color=shade, label=name, ms=4)
        best = losses.get("best_epoch")
        if best:
            right.axvline(best, color=MUTED, lw=1, ls=":")
            right.text(best, 0.02, " kept", transform=right.get_xaxis_transform(), color=MUTED, va="bottom", fontsize=9)
        right.set(title="Validation after each epoch", xlabel="epoch")
        right.set_xticks(xs)
        if names:
            right.legend()
        return _svg(figure, "losses", "Learning curves: training loss by step and validation metrics by epoch.")


def roc_and_calibration(roc: dict[str, list[float]], calibration: dict[str, dict[str, list[float]]]) -> str:
    """The challenger's ROC curve, and predicted against observed rates by task."""
    with mpl.rc_context(_STYLE):
        figure, (left, right) = _figure(8.6, 3.6, 2)
        left.plot([0, 1], [0, 1], color=LINE, lw=1.2)
        left.plot(roc["fpr"], roc["tpr"], color=CHALLENGER)
        left.set(title="ROC of the challenger", xlabel="false positive rate", ylabel="true positive rate")
        left.set_aspect("equal")
        shades = (CHALLENGER, CHAMPION, GOOD, BAD, MUTED)
        low = 1.0
        for shade, (task, curve) in zip(shades, calibration.items(), strict=False):
            points = [(x, y) for x, y in zip(curve["predicted"], curve["observed"], strict=True) if x > 0 and y > 0]
            if points:
                low = min(low, *(min(point) for point in points))
                right.plot(*zip(*points, strict=True), "o-", color=shade, ms=3.5, lw=1.2, label=task)
        low = 10.0 ** _floor_log10(low)
        right.plot([low, 1], [low, 1], color=LINE, lw=1.2, zorder=0)
        right.set(
            title="Calibration", xlabel="predicted", ylabel="observed", xscale="log", yscale="log",
            xlim=(low, 1), ylim=(low, 1),
        )  # fmt: skip
        for axis in (right.xaxis, right.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value * 100:g} %")
            axis.set_minor_formatter(lambda value, _: "")
        right.set_aspect("equal")
        right.legend(loc="upper left")
        return _svg(figure, "roc", "ROC curve of the challenger and its calibration: predicted against observed rates.")


def forest(rows: Sequence[dict[str, Any]], name: str, description: str, xlabel: str) -> str:
    """Relative effects with intervals, one a row; one beyond the axis is an arrow with its number.

    Args:
        rows: label, relative, low, high (fractions, None where not computable), tone ("good", "bad", "neutral"), margin
            (position of the tolerated loss, or None), and `lead` (the first row of a group is set in bold).
        name: unique on the page.
        description: for who cannot see it.
        xlabel: what the axis shows.
    """
    shades = {"good": GOOD, "bad": BAD, "neutral": CHALLENGER}
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 0.8 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        ends = [value for row in rows for value in (row["low"], row["high"], row["margin"]) if value is not None]
        limit = min(max([abs(end) for end in ends] + [0.02]) * 1.1, 1.5)
        axes.axvline(0, color=MUTED, lw=1)
        for place, row in enumerate(rows):
            shade = shades[row["tone"]]
            if row["margin"] is not None:
                axes.plot([row["margin"]] * 2, [place - 0.36, place + 0.36], color=BAD, lw=1.6, ls=(0, (2, 1.4)))
            if row["low"] is not None and row["high"] is not None:
                axes.plot(
                    [row["low"], row["high"]], [place, place], color=shade, lw=3.2, solid_capstyle="round", alpha=0.55
                )
            if row["relative"] is None:
                axes.text(0.01 * limit, place, "not estimable", color=MUTED, va="center", fontsize=9)
            elif abs(row["relative"]) <= limit:
                axes.plot(row["relative"], place, "o", color=shade, ms=6.5)
            else:
                side = 1 if row["relative"] > 0 else -1
                axes.plot(0.98 * side * limit, place, ">" if side > 0 else "<", color=shade, ms=6.5)
                text, towards = _signed_percent(row["relative"], None), "right" if side > 0 else "left"
                axes.text(0.95 * side * limit, place, text, color=shade, ha=towards, va="center", fontsize=9)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows], color=INK)
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if row["lead"] else "normal")
        axes.set(xlim=(-limit, limit), ylim=(len(rows) - 0.4, -0.6), xlabel=xlabel)
        axes.xaxis.set_major_formatter(_signed_percent)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return _svg(figure, name, description)


def daily_sequence(points: Sequence[dict[str, Any]], titles: dict[str, str]) -> str:
    """Cumulative relative effect by day: the ordinary interval inside the confidence sequence, a panel a metric."""
    names = list(dict.fromkeys(point["metric"] for point in points))
    with mpl.rc_context(_STYLE):
        columns = min(len(names), 2)
        rows = -(-len(names) // columns)
        figure = Figure(figsize=(8.6, 2.5 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        for panel, name in zip(panels, names, strict=False):
            series = [point for point in points if point["metric"] == name]
            days = [point["day"] + 1 for point in series]
            column = {
                key: [float("nan") if point[key] is None else point[key] for point in series]
                for key in ("relative", "low", "high", "sequence_low", "sequence_high")
            }
            panel.axhline(0, color=MUTED, lw=1)
            panel.fill_between(days, column["sequence_low"], column["sequence_high"], color=BAND, alpha=0.45, lw=0)
            panel.fill_between(days, column["low"], column["high"], color=CHALLENGER, alpha=0.22, lw=0)
            panel.plot(days, column["relative"], color=CHALLENGER, marker="o", ms=3.5)
            last = [abs(value) for key in ("sequence_low", "sequence_high", "low", "high") for value in column[key][1:]]
            finite = sorted(value for value in last if value == value)
            if finite:
                limit = max(min(finite[int(0.8 * (len(finite) - 1))] * 1.1, 2.0), 0.02)
                panel.set_ylim(-limit, limit)
            panel.set(title=titles.get(name, name), xlabel="day")
            panel.yaxis.set_major_formatter(_signed_percent)
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(axis="y")
        return _svg(
            figure, "daily", "Cumulative relative effect by day with its interval and the wider confidence sequence."
        )


def _figure(width: float, height: float, columns: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _svg(figure: Figure, name: str, description: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):  # ids that differ between the pictures of a page and not between runs
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    for stand_in, variable in _COLOURS.items():
        text = text.replace(stand_in, variable)
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    label = escape(description, quote=True)
    return f'<svg role="img" aria-label="{label}" {box.group(0) if box else ""}>{rest}'


def _signed_percent(value: float, _: object) -> str:
    return f"{value * 100:+.3g} %".replace("-", "\N{MINUS SIGN}") if value else "0"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _floor_log10(value: float) -> int:
    exponent = 0
    while 10.0**exponent > value:
        exponent -= 1
    return exponent
