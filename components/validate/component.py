"""Validate: the tables against the data contract; bad rows to quarantine, a critical breach ends the run."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from omnifeed.components.step import step


@step
def validate(
    config: str,
    home: str,
    run_id: str,
    now: int,
    tables: Input[Dataset],
    accepted: Output[Dataset],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Write the accepted tables, here and to the lake."""
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.home import Home
    from omnifeed.quality.lake import publish
    from omnifeed.quality.validate import validate as check

    with recording(home, run_id, "validate") as record:
        state, settings = Home(Path(home)), Config.from_json(config)
        report = check(
            Path(tables.path),
            Path(accepted.path),
            state.root / "quarantine" / record.run,
            Path(page.path),
            settings,
            now,
            state.lake / "profiles" / f"{settings.data.source}.json",
        )
        publish(Path(accepted.path), state)
        record.info = report.to_dict()
        for name in report.rows:
            metrics.log_metric(f"{name}_accepted", report.accepted[name])
            metrics.log_metric(f"{name}_quarantined", report.quarantined[name])
