"""The verdict on the experiment that runs now, and what all promotions brought, with the period before as covariate."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from omnifeed.config import Config
from omnifeed.experiment.assignment import Holdback
from omnifeed.experiment.decision import Decision
from omnifeed.experiment.deploy import holdback_path, the_experiment
from omnifeed.experiment.lift import Lift, cumulative_lift
from omnifeed.experiment.metrics import METRICS, ONLY_SERVED
from omnifeed.experiment.verdict import decide
from omnifeed.home import Home
from omnifeed.quality.lake import accepted

BEFORE_DAYS = 28
_DAY = 86_400_000_000


def period_before(events: Path, start: int, gmv_cap: float) -> pa.Table | None:
    """Per-user totals over the 28 days before an experiment, for CUPED.

    Args:
        events: the accepted table set.
        start: the experiment's start, UTC microseconds; what was observed later does not count.
        gmv_cap: of one user, as in the experiment.

    Returns:
        user_id and one float64 column a total; None where no events were accepted yet.
    """
    import duckdb

    if not any((events / "events").glob("day=*/*.parquet")):
        return None
    totals = []
    for metric in METRICS.values():
        if metric.per or metric.outcome in ONLY_SERVED:  # no total, or none that the time before knows
            continue
        each = f'coalesce("{metric.outcome}", false)::INT' if metric.counts else f'coalesce("{metric.outcome}", 0)'
        total = f"sum({each})" if metric.outcome != "gmv" else f"least(sum({each}), {gmv_cap})"
        totals.append(f'{metric.scale} * {total} AS "{metric.name}"')
    files = str(events / "events" / "*" / "*.parquet").replace("'", "''")
    with duckdb.connect() as connection:
        return connection.execute(
            f"""SELECT user_id, {", ".join(totals)} FROM read_parquet('{files}')
            WHERE epoch_us(ts) >= {start - BEFORE_DAYS * _DAY} AND epoch_us(ts) < {start}
                AND epoch_us(observed_ts) < {start} GROUP BY user_id"""
        ).to_arrow_table()


def decide_current(home: Home, config: Config, now: int) -> Decision:
    """Judge the running experiment.

    Raises:
        InputError: no experiment runs.
    """
    experiment = the_experiment(home)
    before = period_before(accepted(home), experiment.start_ts, config.experiment.gmv_cap)
    return decide(home.experiments / experiment.name, experiment, config, now, before)


def lift_current(home: Home, config: Config, now: int) -> Lift | None:
    """Every champion since the hold-back group began against that group; None where there is none."""
    group = Holdback.load(holdback_path(home))
    if group is None:
        return None
    before = period_before(accepted(home), group.start_ts, config.experiment.gmv_cap)
    return cumulative_lift(home, config, now, before)
