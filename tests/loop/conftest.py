"""One home in which the loop has run once through the command line; tests copy it and do it harm."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from omnifeed.config import Config
from omnifeed.errors import UnavailableError
from omnifeed.experiment.ledger import Ledger
from omnifeed.home import Home
from omnifeed.serving.server import triton_environment

from .steps import Steps

ROOT = Path(__file__).resolve().parents[2]
#: Ports of 0 become free ones, so that tests disturb no server of this machine.
PORTS = "\n[serving]\ngrpc_port = 0\nhttp_port = 0\nmetrics_port = 0\nfeatures_port = 0\n"


@dataclass(frozen=True, slots=True)
class Command:
    """How an `omnifeed` command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def sentences(self) -> tuple[str, str]:
        """The error's two lines; fails where something else was printed, a traceback above all."""
        lines = [line for line in self.err.splitlines() if "Warning" not in line and not line.startswith("  meta = ")]
        assert len(lines) == 2, self.err
        assert lines[0].startswith("Error: ")
        return lines[0].removeprefix("Error: "), lines[1].strip()


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a command: one thread, and bytecode written, without which imports take twice as long."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMNIFEED_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def omnifeed(home: Path, *arguments: str | Path, limit: Callable[[], None] | None = None, **more: str) -> Command:
    """Run a command to its end."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("omnifeed")), *map(str, arguments)],
        env=environment(home, **more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    return Command(done.returncode, done.stdout, done.stderr)


def printed(home: Path) -> str:
    """What the last command that was `started` on this home has printed."""
    return (home.parent / f"{home.name}.out").read_text()


@contextlib.contextmanager
def started(home: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, which is killed whole at the end."""
    with (home.parent / f"{home.name}.out").open("w") as out:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("omnifeed")), *map(str, arguments)],
            env=environment(home),
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], home: Path, seconds: float = 500) -> None:
    """Poll; fails when the command ends first or the time is over."""
    start = time.monotonic()
    while not condition():
        assert process.poll() is None, printed(home)
        assert time.monotonic() - start < seconds, printed(home)
        time.sleep(0.01)


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run config, on free ports, with a checkpoint every other step of training."""
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    text = (ROOT / "pipelines" / "configs" / "tiny.toml").read_text()
    assert "checkpoint_every = 10\n" in text
    path.write_text(text.replace("checkpoint_every = 10\n", "checkpoint_every = 2\n") + PORTS)
    return path


@pytest.fixture(scope="session")
def config(config_file: Path) -> Config:
    return Config.load(config_file)


@dataclass(frozen=True, slots=True)
class Loop:
    """A home in which the loop has run, as it was when the challenger had been deployed, and what the run printed."""

    home: Home
    deployed: Home
    outcome: dict[str, Any]


def deployed(home: Path) -> bool:
    record = home / "runs" / "0001" / "steps" / "deploy.json"
    return record.exists() and json.loads(record.read_text())["state"] == "done"


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory, config_file: Path) -> Loop:
    """`omnifeed run` once. It is held for a moment after `deploy`, before any traffic, to copy its home."""
    try:
        triton_environment()
    except UnavailableError as missing:
        pytest.skip(missing.problem)
    folder = tmp_path_factory.mktemp("loop")
    home, before = folder / "home", folder / "deployed"
    with started(home, "run", "--config", config_file, "--json") as process:
        wait_until(lambda: deployed(home), process, home)
        os.killpg(process.pid, signal.SIGSTOP)
        shutil.copytree(home, before)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.wait() == 0, printed(home)
    out = printed(home)
    return Loop(Home(home), Home(before), json.loads(out[out.index("{\n") :]))


@pytest.fixture
def copied(loop: Loop, tmp_path: Path) -> Home:
    """A copy of the home after the whole loop."""
    shutil.copytree(loop.home.root, tmp_path / "home")
    return Home(tmp_path / "home")


@pytest.fixture
def open_experiment(loop: Loop, tmp_path: Path) -> Home:
    """A copy of the home right after `deploy`: an experiment runs, nobody was served yet."""
    shutil.copytree(loop.deployed.root, tmp_path / "home")
    return Home(tmp_path / "home")


@pytest.fixture
def undecided(open_experiment: Home, loop: Loop) -> Home:
    """The home after the traffic and before the promotion pipeline."""
    name = Ledger(loop.home).entries()[1].body["id"]
    shutil.copytree(loop.home.experiments / name, open_experiment.experiments / name, dirs_exist_ok=True)
    return open_experiment


@pytest.fixture(scope="session")
def steps() -> Steps:
    former = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # the fork server takes the environment of its start
    try:
        one = Steps()
        one.warm()
        return one
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if former is not None:
            os.environ["OMP_NUM_THREADS"] = former
