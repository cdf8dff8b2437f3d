"""What whoever runs the server sees of it, and what users get while something around it is broken: the real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from export.releases import FOREVER, NOW, config, copied, experiment
from prometheus_client.parser import text_string_to_metric_families

from omnifeed.errors import InputError, OmnifeedError, UnavailableError
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.home import write_json
from omnifeed.serving.async_client import AsyncClient
from omnifeed.serving.client import Client
from omnifeed.serving.processes import _ERROR
from omnifeed.serving.recommend.contract import Reason, Stage
from omnifeed.serving.recommend.metrics import FAMILIES
from omnifeed.serving.recommend.sink import WAIT_S
from omnifeed.serving.server import LocalServer, triton_environment
from omnifeed.serving.wire import Recommendation
from serving.feature_double import FeatureDouble, Served

try:
    triton_environment()
except UnavailableError as missing:
    pytest.skip(missing.problem, allow_module_level=True)

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """An OpenTelemetry collector that keeps what it was sent."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                collector.spans += [
                    span
                    for resource in sent["resourceSpans"]
                    for scope in resource["scopeSpans"]
                    for span in scope["spans"]
                ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Served]:
    home = copied(tmp_path_factory.mktemp("operations") / "home")
    experiment(home, ("champion", "1", 0.5), ("challenger", "0", 0.5))
    with Served(home, config(), simulated_clock=True, traces=collector.url) as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[Client]:
    server.features.answer = FeatureDouble.fine
    with Client(server.url, deadline_s=10) as one:
        yield one


def counted(server: LocalServer) -> Counter[tuple[str, frozenset[tuple[str, str]]]]:
    """Every sample of /metrics by its name and labels."""
    address = f"http://127.0.0.1:{server.config.serving.metrics_port}/metrics"
    text = urllib.request.urlopen(address, timeout=5).read().decode()
    found: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:  # this parser, unlike Prometheus, ends the name of every counter in _total
            name = sample.name if sample.name in FAMILIES else sample.name.removesuffix("_total")
            found[name, frozenset(sample.labels.items())] += sample.value
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


def test_requests_stages_and_degradations_are_counted_by_the_field_s_names(server: Served, client: Client) -> None:
    before = counted(server)
    for n in range(6):
        client.recommend(f"u{n}", "search", "red lamp", arm="champion", now=NOW)
    client.recommend("u", "a scenario of somebody's own", arm="challenger", now=NOW)
    client.recommend("u", "search", now=NOW, probe=True)  # not counted: health checks are nobody's traffic
    with pytest.raises(InputError):
        client.recommend("u", "search", k=0, now=NOW)

    def grown(name: str, **labels: str) -> float:
        key = name, frozenset(labels.items())
        return counted(server)[key] - before[key]

    requests = "omnifeed_requests_total"
    wait_for(lambda: grown(requests, scenario="search", arm="champion", release="1") == 6, 5)
    wait_for(lambda: grown(requests, scenario="other", arm="challenger", release="0") == 1, 5)
    assert grown("omnifeed_degraded_total", reason="unknown_scenario", scenario="other", arm="challenger") == 1
    wait_for(lambda: grown("omnifeed_refusals_total", code="INVALID_ARGUMENT", kind="malformed") == 1, 5)
    for stage in (Stage.USER_ENCODER, Stage.RANKER):
        assert grown("omnifeed_stage_seconds_count", stage=stage.value) == 6
        assert grown("omnifeed_stage_seconds_bucket", stage=stage.value, le="+Inf") == 6
    assert grown("omnifeed_stage_seconds_count", stage="total") == 7
    now = counted(server)
    assert now["omnifeed_releases_ready", frozenset()] == now["omnifeed_releases_routed", frozenset()] == 2
    assert now["omnifeed_catalogue_items", frozenset()] > 0
    assert {name for name, _ in now if name.startswith("omnifeed_")} <= set(FAMILIES)


def test_an_answer_says_where_its_time_went(client: Client) -> None:
    answer = client.recommend("u1", "search", "red lamp", arm="champion", now=NOW)
    assert list(answer.stage_ms) == list(Stage)
    parts = sum(ms for stage, ms in answer.stage_ms.items() if stage is not Stage.TOTAL)
    assert 0 < parts <= answer.stage_ms[Stage.TOTAL] + 0.001


def test_a_trace_runs_from_the_caller_through_recommend_into_its_models(
    server: Served, client: Client, collector: Collector
) -> None:
    parent = "b7ad6b7169203331"
    client.recommend("u1", "search", arm="champion", now=NOW, traceparent=f"00-{TRACE}-{parent}-01")

    def mine() -> dict[str, dict[str, Any]]:
        return {span["name"]: span for span in collector.spans if span["traceId"] == TRACE}

    wait_for(lambda: {"recommend", "user_encoder_1", "ranker_1"} <= set(mine()), 15)
    spans = mine()
    by_id = {span["spanId"]: span for span in collector.spans}

    def above(span: dict[str, Any]) -> list[str]:
        names = []
        while span["parentSpanId"] in by_id:
            span = by_id[span["parentSpanId"]]
            names.append(span["name"])
        return [*names, span["parentSpanId"]]

    assert "recommend" in above(spans["ranker_1"])
    assert above(spans["ranker_1"])[-1] == parent


def test_the_log_is_json_and_names_requests_but_no_user_and_no_query(server: Served, client: Client) -> None:
    with pytest.raises(InputError):
        client.recommend(
            "a-private-user", "search", "a private wish", arm="nobody's", now=NOW, request_id="the-refused"
        )
    wait_for(lambda: "the-refused" in server.log.read_text(), 5)
    text = server.log.read_text()
    line = next(json.loads(line) for line in text.splitlines() if "the-refused" in line)
    assert (line["message"], line["request_id"]) == ("refused INVALID_ARGUMENT", "the-refused")
    assert {"ts", "level", "logger"} <= set(line)
    assert "a-private-user" not in text
    assert "a private wish" not in text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (FeatureDouble.slow, Reason.NO_FEATURES),
        (FeatureDouble.failing, Reason.NO_FEATURES),
        (FeatureDouble.unreadable, Reason.NO_FEATURES),
        (FeatureDouble.nulls, Reason.UNKNOWN_USER),
    ],
)
def test_a_feature_server_that_is_slow_or_broken_costs_its_deadline_and_no_answer(
    server: Served, client: Client, answer: Callable[[], tuple[int, bytes]], reason: Reason
) -> None:
    server.features.answer = answer
    start = time.monotonic()
    got = client.recommend("u1", "search", arm="champion", now=NOW)
    assert time.monotonic() - start < 0.6  # the deadline is 0.1 s
    assert (got.release, got.degraded, len(got.item_ids)) == ("1", (reason,), 10)
    server.features.answer = FeatureDouble.fine
    assert client.recommend("u1", "search", arm="champion", now=NOW).degraded == ()


def test_the_async_client_asks_many_at_once_and_says_the_same(server: Served, client: Client) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(server.url, deadline_s=10) as one:
            asked = [one.recommend(f"u{n}", "search", "red lamp", k=5, now=NOW) for n in range(20)]
            answers: list[Any] = await asyncio.gather(*asked)
            with pytest.raises(InputError):
                await one.recommend("u", "search", k=0, now=NOW)
        with pytest.raises(OmnifeedError, match="closed"):
            await one.recommend("u", "search", now=NOW)
        return answers

    answers = asyncio.run(ask())
    assert len({answer.request_id for answer in answers}) == 20
    for n, answer in enumerate(answers):
        same = client.recommend(f"u{n}", "search", "red lamp", k=5, now=NOW)
        assert (answer.item_ids, answer.arm, answer.scores) == (same.item_ids, same.arm, same.scores)


def test_a_flood_is_refused_at_once_or_forgotten_with_its_callers_and_memory_stays(
    server: Served, client: Client
) -> None:
    triton = psutil.Process(server.children[0].pid)

    def resident() -> int:
        return sum(process.memory_info().rss for process in [triton, *triton.children(recursive=True)])

    async def flood(requests: int, deadline_s: float) -> Counter[str]:
        said: Counter[str] = Counter()
        async with AsyncClient(server.url, deadline_s=deadline_s) as one:

            async def ask(n: int) -> None:
                try:
                    await one.recommend(f"u{n}", "search", "red lamp", now=NOW)
                    said["answered"] += 1
                except UnavailableError as error:
                    said[error.action] += 1

            await asyncio.gather(*(ask(n) for n in range(requests)))
        return said

    late = "Ask again, with the same request_id; if it lasts, allow more time or add replicas."
    full = "Ask again in a second, with the same request_id; if it lasts, add replicas."
    no_labels = frozenset[tuple[str, str]]()
    abandoned = "omnifeed_abandoned_total", no_labels
    refused = "omnifeed_refusals_total", frozenset({("code", "UNAVAILABLE"), ("kind", "")})
    asyncio.run(flood(2_000, 1.5))
    before, counts = resident(), counted(server)
    impatient = asyncio.run(flood(2_000, 0.2))

    def answered() -> bool:
        with contextlib.suppress(UnavailableError):  # forgotten requests hold their places until it is their turn
            return bool(client.recommend("u1", "search", now=NOW).item_ids)
        return False

    wait_for(answered, 4)  # the backlog of about 2,000 answers would take ten seconds
    assert impatient.total() == 2_000
    assert impatient[late] > 0
    begun = time.monotonic()
    patient = asyncio.run(flood(2_000, 20))
    assert set(patient) == {"answered", full}  # nobody had to wait for a deadline
    assert patient["answered"] > 100
    assert patient[full] > 500
    assert time.monotonic() - begun < 8
    assert resident() - before < 40 * 2**20
    wait_for(lambda: counted(server)[abandoned] > counts[abandoned], 5)
    wait_for(lambda: counted(server)[refused] > counts[refused], 5)


@pytest.fixture
def small_disk(server: Served) -> Iterator[Path]:
    """64 KiB for the exposures of another experiment; needs the right to mount."""
    folder = server.home.experiments / "narrow" / "exposures"
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system could be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_on_a_full_disk_answers_go_on_and_every_loss_is_counted(
    server: Served, client: Client, small_disk: Path
) -> None:
    path = server.home.experiments / "current.json"
    former = path.read_text()
    before = counted(server)
    arms = (Arm("champion", "1", 0.5), Arm("challenger", "0", 0.5))
    write_json(path, Experiment("narrow", "salt", arms, 0, FOREVER, "").to_dict())
    wait_for(lambda: client.recommend("u", "search", now=NOW, probe=True).experiment == "narrow", 5)
    wait_for(lambda: client.recommend("u", "search", now=NOW, probe=True).experiment == "narrow", 5)
    answers = [client.recommend(f"u{n}", "search", now=NOW) for n in range(60)]
    in_time = [answer for answer in answers if answer.experiment == "narrow"]
    lost = [answer.request_id for answer in in_time if Reason.EXPOSURES_NOT_LOGGED in answer.degraded]
    assert lost
    lines = [json.loads(line) for file in small_disk.glob("*.jsonl") for line in file.read_text().splitlines()]
    logged = Counter(line["request_id"] for line in lines)
    assert {answer.request_id for answer in in_time} == set(lost) | set(logged)
    assert not set(lost) & set(logged)
    assert set(logged.values()) == {10}  # whole answers only
    key = "omnifeed_exposures_lost_total", frozenset[tuple[str, str]]()
    wait_for(lambda: counted(server)[key] - before[key] == len(lost), 5)
    path.write_text(former)


def test_a_sink_that_hangs_costs_a_moment_once_and_every_loss_is_counted(server: Served, client: Client) -> None:
    """Named pipes that nobody reads stand where the files would: opening one for writing does not come back."""
    exposures = server.home.experiments / "trial" / "exposures"
    before, answers = counted(server), []

    def ask(user: str) -> Recommendation:
        answers.append(client.recommend(user, "search", now=NOW))
        return answers[-1]

    wait_for(lambda: ask("u").experiment == "trial" and len(list(exposures.glob("*.jsonl"))) == 2, 10)
    stuck = server.home.experiments / "stuck" / "exposures"
    stuck.mkdir(parents=True)
    pipes = [stuck / file.name for file in exposures.glob("*.jsonl")]
    for pipe in pipes:
        os.mkfifo(pipe)
    path = server.home.experiments / "current.json"
    former = path.read_text()
    arms = (Arm("champion", "1", 0.5), Arm("challenger", "0", 0.5))
    write_json(path, Experiment("stuck", "salt", arms, 0, FOREVER, "").to_dict())
    for _ in range(2):
        wait_for(lambda: client.recommend("u", "search", now=NOW, probe=True).experiment == "stuck", 5)
    took = []
    for n in range(40):
        start = time.monotonic()
        ask(f"u{n}")
        took.append(time.monotonic() - start)
    in_time = [answer for answer in answers if answer.experiment == "stuck"]
    assert len(in_time) > 30
    assert all(Reason.EXPOSURES_NOT_LOGGED in answer.degraded and len(answer.item_ids) == 10 for answer in in_time)
    assert max(took) < 2 * WAIT_S
    assert sorted(took)[-4] < WAIT_S  # the wait is paid once a process, not by every request
    key = "omnifeed_exposures_lost_total", frozenset[tuple[str, str]]()
    lost = sum(Reason.EXPOSURES_NOT_LOGGED in answer.degraded for answer in answers)
    wait_for(lambda: counted(server)[key] - before[key] == lost, 5)
    readers = [os.open(pipe, os.O_RDONLY | os.O_NONBLOCK) for pipe in pipes]  # the volume is back
    path.write_text(former)

    def logged_again() -> bool:
        """Both at once: the instance has read the routing, and its hanging write has come back."""
        answer = ask("u1")
        return answer.experiment == "trial" and Reason.EXPOSURES_NOT_LOGGED not in answer.degraded

    wait_for(logged_again, 5)
    assert any(answers[-1].request_id in file.read_text() for file in exposures.glob("*.jsonl"))
    for reader in readers:
        os.close(reader)


def test_clients_find_a_server_that_was_stopped_and_started_again(tmp_path: Path) -> None:
    """SIGTERM under load: what was answered is logged, what was not says so, and the same clients go on."""
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "0", 1.0))
    with LocalServer(home, config(), simulated_clock=True, features=False) as first:
        settings = first.config

        async def load() -> tuple[list[str], Counter[str]]:
            answered: list[str] = []
            failed: Counter[str] = Counter()
            again = asyncio.Event()
            async with AsyncClient(first.url, deadline_s=1.0) as one:

                async def ask(name: int) -> None:
                    n = 0
                    while not (again.is_set() and n > 20):
                        n = n + 1 if again.is_set() else 0
                        try:
                            answer = await one.recommend(f"u{name}", "search", now=NOW)
                            answered.append(answer.request_id)
                        except UnavailableError:
                            failed["unavailable"] += 1
                            await asyncio.sleep(0.05)

                askers = [asyncio.create_task(ask(name)) for name in range(4)]
                while len(answered) < 50:
                    await asyncio.sleep(0.01)
                begun = time.monotonic()
                await asyncio.to_thread(first.stop)
                assert time.monotonic() - begun < 20  # a model that does not end is waited for until 30 s
                with_ports = LocalServer(home, settings, simulated_clock=True, features=False)
                second = await asyncio.to_thread(with_ports.__enter__)
                again.set()
                await asyncio.wait_for(asyncio.gather(*askers), 20)
                await asyncio.to_thread(second.stop)
            return answered, failed

        answered, failed = asyncio.run(load())
    assert failed["unavailable"] > 0  # it was really gone for a while
    files = (home.experiments / "trial" / "exposures").glob("*.jsonl")
    logged = {json.loads(line)["request_id"] for path in files for line in path.read_text().splitlines()}
    assert set(answered) <= logged


def test_the_error_lines_of_recommend_are_those_that_a_failure_shows() -> None:
    line = '{"ts": 1.0, "level": "ERROR", "logger": "omnifeed.recommend", "message": "recommend failed"}'
    assert _ERROR.match(line)
    assert not _ERROR.match(line.replace("ERROR", "INFO"))
