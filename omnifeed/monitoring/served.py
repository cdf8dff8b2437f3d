"""What was served in a window of days, read from the server's logs into DuckDB.

Of repeated exposures the first counts, as everywhere. An outcome counts for its day when it was known by the end of
that day plus the same lag for every day, former ones and the newest alike: otherwise the newest day would always look
worse, because its orders are still on their way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from omnifeed.home import Home
from omnifeed.tables import OUTCOMES

DAY_US = 86_400_000_000

_EXPOSURE = {
    "request_id": "VARCHAR",
    "item_id": "VARCHAR",
    "user_id": "VARCHAR",
    "scenario": "VARCHAR",
    "query": "VARCHAR",
    "release": "VARCHAR",
    "ts": "BIGINT",
    "position": "INTEGER",
    "degraded": "VARCHAR[]",
    "locale": "VARCHAR",
    "device": "VARCHAR",
}
_OUTCOME = {
    "request_id": "VARCHAR",
    "item_id": "VARCHAR",
    "name": "VARCHAR",
    "value": "DOUBLE",
    "observed_ts": "BIGINT",
}
_FEATURES = {
    "request_id": "VARCHAR",
    "user_id": "VARCHAR",
    "scenario": "VARCHAR",
    "query": "VARCHAR",
    "release": "VARCHAR",
    "ts": "BIGINT",
    "degraded": "VARCHAR[]",
    "user_dense": "DOUBLE[]",
    "user_daily_as_of": "BIGINT",
    "user_history_as_of": "BIGINT",
    "history_given": "BOOLEAN",
    "history_item": "VARCHAR[]",
    "history_action": "BIGINT[]",
    "history_scenario": "VARCHAR[]",
    "history_ts": "BIGINT[]",
    "item_id": "VARCHAR[]",
    "kind": "VARCHAR[]",
    "category": "VARCHAR[]",
    "candidate_dense": "DOUBLE[][]",
    "probabilities": "DOUBLE[][]",
    "tasks": "VARCHAR[]",
    "catalogue_ts": "BIGINT",
}


@dataclass(frozen=True, slots=True)
class Window:
    """A day and those that it is compared with, by the midnights at which they begin."""

    others: tuple[int, ...]  # UTC microseconds
    today: int
    lag: int  # from the end of each day: what was known by then counts; microseconds

    def holds(self, ts: str) -> str:
        """SQL: whether a time lies on one of these days."""
        days = ", ".join(map(str, (*self.others, self.today)))
        return f"{ts} - {ts} % {DAY_US} IN ({days})"


@contextmanager
def served(folders: list[Path], window: Window) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with three tables of the window.

    `shown`: one row an item served - day, scenario, release, request_id, user_id, item_id, ts, query, device, locale,
    degraded, viewed, and the outcomes as booleans. `request`: one row a request of it. `logged`: the feature log's
    lines with their day; a line of another list of features is left out by who reads it.

    Args:
        folders: of experiments, `experiments/<name>`.
    """
    with (
        tempfile.TemporaryDirectory(prefix="omnifeed-monitoring-") as scratch,
        duckdb.connect(config={"memory_limit": "2GiB", "temp_directory": scratch}) as connection,
    ):
        inside = window.holds("ts")
        known = f"observed_ts < e.ts - e.ts % {DAY_US} + {DAY_US + window.lag}"
        flags = ", ".join(
            f"coalesce(bool_or(o.name = '{name}' AND o.value > 0), false) AS \"{name}\""
            for name in (*OUTCOMES, "viewed")
        )
        connection.execute(
            "CREATE TABLE exposure AS SELECT * EXCLUDE position FROM "
            f"{_lines(folders, 'exposures', _EXPOSURE, ('request_id', 'item_id', 'ts', 'scenario'))} WHERE {inside} "
            "QUALIFY row_number() OVER (PARTITION BY request_id, item_id ORDER BY ts, position) = 1"
        )
        connection.execute(
            f"CREATE TABLE outcome AS SELECT request_id, item_id, {flags} FROM "
            f"{_lines(folders, 'outcomes', _OUTCOME, ('request_id', 'item_id', 'name'))} o "
            f"JOIN exposure e USING (request_id, item_id) WHERE {known} GROUP BY request_id, item_id"
        )
        names = ", ".join(f'coalesce(o."{name}", false) AS "{name}"' for name in (*OUTCOMES, "viewed"))
        connection.execute(
            f"CREATE TABLE shown AS SELECT e.*, e.ts - e.ts % {DAY_US} AS day, {names} FROM exposure e "
            "LEFT JOIN outcome o USING (request_id, item_id)"
        )
        connection.execute(
            "CREATE TABLE request AS SELECT request_id, min(day) AS day, min(ts) AS ts, min(scenario) AS scenario, "
            "min(release) AS release, min(query) AS query, min(device) AS device, min(locale) AS locale, "
            "any_value(degraded) AS degraded FROM shown GROUP BY request_id"
        )
        connection.execute(
            f"CREATE TABLE logged AS SELECT *, ts - ts % {DAY_US} AS day FROM "
            f"{_lines(folders, 'features', _FEATURES, ('request_id', 'user_id', 'ts', 'scenario'))} WHERE {inside} "
            "QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY ts) = 1"
        )
        yield connection


def experiment_folders(home: Home) -> list[Path]:
    """Every folder under `experiments/` into which a server has logged."""
    return sorted({path.parents[1] for path in home.experiments.glob("*/exposures/*.jsonl")})


def first_answer(folders: list[Path], release: str) -> int | None:
    """When a release first answered, UTC microseconds; None where it never did."""
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT min(ts) FROM {_lines(folders, 'exposures', _EXPOSURE, ('request_id', 'ts'))} WHERE release = ?",
            [release],
        ).fetchone()
    return None if found is None or found[0] is None else int(found[0])


def _lines(folders: list[Path], kind: str, columns: dict[str, str], required: tuple[str, ...]) -> str:
    """A table function over the folders' JSON lines; a torn line lacks what is required and is left out."""
    typed = ", ".join(f"{name}: '{column}'" for name, column in columns.items())
    files = [path for folder in folders for path in sorted((folder / kind).glob("*.jsonl")) if path.stat().st_size]
    if not files:
        empty = ", ".join(f"NULL::{column} AS {name}" for name, column in columns.items())
        return f"(SELECT {empty} WHERE false)"
    names = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
    there = " AND ".join(f"{name} IS NOT NULL" for name in required)
    return (
        f"(SELECT * FROM read_json([{names}], format = 'newline_delimited', ignore_errors = true, "
        f"columns = {{{typed}}}) WHERE {there})"
    )
