"""From one row a user and day to the counts, means and variances that the verdict is computed from."""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from omnifeed.config import Config
from omnifeed.errors import InputError, OmnifeedError
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.evidence import ALL, ArmNumbers, DayLog, DayNumbers, Evidence, Lag, UserGroup
from omnifeed.experiment.intake import read_log
from omnifeed.experiment.log import MILLION, reduce_log
from omnifeed.experiment.metrics import Metric, cap_of, judged_metrics, totals_of
from omnifeed.experiment.read import Log

MEMORY = "768MiB"  # of DuckDB; beyond it goes to disk


def observe(
    log: Log,
    experiment: Experiment,
    config: Config,
    now: int,
    before: pa.Table | None = None,
    keep: Path | None = None,
    at: int | None = None,
) -> Evidence:
    """Read an experiment's log and reduce it to the verdict's input.

    Args:
        log: where the lines stand.
        experiment: salt, arms and times; of a ramp, only the stage of `at` is read: stages are never pooled.
        config: its [experiment] section names metrics, attribution window, caps and who is a bot.
        now: UTC microseconds; what was observed later is not read.
        before: user_id and, by name, the same totals in a period before the start (the covariates of CUPED; any
            subset of the totals). A user who is absent had no activity: zeros. None: no CUPED.
        keep: a folder for what was read and computed of whole days, so that the next look reads only what is new; two
            looks at once wait for each other. None: everything is read, and nothing kept.
        at: a moment of the stage that is read; default `now`.

    Raises:
        InputError: the [experiment] section is not usable, a table cannot be read, or `before` has no user_id.
        OmnifeedError: what was kept cannot be read or written.
    """
    section = config.experiment
    metrics = judged_metrics(section)
    totals = totals_of(metrics)
    with _scratch() as (scratch, connection), _locked(keep):
        try:
            intake = read_log(connection, log, experiment, keep or scratch / "lines")
            counts = reduce_log(connection, intake, section, totals, now, now if at is None else at)
            if keep is not None:
                intake.save()
            if not counts.exposures_used:
                return Evidence(counts, ())
            caps = {total.name: cap for total in totals if (cap := cap_of(total, section)) is not None}
            covariates = _covariates(connection, before, totals, caps)
            moments = _Moments(connection, totals, covariates, _pairs(metrics, covariates), caps)
            bots = counts.users_too_busy + counts.users_clicking_all
            day_logs, lags = _logged(connection)
            return Evidence(
                counts,
                (*moments.numbers(), *moments.numbers(by_scenario=True)),
                days=moments.by_day(),
                groups=_groups(connection),
                day_logs=day_logs,
                lags=lags,
                unfiltered=moments.numbers(bots=True) if bots else (),
            )
        except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.InvalidInputException) as error:
            raise OmnifeedError(
                f"The log of experiment {experiment.name} could not be reduced: {str(error).splitlines()[0]}",
                f"Free some disk space{f', delete {keep}' if keep else ''} and run again; the log itself is untouched.",
            ) from error


@contextlib.contextmanager
def _scratch() -> Iterator[tuple[Path, duckdb.DuckDBPyConnection]]:
    with tempfile.TemporaryDirectory(prefix="omnifeed-gate-") as folder:
        settings = {"memory_limit": MEMORY, "preserve_insertion_order": False, "temp_directory": f"{folder}/spilled"}
        connection = duckdb.connect(config=settings)
        try:
            yield Path(folder), connection
        finally:
            connection.close()


@contextlib.contextmanager
def _locked(keep: Path | None) -> Iterator[None]:
    if keep is None:
        yield
        return
    lock = keep.with_name(f".{keep.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a", encoding="utf-8")
    except OSError as error:
        raise OmnifeedError(
            f"{lock} could not be written: {error.strerror or error}.", "Fix the permissions of its folder."
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # dropped with the process
        yield


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

    def numbers(self, *, by_scenario: bool = False, bots: bool = False) -> tuple[ArmNumbers, ...]:
        """Of all days; in every scenario, or with the bots left in."""
        names = [total.name for total in self.totals]
        scope = "scenario" if by_scenario else f"'{ALL}'"
        totals = ", ".join(f"{_capped(f'sum({name})', self.caps.get(name))}::HUGEINT AS {name}" for name in names)
        past = "".join(f", coalesce(covariate.{name}, 0)::HUGEINT AS before_{name}" for name in self.covariates)
        sums = ", ".join(f"sum({left}), sum({right}), sum({left} * {right})" for left, right in self._products())
        rows = self.connection.execute(
            f"WITH users AS (SELECT {scope} AS scope, arm, user_id, {totals} FROM user_day "
            f"WHERE {'true' if bots else 'bot IS NULL'} GROUP BY ALL), joined AS (SELECT users.*{past} FROM users "
            f"{'LEFT JOIN covariate USING (user_id)' if self.covariates else ''}) "
            f"SELECT scope, arm, count(*), {sums} FROM joined GROUP BY scope, arm ORDER BY scope, arm"
        ).fetchall()
        return tuple(self._arm(str(name), str(arm), int(users), values) for name, arm, users, *values in rows)

    def by_day(self) -> tuple[DayNumbers, ...]:
        """Cumulative numbers after each day with traffic, in one pass: what each day adds to the sums, added up."""
        names = [total.name for total in self.totals]
        whole = [(name, f"{_capped(f'sum(days.{name}) OVER seen', self.caps.get(name))}::HUGEINT") for name in names]
        past = [(f"before_{name}", f"coalesce(covariate.{name}, 0)::HUGEINT") for name in self.covariates]
        now = ", ".join(f"{expression} AS {name}" for name, expression in (*whole, *past))
        earlier = ", ".join(f"lag({name}, 1, 0::HUGEINT) OVER seen AS was_{name}" for name, _ in (*whole, *past))
        sums = ", ".join(
            f"sum({left} - was_{left}), sum({right} - was_{right}), sum({left} * {right} - was_{left} * was_{right})"
            for left, right in self._products()
        )
        each = ", ".join(f"sum({name})::HUGEINT AS {name}" for name in names)
        window = "WINDOW seen AS (PARTITION BY user_id ORDER BY day)"
        rows = self.connection.execute(
            f"WITH days AS (SELECT arm, user_id, day, {each} FROM user_day WHERE bot IS NULL GROUP BY ALL), "
            f"until AS (SELECT days.arm, user_id, days.day, {now} FROM days "
            f"{'LEFT JOIN covariate USING (user_id)' if self.covariates else ''} {window}), "
            f"steps AS (SELECT *, row_number() OVER seen = 1 AS new, {earlier} FROM until {window}) "
            f"SELECT day, arm, count(*) FILTER (new), {sums} FROM steps GROUP BY day, arm ORDER BY day, arm"
        ).fetchall()
        found = []
        running: dict[str, list[int]] = {}
        for (day,) in self.connection.execute("SELECT DISTINCT day FROM user_day ORDER BY day").fetchall():
            for arm, *values in (values for at, *values in rows if at == day):
                former = running.get(arm, [0] * len(values))
                running[arm] = [old + new for old, new in zip(former, values, strict=True)]
            arms = tuple(self._arm(ALL, arm, values[0], values[1:]) for arm, values in sorted(running.items()))
            found.append(DayNumbers(int(day), arms))
        return tuple(found)

    def _products(self) -> list[tuple[str, str]]:
        names = [total.name for total in self.totals]
        return [
            *((name, name) for name in names),
            *((f"before_{name}", f"before_{name}") for name in self.covariates),
            *((name, f"before_{name}") for name in self.covariates),
            *self.cross,
        ]

    def _arm(self, scope: str, arm: str, users: int, values: Sequence[int]) -> ArmNumbers:
        names = [total.name for total in self.totals]
        triples = zip(values[0::3], values[1::3], values[2::3], strict=True)
        moments = {
            pair: (_mean(users, left), _covariance(users, left, right, product))
            for pair, (left, right, product) in zip(self._products(), triples, strict=True)
        }
        past = {name: moments[f"before_{name}", f"before_{name}"] for name in self.covariates}
        return ArmNumbers(
            scope=scope,
            arm=arm,
            users=users,
            mean={name: moments[name, name][0] for name in names},
            variance={name: moments[name, name][1] for name in names},
            covariate_mean={name: mean for name, (mean, _) in past.items()},
            covariate_variance={name: variance for name, (_, variance) in past.items()},
            covariance={name: moments[name, f"before_{name}"][1] for name in self.covariates},
            cross={f"{left} {right}": moments[left, right][1] for left, right in self.cross},
        )


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
        ("requests", "SELECT arm, day, sum(requests) FROM requests JOIN unit USING (user_id)"),
        ("exposures", "SELECT unit.arm, seen.day, sum(exposures) FROM seen JOIN unit USING (user_id)"),
    ):
        for arm, day, count in connection.execute(f"{query} WHERE bot IS NULL GROUP BY 1, 2").fetchall():
            events[str(arm), int(day)][name] = int(count)
    lags: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    rows = connection.execute(
        "SELECT arm, day, name, sum(outcomes), sum(lag), sum(lag_square) FROM sums JOIN unit USING (user_id) "
        "WHERE bot IS NULL AND outcomes > 0 GROUP BY arm, day, name"
    ).fetchall()
    for arm, day, name, count, lag, square in rows:
        events[str(arm), int(day)][str(name)] = int(count)
        lags[str(arm), str(name)] = [
            old + int(new) for old, new in zip(lags[str(arm), str(name)], (count, lag, square), strict=True)
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
