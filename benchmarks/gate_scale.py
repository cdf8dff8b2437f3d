"""The verdict on a large log: time and memory, beside a bare DuckDB aggregate of the same columns of the same files.

python benchmarks/gate_scale.py [rows ...]      (default 1,000,000 and 10,000,000 exposure lines)
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
from record import row, write_result

from omnifeed.config import Config, ExperimentConfig
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.experiment.metrics import experiment_digest
from omnifeed.experiment.verdict import decide

DAY = 86_400_000_000
START = 1_772_409_600_000_000
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
    end_ts=START + 14 * DAY,
    config_digest=experiment_digest(CONFIG),
)
HORIZON = START + 16 * DAY
RATES = {"click": 0.2, "long_view": 0.1, "order": 0.01, "hide": 0.01}


def generate(folder: Path, rows: int) -> None:
    """Ten items a request, 20 requests a user, three scenarios; a fifth of the lines has an outcome."""
    for name in ("exposures", "outcomes"):
        (folder / name).mkdir(parents=True)
    connection = duckdb.connect(str(folder / "made.duckdb"))
    connection.execute(f"SELECT setseed({SEED / 10})")
    connection.execute("SET threads = 1")  # so that the random numbers come in one order
    connection.execute(
        "CREATE TABLE made AS SELECT 'r' || (i // 10) AS request_id, "
        "'i' || (hash(i) % 50000) || '-' || (i % 10) AS item_id, "
        f"i % 10 AS position, 'u' || ((i // 10) % {max(rows // 200, 1)}) AS user_id, "
        "['livestream', 'search', 'short_video'][1 + (i // 10) % 3] AS scenario, "
        f"{START} + (hash(i // 10) % {14 * DAY})::BIGINT AS ts, random() AS luck FROM range({rows}) AS t(i)"
    )
    connection.execute(
        "COPY (SELECT request_id, item_id, position, user_id, scenario, NULL AS query, arm, "
        "CASE arm WHEN 'champion' THEN '0' ELSE '1' END AS release, 'scale' AS experiment, ts, NULL AS propensity, "
        "'dense' AS source, []::VARCHAR[] AS degraded, 'en' AS locale, 'phone' AS device FROM (SELECT *, CASE WHEN "
        "('0x' || substr(sha256('scale' || chr(0) || user_id), 1, 16))::UBIGINT::DOUBLE / 18446744073709551616 < 0.5 "
        f"THEN 'champion' ELSE 'challenger' END AS arm FROM made)) TO '{folder}/exposures/1.jsonl' (FORMAT json)"
    )
    parts = [
        f"SELECT request_id, item_id, '{name}' AS name, 1 AS value, ts + 9000000 AS ts, ts + 10000000 AS observed_ts "
        f"FROM made WHERE luck < {rate}"
        for name, rate in RATES.items()
    ]
    parts.append(
        "SELECT request_id, item_id, 'gmv', 20 + luck * 1000, ts + 9000000, ts + 10000000 FROM made "
        f"WHERE luck < {RATES['order']}"
    )
    connection.execute(f"COPY ({' UNION ALL '.join(parts)}) TO '{folder}/outcomes/1.jsonl' (FORMAT json)")
    connection.close()
    (folder / "made.duckdb").unlink()


def bare(folder: Path) -> None:
    """The same columns of the same lines, counted and averaged by arm and scenario: no joins, no repeats looked for."""
    connection = duckdb.connect()
    connection.execute(
        "SELECT arm, scenario, release, experiment, count(*), count(DISTINCT user_id), count(DISTINCT request_id), "
        "max(item_id), min(ts), max(ts), sum(len(degraded)) FROM read_json(?, format = 'newline_delimited', columns = "
        "{request_id: 'VARCHAR', item_id: 'VARCHAR', user_id: 'VARCHAR', scenario: 'VARCHAR', arm: 'VARCHAR', "
        "release: 'VARCHAR', experiment: 'VARCHAR', ts: 'BIGINT', degraded: 'VARCHAR[]'}) GROUP BY ALL",
        [str(folder / "exposures" / "*.jsonl")],
    ).fetchall()
    connection.execute(
        "SELECT name, count(*), avg(value), var_samp(value), max(request_id), max(item_id), max(ts), max(observed_ts) "
        "FROM read_json(?, format = 'newline_delimited', columns = {request_id: 'VARCHAR', item_id: 'VARCHAR', "
        "name: 'VARCHAR', value: 'DOUBLE', ts: 'BIGINT', observed_ts: 'BIGINT'}) GROUP BY name",
        [str(folder / "outcomes" / "*.jsonl")],
    ).fetchall()


def gate(folder: Path) -> None:
    decision = decide(folder, TEST, CONFIG, HORIZON)
    assert decision.counts.exposures_used == decision.counts.exposures > 0
    assert decision.counts.outcomes_used == decision.counts.outcomes
    print(f"{decision.verdict.value}: {decision.counts.requests:,} requests", file=sys.stderr)


def measured(what: str, folder: Path) -> tuple[float, float]:
    """Seconds and peak GiB of one run in a process of its own, imports not counted."""
    answer = subprocess.run([sys.executable, __file__, what, str(folder)], capture_output=True, text=True, check=True)
    result = json.loads(answer.stdout)
    return result["seconds"], result["peak_gib"]


def main(sizes: list[int]) -> None:
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            generate(Path(scratch), size)
            gib = sum(path.stat().st_size for path in Path(scratch).glob("*/*.jsonl")) / 2**30
            found = {what: [measured(what, Path(scratch)) for _ in range(3)] for what in ("bare", "gate")}
        for what, label in (("bare", "bare DuckDB aggregate"), ("gate", "verdict")):
            seconds, peaks = zip(*found[what], strict=True)
            rows.append(row("seconds", sorted(seconds)[1], min(seconds), max(seconds), what=label, exposures=size))
            rows.append(row("peak GiB", sorted(peaks)[1], min(peaks), max(peaks), what=label, exposures=size))
        ratio = sorted(s for s, _ in found["gate"])[1] / sorted(s for s, _ in found["bare"])[1]
        rows.append(row("times the bare aggregate", ratio, what="verdict", exposures=size))
        print(f"{size:>12,} exposures, {gib:.2f} GiB of logs")
        for each in rows[-5:]:
            print(f"  {each['what']:<24}{each['metric']:<26}{each['value']:.2f}")
    write_result(
        "gate_scale",
        "The verdict on large logs: five metrics, three scenarios, 14 days",
        rows,
        data="generated exposure and outcome logs (JSON lines), 10 items a request, 20 requests a user",
        seeds=[SEED],
        notes=[
            "Median of three runs in processes of their own, lowest and highest as interval; imports not counted.",
            "The bare aggregate parses the same columns of the same files and counts by arm and scenario; it looks for "
            "no repeated line, joins nothing and keeps no user apart.",
        ],
        libraries=("duckdb", "tea-tasting"),
    )


if __name__ == "__main__":
    if sys.argv[1:2] in (["bare"], ["gate"]):
        started = time.perf_counter()
        {"bare": bare, "gate": gate}[sys.argv[1]](Path(sys.argv[2]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": time.perf_counter() - started, "peak_gib": peak}))
    else:
        main([int(text) for text in sys.argv[1:]] or [1_000_000, 10_000_000])
