"""What else could rank the tabs of KuaiRand-Pure, beside the one network: PLE, a network for every tab, item rates.

    python benchmarks/kuairand_baselines.py try-ple NAME [FIELD=VALUE ...]
    python benchmarks/kuairand_baselines.py try-per-tab NAME [SECTION.FIELD=VALUE ...]
    python benchmarks/kuairand_baselines.py test [SEEDS]

Rows, days, metrics and the bootstrap are those of benchmarks/kuairand_ranking.py, whose trained networks `test` reads
from $OMNIFEED_HOME/kuairand_ranking/seeds. The `try-` commands read the validation day alone and append a line to
benchmarks/kuairand_trials.jsonl; `test` reads the test week and writes results/kuairand_baselines.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kuairand_ple as ple
import kuairand_ranking as kr
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from record import row, write_result
from unified_variants import Variant

from omnifeed.config import Config
from omnifeed.evaluation.metrics import poisson_weights
from omnifeed.model.ranker import parents
from omnifeed.training.calibration import calibrate
from omnifeed.training.dataset import load_training_set

Answers = dict[str, np.ndarray[Any, Any]]
OTHERS = "the other tabs"
PER_TAB_SEEDS = 1  # six networks a seed, which take twice the time of one for all tabs
#: An item's rate as a score, by name: a column of the training set for each task.
RATES = {
    "item rate, 7 days": "item_{}_rate_7d",
    "item rate in the tab, 7 days": "item_scenario_{}_rate_7d",
    "item rate, 28 days": "item_{}_rate_28d",
}


def ple_answers(training_set: Path, settings: ple.Settings, seed: int, split: str) -> tuple[Answers, int]:
    """Calibrated as the network is, on the validation day; and the best epoch."""
    torch.set_num_threads(1)
    parts = {}
    for name in ("train", "valid", split):
        if name not in parts:
            data = load_training_set(training_set, kr.TASKS, (name,))
            parts[name] = ple.Inputs.of(data, settings.history)
    tabs = [data.spec.scenario_id(tab) for tab in kr.MACRO]
    model, epoch = ple.fit(settings, data.spec, tabs, parts["train"], parts["valid"], seed)
    valid, scenarios = parts["valid"], len(data.spec.scenarios) + 1
    scale, bias = calibrate(ple.logits_of(model, valid), valid.labels, valid.scenario, scenarios, parents(kr.TASKS))
    asked = parts[split].scenario
    p = 1 / (1 + np.exp(-(ple.logits_of(model, parts[split]) * scale[asked] + bias[asked])))
    return {task: p[:, index] for index, task in enumerate(kr.TASKS)}, epoch


def tab_set(training_set: Path, folder: Path, tab: str) -> Path:
    """The training set with the rows of one tab alone, or of all tabs that have no network of their own; made once."""
    variant = Variant(tab, rows=(lambda table: table.filter(in_tab(table["scenario"], tab)),))
    return variant.training_set(training_set, folder / "tabs" / variant.folder)


def in_tab(scenario: pa.ChunkedArray, tab: str) -> pa.ChunkedArray:
    own = pc.is_in(scenario, pa.array(kr.MACRO))
    return pc.invert(own) if tab == OTHERS else pc.equal(scenario, tab)


def per_tab_answers(
    training_set: Path, folder: Path, config: Config, split: str, kept: Path
) -> tuple[Answers, dict[str, int]]:
    """A network for each macro tab and one for all others, each trained, stopped and calibrated on its own rows."""
    table = pq.read_table(training_set / "rows.parquet", columns=["scenario", "split"])
    scenario = table.filter(pc.equal(table["split"], split))["scenario"]
    answers = {task: np.zeros(len(scenario), np.float32) for task in kr.TASKS}
    epochs = {}
    for tab in (*kr.MACRO, OTHERS):
        part = tab_set(training_set, folder, tab)
        out = kept / part.name
        if not (out / "model.json").exists():  # one that is done is not trained again
            kr.train_network(part, out, config)
        epochs[tab] = json.loads((out / "losses.json").read_text(encoding="utf-8"))["best_epoch"]
        chosen = np.asarray(in_tab(scenario, tab))
        for task, p in kr.network_answers(part, out, config, split).items():
            if task in answers:
                answers[task][chosen] = p
    return answers, epochs


def rate_answers(training_set: Path, pattern: str, split: str) -> Answers:
    columns = {task: pattern.format(task) for task in kr.TASKS}
    table = pq.read_table(training_set / "rows.parquet", columns=["split", *columns.values()])
    table = table.filter(pc.equal(table["split"], split))
    return {task: table[name].to_numpy().astype(np.float64) for task, name in columns.items()}


def ple_settings(changes: Mapping[str, str]) -> ple.Settings:
    default = ple.Settings()
    return dataclasses.replace(default, **{name: type(getattr(default, name))(text) for name, text in changes.items()})


def try_one(folder: Path, model: str, name: str, changes: dict[str, str]) -> None:
    config = kr.config_of(changes if model == "per_tab" else None)
    _, training_set = kr.prepare(folder, config)
    rows = kr.Rows.of(training_set, "valid")
    begun = time.process_time()
    if model == "ple":
        answers, epoch = ple_answers(training_set, ple_settings(changes), 0, "valid")
        more: dict[str, Any] = {"best_epoch": epoch}
    else:
        kept = folder / "trials" / name if changes else folder / "per_tab" / "0"  # what `test` would train again
        answers, epochs = per_tab_answers(training_set, folder, config, "valid", kept)
        more = {"best_epoch": epochs}
    found = kr.metrics(rows, answers)
    values = {key: metric.value() for key, metric in found.items()}
    more["tabs"] = {tab: {t: round(values[tab, f"auc_{t}"], 4) for t in kr.TASKS} for tab in kr.MACRO}
    kr.log_trial(model, name, changes, kr.named(values), cpu_s=round(time.process_time() - begun), **more)


def test(folder: Path, seeds: int) -> None:
    """Read the test week: every model, every seed, and the paired difference of the network to each."""
    config = kr.config_of()
    _, training_set = kr.prepare(folder, config)
    rows = kr.Rows.of(training_set, "test")
    weights = poisson_weights(rows.users, kr.RESAMPLES, config.training.seed)
    values: dict[str, list[dict[tuple[str, str], float]]] = {}
    resampled: dict[str, list[dict[tuple[str, str], Any]]] = {}

    def read(model: str, answers: Answers) -> None:
        found = kr.metrics(rows, answers)
        values.setdefault(model, []).append({key: metric.value() for key, metric in found.items()})
        resampled.setdefault(model, []).append({key: metric.resampled(weights) for key, metric in found.items()})
        print(model, {k: round(float(v), 4) for k, v in kr.named(values[model][-1]).items()}, flush=True)

    begun = time.process_time()
    for seed in range(seeds):
        out = folder / "seeds" / str(seed)
        read("network", kr.network_answers(training_set, out, config, "test"))
        read("PLE", ple_answers(training_set, ple.Settings(), seed, "test")[0])
        if seed < PER_TAB_SEEDS:
            seeded = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
            kept = folder / "per_tab" / str(seed)
            read("a network a tab", per_tab_answers(training_set, folder, seeded, "test", kept)[0])
    for name, pattern in RATES.items():
        read(name, rate_answers(training_set, pattern, "test"))
    write_result(
        "kuairand_baselines",
        "Ranking on KuaiRand-Pure: PLE, a network a tab and item rates beside the one network, test week",
        [
            *kr.model_rows(values, resampled),
            row("cpu_seconds", round(time.process_time() - begun, 1)),
        ],
        data="../shared/data/kuairand_pure (CC BY-SA 4.0)",
        seeds=list(range(seeds)),
        notes=notes(rows),
        libraries=("torch", "numpy", "scipy"),
    )


def notes(rows: kr.Rows) -> list[str]:
    tried = [json.loads(line)["model"] for line in kr.TRIALS.read_text(encoding="utf-8").splitlines()]
    return [
        f"{len(rows.user):,} impressions of {rows.users:,} users; rows, days and bootstrap as in "
        "results/kuairand_ranking.json. Chosen on 05-01; this week was read twice for these baselines, unchanged, the "
        "second time because the network had got another learning rate.",
        "Configurations tried, each with its validation score in benchmarks/kuairand_trials.jsonl: "
        f"{tried.count('ple')} of PLE, {tried.count('per_tab')} of the networks by tab.",
        "PLE: benchmarks/kuairand_ple.py, on the features of the network, calibrated by the same code. A network a "
        "tab: the shipped configuration on the rows of one tab, histories of all; the ten small tabs share a sixth.",
        "Item rates: smoothed rates of the video as of the day's midnight, the features of the network; no seed.",
    ]


def main() -> None:
    arguments = sys.argv[1:]
    folder = Path(os.environ.get("OMNIFEED_HOME", ".omnifeed")).absolute() / "kuairand_ranking"
    if arguments[:1] == ["test"]:
        test(folder, int(arguments[1]) if arguments[1:] else 3)
    elif len(arguments) >= 2 and arguments[0] in ("try-ple", "try-per-tab"):
        changes = dict(argument.split("=", 1) for argument in arguments[2:])
        try_one(folder, arguments[0].removeprefix("try-").replace("-", "_"), arguments[1], changes)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
