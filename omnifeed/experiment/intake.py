"""An experiment's lines, each read once: kept by day, with the ids as integers, until the log itself changes.

A log is looked at every hour for weeks and grows all the while; reading it whole at each look would cost more every
day. Here only what came since the last look is read. The lines of one look are a batch; in it exposures lie by the day
of the experiment that they fall into, outcomes by the day of the request that they name. What is computed of a day can
then be kept too (see `days`) until a later batch holds lines of that day: a late file has its own days computed again,
and no other.

A file of JSON lines may grow: it is read from where it ended, after samples of what was read have been compared. A
table, or a file that changed in any other way or is gone, makes everything be read anew. A last line without its
newline is read if it is whole, and waited for otherwise. The folder may be deleted at any time, at the price of one
full reading; a reading that was killed leaves the former state.

Ids become DuckDB's 64-bit hashes, two of them a line (request and item), which must both agree for lines to be the
same. They never leave the folder, and a folder of another version of DuckDB is read anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb

from omnifeed.errors import InputError
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.read import Lines, Log, copy_bytes, last_whole, literal, path_list
from omnifeed.home import write_atomic

DAY = 86_400_000_000  # microseconds
STAGE = 100_000  # block = number of the stage * STAGE + day of the stage
#: Blocks of lines that belong to no day of the experiment.
BEFORE, AFTER, FOREIGN, BROKEN, UNROUTED = -1, -2, -3, -4, -5
STATE = "state.json"
LOGS = ("exposures", "outcomes")
LAYOUT = "2"  # of the folder; raised when other things are kept in it
AT_ONCE = 6_000_000  # outcomes and requests that are joined in one go: bounds memory
SAMPLES, SAMPLE = 64, 4096  # of what was read of a file: number and bytes
_BY_BLOCK = "(FORMAT parquet, PARTITION_BY (block))"
_KEYED = "hash(request_id) AS request, hash(item_id) AS item, CASE WHEN NOT whole THEN file END AS file"


@dataclass(frozen=True, slots=True)
class Seen:
    """How far one file was read."""

    size: int  # of the file, bytes
    modified: int  # nanoseconds
    inode: int
    read: int  # bytes
    sample: str  # digest of samples of what was read
    broken: int = 0  # lines that did not parse
    torn: bool = False  # the last line has no newline and does not parse: its writer was killed, or is writing


@dataclass(frozen=True, slots=True)
class Extent:
    """What a batch, or all of them, holds of one block."""

    lines: int
    last: int  # the latest ts of its exposures, or observed_ts of its outcomes; UTC microseconds


@dataclass(frozen=True, slots=True)
class Batch:
    """What one look found new."""

    name: str
    exposures: dict[int, Extent]  # by block
    outcomes: dict[int, Extent]


@dataclass(slots=True)
class Intake:
    """The kept lines of one experiment, in `folder`; its name and its stages say which block a line belongs to."""

    folder: Path
    experiment: Experiment
    files: dict[str, Seen] = field(default_factory=dict)  # by log and path
    batches: list[Batch] = field(default_factory=list)
    links: set[tuple[int, int]] = field(default_factory=set)  # blocks with lines of one request
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)  # what `days` has computed of blocks, by its key
    saved: str = ""  # the state that was read
    settled: frozenset[str] = frozenset()  # its folders

    def paths(self, what: str, blocks: Iterable[int]) -> list[Path]:
        """The files with the lines of some blocks; `what` is "exposures" or "outcomes"."""
        folders = [
            self.folder / batch.name / what / f"block={block}"
            for block in blocks
            for batch in self.batches
            if block in getattr(batch, what)
        ]
        return [path for folder in folders for path in sorted(folder.glob("*.parquet"))]

    def extent(self, what: str, block: int) -> Extent:
        """What all batches together hold of a block."""
        found = [extents[block] for batch in self.batches if block in (extents := getattr(batch, what))]
        return Extent(sum(each.lines for each in found), max((each.last for each in found), default=0))

    def batches_of(self, blocks: Sequence[int]) -> list[str]:
        """The batches with lines of some blocks, by name: what they hold is settled by it."""
        return [each.name for each in self.batches if any(b in each.exposures or b in each.outcomes for b in blocks)]

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Blocks that have to be computed together, as a request has lines in more than one; most stand alone."""
        groups = {block: {block} for batch in self.batches for block in (*batch.exposures, *batch.outcomes)}
        for left, right in sorted(self.links):
            if groups[left] is not groups[right]:
                groups[left] |= groups[right]
                groups |= dict.fromkeys(groups[right], groups[left])
        return tuple(sorted({tuple(sorted(group)) for group in groups.values()}))

    def save(self) -> None:
        """Make the present state the one that the next look goes on from, and drop what it has no more use for."""
        alive = {batch.name for batch in self.batches} | {each["folder"] for each in self.kept.values()}
        state = {
            "key": _key(self.experiment),
            "files": {path: asdict(seen) for path, seen in self.files.items()},
            "batches": [asdict(batch) for batch in self.batches],
            "links": sorted(self.links),
            "kept": self.kept,
        }
        text = json.dumps(state, sort_keys=True)
        if text != self.saved:
            for name in alive - self.settled:
                for path in (self.folder / name).rglob("*.parquet"):
                    _settle(path)
            write_atomic(self.folder / STATE, text)
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in alive:
                shutil.rmtree(path, ignore_errors=True)


def _settle(path: Path) -> None:
    """Have a file on the disk before the state names it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_log(connection: duckdb.DuckDBPyConnection, log: Log, experiment: Experiment, folder: Path) -> Intake:
    """Read what is new in the log since the state that `folder` holds; `Intake.save` makes it the next one.

    Raises:
        InputError: a table cannot be read as it was described.
    """
    intake = _former(folder, experiment)
    if intake is None or _rewritten(intake, log):
        shutil.rmtree(folder, ignore_errors=True)
        intake = Intake(folder, experiment)
    name = f"batch-{1 + max((int(batch.name[6:]) for batch in intake.batches), default=0):06d}"
    batch = folder / name
    shutil.rmtree(batch, ignore_errors=True)
    batch.mkdir(parents=True)
    exposures = _take(connection, intake, batch, log.exposures)
    outcomes = _take(connection, intake, batch, log.outcomes)
    if exposures or outcomes:
        for each in intake.batches:
            each.outcomes.pop(UNROUTED, None)  # they stand in this batch now, if they still name no known request
        intake.batches.append(Batch(name, exposures, outcomes))
    return intake


def _former(folder: Path, experiment: Experiment) -> Intake | None:
    """The state to go on from; None where there is none of this experiment, layout and version."""
    try:
        text = (folder / STATE).read_text(encoding="utf-8")
        raw = json.loads(text)
        if raw["key"] != _key(experiment):
            return None
        batches = [
            Batch(each["name"], *({int(b): Extent(**e) for b, e in each[what].items()} for what in LOGS))
            for each in raw["batches"]
        ]
        files = {path: Seen(**seen) for path, seen in raw["files"].items()}
        names = frozenset([*(each.name for each in batches), *(each["folder"] for each in raw["kept"].values())])
        links = {(left, right) for left, right in raw["links"]}
        intake = Intake(folder, experiment, files, batches, links, raw["kept"], text, names)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return intake if all((folder / name).is_dir() for name in names) else None


def _key(experiment: Experiment) -> str:
    times = [experiment.start_ts, *(stage.start_ts for stage in experiment.stages[1:]), experiment.end_ts]
    return hashlib.sha256(json.dumps([LAYOUT, duckdb.__version__, experiment.name, times]).encode()).hexdigest()


def _rewritten(intake: Intake, log: Log) -> bool:
    """Whether a file that was read is gone, or changed in another way than by growing."""
    there = {_name(lines, file): (lines, file) for lines in (log.exposures, log.outcomes) for file in lines.files}
    for name, seen in intake.files.items():
        if name not in there:
            return True
        lines, file = there[name]
        status = file.stat()
        if not _same(seen, status) and (
            not lines.grows or status.st_size < seen.read or _sample(file, seen.read) != seen.sample
        ):
            return True
    return False


def _name(lines: Lines, file: Path) -> str:
    return f"{lines.what} {file}"


def _same(seen: Seen, status: os.stat_result) -> bool:
    return (seen.size, seen.modified, seen.inode) == (status.st_size, status.st_mtime_ns, status.st_ino)


def _sample(file: Path, read: int) -> str:
    """Digest of samples, evenly spread over the first `read` bytes: an edit that moves what follows shows in them."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        for number in range(SAMPLES):
            handle.seek(max(read - SAMPLE, 0) * number // (SAMPLES - 1))
            digest.update(handle.read(min(SAMPLE, read)))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Part:
    """New lines of one file."""

    file: Path
    read: Path  # the file itself, or a copy of its new bytes
    seen: Seen  # once they are read


def _take(connection: duckdb.DuckDBPyConnection, intake: Intake, batch: Path, lines: Lines) -> dict[int, Extent]:
    """Read the new lines of one log into the batch; returns what there is of each block."""
    store = _store_exposures if lines.what == "exposures" else _store_outcomes
    for copied in (False, True):
        parts = _new_parts(intake, batch, lines, copied)
        shutil.rmtree(batch / lines.what, ignore_errors=True)
        try:
            store(connection, intake, batch, [lines.select([part.read for part in parts])] if parts else [])
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise InputError(
                f"{lines.place} cannot be read as {lines.what}: {str(error).splitlines()[0]}",
                "Correct the file; where the disk is full, free some space.",
            ) from error
        if all(part.read != part.file or part.file.stat().st_size == part.seen.size for part in parts):
            break  # else a file grew while it was read: once more, from copies of what was there at first
    broken: dict[str, int] = {}
    spoilt = batch / lines.what / f"block={BROKEN}"
    if spoilt.is_dir():
        counted = f"SELECT file, count(*) FROM read_parquet('{spoilt}/*.parquet') GROUP BY file"
        broken = dict(connection.execute(counted).fetchall())
        shutil.rmtree(spoilt)
    for part in parts:
        found = broken.get(str(part.read), 0)
        intake.files[_name(lines, part.file)] = replace(part.seen, broken=part.seen.broken + found)
        if part.read != part.file:
            part.read.unlink()
    if not any((batch / lines.what).glob("block=*")):
        return {}
    last = "ts" if lines.what == "exposures" else "observed_ts"
    stored = kept_lines((batch / lines.what).glob("*/*.parquet"))
    rows = connection.execute(f"SELECT block, count(*), max({last}) FROM {stored} GROUP BY block").fetchall()
    return {int(block): Extent(int(count), int(latest)) for block, count, latest in rows}


def kept_lines(paths: Iterable[Path]) -> str:
    """SQL that reads kept lines, with the block that each lies in."""
    return f"read_parquet({path_list(sorted(paths))}, hive_partitioning = true, hive_types = {{'block': INTEGER}})"


def _new_parts(intake: Intake, batch: Path, lines: Lines, copied: bool) -> list[_Part]:
    """What is new in each file; as a copy where it is not the file's whole content, or must not grow meanwhile."""
    parts = []
    for number, file in enumerate(lines.files):
        former, status = intake.files.get(_name(lines, file)), file.stat()
        if former is not None and _same(former, status):
            continue
        start, end, torn = former.read if former else 0, status.st_size, False
        if lines.grows:
            end, torn = last_whole(file, start, end)
        seen = Seen(
            size=status.st_size,
            modified=status.st_mtime_ns,
            inode=status.st_ino,
            read=end,
            sample=_sample(file, end) if lines.grows else "",
            broken=former.broken if former else 0,
            torn=torn,
        )
        read = file
        if copied or start or end < status.st_size:
            read = batch / f"{lines.what}-{number}.jsonl"
            copy_bytes(file, start, end, read)
        parts.append(_Part(file, read, seen))
    return parts


def _block(experiment: Experiment) -> str:
    """SQL for the block of an exposure line."""
    starts = [experiment.start_ts, *(stage.start_ts for stage in experiment.stages[1:])]
    days = [f"{number * STAGE} + (ts - {start}) // {DAY}" for number, start in enumerate(starts)]
    stages = " ".join(f"WHEN ts < {later} THEN {day}" for later, day in zip(starts[1:], days[:-1], strict=True))
    return (
        f"CASE WHEN NOT whole THEN {BROKEN} WHEN experiment NOT IN {literal([experiment.name])} THEN {FOREIGN} "
        f"WHEN ts < {experiment.start_ts} THEN {BEFORE} WHEN ts >= {experiment.end_ts} THEN {AFTER} {stages} "
        f"ELSE {days[-1]} END"
    )


def _store_exposures(
    connection: duckdb.DuckDBPyConnection, intake: Intake, batch: Path, selected: Sequence[str]
) -> None:
    """Exposures by block, the requests that they belong to, and which blocks share one."""
    if not selected:
        return
    folder, index = batch / "exposures", batch / "requests.parquet"
    connection.execute(
        f"COPY (SELECT {_KEYED}, user_id, scenario, arm, release, ts, position, device, latency_ms, "
        f"tail_creator, crossed, "
        f"{_block(intake.experiment)} AS block FROM ({selected[0]})) TO '{folder}' {_BY_BLOCK}"
    )
    paths = [path for path in folder.glob("*/*.parquet") if path.parent.name != f"block={BROKEN}"]
    if not paths:
        return
    connection.execute(
        f"COPY (SELECT request, block FROM {kept_lines(paths)} GROUP BY ALL) TO '{index}' (FORMAT parquet)"
    )
    pairs = connection.execute(
        "SELECT DISTINCT least(new.block, old.block), greatest(new.block, old.block) "
        f"FROM read_parquet('{index}') new JOIN {_requests(intake.folder)} old USING (request) "
        "WHERE new.block <> old.block"
    ).fetchall()
    intake.links |= {(int(left), int(right)) for left, right in pairs}


def _requests(folder: Path) -> str:
    return f"read_parquet({path_list(sorted(folder.glob('batch-*/requests.parquet')))})"


def _store_outcomes(
    connection: duckdb.DuckDBPyConnection, intake: Intake, batch: Path, selected: Sequence[str]
) -> None:
    """Outcomes by the block of the request that they name: new ones, and those that named none that was known."""
    if not selected and not (batch / "requests.parquet").exists():
        return
    columns = "request, item, file, name, value, ts, observed_ts"
    waiting = intake.paths("outcomes", [UNROUTED])
    sources = [f"SELECT {columns}, true AS whole FROM {kept_lines(waiting)}"] if waiting else []
    sources += [f"SELECT {_KEYED}, name, value, ts, observed_ts, whole FROM ({each})" for each in selected]
    if not sources:
        return
    connection.execute(f"CREATE OR REPLACE TEMP TABLE came AS {' UNION ALL '.join(sources)}")
    lines = connection.execute("SELECT count(*) FROM came").fetchall()[0][0]
    indexed = any(intake.folder.glob("batch-*/requests.parquet"))
    if indexed:
        lines += connection.execute(f"SELECT count(*) FROM {_requests(intake.folder)}").fetchall()[0][0]
    slices = 1 + lines // AT_ONCE
    for number in range(slices):
        mine = f"request % {slices} = {number}"
        known = "SELECT NULL::UBIGINT AS request, NULL::INTEGER AS block WHERE false"
        if indexed:
            known = (
                "SELECT request, coalesce(min(block) FILTER (block >= 0), max(block)) AS block "
                f"FROM {_requests(intake.folder)} SEMI JOIN (SELECT request FROM came WHERE {mine}) USING (request) "
                f"WHERE {mine} GROUP BY request"
            )
        connection.execute(
            f"COPY (SELECT {columns}, CASE WHEN whole THEN coalesce(block, {UNROUTED}) ELSE {BROKEN} END AS block "
            f"FROM (SELECT * FROM came WHERE {mine}) LEFT JOIN ({known}) USING (request)) TO '{batch / 'outcomes'}' "
            f"(FORMAT parquet, PARTITION_BY (block), OVERWRITE_OR_IGNORE, FILENAME_PATTERN 'slice{number}_{{i}}')"
        )
    connection.execute("DROP TABLE came")
