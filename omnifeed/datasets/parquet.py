"""The user's own logs: canonical columns in parquet files.

The folder holds `events.parquet` or a folder `events/` of parquet files (partitions in folder names are ignored: the
day follows from ts), `items.parquet` and `users.parquet`. `observed_ts` may be absent: then it is ts plus
`data.observation_delay_s`.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.datasets.source import Source, folder_of, midnight_after
from omnifeed.errors import InputError
from omnifeed.tables import TS, Tables, conform, read_parquet


def load(config: Config) -> Source:
    """The tables of `data.path`.

    Raises:
        InputError: a file is missing or corrupt, a required column is missing, or a column has a type that does not
            cast to the canonical one.
    """
    folder = folder_of(config)
    single = folder / "events.parquet"
    files = [single] if single.is_file() else sorted((folder / "events").rglob("*.parquet"))
    if not files:
        raise InputError(
            f"{folder} holds neither events.parquet nor parquet files under events/.", "Write the events table there."
        )
    events = pa.concat_tables([_events(file, config.data.observation_delay_s) for file in files])
    tables = Tables(
        events=events.combine_chunks(),
        **{
            name: conform(read_parquet(folder / f"{name}.parquet"), name, str(folder / f"{name}.parquet"))
            for name in ("items", "users")
        },
    )
    return Source(tables, frozenset(), midnight_after(tables.events["ts"], folder), f"own tables in {folder.name}")


def _events(file: Path, delay_s: int) -> pa.Table:
    table = read_parquet(file)
    if "observed_ts" not in table.column_names and "ts" in table.column_names:
        conformed = conform(table.append_column("observed_ts", table["ts"]), "events", str(file))
        late = pc.add(conformed["ts"].cast(pa.int64()), delay_s * 1_000_000).cast(TS)
        return conformed.set_column(conformed.column_names.index("observed_ts"), "observed_ts", late)
    return conform(table, "events", str(file))
