"""The `recommend` model: tensors to a `Request`, an `Answer` to tensors. What happens between is in serving/recommend.

Settings come from the environment, so this folder is the same on a laptop and in a container: OMNIFEED_HOME,
OMNIFEED_CONFIG (a file with `Config.to_json()`), OMNIFEED_FEATURES (host:port, absent: no feature server),
OMNIFEED_SIMULATED_CLOCK=1.
"""

import logging
import os
import sys
import threading
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils

from omnifeed.config import Config
from omnifeed.errors import OmnifeedError, UnavailableError
from omnifeed.features.online import FeatureClient
from omnifeed.home import Home
from omnifeed.serving.recommend.bls import BlsParts
from omnifeed.serving.recommend.contract import ERROR_SEPARATOR, INPUT_TYPES
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.live import Live
from omnifeed.serving.recommend.tensors import answer_tensors, request_from_tensors

POLL_S = 0.5  # how often routing and catalogue are looked at
START_POLL_S = 0.05  # the same until everything is there
FIRST_S = 20.0  # how long the first request waits for that; afterwards answers degrade instead

log = logging.getLogger("omnifeed.recommend")


class TritonPythonModel:
    """One instance: its own index, its own exposure file."""

    def initialize(self, args):
        """Read the settings and start looking at routing and catalogue."""
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
        home = Home.from_env()
        config = Config.from_json(Path(os.environ["OMNIFEED_CONFIG"]).read_text(encoding="utf-8"))
        host, _, port = os.environ.get("OMNIFEED_FEATURES", "").rpartition(":")
        self.exposures = ExposureLog(home, time.time_ns() // 1000)
        self.live = Live(home, config, BlsParts)
        self.recommender = Recommender(
            self.live,
            FeatureClient(host, int(port)) if host else None,
            self.exposures,
            config.serving,
            clock=lambda: time.time_ns() // 1000,
            simulated_clock=os.environ.get("OMNIFEED_SIMULATED_CLOCK") == "1",
        )
        self.stopping, self.complete = threading.Event(), threading.Event()
        self.poller = threading.Thread(target=self.poll, name="omnifeed-live", daemon=True)
        self.poller.start()

    def poll(self):
        """Refresh until the model is unloaded; a failure is logged and tried again."""
        while not self.stopping.wait(POLL_S if self.complete.is_set() else START_POLL_S):
            try:
                if self.live.refresh():
                    self.complete.set()
            except Exception:
                log.exception("refresh failed")

    def execute(self, requests):
        """Answer the requests one by one; the first ones wait for the first index."""
        if not self.complete.is_set():
            self.complete.wait(FIRST_S)
            self.complete.set()
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """One response: the answer, or an error that names no path of this machine."""
        try:
            tensors = {}
            for name in INPUT_TYPES:
                tensor = pb_utils.get_input_tensor_by_name(request, name)
                if tensor is not None:
                    tensors[name] = tensor.as_numpy()
            answer = self.recommender.recommend(request_from_tensors(tensors))
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, value) for name, value in answer_tensors(answer).items()]
            )
        except UnavailableError as error:
            return failure(error, pb_utils.TritonError.UNAVAILABLE)
        except OmnifeedError as error:
            return failure(error, pb_utils.TritonError.INVALID_ARG)
        except Exception:
            log.exception("recommend failed")
            error = OmnifeedError("The server could not answer this request.", "Its log says why; ask again.")
            return failure(error, pb_utils.TritonError.INTERNAL)

    def finalize(self):
        """Stop looking, close the log."""
        self.stopping.set()
        self.poller.join(timeout=10)
        self.exposures.close()


def failure(error, code):
    """An error response that a client can take apart again."""
    text = f"{error.problem}{ERROR_SEPARATOR}{error.action}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
