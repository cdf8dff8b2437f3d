"""A full disk, a taken port, a Triton that does not start, a log nobody may believe: through the command line."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from experiment.experiment_logs import CONFIG, HORIZON, START, traffic

from omnifeed.config import Config
from omnifeed.errors import OmnifeedError
from omnifeed.experiment.deploy import open_experiment as deploy
from omnifeed.experiment.ledger import Ledger
from omnifeed.home import Home, folder_atomic, write_atomic
from omnifeed.serving.server import TRITON_ENV

from .conftest import PORTS, Loop, omnifeed
from .state import assert_sound, state
from .steps import Artifacts, Steps

# --- a disk that is full ----------------------------------------------------------------------------------------------


def test_a_run_without_space_says_so_and_changes_nothing(copied: Home, config_file: Path) -> None:
    before = state(copied)

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    refused = omnifeed(copied.root, "run", "--config", config_file, limit=full)
    assert refused.code == 1
    problem, action = refused.err.split("Error: ")[-1].strip().splitlines()
    assert "could not be written: " in problem
    assert "File too large" in problem
    assert action.strip().startswith("Free some space")
    assert state(copied) == before
    assert_sound(copied)


@pytest.mark.parametrize(
    ("step", "limit"),
    [
        ("validate", 8_192),
        ("materialize", 8_192),
        ("materialize", 400_000),  # room for the offline files, not for the online store
        ("train", 100_000),
        ("export", 100_000),
        ("act", 500),
        ("collect", 8_192),
    ],
)
def test_a_step_without_space_leaves_the_former_state(
    step: str, limit: int, steps: Steps, loop: Loop, undecided: Home, config: Config, tmp_path: Path
) -> None:
    folder = Artifacts.of(loop.home.root, "0001", "training")
    now = json.loads((loop.home.runs / "0001" / "steps" / "ingest.json").read_text())["info"]["now"]
    shutil.copy(loop.home.runs / "0001" / "decision.json", undecided.runs / "0001" / "decision.json")
    if step == "train":
        shutil.rmtree(undecided.root / "training")
    if step == "materialize":
        shutil.rmtree(undecided.features)
    settings, training_set = {"config": config.to_json()}, folder.path("materialize", "training_set")
    arguments = {
        "validate": {**settings, "now": now, "tables": folder.path("ingest", "tables")},
        "materialize": {
            **settings,
            "now": now,
            "accepted": folder.path("validate", "accepted"),
            "source": folder.path("ingest", "source"),
        },
        "train": {**settings, "training_set": training_set},
        "export": {**settings, "now": now, "training_set": training_set, "model": folder.path("train", "model")},
        "act": {"now": now, "verdict": "REJECT"},
        "collect": {"experiment": "release-1-vs-0"},
    }[step]
    before = state(undecided)
    ended = steps.run(
        step, tmp_path / "out", {"home": str(undecided.root), "run_id": "0001", **arguments}, file_limit=limit
    )
    assert ended.error is not None
    kind, problem, action = ended.error
    assert kind == "OmnifeedError", action
    assert "could not be written" in problem
    assert action.startswith("Free some space")
    after = state(undecided)
    assert {name: after.get(name) for name in before} == before
    assert_sound(undecided)


@pytest.fixture
def small_disk(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system could be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_on_a_disk_that_is_really_full_the_former_content_stays(small_disk: Path) -> None:
    write_atomic(small_disk / "file", "former")
    with folder_atomic(small_disk / "folder") as folder:
        (folder / "one").write_text("former")
    with pytest.raises(OmnifeedError, match="No space left on device"):
        write_atomic(small_disk / "file", b"x" * 100_000)

    def fill(folder: Path) -> None:
        for name in ("one", "two"):
            (folder / name).write_bytes(b"x" * 40_000)

    with pytest.raises(OmnifeedError, match="No space left on device"), folder_atomic(small_disk / "folder") as folder:
        fill(folder)
    assert sorted(path.name for path in small_disk.iterdir()) == ["file", "folder"]
    assert (small_disk / "file").read_text() == (small_disk / "folder" / "one").read_text() == "former"


KILLED = """
import os, signal, sys
from pathlib import Path
from omnifeed.home import folder_atomic
seen = 0
def watch(event, arguments):
    global seen
    if event.startswith(("os.", "shutil.")) or event in ("open", "ctypes.dlsym", "tempfile.mkdtemp"):
        seen += 1
        if seen == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
path = Path(sys.argv[1])
sys.addaudithook(watch)
with folder_atomic(path) as folder:
    for name in ("one", "two"):
        (folder / name).write_text("new")
"""


def test_a_folder_is_replaced_in_one_step(tmp_path: Path) -> None:
    """Killed before any of its operations, the old folder or the new one is there: never none, never a mixture."""
    for number in range(1, 100):
        path = tmp_path / str(number) / "folder"
        path.mkdir(parents=True)
        for name in ("one", "two"):
            (path / name).write_text("old")
        command = [sys.executable, "-S", "-c", KILLED, str(path), str(number)]
        code = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False
        ).returncode
        texts = {file.read_text() for file in path.iterdir()}
        assert texts in ({"old"}, {"new"}), number
        if code == 0:
            assert texts == {"new"}
            assert [left.name for left in path.parent.iterdir()] == ["folder"]
            return
    pytest.fail("the writer never came to its end")


# --- a server that does not start -------------------------------------------------------------------------------------


def test_a_taken_port_is_named(copied: Home, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = tmp_path / "config.toml"
        config.write_text(PORTS.replace("grpc_port = 0", f"grpc_port = {port}"))
        refused = omnifeed(copied.root, "serve", "--config", config)
    assert refused.code == 75
    problem, action = refused.sentences()
    assert problem == f"Port {port} of 127.0.0.1 is taken."
    assert action == "Stop who listens there, or choose another port in [serving]."


def test_a_missing_triton_is_named(copied: Home, config_file: Path, tmp_path: Path) -> None:
    refused = omnifeed(copied.root, "serve", "--config", config_file, **{TRITON_ENV: str(tmp_path / "nowhere")})
    assert refused.code == 75
    problem, action = refused.sentences()
    assert problem == f"There is no Triton environment in {tmp_path / 'nowhere'}."
    assert "make setup" in action


def test_a_triton_that_ends_at_once_shows_its_last_words(copied: Home, config_file: Path, tmp_path: Path) -> None:
    bundled = tmp_path / "triton" / "lib" / "python3.11" / "site-packages" / "pytriton" / "tritonserver"
    for folder in ("bin", "backends/python", "python_backend_stubs/3.11"):
        (bundled / folder).mkdir(parents=True)
    (bundled / "python_backend_stubs/3.11/triton_python_backend_stub").touch()
    server = bundled / "bin" / "tritonserver"
    server.write_text("#!/bin/sh\necho error: this processor is not supported\nexit 1\n")
    server.chmod(0o755)
    before = state(copied)
    refused = omnifeed(copied.root, "serve", "--config", config_file, **{TRITON_ENV: str(tmp_path / "triton")})
    assert refused.code == 75
    assert refused.err.startswith("Error: Triton ended while it started.")
    assert "this processor is not supported" in refused.err
    assert refused.err.splitlines()[-1].strip() == "Mend it and start again."
    assert state(copied) == before


# --- a log that nobody may believe ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "reason"), [(1.0, "not one user of it is in the log"), (0.26, "p = ")], ids=["an arm is missing", "60/40"]
)
def test_the_promotion_pipeline_believes_no_lopsided_log(lost: float, reason: str, tmp_path: Path) -> None:
    """A gain of two thirds in orders, in a log that lost exposures of the challenger's users."""
    home, config = Home(tmp_path / "home"), tmp_path / "config.toml"
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, START)
    config.write_text(
        f"[experiment]\ndays = {CONFIG.experiment.days}\nguardrails = ['hides_per_user']\nguardrail_margins = [0.25]\n"
    )
    test = deploy(home, "0", "1", Config.load(config), START)
    users = iter(range(10**9))
    dropped: dict[str, bool] = {}

    def keep(user: str, arm: str) -> bool:
        if arm == "challenger" and user not in dropped:
            dropped[user] = next(users) % 100 < 100 * lost
        return not dropped.get(user, False)

    logs = traffic(test, users=1500, challenger=lambda outcome, _: 1.7 if outcome == "order" else 1.0, keep=keep)
    logs.write(home.experiments / test.name)
    told = omnifeed(home.root, "promote", "--config", config, "--now", str(HORIZON), "--json")
    assert told.code == 0, told.err
    decision = json.loads(told.out[told.out.index("{\n") :])
    assert decision["verdict"] == "INVALID"
    assert reason in decision["paragraph"]
    assert [entry.kind for entry in Ledger(home).entries()] == ["BOOTSTRAP", "DEPLOY", "DECISION"]
    assert Ledger(home).champion() == "0"
    assert not (home.experiments / "current.json").exists()
