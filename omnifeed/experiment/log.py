"""From exposure and outcome logs to one row a user, scenario and day: DuckDB, streamed, in bounded memory.

Rules, in the order they apply:

- Of several exposures with one (request_id, item_id) the first by ts wins; the others are counted.
- A user's arm is computed again from the salt, never taken from the log: a challenger's user who was answered by the
  champion (the line says `champion_answer` in `degraded`) stays the challenger's - intention to treat. A line that
  disagrees with the salt without saying so is counted as misassigned, and makes the verdict INVALID. Without a salt
  (somebody else assigns) a user's arm is that of their first line, and a user in two arms is misassigned.
- Outcomes are keyed by (request_id, item_id, name). Where an outcome is counted, the first observed line that says it
  happened wins (a click is a click, however often it is reported); where it is measured (gmv, dwell_ms), the last
  observed wins, since amounts are corrected later.
- An outcome counts when it happened within the attribution window after its exposure and was known by `now`. One
  without exposure is counted, never joined.
- A user with more requests on one day, or more views with a click on every one, than the [experiment] section allows is
  a bot: marked, and left out of both arms.
- Values are added up in whole millionths, so that a sum does not depend on the order of the lines, and a decision that
  is computed again is the same to the bit.
- One unreadable line of a file is torn (its writer was killed): skipped and counted. More than one is a broken log.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import duckdb

from omnifeed.config import ExperimentConfig
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.evidence import CHALLENGER, CHAMPION, LogCounts
from omnifeed.experiment.metrics import DERIVED, FIRST_SHOWN, LAST_WEEK, METRICS, SERVED, Metric
from omnifeed.tables import OUTCOMES

DAY = 86_400_000_000  # microseconds
HOUR = 3_600_000_000
MILLION = 1_000_000
LARGEST = 1e12  # a value beyond it is malformed, as is a negative one

_MEASURED = tuple(metric.outcome for metric in METRICS.values() if not metric.counts)
KNOWN = (*OUTCOMES, *_MEASURED, "viewed")


def reduce_log(
    connection: duckdb.DuckDBPyConnection,
    experiment: Experiment,
    section: ExperimentConfig,
    totals: Sequence[Metric],
    now: int,
    opened_ts: int,
) -> LogCounts:
    """Reduce `exposure_line` and `outcome_line` (see `read`) to the tables that the numbers are counted from.

    `unit`: user_id, arm (as the salt assigns it), first_day and device of the first exposure, `bot`: the rule that
    leaves the user out, or null. `user_day`: user_id, arm, bot, scenario, day (from 0, 24 hours each from the
    experiment's start), and a column for each total: the user's over that day's exposures, in millionths, uncapped.
    `request`: one row a request. `attributed`: one row an outcome with its exposure.

    Args:
        connection: DuckDB, on disk where the log may exceed memory.
        experiment: salt, arms and times; of a ramp, one stage.
        section: the attribution window, and who is a bot.
        totals: what to add up.
        now: UTC microseconds; exposures after it and outcomes observed after it are not used.
        opened_ts: start of the first stage; an exposure before it comes from a wrong clock.
    """
    _choose_exposures(connection, experiment, now)
    _choose_outcomes(connection, now)
    _attribute(connection, section)
    _assign(connection, experiment, section)
    _total(connection, totals, (experiment.end_ts - experiment.start_ts) // DAY - 7)
    return _counts(connection, experiment, now, opened_ts)


def literal(values: Sequence[str]) -> str:
    """An SQL list of strings."""
    return "(" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + ")"


def _choose_exposures(connection: duckdb.DuckDBPyConnection, experiment: Experiment, now: int) -> None:
    """`exposure`: the first line of each (request, item) inside the experiment's time; `seen`, `request`: counts."""
    end = min(experiment.end_ts, now + 1)
    connection.execute(
        "CREATE VIEW exposure_inside AS "
        "SELECT rowid AS line, request_id, item_id, user_id, scenario, arm, release, ts, position, device, crossed, "
        f"(ts - {experiment.start_ts}) // {DAY} AS day FROM exposure_line "
        f"WHERE whole AND experiment IN {literal([experiment.name])} AND ts >= {experiment.start_ts} AND ts < {end}"
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
    connection.execute(
        "CREATE TABLE seen AS SELECT user_id, scenario, day, arm, release, crossed, count(*) AS exposures, "
        "min(ts) AS first_ts, arg_min(device, ts) AS device FROM exposure GROUP BY ALL"
    )
    connection.execute(
        "CREATE TABLE request AS SELECT min(user_id) AS user_id, min(day) AS day, "
        "greatest(max(position) - min(position) + 1 - count(*), 0) AS missing FROM exposure GROUP BY hash(request_id)"
    )


def _choose_outcomes(connection: duckdb.DuckDBPyConnection, now: int) -> None:
    """`outcome`: one line of each (request, item, name)."""
    connection.execute(
        f"CREATE VIEW outcome_known AS SELECT * FROM outcome_line WHERE whole AND observed_ts <= {now} "
        f"AND name IN {literal(KNOWN)} AND value BETWEEN 0 AND {LARGEST}"
    )
    connection.execute(
        "CREATE TABLE outcome AS "
        "SELECT request_id, item_id, name, 1.0 AS value, arg_min(ts, (observed_ts, ts)) AS ts, "
        "min(observed_ts) AS observed_ts FROM outcome_known "
        f"WHERE name NOT IN {literal(_MEASURED)} AND value > 0 GROUP BY ALL "
        "UNION ALL "
        "SELECT request_id, item_id, name, arg_max(value, (observed_ts, ts, value)) AS value, "
        "arg_max(ts, (observed_ts, ts, value)) AS ts, max(observed_ts) AS observed_ts FROM outcome_known "
        f"WHERE name IN {literal(_MEASURED)} GROUP BY request_id, item_id, name"
    )


def _attribute(connection: duckdb.DuckDBPyConnection, section: ExperimentConfig) -> None:
    """`attributed`: outcomes joined to their exposure."""
    connection.execute(
        "CREATE TABLE attributed AS SELECT user_id, scenario, day, name, value, o.observed_ts - o.ts AS lag, "
        f"o.ts < e.ts AS early, o.ts > e.ts + {section.attribution_hours * HOUR} AS late "
        "FROM outcome o JOIN exposure e USING (request_id, item_id)"
    )


def arm_sql(experiment: Experiment) -> str:
    """SQL for the arm of `user_id`, the same function as `assignment.assign`: SHA-256 of salt, NUL, user; first 8 bytes
    as a number in [0, 1). Without a salt, the arm that is `logged`.
    """
    if not experiment.salt:
        return "logged"
    salted = f"{literal([experiment.salt])} || chr(0) || user_id"
    point = f"('0x' || substr(sha256({salted}), 1, 16))::UBIGINT::DOUBLE / 18446744073709551616"
    limits = itertools.accumulate(arm.weight for arm in experiment.arms)
    cases = " ".join(
        f"WHEN {point} < {limit!r}::DOUBLE THEN {literal([arm.name])}"
        for arm, limit in zip(experiment.arms[:-1], limits, strict=False)
    )
    return f"CASE {cases} ELSE {literal([experiment.arms[-1].name])} END"


def _assign(connection: duckdb.DuckDBPyConnection, experiment: Experiment, section: ExperimentConfig) -> None:
    """`unit`: each user's arm, and who is a bot."""
    connection.execute(
        "CREATE TABLE bot AS SELECT user_id, min(rule) AS rule FROM ("
        "  SELECT user_id, 'too busy' AS rule FROM request GROUP BY user_id, day "
        f"  HAVING count(*) > {section.max_requests_per_day}"
        "  UNION ALL SELECT user_id, 'clicking all' FROM attributed WHERE name IN ('click', 'viewed') GROUP BY user_id "
        f"  HAVING count(*) FILTER (name = 'viewed') >= {section.bot_views} "
        "  AND count(*) FILTER (name = 'click') >= count(*) FILTER (name = 'viewed')"
        ") GROUP BY user_id"
    )
    connection.execute(
        f"CREATE TABLE unit AS SELECT user_id, {arm_sql(experiment)} AS arm, first_day, device, rule AS bot FROM ("
        "  SELECT user_id, min(day) AS first_day, arg_min(device, first_ts) AS device, "
        "  arg_min(arm, (first_ts, arm)) AS logged FROM seen GROUP BY user_id"
        ") LEFT JOIN bot USING (user_id)"
    )


def _total(connection: duckdb.DuckDBPyConnection, totals: Sequence[Metric], last_week: int) -> None:
    """`user_day`: the totals of each user, scenario and day."""
    summed = [total for total in totals if total.outcome not in DERIVED]
    sums = "".join(
        f", sum(round(value * {total.scale * MILLION!r})::BIGINT) FILTER (name = '{total.outcome}') AS {total.name}"
        for total in summed
    )
    if any(total.outcome == FIRST_SHOWN for total in totals):
        connection.execute(
            "CREATE TABLE first_shown AS SELECT user_id, scenario, day, count(*) AS items FROM ("
            "  SELECT user_id, scenario, item_id, min(day) AS day FROM exposure GROUP BY user_id, scenario, item_id"
            ") GROUP BY ALL"
        )
        first = "LEFT JOIN first_shown USING (user_id, scenario, day)"
    else:
        first = ""
    derived = {
        SERVED: f"days.exposures * {MILLION}",
        FIRST_SHOWN: f"coalesce(first_shown.items, 0) * {MILLION}",
        LAST_WEEK: f"(day >= {last_week})::BIGINT * {MILLION}",
    }
    names = ", ".join(
        f"{derived.get(total.outcome, f'coalesce(totals.{total.name}, 0)')} AS {total.name}" for total in totals
    )
    connection.execute(
        "CREATE TABLE user_day AS "
        f"WITH totals AS (SELECT user_id, scenario, day{sums} FROM attributed "
        "WHERE NOT early AND NOT late GROUP BY user_id, scenario, day), "
        "days AS (SELECT user_id, scenario, day, sum(exposures)::BIGINT AS exposures FROM seen GROUP BY ALL) "
        f"SELECT user_id, unit.arm, unit.bot, scenario, days.day, {names} FROM days JOIN unit USING (user_id) "
        f"LEFT JOIN totals USING (user_id, scenario, day) {first}"
    )


def _counts(connection: duckdb.DuckDBPyConnection, experiment: Experiment, now: int, opened_ts: int) -> LogCounts:
    def number(query: str) -> int:
        return int(connection.execute(query).fetchall()[0][0] or 0)

    releases = {arm.name: arm.release for arm in experiment.arms}
    as_assigned = " OR ".join(
        f"(unit.arm IN {literal([name])} AND seen.arm = unit.arm AND release IN {literal([release])})"
        for name, release in releases.items()
    )
    crossed = (
        f"(crossed AND unit.arm = '{CHALLENGER}' AND release IN {literal([releases[CHAMPION]])})"
        if {CHAMPION, CHALLENGER} <= set(releases)
        else "false"
    )
    logged = "SELECT count(DISTINCT user_id) FROM seen JOIN unit USING (user_id) WHERE"
    bad = [
        lines
        for table in ("exposure_line", "outcome_line")
        for (lines,) in connection.execute(f"SELECT count(*) FROM {table} WHERE NOT whole GROUP BY file").fetchall()
    ]
    name = literal([experiment.name])
    exposures = number("SELECT count(*) FROM exposure_line WHERE whole")
    foreign = number(f"SELECT count(*) FROM exposure_line WHERE whole AND experiment NOT IN {name}")
    used = number("SELECT sum(exposures) FROM seen")
    repeated = number("SELECT count(*) FROM exposure_repeated")
    observed = f"FROM outcome_line WHERE whole AND observed_ts <= {now}"
    known = number("SELECT count(*) FROM outcome_known")
    chosen = number("SELECT count(*) FROM outcome")
    silent = number(f"SELECT count(*) FROM outcome_known WHERE value = 0 AND name NOT IN {literal(_MEASURED)}")
    joined = number("SELECT count(*) FROM attributed")
    orphans = 0
    if chosen > joined:
        orphans = number(
            "SELECT count(*) FROM outcome ANTI JOIN (SELECT request_id, item_id FROM exposure_line WHERE whole) "
            "USING (request_id, item_id)"
        )
    early = number("SELECT count(*) FROM attributed WHERE early")
    late = number("SELECT count(*) FROM attributed WHERE late")
    return LogCounts(
        exposures=exposures,
        exposures_used=used,
        exposures_viewed=number("SELECT count(*) FROM attributed WHERE name = 'viewed' AND NOT early AND NOT late"),
        exposures_repeated=repeated,
        exposures_missing=number("SELECT sum(missing) FROM request"),
        exposures_outside=exposures - foreign - used - repeated,
        exposures_before=number(
            f"SELECT count(*) FROM exposure_line WHERE whole AND experiment IN {name} AND ts < {opened_ts}"
        ),
        exposures_foreign=foreign,
        requests=number("SELECT count(*) FROM request"),
        outcomes=number(f"SELECT count(*) {observed}"),
        outcomes_used=joined - early - late,
        outcomes_repeated=known - silent - chosen,
        outcomes_unexposed=orphans,
        outcomes_outside=chosen - joined - orphans,
        outcomes_late=late,
        outcomes_early=early,
        outcomes_skewed=number("SELECT count(*) FROM outcome_known WHERE observed_ts < ts"),
        outcomes_unknown=number(f"SELECT count(*) {observed} AND name NOT IN {literal(KNOWN)}"),
        unreadable=sum(lines for lines in bad if lines > 1),
        torn=sum(lines for lines in bad if lines == 1),
        malformed=number(f"SELECT count(*) {observed} AND NOT (value BETWEEN 0 AND {LARGEST})"),
        users_crossed=number(f"{logged} {crossed}"),
        users_misassigned=number(f"{logged} NOT ({as_assigned} OR {crossed})"),
        users_too_busy=number("SELECT count(*) FROM unit WHERE bot = 'too busy'"),
        users_clicking_all=number("SELECT count(*) FROM unit WHERE bot = 'clicking all'"),
    )
