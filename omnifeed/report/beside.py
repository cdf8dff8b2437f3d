"""The offline comparison as tables to take in at once: every model in a row, the larger scenarios in columns.

Champion and challenger stand beside the simple baselines, on the same rows, for the few metrics that are read first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from omnifeed.evaluation.metrics import middle

MIN_ROWS = 1_000  # of a scenario; smaller ones have intervals too wide to be read
RANKED = 2  # tasks whose AUC is shown


@dataclass(frozen=True, slots=True)
class Cell:
    """A value with its 95 % interval over users."""

    value: float
    low: float | None
    high: float | None

    @property
    def text(self) -> str:
        """0.742 ±.003, half the interval's width."""
        spread = None if self.low is None or self.high is None else (self.high - self.low) / 2
        return f"{self.value:.4f}" + ("" if spread is None else " ±" + f"{spread:.4f}".removeprefix("0"))


@dataclass(frozen=True, slots=True)
class Table:
    """One metric: a row of cells for each model that has it, a cell for each scenario."""

    metric: str
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class Beside:
    """The tables of one comparison, all with the same scenarios."""

    scenarios: tuple[tuple[str, int], ...]  # name and impressions, the largest first
    tables: tuple[Table, ...]


def beside(evaluation: dict[str, Any]) -> Beside:
    """Choose scenarios and metrics from `Evaluation.to_dict()` with its "baselines", nested as its "metrics" are."""
    pair = [evaluation["models"][place] for place in ("champion", "challenger")]
    models = {**{name: evaluation["metrics"][name] for name in pair}, **evaluation.get("baselines", {})}
    sizes = sorted(evaluation["scenario_rows"].items(), key=lambda pair: -pair[1])
    scenarios = tuple((name, rows) for name, rows in sizes if rows >= MIN_ROWS or name == "all")
    tables = []
    for metric in _lead(row["metric"] for row in evaluation["differences"]):
        rows = []
        for model, by_scenario in models.items():
            found = [by_scenario.get(name, {}).get(metric) for name, _ in scenarios]
            if any(found):
                rows.append((model, tuple(cell and Cell(**cell) for cell in found)))
        tables.append(Table(metric, tuple(rows)))
    return Beside(scenarios, tuple(tables))


def _lead(names: Iterable[str]) -> list[str]:
    """The AUC of the first tasks, recall at the middle cut-off, NDCG at the first.

    Args:
        names: of metrics, tasks in the order of the configuration (the keys of a JSON file are in another).
    """
    known = list(dict.fromkeys(names))
    ranked = [name for name in known if name.startswith("auc_")][:RANKED]
    cuts = tuple(int(name.partition("@")[2]) for name in known if name.startswith("recall@"))
    return ranked + ([f"recall@{middle(cuts)}", f"ndcg@{min(cuts)}"] if cuts else [])
