"""Logs arrive at the other end byte for byte, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from omnifeed.errors import InputError, IntegrityError, UnavailableError
from omnifeed.experiment import shipping
from omnifeed.experiment.shipping import Shipper, fetch
from omnifeed.home import Home
from omnifeed.pipelines.cli import cli
from omnifeed.serving.recommend.sink import Sink


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The experiments of the server's home, with two logs."""
    experiments = tmp_path / "server" / "experiments"
    for kind in ("exposures", "features"):
        (experiments / "trial" / kind).mkdir(parents=True)
        (experiments / "trial" / kind / "1-2.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(100)))
    return experiments


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jsonl"))}


def test_what_was_shipped_is_fetched_byte_for_byte_and_once(here: Path, store: str, tmp_path: Path) -> None:
    there = tmp_path / "gate" / "experiments"
    shipper = Shipper(here, store)
    size = sum(map(len, files(here).values()))
    assert (shipper.ship(), shipper.ship(), Shipper(here, store).ship()) == (size, 0, 0)
    assert (fetch(store, there), fetch(store, there)) == (size, 0)
    assert files(there) == files(here)


def test_only_whole_lines_travel(here: Path, store: str, tmp_path: Path) -> None:
    there, path = tmp_path / "gate", here / "trial" / "exposures" / "1-2.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 1')
    shipper = Shipper(here, store)
    shipper.ship()
    fetch(store, there)
    assert files(there)["trial/exposures/1-2.jsonl"] == whole
    with path.open("ab") as handle:
        handle.write(b"00}\n")
    shipper.ship()
    fetch(store, there)
    assert files(there) == files(here)


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_moment_nothing_is_lost_or_doubled(
    here: Path, store: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves a segment cut short in the store, or a line cut short in the fetched file."""
    monkeypatch.setattr(shipping, "SEGMENT", 64)
    rng, there = random.Random(seed), tmp_path / "gate"
    path = here / "trial" / "exposures" / "1-2.jsonl"
    put = Shipper._put

    def dies(self: Shipper, folder: str, start: int, lines: bytes) -> None:
        if rng.random() < 0.3:
            name = Path(folder) / f"{start:015d}-{start + len(lines):015d}.jsonl"
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_bytes(lines[: rng.randrange(len(lines))])
            raise KeyboardInterrupt
        put(self, folder, start, lines)

    monkeypatch.setattr(Shipper, "_put", dies)
    for n in range(30):
        with path.open("a") as handle:
            handle.write(json.dumps({"n": 100 + n}) + "\n")
        with contextlib.suppress(KeyboardInterrupt):
            Shipper(here, store).ship()
        fetch(store, there)
        for fetched in there.rglob("*.jsonl"):
            if rng.random() < 0.3:
                fetched.write_bytes(fetched.read_bytes()[: -rng.randrange(1, 30)])
    monkeypatch.setattr(Shipper, "_put", put)
    Shipper(here, store).ship()
    fetch(store, there)
    assert files(there) == files(here)


def test_two_that_shipped_the_same_file_do_no_harm(here: Path, store: str, tmp_path: Path) -> None:
    first, second = Shipper(here, store), Shipper(here, store)
    first.ship()
    with (here / "trial" / "exposures" / "1-2.jsonl").open("a") as handle:
        handle.write('{"n": 100}\n')
    second.ship()
    fetch(store, tmp_path / "gate")
    assert files(tmp_path / "gate") == files(here)


def test_a_file_that_a_server_holds_is_never_removed(store: str, tmp_path: Path) -> None:
    home = Home(tmp_path / "server")
    sink = Sink(home, "exposures", 1)
    shipper = Shipper(home.experiments, store)
    for n in range(3):
        assert sink.append("trial", [{"n": n}])
        shipper.ship(remove=True)
    (path,) = home.experiments.glob("*/*/*.jsonl")
    everything = path.read_bytes()
    sink.close()
    shipper.ship(remove=True)
    assert not path.exists()
    fetch(store, tmp_path / "gate")
    assert list(files(tmp_path / "gate").values()) == [everything]


def test_what_is_wrong_is_said(here: Path, store: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no store"):
        Shipper(here, "no-such-scheme://x")
    Shipper(here, store).ship()
    path = here / "trial" / "exposures" / "1-2.jsonl"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(IntegrityError, match="fewer bytes than were sent"):
        Shipper(here, store).ship()
    (segment,) = Path(store).glob("trial/exposures/*/*.jsonl")
    segment.rename(segment.with_name(f"{10:015d}-{10 + segment.stat().st_size:015d}.jsonl"))
    with pytest.raises(IntegrityError, match="no segment of trial/exposures/1-2 from byte 0"):
        fetch(store, tmp_path / "gate")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(UnavailableError, match="did not answer"):
        Shipper(here, str(blocked / "logs")).ship()


def test_the_command_goes_on_until_it_is_told_to_stop_and_then_sends_the_rest(here: Path, store: str) -> None:
    path = here / "trial" / "exposures" / "1-2.jsonl"
    command = [str(Path(sys.executable).parent / "omnifeed"), "logs", "ship", "--to", store, "--every", "60"]
    environment = {"OMNIFEED_HOME": str(here.parent), "PATH": ""}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == f"{2 * path.stat().st_size:,} bytes sent.\n"
        with path.open("a") as handle:
            handle.write('{"n": 100}\n')
        begun = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        assert time.monotonic() - begun < 20
    gate = here.parent.parent / "gate"
    result = CliRunner().invoke(cli, ["logs", "fetch", "--from", store], env={"OMNIFEED_HOME": str(gate)})
    assert result.output.endswith("bytes fetched.\n"), result.output
    assert files(gate / "experiments") == files(here)
