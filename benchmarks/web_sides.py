"""What a user would pick instead of Triton: the same engine behind a web server, in an environment of its own."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from own_environment import own_python
from record import ROOT
from serving_stack import asked

from omnifeed.config import Config
from omnifeed.home import Home, write_atomic
from omnifeed.serving.processes import HOST, Child, free_ports, listening

WORKERS = 2  # of a web server, as many as `recommend` has instances

Ask = Callable[[dict[str, Any]], Any]


@dataclass
class Side:
    """Someone who answers; `ask` gives one caller."""

    name: str
    caller: Callable[[], Ask]
    concurrent: bool = True
    figures: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True, slots=True)
class Web:
    """A web server in an environment of its own, which holds the engine in each of its workers."""

    name: str
    packages: tuple[str, ...]
    arguments: tuple[str, ...]  # of Python, without the port
    path: str
    asked: Callable[[dict[str, Any]], Any]  # the request as its body
    answered: Callable[[Any], Any]  # the answer in its body


BENCHMARKS = ROOT / "benchmarks"
WEB = (
    Web(
        "FastAPI",
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "onnxruntime==1.32.0", "numpy==1.26.4"),
        ("-m", "uvicorn", "fastapi_side:app", "--app-dir", str(BENCHMARKS), "--log-level", "warning"),
        "/recommend",
        lambda request: request,
        lambda body: body,
    ),
    Web(
        "KServe",
        ("kserve==0.21.0", "onnxruntime==1.32.0", "numpy==1.26.4"),
        (str(BENCHMARKS / "kserve_side.py"),),
        "/v1/models/recommend:predict",
        lambda request: {"instances": [request]},
        lambda body: body["predictions"][0],
    ),
)


@contextmanager
def serving(web: Web, home: Home, config: Config, folder: Path, now: int) -> Iterator[Side]:
    """The web server, once each of its workers has answered."""
    python = own_python(folder / web.name, web.packages, project=True)
    (port,) = free_ports((0,))
    settings_file = folder / f"{web.name}.json"
    write_atomic(settings_file, config.to_json())
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "OMNIFEED_HOME": str(home.root.absolute()),
        "OMNIFEED_CONFIG": str(settings_file),
        "OMNIFEED_FEATURES": f"{HOST}:{config.serving.features_port}",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(python), *web.arguments, "--port", str(port), "--workers", str(WORKERS)]
    child = Child(web.name, command, variables, folder / f"{web.name}.log")

    def caller(timeout_s: float = 30) -> Ask:
        connection = http.client.HTTPConnection(HOST, port, timeout=timeout_s)

        def ask(request: dict[str, Any]) -> Any:
            body = json.dumps(web.asked(request))
            connection.request("POST", web.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            raw = response.read()
            if response.status != 200:
                raise RuntimeError(f"{web.name} answered {response.status}: {raw[:300]!r}")
            return web.answered(json.loads(raw))

        return ask

    def first(number: int) -> None:
        for turn in range(4):
            caller(600)(asked(number, now, config, f"{web.name}-first-{turn}-"))

    try:
        deadline = time.monotonic() + 300
        while not listening(port):
            if not child.alive() or time.monotonic() > deadline:
                raise child.failure("did not start")
            time.sleep(0.5)
        with ThreadPoolExecutor(4 * WORKERS) as pool:
            list(pool.map(first, range(4 * WORKERS)))
        yield Side(web.name, caller)
    finally:
        child.stop(5)
