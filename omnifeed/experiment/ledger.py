"""The append-only log of what was decided, and the champion pointer that follows from it.

Standard library only: the server reads the champion here. One JSON object a line, each naming the digest of the line
before it, so that an edit anywhere breaks the chain from there on. A line counts once its newline is on the disk: a
kill in the middle of a write leaves a torn last line, which every reader ignores and the next append removes. What a
chain alone cannot show is that whole lines were cut off at its end; keep a copy elsewhere where that matters.

The pointer is moved by compare-and-swap under the ledger's own lock file, so a holder of the home's lock may append,
and of two promotions at once exactly one wins.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from omnifeed.errors import ConflictError, InputError, IntegrityError, OmnifeedError
from omnifeed.home import Home

#: BOOTSTRAP sets the first champion, PROMOTE and ROLLBACK move it (the body's "release"); DEPLOY puts a challenger in
#: front of users and DECISION records a verdict: neither moves it.
Kind = Literal["BOOTSTRAP", "DEPLOY", "DECISION", "PROMOTE", "ROLLBACK"]
MOVES: tuple[Kind, ...] = ("BOOTSTRAP", "PROMOTE", "ROLLBACK")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger."""

    kind: Kind
    sequence: int  # from 0
    ts: int  # UTC microseconds
    champion: str | None  # release number after this entry
    body: dict[str, Any]  # JSON
    previous: str  # digest of the entry before, "" for the first
    digest: str  # SHA-256 of the canonical JSON of all the other fields

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def _fields(entry: Entry) -> dict[str, Any]:
    """Without `asdict`'s copy of the whole body: a ledger of many decisions is read often."""
    return {name: getattr(entry, name) for name in Entry.__slots__}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _sealed(kind: Kind, sequence: int, ts: int, champion: str | None, body: dict[str, Any], previous: str) -> Entry:
    plain = json.loads(_canonical(body))  # what a reader will see: lists for tuples, strings for keys
    fields = {
        "kind": kind,
        "sequence": sequence,
        "ts": ts,
        "champion": champion,
        "body": plain,
        "previous": previous,
    }
    digest = hashlib.sha256(_canonical(fields).encode()).hexdigest()
    return Entry(kind, sequence, ts, champion, plain, previous, digest)


class Ledger:
    """`<home>/ledger/ledger.jsonl`."""

    def __init__(self, home: Home) -> None:
        self.path = home.ledger / "ledger.jsonl"

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, oldest first; a torn last line is left out.

        Raises:
            IntegrityError: a line is not what was appended; the message names the line.
        """
        return self._read()[0]

    def verify(self) -> int:
        """Check the whole chain and return the number of its entries.

        Raises:
            IntegrityError: a line is not what was appended; the message names the line.
        """
        return len(self.entries())

    def champion(self) -> str | None:
        """The release that answers: where the last BOOTSTRAP, PROMOTE or ROLLBACK put the pointer; None before any."""
        entries = self.entries()
        return entries[-1].champion if entries else None

    def append(
        self,
        kind: Kind,
        body: dict[str, Any],
        now: int,
        expected_champion: str | None = None,
        once: str | None = None,
    ) -> Entry:
        """Add one entry, on the disk when this returns.

        Args:
            kind: what happened; BOOTSTRAP, PROMOTE and ROLLBACK move the champion to `body["release"]`.
            body: JSON-ready details.
            now: UTC microseconds.
            expected_champion: refuse if the champion is another one; PROMOTE and ROLLBACK need it, BOOTSTRAP expects
                that there is none.
            once: an id; if an entry of this kind carries it as `body["id"]`, that entry is returned and nothing added,
                so that a run which was killed and repeated leaves one entry.

        Raises:
            ConflictError: the champion is not the expected one.
            InputError: the entry moves the champion and the body names no release.
            IntegrityError: the ledger was edited.
            OmnifeedError: the disk is full or not writable; the ledger is as it was.
        """
        with self._locked():
            return self._append(kind, body, now, expected_champion, once)

    def rollback(self, now: int, to: str | None = None, reason: str = "") -> Entry:
        """Move the champion back and rebuild nothing.

        Args:
            now: UTC microseconds.
            to: a release that was a champion before; default the one that the present champion replaced.
            reason: why, for who reads the ledger.

        Raises:
            InputError: there is nothing to go back to, or `to` never was a champion or is the champion already.
        """
        with self._locked():
            entries, _ = self._read()
            stack: list[str] = []  # champions, each above the one that it replaced
            for entry in entries:
                if entry.kind in MOVES and entry.champion is not None:
                    stack = _moved(stack, entry.champion, entry.kind)
            past = {entry.champion for entry in entries if entry.kind in MOVES}
            if not stack or (to is None and len(stack) < 2):
                raise InputError(
                    "There is no earlier champion to go back to.",
                    "Promote a release first, or name one with `to`.",
                )
            target = stack[-2] if to is None else to
            if target not in past or target == stack[-1]:
                state = "is the champion already" if target == stack[-1] else "never was a champion"
                raise InputError(
                    f"Release {target} {state}.", f"Name one of {', '.join(sorted(filter(None, past))) or 'none'}."
                )
            body = {"release": target, "from": stack[-1], "reason": reason}
            return self._append("ROLLBACK", body, now, expected_champion=stack[-1], once=None)

    def _append(
        self, kind: Kind, body: dict[str, Any], now: int, expected_champion: str | None, once: str | None
    ) -> Entry:
        entries, intact = self._read()
        if once is not None:
            for entry in entries:
                if entry.kind == kind and entry.body.get("id") == once:
                    return entry
        current = entries[-1].champion if entries else None
        guarded = kind in MOVES or expected_champion is not None
        if guarded and current != expected_champion:
            raise ConflictError(
                f"The champion is release {current}, not {expected_champion}: "
                f"{kind} was decided on another state of the ledger.",
                "Read the ledger, compare with the present champion, and decide again.",
            )
        champion = current
        if kind in MOVES:
            if not isinstance(body.get("release"), str):
                raise InputError(f"{kind} names no release.", 'Give its number as body["release"].')
            champion = body["release"]
        entry = _sealed(
            kind, len(entries), now, champion, body if once is None else {**body, "id": once}, self._head(entries)
        )
        self._write((_canonical(_fields(entry)) + "\n").encode(), intact)
        return entry

    @staticmethod
    def _head(entries: tuple[Entry, ...]) -> str:
        return entries[-1].digest if entries else ""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = open(self.path.parent / "lock", "a", encoding="utf-8")  # noqa: SIM115 - closed below
        except OSError as error:
            raise _disk_error(self.path, error) from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # held for one append; dropped with the process
            yield

    def _read(self) -> tuple[tuple[Entry, ...], int]:
        """Checked entries, and the length in bytes of the part of the file that holds them."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return (), 0
        intact = raw.rfind(b"\n") + 1
        entries: list[Entry] = []
        for number, line in enumerate(raw[:intact].split(b"\n")[:-1], start=1):
            previous = self._head(tuple(entries[-1:]))
            try:
                entry = Entry(**json.loads(line))
                sealed = _sealed(entry.kind, len(entries), entry.ts, entry.champion, entry.body, previous)
                valid = _canonical(_fields(sealed)).encode() == line
            except (ValueError, TypeError, RecursionError):
                valid = False
            if not valid:
                raise IntegrityError(
                    f"{self.path}, line {number}: the entry is not what was appended (its digest or its link to the "
                    "line before does not match).",
                    "Restore the ledger from a copy; do not promote on this one.",
                )
            entries.append(sealed)
        return tuple(entries), intact

    def _write(self, line: bytes, intact: int) -> None:
        """Cut a torn tail off, add the line, flush it; on failure put the file back to its intact length."""
        new = not self.path.exists()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.ftruncate(descriptor, intact)
                try:
                    os.lseek(descriptor, intact, os.SEEK_SET)
                    if os.write(descriptor, line) != len(line):
                        raise OSError("the disk took only a part of the line")
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, intact)
                    raise
            finally:
                os.close(descriptor)
            if new:
                _sync_folder(self.path.parent)
        except OSError as error:
            raise _disk_error(self.path, error) from error


def _moved(stack: list[str], champion: str, kind: Kind) -> list[str]:
    if kind == "ROLLBACK" and champion in stack:
        return stack[: len(stack) - stack[::-1].index(champion)]
    return [*stack, champion]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(path: Path, error: OSError) -> OmnifeedError:
    return OmnifeedError(
        f"{path} could not be written: {error.strerror or error}.",
        "Free some space or fix the permissions and run again; the ledger is as it was.",
    )
