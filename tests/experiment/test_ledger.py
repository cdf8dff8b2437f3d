"""The ledger: chained, torn-safe, and a champion that only one of two promotions can move."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnifeed.errors import ConflictError, InputError, IntegrityError, OmnifeedError
from omnifeed.experiment.ledger import Ledger
from omnifeed.home import Home

DAY = 86_400_000_000


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def promoted(home: Home, *releases: str) -> Ledger:
    ledger = Ledger(home)
    ledger.append("BOOTSTRAP", {"release": releases[0]}, now=DAY)
    for day, (champion, release) in enumerate(itertools.pairwise(releases), start=2):
        ledger.append("PROMOTE", {"release": release}, now=day * DAY, expected_champion=champion)
    return ledger


def test_a_new_home_has_no_champion_and_a_valid_empty_ledger(home: Home) -> None:
    assert Ledger(home).champion() is None
    assert Ledger(home).entries() == ()
    assert Ledger(home).verify() == 0


def test_the_champion_is_where_the_last_move_put_it_and_decisions_do_not_move_it(home: Home) -> None:
    ledger = promoted(home, "0", "1")
    ledger.append("DEPLOY", {"release": "2"}, now=3 * DAY)
    entry = ledger.append("DECISION", {"verdict": "HOLD"}, now=4 * DAY)
    assert (ledger.champion(), entry.champion, entry.sequence) == ("1", "1", 3)
    assert [each.kind for each in ledger.entries()] == ["BOOTSTRAP", "PROMOTE", "DEPLOY", "DECISION"]
    assert [each.previous for each in ledger.entries()[1:]] == [each.digest for each in ledger.entries()[:-1]]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_read_is_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[dict[str, object]]
) -> None:
    ledger = Ledger(Home(tmp_path_factory.mktemp("home")))
    appended = [ledger.append("DECISION", body, now=number) for number, body in enumerate(bodies)]
    assert ledger.entries() == tuple(appended)
    assert [entry.body for entry in appended] == bodies
    assert ledger.verify() == len(bodies)


def test_a_kill_in_the_middle_of_a_write_costs_only_the_torn_line(home: Home) -> None:
    ledger = promoted(home, "0", "1")
    whole = ledger.path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in (1, len(last) // 2, len(last) - 1):  # the newline is what makes a line count
        ledger.path.write_bytes(whole[: len(whole) - len(last) + cut])
        assert ledger.champion() == "0"
        assert ledger.verify() == 1
        ledger.append("PROMOTE", {"release": "1"}, now=2 * DAY, expected_champion="0")
        assert ledger.path.read_bytes() == whole


@pytest.mark.parametrize("line", [1, 2, 3])
def test_an_edited_line_is_named(home: Home, line: int) -> None:
    ledger = promoted(home, "0", "1", "2")
    lines = ledger.path.read_text().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(f'"release":"{line - 1}"', '"release":"9"')
    ledger.path.write_text("".join(lines))
    for read in (ledger.verify, ledger.champion, lambda: ledger.append("DECISION", {}, now=9 * DAY)):
        with pytest.raises(IntegrityError, match=f"line {line}:"):
            read()


def test_an_edit_with_a_new_digest_breaks_the_link_of_the_next_line(home: Home, tmp_path: Path) -> None:
    ledger = promoted(home, "0", "1", "2")
    forged = promoted(Home(tmp_path / "forge"), "0", "8")  # a line 2 that is valid in itself
    lines = ledger.path.read_text().splitlines(keepends=True)
    lines[1] = forged.path.read_text().splitlines(keepends=True)[1]
    ledger.path.write_text("".join(lines))
    with pytest.raises(IntegrityError, match="line 3:"):
        ledger.verify()


def test_a_deleted_and_a_garbled_line_are_named(home: Home) -> None:
    ledger = promoted(home, "0", "1", "2")
    lines = ledger.path.read_text().splitlines(keepends=True)
    ledger.path.write_text(lines[0] + lines[2])
    with pytest.raises(IntegrityError, match="line 2:"):
        ledger.verify()
    ledger.path.write_text(lines[0] + "not json\n" + lines[2])
    with pytest.raises(IntegrityError, match="line 2:"):
        ledger.verify()


def test_a_promotion_that_was_decided_against_another_champion_is_refused(home: Home) -> None:
    ledger = promoted(home, "0", "1")
    with pytest.raises(ConflictError, match="champion is release 1, not 0"):
        ledger.append("PROMOTE", {"release": "2"}, now=3 * DAY, expected_champion="0")
    with pytest.raises(ConflictError):
        ledger.append("BOOTSTRAP", {"release": "0"}, now=3 * DAY)
    with pytest.raises(InputError, match="names no release"):
        ledger.append("PROMOTE", {}, now=3 * DAY, expected_champion="1")
    assert ledger.verify() == 2


def _promote(root: Path, release: str, barrier: Barrier, answers: multiprocessing.Queue[str]) -> None:
    ledger = Ledger(Home(root))
    barrier.wait()
    try:
        ledger.append("PROMOTE", {"release": release}, now=2 * DAY, expected_champion="0")
        answers.put(f"won {release}")
    except ConflictError:
        answers.put("conflict")


def test_of_promotions_at_the_same_time_exactly_one_wins(home: Home) -> None:
    promoted(home, "0")
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    writers = [context.Process(target=_promote, args=(home.root, str(n), barrier, answers)) for n in range(1, 5)]
    for writer in writers:
        writer.start()
    got = sorted(answers.get(timeout=60) for _ in writers)
    for writer in writers:
        writer.join()
    assert got[:3] == ["conflict"] * 3
    assert got[3] == f"won {Ledger(home).champion()}"
    assert Ledger(home).verify() == 2


def test_the_same_entry_once(home: Home) -> None:
    ledger = promoted(home, "0")
    first = ledger.append("PROMOTE", {"release": "1"}, now=2 * DAY, expected_champion="0", once="decision-1")
    again = ledger.append("PROMOTE", {"release": "1"}, now=3 * DAY, expected_champion="0", once="decision-1")
    assert again == first
    assert ledger.verify() == 2


def test_rollback_goes_back_one_promotion_at_a_time(home: Home) -> None:
    ledger = promoted(home, "0", "1", "2")
    assert ledger.rollback(now=9 * DAY, reason="complaints").body == {
        "release": "1",
        "from": "2",
        "reason": "complaints",
    }
    assert ledger.champion() == "1"
    assert ledger.rollback(now=9 * DAY).champion == "0"  # not forth to 2 again
    with pytest.raises(InputError, match="no earlier champion"):
        ledger.rollback(now=9 * DAY)
    assert ledger.rollback(now=9 * DAY, to="2").champion == "2"  # a rollback can be taken back by name
    assert ledger.rollback(now=9 * DAY).champion == "0"


@pytest.mark.parametrize(("to", "why"), [("7", "never was a champion"), ("1", "is the champion already")])
def test_rollback_to_a_release_that_makes_no_sense_is_refused(home: Home, to: str, why: str) -> None:
    ledger = promoted(home, "0", "1")
    with pytest.raises(InputError, match=why):
        ledger.rollback(now=9 * DAY, to=to)
    assert ledger.verify() == 2


def test_a_full_disk_leaves_the_ledger_as_it_was(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = promoted(home, "0")
    before = ledger.path.read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:10]))
    with pytest.raises(OmnifeedError, match="could not be written"):
        ledger.append("PROMOTE", {"release": "1"}, now=2 * DAY, expected_champion="0")
    monkeypatch.undo()
    assert ledger.path.read_bytes() == before
    assert ledger.append("PROMOTE", {"release": "1"}, now=2 * DAY, expected_champion="0").champion == "1"


def test_the_ledger_needs_the_standard_library_alone() -> None:
    code = (
        "import sys, omnifeed.experiment.ledger, omnifeed.experiment.assignment;"
        "heavy = {'numpy', 'pyarrow', 'polars', 'tea_tasting', 'scipy'} & set(sys.modules);"
        "import json; print(json.dumps(sorted(heavy)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
