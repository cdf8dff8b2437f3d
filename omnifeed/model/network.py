"""The unified network and its file format.

A checkpoint is a folder: `weights.safetensors` (parameters, the dense features' standardisation, the calibration) and
`model.json` (sizes, encoding, features, tasks), from which the same network is built again. No pickle.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors.torch import load_file, save
from torch import nn

from omnifeed.config import ModelConfig
from omnifeed.errors import IntegrityError
from omnifeed.export.encode import EncodeSpec
from omnifeed.features.spec import digest
from omnifeed.home import write_atomic, write_json
from omnifeed.model.encoders import ItemEncoder, UserEncoder
from omnifeed.model.ranker import Ranker


class Network(nn.Module):
    """One trunk, a retrieval head and a ranking head.

    Its three parts are what a release exports; `omnifeed.model.parts.INPUTS` gives the order of their inputs.
    """

    def __init__(self, config: ModelConfig, spec: EncodeSpec, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.tasks = tasks
        self.item_encoder = ItemEncoder(config, spec)
        self.user_encoder = UserEncoder(config, spec, self.item_encoder.text)
        self.ranker = Ranker(config, spec, tasks)


def save_network(network: Network, folder: Path) -> None:
    """Write `weights.safetensors` and `model.json`, each atomically, the description last."""
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}
    write_atomic(folder / "weights.safetensors", save(weights))
    write_json(
        folder / "model.json",
        {
            "model": dataclasses.asdict(network.config),
            "encode": network.spec.to_dict(),
            "features": digest(),
            "tasks": list(network.tasks),
            "calibration": {
                "scale": network.ranker.calibration_scale.tolist(),
                "bias": network.ranker.calibration_bias.tolist(),
            },
        },
    )


def load_network(checkpoint_dir: Path) -> Network:
    """Build the network of a checkpoint, in evaluation mode, on the CPU.

    Raises:
        IntegrityError: a file is missing, malformed, or does not fit the other.
    """
    try:
        raw = json.loads((checkpoint_dir / "model.json").read_text(encoding="utf-8"))
        config = ModelConfig(**{**raw["model"], "tasks": tuple(raw["model"]["tasks"])})
        network = Network(config, EncodeSpec.from_dict(raw["encode"]), tuple(raw["tasks"]))
        network.load_state_dict(load_file(checkpoint_dir / "weights.safetensors"))
    except Exception as error:  # safetensors raises its own type, torch a RuntimeError
        raise IntegrityError(
            f"{checkpoint_dir} holds no usable checkpoint: {str(error).splitlines()[0]}.",
            "Train again, or give the folder that training wrote.",
        ) from error
    return network.eval()
