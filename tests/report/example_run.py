"""A run as it may look, every section filled, with titles that try to break out of the page."""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiment"))
from experiment_logs import CONFIG, DAY, HORIZON, START, experiment, traffic

from omnifeed.experiment.ledger import Ledger
from omnifeed.experiment.verdict import decide
from omnifeed.home import Home
from omnifeed.report.summary import RunSummary, Slot, StepSummary, UserSample

NASTY = '<script>alert("1")</script> & "Tea" $x^2$'


def decision(gain: float = 1.35, now: int = HORIZON, users: int = 3000) -> dict[str, Any]:
    test = experiment()
    rates = {"click": 0.3, "order": 0.08, "hide": 0.1}
    logs = traffic(test, users, seed=11, rates=rates, challenger=lambda name, _: gain if name == "order" else 1.0)
    with tempfile.TemporaryDirectory() as folder:
        return decide(logs.write(Path(folder)), test, CONFIG, now).to_dict()


def evaluation(blessed: bool = True) -> dict[str, Any]:
    random = np.random.default_rng(2)
    scenarios = ("all", "livestream", "search", "short_video")
    tasks = ("click", "long_view", "cart", "order", "hide")
    base = {f"auc_{task}": 0.66 + 0.03 * index for index, task in enumerate(tasks)}
    base |= {"recall@10": 0.11, "recall@50": 0.27, "recall@200": 0.52, "ndcg@10": 0.07, "ndcg@50": 0.12, "mrr": 0.09}
    base |= {f"log_loss_{task}": 0.4 / (index + 1) for index, task in enumerate(tasks)}
    base |= {f"grouped_auc_{task}": 0.61 for task in tasks} | {f"calibration_{task}": 1.03 for task in tasks}
    differences, metrics = [], {}
    for scenario in scenarios:
        for name, champion in base.items():
            retrieval = name.startswith(("recall", "ndcg", "mrr"))
            lift = random.normal(0.25 if retrieval else -0.02 if "loss" in name else 0.04, 0.03)
            width = 0.08 if scenario != "all" else 0.04
            row = {
                "scenario": scenario,
                "metric": name,
                "champion": champion,
                "challenger": champion * (1 + lift),
                "relative": lift,
                "low": lift - width if name != "auc_hide" else None,
                "high": lift + width if name != "auc_hide" else None,
            }
            differences.append(row)
            for model in ("release 0", "challenger"):
                metrics.setdefault(model, {}).setdefault(scenario, {})[name] = {
                    "value": champion,
                    "low": None,
                    "high": None,
                }
    fpr = np.linspace(0, 1, 60)
    calibration = {}
    for task, top in zip(tasks, (0.6, 0.5, 0.1, 0.04, 0.02), strict=True):
        predicted = np.geomspace(top / 40, top, 10)
        calibration[task] = {
            "predicted": predicted.tolist(),
            "observed": (predicted * np.exp(random.normal(0, 0.12, 10))).tolist(),
            "rows": [420.0] * 10,
        }
    return {
        "blessed": blessed,
        "reasons": [] if blessed else ["auc_click in search fell by 4.1 %, where 1.0 % is tolerated."],
        "metrics": metrics,
        "differences": differences,
        "roc": {"fpr": fpr.tolist(), "tpr": (fpr**0.45).tolist(), "threshold": (1 - fpr).tolist()},
        "calibration": calibration,
        "models": {"champion": "release 0", "challenger": "challenger"},
        "split": "test",
        "rows": 8_412,
        "requests": 894,
        "users": 711,
        "scenario_rows": {"all": 8_412, "livestream": 2_150, "search": 402, "short_video": 5_860},
        "baselines": {
            "item rate": {"all": {"auc_click": {"value": 0.6123, "low": 0.601, "high": 0.6236}}},
            "popularity, 7 days": {"short_video": {"recall@50": {"value": 0.2511, "low": None, "high": None}}},
        },
    }


def losses() -> dict[str, Any]:
    random = np.random.default_rng(3)
    steps = [
        {
            "step": step,
            "loss": 5 + 4 * math.exp(-step / 60) + float(random.normal(0, 0.12)),
            "retrieval": 4 + 2 * math.exp(-step / 50) + float(random.normal(0, 0.08)),
            "tasks": {"click": 0.5},
        }
        for step in range(1, 240, 2)
    ]
    epochs = [
        {
            "epoch": n,
            "loss": 5.0,
            "valid": {"loss": 1.1, "recall@50": r, "auc_click": a, "auc_order": a + 0.05},
            "score": 1,
        }
        for n, r, a in ((1, 0.18, 0.64), (2, 0.24, 0.68), (3, 0.27, 0.701), (4, 0.268, 0.699))
    ]
    return {"best_epoch": 3, "steps": steps, "epochs": epochs, "total_steps": 240}


def slots(titles: tuple[str, ...], source: str) -> tuple[Slot, ...]:
    kinds = ("livestream", "video", "product")
    return tuple(
        Slot(
            item_id=f"i{number}",
            title=title,
            kind=kinds[number % 3],
            price=None if number % 3 == 1 else 9.9 + 7 * number,
            currency="EUR",
            source=source if number % 4 else "trending",
        )
        for number, title in enumerate(titles)
    )


def ledger() -> tuple[dict[str, Any], ...]:
    with tempfile.TemporaryDirectory() as folder:
        book = Ledger(Home(Path(folder)))
        book.append("BOOTSTRAP", {"release": "0"}, START - DAY)
        book.append("DEPLOY", {"release": "1"}, START, once="release-1-vs-0")
        reasons = {"verdict": "PROMOTE", "experiment": "release-1-vs-0", "reasons": [{"code": "SUCCESS_SUPERIOR"}]}
        book.append("DECISION", reasons, HORIZON)
        book.append("PROMOTE", {"release": "1"}, HORIZON, expected_champion="0")
        return tuple(entry.to_dict() for entry in book.entries())


def full_run(verdict: dict[str, Any]) -> RunSummary:
    tea = ("Handmade ceramic teapot, 600 ml", "Green tea tasting with Mei, live", "How to brew gongfu style", NASTY)
    trend = (
        "Wireless earbuds, 24 h battery",
        "Evening flash sale, live",
        "Unboxing: the foldable e-bike",
        "Linen summer dress",
    )
    return RunSummary(
        title="Simulated market, run 20260318",
        now=HORIZON,
        description="simulated market, law default, seed 7, 14 days, 8,000 users",
        command="omnifeed run --data world",
        git_commit="68d1e1e4c0ffee",
        config_digest="ab12" * 16,
        steps=(
            StepSummary(name="validate", seconds=9.1, rows_in=98_112, rows_out=97_900, note="212 quarantined"),
            StepSummary(name="materialize", seconds=21.7, rows_in=97_900, rows_out=46_310),
            StepSummary(name="train", seconds=74.2, rows_in=37_120, note="kept epoch 3 of 4"),
            StepSummary(name="evaluate", seconds=11.0, rows_in=8_412),
            StepSummary(name="export", seconds=16.4, note="release 1"),
            StepSummary(name="infra_validate", seconds=13.9, note="12 checks"),
            StepSummary(name="deploy", seconds=0.3, note="50 % of users", state="done"),
            StepSummary(name="traffic", seconds=44.0, rows_out=59_870, note="5,987 requests over 14 simulated days"),
            StepSummary(name="gate", seconds=1.2),
        ),
        quality={
            "rows": {"events": 98_112, "items": 1_920, "users": 8_000},
            "accepted": {"events": 97_900, "items": 1_920, "users": 8_000},
            "quarantined": {"events": 212, "items": 0, "users": 0},
            "failures": [
                {
                    "table": "events",
                    "contract": "event_id is unique",
                    "rows": 198,
                    "of": 98_112,
                    "critical": False,
                    "example": "event_id=e-55-<b>1</b>",
                },
                {
                    "table": "events",
                    "contract": "item_id is in items",
                    "rows": 14,
                    "of": 98_112,
                    "critical": False,
                    "example": "item_id=i99999",
                },
            ],
        },
        losses=losses(),
        evaluation=evaluation(),
        release={
            "number": "1",
            "kind": "network",
            "created_ts": START,
            "window": [START - 14 * DAY, START - 1],
            "encode": {},
            "feature_digest": "f0" * 32,
            "config_digest": "ab12" * 16,
            "git_commit": "68d1e1e4c0ffee",
            "tasks": ["click", "long_view", "cart", "order", "hide"],
            "metrics": {},
            "parity": {
                "max_abs_error": {"user_encoder": 2.4e-7, "ranker": 6.0e-7},
                "top_k_equal": True,
                "tolerance": 1e-5,
            },
            "versions": {"torch": "2.13.0", "onnxruntime": "1.32.0"},
            "files": {"weights.safetensors": "aa" * 32, "models/ranker_1/1/model.onnx": "bb" * 32},
        },
        infra={
            "release": "1",
            "passed": True,
            "checks": [
                {"name": "unknown user", "passed": True, "detail": "10 items, unknown_user", "latency_ms": 4.2},
                {"name": "10,000 characters of query", "passed": True, "detail": "query_truncated", "latency_ms": 5.9},
            ],
        },
        decision=verdict,
        samples=(
            UserSample(
                user_id="u00421",
                scenario="search",
                query="teapot <img src=x>",
                recent=("Matcha whisk, bamboo", "Cast-iron kettle"),
                champion=slots(trend, "trending"),
                challenger=slots(tea, "dense"),
            ),
            UserSample(user_id="u07311", scenario="livestream", champion=slots(trend[::-1], "trending"), challenger=()),
        ),
        ledger=ledger(),
    )
