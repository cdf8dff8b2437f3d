"""Looking again at a log that grew: the same verdict as from a first reading, and only what is new is read."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import duckdb
import pytest
from experiment_logs import CONFIG, DAY, HORIZON, HOUR, START, Logs, experiment, outcome, traffic

from omnifeed.errors import OmnifeedError
from omnifeed.experiment import days, intake
from omnifeed.experiment.decision import Decision
from omnifeed.experiment.verdict import decide
from omnifeed.home import write_atomic

TEST = experiment()
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def logs() -> Logs:
    """A log with repeated, late, early and foreign lines, and with outcomes of no exposure."""
    made = traffic(TEST, users=400, seed=3)
    luck = random.Random(1)
    for line in luck.sample(made.exposures, 40):
        made.exposures.append({**line, "ts": line["ts"] + luck.choice([0, 9, 30 * HOUR])})
    for line in luck.sample(made.outcomes, 60):
        made.outcomes.append({**line, "observed_ts": line["observed_ts"] + luck.choice([0, 5, 60 * HOUR])})
    for line in luck.sample(made.outcomes, 20):
        line["request_id"] = "nobody's"
    for line in luck.sample(made.exposures, 5):
        line["ts"] = START - HOUR
    return made


def append(folder: Path, what: str, lines: Lines, name: str = "1") -> None:
    (folder / what).mkdir(parents=True, exist_ok=True)
    with (folder / what / f"{name}.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def alike(left: Decision, right: Decision) -> bool:
    return left.to_dict() == right.to_dict()


def fresh(logs: Logs, folder: Path, now: int = HORIZON) -> Decision:
    return decide(logs.write(folder), TEST, CONFIG, now)


def reduced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that are reduced from now on."""
    found: list[int] = []
    whole = days._reduce

    def noting(connection: Any, kept: Any, groups: Any, *rest: Any) -> None:
        found.extend(block for group in groups for block in group.blocks)
        whole(connection, kept, groups, *rest)

    monkeypatch.setattr(days, "_reduce", noting)
    return found


def test_a_log_read_as_it_grew_gives_what_it_gives_read_at_once(tmp_path: Path, logs: Logs) -> None:
    """Lines come in any order, in several files; some looks are earlier in time than the lines."""
    luck, folder = random.Random(0), tmp_path / "grown"
    came = [("exposures", line) for line in logs.exposures] + [("outcomes", line) for line in logs.outcomes]
    luck.shuffle(came)
    for number in range(4):
        part = came[len(came) * number // 4 : len(came) * (number + 1) // 4]
        for what in ("exposures", "outcomes"):
            append(folder, what, [line for kind, line in part if kind == what], str(luck.randrange(3)))
        decide(folder, TEST, CONFIG, START + luck.randrange(9) * DAY)
    for now in (START + 3 * DAY + HOUR, HORIZON):
        assert alike(decide(folder, TEST, CONFIG, now), fresh(logs, tmp_path / f"whole{now}", now))


def test_a_closed_day_is_reduced_once_and_a_late_file_has_its_own_day_reduced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = traffic(TEST, users=300, seed=5)
    by_day = {number: [line for line in logs.exposures if (line["ts"] - START) // DAY == number] for number in range(7)}
    late = by_day[2][-20:]
    folder, found = tmp_path / "grown", reduced(monkeypatch)
    for number in range(7):
        append(folder, "exposures", by_day[number][:-20] if number == 2 else by_day[number], str(number))
        requests = {line["request_id"] for line in by_day[number]}
        append(folder, "outcomes", [line for line in logs.outcomes if line["request_id"] in requests], str(number))
        decide(folder, TEST, CONFIG, START + (number + 1) * DAY + HOUR)
    blocks = [block for block in found if block >= 0]
    assert blocks == list(range(7))
    found.clear()
    decide(folder, TEST, CONFIG, HORIZON)
    assert found == []
    append(folder, "exposures", late, "late")
    decision = decide(folder, TEST, CONFIG, HORIZON)
    assert [block for block in found if block >= 0] == [2]
    assert alike(decision, fresh(logs, tmp_path / "whole"))


@pytest.mark.parametrize("change", ["edited", "shorter", "gone", "another experiment", "state lost", "days lost"])
def test_a_log_that_did_not_just_grow_is_read_anew(tmp_path: Path, logs: Logs, change: str) -> None:
    folder, changed, test = logs.write(tmp_path / "log"), Logs(list(logs.exposures), list(logs.outcomes)), TEST
    append(folder, "exposures", changed.exposures[:10], "2")
    decide(folder, TEST, CONFIG, HORIZON)
    changed.exposures += changed.exposures[:10]
    if change == "edited":
        changed.outcomes = [{**line, "value": 2 * line["value"]} for line in changed.outcomes]
        changed.write(folder)
        (folder / "exposures" / "2.jsonl").write_text("")
    elif change == "shorter":
        changed.outcomes = changed.outcomes[:-100]
        changed.write(folder)
        (folder / "exposures" / "2.jsonl").write_text("")
    elif change == "gone":
        changed.exposures = list(logs.exposures)
        (folder / "exposures" / "2.jsonl").unlink()
    elif change == "another experiment":
        test = dataclasses.replace(TEST, name="another")
    elif change == "state lost":
        write_atomic(folder / "read" / "state.json", "{")
    else:
        next((folder / "read").glob("days-*")).rename(tmp_path / "days")
    assert alike(decide(folder, test, CONFIG, HORIZON), decide(changed.write(tmp_path / "new"), test, CONFIG, HORIZON))


def test_a_last_line_is_waited_for_until_it_is_whole(tmp_path: Path, logs: Logs) -> None:
    folder = Logs(logs.exposures[:-1], logs.outcomes).write(tmp_path / "log")
    last = json.dumps(logs.exposures[-1])
    whole = fresh(logs, tmp_path / "whole")
    with (folder / "exposures" / "1.jsonl").open("a") as file:
        file.write(last[:40])
        file.flush()
        assert decide(folder, TEST, CONFIG, HORIZON).counts.torn == 1
        file.write(last[40:])
        file.flush()
        assert alike(decide(folder, TEST, CONFIG, HORIZON), whole)
        file.write("\n")
        file.flush()
        assert alike(decide(folder, TEST, CONFIG, HORIZON), whole)
        file.write("torn\n" + last + "\n")
    counts = decide(folder, TEST, CONFIG, HORIZON).counts
    assert (counts.torn, counts.unreadable) == (1, 0)
    assert counts.exposures == whole.counts.exposures + 1


def test_the_lines_of_a_file_that_grows_while_it_is_read_are_read_once(
    tmp_path: Path, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = len(logs.exposures) // 2
    folder = Logs(logs.exposures[:half], logs.outcomes).write(tmp_path / "log")
    store, grown = intake._store_exposures, []

    def growing(*args: Any) -> None:
        if not grown:
            grown.append(True)
            append(folder, "exposures", logs.exposures[half:])
        store(*args)

    monkeypatch.setattr(intake, "_store_exposures", growing)
    found = decide(folder, TEST, CONFIG, HORIZON)
    assert grown
    assert alike(found, fresh(logs, tmp_path / "whole"))
    assert alike(decide(folder, TEST, CONFIG, HORIZON), found)


@pytest.mark.parametrize("at", ["_store_outcomes", "write_atomic"])
def test_a_look_that_was_killed_leaves_the_former_state(
    tmp_path: Path, logs: Logs, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = len(logs.exposures) // 2
    folder = Logs(logs.exposures[:half], []).write(tmp_path / "log")
    decide(folder, TEST, CONFIG, HORIZON)
    append(folder, "exposures", logs.exposures[half:])
    append(folder, "outcomes", logs.outcomes)

    def kill(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(intake, at, kill)
        with pytest.raises(KeyboardInterrupt):
            decide(folder, TEST, CONFIG, HORIZON)
    assert alike(decide(folder, TEST, CONFIG, HORIZON), fresh(logs, tmp_path / "whole"))


def test_what_is_kept_and_cannot_be_read_names_the_folder(tmp_path: Path, logs: Logs) -> None:
    folder = logs.write(tmp_path / "log")
    decide(folder, TEST, CONFIG, HORIZON)
    next((folder / "read").glob("days-*/sums/*/*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(OmnifeedError, match=r"delete .*read"):
        decide(folder, TEST, CONFIG, HORIZON)


def test_an_outcome_may_come_before_its_exposure(tmp_path: Path, logs: Logs) -> None:
    line = logs.exposures[0]
    folder = tmp_path / "log"
    append(folder, "outcomes", [outcome(line["request_id"], line["item_id"], "like", 1, line["ts"] + 1)])
    append(folder, "exposures", logs.exposures[1:300])
    assert decide(folder, TEST, CONFIG, HORIZON).counts.outcomes_unexposed == 1
    append(folder, "exposures", [line], "2")
    counts = decide(folder, TEST, CONFIG, HORIZON).counts
    assert (counts.outcomes_unexposed, counts.outcomes_used) == (0, 1)


def test_two_looks_at_once_wait_for_each_other(tmp_path: Path, logs: Logs) -> None:
    import threading

    folder = logs.write(tmp_path / "log")
    found: list[Decision] = []

    def look() -> None:
        found.append(decide(folder, TEST, CONFIG, HORIZON))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alike(found[0], found[1])


def test_the_kept_ids_are_those_of_this_duckdb(tmp_path: Path, logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = logs.write(tmp_path / "log")
    first = decide(folder, TEST, CONFIG, HORIZON)
    found = reduced(monkeypatch)
    monkeypatch.setattr(duckdb, "__version__", "another")
    assert alike(decide(folder, TEST, CONFIG, HORIZON), first)
    assert found


def test_days_too_large_for_memory_are_reduced_in_slices_to_the_same_numbers(
    tmp_path: Path, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fresh(logs, tmp_path / "whole")
    monkeypatch.setattr(days, "AT_ONCE", 700)  # lines: each day is more
    monkeypatch.setattr(intake, "AT_ONCE", 900)
    assert alike(whole, fresh(logs, tmp_path / "sliced"))
    assert not list((tmp_path / "sliced").rglob("slice=*"))
