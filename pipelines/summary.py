"""From what the steps recorded to the report of one run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omnifeed.config import Config
from omnifeed.export.provenance import git_commit
from omnifeed.home import Home
from omnifeed.report.beside import beside
from omnifeed.report.summary import RunSummary, Slot, StepSummary, UserSample

LEDGER_TAIL = 12
SHOWN_SAMPLES = 2  # of the answers to users, in what the command prints


def steps_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a run's steps in the order in which they started."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "steps").glob("*.json")]
    return {record["step"]: record for record in sorted(records, key=lambda record: record["started"])}


def summarise(home: Home, config: Config, run: str, command: str, now: int, failure: str = "") -> RunSummary:
    """Gather a run's records; a step that did not happen leaves its section out."""
    from omnifeed.experiment.gate import lift_current
    from omnifeed.experiment.ledger import Ledger

    folder = home.runs / run
    steps = steps_of(folder)
    lift = lift_current(home, config, now)
    info = {name: record["info"] for name, record in steps.items() if record["state"] == "done"}
    served = info.get("traffic", {})
    return RunSummary(
        title=f"{config.data.source}, run {run}",
        now=now,
        description=info.get("ingest", {}).get("description", ""),
        command=command,
        git_commit=git_commit(),
        config_digest=config.digest,
        steps=tuple(
            StepSummary(
                name=name.replace("_", " "),
                seconds=record["seconds"],
                note=_note(name, record["info"]),
                state=record["state"] if record["state"] != "running" else "stopped",
            )
            for name, record in steps.items()
            if not name.startswith("end_of_")
        ),
        quality=info.get("validate"),
        losses=info.get("train"),
        evaluation=info.get("evaluate"),
        release=info.get("export"),
        infra=info.get("infra_validate"),
        decision=info.get("gate"),
        lift=lift.to_dict() if lift and lift.periods else None,
        samples=tuple(_sample(entry) for entry in served.get("recommendations", [])),
        ledger=tuple(entry.to_dict() for entry in Ledger(home).entries()[-LEDGER_TAIL:]),
        failure=failure,
    )


def dropped_rows(steps: dict[str, dict[str, Any]]) -> list[str]:
    """What validation quarantined, by contract."""
    failures = steps.get("validate", {}).get("info", {}).get("failures", [])
    return [f"  {failure['rows']:>9,} {failure['table']} quarantined: {failure['contract']}" for failure in failures]


def offline_tables(steps: dict[str, dict[str, Any]]) -> list[str]:
    """The offline comparison: every model in a row, the larger scenarios in columns, one table a metric."""
    info = steps.get("evaluate", {}).get("info")
    if not info:
        return []
    compared = beside(info)
    widths = [max(14, len(name) + 2) for name, _ in compared.scenarios]

    def line(label: str, cells: Iterable[str]) -> str:
        return f"  {label:<22}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    lines = ["", f"offline, the {info['split']} days, {info['users']:,} users; ± half the 95 % interval over users"]
    lines.append(line("impressions", (f"{rows:,}" for _, rows in compared.scenarios)))
    for table in compared.tables:
        lines += ["", line(table.metric, (name for name, _ in compared.scenarios))]
        lines += [line(model, (cell.text if cell else "–" for cell in cells)) for model, cells in table.rows]
    return lines


def answers(run: RunSummary) -> list[str]:
    """What the server answered a few users of the log, both releases."""
    lines = []
    for sample in run.samples[:SHOWN_SAMPLES]:
        asked = f', "{sample.query}"' if sample.query else ""
        lines += ["", f"asked over gRPC: user {sample.user_id} in {sample.scenario}{asked}"]
        for label, words in (
            ("lately clicked", sample.recent),
            ("champion", [slot.title for slot in sample.champion]),
            ("challenger", [slot.title for slot in sample.challenger]),
        ):
            lines.append(f"  {label:<16}" + (" · ".join(words) or "nothing"))
    return lines


def _note(step: str, info: dict[str, Any]) -> str:
    """What a reader should know of a step, in a few words."""
    if not info:
        return ""
    match step:
        case "ingest":
            return f"{info['events']:,} events, {info['items']:,} items, {info['users']:,} users"
        case "validate":
            return f"{sum(info['quarantined'].values()):,} rows quarantined"
        case "materialize":
            return ", ".join(f"{count:,} {split}" for split, count in info["rows"].items()) + " rows"
        case "champion" | "infra_validate":
            return f"release {info['release']}"
        case "train":
            return f"{info['total_steps']:,} steps, best epoch {info['best_epoch']}"
        case "evaluate":
            return "at least as good" if info["blessed"] else "no better than the champion"
        case "export":
            return f"release {info['number']}"
        case "deploy":
            return str(info["name"])
        case "traffic":
            if "traffic" not in info:
                return "served; there is no live traffic of these users"
            sent = info["traffic"]
            return f"{sent['requests']:,} requests of {sent['users']:,} users, p50 {sent['p50_ms']:.0f} ms"
        case "gate":
            return str(info["verdict"])
        case "act":
            return f"champion: release {info['champion']}"
        case "collect":
            return f"{info['events']:,} events kept"
    return ""


def _sample(entry: dict[str, Any]) -> UserSample:
    def slots(arm: str) -> tuple[Slot, ...]:
        return tuple(
            Slot(
                item_id=item["item_id"],
                title=_title(item),
                kind=item["kind"] or "",
                price=item["price"],
                currency="USD" if item["price"] is not None else "",
                source=item["source"],
            )
            for item in entry["arms"].get(arm, {}).get("items", [])
        )

    return UserSample(
        user_id=entry["user"],
        scenario=entry["scenario"],
        query=entry["query"],
        recent=tuple(_title(item) for item in entry["clicked"]),
        champion=slots("champion"),
        challenger=slots("challenger"),
    )


def _title(item: dict[str, Any]) -> str:
    """The title; without one, id and category."""
    return item["title"] or item["item_id"] + (f" ({item['category']})" if item["category"] else "")
