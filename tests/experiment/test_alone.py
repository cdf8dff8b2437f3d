"""The gate on tables that Omnifeed did not write."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from experiment_logs import CONFIG, DAY, HORIZON, START, Logs, experiment, traffic

from omnifeed.errors import InputError
from omnifeed.experiment.alone import Declared, decide_alone
from omnifeed.experiment.decision import Decision, Verdict
from omnifeed.experiment.verdict import decide
from omnifeed.pipelines.cli import cli

ROOT = Path(__file__).resolve().parents[2]
TEST = experiment()
FILE = """
name = "release-1-vs-0"
start = 2026-03-02
champion = "champion"
challenger = "challenger"
{more}
[experiment]
days = 7
guardrails = ["hides_per_user"]
guardrail_margins = [0.25]
{section}
"""


@pytest.fixture(scope="module")
def logs() -> Logs:
    rates = {"viewed": 0.9, "click": 0.3, "order": 0.08, "hide": 0.12}
    return traffic(TEST, users=3000, seed=1, rates=rates, challenger=lambda name, _: 1.5 if name == "order" else 1.0)


def declared(folder: Path, more: str = "", section: str = "") -> Path:
    path = folder / "experiment.toml"
    path.write_text(FILE.format(more=more, section=section))
    return path


def tables(logs: Logs, folder: Path, drop: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """As a company keeps them: parquet, timestamps, no column that only Omnifeed has."""
    paths = []
    for name, lines in (("exposures", logs.exposures), ("outcomes", logs.outcomes)):
        kept = ("release", "degraded", "experiment", "source", "propensity", "locale", "query", *drop)
        table = pa.Table.from_pylist([{key: line[key] for key in line if key not in kept} for line in lines])
        for column in ("ts", "observed_ts"):
            if column in table.column_names:
                at = table.column_names.index(column)
                table = table.set_column(at, column, table[column].cast(pa.timestamp("us", tz="UTC")))
        paths.append(folder / f"{name}.parquet")
        pq.write_table(table, paths[-1])
    return paths[0], paths[1]


@pytest.fixture(scope="module")
def own(logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> Decision:
    """The same experiment, read by Omnifeed from its own log."""
    return decide(logs.write(tmp_path_factory.mktemp("own")), TEST, CONFIG, HORIZON)


def same_numbers(left: Decision, right: Decision) -> bool:
    return (left.verdict, left.metrics, left.splits, left.daily) == (
        right.verdict,
        right.metrics,
        right.splits,
        right.daily,
    )


def test_parquet_tables_give_the_verdict_of_omnifeeds_own_log(tmp_path: Path, logs: Logs, own: Decision) -> None:
    found = decide_alone(*tables(logs, tmp_path), declared(tmp_path), HORIZON)
    assert found.verdict is Verdict.PROMOTE
    assert same_numbers(found, own)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_so_do_json_lines_and_csv_in_a_folder(tmp_path: Path, logs: Logs, own: Decision, suffix: str) -> None:
    paths = []
    for path in tables(logs, tmp_path):
        folder = tmp_path / path.stem
        folder.mkdir()
        options = "(FORMAT json)" if suffix == "jsonl" else "(FORMAT csv, HEADER)"
        for part in (0, 1):
            duckdb.execute(
                f"COPY (SELECT * FROM '{path}' WHERE hash(request_id) % 2 = {part}) "
                f"TO '{folder}/{part}.{suffix}' {options}"
            )
        paths.append(folder)
    assert same_numbers(decide_alone(paths[0], paths[1], declared(tmp_path), HORIZON), own)


def test_a_salt_has_every_arm_computed_again(tmp_path: Path, logs: Logs, own: Decision) -> None:
    paths = tables(logs, tmp_path)
    right = decide_alone(*paths, declared(tmp_path, f'salt = "{TEST.salt}"'), HORIZON)
    assert same_numbers(right, own)
    wrong = decide_alone(*paths, declared(tmp_path, 'salt = "another"'), HORIZON)
    assert [reason.code.value for reason in wrong.reasons] == ["ASSIGNMENT_MISMATCH"]


def test_a_user_in_two_arms_or_in_a_third_one_is_found(tmp_path: Path, logs: Logs) -> None:
    for arm in ("challenger", "elsewhere"):
        spoilt = Logs([dict(line) for line in logs.exposures], logs.outcomes)
        champions = [line for line in spoilt.exposures if line["arm"] == "champion"]
        champions[-1]["arm"] = arm
        found = decide_alone(*tables(spoilt, tmp_path), declared(tmp_path), HORIZON)
        assert (found.verdict, found.counts.users_misassigned) == (Verdict.INVALID, 1)
        assert "two arms" in found.paragraph


def test_settings_registered_before_the_start_hold(tmp_path: Path, logs: Logs) -> None:
    paths = tables(logs, tmp_path)
    digest = Declared.load(declared(tmp_path)).experiment.config_digest
    assert decide_alone(*paths, declared(tmp_path, f'registered = "{digest}"'), HORIZON).verdict is Verdict.PROMOTE
    changed = declared(tmp_path, f'registered = "{digest}"', "alpha = 0.1")
    found = decide_alone(*paths, changed, HORIZON)
    assert [reason.code.value for reason in found.reasons] == ["CONFIG_CHANGED"]


def test_a_table_of_the_period_before_adjusts(tmp_path: Path, logs: Logs, own: Decision) -> None:
    clicks: dict[str, float] = {}
    for line in logs.exposures:
        clicks[line["user_id"]] = clicks.get(line["user_id"], 0.0) + 0.1
    before = tmp_path / "before.parquet"
    pq.write_table(pa.table({"user_id": list(clicks), "orders_per_user": list(clicks.values())}), before)
    found = decide_alone(*tables(logs, tmp_path), declared(tmp_path), HORIZON, before)
    width = [
        (each.high or 0) - (each.low or 0)
        for decision in (found, own)
        for each in decision.metrics
        if (each.name, each.scenario) == ("orders_per_user", None)
    ]
    assert 0 < width[0] < width[1]


# The logged row as the unit


def test_rows_are_never_promoted_but_their_intervals_are_shown(tmp_path: Path, logs: Logs) -> None:
    paths = tables(logs, tmp_path, drop=("user_id",))
    found = decide_alone(*paths, declared(tmp_path, section='unit = "row"'), HORIZON)
    assert (found.verdict, found.final, found.splits) == (Verdict.INVALID, True, ())
    assert [reason.code.value for reason in found.reasons] == ["UNIT_NOT_USER"]
    assert "not testable" in found.path[2].text
    orders = next(each for each in found.metrics if (each.name, each.scenario) == ("orders_per_user", None))
    assert orders.users_champion + orders.users_challenger == len(logs.exposures)
    assert orders.low is not None
    assert orders.low > 0  # an effect that users would have had promoted


def test_the_open_bandit_log_gives_intervals_and_no_promotion(tmp_path: Path, shared: Path) -> None:
    source = shared / "open_bandit_small"
    if not source.is_dir():
        pytest.skip("open_bandit_small is not here")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gate_open_bandit import write_tables

    paths = write_tables(source, tmp_path)
    found = decide_alone(*paths, START + 10_000 * DAY)
    assert (found.verdict, found.splits) == (Verdict.INVALID, ())
    assert found.evidence.scenarios() == ("all", "men", "women")
    overall = [each for each in found.metrics if each.scenario is None]
    assert {each.users_champion for each in overall} == {30_000}
    rows = duckdb.sql(f"SELECT sum(click) FROM read_parquet('{source}/random_*.parquet')").fetchall()
    clicks = next(each for each in overall if each.name == "clicks_per_user")
    assert clicks.champion * 30_000 == pytest.approx(float(rows[0][0]))


# Input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not TOML"),
        ('name = "a"', "start is missing"),
        ('name = "a"\nstart = 2026-03-02\nchampion = "x"\nchallenger = "x"', "both arms are named"),
        ('name = "a"\nstart = "monday"\nchampion = "x"\nchallenger = "y"', "start is 'monday'"),
        ('name = "a"\nstart = 2026-03-02\nchampion = "x"\nchallenger = "y"\nwhere = 1', "'where' is unknown"),
        ('name = "a"\nstart = 2026-03-02\nchampion = "x"\nchallenger = "y"\n[experiment]\nsucces = []', "succes"),
    ],
)
def test_an_experiment_file_that_says_too_little_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Declared.load(path)


def spoil(table: pa.Table, change: str) -> pa.Table:
    match change:
        case "no arm":
            return table.drop_columns(["arm"])
        case "no ts":
            return table.drop_columns(["ts"])
        case _:
            at = table.column_names.index("ts")
            return table.set_column(at, "ts", pa.array([True] * table.num_rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [("no arm", "no column 'arm'"), ("no ts", "no column 'ts'"), ("a truth for a time", "which is no time")],
)
def test_a_table_that_lacks_a_column_is_refused(tmp_path: Path, logs: Logs, change: str, message: str) -> None:
    exposures, outcomes = tables(logs, tmp_path)
    pq.write_table(spoil(pq.read_table(exposures), change), exposures)
    with pytest.raises(InputError, match=message):
        decide_alone(exposures, outcomes, declared(tmp_path), HORIZON)


def test_a_file_that_is_not_there_or_not_a_table_is_refused(tmp_path: Path, logs: Logs) -> None:
    exposures, outcomes = tables(logs, tmp_path)
    for path in (tmp_path / "nowhere.parquet", tmp_path / "experiment.toml"):
        with pytest.raises(InputError, match=r"cannot be read|no table"):
            decide_alone(path, outcomes, declared(tmp_path), HORIZON)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(exposures.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        decide_alone(damaged, outcomes, declared(tmp_path), HORIZON)


# The command


def documented() -> str:
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    found = re.search(r"```sh\n(.*?omnifeed gate .*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_documented_example_runs_as_written(tmp_path: Path) -> None:
    script = documented().rstrip() + f" --json --now {START + 30 * DAY}\n"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    answer = subprocess.run(
        ["sh", "-ec", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert (found["verdict"], found["final"], found["counts"]["exposures_used"]) == ("HOLD", True, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiment.toml", "exposures.csv", "outcomes.csv"]


def test_the_command_wants_all_three_tables(tmp_path: Path, logs: Logs) -> None:
    exposures, outcomes = tables(logs, tmp_path)
    answer = CliRunner().invoke(cli, ["gate", "--exposures", str(exposures)])
    assert isinstance(answer.exception, InputError)
    arguments: list[Any] = ["gate", "--exposures", exposures, "--outcomes", outcomes, "--json", "--now", HORIZON]
    arguments += ["--experiment", declared(tmp_path)]
    answer = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert json.loads(answer.output)["verdict"] == "PROMOTE"
