"""`omnifeed run`: both pipelines with traffic between them, on one machine.

Everything it needs to go on stands on the disk. A run that was killed after `deploy` left an experiment open: the next
run goes on with that experiment instead of training another challenger. Killed earlier, nothing had changed for a user,
and training itself goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omnifeed.config import Config
from omnifeed.errors import OmnifeedError
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.deploy import running_experiment
from omnifeed.home import Home, write_json

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LoopOutcome:
    """How one run of the loop ended."""

    run: str
    verdict: str  # PROMOTE, HOLD, REJECT, INVALID, or NOT DEPLOYED where the challenger was worse offline
    paragraph: str
    champion: str
    report: str
    seconds: float
    summary: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    def text(self) -> str:
        """What the command prints."""
        return "\n".join(
            [
                *self.summary,
                "",
                f"{self.verdict}: {self.paragraph}",
                f"The champion is release {self.champion}. The run took {self.seconds:.0f} s.",
                f"Report: {self.report}",
            ]
        )


@contextlib.contextmanager
def drawn_progress(show: bool) -> Iterator[Progress]:
    """A progress callback that draws one bar on standard error."""
    if not show:
        yield lambda label, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=28),
        TimeElapsedColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("", total=None)

        def update(label: str, done: int, total: int) -> None:
            progress.update(task, description=label, completed=done, total=total)

        yield update


def run_loop(home: Home, config: Config, show: bool) -> LoopOutcome:
    """Run the loop once.

    Raises:
        OmnifeedError: a step failed; what was accepted before is untouched.
    """
    from omnifeed.components.record import recording
    from omnifeed.experiment.deploy import record_deployment
    from omnifeed.pipelines.local import run_pipeline
    from omnifeed.pipelines.summary import summarise
    from omnifeed.report.page import write_report

    begun = time.monotonic()
    with home.lock():
        run = _next_run(home)
        folder = home.runs / run
        write_json(folder / "config.json", json.loads(config.to_json()))
        try:
            resumed = running_experiment(home) is not None
            if not resumed:
                from omnifeed.pipelines.training import training

                run_pipeline(training, {"config": config.to_json()}, home, run, show)
            decision: dict[str, Any] | None = None
            experiment = running_experiment(home)
            if experiment is not None:
                record_deployment(home, experiment)  # of a run that was killed between routing and recording
                with recording(str(home.root), run, "traffic") as record:
                    record.info = _serve(home, config, experiment, show)
                decision = run_promotion(home, config, _horizon(config, experiment), show, run)
        except OmnifeedError as error:
            write_report(
                folder / "report.html",
                summarise(home, config, run, _command(config), 0, f"{error.problem} {error.action}"),
            )
            raise
        return _outcome(home, config, run, decision, resumed, time.monotonic() - begun)


def run_promotion(home: Home, config: Config, now: int, show: bool, run: str | None = None) -> dict[str, Any]:
    """Run the promotion pipeline; returns the decision."""
    from omnifeed.pipelines.local import run_pipeline
    from omnifeed.pipelines.promotion import promotion

    run = run or _next_run(home)
    run_pipeline(promotion, {"config": config.to_json(), "now": now}, home, run, show)
    decision: dict[str, Any] = json.loads((home.runs / run / "decision.json").read_text(encoding="utf-8"))
    return decision


def run_monitoring(home: Home, config: Config, now: int, retrain: bool, show: bool) -> dict[str, Any]:
    """Run the monitoring pipeline, with the retraining that drift opens; returns what was found, and the run's name."""
    from omnifeed.pipelines.local import run_pipeline
    from omnifeed.pipelines.monitoring import monitoring

    run = _next_run(home)
    run_pipeline(monitoring, {"config": config.to_json(), "now": now, "retrain": retrain}, home, run, show)
    record = json.loads((home.runs / run / "steps" / "monitor.json").read_text(encoding="utf-8"))
    retrained = (home.runs / run / "steps" / "evaluate.json").exists()
    return {**record["info"], "run": run, "retrained": retrained}


def _next_run(home: Home) -> str:
    home.runs.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name) for path in home.runs.iterdir() if path.name.isdigit()]
    return f"{max(numbers, default=0) + 1:04d}"


def _horizon(config: Config, experiment: Experiment) -> int:
    """When the last attribution window of the experiment has closed, UTC microseconds."""
    return experiment.end_ts + config.experiment.attribution_hours * 3_600_000_000


def _serve(home: Home, config: Config, experiment: Experiment, show: bool) -> dict[str, Any]:
    """Serve both arms; ask for a few users' recommendations; where users can be simulated, send the traffic."""
    from omnifeed.pipelines.preview import preview
    from omnifeed.serving.client import Client
    from omnifeed.serving.server import LocalServer

    with drawn_progress(show) as progress:
        progress("start the servers", 0, 1)
        with LocalServer(home, config, simulated_clock=True) as server, Client(server.url) as client:
            shown = preview(home, config, experiment, client)
            if config.data.source != "world":
                progress("served", 1, 1)
                return {"recommendations": shown}
            from omnifeed.pipelines.traffic import send_traffic

            sent = send_traffic(home, config, experiment, client, progress)
    return {"recommendations": shown, "traffic": sent.to_dict()}


def _command(config: Config) -> str:
    path = f" --path {Path(config.data.path).name}" if config.data.path else ""
    return f"omnifeed run --data {config.data.source}{path}"


def _outcome(
    home: Home, config: Config, run: str, decision: dict[str, Any] | None, resumed: bool, seconds: float
) -> LoopOutcome:
    from omnifeed.experiment.ledger import Ledger
    from omnifeed.pipelines.summary import answers, dropped_rows, offline_tables, steps_of, summarise
    from omnifeed.report.page import write_report

    folder = home.runs / run
    steps = steps_of(folder)
    now = decision["now"] if decision else steps["ingest"]["info"]["now"]
    summary = summarise(home, config, run, _command(config), now)
    write_report(folder / "report.html", summary)
    if decision:
        verdict, paragraph = decision["verdict"], decision["paragraph"]
    else:
        verdict, paragraph = "NOT DEPLOYED", " ".join(steps["evaluate"]["info"]["reasons"])
    lines = [f"{step.name:<16} {step.seconds:>7.1f} s  {step.note}" for step in summary.steps]
    if resumed:
        lines.insert(0, "An experiment was running already; this run went on with it.")
    champion = Ledger(home).champion() or "none"
    return LoopOutcome(
        run,
        verdict,
        paragraph,
        champion,
        str(folder / "report.html"),
        seconds,
        (*lines, *dropped_rows(steps), *offline_tables(steps), *answers(summary), *_effects(decision)),
    )


def _effects(decision: dict[str, Any] | None) -> list[str]:
    """The experiment's effects over all traffic."""
    rows = [row for row in (decision or {}).get("metrics", []) if row["scenario"] is None]
    if not rows:
        return []

    def share(value: float | None) -> str:
        return "not estimable" if value is None else f"{value:+.1%}"

    lines = ["", "online, per user                       champion  challenger   effect   interval"]
    return lines + [
        f"  {row['title']:<34} {row['champion']:>9.3f} {row['challenger']:>11.3f} {share(row['relative']):>8}   "
        + (share(None) if row["low"] is None else f"{share(row['low'])} to {share(row['high'])}")
        for row in rows
    ]
