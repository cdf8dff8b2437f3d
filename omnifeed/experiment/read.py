"""Where an experiment's lines stand: the server's JSON lines, or tables that somebody else keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    "latency_ms": "DOUBLE",
    "tail_creator": "BOOLEAN",
}
_OPTIONAL = ("degraded", "position", "device", "latency_ms", "tail_creator")
_OUTCOME = {
    "request_id": "VARCHAR",
    "item_id": "VARCHAR",
    "name": "VARCHAR",
    "value": "DOUBLE",
    "ts": "BIGINT",
    "observed_ts": "BIGINT",
}
CROSSED = "coalesce(list_contains(degraded, 'champion_answer'), false)"


@dataclass(frozen=True, slots=True)
class Lines:
    """One of the two logs."""

    what: str  # "exposures" or "outcomes"
    place: str  # for people: where it stands
    files: tuple[Path, ...]
    grows: bool  # files of JSON lines, each written by appending; otherwise whole tables, never changed
    select: Callable[[Sequence[Path]], str]
    """SQL for the lines of some of the files, one row a line, with `file` (the path it came from) and `whole` (whether
    it parsed and has every field that is required). Exposures: request_id, item_id, user_id, scenario, arm, release,
    experiment, ts, position, device, latency_ms, tail_creator and `crossed` (the line says that the champion answered
    for the challenger).
    Outcomes: request_id, item_id, name, value, ts, observed_ts."""


@dataclass(frozen=True, slots=True)
class Log:
    """What an experiment is judged from."""

    exposures: Lines
    outcomes: Lines


def folder_log(folder: Path) -> Log:
    """`exposures/*.jsonl` and `outcomes/*.jsonl` of an experiment; either folder may be missing."""
    return Log(
        Lines("exposures", str(folder / "exposures"), *_files(folder / "exposures"), select_exposures),
        Lines("outcomes", str(folder / "outcomes"), *_files(folder / "outcomes"), select_outcomes),
    )


def select_exposures(files: Sequence[Path]) -> str:
    """SQL for the server's exposure lines."""
    return _select(files, _EXPOSURE, _OPTIONAL, {"degraded": f"{CROSSED} AS crossed"})


def select_outcomes(files: Sequence[Path]) -> str:
    """SQL for outcome lines."""
    return _select(files, _OUTCOME, (), {})


def _files(folder: Path) -> tuple[tuple[Path, ...], bool]:
    return tuple(path for path in sorted(folder.glob("*.jsonl")) if path.stat().st_size), True


def _select(files: Sequence[Path], columns: dict[str, str], optional: Sequence[str], replaced: dict[str, str]) -> str:
    whole = " AND ".join(f"{name} IS NOT NULL" for name in columns if name not in optional)
    parsed = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
    shown = ", ".join(replaced.get(name, name) for name in columns)
    return (
        f"SELECT {shown}, filename AS file, {whole} AS whole FROM read_json({path_list(files)}, "
        f"format = 'newline_delimited', ignore_errors = true, columns = {{{parsed}}}, filename = true)"
    )


def literal(values: Sequence[str]) -> str:
    """An SQL list of strings."""
    return "(" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + ")"


def path_list(files: Sequence[Path]) -> str:
    """An SQL array of paths."""
    return "[" + literal([str(path) for path in files])[1:-1] + "]"


def last_whole(file: Path, start: int, end: int) -> tuple[int, bool]:
    """Where the last line that can be read ends, and whether a torn one follows it."""
    with file.open("rb") as handle:
        tail = b""
        at = end
        while at > start and b"\n" not in tail:
            step = min(at - start, 1 << 16)
            at -= step
            handle.seek(at)
            tail = handle.read(step) + tail
    rest = tail[tail.rfind(b"\n") + 1 :]
    try:
        if not rest or isinstance(json.loads(rest), dict):
            return end, False
    except ValueError:
        pass
    return end - len(rest), True


def copy_bytes(file: Path, start: int, end: int, to: Path) -> None:
    """Copy a part of a file."""
    with file.open("rb") as source, to.open("wb") as target:
        source.seek(start)
        while start < end and (piece := source.read(min(end - start, 1 << 22))):
            target.write(piece)
            start += len(piece)
