"""What a process appends is in its file when `append` returns, and nothing that hangs is waited for twice."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from omnifeed.home import Home
from omnifeed.serving.recommend import sink as module
from omnifeed.serving.recommend.sink import WAIT_S, Sink

STARTED = 17


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "experiments" / "trial" / "exposures"


def lines(file: Path) -> list[int]:
    return [json.loads(line)["n"] for line in file.read_text().splitlines()]


def test_lines_are_in_the_file_when_append_returns(tmp_path: Path, folder: Path) -> None:
    sink = Sink(Home(tmp_path), "exposures", STARTED)
    for n in range(20):
        assert sink.append("trial", [{"n": 2 * n}, {"n": 2 * n + 1}])
        assert lines(folder / f"{STARTED}-{os.getpid()}.jsonl") == list(range(2 * n + 2))
    sink.close()


def test_while_a_write_hangs_nobody_waits_and_afterwards_it_goes_on(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    pipe = folder / f"{STARTED}-{os.getpid()}.jsonl"
    os.mkfifo(pipe)
    sink = Sink(Home(tmp_path), "exposures", STARTED)
    start = time.monotonic()
    assert not sink.append("trial", [{"n": 0}])
    assert time.monotonic() - start == pytest.approx(WAIT_S, abs=0.04)
    start = time.monotonic()
    assert not any(sink.append("trial", [{"n": 1}]) for _ in range(100))
    assert time.monotonic() - start < WAIT_S
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    end = time.monotonic() + 5
    while not sink.append("trial", [{"n": 2}]):
        assert time.monotonic() < end
    sink.close()
    read = [json.loads(line)["n"] for line in os.read(reader, 1 << 16).splitlines()]
    os.close(reader)
    assert read == [0, 2]  # what was given up arrived late; what was refused never


def test_a_sink_that_hangs_can_be_closed(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    os.mkfifo(folder / f"{STARTED}-{os.getpid()}.jsonl")
    sink = Sink(Home(tmp_path), "exposures", STARTED)
    assert not sink.append("trial", [{"n": 0}])
    start = time.monotonic()
    sink.close()
    assert time.monotonic() - start < 2


def test_a_file_is_locked_while_it_grows_and_a_full_one_is_followed_by_another(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 20)
    sink = Sink(Home(tmp_path), "exposures", STARTED)

    def free() -> list[str]:
        found = []
        for file in sorted(folder.iterdir()):
            with file.open() as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    found.append(file.name)
                except BlockingIOError:
                    pass
        return found

    name = f"{STARTED}-{os.getpid()}"
    assert sink.append("trial", [{"n": 0}])
    assert free() == []
    for n in range(1, 7):
        assert sink.append("trial", [{"n": n}])
    assert free() == [f"{name}-1.jsonl", f"{name}.jsonl"]
    sink.close()
    files = [folder / f"{name}{tail}.jsonl" for tail in ("", "-1", "-2")]
    assert [n for file in files if file.exists() for n in lines(file)] == list(range(7))
