"""From an experiment's lines to one row a user, scenario and day: DuckDB, in bounded memory.

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

What can be said of a day alone is made in `days` and kept; here come the users: their arm, whether they are bots, and
their totals.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import duckdb

from omnifeed.config import ExperimentConfig
from omnifeed.experiment.assignment import HELD, Experiment
from omnifeed.experiment.days import HOUR, MILLION, DayCounts, reduce_days
from omnifeed.experiment.evidence import CHALLENGER, CHAMPION, LogCounts
from omnifeed.experiment.intake import BEFORE, DAY, FOREIGN, Intake
from omnifeed.experiment.metrics import (
    ANSWERED,
    AUTHORED,
    DERIVED,
    FIRST_SHOWN,
    LAST_WEEK,
    OF_TAIL,
    SERVED,
    WAITED,
    Metric,
)
from omnifeed.experiment.read import literal

__all__ = ["DAY", "HOUR", "MILLION", "arm_sql", "literal", "reduce_log"]


def reduce_log(
    connection: duckdb.DuckDBPyConnection,
    intake: Intake,
    section: ExperimentConfig,
    totals: Sequence[Metric],
    now: int,
    at: int,
) -> LogCounts:
    """Reduce an experiment's lines to the tables that the numbers are counted from.

    `unit`: user_id, arm (as the salt assigns it), first_day and device of the first exposure, `bot`: the rule that
    leaves the user out, or null. `user_day`: user_id, arm, bot, scenario, day (from 0, 24 hours each from the start of
    the stage), and a column for each total: the user's over that day's exposures, in millionths, uncapped. `seen`,
    `requests` and `sums`: see `days.TABLES`.

    Args:
        connection: DuckDB, with room on disk where the log may exceed memory.
        intake: the experiment and its lines; what is computed of a day is kept there.
        section: the attribution window, and who is a bot.
        totals: what to add up.
        now: UTC microseconds; exposures after it and outcomes observed after it are not used.
        at: of a ramp, only the exposures of the stage of this moment are used.
    """
    first_shown = any(total.outcome == FIRST_SHOWN for total in totals)
    counts = reduce_days(connection, intake, section, now, at, first_shown)
    experiment = intake.experiment.stage(at)
    _assign(connection, experiment, section)
    _total(connection, totals, (experiment.end_ts - experiment.start_ts) // DAY - 7)
    return _counts(connection, intake, experiment, counts)


def arm_sql(experiment: Experiment) -> str:
    """SQL for the arm of `user_id`, the same function as `assignment.assign`: SHA-256 of salt, NUL, user; first 8 bytes
    as a number in [0, 1). Without a salt, the arm that is `logged`.
    """
    if not experiment.salt:
        return "logged"
    point = point_sql(experiment.salt)
    limits = itertools.accumulate(arm.weight for arm in experiment.arms)
    cases = " ".join(
        f"WHEN {point} < {limit!r}::DOUBLE THEN {literal([arm.name])}"
        for arm, limit in zip(experiment.arms[:-1], limits, strict=False)
    )
    if experiment.holdback is not None:
        held = f"{point_sql(experiment.holdback.salt)} < {experiment.holdback.share!r}::DOUBLE"
        cases = f"WHEN {held} THEN {literal([HELD])} {cases}"
    return f"CASE {cases} ELSE {literal([experiment.arms[-1].name])} END"


def point_sql(salt: str) -> str:
    """SQL for the number of `user_id` under a salt, the same function as `assignment.unit_interval`."""
    salted = f"{literal([salt])} || chr(0) || user_id"
    return f"('0x' || substr(sha256({salted}), 1, 16))::UBIGINT::DOUBLE / 18446744073709551616"


def _assign(connection: duckdb.DuckDBPyConnection, experiment: Experiment, section: ExperimentConfig) -> None:
    """`assigned`: each user's arm, and who is a bot; `unit`: those of the experiment's arms."""
    connection.execute(
        "CREATE TEMP TABLE bot AS SELECT user_id, min(rule) AS rule FROM ("
        "  SELECT user_id, 'too busy' AS rule FROM requests GROUP BY user_id, day "
        f"  HAVING sum(requests) > {section.max_requests_per_day}"
        "  UNION ALL SELECT user_id, 'clicking all' FROM sums WHERE name IN ('click', 'viewed') GROUP BY user_id "
        f"  HAVING coalesce(sum(joined) FILTER (name = 'viewed'), 0) >= {section.bot_views} AND "
        "  coalesce(sum(joined) FILTER (name = 'click'), 0) >= coalesce(sum(joined) FILTER (name = 'viewed'), 0)"
        ") GROUP BY user_id"
    )
    connection.execute(
        f"CREATE TEMP TABLE assigned AS SELECT user_id, {arm_sql(experiment)} AS arm, first_day, device, rule AS bot "
        "FROM ("
        "  SELECT user_id, min(day) AS first_day, arg_min(device, (first_ts, device)) AS device, "
        "  arg_min(arm, (first_ts, arm)) AS logged FROM seen GROUP BY user_id"
        ") LEFT JOIN bot USING (user_id)"
    )
    connection.execute(f"CREATE TEMP VIEW unit AS SELECT * FROM assigned WHERE arm <> '{HELD}'")


def _total(connection: duckdb.DuckDBPyConnection, totals: Sequence[Metric], last_week: int) -> None:
    """`user_day`: the totals of each user, scenario and day."""
    sums = "".join(
        f", (sum(value) FILTER (name = '{total.outcome}'))::HUGEINT AS {total.name}"
        for total in totals
        if total.outcome not in DERIVED
    )
    first = "LEFT JOIN first_shown USING (user_id, scenario, day)"
    if any(total.outcome == FIRST_SHOWN for total in totals):
        connection.execute(
            "CREATE TEMP TABLE first_shown AS SELECT user_id, scenario, day, count(*) AS items FROM ("
            "  SELECT user_id, scenario, item, min(day) AS day FROM shown GROUP BY user_id, scenario, item"
            ") GROUP BY ALL"
        )
    else:
        first = ""
    derived = {
        SERVED: f"days.exposures * {MILLION}",
        FIRST_SHOWN: f"coalesce(first_shown.items, 0) * {MILLION}",
        LAST_WEEK: f"(day >= {last_week})::BIGINT * {MILLION}",
        WAITED: "days.waited",
        **{name: f"days.{name} * {MILLION}" for name in (ANSWERED, AUTHORED, OF_TAIL)},
    }
    seen = ", ".join(f"sum({name})::BIGINT AS {name}" for name in ("exposures", ANSWERED, WAITED, AUTHORED, OF_TAIL))
    names = ", ".join(
        f"{derived.get(total.outcome, f'coalesce(totals.{total.name}, 0)')} AS {total.name}" for total in totals
    )
    connection.execute(
        "CREATE TEMP TABLE user_day AS "
        f"WITH totals AS (SELECT user_id, scenario, day{sums} FROM sums GROUP BY user_id, scenario, day), "
        f"days AS (SELECT user_id, scenario, day, {seen} FROM seen GROUP BY ALL) "
        f"SELECT user_id, unit.arm, unit.bot, scenario, days.day, {names} FROM days JOIN unit USING (user_id) "
        f"LEFT JOIN totals USING (user_id, scenario, day) {first}"
    )


def _counts(
    connection: duckdb.DuckDBPyConnection, intake: Intake, experiment: Experiment, days: Sequence[DayCounts]
) -> LogCounts:
    def number(query: str) -> int:
        return int(connection.execute(query).fetchall()[0][0] or 0)

    releases = {arm.name: arm.release for arm in experiment.arms}
    if experiment.holdback is not None:
        releases[HELD] = experiment.holdback.release
    as_assigned = " OR ".join(
        f"(assigned.arm IN {literal([name])} AND seen.arm = assigned.arm AND release IN {literal([release])})"
        for name, release in releases.items()
    )
    crossed = (
        f"(crossed AND assigned.arm = '{CHALLENGER}' AND release IN {literal([releases[CHAMPION]])})"
        if {CHAMPION, CHALLENGER} <= set(releases)
        else "false"
    )
    logged = "SELECT count(DISTINCT user_id) FROM seen JOIN assigned USING (user_id) WHERE"
    bad = [file.broken + file.torn for file in intake.files.values()]
    joined, early, late, viewed = connection.execute(
        "SELECT coalesce(sum(joined), 0)::BIGINT, coalesce(sum(early), 0)::BIGINT, coalesce(sum(late), 0)::BIGINT, "
        "coalesce(sum(outcomes) FILTER (name = 'viewed'), 0)::BIGINT FROM sums"
    ).fetchall()[0]
    exposures = sum(extent.lines for batch in intake.batches for extent in batch.exposures.values())
    foreign = intake.extent("exposures", FOREIGN).lines
    used = number("SELECT sum(exposures) FROM seen")
    repeated = sum(day.repeated for day in days)
    chosen, unexposed = sum(day.chosen for day in days), sum(day.unexposed for day in days)
    requests, missing = connection.execute("SELECT sum(requests), sum(missing) FROM requests").fetchall()[0]
    return LogCounts(
        exposures=exposures,
        exposures_used=used,
        exposures_viewed=viewed,
        exposures_repeated=repeated,
        exposures_missing=int(missing or 0),
        exposures_outside=exposures - foreign - used - repeated,
        exposures_before=intake.extent("exposures", BEFORE).lines,
        exposures_foreign=foreign,
        requests=int(requests or 0),
        outcomes=sum(day.outcomes for day in days),
        outcomes_used=joined - early - late,
        outcomes_repeated=sum(day.known - day.silent - day.chosen for day in days),
        outcomes_unexposed=unexposed,
        outcomes_outside=chosen - joined - unexposed,
        outcomes_late=late,
        outcomes_early=early,
        outcomes_skewed=sum(day.skewed for day in days),
        outcomes_unknown=sum(day.unknown for day in days),
        unreadable=sum(lines for lines in bad if lines > 1),
        torn=sum(lines for lines in bad if lines == 1),
        malformed=sum(day.malformed for day in days),
        users_crossed=number(f"{logged} {crossed}"),
        users_misassigned=number(f"{logged} NOT ({as_assigned} OR {crossed})"),
        users_held=number(f"SELECT count(*) FROM assigned WHERE arm = '{HELD}'"),
        users_too_busy=number("SELECT count(*) FROM unit WHERE bot = 'too busy'"),
        users_clicking_all=number("SELECT count(*) FROM unit WHERE bot = 'clicking all'"),
    )
