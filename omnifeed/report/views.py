"""From the steps' dictionaries to what the templates print: labels, tones, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from omnifeed.report import figures, words
from omnifeed.report.beside import beside

TONES = {"PROMOTE": "good", "HOLD": "warn", "REJECT": "bad", "INVALID": "neutral"}
_MARKS = {"passed": "✓", "failed": "✕", "open": "…", "not reached": "·"}
_OUTCOMES = {
    "superior": "good",
    "non-inferior": "good",
    "inferior": "bad",
    "harm": "bad",
    "not shown": "warn",
    "no harm shown": "neutral",
    "not judged": "neutral",
}
_COUNTS = {
    "exposures": "exposure lines",
    "exposures_used": "of them used",
    "exposures_viewed": "of those viewed",
    "exposures_repeated": "repeated (the first counts)",
    "exposures_missing": "positions of an answer without a line",
    "exposures_outside": "outside the experiment's time",
    "exposures_before": "of them before the start",
    "exposures_foreign": "under another experiment's name",
    "requests": "requests",
    "outcomes": "outcome lines known by then",
    "outcomes_used": "of them used",
    "outcomes_repeated": "repeated",
    "outcomes_unexposed": "without exposure (never joined)",
    "outcomes_outside": "of exposures outside the experiment",
    "outcomes_late": "after the attribution window",
    "outcomes_early": "before their exposure",
    "outcomes_skewed": "known before they happened",
    "outcomes_unknown": "with a name that no metric reads",
    "torn": "torn last lines",
    "unreadable": "unreadable lines",
    "malformed": "negative or infinite values",
    "users_crossed": "challenger's users answered by the champion at times",
    "users_misassigned": "users logged under an arm that is not theirs",
    "users_held": "users of the hold-back group (in neither arm)",
    "users_too_busy": "bots left out: too many requests on a day",
    "users_clicking_all": "bots left out: clicked everything they viewed",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A number with its name, and a word more."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True, slots=True)
class Headline:
    """The first thing on the page."""

    label: str
    tone: str
    text: str


def decision_view(decision: dict[str, Any]) -> dict[str, Any]:
    """What the experiment's section prints."""
    metrics = [{**row, "label": _place(row), "tone": _effect_tone(row)} for row in decision["metrics"]]
    bots = [{**row, "label": _place(row), "tone": _effect_tone(row)} for row in decision["with_bots"]]
    shown = [row for row in metrics if row["scenario"] is None or row["margin"] is not None]
    alpha = decision["alpha"]
    level = f"{(1 - 2 * alpha) * 100:.3g} %"
    titles = {row["name"]: row["title"] for row in metrics}
    overall = next((split for split in decision["splits"] if split["dimension"] == "all"), None)
    counts = decision["counts"]
    facts = [
        Fact("Champion", f"Release {decision['champion']}", _users(overall, "champion")),
        Fact("Challenger", f"Release {decision['challenger']}", _users(overall, "challenger")),
        Fact("Ran", f"{decision['days_elapsed']:.3g} days", f"from {words.moment(decision['start_ts'])[:10]}"),
        Fact("Requests", words.count(counts["requests"]), f"{words.count(counts['exposures_used'])} exposures"),
        Fact("Outcomes", words.count(counts["outcomes_used"]), "attributed"),
    ]
    if decision["srm_p_value"] is not None:
        facts.append(Fact("Sample ratio", f"p = {words.p_value(decision['srm_p_value'])}", "users, overall"))
    return {
        "label": verdict_label(decision),
        "tone": TONES[decision["verdict"]],
        "paragraph": decision["paragraph"],
        "facts": facts,
        "path": [{**rule, "mark": _MARKS[rule["state"]]} for rule in decision["path"]],
        "tables": [
            (title, rows)
            for title, rows in (
                ("", [row for row in metrics if row["scenario"] is None]),
                ("Every metric in every scenario", [row for row in metrics if row["scenario"] is not None]),
                ("With the users who were left out as bots", bots),
            )
            if rows
        ],
        "alpha": f"{alpha:g}",
        "level": level,
        "forest": figures.forest(
            [_forest_row(row) for row in shown],
            "effects",
            "Relative effects with intervals: "
            + "; ".join(f"{row['label']} {words.percent(row['relative'])}" for row in shown),
            f"challenger against champion, per user ({level} interval)",
        )
        if shown
        else "",
        "daily": figures.daily_sequence(decision["daily"], titles) if len(decision["daily"]) > 1 and titles else "",
        "splits": [
            {
                **split,
                "label": _group(split),
                "share": split["challenger"] / max(split["champion"] + split["challenger"], 1),
                "planned": 1 - split["planned_champion_share"],
                "tone": "bad" if split["p_value"] <= split["threshold"] else "good",
                "reads": "mismatch" if split["p_value"] <= split["threshold"] else "as planned",
            }
            for split in decision["splits"]
        ],
        "counts": [
            (label, counts[name])
            for name, label in _COUNTS.items()
            if counts[name] or name in ("exposures", "outcomes")
        ],
    }


def lift_view(lift: dict[str, Any]) -> dict[str, Any]:
    """What the cumulative lift's section prints: the present champion first."""
    periods = [
        {**period, "rows": [{**row, "label": _place(row), "tone": _lift_tone(row)} for row in period["results"]]}
        for period in reversed(lift["periods"])
    ]
    return {**lift, "periods": periods, "level": f"{(1 - 2 * lift['alpha']) * 100:.3g} %"}


def evaluation_view(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What the offline section prints."""
    rows = evaluation["differences"]
    scenarios = sorted({row["scenario"] for row in rows}, key=lambda name: (name != "all", name))
    names = list(dict.fromkeys(row["metric"] for row in rows))
    lead = [name for name in names if name.startswith(("auc_", "recall@", "ndcg@", "mrr"))]
    pictured = _pictured(names)
    cells = {(row["metric"], row["scenario"]): {**row, "tone": _difference_tone(row)} for row in rows}

    def table(title: str, caption: str, metrics: Sequence[str], folded: bool) -> dict[str, Any]:
        return {
            "title": title,
            "caption": caption,
            "scenarios": scenarios,
            "folded": folded,
            "rows": [{"metric": name, "cells": [cells.get((name, each)) for each in scenarios]} for name in metrics],
        }

    forest = [
        {
            "label": f"{name}, {scenario}" if scenario == "all" else scenario,
            "relative": cell["relative"],
            "low": cell["low"],
            "high": cell["high"],
            "tone": cell["tone"] if cell["tone"] in ("good", "bad") else "neutral",
            "margin": None,
            "lead": scenario == "all",
        }
        for name in pictured
        for scenario in scenarios
        if (cell := cells.get((name, scenario))) is not None
    ]
    caption = (
        "Challenger, and below it the relative change on the champion's value; coloured where the interval excludes 0."
    )
    rest = [name for name in names if name not in lead]
    tables = [table("Metrics", caption, lead, False)] if lead else []
    if rest:
        tables.append(table("More metrics: grouped AUC, log loss, calibration", caption, rest, True))
    return {
        **{name: evaluation[name] for name in ("blessed", "reasons", "rows", "requests", "users", "split")},
        "champion": evaluation["models"]["champion"],
        "challenger": evaluation["models"]["challenger"],
        "beside": beside(evaluation),
        "tables": tables,
        "forest": figures.forest(
            forest,
            "offline",
            "Relative change of offline metrics by scenario: "
            + "; ".join(f"{row['label']} {words.percent(row['relative'])}" for row in forest),
            "challenger against champion (95 % interval over users)",
        )
        if forest
        else "",
        "roc": figures.roc_and_calibration(evaluation["roc"], evaluation["calibration"])
        if evaluation["roc"].get("fpr")
        else "",
    }


def release_view(release: dict[str, Any]) -> dict[str, Any]:
    """The release card."""
    first, last = release["window"]
    parity = release["parity"]
    errors = parity.get("max_abs_error") or {}
    facts = [
        Fact("Kind", release["kind"], ", ".join(release["tasks"])),
        Fact("Trained until", words.moment(last)[:10], f"from {words.moment(first)[:10]}") if last else None,
        Fact("Made", words.moment(release["created_ts"])[:10], f"commit {release['git_commit'][:10]}"),
        Fact(
            "PyTorch to ONNX",
            f"{max(errors.values()):.1g}",
            f"largest difference; top k {'equal' if parity.get('top_k_equal') else 'differs'}",
        )
        if errors
        else None,
        Fact("Files", str(len(release["files"])), "each with its SHA-256"),
        Fact("Config", release["config_digest"][:8], f"features {release['feature_digest'][:8]}"),
    ]
    return {
        "number": release["number"],
        "facts": [fact for fact in facts if fact is not None],
        "versions": sorted(release["versions"].items()),
        "files": sorted(release["files"].items()),
    }


def verdict_label(decision: dict[str, Any]) -> str:
    """A HOLD that ends the test is told apart from one that goes on."""
    return str(decision["verdict"]) + (", final" if decision["verdict"] == "HOLD" and decision["final"] else "")


def _users(split: dict[str, Any] | None, arm: str) -> str:
    return "" if split is None else f"{words.count(split[arm])} users"


def _group(split: dict[str, Any]) -> str:
    match split["dimension"]:
        case "all":
            return "all traffic"
        case "day":
            return f"first seen on day {int(split['value']) + 1}"
        case "excluded":
            return f"left out: {split['value']}"
        case _:
            return str(split["value"])


def _place(row: dict[str, Any]) -> str:
    return str(row["title"]) if row["scenario"] is None else f"{row['title']} · {row['scenario']}"


def _effect_tone(row: dict[str, Any]) -> str:
    return _OUTCOMES[row["outcome"]]


def _lift_tone(row: dict[str, Any]) -> str:
    """Good or bad where the whole interval is."""
    if row["low"] is None or row["low"] <= 0 <= row["high"]:
        return "neutral"
    return "good" if (row["low"] > 0) != row["lower_is_better"] else "bad"


def _forest_row(row: dict[str, Any]) -> dict[str, Any]:
    margin = row["margin"]
    return {
        "label": row["label"],
        "relative": row["relative"],
        "low": row["low"],
        "high": row["high"],
        "tone": row["tone"] if row["tone"] in ("good", "bad") else "neutral",
        "margin": None if margin is None else margin if row["lower_is_better"] else -margin,
        "lead": row["scenario"] is None,
    }


def _difference_tone(row: dict[str, Any]) -> str:
    lower_is_better = row["metric"].startswith("log_loss")
    if row["low"] is None or row["high"] is None or row["metric"].startswith("calibration"):
        return "neutral"
    if row["low"] > 0 or row["high"] < 0:
        return "good" if (row["low"] > 0) is not lower_is_better else "bad"
    return "neutral"


def _pictured(names: Iterable[str]) -> list[str]:
    """One ranking metric and two of retrieval: enough for a picture."""
    known = list(names)
    first = next((name for name in known if name.startswith("auc_")), None)
    recalls = [name for name in known if name.startswith("recall@")]
    ndcgs = [name for name in known if name.startswith("ndcg@")]
    return [name for name in (first, recalls[len(recalls) // 2] if recalls else None, *ndcgs[:1]) if name]
