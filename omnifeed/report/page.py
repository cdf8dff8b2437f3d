"""The page that a person reads after a run: one static file, offline, with its pictures inside.

Everything from outside (titles, queries, ids, examples of bad rows) is escaped; pictures are the only markup that is
passed through, and they are made here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from omnifeed.home import write_atomic
from omnifeed.report import figures, views, words
from omnifeed.report.summary import RunSummary
from omnifeed.report.views import Headline

_FOLDER = Path(__file__).parent


def write_report(path: Path, run: RunSummary) -> None:
    """Write the report of a run, atomically.

    Args:
        path: an .html file.
        run: whatever the run came to; sections without data are left out.
    """
    decision = _marked(views.decision_view(run.decision)) if run.decision else None
    evaluation = _marked(views.evaluation_view(run.evaluation)) if run.evaluation else None
    release = views.release_view(run.release) if run.release else None
    losses = Markup(figures.learning_curves(run.losses)) if run.losses and run.losses.get("epochs") else None
    longest = max((step.seconds for step in run.steps), default=1.0) or 1.0
    contents = [
        (name, title)
        for name, title, there in (
            ("experiment", "Experiment", decision),
            ("lift", "Cumulative lift", run.lift),
            ("samples", "What users saw", run.samples),
            ("steps", "Steps", run.steps),
            ("quality", "Data quality", run.quality),
            ("training", "Learning", losses),
            ("evaluation", "Offline", evaluation),
            ("release", "Release", release),
            ("infra", "Serving checks", run.infra),
            ("ledger", "Ledger", run.ledger),
        )
        if there
    ]
    page = _template("page.html.j2").render(
        run=run,
        headline=headline(run),
        contents=contents,
        decision=decision,
        lift=views.lift_view(run.lift) if run.lift else None,
        evaluation=evaluation,
        release=release,
        losses=losses,
        steps=[
            {
                "name": step.name,
                "state": step.state,
                "tone": {"failed": "bad", "stopped": "warn"}.get(step.state, "muted"),
                "seconds": step.seconds,
                "width": f"{100 * step.seconds / longest:.1f}",
                "what": _step_words(step.rows_in, step.rows_out, step.note),
            }
            for step in run.steps
        ],
        total_seconds=sum(step.seconds for step in run.steps),
        failed_checks=sum(not check["passed"] for check in (run.infra or {"checks": ()})["checks"]),
        ledger=[{**entry, "what": words.ledger_what(entry)} for entry in run.ledger],
    )
    write_atomic(path, page)


def evaluation_html(evaluation: dict[str, Any]) -> str:
    """The offline comparison as a page of its own, for an HTML artifact. Takes `Evaluation.to_dict()`."""
    view = _marked(views.evaluation_view(evaluation))
    return _template("fragment.html.j2").render(kind="evaluation", view=view, title="Offline, against the champion")


def decision_html(decision: dict[str, Any]) -> str:
    """The verdict as a page of its own, for an HTML artifact. Takes `Decision.to_dict()`."""
    view = _marked(views.decision_view(decision))
    return _template("fragment.html.j2").render(
        kind="decision", view=view, title=f"Experiment {decision['experiment']}"
    )


def decision_markdown(decision: dict[str, Any]) -> str:
    """The verdict as Markdown, for a Markdown artifact. Takes `Decision.to_dict()`."""
    lines = [f"# {decision['verdict']}", "", _plain(decision["paragraph"]), "", "| rule | state | |", "|---|---|---|"]
    lines += [f"| {rule['name']} | {rule['state']} | {_plain(rule['text'])} |" for rule in decision["path"]]
    if decision["metrics"]:
        lines += ["", "| metric | champion | challenger | effect | interval | reads |", "|---|---:|---:|---:|---:|---|"]
        lines += [
            f"| {_plain(row['title'])}{' · ' + _plain(row['scenario']) if row['scenario'] else ''} "
            f"| {words.metric(row['champion'])} | {words.metric(row['challenger'])} | {words.percent(row['relative'])} "
            f"| {words.percent(row['low'])} … {words.percent(row['high'])} | {row['outcome']} |"
            for row in decision["metrics"]
        ]
    return "\n".join(lines) + "\n"


def headline(run: RunSummary) -> Headline:
    """The verdict; without one, how far the run came."""
    if run.failure:
        return Headline("Stopped", "bad", run.failure)
    if run.decision:
        tone = views.TONES[run.decision["verdict"]]
        return Headline(views.verdict_label(run.decision), tone, run.decision["paragraph"])
    if run.evaluation and not run.evaluation["blessed"]:
        return Headline("Not deployed", "warn", " ".join(run.evaluation["reasons"]))
    if run.infra and not run.infra["passed"]:
        return Headline("Not deployed", "bad", f"Release {run.infra['release']} did not pass its serving checks.")
    if run.release:
        return Headline(
            "In front of users",
            "neutral",
            f"Release {run.release['number']} is trained, checked and deployed; its experiment is still to be judged.",
        )
    return Headline("No release yet", "neutral", "The run has not come to a release.")


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "count": words.count,
        "percent": words.percent,
        "share": words.share,
        "metric": words.metric,
        "p": words.p_value,
        "seconds": words.seconds,
        "money": words.money,
        "moment": words.moment,
    }
    environment.globals["css"] = Markup((_FOLDER / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(name)


def _marked(view: dict[str, Any]) -> dict[str, Any]:
    """Let the pictures through the templates' escaping."""
    pictures = ("forest", "daily", "roc")
    return {name: Markup(value) if name in pictures else value for name, value in view.items()}


def _step_words(rows_in: int | None, rows_out: int | None, note: str) -> str:
    rows = [
        f"{words.count(rows_in)} in" if rows_in is not None else "",
        f"{words.count(rows_out)} out" if rows_out is not None else "",
        note,
    ]
    return ", ".join(part for part in rows if part)


def _plain(text: str) -> str:
    """Text that Markdown leaves alone in a table's cell."""
    for sign in "\\`*_<>|[]#":
        text = text.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return text.replace("\n", " ")
