"""One step of a pipeline in a process of its own, killed at a chosen moment or short of disk.

A step is the component's own function with artifacts in a folder, as Kubeflow's local runner calls it. Processes come
from a fork server that has the heavy libraries loaded, so that a step costs what it does and not its imports.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import json
import multiprocessing
import os
import resource
import signal
import sys
import traceback
import typing
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

PRELOADED = (
    "kfp.dsl",
    "duckdb",
    "feast",
    "great_expectations",
    "torch",
    "omnifeed.components.record",
    "omnifeed.datasets.served",
    "omnifeed.evaluation.champion",
    "omnifeed.evaluation.compare",
    "omnifeed.experiment.gate",
    "omnifeed.export.bundle",
    "omnifeed.features.materialize",
    "omnifeed.features.refresh",
    "omnifeed.quality.validate",
    "omnifeed.report.page",
    "omnifeed.training.loop",
    "omnifeed.world.market",
)
#: Audit events of what changes a disk; SQLite and Arrow write natively, after one of these.
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "sqlite3.connect")


@dataclass(frozen=True, slots=True)
class Moment:
    """Just before the `nth` change of the disk (from 1) whose path, relative to the home or the artifacts, matches."""

    path: str = "*"
    event: str = "*"
    nth: int = 1


@dataclass(frozen=True, slots=True)
class Ended:
    """How a step's process ended."""

    code: int  # as Process.exitcode: -9 when killed
    changes: tuple[str, ...]  # "event path" of every change of the disk, in order
    output: Any  # what the step returned
    error: tuple[str, str, str] | None  # type and sentences of an OmnifeedError; the traceback for anything else
    folder: Path  # of the output artifacts


@dataclass(frozen=True, slots=True)
class Artifacts:
    """Where earlier steps of a run left their artifacts, by step and name."""

    folder: Path

    @staticmethod
    def of(home: Path, run: str, pipeline: str) -> Artifacts:
        return Artifacts(next((home / "runs" / run / "artifacts").glob(f"omnifeed-{pipeline}-*")))

    def path(self, step: str, name: str) -> Path:
        return self.folder / step.replace("_", "-") / name


class Steps:
    """Starts steps; each call waits for the end."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, *PRELOADED])

    def warm(self) -> None:
        """Start the fork server and let it load the libraries."""
        process = self._context.Process(target=int)
        process.start()
        process.join()

    def run(
        self,
        step: str,
        folder: Path,
        arguments: dict[str, Any],
        kill: Moment | None = None,
        file_limit: int | None = None,
    ) -> Ended:
        process = self.start(step, folder, arguments, kill, file_limit)
        process.join()
        return ended(process, folder)

    def start(
        self,
        step: str,
        folder: Path,
        arguments: dict[str, Any],
        kill: Moment | None = None,
        file_limit: int | None = None,
    ) -> ForkServerProcess:
        """Args:
        step: a folder of components/.
        folder: new; gets the output artifacts and the process's log.
        arguments: of the component; a Path becomes an input artifact.
        file_limit: no file may grow beyond this many bytes (RLIMIT_FSIZE): what a full disk looks like from inside.
        """
        folder.mkdir(parents=True)
        process = self._context.Process(target=_step, args=(step, folder, arguments, kill, file_limit))
        process.start()
        return process


def ended(process: ForkServerProcess, folder: Path) -> Ended:
    changes = (folder / "changes.log").read_text().splitlines()
    result = folder / "result.json"
    told = json.loads(result.read_text()) if result.exists() else {"output": None, "error": None}
    error = tuple(told["error"]) if told["error"] else None
    return Ended(typing.cast(int, process.exitcode), tuple(changes), told["output"], error, folder)


def _step(step: str, folder: Path, arguments: dict[str, Any], kill: Moment | None, file_limit: int | None) -> None:
    from omnifeed.errors import OmnifeedError

    log = os.open(folder / "process.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    function = getattr(importlib.import_module(f"omnifeed.components.{step}.component"), step).python_func
    inputs = {name: _artifact(function, name, value, folder) for name, value in arguments.items()}
    for name in set(inspect.signature(function).parameters) - set(arguments):
        inputs[name] = _artifact(function, name, folder / name, folder)
    roots = (f"{arguments['home']}/", f"{folder}/")
    _watch_changes(roots, folder, kill)
    result: dict[str, Any] = {"output": None, "error": None}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, hard))
    try:
        result["output"] = function(**inputs)
    except OmnifeedError as error:
        result["error"] = [type(error).__name__, error.problem, error.action]
    except Exception as error:
        result["error"] = [type(error).__name__, "", traceback.format_exc()]
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (folder / "result.json").write_text(json.dumps(result))


def _artifact(function: Any, name: str, value: Any, folder: Path) -> Any:
    if not isinstance(value, Path):
        return value
    kind = typing.get_type_hints(function)[name]
    value.parent.mkdir(parents=True, exist_ok=True)
    return kind(name=name, uri=str(value))


def _watch_changes(roots: tuple[str, ...], folder: Path, kill: Moment | None) -> None:
    """Log every change under the roots, and die just before the chosen one.

    The step's own progress notes are not counted: when they are written depends on the clock.
    """
    log = os.open(folder / "changes.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    matched = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal matched
        if event == "open":
            _, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in _CHANGES:
            return
        path = os.fsdecode(arguments[1] if event == "os.rename" else arguments[0]) if _is_path(arguments[0]) else ""
        root = next((root for root in roots if path.startswith(root)), None)
        if root is None or "/steps" in path or (event == "os.mkdir" and os.path.isdir(path)):
            return
        relative = path.removeprefix(root)
        if relative in ("result.json", "changes.log"):
            return
        os.write(log, f"{event} {relative}\n".encode())
        if kill is not None and fnmatch.fnmatch(event, kill.event) and fnmatch.fnmatch(relative, kill.path):
            matched += 1
            if matched == kill.nth:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _is_path(value: object) -> bool:
    return isinstance(value, str | bytes | os.PathLike)
