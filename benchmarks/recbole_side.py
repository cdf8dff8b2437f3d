"""RecBole's side of sequence_speed.py: its SASRec, its dataset with one row a prefix, its loop."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from sequence_side import WARMUP, Measured, Setting, Watch, answer

NAME = "sequences"
UNIFORM = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}


def write_atomic_file(path: Path, folder: Path) -> None:
    """RecBole's own format; it leaves the last two items of each user out by itself."""
    with np.load(path, allow_pickle=False) as file:
        items, offsets = file["items"], file["offsets"]
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, (start, stop) in enumerate(itertools.pairwise(offsets)):
        lines += [f"{user}\t{item}\t{place}" for place, item in enumerate(items[start:stop])]
    (folder / NAME).mkdir()
    (folder / NAME / f"{NAME}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")


@functools.cache
def prepared(folder: Path, setting: Setting) -> tuple[Config, Any]:
    """What a run of its own would do first: the configuration and the training's batches."""
    if setting.negatives > 1:
        raise ValueError("RecBole repeats a sequence for each negative: only 1, or the whole catalogue.")
    config = Config(
        model="SASRec",
        dataset=NAME,
        config_dict={
            "data_path": str(folder),
            "checkpoint_dir": str(folder / "saved"),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
            "hidden_size": setting.width,
            "inner_size": setting.width,
            "n_layers": setting.blocks,
            "n_heads": setting.heads,
            "MAX_ITEM_LIST_LENGTH": setting.length,
            "hidden_dropout_prob": setting.dropout,
            "attn_dropout_prob": setting.dropout,
            "hidden_act": "relu",
            "learning_rate": setting.lr,
            "loss_type": "BPR" if setting.negatives else "CE",
            "train_neg_sample_args": UNIFORM if setting.negatives else None,
            "train_batch_size": setting.batch,
            "use_gpu": False,
            "enable_amp": setting.precision == "bfloat16",
            "show_progress": False,
            "worker": 0,
        },
    )
    train_data, _, _ = data_preparation(config, create_dataset(config))
    return config, train_data


def measure(folder: Path, setting: Setting) -> Measured:
    """Train a few steps of an epoch."""
    config, train_data = prepared(folder, dataclasses.replace(setting, seed=0))
    init_seed(setting.seed, reproducibility=True)
    model = get_model("SASRec")(config, train_data._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    watch = Watch()

    def steps() -> Iterator[Any]:
        for batch in itertools.islice(train_data, WARMUP + setting.steps):
            yield batch
            watch.step(targets=len(batch), filled=int(batch["item_length"].sum()), cells=batch["item_id_list"].numel())

    trainer._train_epoch(steps(), 0)
    return watch.measured


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        write_atomic_file(Path(sys.argv[1]), Path(temporary))
        answer(lambda setting: measure(Path(temporary), setting))
