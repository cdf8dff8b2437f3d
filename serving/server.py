"""The whole serving stack on one machine: Triton with `recommend` and every routed release, and the feature server.

The model repository is the one that NVIDIA's container serves: the release's own folders, linked after their hashes
were checked. Only `backends/` differs, where a stand-in opens ONNX files for a server that comes without the native
backend.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

import omnifeed
from omnifeed.config import Config
from omnifeed.errors import OmnifeedError, UnavailableError
from omnifeed.experiment.assignment import HELD
from omnifeed.export.catalogue import current_version
from omnifeed.export.release import PARTS, load_release
from omnifeed.home import Home, write_atomic
from omnifeed.serving.client import Client
from omnifeed.serving.healing import Healer
from omnifeed.serving.preflight import check_memory
from omnifeed.serving.processes import HOST, Child, free_ports, listening
from omnifeed.serving.recommend.contract import Reason
from omnifeed.serving.recommend.routing import read_routing, routing_stamp
from omnifeed.serving.wire import CHANNEL_ARGS

log = logging.getLogger(__name__)

SERVING = Path(__file__).parent
START_S = 120.0  # Feast alone takes 8 to 13 s of imports on a cold disk, and more on a busy machine
DRAIN_S = 30.0
LOAD_S = 60.0
GRACE_S = 1.0  # twice the interval at which `recommend` looks at the routing
TRACE_RATE = 1000  # of the requests that bring no trace of their own, one in so many is traced
PROBES = 8  # answers in a row that make an arm ready
TRITON_ENV = "OMNIFEED_TRITON_ENV"


class LocalServer:
    """A context manager: inside, `url` answers; after it, no process is left.

    Ports of 0 in `config.serving` are replaced by free ones; `config` shows which.

    Args:
        simulated_clock: requests may carry their own `now`.
        features: start the feature server as well; without it every answer says `no_features`.
        traces: URL of an OpenTelemetry collector (OTLP over HTTP, usually http://host:4318/v1/traces) to which every
            request with a sampled traceparent, and one in TRACE_RATE of the others, is sent with its stages; None: no
            traces.
    """

    def __init__(
        self,
        home: Home,
        config: Config,
        simulated_clock: bool = False,
        features: bool = True,
        traces: str | None = None,
    ) -> None:
        self.home, self.config, self._traces = home, config, traces
        self._simulated, self._with_features = simulated_clock, features
        self._children: list[Child] = []
        self._loaded: set[str] = set()
        self._stamp: tuple[int, ...] = ()
        self._folder = home.root
        self._triton: triton.InferenceServerClient | None = None
        self._healer: Healer | None = None

    def __enter__(self) -> LocalServer:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """host:port of gRPC."""
        return f"{HOST}:{self.config.serving.grpc_port}"

    @property
    def log(self) -> Path:
        """Triton's log."""
        return self._folder / "triton.log"

    @property
    def loaded(self) -> frozenset[str]:
        """The releases whose models are in the server."""
        return frozenset(self._loaded)

    @property
    def children(self) -> tuple[Child, ...]:
        """The running programs: Triton, then the feature server."""
        return tuple(self._children)

    def stop(self) -> None:
        """Let requests in flight finish, then end every process."""
        if self._triton is not None:
            self._triton.close()
            self._triton = self._healer = None
        while self._children:
            self._children.pop(0).stop(DRAIN_S)
        self._loaded.clear()

    def load(self, number: str) -> None:
        """Check a release and load its models beside the others.

        Raises:
            IntegrityError: a file of the bundle is not what was exported; nothing is loaded.
            OmnifeedError: the memory is not enough for it and the others; nothing is loaded.
            UnavailableError: Triton cannot load it; what was loaded before goes on.
        """
        self._link(number)
        check_memory(self.home, self.config, sorted(self._loaded | {number}))
        for name in self._models(number):
            self._control(name, load=True)
        self._loaded.add(number)

    def unload(self, number: str) -> None:
        """Take a release's models out of the server."""
        for name in self._models(number):
            self._control(name, load=False)
            (self._folder / "repository" / name).unlink(missing_ok=True)
        self._loaded.discard(number)

    def refresh(self) -> None:
        """Load what the experiment and the ledger route to now, and unload what they no longer do."""
        self._stamp = routing_stamp(self.home)
        routed = read_routing(self.home).releases()
        for number in routed:
            if number not in self._loaded:
                self.load(number)
        self._await_answers(time.monotonic() + LOAD_S)
        retired = self._loaded - set(routed)
        if retired:
            time.sleep(GRACE_S)  # an instance that has not looked at the routing since may still ask them
        for number in retired:
            self.unload(number)

    def watch(self) -> None:
        """Follow the routing and load again what has died; call it about once a second. A release that cannot be loaded
        leaves the others serving.

        Raises:
            UnavailableError: Triton or the feature server has ended.
        """
        self._check_alive("has ended")
        if self._healer is not None:
            self._healer.look()
        if routing_stamp(self.home) != self._stamp:
            try:
                self.refresh()
            except OmnifeedError as error:
                log.error("%s", error)

    def _start(self) -> None:
        self._stamp = routing_stamp(self.home)
        routed = read_routing(self.home).releases()
        if not routed:
            raise UnavailableError(
                f"{self.home.root} has neither a champion nor an experiment.", "Run the training pipeline first."
            )
        current_version(self.home)
        check_memory(self.home, self.config, routed)
        environment = triton_environment()
        serving = self.config.serving
        wanted = (serving.grpc_port, serving.http_port, serving.metrics_port, serving.features_port)
        grpc, http, metrics, features = free_ports(wanted if self._with_features else (*wanted[:3], 0))
        serving = dataclasses.replace(
            serving, grpc_port=grpc, http_port=http, metrics_port=metrics, features_port=features
        )
        self.config = dataclasses.replace(self.config, serving=serving)
        self._folder = self.home.root / "serving" / str(grpc)
        self._assemble(environment)
        for number in routed:
            self._link(number)
            self._loaded.add(number)
        deadline = time.monotonic() + START_S
        if self._with_features:
            self._start_features()
        self._start_triton(environment, routed)
        self._triton = triton.InferenceServerClient(self.url, channel_args=CHANNEL_ARGS)
        self._healer = Healer(self._triton)
        self._await_ready(deadline)
        self._await_answers(deadline)

    def _assemble(self, environment: Path) -> None:
        """Repository and backends, made anew. Copies, because Triton refuses a backend's link out of its folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(
            SERVING / "repository", self._folder / "repository", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(SERVING / "backends", self._folder / "backends", ignore=shutil.ignore_patterns("__pycache__"))
        bundled = environment / "pytriton" / "tritonserver"
        shutil.copytree(bundled / "backends" / "python", self._folder / "backends" / "python")
        stub = bundled / "python_backend_stubs" / environment.parent.name.removeprefix("python")
        shutil.copy2(stub / "triton_python_backend_stub", self._folder / "backends" / "python")
        write_atomic(self._folder / "config.json", self.config.to_json())

    def _link(self, number: str) -> None:
        folder = self.home.releases / number
        load_release(folder)
        for name in self._models(number):
            link = self._folder / "repository" / name
            link.unlink(missing_ok=True)
            link.symlink_to(folder.absolute() / "models" / name, target_is_directory=True)

    def _models(self, number: str) -> list[str]:
        names = [f"{part}_{number}" for part in PARTS]
        return [name for name in names if (self.home.releases / number / "models" / name).is_dir()]

    def _start_features(self) -> None:
        from omnifeed.features.serve import command, environment

        child = Child(
            "The feature server",
            command(self.home, self.config),
            environment(self.home, self.config),
            self._folder / "features.log",
        )
        self._children.append(child)

    def _start_triton(self, environment: Path, routed: tuple[str, ...]) -> None:
        bundled, serving = environment / "pytriton" / "tritonserver", self.config.serving
        command = [
            str(bundled / "bin" / "tritonserver"),
            f"--model-repository={self._folder / 'repository'}",
            f"--backend-directory={self._folder / 'backends'}",
            f"--cache-directory={bundled / 'caches'}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",  # every configuration is explicit, and completing starts each stub twice
            "--load-model=recommend",
            *(f"--load-model={name}" for number in routed for name in self._models(number)),
            *(f"--{kind}-address={HOST}" for kind in ("grpc", "http", "metrics")),
            f"--grpc-port={serving.grpc_port}",
            f"--http-port={serving.http_port}",
            f"--metrics-port={serving.metrics_port}",
            "--allow-gpu-metrics=false",
            "--grpc-http2-min-recv-ping-interval-without-data=10000",
            "--grpc-keepalive-permit-without-calls=1",  # a client that pings while idle is not a nuisance
            f"--exit-timeout-secs={int(DRAIN_S)}",
            *(f"--trace-config={setting}" for setting in self._trace_settings()),
        ]
        variables = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
        }
        variables |= {
            "PATH": f"{environment.parents[2] / 'bin'}:{os.environ.get('PATH', '')}",  # decides the stubs' Python
            "LD_LIBRARY_PATH": str(environment / "nvidia_pytriton.libs"),  # of the copied stub
            "OMP_NUM_THREADS": "1",
            "OMNIFEED_HOME": str(self.home.root.absolute()),
            "OMNIFEED_CONFIG": str(self._folder / "config.json"),
            "OMNIFEED_METRICS": f"{HOST}:{serving.metrics_port}",
            "OMNIFEED_SIMULATED_CLOCK": "1" if self._simulated else "0",
            "OMNIFEED_FEATURES": f"{HOST}:{serving.features_port}" if self._with_features else "",
        }
        self._children.insert(0, Child("Triton", command, variables, self.log))

    def _trace_settings(self) -> tuple[str, ...]:
        if self._traces is None:
            return ()
        return (
            "mode=opentelemetry",
            f"opentelemetry,url={self._traces}",
            "opentelemetry,resource=service.name=omnifeed",
            f"rate={TRACE_RATE}",
            "level=TIMESTAMPS",
        )

    def _check_alive(self, otherwise: str) -> None:
        for child in self._children:
            if not child.alive():
                raise child.failure(otherwise)

    def _await_ready(self, deadline: float) -> None:
        assert self._triton is not None
        features_port = self.config.serving.features_port if self._with_features else None
        while True:
            self._check_alive("ended while it started")
            try:
                if self._triton.is_server_ready(client_timeout=1) and (not features_port or listening(features_port)):
                    return
            except InferenceServerException:
                pass
            if time.monotonic() > deadline:
                raise self._children[0].failure(f"was not ready within {START_S:.0f} s")
            time.sleep(0.1)

    def _await_answers(self, deadline: float) -> None:
        """Until every routed release answers for itself: the index is made after the models are loaded."""
        routing = read_routing(self.home)
        arms = [arm.name for arm in routing.experiment.arms] if routing.experiment else ["champion"]
        arms += [HELD] if routing.holdback else []
        pending = {Reason.INDEX_NOT_READY, Reason.USER_ENCODER_FAILED}
        if self._with_features:
            pending.add(Reason.NO_FEATURES)
        with Client(self.url) as client, ThreadPoolExecutor(2) as two:

            def probe(arm: str) -> str:
                """What is missing; two probes at a time reach both instances of `recommend`, each with its index."""
                try:
                    answer = client.recommend("probe", "probe", k=1, arm=arm, probe=True)
                    return ", ".join(pending & set(answer.degraded))
                except UnavailableError as error:
                    return error.problem

            for arm in arms:
                while missing := set(two.map(probe, [arm] * PROBES)) - {""}:
                    self._check_alive("ended while it was asked")
                    if time.monotonic() > deadline:
                        raise self._children[0].failure(f"does not answer for arm {arm}: {'; '.join(missing)}")
                    time.sleep(0.1)

    def _control(self, name: str, load: bool) -> None:
        if self._triton is None:
            raise OmnifeedError("The server does not run.", "Enter the LocalServer's context first.")
        try:
            if load:
                self._triton.load_model(name, client_timeout=LOAD_S)
            else:
                self._triton.unload_model(name, client_timeout=LOAD_S)
        except InferenceServerException as error:
            raise UnavailableError(
                f"Triton could not {'load' if load else 'unload'} {name}: {error.message()}.",
                f"See {self.log}; what was loaded before goes on.",
            ) from error


def triton_environment() -> Path:
    """site-packages of the Triton environment.

    Raises:
        UnavailableError: there is none.
    """
    named = os.environ.get(TRITON_ENV)
    folders = (
        [Path(named)] if named else [Path.cwd() / ".venv-triton", Path(omnifeed.__file__).parents[1] / ".venv-triton"]
    )
    for folder in folders:
        for site in sorted(folder.absolute().glob("lib/python3.*/site-packages")):
            if (site / "pytriton" / "tritonserver" / "bin" / "tritonserver").exists():
                return site
    raise UnavailableError(
        f"There is no Triton environment in {' or '.join(map(str, folders))}.",
        f"Set it up with `make setup`, or name its folder in {TRITON_ENV}.",
    )
