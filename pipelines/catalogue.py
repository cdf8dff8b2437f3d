"""`omnifeed catalogue`: what changes by the minute, told to every running server of a home."""

from __future__ import annotations

import time
from pathlib import Path

import click

from omnifeed.errors import InputError
from omnifeed.home import Home

now_option = click.option("--now", type=int, help="Time of the change, UTC microseconds (default: the clock).")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group(name="catalogue")
def catalogue_group() -> None:
    """Tell running servers what is new, sold out, on air, dropped or blocked; they follow within seconds."""


@catalogue_group.command(name="apply")
@click.argument("file", type=click.Path(path_type=Path))
@now_option
@json_option
def apply_changes(file: Path, now: int | None, as_json: bool) -> None:
    """Apply a file of changes (.jsonl or .parquet), one row an item; see docs/serving.md for the fields."""
    from omnifeed.export.delta_file import apply_file
    from omnifeed.pipelines.cli import emit

    applied = apply_file(Home.from_env(), file, _now(now))
    lines = [f"Delta {applied.delta.sequence}: {len(applied.delta.changes)} changes applied."]
    if applied.bad:
        first = applied.bad[0]
        lines.append(f"{len(applied.bad)} rows set aside in {applied.quarantine}; row {first.row}: {first.problem}")
    emit(applied.to_dict(), as_json, "\n".join(lines))


@catalogue_group.command()
@click.argument("authors", nargs=-1)
@click.option("--lift", is_flag=True, help="Let them back instead.")
@now_option
@json_option
def block(authors: tuple[str, ...], lift: bool, now: int | None, as_json: bool) -> None:
    """Block creators or sellers: none of their items is shown from now on, whatever later tables of items say."""
    from omnifeed.export.delta import append_delta
    from omnifeed.pipelines.cli import emit

    if not authors:
        raise InputError("No author_id is given.", "Name the creators or sellers.")
    blocked, let_back = ((), authors) if lift else (authors, ())
    delta = append_delta(Home.from_env(), now=_now(now), block=blocked, unblock=let_back)
    emit(
        {"sequence": delta.sequence, "block": delta.block, "unblock": delta.unblock},
        as_json,
        f"Delta {delta.sequence}: {', '.join(authors)} {'let back' if lift else 'blocked'}.",
    )


@catalogue_group.command()
@json_option
def compact(as_json: bool) -> None:
    """Write snapshot and deltas as one new snapshot; do so when servers start slowly or prices change much."""
    from omnifeed.export.following import compact as write_compacted
    from omnifeed.pipelines.cli import emit

    version = write_compacted(Home.from_env())
    emit({"version": version}, as_json, f"Snapshot {version}.")


@catalogue_group.command()
@now_option
@json_option
def status(now: int | None, as_json: bool) -> None:
    """Show what a server sees: the snapshot, the deltas after it, and how many items may be shown now."""
    from omnifeed.export.following import load_catalogue
    from omnifeed.pipelines.cli import emit, stamp

    catalogue = load_catalogue(Home.from_env())
    shown, items = int(catalogue.eligible(_now(now)).sum()), len(catalogue.rows)
    blocked, dropped = sorted(catalogue.blocked_authors), sorted(catalogue.dropped_items)
    found = {
        "snapshot": catalogue.base,
        "described": catalogue.now,
        "sequence": catalogue.sequence,
        "items": items,
        "rows": len(catalogue),
        "shown": shown,
        "blocked_authors": blocked,
        "dropped_items": dropped,
    }
    text = (
        f"Snapshot {catalogue.base} (aggregates as of {stamp(catalogue.now)}), deltas to {catalogue.sequence}.\n"
        f"{shown:,} of {items:,} items may be shown; {len(blocked)} authors blocked, {len(dropped)} items dropped."
    )
    emit(found, as_json, text)


def _now(given: int | None) -> int:
    return time.time_ns() // 1_000 if given is None else given
