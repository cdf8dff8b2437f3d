"""Monitor: yesterday against other days under the champion; says whether drift opens a retraining."""

from kfp.dsl import HTML, Metrics, Output

from omnifeed.components.step import step


@step
def monitor(
    config: str, home: str, run_id: str, now: int, retrain: bool, page: Output[HTML], metrics: Output[Metrics]
) -> str:
    """Return "yes" where drift opens a retraining now, else "no"; `now` 0 means the moment the step starts.

    The interval is also kept under `monitoring/`, as numbers, a page, and metrics for Prometheus.
    """
    import time
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.home import Home
    from omnifeed.monitoring.page import monitoring_html, publish
    from omnifeed.monitoring.retraining import record_opened, retraining
    from omnifeed.monitoring.watch import watch

    with recording(home, run_id, "monitor") as record:
        state, settings = Home(Path(home)), Config.from_json(config)
        found = watch(state, settings, now or time.time_ns() // 1_000)
        follows = retraining(state, settings, found)
        record.info = publish(state, found, follows)
        Path(page.path).write_text(monitoring_html(found, follows), encoding="utf-8")
        for kind in sorted({check.kind for check in found.checks}):
            metrics.log_metric(f"alarms_{kind}", sum(each == kind for each, _ in found.alarms))
        metrics.log_metric("alarms", len(found.alarms))
        if follows.wanted and retrain:
            record_opened(state, record.run, found)
            return "yes"
        return "no"
