"""What Omnifeed itself has served, as canonical events: exposures joined with their outcomes.

The next training run and the daily aggregates read these beside the source's own logs. The rules are the verdict's
(`omnifeed.experiment.log`): of repeated exposures the first counts, of repeated counted outcomes one, and an outcome
without exposure is left out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.datasets.source import Source, load_tables
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.deploy import running_experiment
from omnifeed.home import Home
from omnifeed.tables import ITEMS, OUTCOMES, USERS, Tables, conform, read_tables, write_tables

DAY_US = 86_400_000_000
_EXPOSURE = {
    "request_id": "VARCHAR",
    "item_id": "VARCHAR",
    "position": "INTEGER",
    "user_id": "VARCHAR",
    "scenario": "VARCHAR",
    "query": "VARCHAR",
    "arm": "VARCHAR",
    "release": "VARCHAR",
    "ts": "BIGINT",
    "propensity": "DOUBLE",
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


def _lines(folder: Path, columns: dict[str, str]) -> str:
    """A table function over the folder's JSON lines; a torn line does not parse and is left out."""
    typed = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
    files = ", ".join("'" + str(path).replace("'", "''") + "'" for path in sorted(folder.glob("*.jsonl")))
    if not files:
        empty = ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns.items())
        return f"(SELECT {empty} WHERE false)"
    return (
        f"(SELECT * FROM read_json([{files}], format = 'newline_delimited', ignore_errors = true, "
        f"columns = {{{typed}}}) WHERE request_id IS NOT NULL AND item_id IS NOT NULL)"
    )


def served_events(folder: Path) -> pa.Table:
    """An experiment's exposures with their outcomes, as the canonical events table.

    Args:
        folder: `experiments/<name>`.

    Returns:
        One row an exposure, ordered by (ts, request_id, position). `observed_ts` is when the last of its outcomes
        became known, the exposure's own time where none did.
    """
    flags = ", ".join(f"coalesce(bool_or(name = '{name}' AND value > 0), false) AS \"{name}\"" for name in OUTCOMES)
    names = ", ".join(f'coalesce(o."{name}", false) AS "{name}"' for name in OUTCOMES)
    query = f"""
        WITH exposure AS (
            SELECT * FROM {_lines(folder / "exposures", _EXPOSURE)}
            QUALIFY row_number() OVER (PARTITION BY request_id, item_id ORDER BY ts, position) = 1
        ), outcome AS (
            SELECT request_id, item_id, {flags}, coalesce(bool_or(name = 'viewed' AND value > 0), false) AS viewed,
                arg_max(value, observed_ts) FILTER (name = 'dwell_ms') AS dwell_ms,
                arg_max(value, observed_ts) FILTER (name = 'gmv') AS gmv, max(observed_ts) AS observed_ts
            FROM {_lines(folder / "outcomes", _OUTCOME)} GROUP BY request_id, item_id
        )
        SELECT e.request_id || '/' || lpad(e.position::VARCHAR, 4, '0') AS event_id, e.request_id, e.user_id,
            e.item_id, e.scenario, make_timestamp(e.ts) AS ts, e.position, true AS served,
            coalesce(o.viewed, false) AS viewed, e.query, {names}, o.dwell_ms::BIGINT AS dwell_ms,
            coalesce(o.gmv, 0) AS gmv, e.arm, e.release, e.propensity, e.locale, e.device,
            make_timestamp(greatest(coalesce(o.observed_ts, e.ts), e.ts)) AS observed_ts
        FROM exposure e LEFT JOIN outcome o USING (request_id, item_id)
        ORDER BY e.ts, e.request_id, e.position
    """
    with duckdb.connect(config={"memory_limit": "2GiB"}) as connection:
        table = connection.execute(query).to_arrow_table()
    for name in ("ts", "observed_ts"):
        index = table.column_names.index(name)
        table = table.set_column(index, name, table[name].cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC")))
    return conform(table, "events", str(folder))


def collect(home: Home, experiment: str) -> int:
    """Keep what an experiment served under the lake, whole or not at all; returns the number of events."""
    events = served_events(home.experiments / experiment)
    write_tables(Tables(events, ITEMS.empty_table(), USERS.empty_table()), home.lake / "served" / experiment)
    return int(events.num_rows)


def _collected(home: Home) -> list[str]:
    """The experiments whose events are kept. One that ended in a run which was killed before it could keep them is
    collected now; a hidden folder is what a killed write left.
    """
    running = running_experiment(home)
    served = home.lake / "served"
    for file in sorted(home.experiments.glob("*/experiment.json")):
        name = file.parent.name
        ended = running is None or running.name != name
        if ended and not (served / name).is_dir() and any((file.parent / "exposures").glob("*.jsonl")):
            collect(home, name)
    return sorted(path.name for path in served.glob("[!.]*") if path.is_dir())


def ingest(config: Config, home: Home) -> Source:
    """Read the configured source, and what earlier experiments served.

    The simulated market moves on: after an experiment its log reaches to the experiment's end, where the users who took
    part have been answered by us and the others by the platform's own policy.
    """
    collected = _collected(home)
    if config.data.source != "world" or not collected:
        return load_tables(config)
    experiments = [Experiment.load(home.experiments / name / "experiment.json") for name in collected]
    first, last = min(e.start_ts for e in experiments), max(e.end_ts for e in experiments)
    days = config.world.history_days + (last - first) // DAY_US
    moved = dataclasses.replace(config, world=dataclasses.replace(config.world, history_days=days))
    source = load_tables(moved)
    served = pa.concat_tables([read_tables(home.lake / "served" / name).events for name in collected])
    mine = pa.array(sorted(source.holdout_users), pa.string())
    before = pa.scalar(first, pa.int64()).cast(pa.timestamp("us", "UTC"))
    events = source.tables.events
    keep = pc.or_(pc.less(events["ts"], before), pc.invert(pc.is_in(events["user_id"], mine)))
    tables = dataclasses.replace(
        source.tables, events=pa.concat_tables([events.filter(keep), served.cast(events.schema)])
    )
    return dataclasses.replace(
        source,
        tables=tables,
        description=f"{source.description}; with {served.num_rows:,} events served by {', '.join(collected)}",
    )
