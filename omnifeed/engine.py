"""Where tables are computed: DuckDB here, Spark on a cluster, one Ibis expression for both.

The expressions live in the rooms that need them and keep to what both engines compute alike: integer arithmetic on
microseconds, equi- and range joins, conditional sums; no as-of joins, no floating-point aggregates whose result would
depend on the order of the rows. What leaves an engine is an Arrow table in UTC.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import pyarrow as pa

from omnifeed.errors import InputError
from omnifeed.tables import EVENTS, conform

if TYPE_CHECKING:
    import ibis

#: A folder that `omnifeed.tables.write_tables` wrote, or events in memory.
EventSource: TypeAlias = Path | pa.Table


class Engine(Protocol):
    """Reads events and runs Ibis expressions."""

    def events(self, sources: Sequence[EventSource]) -> ibis.Table:
        """The union of these events, with the columns of `omnifeed.tables.EVENTS`.

        Raises:
            InputError: a folder holds no events, or the list is empty.
        """
        ...

    def collect(self, expression: ibis.Table) -> pa.Table:
        """Run an expression; the columns are those of the expression's schema."""
        ...


def _event_files(folder: Path) -> list[str]:
    files = sorted(str(path) for path in (folder / "events").glob("day=*/*.parquet"))
    if not files:
        raise InputError(f"{folder} holds no events.", "Give a folder that a table set with events was written to.")
    return files


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the deprecation that Ibis 12 meets in DuckDB 1.5 (Feast switches such warnings on again)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _union(tables: list[ibis.Table]) -> ibis.Table:
    import ibis

    if not tables:
        raise InputError("No events were given.", "Give at least one folder or table of events.")
    return tables[0] if len(tables) == 1 else ibis.union(*tables, distinct=False)


class DuckDBEngine:
    """In this process, on local files."""

    def __init__(self) -> None:
        import ibis

        self._backend: Any = ibis.duckdb.connect()
        self._backend.raw_sql("SET TimeZone = 'UTC'")

    def events(self, sources: Sequence[EventSource]) -> ibis.Table:
        """See `Engine.events`."""
        import ibis

        tables = []
        for source in sources:
            if isinstance(source, pa.Table):
                tables.append(ibis.memtable(conform(source, "events", "events in memory")))
            else:
                with _quiet():
                    table = self._backend.read_parquet(_event_files(source), hive_partitioning=False)
                tables.append(table.select(*EVENTS.names))
        return _union(tables)

    def collect(self, expression: ibis.Table) -> pa.Table:
        """See `Engine.collect`."""
        with _quiet():
            return self._backend.to_pyarrow(expression)


class SparkEngine:
    """On a Spark session: a cluster's, or a local one.

    Args:
        session: a `pyspark.sql.SparkSession`; its time zone is set to UTC. None makes a local one.
    """

    def __init__(self, session: Any = None) -> None:
        try:
            import ibis
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise InputError("pyspark is not installed.", "Install omnifeed[spark].") from error
        self._views = itertools.count()
        active = session or SparkSession.builder.master("local[*]").config("spark.ui.enabled", "false").getOrCreate()
        active.conf.set("spark.sql.session.timeZone", "UTC")
        self._session = active
        self._backend: Any = ibis.pyspark.connect(active)

    def events(self, sources: Sequence[EventSource]) -> ibis.Table:
        """See `Engine.events`."""
        import ibis

        tables = []
        for source in sources:
            if isinstance(source, pa.Table):
                tables.append(ibis.memtable(conform(source, "events", "events in memory")))
            else:
                files = _event_files(source)
                name = f"omnifeed_events_{next(self._views)}"
                self._session.read.parquet(*files).select(*EVENTS.names).createOrReplaceTempView(name)
                tables.append(self._backend.table(name))
        return _union(tables)

    def collect(self, expression: ibis.Table) -> pa.Table:
        """See `Engine.collect`."""
        return self._backend.to_pyarrow(expression)
