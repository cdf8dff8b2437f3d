"""The compiled pipelines are checked in, so that a change to what the cluster runs is seen. Refresh: `make goldens`."""

from __future__ import annotations

from pathlib import Path

import pytest
from kfp import compiler

from omnifeed.pipelines.monitoring import monitoring
from omnifeed.pipelines.promotion import promotion
from omnifeed.pipelines.training import training

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.mark.parametrize("pipeline", [training, promotion, monitoring], ids=["training", "promotion", "monitoring"])
def test_compiled_pipeline_equals_its_golden(pipeline: object, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = f"{pipeline.name}.yaml"  # type: ignore[attr-defined]
    compiler.Compiler().compile(pipeline, str(tmp_path / name))
    compiled = (tmp_path / name).read_text(encoding="utf-8")
    if request.config.getoption("--refresh-goldens"):
        (GOLDEN / name).write_text(compiled, encoding="utf-8")
    assert compiled == (GOLDEN / name).read_text(encoding="utf-8")


def test_compiling_is_deterministic(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        compiler.Compiler().compile(training, str(tmp_path / name))
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()
