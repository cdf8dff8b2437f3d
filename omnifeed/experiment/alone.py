"""The gate on somebody else's tables: their exposures, their outcomes, a file that says what was planned.

Nothing of Omnifeed's own state is read. The arm is the one that the log names (another platform assigns), so that a
user in two arms, or in an arm that was not declared, is found; where Omnifeed's hash assigned, naming its salt has
every user's arm computed again.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.experiment.decision import Decision
from omnifeed.experiment.evidence import CHALLENGER, CHAMPION
from omnifeed.experiment.log import DAY
from omnifeed.experiment.metrics import experiment_digest, judged_metrics
from omnifeed.experiment.read import Lines, Log, literal, path_list
from omnifeed.experiment.totals import observe
from omnifeed.experiment.verdict import judge

_KEYS = ("name", "start", "champion", "challenger", "salt", "registered", "experiment")
_READERS = {
    ".parquet": "read_parquet({files}, union_by_name = true)",
    ".jsonl": "read_json({files}, format = 'newline_delimited', union_by_name = true)",
    ".ndjson": "read_json({files}, format = 'newline_delimited', union_by_name = true)",
    ".json": "read_json({files}, union_by_name = true)",
    ".csv": "read_csv({files}, union_by_name = true)",
}


@dataclass(frozen=True, slots=True)
class Declared:
    """What the experiment file declares."""

    experiment: Experiment
    config: Config
    labels: dict[str, str]  # as the log names the arms -> champion, challenger

    @staticmethod
    def load(path: Path) -> Declared:
        """Read a TOML file: name, start, champion, challenger, optional salt and registered, and [experiment].

        Raises:
            InputError: a key is missing, unknown or malformed, or the section is not usable.
        """
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path} does not exist.", "Give the path of the experiment's TOML file.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}.", "Correct the file.") from error
        unknown = sorted(set(raw) - set(_KEYS))
        missing = [key for key in _KEYS[:4] if key not in raw]
        if unknown or missing:
            which = f"the key {unknown[0]!r} is unknown" if unknown else f"{missing[0]} is missing"
            raise InputError(f"{path}: {which}.", f"Known are {', '.join(_KEYS)}; the first four are required.")
        config = Config.from_json(json.dumps({"experiment": raw.get("experiment", {})}))
        judged_metrics(config.experiment)
        share = config.experiment.challenger_share
        labels = {str(raw[arm]): arm for arm in (CHAMPION, CHALLENGER)}
        if len(labels) < 2:
            raise InputError(f"{path}: both arms are named {raw[CHAMPION]!r}.", "Name them as the log does.")
        start = _moment(raw["start"], path)
        arms = tuple(
            Arm(labels[label], label, weight) for label, weight in zip(labels, (1 - share, share), strict=True)
        )
        experiment = Experiment(
            name=str(raw["name"]),
            salt=str(raw.get("salt", "")),
            arms=arms,
            start_ts=start,
            end_ts=start + config.experiment.days * DAY,
            config_digest=str(raw.get("registered", experiment_digest(config))),
        )
        return Declared(experiment, config, labels)


def decide_alone(exposures: Path, outcomes: Path, experiment: Path, now: int, before: Path | None = None) -> Decision:
    """Judge an experiment from two tables.

    Args:
        exposures: parquet, JSON lines or CSV, a file, a folder of them or a pattern. One row an item shown: arm, ts,
            user_id (unless the unit is the row), request_id; optional item_id, scenario, position, device, experiment,
            latency_ms, tail_creator.
        outcomes: the same. One row an outcome: request_id, name, ts; item_id where the exposures have one; optional
            value (default 1) and observed_ts (default ts).
        experiment: see `Declared.load`.
        now: UTC microseconds.
        before: one row a user of the period before: user_id and, by name, any of the totals; for CUPED.

    Raises:
        InputError: a file cannot be read, or a column is missing or of a type that is no time.
    """
    declared = Declared.load(experiment)
    row_unit = declared.config.experiment.unit == "row"

    with duckdb.connect() as connection:
        shown = _Table(connection, exposures, "exposures")
        came = _Table(connection, outcomes, "outcomes")
    if shown.has("item_id") and not came.has("item_id"):
        raise InputError(f"{outcomes} has no column 'item_id', and the exposures have one.", "Add it.")
    arms = " ".join(f"WHEN {literal([label])} THEN '{arm}'" for label, arm in declared.labels.items())
    user = "request_id || chr(0) || item_id" if row_unit else "user_id"
    log = Log(
        shown.lines(
            {
                "request_id": shown.text("request_id"),
                "item_id": shown.text("item_id", "''"),
                "user_id": shown.text("user_id", "''" if row_unit else None),
                "scenario": shown.text("scenario", "'all'"),
                "logged": shown.text("arm"),
                "experiment": shown.text("experiment", literal([declared.experiment.name])),
                "ts": shown.time("ts"),
                "position": shown.number("position", "BIGINT", "NULL"),
                "device": shown.text("device", "NULL"),
                "latency_ms": shown.number("latency_ms", "DOUBLE", "NULL"),
                "tail_creator": shown.number("tail_creator", "BOOLEAN", "NULL"),
            },
            required=("request_id", "item_id", "user_id", "scenario", "logged", "experiment", "ts"),
            replaced=f"* REPLACE ({user} AS user_id), CASE logged {arms} ELSE logged END AS arm, logged AS release, "
            "false AS crossed",
        ),
        came.lines(
            {
                "request_id": came.text("request_id"),
                "item_id": came.text("item_id", "''") if shown.has("item_id") else "''",
                "name": came.text("name"),
                "value": came.number("value", "DOUBLE", "1.0"),
                "ts": came.time("ts"),
                "observed_ts": came.time("observed_ts" if came.has("observed_ts") else "ts"),
            },
            required=("request_id", "item_id", "name", "value", "ts", "observed_ts"),
        ),
    )
    past = None if before is None else _past(before)
    evidence = observe(log, declared.experiment, declared.config, now, past)
    return judge(declared.experiment, declared.config, now, evidence)


def _past(path: Path) -> pa.Table:
    with duckdb.connect() as connection:
        return connection.execute(f"SELECT * FROM {_Table(connection, path, 'period before').source}").to_arrow_table()


def _moment(value: Any, path: Path) -> int:
    if isinstance(value, datetime):
        return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1_000_000)
    if isinstance(value, date):
        return int(datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()) * 1_000_000
    raise InputError(f"{path}: start is {value!r}.", "Write a TOML date or time, such as 2026-03-02; it is UTC.")


class _Table:
    """A table in files, and SQL that reads its columns as the log's."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path, what: str) -> None:
        self.path, self.what = path, what
        files = sorted(each for each in path.iterdir() if each.suffix in _READERS) if path.is_dir() else [path]
        suffixes = {each.suffix for each in files}
        if len(suffixes) != 1 or not suffixes <= set(_READERS):
            raise InputError(
                f"{path} is no table that can be read as {what}.", f"Give files of one kind: {', '.join(_READERS)}."
            )
        self.files, self.reader = tuple(files), _READERS[suffixes.pop()]
        self.source = self.reader.format(files=path_list(files))
        try:
            described = connection.execute(f"DESCRIBE SELECT * FROM {self.source}").fetchall()
        except duckdb.Error as error:
            raise InputError(
                f"{path} cannot be read as {what}: {str(error).splitlines()[0]}", "Check the path and the file."
            ) from error
        self.kinds = {str(name): str(kind) for name, kind, *_ in described}

    def has(self, column: str) -> bool:
        """Whether the files have it."""
        return column in self.kinds

    def text(self, column: str, default: str | None = None) -> str:
        """A column as text."""
        return self._or(column, f'"{column}"::VARCHAR', default)

    def number(self, column: str, kind: str, default: str) -> str:
        """A column as a number; what is none becomes null."""
        return self._or(column, f'try_cast("{column}" AS {kind})', default)

    def time(self, column: str) -> str:
        """A column of UTC microseconds, or of timestamps (UTC where they name no zone), as UTC microseconds."""
        kind = self.kinds.get(column, "")
        if kind.startswith("TIMESTAMP"):
            return f'epoch_us("{column}")'
        if kind == "VARCHAR":
            return f'epoch_us(try_cast("{column}" AS TIMESTAMP))'
        if kind in ("", "BIGINT", "UBIGINT", "HUGEINT", "INTEGER", "DOUBLE"):
            return self._or(column, f'"{column}"::BIGINT', None)
        raise InputError(
            f"Column {column!r} of {self.path} is {kind}, which is no time.",
            "Give UTC microseconds or timestamps.",
        )

    def lines(self, columns: dict[str, str], required: tuple[str, ...], replaced: str = "*") -> Lines:
        """The table as one of the two logs."""
        selected = ", ".join(f"{expression} AS {name}" for name, expression in columns.items())
        whole = " AND ".join(f"{name} IS NOT NULL" for name in required)

        def select(files: Sequence[Path]) -> str:
            return (
                f"SELECT {replaced}, {literal([str(files[0])])} AS file, {whole} AS whole "
                f"FROM (SELECT {selected} FROM {self.reader.format(files=path_list(files))})"
            )

        return Lines(self.what, str(self.path), self.files, False, select)

    def _or(self, column: str, found: str, default: str | None) -> str:
        if self.has(column):
            return found
        if default is None:
            raise InputError(
                f"{self.path} has no column {column!r}.",
                f"It is required of {self.what}; there are {', '.join(sorted(self.kinds))}.",
            )
        return default
