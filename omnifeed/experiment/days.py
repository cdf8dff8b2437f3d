"""What can be said of one day of an experiment alone: repeated lines dropped, outcomes joined, users' sums made.

The costly part of reading a log; what comes out has one row a user, scenario and day, and is kept as long as the day's
lines are the same (see `intake`). Days that share a request are reduced together.

Which exposure of several wins, which outcome line, and what counts: the rules stand in `log`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from omnifeed.config import ExperimentConfig
from omnifeed.experiment.intake import LAYOUT, STAGE, Intake, kept_lines
from omnifeed.experiment.metrics import METRICS
from omnifeed.experiment.read import literal, path_list
from omnifeed.tables import OUTCOMES

HOUR = 3_600_000_000  # microseconds
MILLION = 1_000_000
LARGEST = 1e12  # a value beyond it is malformed, as is a negative one
AT_ONCE = 4_000_000  # lines that are reduced in one go: bounds memory

MEASURED = tuple(metric.outcome for metric in METRICS.values() if not metric.counts)
KNOWN = (*OUTCOMES, *MEASURED, "viewed")

#: What is kept, by table. `seen`: `waited` is in microseconds, over the `answered`. `requests`: of a user and day.
#: `sums`: of a user, scenario, day and outcome: all that were joined to an exposure, those of them outside the
#: attribution window, and of the others the number, the sum of values in millionths, and the sums of lags (from
#: happening to known, whole milliseconds) and of their squares.
TABLES = {
    "seen": {
        "user_id": "VARCHAR", "scenario": "VARCHAR", "day": "INTEGER", "arm": "VARCHAR", "release": "VARCHAR",
        "crossed": "BOOLEAN", "exposures": "BIGINT", "first_ts": "BIGINT", "device": "VARCHAR",
        "answered": "BIGINT", "waited": "BIGINT", "authored": "BIGINT", "of_tail": "BIGINT",
    },
    "requests": {"user_id": "VARCHAR", "day": "INTEGER", "requests": "BIGINT", "missing": "BIGINT"},
    "sums": {
        "user_id": "VARCHAR", "scenario": "VARCHAR", "day": "INTEGER", "name": "VARCHAR", "joined": "BIGINT",
        "early": "BIGINT", "late": "BIGINT", "outcomes": "BIGINT", "value": "DECIMAL(38, 0)", "lag": "DECIMAL(38, 0)",
        "lag_square": "DECIMAL(38, 0)",
    },
    "shown": {"user_id": "VARCHAR", "scenario": "VARCHAR", "item": "UBIGINT", "day": "INTEGER"},
}  # fmt: skip
#: How the rows of several slices of a day become one; each slice holds whole requests.
_MERGED = {
    "seen": "SELECT part, user_id, scenario, day, arm, release, crossed, min(first_ts) AS first_ts, "
    "arg_min(device, (first_ts, device)) AS device, "
    + ", ".join(f"sum({name})::BIGINT AS {name}" for name in ("exposures", "answered", "waited", "authored", "of_tail"))
    + " FROM {slices} "
    "GROUP BY part, user_id, scenario, day, arm, release, crossed",
    "requests": "SELECT part, user_id, day, sum(requests)::BIGINT AS requests, sum(missing)::BIGINT AS missing "
    "FROM {slices} GROUP BY part, user_id, day",
    "sums": "SELECT part, user_id, scenario, day, name, "
    + ", ".join(f"sum({name})::BIGINT AS {name}" for name in ("joined", "early", "late", "outcomes"))
    + ", "
    + ", ".join(f"sum({name})::DECIMAL(38, 0) AS {name}" for name in ("value", "lag", "lag_square"))
    + " FROM {slices} GROUP BY part, user_id, scenario, day, name",
    "shown": "SELECT part, user_id, scenario, item, min(day) AS day FROM {slices} "
    "GROUP BY part, user_id, scenario, item",
}
_EXPOSURE = {
    "request": "UBIGINT", "item": "UBIGINT", "user_id": "VARCHAR", "scenario": "VARCHAR", "arm": "VARCHAR",
    "release": "VARCHAR", "ts": "BIGINT", "position": "BIGINT", "device": "VARCHAR", "latency_ms": "DOUBLE",
    "tail_creator": "BOOLEAN", "crossed": "BOOLEAN", "block": "INTEGER",
}  # fmt: skip
_OUTCOME = {
    "request": "UBIGINT", "item": "UBIGINT", "name": "VARCHAR", "value": "DOUBLE", "ts": "BIGINT",
    "observed_ts": "BIGINT", "block": "INTEGER",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Group:
    """Blocks that are reduced together."""

    blocks: tuple[int, ...]
    used: tuple[int, ...]  # those of the stage that is judged
    lines: int
    key: str  # of what comes out: changes with the lines, the settings, and with `now` where lines lie beyond it

    @property
    def part(self) -> int:
        return self.blocks[0]


@dataclass(frozen=True, slots=True)
class DayCounts:
    """Lines of a group that its rows do not tell of; outcomes known by `now`."""

    repeated: int  # exposures
    outcomes: int
    known: int  # of a name that is read, with a value that can be
    silent: int  # of those: a counted outcome that did not happen
    chosen: int  # one of each (request, item, name)
    unexposed: int  # of those: without any exposure
    skewed: int
    unknown: int
    malformed: int


def reduce_days(
    connection: duckdb.DuckDBPyConnection,
    intake: Intake,
    section: ExperimentConfig,
    now: int,
    at: int,
    first_shown: bool,
) -> list[DayCounts]:
    """Leave the views `seen`, `requests`, `sums` and `shown` (see `TABLES`) over all days; return their counts.

    Args:
        intake: the lines; what was reduced before and is still true is found there, what is reduced now goes there.
        section: the attribution window.
        now: UTC microseconds; later lines are not used.
        at: of a ramp, the stage of this moment is the one whose exposures are used.
        first_shown: whether `shown` is wanted: one row a user, scenario and item.
    """
    groups = _groups(intake, section, now, at, first_shown)
    for chunk in _chunks([group for group in groups if group.key not in intake.kept]):
        _reduce(connection, intake, chunk, section, now, first_shown)
    stages = [at, *(stage.start_ts for stage in intake.experiment.stages)]
    alive = {group.key for stage in stages for group in _groups(intake, section, now, stage, first_shown)}
    intake.kept = {key: kept for key, kept in intake.kept.items() if key in alive}
    days = [intake.kept[group.key] for group in groups]
    for table, columns in TABLES.items():
        folders = [intake.folder / each["folder"] / table / f"part={each['part']}" for each in days]
        paths = [path for folder in folders for path in sorted(folder.glob("*.parquet"))]
        source = f"(SELECT * FROM read_parquet({path_list(paths)}, hive_partitioning = false))" if paths else None
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {table} AS {_or_empty(source, columns)}")
    return [DayCounts(**each["counts"]) for each in days]


def _groups(intake: Intake, section: ExperimentConfig, now: int, at: int, first_shown: bool) -> list[_Group]:
    stage = sum(each.start_ts <= at for each in intake.experiment.stages[1:])
    found = []
    for blocks in intake.groups():
        used = tuple(block for block in blocks if block >= 0 and block // STAGE == stage)
        extents = [intake.extent(what, block) for what in ("exposures", "outcomes") for block in blocks]
        until = now if any(extent.last > now for extent in extents) else None
        inputs = [LAYOUT, blocks, used, intake.batches_of(blocks), section.attribution_hours, until, first_shown]
        key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
        found.append(_Group(blocks, used, sum(extent.lines for extent in extents), key))
    return found


def _chunks(groups: Sequence[_Group]) -> Iterator[list[_Group]]:
    chunk: list[_Group] = []
    for group in groups:
        if chunk and sum(each.lines for each in chunk) + group.lines > AT_ONCE:
            yield chunk
            chunk = []
        chunk.append(group)
    if chunk:
        yield chunk


def _or_empty(source: str | None, columns: dict[str, str]) -> str:
    names = ", ".join(columns)
    nulls = ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns.items())
    return f"SELECT {names} FROM {source}" if source else f"SELECT {nulls} WHERE false"


def _reduce(
    connection: duckdb.DuckDBPyConnection,
    intake: Intake,
    groups: Sequence[_Group],
    section: ExperimentConfig,
    now: int,
    first_shown: bool,
) -> None:
    """Reduce some groups in one go, each into a part of its own; more lines than can be held at once, in slices."""
    name = "days-" + hashlib.sha256("".join(group.key for group in groups).encode()).hexdigest()[:16]
    folder = intake.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    selected = _selected(section, first_shown)
    slices = -(-sum(group.lines for group in groups) // AT_ONCE)
    counts: dict[int, Counter[str]] = {}
    for number in range(slices):
        _choose_exposures(connection, intake, groups, now, f"request % {slices} = {number}")
        _choose_outcomes(connection, intake, groups, now, f"request % {slices} = {number}")
        place = folder / f"slice={number}" if slices > 1 else folder
        place.mkdir(parents=True)
        for table, query in selected.items():
            _copy(connection, query, place / table)
        for part, numbers in _count(connection).items():
            counts.setdefault(part, Counter()).update(numbers)
    if slices > 1:
        for table in selected:
            held = sorted(folder.glob(f"slice=*/{table}/*/*.parquet"))
            if held:
                source = f"read_parquet({path_list(held)}, hive_partitioning = true, hive_types = {{'part': INTEGER}})"
                _copy(connection, _MERGED[table].format(slices=source), folder / table)
        for place in folder.glob("slice=*"):
            shutil.rmtree(place)
    for group in groups:
        numbers = counts.get(group.part, Counter())
        intake.kept[group.key] = {
            "folder": name,
            "part": group.part,
            "counts": {field: numbers[field] for field in DayCounts.__slots__},
        }


def _copy(connection: duckdb.DuckDBPyConnection, query: str, to: Path) -> None:
    connection.execute(f"COPY ({query}) TO '{to}' (FORMAT parquet, PARTITION_BY (part))")


def _selected(section: ExperimentConfig, first_shown: bool) -> dict[str, str]:
    """SQL of each of `TABLES` over `exposure` and `outcome`, with the part that a row belongs to."""
    window = section.attribution_hours * HOUR
    scales = {metric.outcome: metric.scale for metric in METRICS.values() if metric.scale != 1}
    scale = " ".join(f"WHEN '{outcome}' THEN {scale * MILLION!r}" for outcome, scale in scales.items())
    timed = f"position = 0 AND latency_ms BETWEEN 0 AND {LARGEST / 1000}"
    selected = {
        "seen": "SELECT part, user_id, scenario, day, arm, release, crossed, count(*) AS exposures, "
        "min(ts) AS first_ts, arg_min(device, (ts, device)) AS device, "
        f"count(*) FILTER ({timed}) AS answered, "
        f"coalesce(sum(round(latency_ms * 1000)) FILTER ({timed}), 0)::BIGINT AS waited, "
        "count(tail_creator) AS authored, count(*) FILTER (tail_creator) AS of_tail FROM exposure "
        "GROUP BY part, user_id, scenario, day, arm, release, crossed",
        "requests": "SELECT part, user_id, day, count(*) AS requests, sum(missing)::BIGINT AS missing FROM ("
        "  SELECT part, min(user_id) AS user_id, min(day) AS day, "
        "  greatest(max(position) - min(position) + 1 - count(*), 0) AS missing FROM exposure GROUP BY part, request"
        ") GROUP BY part, user_id, day",
        "sums": "SELECT part, user_id, scenario, day, name, count(*) AS joined, count(*) FILTER (early) AS early, "
        "count(*) FILTER (late) AS late, count(*) FILTER (counts) AS outcomes, "
        "(sum(millionths) FILTER (counts))::DECIMAL(38, 0) AS value, "
        "(sum(lag) FILTER (counts))::DECIMAL(38, 0) AS lag, "
        "(sum(lag::HUGEINT * lag) FILTER (counts))::DECIMAL(38, 0) AS lag_square FROM ("
        "  SELECT o.part, user_id, scenario, day, name, o.ts < e.ts AS early, "
        f"  o.ts > e.ts + {window} AS late, NOT early AND NOT late AS counts, "
        f"  round(value * CASE name {scale} ELSE {float(MILLION)!r} END)::BIGINT AS millionths, "
        "  (o.observed_ts - o.ts) // 1000 AS lag FROM outcome o JOIN exposure e USING (request, item)"
        ") GROUP BY ALL",
    }
    if first_shown:
        selected["shown"] = (
            "SELECT part, user_id, scenario, item, min(day) AS day FROM exposure GROUP BY part, user_id, scenario, item"
        )
    return selected


def _part(groups: Sequence[_Group]) -> str:
    """SQL for the group of `block`."""
    joined = " ".join(
        f"WHEN block IN ({', '.join(map(str, group.blocks))}) THEN {group.part}"
        for group in groups
        if len(group.blocks) > 1
    )
    return f"CASE {joined} ELSE block END" if joined else "block"


def _choose_exposures(
    connection: duckdb.DuckDBPyConnection, intake: Intake, groups: Sequence[_Group], now: int, chosen: str
) -> None:
    """`exposure`: the first line of each (request, item) of the days that are used; `line`: every one of the groups."""
    paths = intake.paths("exposures", [block for group in groups for block in group.blocks])
    used = ", ".join(str(block) for group in groups for block in group.used)
    source = kept_lines(paths) if paths else None
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW line AS SELECT *, {_part(groups)} AS part, block % {STAGE} AS day, "
        f"{f'block IN ({used}) AND ts <= {now}' if used else 'false'} AS inside "
        f"FROM ({_or_empty(source, _EXPOSURE)}) WHERE {chosen}"
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE repeated AS "
        "SELECT part, request, item, count(*) - 1 AS times FROM line WHERE inside GROUP BY ALL HAVING times > 0"
    )
    inside = "SELECT * FROM line WHERE inside"
    if connection.execute("SELECT count(*) FROM repeated").fetchall() != [(0,)]:
        inside = (
            "SELECT line.* FROM line ANTI JOIN repeated USING (request, item) WHERE inside UNION ALL "
            "SELECT line.* FROM line SEMI JOIN repeated USING (request, item) WHERE inside QUALIFY "
            "row_number() OVER (PARTITION BY part, request, item ORDER BY ts, user_id, arm, release) = 1"
        )
    connection.execute(f"CREATE OR REPLACE TEMP VIEW exposure AS {inside}")


def _choose_outcomes(
    connection: duckdb.DuckDBPyConnection, intake: Intake, groups: Sequence[_Group], now: int, chosen: str
) -> None:
    """`outcome`: one line of each (request, item, name); `came`: all that were known by `now`."""
    paths = intake.paths("outcomes", [block for group in groups for block in group.blocks])
    source = kept_lines(paths) if paths else None
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW came AS SELECT *, {_part(groups)} AS part, name IN {literal(KNOWN)} AS read, "
        f"value BETWEEN 0 AND {LARGEST} AS fine FROM ({_or_empty(source, _OUTCOME)}) "
        f"WHERE observed_ts <= {now} AND {chosen}"
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE outcome AS "
        "SELECT part, request, item, name, 1.0 AS value, arg_min(ts, (observed_ts, ts)) AS ts, "
        "min(observed_ts) AS observed_ts FROM came "
        f"WHERE read AND fine AND name NOT IN {literal(MEASURED)} AND value > 0 GROUP BY part, request, item, name "
        "UNION ALL "
        "SELECT part, request, item, name, arg_max(value, (observed_ts, ts, value)) AS value, "
        "arg_max(ts, (observed_ts, ts, value)) AS ts, max(observed_ts) AS observed_ts FROM came "
        f"WHERE read AND fine AND name IN {literal(MEASURED)} GROUP BY part, request, item, name"
    )


def _count(connection: duckdb.DuckDBPyConnection) -> dict[int, dict[str, int]]:
    """`DayCounts` by part."""
    queries = {
        ("repeated",): "SELECT part, sum(times) FROM repeated GROUP BY part",
        ("outcomes", "known", "silent", "skewed", "unknown", "malformed"): (
            "SELECT part, count(*), count(*) FILTER (read AND fine), "
            f"count(*) FILTER (read AND fine AND value = 0 AND name NOT IN {literal(MEASURED)}), "
            "count(*) FILTER (read AND fine AND observed_ts < ts), count(*) FILTER (NOT read), "
            "count(*) FILTER (NOT fine) FROM came GROUP BY part"
        ),
        ("chosen",): "SELECT part, count(*) FROM outcome GROUP BY part",
        ("unexposed",): ("SELECT part, count(*) FROM outcome ANTI JOIN line USING (part, request, item) GROUP BY part"),
    }
    found: dict[int, dict[str, int]] = {}
    for names, query in queries.items():
        for part, *values in connection.execute(query).fetchall():
            found.setdefault(int(part), {}).update(zip(names, map(int, values), strict=True))
    return found
