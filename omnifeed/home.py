"""Where state lives, and how it is written so that a kill at any moment leaves the last good state.

Standard library only: the server reads the same layout. Every write goes to a temporary name on the same file
system, is flushed, and is renamed into place.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnifeed.errors import ConflictError, OmnifeedError


@dataclass(frozen=True, slots=True)
class Home:
    """The state folder, `OMNIFEED_HOME` (default `./.omnifeed`)."""

    root: Path

    @staticmethod
    def from_env() -> Home:
        """The folder that `OMNIFEED_HOME` names, made absolute."""
        return Home(Path(os.environ.get("OMNIFEED_HOME", ".omnifeed")).absolute())

    @property
    def lake(self) -> Path:
        """Accepted canonical tables."""
        return self.root / "lake"

    @property
    def features(self) -> Path:
        """Feast's offline files, registry and online store."""
        return self.root / "features"

    @property
    def releases(self) -> Path:
        """Immutable release bundles, one folder a number."""
        return self.root / "releases"

    @property
    def catalogue(self) -> Path:
        """Catalogue snapshots and the pointer to today's."""
        return self.root / "catalogue"

    @property
    def experiments(self) -> Path:
        """One folder an experiment: experiment.json, exposures, outcomes."""
        return self.root / "experiments"

    @property
    def ledger(self) -> Path:
        """The append-only log of decisions."""
        return self.root / "ledger"

    @property
    def runs(self) -> Path:
        """One folder a pipeline run: artifacts, reports."""
        return self.root / "runs"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The one lock of this home; the kernel drops it with the process that held it.

        Raises:
            ConflictError: another process holds it, or a step of a run that was killed is still going.
            OmnifeedError: the folder cannot be made or written.
        """
        with self._locked("lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            with self._locked("steps.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                pass
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """Held by every step while it works, any number at once: a run that is killed alone leaves its step behind.

        Raises:
            OmnifeedError: the folder cannot be made or written.
        """
        with self._locked("steps.lock", fcntl.LOCK_SH):
            yield

    @contextmanager
    def _locked(self, name: str, kind: int) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = open(self.root / name, "a+", encoding="utf-8")  # noqa: SIM115 - closed below
        except OSError as error:
            raise _disk_error(self.root, error) from error
        with handle:
            try:
                fcntl.flock(handle, kind)
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                raise ConflictError(
                    f"{self.root} is in use by {holder}.", "Wait for it to end, or set OMNIFEED_HOME to another folder."
                ) from None
            handle.truncate(0)
            handle.write(f"process {os.getpid()}")
            handle.flush()
            yield


def _disk_error(path: Path, error: OSError) -> OmnifeedError:
    return OmnifeedError(
        f"{path} could not be written: {error.strerror or error}.",
        "Free some space or fix the permissions and run again; what was there before is untouched.",
    )


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file, or nothing.

    Raises:
        OmnifeedError: the disk is full or not writable; the former content is still there.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise _disk_error(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys sorted, one trailing newline."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' renameat2


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders in one step of the kernel: two renames would leave a moment in which neither has the name.

    Where a file system cannot (some network file systems), two renames it is.
    """
    names = os.fsencode(first), os.fsencode(second)
    if ctypes.CDLL(None, use_errno=True).renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), str(second))
    retired = Path(tempfile.mkdtemp(dir=second.parent, prefix=f".{second.name}.old."))
    os.rename(second, retired / "old")
    os.rename(first, second)
    os.rename(retired / "old", first)
    retired.rmdir()


@contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error, replacing what was there."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        os.chmod(temporary, 0o755)
        yield temporary
        if path.exists():
            _exchange(temporary, path)
        else:
            os.rename(temporary, path)
    except OSError as error:
        raise _disk_error(path, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
