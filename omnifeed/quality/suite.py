"""Running rules as Great Expectations suites.

The library is imported here alone, on first use: it takes seconds, and only the validate step needs it. An ephemeral
context keeps nothing on disk and reports to nobody.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from omnifeed.quality.contract import Rule
from omnifeed.quality.intake import Rows


@dataclass(frozen=True, slots=True)
class RuleResult:
    """What Great Expectations said of one rule."""

    rule: Rule
    expectation: str  # its type, snake case
    passed: bool
    rows: Rows  # int64, ascending: rows of the frame that do not meet it
    observed: str  # of a table-level expectation


class Suites:
    """One ephemeral context for the suites of a validation."""

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        self._context: Any = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._source: Any = self._context.data_sources.add_pandas("tables")

    def run(self, name: str, frame: pa.Table, rules: list[Rule]) -> list[RuleResult]:
        """Validate a frame and return one result a rule, in the order of the rules.

        Args:
            name: of the suite, once a validation.
        """
        import great_expectations as gx
        import pandas as pd
        from great_expectations import expectations

        suite = gx.ExpectationSuite(
            name=name,
            expectations=[
                getattr(expectations, rule.expectation)(**rule.arguments, meta={"rule": number})
                for number, rule in enumerate(rules)
            ],
        )
        definition = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        # numbers as numpy's, which Great Expectations compares without a call of Python a value
        slow_in_numpy = {kind: pd.ArrowDtype(kind) for kind in (pa.string(), pa.bool_())}
        batch = definition.get_batch({"dataframe": frame.to_pandas(types_mapper=slow_in_numpy.get)})
        validation = batch.validate(
            suite, result_format={"result_format": "COMPLETE", "return_unexpected_index_query": False}
        )
        results = {}
        for result in validation.results:
            if result.exception_info.get("raised_exception") is not False:  # of a metric: keyed by metric instead
                raise RuntimeError(f"Great Expectations could not evaluate {result.expectation_config}: {result}")
            number = result.expectation_config.meta["rule"]
            detail = result.result
            results[number] = RuleResult(
                rules[number],
                result.expectation_config.type,
                bool(result.success),
                np.sort(np.asarray(detail.get("unexpected_index_list") or [], np.int64)),
                str(detail.get("observed_value", "")),
            )
        return [results[number] for number in range(len(rules))]
