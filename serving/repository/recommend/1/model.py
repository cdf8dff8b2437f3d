"""The `recommend` model: tensors to a `Request`, an `Answer` to tensors. What happens between is in serving/recommend.

Settings come from the environment, so this folder is the same on a laptop and in a container: OMNIFEED_HOME,
OMNIFEED_CONFIG (a file with `Config.to_json()`), OMNIFEED_FEATURES (host:port, absent: no feature server),
OMNIFEED_METRICS (host:port of this Triton's), OMNIFEED_SIMULATED_CLOCK=1.
"""

import json
import logging
import os
import threading
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils

from omnifeed.config import Config
from omnifeed.errors import OmnifeedError, UnavailableError
from omnifeed.features.online import FeatureClient
from omnifeed.home import Home
from omnifeed.serving.recommend import journal
from omnifeed.serving.recommend.backlog import LOOK_S, Backlog
from omnifeed.serving.recommend.bls import BlsParts, traced_by
from omnifeed.serving.recommend.contract import ERROR_SEPARATOR, INPUT_TYPES
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exporter import Exporter
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.feature_log import FeatureLog
from omnifeed.serving.recommend.live import Live
from omnifeed.serving.recommend.metrics import Metrics
from omnifeed.serving.recommend.tensors import answer_tensors, request_from_tensors

POLL_S = 0.5  # how often routing and catalogue are looked at
START_POLL_S = 0.05  # the same until everything is there
FIRST_S = 20.0  # how long the first request waits for that; afterwards answers degrade instead

log = logging.getLogger("omnifeed.recommend")


class TritonPythonModel:
    """One instance: its own index, its own exposure file."""

    def initialize(self, args):
        """Read the settings and start looking at routing and catalogue."""
        journal.start()
        home = Home.from_env()
        config = Config.from_json(Path(os.environ["OMNIFEED_CONFIG"]).read_text(encoding="utf-8"))
        host, _, port = os.environ.get("OMNIFEED_FEATURES", "").rpartition(":")
        started = time.time_ns() // 1000
        self.exposures = ExposureLog(home, started)
        self.features = FeatureLog(home, started, config.monitoring)
        self.live = Live(home, config, BlsParts)
        self.metrics = Metrics(config.data.scenarios)
        self.exporter = Exporter(self.metrics)
        self.recommender = Recommender(
            self.live,
            FeatureClient(host, int(port)) if host else None,
            self.exposures,
            config.serving,
            clock=lambda: time.time_ns() // 1000,
            simulated_clock=os.environ.get("OMNIFEED_SIMULATED_CLOCK") == "1",
            feature_log=self.features,
            metrics=self.metrics,
        )
        group = json.loads(args["model_config"])["instance_group"]
        instances = sum(one["count"] for one in group)
        self.backlog = Backlog(os.environ["OMNIFEED_METRICS"], config.serving.queue_limit, instances)
        self.stopping, self.complete = threading.Event(), threading.Event()
        self.pollers = [
            threading.Thread(target=one, daemon=True) for one in (self.follow, self.build, self.count, self.queue)
        ]
        for poller in self.pollers:
            poller.start()

    def follow(self):
        """Look at routing and catalogue until the model is unloaded; what fails is logged and tried again."""
        while not self.stopping.wait(POLL_S if self.complete.is_set() else START_POLL_S):
            try:
                self.live.follow()
            except Exception:
                log.exception("following the catalogue failed")

    def build(self):
        """Encode what is new until the model is unloaded. It may wait for an item encoder; what is shown does not."""
        while not self.stopping.wait(POLL_S if self.complete.is_set() else START_POLL_S):
            try:
                if self.live.build():
                    self.complete.set()
            except Exception:
                log.exception("encoding the catalogue failed")

    def count(self):
        """Hand the counts over, apart from the building: that may take as long as encoding a catalogue takes."""
        while not self.stopping.wait(POLL_S):
            try:
                self.exporter.flush(self.live.state, time.time_ns() // 1000)
            except Exception:
                log.exception("metrics not handed over")

    def queue(self):
        """Look how many requests wait."""
        while not self.stopping.wait(LOOK_S):
            try:
                self.backlog.look()
            except Exception:
                log.exception("the queue cannot be seen")

    def execute(self, requests):
        """Answer the requests one by one; the first ones wait for the first index."""
        if not self.complete.is_set():
            self.complete.wait(FIRST_S)
            self.complete.set()
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """One response: the answer, or an error that names no path of this machine."""
        tensors = {}
        if request.is_cancelled():  # its deadline passed in the queue, or its caller hung up: nobody reads an answer
            self.metrics.abandoned()
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
        try:
            if self.backlog.refuses():
                raise UnavailableError(
                    "More requests are waiting than this server answers in time.",
                    "Ask again in a second, with the same request_id; if it lasts, add replicas.",
                )
            traced_by(request)
            for name in INPUT_TYPES:
                tensor = pb_utils.get_input_tensor_by_name(request, name)
                if tensor is not None:
                    tensors[name] = tensor.as_numpy()
            asked = request_from_tensors(tensors)
            answer = self.recommender.recommend(asked)
            journal.note_slow(asked, answer)
            return pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, value) for name, value in answer_tensors(answer).items()]
            )
        except UnavailableError as error:
            return self.refused(error, "UNAVAILABLE", pb_utils.TritonError.UNAVAILABLE, tensors)
        except OmnifeedError as error:
            return self.refused(error, "INVALID_ARGUMENT", pb_utils.TritonError.INVALID_ARG, tensors)
        except Exception:
            log.exception("recommend failed", extra=journal.named(tensors))
            error = OmnifeedError("The server could not answer this request.", "Its log says why; ask again.")
            return self.refused(error, "INTERNAL", pb_utils.TritonError.INTERNAL, tensors)

    def refused(self, error, code, triton_code, tensors):
        """Count and log an error, and make the response that a client can take apart again."""
        self.metrics.refused(code, error)
        log.info("refused %s", code, extra=journal.named(tensors))
        text = f"{error.problem}{ERROR_SEPARATOR}{error.action}"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, triton_code))

    def finalize(self):
        """Stop looking, close the log."""
        self.stopping.set()
        for poller in self.pollers:
            poller.join(timeout=10)
        self.exposures.close()
        self.features.close()
