"""The training loop: deterministic, killed without loss, stopped by a loss that is no number.

Every random choice is a function of (seed, epoch or step), so a run that resumes from a checkpoint takes the same
steps as one that was never stopped and ends with the same weights to the bit (CPU, same number of threads).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omnifeed.config import Config, TrainingConfig
from omnifeed.errors import InputError, OmnifeedError
from omnifeed.evaluation.metrics import middle
from omnifeed.export.encode import Ints
from omnifeed.export.release import file_digest
from omnifeed.home import write_json
from omnifeed.model.embedding import restore
from omnifeed.model.network import Network, save_network
from omnifeed.model.ranker import PIECES
from omnifeed.training.batching import batches, build, sequences
from omnifeed.training.calibration import calibrate
from omnifeed.training.checkpoint import Progressed, load_checkpoint, save_checkpoint
from omnifeed.training.dataset import TrainingData, load_training_set
from omnifeed.training.objective import ItemTable
from omnifeed.training.packing import moments, request_ids
from omnifeed.training.processes import Processes, Step, clip_gradient, joined, parallel
from omnifeed.training.trend import trend_weights
from omnifeed.training.validation import Validation, validate
from omnifeed.training.warm_start import begin_with

Progress = Callable[[str, int, int], None]

READ = ("train", "valid")  # splits
LOGGED_STEPS = 200  # of a run, at most, in losses.json
MAX_GRADIENT = 1.0  # norm
QUANTILE_ROWS = 200_000  # of the training rows, about, evenly spaced, that the pieces of dense features are made from


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training came to."""

    best_epoch: int  # from 1
    steps: int
    tasks: tuple[str, ...]  # those of the configuration that the training rows have positives of
    losses: list[dict[str, Any]]  # by epoch: mean losses and validation
    valid: dict[str, float]  # of the best epoch


def train(
    training_set: Path,
    out_dir: Path,
    config: Config,
    progress: Progress = lambda label, done, total: None,
    former: Path | None = None,
) -> TrainResult:
    """Train the network and write it to `out_dir`.

    Resumes from `out_dir/checkpoint` where there is one. Writes weights.safetensors, model.json and losses.json, and
    removes the checkpoint when it is done.

    Args:
        training_set: folder that materialize wrote.
        former: folder of a network whose weights the training begins with; by default it begins at random.

    Raises:
        InputError: the training set is unusable, has no training row, or the checkpoint or the former network is
            another configuration's.
        OmnifeedError: the loss or the gradient is no finite number; `out_dir/bad_batch.json` names the requests, and
            the last checkpoint is kept.
    """
    settings = config.training
    with _threads_and_generator(settings.threads):
        out_dir.mkdir(parents=True, exist_ok=True)
        data = learnable(load_training_set(training_set, config.model.tasks, READ, scratch=out_dir))
        torch.manual_seed(settings.seed)
        device = pick_device(settings.device)
        network = Network(config.model, data.spec, data.tasks)
        if former is not None:
            begin_with(network, former)
        standardise(network, data)
        with joined(device) as processes:
            network.to(device)
            return _Run(training_set, out_dir, config, data, network, device, progress, former, processes).run()


class _Run:
    def __init__(
        self,
        training_set: Path,
        out_dir: Path,
        config: Config,
        data: TrainingData,
        network: Network,
        device: torch.device,
        progress: Progress,
        former: Path | None,
        processes: Processes,
    ) -> None:
        self.training_set, self.out_dir = training_set, out_dir
        self.config, self.settings = config, config.training
        self.data, self.network, self.progress = data, network, progress
        self.processes = processes
        self.table = ItemTable(data.items, device)
        self.model = parallel(Step(network, self.table, self.settings, processes), processes)
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=self.settings.lr,
            betas=(0.9, self.settings.beta2),
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        self.packed = sequences(data, data.requests.of("train"))
        self.held_out = sequences(data, data.requests.of("valid"))
        self.plan = [len(self.epoch_batches(epoch)) for epoch in range(self.settings.epochs)]
        self.total = sum(self.plan)
        meta = (training_set / "meta.json").read_bytes()
        began = file_digest(former / "weights.safetensors") if former is not None else ""
        settings = replace(self.settings, processes=1)
        body = repr((config.model, settings, data.spec, data.tasks, len(data.requests), began)).encode()
        self.fingerprint = hashlib.sha256(body + meta).hexdigest()

    def epoch_batches(self, epoch: int) -> list[Ints]:
        return batches(self.packed, self.settings.batch_tokens, (self.settings.seed, epoch))

    def run(self) -> TrainResult:
        folder = self.out_dir / "checkpoint"
        state = load_checkpoint(folder, self.fingerprint, self.network, self.optimizer) or Progressed()
        done = 0
        for epoch, count in enumerate(self.plan):
            if len(state.epochs) <= epoch:
                for index, rows in enumerate(self.epoch_batches(epoch)):
                    if done + index >= state.step:
                        self.step(rows, state)
                        self.progress("train", state.step, self.total)
                        if state.step % self.settings.checkpoint_every == 0:
                            save_checkpoint(
                                folder, self.fingerprint, self.network, self.optimizer, state, self.processes
                            )
                self.end_epoch(epoch, state)
            done += count
        return self.finish(state)

    def step(self, rows: Ints, state: Progressed) -> None:
        seed, step, processes = self.settings.seed, state.step, self.processes
        torch.manual_seed(seed * 1_000_003 + step + processes.rank * 1_000_000_007)
        self.network.train()
        batch = build(self.data, self.packed, processes.rows(rows), self.settings.negatives, (seed, 1, step))
        loss = self.model(batch, processes.share(batch, processes.idle(rows)))
        self.optimizer.zero_grad()
        loss.total.backward()
        norm = clip_gradient(self.network, processes, MAX_GRADIENT)
        values = processes.sum(torch.stack([loss.total.detach(), loss.retrieval, *loss.tasks])).tolist()
        if not all(map(math.isfinite, (*values, float(norm)))):
            self.stop(rows, step, values)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.total, self.settings)
        self.optimizer.step()
        state.step += 1
        state.running = [old + new for old, new in zip(state.running or [0.0] * len(values), values, strict=True)]
        if step % max(1, self.total // LOGGED_STEPS) == 0:
            state.steps.append({"step": state.step, **self.named(values), "gradient_norm": float(norm)})

    def named(self, values: list[float]) -> dict[str, Any]:
        return {
            "loss": values[0],
            "retrieval": values[1],
            "tasks": dict(zip(self.data.tasks, values[2:], strict=True)),
        }

    def stop(self, rows: Ints, step: int, values: list[float]) -> None:
        first, requests = self.packed.first, self.packed.requests
        batch = np.concatenate([requests[first[row] : first[row + 1]] for row in rows])
        keys = request_ids(self.training_set / "rows.parquet", READ, batch)
        path = self.out_dir / "bad_batch.json"
        if self.processes.rank == 0:
            write_json(path, {"step": step + 1, "requests": keys})
        raise OmnifeedError(
            f"The loss of step {step + 1} is {values[0]:g} in a batch of requests {', '.join(keys[:3])} and "
            f"{max(len(keys) - 3, 0)} more, all named in {path}.",
            "Look for extreme values in these rows, or lower training.lr; the last good checkpoint is kept.",
        )

    def validation(self) -> Validation | None:
        if not len(self.held_out):
            return None
        return validate(self.network, self.table, self.data, self.held_out, self.settings.batch_tokens, self.recall_at)

    @property
    def recall_at(self) -> int:
        return middle(self.config.evaluation.top_k)

    def end_epoch(self, epoch: int, state: Progressed) -> None:
        result = self.validation()
        entry: dict[str, Any] = {
            "epoch": epoch + 1,
            **self.named([value / max(self.plan[epoch], 1) for value in state.running]),
            "valid": valid_numbers(result, self.recall_at),
            "score": result.score(self.settings) if result else float(epoch + 1),
        }
        state.running = []
        if entry["score"] > max((other["score"] for other in state.epochs), default=-math.inf):
            state.best_epoch = epoch + 1
            state.best = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        state.epochs.append(entry)

    def finish(self, state: Progressed) -> TrainResult:
        self.network.load_state_dict(state.best)
        restore(self.network)
        if self.processes.rank == 0:
            self.write(state)
        return TrainResult(
            best_epoch=state.best_epoch,
            steps=state.step,
            tasks=self.data.tasks,
            losses=state.epochs,
            valid=state.epochs[state.best_epoch - 1]["valid"],
        )

    def write(self, state: Progressed) -> None:
        result = self.validation()
        if result is not None:
            scale, bias = calibrate(
                result.logits,
                result.labels,
                result.scenario,
                len(self.data.spec.scenarios) + 1,
                self.network.ranker.parents,
            )
            self.network.ranker.calibration_scale.copy_(torch.from_numpy(scale))
            self.network.ranker.calibration_bias.copy_(torch.from_numpy(bias))
            trend = trend_weights(self.network, self.training_set, self.data, self.settings.seed)
            self.network.user_encoder.trend_weight.copy_(torch.from_numpy(trend))
        save_network(self.network, self.out_dir)
        write_json(
            self.out_dir / "losses.json",
            {"best_epoch": state.best_epoch, "steps": state.steps, "epochs": state.epochs, "total_steps": state.step},
        )
        folder = self.out_dir / "checkpoint"
        (folder / "current").unlink(missing_ok=True)
        for path in folder.glob("step-*"):
            path.unlink()


def valid_numbers(result: Validation | None, k: int) -> dict[str, float]:
    """The validation's metrics under the names that losses.json uses; those that are not defined are absent."""
    if result is None:
        return {}
    numbers = {"loss": result.loss, f"recall@{k}": result.recall}
    numbers |= {f"auc_{task}": area for task, area in result.auc.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def learning_rate(step: int, total: int, settings: TrainingConfig) -> float:
    """Linear warm-up (at most a tenth of all steps), then linear decay to zero after the last step."""
    warmup = max(1, min(settings.warmup_steps, total // 10))
    return settings.lr * min((step + 1) / warmup, (total - step) / max(total - warmup, 1))


def learnable(data: TrainingData) -> TrainingData:
    """The data with only those tasks that the training rows have positives and negatives of.

    Raises:
        InputError: there is no training row, or no task is left.
    """
    rows = data.requests.of("train")
    if not len(rows):
        raise InputError("The training set has no training row.", "Give more days, or fewer valid_days and test_days.")
    shown, labels = data.requests.shown("train"), data.impressions.labels
    keep = [
        index
        for index in range(len(data.tasks))
        if all((shown & (labels[:, index] == value)).any() for value in (0, 1))
    ]
    if not keep:
        raise InputError(
            f"No training row has a known positive and a known negative of any of {', '.join(data.tasks)}.",
            "Name outcomes that the source records in model.tasks.",
        )
    return data.with_tasks(keep) if len(keep) < len(data.tasks) else data


def standardise(network: Network, data: TrainingData) -> None:
    """Set the network's means, scales and pieces of dense inputs from the training rows; constant inputs are muted."""
    shown = np.flatnonzero(data.requests.shown("train"))
    for values, rows, mean, scale in (
        (
            data.requests.user_dense,
            data.requests.of("train"),
            network.user_encoder.user_mean,
            network.user_encoder.user_scale,
        ),
        (data.impressions.dense, shown, network.ranker.dense_mean, network.ranker.dense_scale),
    ):
        average, deviation = moments(values, rows)
        mean.copy_(torch.from_numpy(average))
        scale.copy_(torch.from_numpy(np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0)))
    sample = data.impressions.dense[shown[:: max(1, len(shown) // QUANTILE_ROWS)]]
    network.ranker.set_pieces(np.quantile(sample, np.linspace(0, 1, PIECES + 1), axis=0).astype(np.float64))


def pick_device(name: str) -> torch.device:
    """cpu, cuda, or with "auto" the better one at hand.

    Raises:
        InputError: cuda is asked for and not there, or the name is another.
    """
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"training.device is {name!r}, which this machine does not have.", "Use auto, cpu or cuda.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def _threads_and_generator(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads(before)
