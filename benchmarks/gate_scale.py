"""The verdict on a large log: time and memory, beside a bare DuckDB aggregate of the same columns of the same files.

python benchmarks/gate_scale.py [rows ...]      (default 1,000,000, 10,000,000 and 100,000,000 exposure lines; the last
needs 40 GB of disk and a quarter of an hour; OMNIFEED_SCRATCH names another folder than the system's temporary one)

Sizes that are not named stay in the result as they were found.

The log has one file a day, as a server that starts anew every day leaves it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
from record import ROOT, row, write_result

from omnifeed.config import Config, ExperimentConfig
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.experiment.metrics import experiment_digest
from omnifeed.experiment.verdict import decide

DAY = 86_400_000_000
HOUR = 3_600_000_000
START = 1_772_409_600_000_000
DAYS = 14
SEED = 7
CONFIG = Config(
    experiment=ExperimentConfig(
        success=("gmv_per_user", "orders_per_user"),
        guardrails=("hides_per_user", "clicks_per_user", "long_views_per_user"),
        guardrail_margins=(0.25, 0.1, 0.1),
    )
)
TEST = Experiment(
    name="scale",
    salt="scale",
    arms=(Arm("champion", "0", 0.5), Arm("challenger", "1", 0.5)),
    start_ts=START,
    end_ts=START + DAYS * DAY,
    config_digest=experiment_digest(CONFIG),
)
HORIZON = START + (DAYS + 2) * DAY
RATES = {"click": 0.2, "long_view": 0.1, "order": 0.01, "hide": 0.01}
FOUND = ROOT / "results" / "gate_scale.json"
LARGE = 20_000_000  # lines from which on each is measured once


def generate(folder: Path, day: int, rows: int) -> None:
    """One day: ten items a request, three scenarios, 20 requests a user over all days; a third of the lines has an
    outcome.
    """
    each, users = rows // DAYS // 10 * 10, max(rows // 200, 1)  # whole requests: one of two days would join them
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")  # so that the random numbers come in one order
        connection.execute(f"SELECT setseed({(SEED + day) / 100})")
        connection.execute(
            f"CREATE TEMP TABLE made AS SELECT 'r' || (i // 10) AS request_id, "
            "'i' || (hash(i) % 50000) || '-' || (i % 10) AS item_id, i % 10 AS position, "
            f"'u' || (hash(i // 10) % {users}) AS user_id, "
            "['livestream', 'search', 'short_video'][1 + (i // 10) % 3] AS scenario, "
            f"{START + day * DAY} + (hash(i // 10 + 1) % {DAY - HOUR})::BIGINT AS ts, random() AS luck "
            f"FROM range({day * each}, {(day + 1) * each}) AS t(i)"
        )
        connection.execute(
            "CREATE TEMP TABLE split AS SELECT user_id, CASE WHEN ('0x' || substr(sha256('scale' || chr(0) || user_id),"
            " 1, 16))::UBIGINT::DOUBLE / 18446744073709551616 < 0.5 THEN 'champion' ELSE 'challenger' END AS arm "
            "FROM (SELECT DISTINCT user_id FROM made)"
        )
        connection.execute(
            "COPY (SELECT request_id, item_id, position, user_id, scenario, NULL AS query, arm, "
            "CASE arm WHEN 'champion' THEN '0' ELSE '1' END AS release, 'scale' AS experiment, ts, NULL AS propensity, "
            "round(5 + 10 * luck, 3) AS latency_ms, luck < 0.4 AS tail_creator, "
            "'dense' AS source, []::VARCHAR[] AS degraded, 'en' AS locale, 'phone' AS device FROM made "
            f"JOIN split USING (user_id)) TO '{folder}/exposures/{day:02d}.jsonl' (FORMAT json)"
        )
        parts = [
            f"SELECT request_id, item_id, '{name}' AS name, 1 AS value, ts + 9000000 AS ts, ts + 10000000 AS "
            f"observed_ts FROM made WHERE luck < {rate}"
            for name, rate in RATES.items()
        ]
        parts.append(
            "SELECT request_id, item_id, 'gmv', 20 + luck * 1000, ts + 9000000, ts + 10000000 FROM made "
            f"WHERE luck < {RATES['order']}"
        )
        connection.execute(f"COPY ({' UNION ALL '.join(parts)}) TO '{folder}/outcomes/{day:02d}.jsonl' (FORMAT json)")


def bare(folder: Path) -> None:
    """The same columns of the same lines, counted and averaged by arm and scenario: no joins, no repeats looked for."""
    connection = duckdb.connect()
    connection.execute(
        "SELECT arm, scenario, release, experiment, count(*), count(DISTINCT user_id), count(DISTINCT request_id), "
        "max(item_id), min(ts), max(ts), max(position), max(device), sum(len(degraded)), sum(latency_ms), "
        "count(tail_creator) "
        "FROM read_json(?, format = 'newline_delimited', columns = "
        "{request_id: 'VARCHAR', item_id: 'VARCHAR', user_id: 'VARCHAR', scenario: 'VARCHAR', arm: 'VARCHAR', "
        "release: 'VARCHAR', experiment: 'VARCHAR', ts: 'BIGINT', degraded: 'VARCHAR[]', position: 'BIGINT', "
        "device: 'VARCHAR', latency_ms: 'DOUBLE', tail_creator: 'BOOLEAN'}) GROUP BY ALL",
        [str(folder / "exposures" / "*.jsonl")],
    ).fetchall()
    connection.execute(
        "SELECT name, count(*), avg(value), var_samp(value), max(request_id), max(item_id), max(ts), max(observed_ts) "
        "FROM read_json(?, format = 'newline_delimited', columns = {request_id: 'VARCHAR', item_id: 'VARCHAR', "
        "name: 'VARCHAR', value: 'DOUBLE', ts: 'BIGINT', observed_ts: 'BIGINT'}) GROUP BY name",
        [str(folder / "outcomes" / "*.jsonl")],
    ).fetchall()


def gate(folder: Path, now: int) -> None:
    decision = decide(folder, TEST, CONFIG, now)
    assert decision.counts.exposures_used == decision.counts.exposures > 0
    assert decision.counts.outcomes_used == decision.counts.outcomes
    print(f"{decision.verdict.value}: {decision.counts.requests:,} requests", file=sys.stderr)


def measured(*arguments: object) -> tuple[float, float]:
    """Seconds and peak GiB of one step in a process of its own, imports not counted."""
    command = [sys.executable, __file__, *map(str, arguments)]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result["seconds"], result["peak_gib"]


def measure(folder: Path, size: int) -> dict[str, list[tuple[float, float]]]:
    """Every step some times: the bare aggregate; the first verdict on the whole log; the day before the last, the last
    day, and once more with nothing new.
    """
    for what in ("exposures", "outcomes"):
        (folder / what).mkdir()
    for day in range(DAYS):
        measured("generate", folder, day, size)
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "first": [], "day": [], "again": []}
    for _ in range(1 if size > LARGE else 3):
        found["bare"].append(measured("bare", folder))
        shutil.rmtree(folder / "read", ignore_errors=True)
        found["first"].append(measured("gate", folder, HORIZON))
        shutil.rmtree(folder / "read")
        last = [folder / what / f"{DAYS - 1:02d}.jsonl" for what in ("exposures", "outcomes")]
        for file in last:
            file.rename(folder / f"{file.parent.name}.later")
        measured("gate", folder, START + (DAYS - 1) * DAY)
        for file in last:
            (folder / f"{file.parent.name}.later").rename(file)
        found["day"].append(measured("gate", folder, START + DAYS * DAY))
        found["again"].append(measured("gate", folder, HORIZON))
    return found


LABELS = {
    "bare": "bare DuckDB aggregate",
    "first": "verdict, first reading",
    "day": "verdict, the 14th day new",
    "again": "verdict, nothing new",
}


def main(sizes: list[int]) -> None:
    rows: list[dict[str, object]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=os.environ.get("OMNIFEED_SCRATCH")) as scratch:
            found = measure(Path(scratch), size)
            gib = sum(path.stat().st_size for path in Path(scratch).glob("*/*.jsonl")) / 2**30
            kept = sum(path.stat().st_size for path in Path(scratch).glob("read/**/*.parquet")) / 2**30
        print(f"{size:,} exposures, {gib:.2f} GiB of logs, {kept:.2f} GiB kept")
        middle = {what: statistics.median(seconds for seconds, _ in runs) for what, runs in found.items()}
        for what, runs in found.items():
            seconds, peaks = zip(*runs, strict=True)
            labels = {"what": LABELS[what], "exposures": size}
            rows.append(row("seconds", middle[what], min(seconds), max(seconds), **labels))
            rows.append(row("peak GiB", statistics.median(peaks), min(peaks), max(peaks), **labels))
            rows.append(row("times the bare aggregate", middle[what] / middle["bare"], **labels))
            print(f"  {LABELS[what]:<28}" + "".join(f"{each['metric']} {each['value']:.2f}   " for each in rows[-3:]))
        rows.append(row("GiB of logs", gib, what="log", exposures=size))
        rows.append(row("GiB kept", kept, what="read and computed", exposures=size))
        write(rows)


def write(rows: list[dict[str, object]]) -> None:
    """After each size: the largest may be stopped."""
    known = json.loads(FOUND.read_text())["rows"] if FOUND.exists() else []
    mine = {each["exposures"] for each in rows}
    rows = sorted(
        [*rows, *(each for each in known if each["exposures"] not in mine)], key=lambda each: each["exposures"]
    )
    write_result(
        "gate_scale",
        "The verdict on large logs: five metrics, three scenarios, 14 days",
        rows,
        data="generated exposure and outcome logs (JSON lines), a file a day, 10 items a request, 20 requests a user",
        seeds=[SEED],
        notes=[
            "Median of three runs in processes of their own, lowest and highest as interval; one run of the largest; "
            "imports not counted.",
            "The bare aggregate parses the same columns of the same files and counts by arm and scenario; it looks for "
            "no repeated line, joins nothing and keeps no user apart.",
            "Each day's lines are read once and kept as integers by day, each closed day's sums are kept: the 14th "
            "day's look reads that day's files alone, and merges it with the thirteen before.",
        ],
        libraries=("duckdb", "tea-tasting"),
    )


if __name__ == "__main__":
    step, *arguments = sys.argv[1:] or [""]
    if step in ("generate", "bare", "gate"):
        started = time.perf_counter()
        if step == "generate":
            generate(Path(arguments[0]), int(arguments[1]), int(arguments[2]))
        elif step == "bare":
            bare(Path(arguments[0]))
        else:
            gate(Path(arguments[0]), int(arguments[1]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": time.perf_counter() - started, "peak_gib": peak}))
    else:
        main([int(text) for text in sys.argv[1:]] or [1_000_000, 10_000_000, 100_000_000])
