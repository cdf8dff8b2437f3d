"""The three parts of a release as functions of numpy arrays: the same interface in torch and in onnxruntime.

Evaluation, parity and serving know only this interface, so a champion is judged through its bundle and never through
re-imported code.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from omnifeed.model.network import Network

Arrays = dict[str, npt.NDArray[Any]]

#: Inputs of each part, in the order of its `forward`.
INPUTS: dict[str, tuple[str, ...]] = {
    "item_encoder": ("id_bucket", "author_bucket", "category_bucket", "kind", "text", "item_dense"),
    "user_encoder": (
        "hist_vec",
        "hist_action",
        "hist_scenario",
        "hist_gap",
        "hist_mask",
        "user_bucket",
        "profile",
        "user_dense",
        "scenario",
        "now_gap",
        "hour",
        "query",
    ),
    "ranker": ("states", "states_mask", "request_state", "scenario", "cand_vec", "cand_dense"),
}

#: Outputs of each part, in the order that its `forward` returns them.
OUTPUTS: dict[str, tuple[str, ...]] = {
    "item_encoder": ("item_vec", "item_key"),
    "user_encoder": ("user_vec", "trend_weight", "request_state", "states", "states_mask"),
    "ranker": ("probabilities",),
}


class Parts(Protocol):
    """A network that answers, whatever runs it. Histories are padded on the right (hist_mask false)."""

    def item_encoder(self, inputs: Arrays) -> Arrays:
        """`encode_items` [N] -> item_vec float32 [N, d], item_key float32 [N, d] of unit length."""
        ...

    def user_encoder(self, inputs: Arrays) -> Arrays:
        """`encode_request` [B] with hist_vec float32 [B, L, d] in place of hist_row.

        Returns user_vec float32 [B, d] (unit length), trend_weight float32 [B, 1] (retrieval score = user_vec ·
        item_key + trend_weight · log(1 + trend)), request_state float32 [B, d], states float32 [B, L + 1, d],
        states_mask bool [B, L + 1].
        """
        ...

    def ranker(self, inputs: Arrays) -> Arrays:
        """States and candidates -> probabilities float32 [B, K, tasks], calibrated."""
        ...


class TorchParts:
    """Parts run by PyTorch, in evaluation mode, on the network's device."""

    def __init__(self, network: Network) -> None:
        self.network = network.eval()

    def _run(self, name: str, module: nn.Module, inputs: Arrays) -> Arrays:
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            answer = module(*(torch.from_numpy(np.ascontiguousarray(inputs[key])).to(device) for key in INPUTS[name]))
        outputs = answer if isinstance(answer, tuple) else (answer,)
        return {key: value.cpu().numpy() for key, value in zip(OUTPUTS[name], outputs, strict=True)}

    def item_encoder(self, inputs: Arrays) -> Arrays:
        """See `Parts.item_encoder`."""
        return self._run("item_encoder", self.network.item_encoder, inputs)

    def user_encoder(self, inputs: Arrays) -> Arrays:
        """See `Parts.user_encoder`."""
        return self._run("user_encoder", self.network.user_encoder, inputs)

    def ranker(self, inputs: Arrays) -> Arrays:
        """See `Parts.ranker`."""
        return self._run("ranker", self.network.ranker, inputs)

    def resting(self) -> str | None:
        """See `omnifeed.serving.recommend.parts.Parts`: none ever does."""
        return None
