"""From exposure and outcome logs to one row a user, scenario and day: DuckDB, streamed, in bounded memory.

Rules, in the order they apply:

- Of several exposures with one (request_id, item_id) the first by ts wins; the others are counted.
- A user's arm is computed again from the salt, never taken from the log: a challenger's user who was answered by the
  champion (the line says `champion_answer` in `degraded`) stays the challenger's - intention to treat. A line that
  disagrees with the salt without saying so is counted as misassigned, and makes the verdict INVALID.
- Outcomes are keyed by (request_id, item_id, name). Where an outcome is counted, the first observed line that says it
  happened wins (a click is a click, however often it is reported); where it is measured (gmv, dwell_ms), the last
  observed wins, since amounts are corrected later.
- An outcome counts when it happened within the attribution window after its exposure and was known by `now`. One
  without exposure is counted, never joined.
- Values are added up in whole millionths, so that a sum does not depend on the order of the lines, and a decision that
  is computed again is the same to the bit.
- One unreadable line of a file is torn (its writer was killed): skipped and counted. More than one is a broken log.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import duckdb

from omnifeed.config import ExperimentConfig
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.evidence import CHALLENGER, CHAMPION, LogCounts
from omnifeed.experiment.metrics import METRICS, Metric
from omnifeed.tables import OUTCOMES

DAY = 86_400_000_000  # microseconds
HOUR = 3_600_000_000
MILLION = 1_000_000
LARGEST = 1e12  # a value beyond it is malformed, as is a negative one

_EXPOSURE = {
    "request_id": "VARCHAR",
    "item_id": "VARCHAR",
    "user_id": "VARCHAR",
    "scenario": "VARCHAR",
    "arm": "VARCHAR",
    "release": "VARCHAR",
    "experiment": "VARCHAR",
    "ts": "BIGINT",
    "degraded": "VARCHAR[]",
}
_OUTCOME = {
    "request_id": "VARCHAR",
    "item_id": "VARCHAR",
    "name": "VARCHAR",
    "value": "DOUBLE",
    "ts": "BIGINT",
    "observed_ts": "BIGINT",
}
_MEASURED = tuple(metric.outcome for metric in METRICS.values() if not metric.counts)
_KNOWN = (*OUTCOMES, *_MEASURED, "viewed")


def reduce_log(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    experiment: Experiment,
    section: ExperimentConfig,
    metrics: Sequence[Metric],
    now: int,
) -> LogCounts:
    """Read the logs of `experiments/<name>` and leave two tables in the connection.

    `unit`: user_id, arm (as the salt assigns it). `user_day`: user_id, arm, scenario, day (from 0, 24 hours each from
    the experiment's start), and a column for each metric: the user's total over that day's exposures, in
    millionths, uncapped.

    Args:
        connection: DuckDB, on disk where the log may exceed memory.
        folder: holds `exposures/*.jsonl` and `outcomes/*.jsonl`; either may be missing.
        experiment: salt, arms and times.
        section: the attribution window.
        metrics: what to total.
        now: UTC microseconds; exposures after it and outcomes observed after it are not used.
    """
    _load(connection, "exposure_line", folder / "exposures", _EXPOSURE, optional=("degraded",))
    _load(connection, "outcome_line", folder / "outcomes", _OUTCOME)
    _choose_exposures(connection, experiment, now)
    _assign(connection, experiment)
    _choose_outcomes(connection, now)
    _attribute(connection, section, metrics, experiment.start_ts)
    return _counts(connection, experiment, now)


def _literal(values: Sequence[str]) -> str:
    return "(" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + ")"


def _load(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    folder: Path,
    columns: dict[str, str],
    optional: Sequence[str] = (),
) -> None:
    """Every line of the folder's files; `whole` says whether it parsed and has all its fields."""
    typed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    connection.execute(f"CREATE TABLE {table} ({typed}, file VARCHAR, whole BOOLEAN)")
    files = [str(path) for path in sorted(folder.glob("*.jsonl")) if path.stat().st_size]
    if files:
        whole = " AND ".join(f"{name} IS NOT NULL" for name in columns if name not in optional)
        kinds = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
        connection.execute(
            f"INSERT INTO {table} SELECT {', '.join(columns)}, filename, {whole} "
            f"FROM read_json(?, format = 'newline_delimited', ignore_errors = true, columns = {{{kinds}}}, "
            "filename = true)",
            [files],
        )


def _choose_exposures(connection: duckdb.DuckDBPyConnection, experiment: Experiment, now: int) -> None:
    """`exposure`: the first line of each (request, item), inside the experiment's time."""
    end = min(experiment.end_ts, now + 1)
    connection.execute(
        "CREATE VIEW exposure_inside AS "
        "SELECT rowid AS line, request_id, item_id, user_id, scenario, arm, release, ts, "
        "coalesce(list_contains(degraded, 'champion_answer'), false) AS crossed FROM exposure_line "
        f"WHERE whole AND experiment IN {_literal([experiment.name])} AND ts >= {experiment.start_ts} AND ts < {end}"
    )
    connection.execute(
        "CREATE TABLE exposure_repeated AS SELECT line FROM ("
        "  SELECT line, row_number() OVER (PARTITION BY request_id, item_id ORDER BY ts, user_id, arm, release) AS n"
        "  FROM exposure_inside WHERE hash(request_id, item_id) IN ("
        "    SELECT hash(request_id, item_id) FROM exposure_inside GROUP BY 1 HAVING count(*) > 1)"
        ") WHERE n > 1"
    )
    connection.execute(
        "CREATE VIEW exposure AS SELECT * FROM exposure_inside WHERE line NOT IN (SELECT line FROM exposure_repeated)"
    )


def _assign(connection: duckdb.DuckDBPyConnection, experiment: Experiment) -> None:
    """`seen`: exposures by user, scenario, day and what was logged; `unit`: each user's arm.

    The same function as `assignment.assign`, in SQL: SHA-256 of salt, NUL, user; first 8 bytes as a number in [0, 1).
    """
    connection.execute(
        f"CREATE TABLE seen AS SELECT user_id, scenario, (ts - {experiment.start_ts}) // {DAY} AS day, arm, release, "
        "crossed, count(*) AS exposures FROM exposure GROUP BY ALL"
    )
    limits = itertools.accumulate(arm.weight for arm in experiment.arms)
    cases = " ".join(
        f"WHEN point < {limit!r}::DOUBLE THEN {_literal([arm.name])}"
        for arm, limit in zip(experiment.arms[:-1], limits, strict=False)
    )
    connection.execute(
        f"CREATE TABLE unit AS SELECT user_id, CASE {cases} ELSE {_literal([experiment.arms[-1].name])} END AS arm "
        "FROM (SELECT user_id, ('0x' || substr(sha256(? || chr(0) || user_id), 1, 16))::UBIGINT::DOUBLE "
        "/ 18446744073709551616 AS point FROM (SELECT DISTINCT user_id FROM seen))",
        [experiment.salt],
    )


def _choose_outcomes(connection: duckdb.DuckDBPyConnection, now: int) -> None:
    """`outcome`: one line of each (request, item, name)."""
    connection.execute(
        f"CREATE VIEW outcome_known AS SELECT * FROM outcome_line WHERE whole AND observed_ts <= {now} "
        f"AND name IN {_literal(_KNOWN)} AND value BETWEEN 0 AND {LARGEST}"
    )
    connection.execute(
        "CREATE TABLE outcome AS "
        "SELECT request_id, item_id, name, 1.0 AS value, arg_min(ts, (observed_ts, ts)) AS ts FROM outcome_known "
        f"WHERE name NOT IN {_literal(_MEASURED)} AND value > 0 GROUP BY ALL "
        "UNION ALL "
        "SELECT request_id, item_id, name, arg_max(value, (observed_ts, ts, value)) AS value, "
        "arg_max(ts, (observed_ts, ts, value)) AS ts FROM outcome_known "
        f"WHERE name IN {_literal(_MEASURED)} GROUP BY request_id, item_id, name"
    )


def _attribute(
    connection: duckdb.DuckDBPyConnection, section: ExperimentConfig, metrics: Sequence[Metric], start_ts: int
) -> None:
    """`attributed`: outcomes joined to their exposure; `user_day`: totals."""
    connection.execute(
        f"CREATE TABLE attributed AS SELECT user_id, scenario, (e.ts - {start_ts}) // {DAY} AS day, name, value, "
        f"o.ts < e.ts AS early, o.ts > e.ts + {section.attribution_hours * HOUR} AS late "
        "FROM outcome o JOIN exposure e USING (request_id, item_id)"
    )
    sums = ", ".join(
        f"sum(round(value * {metric.scale * MILLION!r})::BIGINT) FILTER (name = '{metric.outcome}') AS {metric.name}"
        for metric in metrics
    )
    names = ", ".join(f"coalesce({metric.name}, 0) AS {metric.name}" for metric in metrics)
    connection.execute(
        "CREATE TABLE user_day AS "
        f"WITH totals AS (SELECT user_id, scenario, day, {sums} FROM attributed "
        "WHERE NOT early AND NOT late GROUP BY ALL), days AS (SELECT DISTINCT user_id, scenario, day FROM seen) "
        f"SELECT user_id, unit.arm, scenario, day, {names} FROM days JOIN unit USING (user_id) "
        "LEFT JOIN totals USING (user_id, scenario, day)"
    )


def _counts(connection: duckdb.DuckDBPyConnection, experiment: Experiment, now: int) -> LogCounts:
    def number(query: str) -> int:
        return int(connection.execute(query).fetchall()[0][0] or 0)

    releases = {arm.name: arm.release for arm in experiment.arms}
    as_assigned = " OR ".join(
        f"(unit.arm IN {_literal([name])} AND seen.arm = unit.arm AND release IN {_literal([release])})"
        for name, release in releases.items()
    )
    crossed = f"(crossed AND unit.arm = '{CHALLENGER}' AND release IN {_literal([releases[CHAMPION]])})"
    logged = "SELECT count(DISTINCT user_id) FROM seen JOIN unit USING (user_id) WHERE"
    bad = [
        lines
        for table in ("exposure_line", "outcome_line")
        for (lines,) in connection.execute(f"SELECT count(*) FROM {table} WHERE NOT whole GROUP BY file").fetchall()
    ]
    exposures = number("SELECT count(*) FROM exposure_line WHERE whole")
    foreign = number(
        f"SELECT count(*) FROM exposure_line WHERE whole AND experiment NOT IN {_literal([experiment.name])}"
    )
    used = number("SELECT sum(exposures) FROM seen")
    repeated = number("SELECT count(*) FROM exposure_repeated")
    observed = f"FROM outcome_line WHERE whole AND observed_ts <= {now}"
    unknown = number(f"SELECT count(*) {observed} AND name NOT IN {_literal(_KNOWN)}")
    known = number("SELECT count(*) FROM outcome_known")
    chosen = number("SELECT count(*) FROM outcome")
    silent = number(f"SELECT count(*) FROM outcome_known WHERE value = 0 AND name NOT IN {_literal(_MEASURED)}")
    joined = number("SELECT count(*) FROM attributed")
    early = number("SELECT count(*) FROM attributed WHERE early")
    late = number("SELECT count(*) FROM attributed WHERE late")
    return LogCounts(
        exposures=exposures,
        exposures_used=used,
        exposures_repeated=repeated,
        exposures_outside=exposures - foreign - used - repeated,
        exposures_foreign=foreign,
        requests=number("SELECT count(DISTINCT hash(request_id)) FROM exposure"),
        outcomes=number(f"SELECT count(*) {observed}"),
        outcomes_used=joined - early - late,
        outcomes_repeated=known - silent - chosen,
        outcomes_unexposed=chosen - joined,
        outcomes_late=late,
        outcomes_early=early,
        outcomes_unknown=unknown,
        unreadable=sum(lines for lines in bad if lines > 1),
        torn=sum(lines for lines in bad if lines == 1),
        malformed=number(f"SELECT count(*) {observed} AND NOT (value BETWEEN 0 AND {LARGEST})"),
        users_crossed=number(f"{logged} {crossed}"),
        users_misassigned=number(f"{logged} NOT ({as_assigned} OR {crossed})"),
    )
