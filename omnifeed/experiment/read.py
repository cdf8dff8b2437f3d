"""Log lines into DuckDB: the server's JSON lines, or tables that somebody else keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

_EXPOSURE = {
    "request_id": "VARCHAR",
    "item_id": "VARCHAR",
    "user_id": "VARCHAR",
    "scenario": "VARCHAR",
    "arm": "VARCHAR",
    "release": "VARCHAR",
    "experiment": "VARCHAR",
    "ts": "BIGINT",
    "degraded": "VARCHAR[]",
    "position": "BIGINT",
    "device": "VARCHAR",
}
_OUTCOME = {
    "request_id": "VARCHAR",
    "item_id": "VARCHAR",
    "name": "VARCHAR",
    "value": "DOUBLE",
    "ts": "BIGINT",
    "observed_ts": "BIGINT",
}


def load_folder(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Every line of `exposures/*.jsonl` and `outcomes/*.jsonl`; either folder may be missing.

    Leaves `exposure_line` and `outcome_line`, each with the file that a line came from and `whole`: whether it parsed
    and has all the fields that are required. `crossed`: the line says that the champion answered for the challenger.
    """
    _load(connection, "exposure_line", folder / "exposures", _EXPOSURE, optional=("degraded", "position", "device"))
    _load(connection, "outcome_line", folder / "outcomes", _OUTCOME)


def _load(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    folder: Path,
    columns: dict[str, str],
    optional: Sequence[str] = (),
) -> None:
    shown = {name: name for name in columns} | ({"crossed": CROSSED} if "degraded" in columns else {})
    shown.pop("degraded", None)
    kinds = {name: columns.get(name, "BOOLEAN") for name in shown}
    typed = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    connection.execute(f"CREATE TABLE {table} ({typed}, file VARCHAR, whole BOOLEAN)")
    files = [str(path) for path in sorted(folder.glob("*.jsonl")) if path.stat().st_size]
    if files:
        whole = " AND ".join(f"{name} IS NOT NULL" for name in columns if name not in optional)
        parsed = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
        connection.execute(
            f"INSERT INTO {table} SELECT {', '.join(shown.values())}, filename, {whole} "
            f"FROM read_json(?, format = 'newline_delimited', ignore_errors = true, columns = {{{parsed}}}, "
            "filename = true)",
            [files],
        )


CROSSED = "coalesce(list_contains(degraded, 'champion_answer'), false)"
