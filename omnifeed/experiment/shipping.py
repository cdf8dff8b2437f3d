"""Logs on their way from a server's own disk to an object store, and from there to whoever reads them.

A server appends to a local file before it answers; a network store cannot be waited for by a request. So what was
appended is copied afterwards: whole lines, in segments whose names say which bytes of which file they are. That makes
every step safe to repeat: a segment sent twice is the same object, one that was cut short has the wrong size and counts
as absent, and what is fetched continues the local file at exactly the byte where it ends. At the other end the files
are equal to those of the server, byte for byte, growing as theirs do.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException, fs

from omnifeed.errors import InputError, IntegrityError, UnavailableError

WRITTEN = ("exposures", "features")  # by servers, which hold a lock on a file while they may add to it
KINDS = (*WRITTEN, "outcomes")
SEGMENT = 64 * 2**20  # bytes at most
_NAME = re.compile(rf"(?P<file>[^/]+/(?:{'|'.join(KINDS)})/[^/]+)/(?P<start>\d{{15}})-(?P<end>\d{{15}})\.jsonl")


@dataclass(frozen=True, slots=True)
class _Segment:
    """Bytes `start` to `end` of one file."""

    path: str
    start: int
    end: int


class Shipper:
    """Sends what is in a home's experiments to a store; one at a time for a folder.

    Args:
        experiments: `Home.experiments`.
        uri: of a folder, as `pyarrow.fs` takes it: s3://bucket/logs, gs://…, hdfs://…, or an absolute path.

    Raises:
        InputError: the URI is not one.
        UnavailableError: the store does not answer.
    """

    def __init__(self, experiments: Path, uri: str) -> None:
        self._experiments = experiments
        self._store, self._root = _opened(uri)
        segments = _listed(self._store, self._root)
        self._shipped = {name: max(segment.end for segment in found) for name, found in segments.items()}

    def ship(self, remove: bool = False) -> int:
        """Send what is new, and return how many bytes that were.

        Args:
            remove: delete files that a server will not add to any more, once all of them has been sent.

        Raises:
            UnavailableError: the store does not answer; what it did not get is sent the next time.
            IntegrityError: a file is shorter than what was sent of it.
        """
        sent = 0
        for kind in KINDS:
            for path in sorted(self._experiments.glob(f"*/{kind}/*.jsonl")):
                sent += self._sent(path)
                if remove and kind in WRITTEN:
                    self._remove(path)
        return sent

    def _sent(self, path: Path) -> int:
        name = self._file(path)
        begun = start = self._shipped.get(name, 0)
        with path.open("rb") as handle:
            if os.fstat(handle.fileno()).st_size < start:
                raise IntegrityError(
                    f"{path} has fewer bytes than were sent of it.",
                    "Restore the file, or move it away: a log only grows.",
                )
            while True:
                handle.seek(start)
                piece = handle.read(SEGMENT)
                lines = piece[: piece.rfind(b"\n") + 1]
                if not lines:
                    return start - begun
                self._put(f"{self._root}/{name}", start, lines)
                start += len(lines)
                self._shipped[name] = start

    def _put(self, folder: str, start: int, lines: bytes) -> None:
        with _reaching(self._store):
            self._store.create_dir(folder)
            path = f"{folder}/{start:015d}-{start + len(lines):015d}.jsonl"
            with self._store.open_output_stream(path) as out:
                out.write(lines)

    def _remove(self, path: Path) -> None:
        with path.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            if 0 < os.fstat(handle.fileno()).st_size == self._shipped.get(self._file(path), 0):
                path.unlink()

    def _file(self, path: Path) -> str:
        return path.relative_to(self._experiments).with_suffix("").as_posix()


def fetch(uri: str, experiments: Path) -> int:
    """Bring what was shipped into a home, and return how many bytes were new.

    Args:
        uri: where a `Shipper` sent it.
        experiments: `Home.experiments` of the home that the gate reads.

    Raises:
        InputError: the URI is not one.
        UnavailableError: the store does not answer; what came before stays, and the next call goes on from there.
        IntegrityError: a segment is missing.
    """
    store, root = _opened(uri)
    new = 0
    for name, segments in sorted(_listed(store, root).items()):
        path = experiments / f"{name}.jsonl"
        if path.exists() and path.stat().st_size >= max(segment.end for segment in segments):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            begun = at = os.fstat(handle.fileno()).st_size
            while segment := max((s for s in segments if s.start <= at < s.end), key=lambda s: s.end, default=None):
                with _reaching(store), store.open_input_stream(segment.path) as source:
                    handle.write(source.read()[at - segment.start :])
                at = segment.end
            new += at - begun
        if any(segment.start > at for segment in segments):
            raise IntegrityError(
                f"{uri} has no segment of {name} from byte {at}, but later ones.",
                "Restore it, or ship again from the server's disk.",
            )
    return new


def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        store, root = fs.FileSystem.from_uri(uri)
    except (ArrowException, ValueError, OSError) as error:
        raise InputError(f"{uri!r} names no store: {error}", "Give s3://bucket/folder, or an absolute path.") from None
    return store, root.rstrip("/")


def _listed(store: fs.FileSystem, root: str) -> dict[str, list[_Segment]]:
    """The whole segments, by file."""
    with _reaching(store):
        found = store.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    segments: dict[str, list[_Segment]] = defaultdict(list)
    for info in found:
        match = _NAME.fullmatch(info.path[len(root) + 1 :])
        if match and info.size == int(match["end"]) - int(match["start"]) and not match["file"].startswith("."):
            segments[match["file"]].append(_Segment(info.path, int(match["start"]), int(match["end"])))
    return segments


@contextmanager
def _reaching(store: fs.FileSystem) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"The store ({store.type_name}) did not answer: {error}", "See that it is reachable, and try again."
        ) from None
