"""Run a pipeline with Kubeflow's own local runner, quietly, with progress drawn from what the steps record.

The runner executes every step in a subprocess of this Python. Its chatter goes to `runs/<run>/<pipeline>.log`; a step
that fails has left its sentences in `runs/<run>/steps/<step>.json`, which become the error raised here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omnifeed import errors
from omnifeed.home import Home

#: What the steps are called in front of a person.
POLL_S = 0.2


def run_pipeline(pipeline: Callable[..., Any], arguments: dict[str, Any], home: Home, run_id: str, show: bool) -> None:
    """Run to the end.

    Args:
        pipeline: a function decorated with `dsl.pipeline`.
        arguments: its parameters without home and run_id.
        show: draw progress on standard error.

    Raises:
        OmnifeedError: a step failed; the sentences are the step's own.
    """
    from kfp import local

    folder = home.runs / run_id
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    # The runner deletes its workspace recursively after every run, so it gets none of ours (it makes its own).
    local.init(
        runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "artifacts"), raise_on_error=True
    )
    name = pipeline.__name__ if hasattr(pipeline, "__name__") else str(pipeline)
    log = folder / f"{getattr(pipeline, 'name', name)}.log"
    with log.open("a", encoding="utf-8") as sink, _watching(folder / "steps", show), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = logging.getLogger()
        level = root.level
        try:
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                pipeline(home=str(home.root), run_id=run_id, **arguments)
        except RuntimeError as error:
            raise _failure(folder / "steps", log) from error
        finally:
            root.setLevel(level)


def _failure(steps: Path, log: Path) -> errors.OmnifeedError:
    for path in sorted(steps.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["state"] == "failed":
            kind = getattr(errors, record["error"], errors.OmnifeedError)
            return kind(record["problem"], record["action"])  # type: ignore[no-any-return]
    raised = re.findall(r"^ *((?:\w+\.)*\w*(?:Error|Exception): .*)$", log.read_text(encoding="utf-8"), re.MULTILINE)
    return errors.OmnifeedError(f"The pipeline failed: {raised[-1] if raised else 'no step said why'}.", f"Read {log}.")


@contextlib.contextmanager
def _watching(steps: Path, show: bool) -> Iterator[None]:
    if not show:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    done = threading.Event()
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def draw() -> None:
            for path in sorted(steps.glob("*.json"), key=lambda path: path.stat().st_ctime):
                with contextlib.suppress(OSError, ValueError):
                    record = json.loads(path.read_text(encoding="utf-8"))
                    step, state = record["step"], record["state"]
                    if step not in tasks:
                        if state != "running":
                            continue
                        tasks[step] = progress.add_task(step, total=None, note="")
                    if state == "running":
                        progress.update(
                            tasks[step],
                            total=record.get("total"),
                            completed=record.get("done", 0),
                            note=record.get("label", ""),
                        )
                    elif not progress.tasks[tasks[step]].finished:
                        note = "" if state == "done" else "failed"
                        progress.update(tasks[step], total=1, completed=1, note=note)

        def loop() -> None:
            while not done.wait(POLL_S):
                draw()

        for path in steps.glob("*.json"):  # of an earlier pipeline of the same run: not drawn again
            tasks[path.stem] = progress.add_task(path.stem, total=1, completed=1, note="", visible=False)
        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            draw()
