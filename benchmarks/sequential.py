"""Next-item prediction on files of sequences: the trunk with ids alone and with attributes, beside baselines.

    python benchmarks/sequential.py FILE... [--attributes] [--sessions] [--seeds 5] [--minutes M]
    python benchmarks/sequential.py FILE... --try [--set name=value ...]

A FILE has a line a user, `user item item ...`, oldest first, and is split by leave-one-out; with --sessions a line a
session, `item item ...`, and whole sessions are held out. --attributes also trains with `<FILE>_item2attributes.json`
of the same folder. Writes results/sequential_<file>.json.

Finished runs are kept under $OMNIFEED_HOME/sequential, so a command that was ended, by --minutes or by a kill, goes on
where it was. --try trains one setting with one seed and appends its score to results/sequential_tried.jsonl, which the
result lists. It never sees a test: everybody's last item is dropped, the epoch is chosen by the third last and the
score is that of the second last, whose history ends, as a test's does, with an item that nothing was learned after. Of
sessions it reads the validation.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import multiprocessing
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import ROOT, row, write_result

from omnifeed.errors import InputError, OmnifeedError
from omnifeed.evaluation.next_item import Ranks, gains, network_scorer, ranks, summary
from omnifeed.evaluation.next_item_baselines import item_knn, latest_popularity, popularity
from omnifeed.home import Home, write_atomic
from omnifeed.training.next_item import NextItemConfig, NextItemNetwork
from omnifeed.training.next_item_loop import fit
from omnifeed.training.sequences import (
    SequenceData,
    Split,
    hold_out_sessions,
    leave_one_out,
    load_attributes,
    load_sequences,
    swap_neighbours,
    with_validation,
    without_last,
)

TRIED = ROOT / "results" / "sequential_tried.jsonl"
#: The best so far of results/sequential_tried.jsonl.
TRUNK = NextItemConfig(width=128, item_dropout=0.25, temperature=0.085, init_std=0.01)
SASREC = NextItemConfig(model="sasrec", width=128, lr=2e-3)
KNN = [(decay, shrink) for decay in (0.6, 0.8, 0.95) for shrink in (0.0, 2.0)]
SPLIT_SEED = 0  # of held-out sessions and of swapped neighbours
K = 10
CODE = (
    "omnifeed/training/sequences.py",
    "omnifeed/training/next_item.py",
    "omnifeed/training/next_item_loop.py",
    "omnifeed/training/full_softmax.py",
    "omnifeed/evaluation/next_item.py",
    "omnifeed/model/blocks.py",
    "omnifeed/model/packed.py",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """One training and the question it answers."""

    path: str
    sessions: bool
    model: str  # label
    protocol: str  # label: strict, refitted, swapped or earlier (everybody's last item dropped)
    attributes: bool
    config: NextItemConfig
    seed: int

    def key(self) -> str:
        """Differs where the data, the setting or the code does."""
        sha = hashlib.sha256(repr(dataclasses.replace(self, path="")).encode())
        files = [Path(self.path), *([attributes_of(Path(self.path))] if self.attributes else [])]
        for path in [*files, *(ROOT / name for name in CODE)]:
            sha.update(path.read_bytes())
        return sha.hexdigest()[:20]


def attributes_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_item2attributes.json")


def precision() -> torch.dtype:
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32


def split_of(data: SequenceData, sessions: bool) -> Split:
    return hold_out_sessions(data, SPLIT_SEED) if sessions else leave_one_out(data)


def primary(found: Ranks, sessions: bool) -> np.ndarray:
    """A session may well come back to an item; who has bought one is asked for another."""
    return found.unmasked if sessions else found.masked


def train(job: Job, test: bool) -> dict[str, Any]:
    """Train once; without `test`, the test's questions are not asked."""
    torch.set_num_threads(1)
    begun = time.process_time()
    path = Path(job.path)
    data = load_sequences(path, sessions=job.sessions)
    if job.protocol == "swapped":
        data = swap_neighbours(data, SPLIT_SEED)
    elif job.protocol == "earlier":
        data = without_last(data)
    split = split_of(data, job.sessions)
    attributes = load_attributes(attributes_of(path), data) if job.attributes else None
    scores: list[dict[str, float]] = []

    def validate(network: NextItemNetwork) -> float:
        rank = primary(ranks(network_scorer(network, data), data, split.valid), job.sessions)
        scores.append({name: float(values.mean()) for name, values in gains(rank, K).items()})
        return scores[-1][f"NDCG@{K}"]

    refit = job.protocol == "refitted"
    fitted = fit(
        data,
        with_validation(split) if refit else split,
        job.config,
        job.seed,
        attributes=attributes,
        validate=None if refit else validate,
        precision=precision(),
    )
    answer: dict[str, Any] = {
        "valid": max(scores, key=lambda score: score[f"NDCG@{K}"], default=None),
        "best_epoch": fitted.best_epoch,
        "losses": [round(epoch.loss, 4) for epoch in fitted.epochs],
        "targets_per_second": fitted.predictions / fitted.cpu_seconds,
    }
    if test:
        found = ranks(network_scorer(fitted.network, data), data, split.test)
        answer |= {"masked": found.masked.tolist(), "unmasked": found.unmasked.tolist()}
    answer["cpu_seconds"] = time.process_time() - begun
    return answer


def jobs_of(path: Path, options: argparse.Namespace, config: NextItemConfig) -> list[Job]:
    def job(model: str, protocol: str, attributes: bool, setting: NextItemConfig, seed: int) -> Job:
        return Job(str(path), options.sessions, model, protocol, attributes, setting, seed)

    kinds = [("trunk, ids", False), *([("trunk, attributes", True)] if options.attributes else [])]
    jobs = []
    for seed in range(options.seeds):  # a command that is ended has whole seeds behind it
        jobs += [job(model, "strict", attributes, config, seed) for model, attributes in kinds]
        jobs.append(job("SASRec, softmax", "strict", False, SASREC, seed))
    if not options.sessions:
        jobs += [job(kinds[-1][0], protocol, kinds[-1][1], config, 0) for protocol in ("refitted", "swapped")]
    return jobs


def run_all(jobs: list[Job], options: argparse.Namespace) -> dict[Job, dict[str, Any]]:
    """Results of all jobs; those of earlier commands are read. Fewer where the minutes are over."""
    folder = Home.from_env().root / "sequential"
    done: dict[Job, dict[str, Any]] = {}
    waiting = []
    for job in jobs:
        kept = folder / f"{job.key()}.npz"
        if kept.exists():
            with np.load(kept, allow_pickle=False) as file:
                done[job] = json.loads(str(file["answer"])) | {name: file[name] for name in ("masked", "unmasked")}
        else:
            waiting.append(job)
    deadline = time.monotonic() + 60 * options.minutes
    running: dict[Future[dict[str, Any]], Job] = {}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            while waiting and len(running) < options.jobs and time.monotonic() < deadline:
                running[pool.submit(train, waiting[0], True)] = waiting[0]
                del waiting[0]
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, answer = running.pop(future), future.result()
                lists = {name: np.array(answer.pop(name)) for name in ("masked", "unmasked")}
                raw = io.BytesIO()
                np.savez_compressed(raw, answer=np.array(json.dumps(answer)), **lists)
                write_atomic(folder / f"{job.key()}.npz", raw.getvalue())
                done[job] = answer | lists
                print(
                    f"{Path(job.path).stem}: {job.model}, {job.protocol}, seed {job.seed}: {spoken(answer)}", flush=True
                )
    return done


def spoken(answer: dict[str, Any]) -> str:
    valid = answer["valid"]
    scores = f"validation HR@{K} {valid[f'HR@{K}']:.4f} NDCG@{K} {valid[f'NDCG@{K}']:.4f}, " if valid else ""
    return f"{scores}epoch {answer['best_epoch']}, {answer['cpu_seconds']:.0f} CPU-seconds"


def rank_rows(model: str, protocol: str, found: list[Ranks], sessions: bool) -> list[dict[str, Any]]:
    rows = []
    for seen, lists in (("masked", [one.masked for one in found]), ("kept", [one.unmasked for one in found])):
        for metric in summary(lists, (10, 20)):
            if metric.name in ("HR@10", "NDCG@10") or (sessions and metric.name in ("HR@20", "MRR@20")):
                labels = {"model": model, "protocol": protocol, "seen items": seen, "runs": len(lists)}
                rows.append(row(metric.name, metric.value, metric.low, metric.high, **labels))
    return rows


def baselines(path: Path, sessions: bool) -> list[dict[str, Any]]:
    data = load_sequences(path, sessions=sessions)
    split = split_of(data, sessions)

    def valid(setting: tuple[float, float]) -> float:
        rank = primary(ranks(item_knn(data, split, *setting), data, split.valid), sessions)
        return float(gains(rank, K)[f"NDCG@{K}"].mean())

    scores = {setting: valid(setting) for setting in KNN}
    decay, shrink = max(scores, key=lambda setting: scores[setting])
    rows = []
    for model, scorer in (
        ("popularity", popularity(data, split)),
        ("popularity of latest items", latest_popularity(data, split)),
        (f"item-kNN, decay {decay}, shrink {shrink:g}", item_knn(data, split, decay, shrink)),
    ):
        rows += rank_rows(model, "strict", [ranks(scorer, data, split.test)], sessions)
    return rows + [
        row(f"NDCG@{K}, validation", score, model=f"item-kNN, decay {decay}, shrink {shrink:g}", protocol="tried")
        for (decay, shrink), score in scores.items()
    ]


def tried(name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of the settings that were tried on this file, and a note on those that were ended before they could tell."""
    lines = TRIED.read_text(encoding="utf-8").splitlines() if TRIED.exists() else []
    entries = [entry for entry in map(json.loads, lines) if entry["data"] == name]
    rows = [
        row(f"NDCG@{K}, validation", entry["ndcg"], model=entry["setting"], protocol="tried")
        for entry in entries
        if entry["ndcg"] is not None
    ]
    ended = "; ".join(entry["setting"] for entry in entries if entry["ndcg"] is None)
    return rows, [f"Tried and ended before the last epoch, unread: {ended}."] * bool(ended)


def report(path: Path, done: dict[Job, dict[str, Any]], left: list[Job], options: argparse.Namespace) -> None:
    """The strict runs are all in `done`; of the other protocols, those in `left` are named as missing."""
    mine = [job for job in done if job.path == str(path)]
    data = load_sequences(path, sessions=options.sessions)
    rows, notes = [], []
    for model, protocol in dict.fromkeys((job.model, job.protocol) for job in mine):
        group = [done[job] for job in mine if (job.model, job.protocol) == (model, protocol)]
        rows += rank_rows(model, protocol, [Ranks(one["masked"], one["unmasked"]) for one in group], options.sessions)
        seconds = [one["cpu_seconds"] for one in group]
        rows.append(row("CPU-seconds, file to test", float(np.mean(seconds)), model=model, protocol=protocol))
        speed = float(np.mean([one["targets_per_second"] for one in group]))
        rows.append(row("training targets a CPU-second", speed, model=model, protocol=protocol))
        if protocol == "strict":
            valid = float(np.mean([one["valid"][f"NDCG@{K}"] for one in group]))
            rows.append(row(f"NDCG@{K}, validation", valid, model=model, protocol=protocol, runs=len(group)))
            by_seed = [
                float(gains(primary(Ranks(one["masked"], one["unmasked"]), options.sessions), K)[f"HR@{K}"].mean())
                for one in group
            ]
            notes.append(f"{model}: HR@{K} by seed {', '.join(f'{value:.4f}' for value in by_seed)}.")
    split = split_of(data, options.sessions)
    notes = [
        f"{len(data):,} sequences, {len(data.names):,} items, {len(data.items):,} interactions, "
        f"{len(split.test):,} test questions, ranked in the full catalogue, ties counted against the right item.",
        *((HELD_OUT_NOTE,) if options.sessions else STRICT_NOTES),
        "Setting of the trunk: "
        + ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(mine[0].config).items())
        + f". Large products ran in {precision()} in training, in float32 in the test.",
        "Intervals are of the mean over seeds, by user or question; they do not cover the choice of the setting.",
        *notes,
    ]
    settings, ended = tried(path.stem)
    rows += baselines(path, options.sessions) + settings
    if left:
        notes.append(f"Not run yet: {', '.join(job.protocol for job in left)}.")
    written = write_result(
        f"sequential_{path.stem.lower()}",
        f"Next-item prediction on {path.stem}, {'held-out sessions' if options.sessions else 'leave-one-out'}",
        rows,
        data=path.name,
        seeds=list(range(options.seeds)),
        notes=notes + ended,
        libraries=("torch", "numpy", "scipy"),
    )
    print(f"results/{written.name}: {len(rows)} rows")


HELD_OUT_NOTE = (
    "A tenth of the sessions, drawn at random, validates and a tenth tests, at every position after the first; the "
    "rest trains. Items already seen in the session may be the answer, so the rows to read are those that keep them."
)
STRICT_NOTES = (
    "strict: trained on all but the last two items of a user, epoch chosen on the last but one, test asked once a run. "
    "refitted: the same setting trained on all but the last item, one seed. swapped: neighbours in every second pair "
    "change places with probability one half before the split, one seed.",
    "The file has no dates. So which neighbours share a day is unknown, and swapped is harder than shuffling within "
    "days; and popularity of the last 7 days cannot be computed: the popularity of users' latest items stands in.",
    "A user with fewer than three items only trains. An answer that the user has seen before is not masked.",
    "SASRec keeps the setting of its own trials (width 128, lr 0.002, else the defaults), far fewer than the trunk's.",
)


def try_setting(path: Path, options: argparse.Namespace, config: NextItemConfig) -> None:
    """One seed; the score joins the log."""
    earlier = not options.sessions
    protocol = "earlier" if earlier else "strict"
    answer = train(Job(str(path), options.sessions, "", protocol, options.attributes, config, 0), test=earlier)
    scores = answer["valid"]
    if earlier:
        scores = {name: float(values.mean()) for name, values in gains(np.array(answer["masked"]), K).items()}
    changed = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }
    named = [f"{name} {value}" for name, value in changed.items()] + ["attributes"] * options.attributes
    entry = {
        "data": path.stem,
        "setting": ", ".join(["earlier"] * earlier + named) or "the defaults",
        "ndcg": scores[f"NDCG@{K}"],
        "hr": scores[f"HR@{K}"],
        "epoch": answer["best_epoch"],
        "cpu_seconds": round(answer["cpu_seconds"]),
    }
    with TRIED.open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")
    print(f"{path.stem}: {entry['setting']}: NDCG@{K} {entry['ndcg']:.4f}; {spoken(answer)}", flush=True)


def configured(base: NextItemConfig, settings: list[str]) -> NextItemConfig:
    """Raises InputError for a setting that does not exist or has a value of another type."""
    kinds = {field.name: type(field.default) for field in dataclasses.fields(base)}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in kinds:
            raise InputError(f"--set {setting} names no setting.", f"Known: {', '.join(kinds)}.")
        try:
            values[name] = kinds[name](text)
        except ValueError:
            raise InputError(f"--set {setting} is no {kinds[name].__name__}.", "Correct the value.") from None
    return dataclasses.replace(base, **values)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--attributes", action="store_true")
    parser.add_argument("--sessions", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after so many")
    parser.add_argument("--try", dest="trial", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    try:
        config = configured(TRUNK, options.set)
        if min(options.seeds, options.jobs) < 1:
            raise InputError("--seeds and --jobs start at 1.", "Correct the number.")
        for path in options.files:  # bad input is said before the first training
            data = load_sequences(path, sessions=options.sessions)
            split_of(data, options.sessions)
            if options.attributes:
                load_attributes(attributes_of(path), data)
        if options.trial:
            for path in options.files:
                try_setting(path, options, config)
            return
        jobs = [job for path in options.files for job in jobs_of(path, options, config)]
        done = run_all(jobs, options)
        left = [job for job in jobs if job not in done]
        for path in options.files:
            mine = [job for job in left if job.path == str(path)]
            if all(job.protocol != "strict" for job in mine):
                report(path, done, mine, options)
        if left:
            print(f"{len(left)} of {len(jobs)} runs are left: give the same command again.")
    except OmnifeedError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
