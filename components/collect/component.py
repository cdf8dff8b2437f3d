"""Collect: the experiment's exposures and outcomes as canonical events, for the features and the next training."""

from kfp.dsl import Metrics, Output

from omnifeed.components.step import step


@step
def collect(home: str, run_id: str, experiment: str, metrics: Output[Metrics]) -> int:
    """Return the number of events collected."""
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.datasets.served import collect as bring
    from omnifeed.home import Home

    with recording(home, run_id, "collect") as record:
        count = bring(Home(Path(home)), experiment)
        record.info = {"experiment": experiment, "events": count}
        metrics.log_metric("events", count)
        return count
