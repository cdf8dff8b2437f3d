"""Ingest: a source's logs, catalogue and users as the canonical tables, with what earlier experiments served."""

from kfp.dsl import Artifact, Dataset, Output

from omnifeed.components.step import step


@step
def ingest(config: str, home: str, run_id: str, tables: Output[Dataset], source: Output[Artifact]) -> int:
    """Write the canonical tables; returns the moment the run pretends to happen at, UTC microseconds."""
    import time
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.datasets.served import ingest as read_source
    from omnifeed.datasets.source import DAY_US
    from omnifeed.home import Home, write_json
    from omnifeed.tables import write_tables

    with recording(home, run_id, "ingest") as record:
        settings = Config.from_json(config)
        read = read_source(settings, Home(Path(home)))
        now = read.now
        if settings.data.source == "parquet":  # live logs: what is after our own today is the future, whatever they say
            now = min(now, (time.time_ns() // 1_000 // DAY_US + 1) * DAY_US)
        write_tables(read.tables, Path(tables.path))
        write_json(Path(source.path), {"now": now, "holdout_users": sorted(read.holdout_users)})
        record.info = {
            "description": read.description,
            "events": read.tables.events.num_rows,
            "items": read.tables.items.num_rows,
            "users": read.tables.users.num_rows,
            "holdout_users": len(read.holdout_users),
            "now": now,
        }
        tables.metadata.update(record.info)
        return now
