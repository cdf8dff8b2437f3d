"""The network's parts as ONNX graphs, each beside the Triton configuration that names its inputs and outputs.

The item encoder takes any number of items in one call (`max_batch_size: 0`, its first dimension is the items); the
user encoder and the ranker are batched by Triton over requests of equal lengths. The parameters in config.pbtxt are
those of NVIDIA's native ONNX Runtime backend; the stand-in in `serving/backends` reads the same file.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from omnifeed.errors import OmnifeedError
from omnifeed.model.network import Network
from omnifeed.model.parts import INPUTS, OUTPUTS, Arrays

OPSET = 20
MAX_BATCH = 64  # requests a call of the user encoder and the ranker

_TRITON_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "bool": "TYPE_BOOL"}
#: Names of the dynamic axes behind the first, which is the batch.
SECOND_AXIS = {
    **dict.fromkeys(("hist_vec", "hist_action", "hist_scenario", "hist_gap", "hist_mask"), "length"),
    **dict.fromkeys(("states", "states_mask"), "states"),
    **dict.fromkeys(("cand_vec", "cand_dense", "probabilities"), "candidates"),
}


def export_graph(network: Network, part: str, example: Arrays, path: Path) -> None:
    """Write one part as an ONNX file with dynamic batch, length and candidates.

    Args:
        example: inputs of the part with at least two rows along every dynamic axis.

    Raises:
        OmnifeedError: the part does not export.
    """
    module = getattr(network.eval(), part)
    names = INPUTS[part]
    dims = {name: torch.export.Dim(name, min=1) for name in ("batch", "length", "states", "candidates")}
    shapes = tuple(
        {0: dims["batch"], **({1: dims[SECOND_AXIS[name]]} if name in SECOND_AXIS else {})} for name in names
    )
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(torch.from_numpy(np.ascontiguousarray(example[name])) for name in names),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=list(names),
                output_names=list(OUTPUTS[part]),
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise OmnifeedError(
            f"The {part} does not export to ONNX: {str(error).splitlines()[0]}.",
            "See whether its layers export with dynamic shapes.",
        ) from error
    assert program is not None
    onnx.save(_without_paths(program.model_proto), path)


def _without_paths(model: onnx.ModelProto) -> onnx.ModelProto:
    """The exporter notes source files and lines beside every node; a release names no folder of the machine."""
    for graph in (model.graph, *model.functions):
        del graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in (*getattr(graph, "input", ()), *getattr(graph, "output", ()), *graph.value_info):
            if hasattr(value, "metadata_props"):
                del value.metadata_props[:]
    del model.metadata_props[:]
    return model


def triton_config(name: str, part: str, example: Arrays, outputs: Arrays, threads: int) -> str:
    """The text of config.pbtxt.

    Args:
        name: of the Triton model, `<part>_<number>`.
        example: inputs that fix types and ranks; outputs: what they give.
        threads: onnxruntime threads of the instance.
    """
    batched = part != "item_encoder"
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {MAX_BATCH if batched else 0}"]
    for kind, names, arrays in (("input", INPUTS[part], example), ("output", OUTPUTS[part], outputs)):
        rows = [f"  {_tensor(tensor, arrays[tensor], batched)}" for tensor in names]
        lines += [f"{kind} [", ",\n".join(rows), "]"]
    lines += [
        "instance_group [{ count: 1 }]",
        f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}',
        'parameters { key: "inter_op_thread_count" value { string_value: "1" } }',
    ]
    return "\n".join(lines) + "\n"


def _tensor(name: str, array: npt.NDArray[Any], batched: bool) -> str:
    dims = [-1, *array.shape[1:]]
    if name in SECOND_AXIS:
        dims[1] = -1
    shown = dims[1:] if batched else dims
    reshape = "" if shown else ", reshape: { shape: [] }"
    return f'{{ name: "{name}", data_type: {_TRITON_TYPES[array.dtype.name]}, dims: {shown or [1]}{reshape} }}'
