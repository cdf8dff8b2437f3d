"""The benchmark's command on a small file: what it writes, where it goes on, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SMALL = ["--set", "width=8", "--set", "epochs=1", "--seeds", "1", "--jobs", "1"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with results and state under the test's folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import record
    import sequential

    monkeypatch.setenv("OMNIFEED_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(sequential, "TRIED", tmp_path / "results" / "sequential_tried.jsonl")
    (tmp_path / "results").mkdir()
    return sequential


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "Shop.txt"
    path.write_text(
        "\n".join(f"{user} " + " ".join(map(str, 1 + rng.integers(30, size=6))) for user in range(1, 60)) + "\n60 4\n"
    )
    (tmp_path / "Shop_item2attributes.json").write_text(json.dumps({str(item): [item % 3] for item in range(1, 31)}))
    return path


def run(command: ModuleType, monkeypatch: pytest.MonkeyPatch, *given: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/sequential.py", *map(str, given)])
    command.main()


def test_one_setting_is_tried_without_the_test_and_then_the_whole_table_is_written(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(command, monkeypatch, log, "--try", "--set", "width=8", "--set", "epochs=1")
    run(command, monkeypatch, log, "--attributes", *SMALL, "--minutes", "0")
    assert "5 of 5 runs are left" in capsys.readouterr().out
    assert not list((tmp_path / "results").glob("*.json"))
    run(command, monkeypatch, log, "--attributes", *SMALL)
    result = json.loads((tmp_path / "results" / "sequential_shop.json").read_text())
    found = {(row["model"], row["protocol"]) for row in result["rows"]}
    assert {("trunk, ids", "strict"), ("trunk, attributes", "strict"), ("SASRec, softmax", "strict")} <= found
    assert {("trunk, attributes", "refitted"), ("trunk, attributes", "swapped"), ("popularity", "strict")} <= found
    assert any(model.startswith("earlier, width 8") for model, protocol in found if protocol == "tried")
    assert any("60 sequences, 30 items" in note for note in result["notes"])
    capsys.readouterr()
    run(command, monkeypatch, log, "--attributes", *SMALL, "--minutes", "0")  # all runs are kept: none starts
    assert "left" not in capsys.readouterr().out

    options = command.arguments()
    for job in command.jobs_of(log, options, command.configured(command.TRUNK, options.set)):
        if job.protocol == "swapped":
            (tmp_path / "home" / "sequential" / f"{job.key()}.npz").unlink()
    run(command, monkeypatch, log, "--attributes", *SMALL, "--minutes", "0")
    assert "1 of 5 runs are left" in capsys.readouterr().out
    result = json.loads((tmp_path / "results" / "sequential_shop.json").read_text())
    assert "swapped" not in {row["protocol"] for row in result["rows"]}
    assert "Not run yet: swapped." in result["notes"]


@pytest.mark.parametrize(
    ("line", "given", "said"),
    [
        ("7 x", [], "line 61 is not a user and its items"),
        ("", ["--set", "depth=2"], "--set depth=2 names no setting"),
        ("", ["--set", "width=wide"], "--set width=wide is no int"),
    ],
)
def test_bad_input_ends_with_code_2_and_says_what_is_wrong(
    command: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    log: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    given: list[str],
    said: str,
) -> None:
    with log.open("a") as file:
        file.write(line)
    with pytest.raises(SystemExit) as ended:
        run(command, monkeypatch, log, *given)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_sessions_go_through_the_same_command(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "clicks.txt"
    path.write_text(
        "\n".join(" ".join(str((start + step) % 9) for step in range(2 + start % 4)) for start in range(80))
    )
    run(command, monkeypatch, path, "--sessions", *SMALL)
    rows = json.loads((tmp_path / "results" / "sequential_clicks.json").read_text())["rows"]
    assert {"HR@20", "MRR@20"} <= {row["metric"] for row in rows}
    assert not [row for row in rows if row["protocol"] in ("refitted", "swapped")]
