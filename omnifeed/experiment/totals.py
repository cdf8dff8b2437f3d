"""From one row a user and day to the counts, means and variances that the verdict is computed from."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.evidence import ALL, ArmNumbers, DayNumbers, Evidence
from omnifeed.experiment.log import MILLION, reduce_log
from omnifeed.experiment.metrics import Metric, judged_metrics


def observe(folder: Path, experiment: Experiment, config: Config, now: int, before: pa.Table | None = None) -> Evidence:
    """Read an experiment's logs and reduce them to the verdict's input.

    Args:
        folder: `experiments/<name>`, with `exposures/*.jsonl` and `outcomes/*.jsonl`; either may be missing.
        experiment: salt, arms and times.
        config: its [experiment] section names metrics, attribution window and cap.
        now: UTC microseconds; what was observed later is not read.
        before: user_id and, by metric name, the same totals in a period before the start (the covariates of CUPED; any
            subset of the metrics). A user who is absent had no activity: zeros. None: no CUPED.

    Raises:
        InputError: the [experiment] section is not usable, or `before` has no user_id.
    """
    section = config.experiment
    metrics = judged_metrics(section)
    with tempfile.TemporaryDirectory(prefix="omnifeed-gate-") as scratch:
        connection = duckdb.connect(
            str(Path(scratch) / "gate.duckdb"), config={"memory_limit": "1GiB", "preserve_insertion_order": False}
        )
        try:
            counts = reduce_log(connection, folder, experiment, section, metrics, now)
            if not counts.exposures_used:
                return Evidence(counts, ())
            covariates = _covariates(connection, before, metrics, section.gmv_cap)
            overall = _numbers(connection, metrics, covariates, section.gmv_cap)
            by_scenario = _numbers(connection, metrics, covariates, section.gmv_cap, by_scenario=True)
            seen = connection.execute("SELECT DISTINCT day FROM user_day ORDER BY day").fetchall()
            days = tuple(
                DayNumbers(int(day), _numbers(connection, metrics, covariates, section.gmv_cap, until=int(day)))
                for (day,) in seen
            )
            return Evidence(counts, (*overall, *by_scenario), days)
        finally:
            connection.close()


def _covariates(
    connection: duckdb.DuckDBPyConnection, before: pa.Table | None, metrics: Sequence[Metric], cap: float
) -> tuple[str, ...]:
    """`covariate`: one row a user of the period before; returns the metrics that it knows."""
    if before is None:
        return ()
    if "user_id" not in before.column_names:
        raise InputError("The table of the period before has no column 'user_id'.", "Add it; one row a user.")
    known = tuple(metric.name for metric in metrics if metric.name in before.column_names)
    connection.register("before_table", before)
    sums = "".join(
        f", {_capped(f'sum(round(coalesce({name}, 0) * {MILLION})::BIGINT)', name, cap)} AS {name}" for name in known
    )
    connection.execute(f"CREATE TABLE covariate AS SELECT user_id{sums} FROM before_table GROUP BY user_id")
    return known


def _capped(expression: str, name: str, cap: float) -> str:
    return f"least({expression}, {round(cap * MILLION)})" if name == "gmv_per_user" else expression


def _numbers(
    connection: duckdb.DuckDBPyConnection,
    metrics: Sequence[Metric],
    covariates: tuple[str, ...],
    cap: float,
    *,
    by_scenario: bool = False,
    until: int | None = None,
) -> tuple[ArmNumbers, ...]:
    """Exact integer sums of totals, squares and products by arm, then moments."""
    names = [metric.name for metric in metrics]
    scope = "scenario" if by_scenario else f"'{ALL}'"
    totals = ", ".join(f"{_capped(f'sum({name})', name, cap)}::HUGEINT AS {name}" for name in names)
    past = "".join(f", coalesce(covariate.{name}, 0)::HUGEINT AS before_{name}" for name in covariates)
    pairs = [
        *((name, name) for name in names),
        *((f"before_{name}", f"before_{name}") for name in covariates),
        *((name, f"before_{name}") for name in covariates),
    ]
    sums = ", ".join(f"sum({left}), sum({right}), sum({left} * {right})" for left, right in pairs)
    rows = connection.execute(
        f"WITH users AS (SELECT {scope} AS scope, arm, user_id, {totals} FROM user_day "
        f"{'' if until is None else f'WHERE day <= {until}'} GROUP BY ALL), "
        f"joined AS (SELECT users.*{past} FROM users {'LEFT JOIN covariate USING (user_id)' if covariates else ''}) "
        f"SELECT scope, arm, count(*), {sums} FROM joined GROUP BY scope, arm ORDER BY scope, arm"
    ).fetchall()
    numbers = []
    for scope_name, arm, users, *values in rows:
        triples = zip(values[0::3], values[1::3], values[2::3], strict=True)
        moments = {
            pair: (_mean(users, left), _covariance(users, left, right, product))
            for pair, (left, right, product) in zip(pairs, triples, strict=True)
        }
        numbers.append(
            ArmNumbers(
                scope=str(scope_name),
                arm=str(arm),
                users=int(users),
                mean={name: moments[name, name][0] for name in names},
                variance={name: moments[name, name][1] for name in names},
                covariate_mean={name: moments[f"before_{name}", f"before_{name}"][0] for name in covariates},
                covariate_variance={name: moments[f"before_{name}", f"before_{name}"][1] for name in covariates},
                covariance={name: moments[name, f"before_{name}"][1] for name in covariates},
            )
        )
    return tuple(numbers)


def _mean(users: int, total: int) -> float:
    return total / (users * MILLION)


def _covariance(users: int, left: int, right: int, product: int) -> float:
    """Of the sample, from sums in millionths; 0 for a single user. Integers: nothing cancels."""
    return (product * users - left * right) / (users * max(users - 1, 1) * MILLION**2)
