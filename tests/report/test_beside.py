"""The tables that stand every model beside the others."""

from __future__ import annotations

import json

from example_run import evaluation

from omnifeed.report.beside import Cell, beside
from omnifeed.report.page import evaluation_html


def test_scenarios_stand_by_size_and_small_ones_are_left_out() -> None:
    assert beside(evaluation()).scenarios == (("all", 8_412), ("short_video", 5_860), ("livestream", 2_150))


def test_tasks_stand_in_their_own_order_after_a_file_has_sorted_the_metrics() -> None:
    body = json.loads(json.dumps(evaluation(), sort_keys=True))
    assert [table.metric for table in beside(body).tables] == ["auc_click", "auc_long_view", "recall@50", "ndcg@10"]
    assert [model for model, _ in beside(body).tables[0].rows] == ["release 0", "challenger", "item rate"]


def test_every_model_has_a_row_in_the_tables_of_the_metrics_that_it_has() -> None:
    tables = {table.metric: dict(table.rows) for table in beside(evaluation()).tables}
    assert list(tables) == ["auc_click", "auc_long_view", "recall@50", "ndcg@10"]
    assert list(tables["auc_click"]) == ["release 0", "challenger", "item rate"]
    assert tables["auc_click"]["item rate"] == (Cell(0.6123, 0.601, 0.6236), None, None)
    assert tables["recall@50"]["popularity, 7 days"] == (None, Cell(0.2511, None, None), None)
    assert "item rate" not in tables["auc_long_view"]


def test_a_comparison_without_baselines_or_retrieval_has_the_tables_that_are_left() -> None:
    body = {**evaluation(), "baselines": {}}
    body["differences"] = [row for row in body["differences"] if "@" not in row["metric"]]
    assert [table.metric for table in beside(body).tables] == ["auc_click", "auc_long_view"]


def test_a_cell_reads_as_value_and_half_its_interval() -> None:
    assert Cell(0.6123, 0.601, 0.6236).text == "0.6123 ±.0113"
    assert Cell(0.5, None, None).text == "0.5000"


def test_the_page_prints_them() -> None:
    assert "0.6123 ±.0113" in evaluation_html(evaluation())
