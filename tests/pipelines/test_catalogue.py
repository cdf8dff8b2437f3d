"""`omnifeed catalogue` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnifeed.export.catalogue import write_snapshot
from omnifeed.home import Home
from omnifeed.pipelines.cli import main

NOW = 1_772_409_600_000_000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("OMNIFEED_HOME", str(tmp_path / "home"))
    one = Home(tmp_path / "home")
    columns = {"kind": "product", "created_ts": NOW - 1, "policy": "ALLOW", "author_id": "a"}
    write_snapshot(one, {"item_id": ["i0", "i1"], **{name: [value] * 2 for name, value in columns.items()}}, {}, NOW)
    return one


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["catalogue", *(str(argument) for argument in arguments)])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_apply_block_status_and_compact(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "changes.jsonl"
    path.write_text('{"item_id": "i0", "stock": 0}\n{"item_id": "i1", "stock": -4}\n')
    code, out, _ = call(capsys, "apply", path, "--now", NOW)
    assert code == 0
    assert out.startswith("Delta 1: 1 changes applied.\n1 rows set aside in ")
    assert "row 2: stock is -4." in out
    assert json.loads(call(capsys, "status", "--now", NOW, "--json")[1])["shown"] == 1
    assert call(capsys, "block", "a", "--now", NOW)[1] == "Delta 2: a blocked.\n"
    found = json.loads(call(capsys, "status", "--now", NOW, "--json")[1])
    assert (found["shown"], found["sequence"], found["blocked_authors"]) == (0, 2, ["a"])
    assert call(capsys, "block", "a", "--lift", "--now", NOW)[0] == 0
    assert call(capsys, "compact")[0] == 0
    assert "1 of 2 items may be shown; 0 authors blocked" in call(capsys, "status", "--now", NOW)[1]


@pytest.mark.parametrize(
    ("arguments", "problem"), [(("apply", "nowhere.jsonl"), "does not exist"), (("block",), "No author_id")]
)
def test_bad_input_ends_with_two_sentences_and_code_2(
    home: Home, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert problem in err
    assert len(err.splitlines()) == 2
