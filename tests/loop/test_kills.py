"""SIGKILL in the middle of every step, and the step once more: what is there then is what an undisturbed run left.

A step is killed just before a chosen change of the disk, so the moments are the same on every machine. Between the
kill and the repetition nothing that was accepted before may be missing or half-written: every file is either as it was
or as the undisturbed run made it.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from omnifeed.config import Config
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.ledger import Ledger
from omnifeed.home import Home
from omnifeed.tables import Tables, read_tables, write_tables

from .conftest import Loop, omnifeed, started, wait_until
from .state import assert_sound, state, under
from .steps import Artifacts, Moment, Steps, ended

RUN = "0001"


@dataclass(frozen=True, slots=True)
class Scene:
    """A step about to run: the home before it, what it makes there in an undisturbed run, and its arguments."""

    step: str
    home: Home
    makes: dict[str, str]
    arguments: dict[str, Any]
    outputs: dict[str, Path]  # artifacts of the undisturbed run, by name


Build = Callable[..., Scene]


@pytest.fixture
def scene(loop: Loop, config: Config, tmp_path: Path) -> Build:
    """Build the scene of a step from the homes of the loop that ran undisturbed."""
    training = Artifacts.of(loop.home.root, RUN, "training")

    def build(
        step: str,
        start: Home | None,
        without: tuple[str, ...],
        makes: tuple[str, ...],
        outputs: tuple[str, ...] = (),
        **more: Any,
    ) -> Scene:
        home = Home(tmp_path / "home")
        if start is None:
            home.root.mkdir()
        else:
            shutil.copytree(start.root, home.root)
        for name in without:
            path = home.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        done = loop.home if step in ("act", "collect") else loop.deployed
        made = under(state(done), makes)
        assert made or not makes
        return Scene(
            step,
            home,
            made,
            {"home": str(home.root), "run_id": RUN, **more},
            {name: training.path(step, name) for name in outputs},
        )

    return build


@pytest.fixture
def inputs(loop: Loop, config: Config) -> dict[str, Any]:
    """Arguments that steps share: the settings, the run's time, and artifacts of the undisturbed run by name."""
    folder = Artifacts.of(loop.home.root, RUN, "training")
    ingest = json.loads((loop.home.runs / RUN / "steps" / "ingest.json").read_text())
    return {
        "config": config.to_json(),
        "now": ingest["info"]["now"],
        "tables": folder.path("ingest", "tables"),
        "source": folder.path("ingest", "source"),
        "accepted": folder.path("validate", "accepted"),
        "training_set": folder.path("materialize", "training_set"),
        "model": folder.path("train", "model"),
    }


def pick(inputs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: inputs[name] for name in names}


def bytes_of(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def killed_and_repeated(steps: Steps, scene: Scene, tmp_path: Path, moments: list[Moment]) -> None:
    """Each moment on a fresh copy of the scene's home."""
    before = state(scene.home)
    expected = before | scene.makes
    pristine = tmp_path / "pristine"
    scene.home.root.rename(pristine)
    for number, moment in enumerate(moments):
        shutil.rmtree(scene.home.root, ignore_errors=True)
        shutil.copytree(pristine, scene.home.root)
        killed = steps.run(scene.step, tmp_path / f"killed-{number}", scene.arguments, moment)
        assert killed.code == -signal.SIGKILL, (moment, killed)
        left = state(scene.home)
        for name, digest in left.items():
            if name in before or name in scene.makes:
                assert digest in (before.get(name), scene.makes.get(name)), (moment, name)
        assert before.keys() <= left.keys() | (before.keys() - expected.keys()), moment
        assert_sound(scene.home)
        again = steps.run(scene.step, tmp_path / f"again-{number}", scene.arguments)
        assert (again.code, again.error) == (0, None), moment
        assert state(scene.home) == expected, moment
        assert_sound(scene.home)
        for name, path in scene.outputs.items():
            assert bytes_of(again.folder / name) == bytes_of(path), (moment, name)


def every_change(steps: Steps, scene: Scene, tmp_path: Path) -> list[Moment]:
    """A moment before each change that the undisturbed step makes."""
    copy = tmp_path / "rehearsal"
    shutil.copytree(scene.home.root, copy)
    rehearsed = steps.run(scene.step, tmp_path / "rehearsed", {**scene.arguments, "home": str(copy)})
    assert (rehearsed.code, rehearsed.error) == (0, None)
    shutil.rmtree(copy)
    assert rehearsed.changes
    return [Moment(nth=number + 1) for number in range(len(rehearsed.changes))]


def test_ingest(steps: Steps, scene: Build, inputs: dict[str, Any], tmp_path: Path) -> None:
    one = scene("ingest", None, (), (), ("tables", "source"), **pick(inputs, "config"))
    killed_and_repeated(steps, one, tmp_path, [Moment("tables", "os.rename"), Moment("source", "os.rename")])


def test_validate_replaces_the_lake_whole_or_not_at_all(
    steps: Steps, scene: Build, loop: Loop, inputs: dict[str, Any], tmp_path: Path
) -> None:
    one = scene(
        "validate",
        loop.deployed,
        ("lake/profiles",),
        ("lake/",),
        ("accepted",),
        **pick(inputs, "config", "now", "tables"),
    )
    former = read_tables(one.home.lake / "accepted")
    write_tables(Tables(former.events, former.items.slice(1), former.users), one.home.lake / "accepted")
    moments = [
        Moment("accepted", "os.rename"),
        Moment("lake/profiles/world.json", "os.rename"),
        Moment("lake/.accepted.*/items.parquet"),
    ]
    killed_and_repeated(steps, one, tmp_path, moments)


def test_materialize(steps: Steps, scene: Build, loop: Loop, inputs: dict[str, Any], tmp_path: Path) -> None:
    one = scene(
        "materialize",
        loop.deployed,
        ("features", "catalogue"),
        ("features/", "online/", "catalogue/"),
        ("training_set",),
        **pick(inputs, "config", "now", "accepted", "source"),
    )
    moments = [Moment("features/online.db", "sqlite3.connect", 3), Moment("catalogue/current", "os.rename")]
    killed_and_repeated(steps, one, tmp_path, moments)


def test_champion(steps: Steps, scene: Build, inputs: dict[str, Any], tmp_path: Path) -> None:
    one = scene("champion", None, (), ("releases/0/",), **pick(inputs, "config", "now"))
    rehearsal = steps.run("champion", tmp_path / "first", one.arguments)
    makes = state(one.home)
    assert rehearsal.output == "0"
    assert under(makes, ("releases/",)) == one.makes
    shutil.rmtree(one.home.root)
    one.home.root.mkdir()
    moments = every_change(steps, one, tmp_path)
    killed_and_repeated(steps, Scene(one.step, one.home, makes, one.arguments, {}), tmp_path, moments)


def test_train_goes_on_from_its_checkpoint(
    steps: Steps, scene: Build, loop: Loop, inputs: dict[str, Any], tmp_path: Path
) -> None:
    one = scene(
        "train", loop.deployed, ("training",), ("training/",), ("model",), **pick(inputs, "config", "training_set")
    )
    moments = [
        Moment("training/*/checkpoint/current", "os.rename", 3),
        Moment("training/*/model.json", "os.rename"),
    ]
    killed_and_repeated(steps, one, tmp_path, moments)


def test_evaluate(steps: Steps, scene: Build, loop: Loop, inputs: dict[str, Any], tmp_path: Path) -> None:
    one = scene(
        "evaluate", loop.deployed, (), (), ("page",), champion="0", **pick(inputs, "config", "training_set", "model")
    )
    killed_and_repeated(steps, one, tmp_path, [Moment("page", "open")])


def test_export_leaves_no_half_release(
    steps: Steps, scene: Build, loop: Loop, inputs: dict[str, Any], tmp_path: Path
) -> None:
    one = scene(
        "export",
        loop.deployed,
        ("releases/1",),
        ("releases/1/",),
        **pick(inputs, "config", "now", "training_set", "model"),
    )
    killed_and_repeated(steps, one, tmp_path, [Moment("releases/.1.*/models/user_encoder_1/1/model.onnx", "open")])


def test_infra_validate_leaves_no_server(
    steps: Steps, scene: Build, loop: Loop, inputs: dict[str, Any], tmp_path: Path
) -> None:
    one = scene("infra_validate", loop.deployed, (), (), release="1", **pick(inputs, "config"))
    before = state(one.home)
    process = steps.start(one.step, tmp_path / "killed", one.arguments)
    while not (servers := servers_of(one.home)):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert ended(process, tmp_path / "killed").code == -signal.SIGKILL
    _, alive = psutil.wait_procs(servers, timeout=60)
    assert not alive
    again = steps.run(one.step, tmp_path / "again", one.arguments)
    assert (again.code, again.error) == (0, None)
    assert state(one.home) == before


def servers_of(home: Home) -> list[psutil.Process]:
    """Processes whose command line names a folder of this home."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words and "tritonserver" in words[0] and any(str(home.root) in word for word in words):
            found.append(process)
    return found


def test_deploy_opens_one_experiment(
    steps: Steps, scene: Build, loop: Loop, inputs: dict[str, Any], tmp_path: Path
) -> None:
    one = scene(
        "deploy",
        loop.deployed,
        ("experiments",),
        ("experiments/", "ledger/"),
        champion="0",
        release="1",
        **pick(inputs, "config", "now"),
    )
    forget_after(one.home, "BOOTSTRAP")
    killed_and_repeated(steps, one, tmp_path, every_change(steps, one, tmp_path))


def forget_after(home: Home, kind: str) -> None:
    """Cut the ledger off after its last entry of a kind."""
    lines = Ledger(home).path.read_text().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if f'"kind":"{kind}"' in line)
    Ledger(home).path.write_text("".join(lines[: last + 1]))
    Ledger(home).verify()


@pytest.fixture
def experiment(loop: Loop) -> Experiment:
    return Experiment.load(loop.deployed.experiments / "current.json")


def test_gate_decides_the_same_again(
    steps: Steps,
    loop: Loop,
    undecided: Home,
    experiment: Experiment,
    inputs: dict[str, Any],
    config: Config,
    tmp_path: Path,
) -> None:
    horizon = experiment.end_ts + config.experiment.attribution_hours * 3_600_000_000
    arguments = {"home": str(undecided.root), "run_id": RUN, "config": inputs["config"], "now": horizon}
    before = state(undecided)
    killed = steps.run("gate", tmp_path / "killed", arguments, Moment("runs/*/decision.json", "os.rename"))
    assert killed.code == -signal.SIGKILL
    assert not (undecided.runs / RUN / "decision.json").exists()
    again = steps.run("gate", tmp_path / "again", arguments)
    assert (again.code, again.error) == (0, None)
    decision = Path("runs") / RUN / "decision.json"
    assert (undecided.root / decision).read_bytes() == (loop.home.root / decision).read_bytes()
    assert state(undecided) == before


def test_act_decides_once(
    steps: Steps, loop: Loop, undecided: Home, experiment: Experiment, inputs: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copy(loop.home.runs / RUN / "decision.json", undecided.runs / RUN / "decision.json")
    decided = json.loads((undecided.runs / RUN / "decision.json").read_text())
    arguments = {"home": str(undecided.root), "run_id": RUN, "now": decided["now"], "verdict": decided["verdict"]}
    made = under(state(loop.home), ("ledger/",))
    one = Scene("act", undecided, made, arguments, {})
    moments = every_change(steps, one, tmp_path)
    pristine = tmp_path / "pristine"
    undecided.root.rename(pristine)
    for number, moment in enumerate(moments):
        shutil.rmtree(undecided.root, ignore_errors=True)
        shutil.copytree(pristine, undecided.root)
        assert steps.run("act", tmp_path / f"killed-{number}", arguments, moment).code == -signal.SIGKILL
        assert_sound(undecided)
        again = steps.run("act", tmp_path / f"again-{number}", arguments)
        assert (again.code, again.output) == (0, loop.outcome["champion"])
        assert under(state(undecided), ("ledger/",)) == made
        assert not (undecided.experiments / "current.json").exists()


def test_collect(steps: Steps, loop: Loop, undecided: Home, experiment: Experiment, tmp_path: Path) -> None:
    arguments = {"home": str(undecided.root), "run_id": RUN, "experiment": experiment.name}
    one = Scene("collect", undecided, under(state(loop.home), ("lake/served/",)), arguments, {})
    assert one.makes
    killed_and_repeated(steps, one, tmp_path, [Moment(f"lake/served/{experiment.name}", "os.rename")])


def test_what_a_killed_collect_left_out_the_next_run_reads(
    steps: Steps, loop: Loop, undecided: Home, experiment: Experiment, inputs: dict[str, Any], tmp_path: Path
) -> None:
    """Killed after `act` has closed the experiment, no later promotion would come back to it."""
    shutil.copytree(undecided.root, tmp_path / "other")
    arguments = {"home": str(undecided.root), "run_id": RUN, "experiment": experiment.name}
    killed = steps.run("collect", tmp_path / "killed", arguments, Moment("lake/served/*", "os.rename"))
    assert killed.code == -signal.SIGKILL
    (undecided.experiments / "current.json").unlink()
    read = steps.run(
        "ingest", tmp_path / "ingested", {"home": str(undecided.root), "run_id": "0002", **pick(inputs, "config")}
    )
    assert (read.code, read.error) == (0, None)
    events = read_tables(read.folder / "tables").events
    served = sum(
        len(file.read_text().splitlines()) for file in (undecided.experiments / experiment.name / "exposures").iterdir()
    )
    assert sum(arm in ("champion", "challenger") for arm in events["arm"].to_pylist()) == served


def test_the_whole_command_killed_in_the_traffic_goes_on_with_the_experiment(
    loop: Loop, open_experiment: Home, experiment: Experiment, config_file: Path
) -> None:
    home, folder = open_experiment, open_experiment.experiments / experiment.name
    forget_after(home, "BOOTSTRAP")  # killed in `deploy` too, after routing and before recording
    outcomes = folder / "outcomes" / "market.jsonl"
    with started(home.root, "run", "--config", config_file) as process:
        wait_until(lambda: outcomes.exists() and outcomes.stat().st_size, process, home.root)
    _, alive = psutil.wait_procs(servers_of(home), timeout=60)
    assert not alive
    answered = requests_of(folder)
    assert 0 < len(answered) < loop_requests(loop)
    assert_sound(home)
    assert Experiment.load(home.experiments / "current.json") == experiment
    with outcomes.open("a") as handle:
        handle.write('{"request_id": "torn')
    resumed = omnifeed(home.root, "run", "--config", config_file, "--json")
    assert resumed.code == 0, resumed.err
    outcome = resumed.json()
    assert "went on with it" in outcome["summary"][0]
    assert [entry.kind for entry in Ledger(home).entries()] == [entry.kind for entry in Ledger(loop.home).entries()]
    undisturbed = requests_of(loop.home.experiments / experiment.name)
    assert set(requests_of(folder)) == set(undisturbed)
    assert {r: a for r, a in requests_of(folder).items() if r in answered} == answered  # asked once, as it was answered
    assert all(json.loads(line)["name"] for line in outcomes.read_text().splitlines())
    decision = json.loads((home.runs / outcome["run"] / "decision.json").read_text())
    assert decision["counts"]["exposures_repeated"] == 0
    assert decision["counts"]["torn"] == 0
    assert not (home.experiments / "current.json").exists()


def requests_of(folder: Path) -> dict[str, list[str]]:
    """The items of each request in the exposure logs, in order of position."""
    lines = [
        json.loads(line) for file in sorted((folder / "exposures").iterdir()) for line in file.read_text().splitlines()
    ]
    found: dict[str, list[str]] = {}
    for line in sorted(lines, key=lambda line: line["position"]):
        found.setdefault(line["request_id"], []).append(line["item_id"])
    return found


def loop_requests(loop: Loop) -> int:
    name = Ledger(loop.home).entries()[1].body["id"]
    return len(requests_of(loop.home.experiments / name))
