"""Gate: the verdict on the running experiment, from its logs alone."""

from typing import NamedTuple

from kfp.dsl import HTML, Markdown, Metrics, Output

from omnifeed.components.step import step


@step
def gate(
    config: str,
    home: str,
    run_id: str,
    now: int,
    page: Output[HTML],
    summary: Output[Markdown],
    metrics: Output[Metrics],
) -> NamedTuple("Outputs", [("verdict", str), ("experiment", str), ("now", int)]):  # type: ignore[valid-type]
    """Decide on the running experiment; `now` 0 means the moment the step starts. The decision is also kept in
    `runs/<run>/decision.json`.
    """
    import time
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.experiment.gate import decide_current
    from omnifeed.experiment.shipping import fetch
    from omnifeed.home import Home, write_json
    from omnifeed.report.page import decision_html, decision_markdown

    with recording(home, run_id, "gate") as record:
        state, settings = Home(Path(home)), Config.from_json(config)
        if settings.serving.shipped_logs:
            fetch(settings.serving.shipped_logs, state.experiments)
        now = now or time.time_ns() // 1_000
        decision = decide_current(state, settings, now)
        record.info = decision.to_dict()
        write_json(record.folder / "decision.json", record.info)
        Path(page.path).write_text(decision_html(record.info), encoding="utf-8")
        Path(summary.path).write_text(decision_markdown(record.info), encoding="utf-8")
        for result in decision.metrics:
            if result.scenario is None and result.relative is not None:
                metrics.log_metric(f"{result.name}_relative", result.relative)
        return decision.verdict.value, decision.experiment, now
