"""A stand-in for NVIDIA's native ONNX Runtime backend, for servers that come without it.

Placed as `backends/onnxruntime/model.py` beside the Python backend, it makes `backend: "onnxruntime"` load
`<version>/model.onnx` from the very config.pbtxt that NVIDIA's container serves with its C++ backend. It is slower (one
more process between) and runs on the CPU; nothing in a bundle depends on which of the two serves it.
It stops when a request's timeout is over, which nobody may rely on elsewhere.
"""

import json
import os
import sys
import threading
import time

import onnxruntime
import triton_python_backend_utils as pb_utils

LOOK_S = 0.1  # so much later than asked may a run stop


class TritonPythonModel:
    """One instance of one model."""

    def initialize(self, args):
        """Open the graph with the threads that config.pbtxt names."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 1))
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 1))
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            print(error, file=sys.stderr, flush=True)
            raise pb_utils.TritonModelException("model.onnx cannot be loaded by onnxruntime.") from None
        self.outputs = [output["name"] for output in config["output"]]
        self.running = None  # the options of what runs now, and when it shall stop
        threading.Thread(target=self._stop_late, daemon=True).start()

    def execute(self, requests):
        """Run the requests one by one; an error carries no path of the server."""
        return [self._run(request) for request in requests]

    def _stop_late(self):
        while True:
            time.sleep(LOOK_S)
            running = self.running
            if running is not None and time.monotonic() > running[1]:
                running[0].terminate = True

    def _run(self, request):
        feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        options = onnxruntime.RunOptions()
        if request.timeout():
            self.running = options, time.monotonic() + request.timeout() / 1e6
        try:
            answers = self.session.run(self.outputs, feeds, options)
        except Exception as error:
            print(error, file=sys.stderr, flush=True)
            text = "onnxruntime refused the inputs; the server's log says why."
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, pb_utils.TritonError.INVALID_ARG))
        finally:
            self.running = None
        tensors = [pb_utils.Tensor(name, value) for name, value in zip(self.outputs, answers, strict=True)]
        return pb_utils.InferenceResponse(tensors)
