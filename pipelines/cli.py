"""The `omnifeed` command. Heavy libraries load inside the command that needs them.

Errors are one sentence on what is wrong and one on what to do; exit code 2 means bad input, 75 that trying again later
may help, 1 anything else.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnifeed import __version__
from omnifeed.config import Config
from omnifeed.errors import InputError, OmnifeedError
from omnifeed.home import Home
from omnifeed.pipelines.catalogue import catalogue_group
from omnifeed.pipelines.ledger import ledger_group
from omnifeed.pipelines.logs import logs_group
from omnifeed.pipelines.ui import ui_command

if TYPE_CHECKING:
    from collections.abc import Sequence

RETRY_LATER = 75  # EX_TEMPFAIL of sysexits.h
CONFIGS = Path(__file__).parent / "configs"


def emit(value: dict[str, Any], as_json: bool, text: str) -> None:
    """Print the result for a person, or as one JSON document."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, default=str) if as_json else text)


def stamp(ts: int) -> str:
    """UTC microseconds as a person reads them."""
    return datetime.fromtimestamp(ts / 1e6, UTC).strftime("%Y-%m-%d %H:%M")


def settings(data: str, path: str | None, config: Path | None) -> Config:
    """The run config of a data source, with the path of its files."""
    loaded = Config.load(config or CONFIGS / f"{data}.toml")
    if path is None:
        return loaded
    return dataclasses.replace(loaded, data=dataclasses.replace(loaded.data, path=str(Path(path).absolute())))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
config_option = click.option(
    "--config", type=click.Path(path_type=Path), help="TOML run config (default: the one of --data)."
)
data_option = click.option(
    "--data",
    default="world",
    show_default=True,
    help="Run config to start from: world, kuairand, or another in pipelines/configs.",
)
path_option = click.option("--path", help="Folder of the source's files.")
url_option = click.option("--url", default="127.0.0.1:8001", show_default=True, help="Triton's gRPC address.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """One model for livestreams, short videos and search, promoted only on evidence.

    State lives under OMNIFEED_HOME (default ./.omnifeed).
    """


cli.add_command(catalogue_group)
cli.add_command(ledger_group)
cli.add_command(logs_group)
cli.add_command(ui_command)


@cli.command()
@data_option
@path_option
@config_option
@json_option
def run(data: str, path: str | None, config: Path | None, as_json: bool) -> None:
    """Run the whole loop once: training pipeline, traffic, promotion pipeline, report."""
    from omnifeed.pipelines.loop import run_loop

    outcome = run_loop(Home.from_env(), settings(data, path, config), show=not as_json)
    emit(outcome.to_dict(), as_json, outcome.text())


@cli.command()
@data_option
@path_option
@config_option
@click.option("--simulated-clock", is_flag=True, help="Let requests carry their own time (implied by --data world).")
@click.option("--traces", help="OpenTelemetry collector, for example http://127.0.0.1:4318/v1/traces.")
def serve(data: str, path: str | None, config: Path | None, simulated_clock: bool, traces: str | None) -> None:
    """Serve the champion, and the challenger of a running experiment, until interrupted."""
    import signal

    from omnifeed.serving.server import LocalServer

    loaded = settings(data, path, config)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    simulated = simulated_clock or loaded.data.source == "world"
    with LocalServer(Home.from_env(), loaded, simulated_clock=simulated, traces=traces) as server:
        click.echo(f"gRPC on {server.url}; Ctrl-C stops. Logs: {server.log.parent}")
        try:
            while True:
                server.watch()
                time.sleep(1)
        except KeyboardInterrupt:
            click.echo("Draining.")


@cli.command()
@click.option("--user", required=True, help="User id.")
@click.option("--scenario", required=True, help="One of the release's scenarios.")
@click.option("--query", help="What the user typed, for search.")
@click.option("-k", default=10, show_default=True, help="Items wanted.")
@click.option("--arm", help="Arm to answer with, where your platform assigns.")
@click.option("--now", type=int, help="Time of the request, UTC microseconds; needs a simulated clock.")
@url_option
@json_option
def recommend(
    user: str, scenario: str, query: str | None, k: int, arm: str | None, now: int | None, url: str, as_json: bool
) -> None:
    """Ask a running server for recommendations."""
    from omnifeed.export.following import load_catalogue
    from omnifeed.serving.client import Client

    with Client(url) as client:
        answer = client.recommend(user, scenario, query=query, k=k, arm=arm, now=now)
    catalogue = load_catalogue(Home.from_env())
    wanted = set(answer.item_ids)
    names = {
        item: title
        for item, title in zip(catalogue.texts["item_id"], catalogue.texts["title"], strict=True)
        if item in wanted
    }
    rows = [
        f"{rank:>3}  {score:>10.5f}  {source:<10}  {item:<14}  {names.get(item) or ''}"
        for rank, (item, score, source) in enumerate(
            zip(answer.item_ids, answer.scores, answer.sources, strict=True), start=1
        )
    ]
    head = f"arm {answer.arm}, release {answer.release}, request {answer.request_id}"
    notes = [f"degraded: {', '.join(answer.degraded)}"] if answer.degraded else []
    emit(dataclasses.asdict(answer), as_json, "\n".join([head, *notes, *rows]))


@cli.command()
@data_option
@path_option
@config_option
@url_option
@json_option
def traffic(data: str, path: str | None, config: Path | None, url: str, as_json: bool) -> None:
    """Send the simulated market's traffic of the running experiment to a running server."""
    from omnifeed.experiment.deploy import the_experiment
    from omnifeed.pipelines.loop import drawn_progress
    from omnifeed.pipelines.traffic import send_traffic
    from omnifeed.serving.client import Client

    home, loaded = Home.from_env(), settings(data, path, config)
    experiment = the_experiment(home)
    with home.lock(), Client(url) as client, drawn_progress(not as_json) as progress:
        sent = send_traffic(home, loaded, experiment, client, progress)
    emit(sent.to_dict(), as_json, f"{sent.requests} requests of {sent.users} users, p50 {sent.p50_ms} ms.")


@cli.command()
@data_option
@path_option
@config_option
@click.option("--now", type=int, help="Log time of the decision, UTC microseconds (default: the clock).")
@click.option("--exposures", type=click.Path(path_type=Path), help="Your own table: one row an item shown.")
@click.option("--outcomes", type=click.Path(path_type=Path), help="Your own table: one row an outcome.")
@click.option("--experiment", type=click.Path(path_type=Path), help="TOML: name, start, arms, [experiment].")
@click.option("--before", type=click.Path(path_type=Path), help="Your own table: totals by user before the start.")
@json_option
def gate(
    data: str,
    path: str | None,
    config: Path | None,
    now: int | None,
    exposures: Path | None,
    outcomes: Path | None,
    experiment: Path | None,
    before: Path | None,
    as_json: bool,
) -> None:
    """Print the verdict on the running experiment, or on your own tables; changes nothing.

    With --exposures, --outcomes and --experiment nothing else of Omnifeed is needed: see docs/experiments.md.
    """
    moment = time.time_ns() // 1_000 if now is None else now
    if exposures or outcomes or experiment:
        from omnifeed.experiment.alone import decide_alone

        if not (exposures and outcomes and experiment):
            raise InputError(
                "The gate on your own tables needs --exposures, --outcomes and --experiment.", "Give all three."
            )
        decision = decide_alone(exposures, outcomes, experiment, moment, before)
    else:
        from omnifeed.experiment.gate import decide_current

        decision = decide_current(Home.from_env(), settings(data, path, config), moment)
    emit(decision.to_dict(), as_json, f"{decision.verdict.value}: {decision.paragraph}")


@cli.command()
@data_option
@path_option
@config_option
@click.option("--now", type=int, help="Log time to look from, UTC microseconds (default: the clock).")
@json_option
def lift(data: str, path: str | None, config: Path | None, now: int | None, as_json: bool) -> None:
    """What all promotions together have brought, against the users who were held back from them."""
    from omnifeed.experiment.gate import lift_current

    moment = time.time_ns() // 1_000 if now is None else now
    found = lift_current(Home.from_env(), settings(data, path, config), moment)
    if found is None:
        raise InputError(
            "There is no hold-back group.", "Set [experiment] holdback before the next experiment: see docs."
        )
    emit(found.to_dict(), as_json, found.text())


@cli.group(name="experiment")
def experiment_group() -> None:
    """Design an experiment before it starts."""


@experiment_group.command(name="plan")
@data_option
@path_option
@config_option
@click.option("--now", type=int, help="End of the past to plan from, UTC microseconds (default: the log's end).")
@click.option(
    "--traffic-share", default=1.0, show_default=True, help="Share of the log's users whom the experiment will reach."
)
@json_option
def experiment_plan(
    data: str, path: str | None, config: Path | None, now: int | None, traffic_share: float, as_json: bool
) -> None:
    """Sample size, duration and smallest effect by metric, and the pre-registration of the next experiment."""
    from omnifeed.experiment.plan import log_end, make_plan, plan_text, register
    from omnifeed.quality.lake import accepted

    home = Home.from_env()
    events = accepted(home)
    plan = make_plan(events, settings(data, path, config), log_end(events) if now is None else now, traffic_share)
    written = register(home, plan)
    emit({**plan.to_dict(), "written": str(written)}, as_json, f"{plan_text(plan)}\nPre-registration: {written}")


@cli.command()
@data_option
@path_option
@config_option
@click.option("--now", type=int, help="Log time of the decision, UTC microseconds (default: the clock).")
@json_option
def promote(data: str, path: str | None, config: Path | None, now: int | None, as_json: bool) -> None:
    """Run the promotion pipeline: verdict, act, collect."""
    from omnifeed.pipelines.loop import run_promotion

    home = Home.from_env()
    with home.lock():
        record = run_promotion(home, settings(data, path, config), now or 0, show=not as_json)
    emit(record, as_json, f"{record['verdict']}: {record['paragraph']}")


@cli.command()
@data_option
@path_option
@config_option
@click.option("--now", type=int, help="Log time to look from, UTC microseconds (default: the clock).")
@click.option("--retrain/--no-retrain", default=True, show_default=True, help="Train again where drift asks for it.")
@json_option
def monitor(data: str, path: str | None, config: Path | None, now: int | None, retrain: bool, as_json: bool) -> None:
    """Run the monitoring pipeline: yesterday against other days under the champion; drift retrains.

    The page and the metrics are left under monitoring/ in the home: see docs/monitoring.md.
    """
    from omnifeed.pipelines.loop import run_monitoring

    home = Home.from_env()
    with home.lock():
        found = run_monitoring(home, settings(data, path, config), now or 0, retrain, show=not as_json)
    follows = "Trained again." if found["retrained"] else found["retraining"]["reason"]
    page = home.root / "monitoring" / "monitoring.html"
    emit(found, as_json, f"{found['state']}: {found['paragraph']} {follows}\nPage: {page}")


@cli.command()
@click.option("--to", help="Release number (default: the champion before this one).")
@click.option("--reason", required=True, help="Why; kept in the ledger.")
@json_option
def rollback(to: str | None, reason: str, as_json: bool) -> None:
    """Move the champion back. Nothing is rebuilt; a running server follows within a second."""
    from omnifeed.experiment.ledger import Ledger

    entry = Ledger(Home.from_env()).rollback(time.time_ns() // 1_000, to=to, reason=reason)
    emit(dataclasses.asdict(entry), as_json, f"The champion is release {entry.champion} again.")


@cli.command(name="compile")
@click.option("--out", default="compiled", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@json_option
def compile_pipelines(out: Path, as_json: bool) -> None:
    """Write the pipelines as Kubeflow IR YAML."""
    from omnifeed.pipelines.submit import compile_all

    written = [str(path) for path in compile_all(out)]
    emit({"written": written}, as_json, "\n".join(written))


@cli.command()
@click.option("--host", required=True, help="Kubeflow Pipelines endpoint.")
@click.option(
    "--pipeline", type=click.Choice(["training", "promotion", "monitoring"]), default="training", show_default=True
)
@click.option("--namespace", help="Kubeflow profile namespace.")
@click.option("--cron", help="Make it a recurring run, for example '0 0 2 * * *'.")
@data_option
@path_option
@config_option
@json_option
def submit(
    host: str,
    pipeline: str,
    namespace: str | None,
    cron: str | None,
    data: str,
    path: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Upload a pipeline to Kubeflow and start a run. A token is read from KFP_TOKEN where one is needed."""
    from omnifeed.pipelines.submit import submit_run

    started = submit_run(host, pipeline, settings(data, path, config), namespace, cron)
    emit(started, as_json, f"Started {started['kind']} {started['id']}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; turns errors into two sentences and an exit code."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, about each other
    try:
        cli.main(args=None if arguments is None else list(arguments), standalone_mode=True)
    except OmnifeedError as error:
        click.echo(f"Error: {error.problem}\n       {error.action}", err=True)
        sys.exit(RETRY_LATER if error.retryable else error.exit_code)
