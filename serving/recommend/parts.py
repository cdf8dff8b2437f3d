"""What serving asks of a release's network, whoever runs it: Triton here, onnxruntime in tests."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

#: Outputs of each part, in the order of the graphs.
OUTPUTS = {
    "item_encoder": ("item_vec", "item_key"),
    "user_encoder": ("user_vec", "trend_weight", "request_state", "states", "states_mask"),
    "ranker": ("probabilities",),
}


class Parts(Protocol):
    """The three parts; inputs and outputs are those of `omnifeed.model.parts.Parts`, which needs torch to import."""

    def item_encoder(self, inputs: Arrays) -> Arrays:
        """`encode_items` [N] -> item_vec float32 [N, d], item_key float32 [N, d] of unit length."""
        ...

    def user_encoder(self, inputs: Arrays) -> Arrays:
        """`encode_request` [B] with hist_vec -> user_vec, trend_weight, request_state, states, states_mask."""
        ...

    def ranker(self, inputs: Arrays) -> Arrays:
        """States and candidates -> probabilities float32 [B, K, tasks]."""
        ...

    def resting(self) -> str | None:
        """A part that has hung and is not asked for now; None where all are."""
        ...


def as_batched(part: str, inputs: Arrays) -> Arrays:
    """Inputs as Triton takes them: a part that it batches gets a scalar a request as [B, 1], reshaped there to [B]."""
    if part == "item_encoder":
        return inputs
    return {name: value[:, None] if value.ndim == 1 else value for name, value in inputs.items()}
