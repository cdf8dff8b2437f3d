"""Nothing in a bundle depends on which server opens it: the stand-in backend here, or NVIDIA's ONNX Runtime backend."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.releases import workshop
from omnifeed.export.release import PARTS

ROOT = Path(__file__).resolve().parents[2]
#: What NVIDIA's backend documents (triton-inference-server/onnxruntime_backend, README) and the stand-in reads.
PARAMETERS = {"intra_op_thread_count", "inter_op_thread_count"}


@pytest.fixture(scope="module")
def bundle() -> Path:
    return workshop() / "home" / "releases" / "1"


@pytest.mark.parametrize("part", PARTS)
def test_a_model_is_a_configuration_and_a_graph_of_standard_operators(bundle: Path, part: str) -> None:
    folder = bundle / "models" / f"{part}_1"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["1/model.onnx", "config.pbtxt"]
    graph = onnx.load(folder / "1" / "model.onnx")
    onnx.checker.check_model(graph)
    assert {one.domain for one in graph.opset_import} <= {"", "ai.onnx"}
    assert all(node.domain in ("", "ai.onnx") for node in graph.graph.node)
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


@pytest.mark.parametrize("part", PARTS)
def test_a_configuration_says_all_that_a_server_needs_and_nothing_of_one(bundle: Path, part: str) -> None:
    folder = bundle / "models" / f"{part}_1"
    settings = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    assert settings.backend == "onnxruntime"  # not python: the stand-in takes the native backend's name
    assert not settings.platform
    assert {field.name for field, _ in settings.ListFields()} <= {
        "name",
        "backend",
        "max_batch_size",
        "input",
        "output",
        "instance_group",
        "parameters",
    }
    assert settings.parameters.keys() == PARAMETERS
    graph = onnx.load(folder / "1" / "model.onnx").graph
    for said, there in ((settings.input, graph.input), (settings.output, graph.output)):
        assert {one.name for one in said} == {one.name for one in there}


def test_a_bundle_names_no_server_no_path_and_no_stand_in(bundle: Path) -> None:
    texts = [path.read_text() for path in (bundle / "release.json", *bundle.glob("models/*/config.pbtxt"))]
    for text in texts:
        assert not re.search(r"python_backend|pytriton|model\.py|EXECUTION_ENV|/(usr|opt|home|tmp|work)/", text)


def test_the_stand_in_reads_no_parameter_that_the_native_backend_does_not_know() -> None:
    source = (ROOT / "serving" / "backends" / "onnxruntime" / "model.py").read_text()
    read = [
        call.args[0].value
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "get"
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "parameters"
        and isinstance(call.args[0], ast.Constant)
    ]
    assert set(read) == PARAMETERS
