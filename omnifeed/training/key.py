"""The name under which a training's checkpoints stand: its data and its settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from omnifeed.config import Config
from omnifeed.export.release import file_digest


def training_key(training_set: Path, config: Config, former: Path | None = None) -> str:
    """16 hexadecimal digits that differ where the data, the features, the model or the training settings do.

    So do those of the former release whose weights the run begins with.

    A run that was killed and is started again on the same data finds its checkpoint under the same key.
    """
    sha = hashlib.sha256()
    training = asdict(replace(config.training, processes=1))  # a run may go on in another number of processes
    parts = {"features": asdict(config.features), "model": asdict(config.model), "training": training}
    sha.update(json.dumps(parts, sort_keys=True).encode())
    for path in sorted(training_set.glob("*.parquet")):
        with path.open("rb") as handle:
            sha.update(path.name.encode() + hashlib.file_digest(handle, "sha256").digest())
    sha.update((training_set / "meta.json").read_bytes())
    if former is not None:
        sha.update(file_digest(former / "weights.safetensors").encode())
    return sha.hexdigest()[:16]
