"""A release's ONNX graphs as `Parts`, run by onnxruntime: how a champion is evaluated, and parity measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from omnifeed.errors import IntegrityError
from omnifeed.export.release import PARTS

if TYPE_CHECKING:
    from omnifeed.model.parts import Arrays

# onnxruntime's default severity prints a warning for every machine without a GPU.
_ERRORS_ONLY = 3


class OnnxParts:
    """`omnifeed.model.parts.Parts` over `models/<part>_<number>/1/model.onnx`.

    Args:
        release_dir: a bundle; check it with `load_release` first.
        threads: onnxruntime threads of each part.

    Raises:
        IntegrityError: a graph is missing or cannot be loaded.
    """

    def __init__(self, release_dir: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = {}
        for part in PARTS:
            path = next(release_dir.glob(f"models/{part}_*/1/model.onnx"), release_dir / "models" / part)
            try:
                self._sessions[part] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime has its own types, one a cause
                raise IntegrityError(
                    f"{path} cannot be loaded: {str(error).splitlines()[0]}.", "Export the release again."
                ) from error

    def _run(self, part: str, inputs: Arrays) -> Arrays:
        session = self._sessions[part]
        feeds: dict[str, npt.NDArray[Any]] = {
            node.name: np.ascontiguousarray(inputs[node.name]) for node in session.get_inputs()
        }
        names = [node.name for node in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    def item_encoder(self, inputs: Arrays) -> Arrays:
        """See `Parts.item_encoder`."""
        return self._run("item_encoder", inputs)

    def user_encoder(self, inputs: Arrays) -> Arrays:
        """See `Parts.user_encoder`."""
        return self._run("user_encoder", inputs)

    def ranker(self, inputs: Arrays) -> Arrays:
        """See `Parts.ranker`."""
        return self._run("ranker", inputs)

    def resting(self) -> str | None:
        """None: these parts are asked whatever they did before."""
        return None
