"""From one row a user and day to the counts, means and variances that the verdict is computed from."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.evidence import ALL, ArmNumbers, DayLog, DayNumbers, Evidence, Lag, UserGroup
from omnifeed.experiment.log import MILLION, reduce_log
from omnifeed.experiment.metrics import Metric, cap_of, judged_metrics, totals_of

Load = Callable[[duckdb.DuckDBPyConnection], None]  # leaves `exposure_line` and `outcome_line`, see `read`


def observe(load: Load, experiment: Experiment, config: Config, now: int, before: pa.Table | None = None) -> Evidence:
    """Read an experiment's logs and reduce them to the verdict's input.

    Args:
        load: puts the log's lines into the connection it is given.
        experiment: salt, arms and times; of a ramp, only the stage of `now` is read: stages are never pooled.
        config: its [experiment] section names metrics, attribution window, caps and who is a bot.
        now: UTC microseconds; what was observed later is not read.
        before: user_id and, by name, the same totals in a period before the start (the covariates of CUPED; any
            subset of the totals). A user who is absent had no activity: zeros. None: no CUPED.

    Raises:
        InputError: the [experiment] section is not usable, or `before` has no user_id.
    """
    section = config.experiment
    metrics = judged_metrics(section)
    totals = totals_of(metrics)
    with tempfile.TemporaryDirectory(prefix="omnifeed-gate-") as scratch:
        connection = duckdb.connect(
            str(Path(scratch) / "gate.duckdb"), config={"memory_limit": "1GiB", "preserve_insertion_order": False}
        )
        try:
            load(connection)
            counts = reduce_log(connection, experiment.stage(now), section, totals, now, experiment.start_ts)
            if not counts.exposures_used:
                return Evidence(counts, ())
            caps = {total.name: cap for total in totals if (cap := cap_of(total, section)) is not None}
            covariates = _covariates(connection, before, totals, caps)
            moments = _Moments(connection, totals, covariates, _pairs(metrics, covariates), caps)
            seen = connection.execute("SELECT DISTINCT day FROM user_day ORDER BY day").fetchall()
            bots = counts.users_too_busy + counts.users_clicking_all
            day_logs, lags = _logged(connection)
            return Evidence(
                counts,
                (*moments.numbers(), *moments.numbers(by_scenario=True)),
                days=tuple(DayNumbers(int(day), moments.numbers(until=int(day))) for (day,) in seen),
                groups=_groups(connection),
                day_logs=day_logs,
                lags=lags,
                unfiltered=moments.numbers(bots=True) if bots else (),
            )
        finally:
            connection.close()


def _covariates(
    connection: duckdb.DuckDBPyConnection, before: pa.Table | None, totals: Sequence[Metric], caps: dict[str, float]
) -> tuple[str, ...]:
    """`covariate`: one row a user of the period before; returns the totals that it knows."""
    if before is None:
        return ()
    if "user_id" not in before.column_names:
        raise InputError("The table of the period before has no column 'user_id'.", "Add it; one row a user.")
    known = tuple(total.name for total in totals if total.name in before.column_names)
    connection.register("before_table", before)
    sums = "".join(
        f", {_capped(f'sum(round(coalesce({name}, 0) * {MILLION})::BIGINT)', caps.get(name))} AS {name}"
        for name in known
    )
    connection.execute(f"CREATE TABLE covariate AS SELECT user_id{sums} FROM before_table GROUP BY user_id")
    return known


def _capped(expression: str, cap: float | None) -> str:
    return expression if cap is None else f"least({expression}, {round(cap * MILLION)})"


def _pairs(metrics: Sequence[Metric], covariates: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The covariances that ratios need beside those of a total with itself and with its own covariate."""
    pairs: dict[tuple[str, str], None] = {}
    for metric in metrics:
        if metric.per:
            pairs[metric.of, metric.per] = None
            if metric.of in covariates and metric.per in covariates:
                pairs[metric.of, f"before_{metric.per}"] = None
                pairs[metric.per, f"before_{metric.of}"] = None
                pairs[f"before_{metric.of}", f"before_{metric.per}"] = None
    return tuple(pairs)


@dataclass(frozen=True, slots=True)
class _Moments:
    """Exact integer sums of totals, squares and products by arm, then moments."""

    connection: duckdb.DuckDBPyConnection
    totals: Sequence[Metric]
    covariates: Sequence[str]
    cross: Sequence[tuple[str, str]]
    caps: dict[str, float]

    def numbers(
        self, *, by_scenario: bool = False, until: int | None = None, bots: bool = False
    ) -> tuple[ArmNumbers, ...]:
        names = [total.name for total in self.totals]
        scope = "scenario" if by_scenario else f"'{ALL}'"
        totals = ", ".join(f"{_capped(f'sum({name})', self.caps.get(name))}::HUGEINT AS {name}" for name in names)
        past = "".join(f", coalesce(covariate.{name}, 0)::HUGEINT AS before_{name}" for name in self.covariates)
        pairs = [
            *((name, name) for name in names),
            *((f"before_{name}", f"before_{name}") for name in self.covariates),
            *((name, f"before_{name}") for name in self.covariates),
            *self.cross,
        ]
        sums = ", ".join(f"sum({left}), sum({right}), sum({left} * {right})" for left, right in pairs)
        chosen = " AND ".join(
            (*(() if bots else ("bot IS NULL",)), *(() if until is None else (f"day <= {until}",)), "true")
        )
        rows = self.connection.execute(
            f"WITH users AS (SELECT {scope} AS scope, arm, user_id, {totals} FROM user_day "
            f"WHERE {chosen} GROUP BY ALL), joined AS (SELECT users.*{past} FROM users "
            f"{'LEFT JOIN covariate USING (user_id)' if self.covariates else ''}) "
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
                    covariate_mean={name: moments[f"before_{name}", f"before_{name}"][0] for name in self.covariates},
                    covariate_variance={
                        name: moments[f"before_{name}", f"before_{name}"][1] for name in self.covariates
                    },
                    covariance={name: moments[name, f"before_{name}"][1] for name in self.covariates},
                    cross={f"{left} {right}": moments[left, right][1] for left, right in self.cross},
                )
            )
        return tuple(numbers)


def _groups(connection: duckdb.DuckDBPyConnection) -> tuple[UserGroup, ...]:
    """Users by arm and by day and device of their first exposure; those left out, by rule."""
    found = []
    for dimension, value, kept in (
        ("day", "first_day::VARCHAR", "bot IS NULL"),
        ("device", "device", "bot IS NULL AND device IS NOT NULL"),
        ("excluded", "bot", "bot IS NOT NULL"),
    ):
        order = "min(first_day), value, arm" if dimension == "day" else "value, arm"
        rows = connection.execute(
            f"SELECT {value} AS value, arm, count(*) FROM unit WHERE {kept} GROUP BY value, arm ORDER BY {order}"
        ).fetchall()
        found += [UserGroup(dimension, str(text), str(arm), int(users)) for text, arm, users in rows]
    return tuple(found)


def _logged(connection: duckdb.DuckDBPyConnection) -> tuple[tuple[DayLog, ...], tuple[Lag, ...]]:
    """What each arm logged on each day, and how late its outcomes became known (in whole milliseconds: exact sums)."""
    events: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for name, query in (
        ("requests", "SELECT arm, request.day, count(*) FROM request JOIN unit USING (user_id)"),
        ("exposures", "SELECT unit.arm, seen.day, sum(exposures) FROM seen JOIN unit USING (user_id)"),
    ):
        for arm, day, count in connection.execute(f"{query} WHERE bot IS NULL GROUP BY 1, 2").fetchall():
            events[str(arm), int(day)][name] = int(count)
    lags: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    rows = connection.execute(
        "SELECT arm, day, name, count(*), sum(lag // 1000), sum((lag // 1000)::HUGEINT * (lag // 1000)) "
        "FROM attributed JOIN unit USING (user_id) WHERE bot IS NULL AND NOT early AND NOT late GROUP BY 1, 2, 3"
    ).fetchall()
    for arm, day, name, count, lag, square in rows:
        events[str(arm), int(day)][str(name)] = int(count)
        lags[str(arm), str(name)] = [
            old + int(new) for old, new in zip(lags[arm, name], (count, lag, square), strict=True)
        ]
    return (
        tuple(DayLog(arm, day, dict(sorted(found.items()))) for (arm, day), found in sorted(events.items())),
        tuple(
            Lag(arm, name, count, lag / (count * 1000), (square * count - lag**2) / (count * max(count - 1, 1) * 1e6))
            for (arm, name), (count, lag, square) in sorted(lags.items())
        ),
    )


def _mean(users: int, total: int) -> float:
    return total / (users * MILLION)


def _covariance(users: int, left: int, right: int, product: int) -> float:
    """Of the sample, from sums in millionths; 0 for a single user. Integers: nothing cancels."""
    return (product * users - left * right) / (users * max(users - 1, 1) * MILLION**2)
