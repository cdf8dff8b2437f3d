"""Infra validate: a real Triton loads the release and answers golden and hostile requests before any user does."""

from kfp.dsl import Metrics, Output

from omnifeed.components.step import step


@step
def infra_validate(config: str, home: str, run_id: str, release: str, metrics: Output[Metrics]) -> None:
    """Fail the pipeline where the release does not serve."""
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.errors import OmnifeedError
    from omnifeed.home import Home
    from omnifeed.serving.infra import infra_validate as ask

    with recording(home, run_id, "infra_validate") as record:
        report = ask(Home(Path(home)), release, Config.from_json(config))
        record.info = report.to_dict()
        metrics.log_metric("checks", len(report.checks))
        metrics.log_metric("checks_passed", sum(check.passed for check in report.checks))
        if not report.passed:
            failed = next(check for check in report.checks if not check.passed)
            raise OmnifeedError(
                f"Release {release} does not serve: check {failed.name!r} failed: {failed.detail.rstrip('.')}.",
                "Nothing was deployed; mend the export and run again.",
            )
