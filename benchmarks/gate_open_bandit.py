"""The gate alone on a real log of two policies: Open Bandit, random against the bandit, campaigns as scenarios.

python benchmarks/gate_open_bandit.py [folder]      (default ../shared/data/open_bandit_small)

The log has no user ids and files of exactly 10,000 rows: the unit is the logged row, declared, the split of users is
not testable, and nothing is promoted. What is left are intervals, by campaign, through the same tests as any verdict's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import duckdb
from record import ROOT, row, write_result

from omnifeed.experiment.alone import decide_alone

CAMPAIGNS = ("all", "men", "women")
FAR = 4_000_000_000_000_000  # UTC microseconds, in 2096: every attribution window has closed
FILE = """name = "bts-vs-random"
start = 2019-11-24
champion = "random"
challenger = "bts"

[experiment]
days = 7
unit = "row"
success = ["clicks_per_user"]
guardrails = ["served_per_user"]
guardrail_margins = [0.1]
"""


def write_tables(source: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Exposures, outcomes and the experiment file, as a company would bring them."""
    logged = " UNION ALL ".join(
        f"SELECT '{arm}' AS arm, '{campaign}' AS scenario, '{arm}-{campaign}-' || row_number() OVER () AS request_id, "
        f"item_id, position, click, timestamp AS ts FROM read_parquet('{source}/{arm}_{campaign}.parquet')"
        for arm in ("random", "bts")
        for campaign in CAMPAIGNS
    )
    exposures, outcomes, experiment = (folder / name for name in ("exposures.parquet", "outcomes.parquet", "test.toml"))
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE logged AS {logged}")
        connection.execute(
            f"COPY (SELECT request_id, item_id, arm, scenario, position, ts FROM logged) TO '{exposures}' "
            "(FORMAT parquet)"
        )
        connection.execute(
            f"COPY (SELECT request_id, item_id, 'click' AS name, ts FROM logged WHERE click = 1) TO '{outcomes}' "
            "(FORMAT parquet)"
        )
    experiment.write_text(FILE)
    return exposures, outcomes, experiment


def main(source: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        decision = decide_alone(*write_tables(source, Path(scratch)), FAR)
    rows = []
    for each in decision.metrics:
        if each.name == "clicks_per_user" and each.relative is not None:
            where = each.scenario or "all campaigns"
            rows.append(
                row("relative click rate of bts", each.relative, each.low, each.high, campaign=where, p=each.p_value)
            )
            print(
                f"{where:<14}{each.champion:.5f} -> {each.challenger:.5f}  {each.relative:+.1%}  p = {each.p_value:.3f}"
            )
    print(f"{decision.verdict.value}: {decision.paragraph}")
    write_result(
        "gate_open_bandit",
        "Clicks a logged row, bts against random, with two-sided 90 % intervals",
        rows,
        data="open_bandit_small",
        seeds=[],
        notes=[f"Verdict {decision.verdict.value}, {decision.reasons[0].code.value}: {decision.reasons[0].text}"],
        libraries=("duckdb", "tea-tasting"),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT.parent / "shared" / "data" / "open_bandit_small")
