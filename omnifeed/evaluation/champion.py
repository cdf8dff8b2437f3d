"""A release as a scorer: judged through its bundle, never through re-imported code."""

from __future__ import annotations

from pathlib import Path

from omnifeed.config import Config
from omnifeed.evaluation.scorer import NetworkScorer, Scorer, TrendingScorer
from omnifeed.export.encode import EncodeSpec
from omnifeed.export.release import load_release


def release_scorer(folder: Path, config: Config) -> Scorer:
    """The scorer of a bundle, its hashes checked.

    Raises:
        IntegrityError: the bundle is not what was exported.
    """
    release = load_release(folder)
    if release.kind == "trending":
        return TrendingScorer(name=f"release {release.number} (trending)")
    from omnifeed.export.onnx_parts import OnnxParts

    parts = OnnxParts(folder, config.training.threads)
    return NetworkScorer(
        parts,
        EncodeSpec.from_dict(release.encode),
        release.tasks,
        name=f"release {release.number}",
    )
