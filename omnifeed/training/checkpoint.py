"""Checkpoints of a running training: everything that the next step depends on, without pickle.

Random numbers are drawn from (seed, step), so no generator's state has to be kept. A checkpoint is one safetensors
file and one JSON, written under a name of their own; a pointer file moves last, so a kill at any moment leaves the
last whole one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from omnifeed.errors import InputError, IntegrityError
from omnifeed.home import write_atomic, write_json
from omnifeed.model.embedding import ShardedEmbedding, sharded
from omnifeed.model.network import Network
from omnifeed.training.processes import Processes


@dataclass(slots=True)
class Progressed:
    """How far a training has come."""

    step: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)  # losses of some of the steps
    epochs: list[dict[str, Any]] = field(default_factory=list)  # losses and validation of each epoch
    running: list[float] = field(default_factory=list)  # sums over the steps of the epoch under way
    best_epoch: int = 0  # from 1; 0 before the first validation
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of the best epoch


def save_checkpoint(
    folder: Path,
    fingerprint: str,
    network: Network,
    optimizer: torch.optim.AdamW,
    progressed: Progressed,
    processes: Processes,
) -> None:
    """Write the state after a step, then point to it, then remove the former.

    Divided tables are written whole by the first process, so any number of processes can go on from there.
    """
    tensors = {f"weights/{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in progressed.best.items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}/{name}"] = value
    tables = sharded(network)
    for key, value in tensors.items():
        table = tables.get(key.partition("/")[2])
        if table is not None and value.dim():
            tensors[key] = table.whole(value)
    if processes.rank:
        return
    name = f"step-{progressed.step:08d}"
    write_atomic(
        folder / f"{name}.safetensors",
        save({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}),
    )
    write_json(
        folder / f"{name}.json",
        {
            "fingerprint": fingerprint,
            "step": progressed.step,
            "steps": progressed.steps,
            "epochs": progressed.epochs,
            "running": progressed.running,
            "best_epoch": progressed.best_epoch,
        },
    )
    write_atomic(folder / "current", name)
    for path in folder.glob("step-*"):
        if path.stem != name:
            path.unlink(missing_ok=True)


def load_checkpoint(
    folder: Path, fingerprint: str, network: Network, optimizer: torch.optim.AdamW
) -> Progressed | None:
    """Restore network and optimizer in place; None where there is no checkpoint.

    Raises:
        InputError: the checkpoint belongs to another configuration or training set.
        IntegrityError: it cannot be read.
    """
    if not (folder / "current").exists():
        return None
    name = (folder / "current").read_text(encoding="utf-8")
    tables = sharded(network)
    try:
        raw = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            tensors = {key: _read(file, key, tables.get(key.partition("/")[2])) for key in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # safetensors raises its own type
        raise IntegrityError(
            f"{folder / name} cannot be read: {str(error).splitlines()[0]}.",
            f"Delete {folder} and train from the beginning.",
        ) from error
    if raw.pop("fingerprint") != fingerprint:
        raise InputError(
            f"{folder} holds a checkpoint of another configuration or training set.",
            "Delete it, or train into another folder.",
        )
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, parameter = key.partition("/")
        groups.setdefault(group, {})[parameter] = value
    network.load_state_dict(groups["weights"])
    for parameter_name, parameter in network.named_parameters():
        state: dict[str, Tensor] = {}
        for group, values in groups.items():
            if group.startswith("optimizer.") and parameter_name in values:
                state[group.removeprefix("optimizer.")] = values[parameter_name].to(parameter.device)
        if state:
            optimizer.state[parameter] = state
    return Progressed(**raw, best=groups.get("best", {}))


def _read(file: Any, key: str, table: ShardedEmbedding | None) -> Tensor:
    """One tensor of the file; of a divided table only this process's rows."""
    if table is None or not file.get_slice(key).get_shape():
        return file.get_tensor(key)  # type: ignore[no-any-return]
    return table.part(file.get_slice(key))
