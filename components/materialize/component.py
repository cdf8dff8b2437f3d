"""Materialize: aggregates and histories into Feast, training rows by its point-in-time join, today's catalogue."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from omnifeed.components.step import step


@step
def materialize(
    config: str,
    home: str,
    run_id: str,
    now: int,
    accepted: Input[Dataset],
    source: Input[Artifact],
    training_set: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Write the training set; the online store and the catalogue then stand as of `now`."""
    import json
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.features.materialize import materialize as compute
    from omnifeed.features.refresh import refresh_catalogue
    from omnifeed.home import Home
    from omnifeed.tables import read_tables

    with recording(home, run_id, "materialize") as record:
        state, settings = Home(Path(home)), Config.from_json(config)
        holdout = frozenset(json.loads(Path(source.path).read_text())["holdout_users"])
        result = compute(
            Path(accepted.path), Path(training_set.path), state, settings, now, holdout, progress=record.progress
        )
        items = read_tables(Path(accepted.path)).items
        snapshot = refresh_catalogue(state, settings, items, [Path(accepted.path)], now)
        record.info = {**result.to_dict(), "catalogue": snapshot}
        for name, count in result.rows.items():
            metrics.log_metric(f"rows_{name}", count)
