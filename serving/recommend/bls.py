"""A release's parts asked through Triton (business logic scripting), from inside the `recommend` model.

Imported only by the server's Python, where `triton_python_backend_utils` exists.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from omnifeed.errors import UnavailableError
from omnifeed.serving.recommend.contract import PART_S, REST_S
from omnifeed.serving.recommend.parts import OUTPUTS, Arrays, as_batched
from omnifeed.serving.recommend.patience import Patience

_request = threading.local()  # the thread that makes an index asks the same models for nobody's request


def traced_by(request: Any) -> None:
    """What this thread asks of other models from now on belongs to the trace of this request."""
    _request.trace = {"trace": request.trace()}


class BlsParts:
    """`Parts` of one release: the Triton models `<part>_<number>`, version 1, pinned.

    A part that hangs, or whose process has crashed, which takes a second to fail, must not keep `recommend` from
    answering others. The call says how long anybody waits for it, so that a backend that can stop does not go on for
    nobody. The item encoder is not asked for a request, and may take its time.
    """

    def __init__(self, number: str) -> None:
        self._number = number
        self._waits = {part: Patience[Any](PART_S, REST_S) for part in ("user_encoder", "ranker")}

    def item_encoder(self, inputs: Arrays) -> Arrays:
        """See `Parts.item_encoder`."""
        return self._call("item_encoder", inputs)

    def user_encoder(self, inputs: Arrays) -> Arrays:
        """See `Parts.user_encoder`."""
        return self._call("user_encoder", inputs)

    def ranker(self, inputs: Arrays) -> Arrays:
        """See `Parts.ranker`."""
        return self._call("ranker", inputs)

    def resting(self) -> str | None:
        """See `Parts.resting`."""
        return next((part for part, waits in self._waits.items() if waits.resting()), None)

    def _call(self, part: str, inputs: Arrays) -> Arrays:
        waits = self._waits.get(part)
        request = pb_utils.InferenceRequest(
            model_name=f"{part}_{self._number}",
            model_version=1,
            requested_output_names=list(OUTPUTS[part]),
            timeout=round(PART_S * 1e6) if waits else 0,
            **getattr(_request, "trace", {}),
            inputs=[
                pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in as_batched(part, inputs).items()
            ],
        )
        response = request.exec() if waits is None else waits.do(request.exec)
        if response.has_error():
            raise UnavailableError(
                f"{part}_{self._number} did not answer: {response.error().message()}.", "See its log."
            )
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
