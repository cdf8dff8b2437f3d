"""RecTools' side of sequence_speed.py: its SASRec, its data preparation, its loop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from sequence_side import WARMUP, Measured, Setting, Watch, answer

LOSSES = {0: "softmax", 1: "BCE"}  # by the number of negatives; any other: sampled_softmax
PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}


class Watching(Callback):
    """Counts what its batches hold: a target has an item and a weight."""

    def __init__(self) -> None:
        self.watch = Watch()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        targets, filled = int((batch["y"] != 0).sum()), int((batch["x"] != 0).sum())
        self.watch.step(targets=targets, filled=filled, cells=batch["x"].numel())


def loaded(path: Path) -> Dataset:
    """What trains, all but the last two items of each user; times are places in the sequence."""
    with np.load(path, allow_pickle=False) as file:
        items, offsets, stop = file["items"], file["offsets"], file["train_stop"]
    sizes = np.diff(offsets)
    place = np.arange(len(items)) - np.repeat(offsets[:-1], sizes)
    trains = place < np.repeat(stop, sizes)
    columns = {
        Columns.User: np.repeat(np.arange(len(sizes)), sizes)[trains],
        Columns.Item: items[trains],
        Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(place[trains], unit="D"),
    }
    return Dataset.construct(pd.DataFrame(columns))


def measure(dataset: Dataset, setting: Setting) -> Measured:
    """Train a few steps of an epoch."""

    def trainer() -> Trainer:
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            limit_train_batches=WARMUP + setting.steps,
            precision=PRECISION[setting.precision],
            callbacks=[Watching()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    torch.manual_seed(setting.seed)
    model = SASRecModel(
        n_factors=setting.width,
        n_blocks=setting.blocks,
        n_heads=setting.heads,
        session_max_len=setting.length,
        dropout_rate=setting.dropout,
        lr=setting.lr,
        loss=LOSSES.get(setting.negatives, "sampled_softmax"),
        n_negatives=max(setting.negatives, 1),
        batch_size=setting.batch,
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer,
    )
    model.fit(dataset)
    return next(entry for entry in model.fit_trainer.callbacks if isinstance(entry, Watching)).watch.measured


if __name__ == "__main__":
    torch.set_num_threads(1)
    interactions = loaded(Path(sys.argv[1]))
    answer(lambda setting: measure(interactions, setting))
