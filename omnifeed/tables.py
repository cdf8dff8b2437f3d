"""The canonical tables: names, types, units.

Every source yields these three, every step reads only these. Times are UTC microseconds; money is in the row's
currency; booleans are null where the source does not record them. On disk a table set is a folder with
`events/day=YYYY-MM-DD/part.parquet`, `items.parquet` and `users.parquet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omnifeed.errors import InputError
from omnifeed.home import folder_atomic

TS = pa.timestamp("us", tz="UTC")

#: Outcomes recorded as booleans, in the order of commitment.
OUTCOMES = ("click", "long_view", "like", "follow", "share", "comment", "cart", "order", "hide", "report")

EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("scenario", pa.string(), nullable=False),
        pa.field("ts", TS, nullable=False),
        pa.field("position", pa.int32()),  # from 0, null when not logged
        pa.field("served", pa.bool_(), nullable=False),
        pa.field("viewed", pa.bool_()),  # null when not known
        pa.field("query", pa.string()),  # null unless search
        *(pa.field(name, pa.bool_()) for name in OUTCOMES),
        pa.field("dwell_ms", pa.int64()),
        pa.field("gmv", pa.float64()),
        pa.field("arm", pa.string()),
        pa.field("release", pa.string()),
        pa.field("propensity", pa.float64()),  # null when not logged
        pa.field("locale", pa.string()),
        pa.field("device", pa.string()),
        pa.field("observed_ts", TS, nullable=False),  # when the outcomes became known
    ]
)

KINDS = ("livestream", "video", "product")
POLICIES = ("ALLOW", "INTERSTITIAL", "DROP")

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("author_id", pa.string()),
        pa.field("kind", pa.string(), nullable=False),  # one of KINDS
        pa.field("category", pa.string()),  # path, "/" between levels
        pa.field("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("currency", pa.string()),
        pa.field("duration_s", pa.float64()),  # of a recording, in seconds
        pa.field("created_ts", TS, nullable=False),
        pa.field("live_from", TS),  # livestreams only
        pa.field("live_until", TS),
        pa.field("product_ids", pa.list_(pa.string())),  # what the content sells
        pa.field("image_embedding", pa.list_(pa.float32())),
        pa.field("policy", pa.string(), nullable=False),  # one of POLICIES
        pa.field("stock", pa.int64()),  # null: not tracked
    ]
)

USERS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("locale", pa.string()),
        pa.field("country", pa.string()),
        pa.field("age_band", pa.string()),
        pa.field("device", pa.string()),
        pa.field("signup_ts", TS),
    ]
)

SCHEMAS = {"events": EVENTS, "items": ITEMS, "users": USERS}


@dataclass(frozen=True, slots=True)
class Tables:
    """The three canonical tables, each with exactly its schema's columns."""

    events: pa.Table
    items: pa.Table
    users: pa.Table


def conform(table: pa.Table, name: str, source: str) -> pa.Table:
    """Order and cast a table's columns to the canonical schema; absent nullable columns become nulls.

    Args:
        table: any Arrow table.
        name: "events", "items" or "users".
        source: where the table came from, for the error message.

    Raises:
        InputError: a required column is missing, or a column cannot be cast.
    """
    columns = []
    for field in SCHEMAS[name]:
        if field.name not in table.column_names:
            if not field.nullable:
                raise InputError(
                    f"{source}: the {name} table has no column {field.name!r}.",
                    f"Add {field.name} ({field.type}); it is required.",
                )
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[field.name]
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise InputError(
                f"{source}: column {field.name!r} of the {name} table is {column.type} and does not cast to "
                f"{field.type}: {str(error).splitlines()[0].rstrip('.')}.",
                f"Write {field.name} as {field.type}.",
            ) from error
    return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in SCHEMAS[name]]))


def write_tables(tables: Tables, root: Path) -> None:
    """Write the table set to `root`, whole or not at all, events partitioned by UTC day; `day=unknown` without a ts."""
    with folder_atomic(root) as folder:
        days = pc.fill_null(pc.strftime(tables.events["ts"], format="%Y-%m-%d"), "unknown")
        (folder / "events").mkdir()
        for day in sorted(pc.unique(days).to_pylist()):
            part = folder / "events" / f"day={day}"
            part.mkdir()
            pq.write_table(tables.events.filter(pc.equal(days, day)), part / "part.parquet", compression="zstd")
        pq.write_table(tables.items, folder / "items.parquet", compression="zstd")
        pq.write_table(tables.users, folder / "users.parquet", compression="zstd")


def read_parquet(path: Path) -> pa.Table:
    """Read one parquet file.

    Raises:
        InputError: the file is missing or is not readable parquet.
    """
    try:
        return pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", "Check the path, or run the step that writes it.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path} is not a readable parquet file: {str(error).splitlines()[0].rstrip('.')}.",
            "Write the file again from its source; nothing was changed.",
        ) from error


def read_tables(root: Path) -> Tables:
    """Read a table set that `write_tables` wrote, events in the order of their days."""
    parts = [read_parquet(path) for path in sorted((root / "events").glob("day=*/*.parquet"))]
    if parts:
        events = pa.concat_tables([conform(part, "events", str(root)) for part in parts])
    elif (root / "events").is_dir():
        events = EVENTS.empty_table()
    else:
        raise InputError(f"{root} holds no events folder.", "Give the folder that a table set was written to.")
    return Tables(
        events=events,
        items=conform(read_parquet(root / "items.parquet"), "items", str(root / "items.parquet")),
        users=conform(read_parquet(root / "users.parquet"), "users", str(root / "users.parquet")),
    )
