"""Proof, before any user meets it, that a release loads in the real server and answers what breaks servers.

A private server on free ports, a home of its own with the release as sole champion, and a small made-up catalogue that
holds one item for each reason not to be shown. Golden requests go to the release's own Triton models, which must be
quick, too: a slow challenger holds up the champion's users, who share its server. The odd ones go to `recommend`.
Nothing of it reaches the live experiment's logs. The feature store is not part of a release: requests bring their own
histories.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from omnifeed.config import Config
from omnifeed.errors import InputError, OmnifeedError
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.export.catalogue import write_snapshot
from omnifeed.export.encode import DAY_US
from omnifeed.export.golden import TOLERANCE, Golden, max_abs_error, read_golden
from omnifeed.export.release import Release, load_release
from omnifeed.export.trending import trending_scores
from omnifeed.home import Home, write_json
from omnifeed.serving.client import Client
from omnifeed.serving.recommend.contract import MAX_ID_CHARS, MAX_K, History, Reason
from omnifeed.serving.recommend.parts import OUTPUTS, Arrays, as_batched
from omnifeed.serving.recommend.routing import CHAMPION
from omnifeed.serving.server import LocalServer, triton_environment
from omnifeed.serving.wire import CHANNEL_ARGS

NOW = 20_000 * DAY_US
SHOWN = 60  # items of the made-up catalogue that may be shown
HIDDEN = ("dropped", "sold-out", "ended", "not-yet-on-air", "not-yet-created", "blocked")
DEADLINE_S = 20.0
CALLS = 15  # of which the median is a part's time
DO_NOT_DEPLOY = "Do not deploy this release."


@dataclasses.dataclass(frozen=True, slots=True)
class InfraCheck:
    """One request, or one step."""

    name: str
    passed: bool
    detail: str
    latency_ms: float


@dataclasses.dataclass(frozen=True, slots=True)
class InfraReport:
    """Whether a release may be deployed, and why not."""

    release: str
    checks: tuple[InfraCheck, ...]

    @property
    def passed(self) -> bool:
        """All of them."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "release": self.release,
            "passed": self.passed,
            "checks": [dataclasses.asdict(check) for check in self.checks],
        }


def infra_validate(home: Home, release_number: str, config: Config) -> InfraReport:
    """Start a private server with the release and ask it everything.

    Never raises for a bad release: what fails is a check of the report.

    Raises:
        UnavailableError: this machine has no Triton environment.
    """
    triton_environment()
    checks: list[InfraCheck] = []

    def step(name: str, action: Callable[[], str]) -> bool:
        start = time.perf_counter()
        try:
            detail, passed = action(), True
        except (OmnifeedError, InferenceServerException) as error:
            detail, passed = str(error), False
        checks.append(InfraCheck(name, passed, detail, (time.perf_counter() - start) * 1e3))
        return passed

    folder = home.releases / release_number
    release: list[Release] = []

    def hashes() -> str:
        release.append(load_release(folder))
        return f"{len(release[0].files)} files"

    if not step("hashes", hashes):
        return InfraReport(release_number, tuple(checks))
    (home.root / "serving").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.root / "serving", prefix="infra-") as scratch:
        private = _private_home(Path(scratch), folder, release_number, config)
        ports = dataclasses.replace(config.serving, grpc_port=0, http_port=0, metrics_port=0, explore_share=0.0)
        server = LocalServer(private, dataclasses.replace(config, serving=ports), simulated_clock=True, features=False)

        def start() -> str:
            server.__enter__()
            return "ready"

        try:
            if step("server", start):
                with (
                    Client(server.url, deadline_s=DEADLINE_S) as client,
                    triton.InferenceServerClient(server.url, channel_args=CHANNEL_ARGS) as parts,
                ):
                    known = read_golden(folder / "golden")
                    for golden in known:
                        step(
                            f"golden {golden.part} {golden.case}",
                            lambda golden=golden: _golden(parts, golden, release_number),  # type: ignore[misc]
                        )
                    for part in sorted({golden.part for golden in known} & {"user_encoder", "ranker"}):
                        inputs = _largest([golden.inputs for golden in known if golden.part == part], config)
                        step(
                            f"time of the {part.replace('_', ' ')}",
                            lambda part=part, inputs=inputs: _in_time(  # type: ignore[misc]
                                parts, part, inputs, release_number, config
                            ),
                        )
                    for name, request, expected in _edges(config.data.scenarios[0]):
                        step(
                            name,
                            lambda request=request, expected=expected: _edge(  # type: ignore[misc]
                                client, release_number, request, expected
                            ),
                        )
        finally:
            server.stop()
    return InfraReport(release_number, tuple(checks))


def _private_home(root: Path, folder: Path, number: str, config: Config) -> Home:
    private = Home(root)
    private.releases.mkdir(parents=True)
    (private.releases / number).symlink_to(folder.absolute(), target_is_directory=True)
    experiment = Experiment("infra", "infra", (Arm(CHAMPION, number, 1.0),), 0, 2 * NOW, config.digest)
    write_json(private.experiments / "current.json", experiment.to_dict())
    ids = [f"shown-{row}" for row in range(SHOWN)] + list(HIDDEN)
    live = [None] * SHOWN
    write_snapshot(
        private,
        {
            "item_id": ids,
            "author_id": [f"author-{row % 30}" for row in range(SHOWN)] + ["blocked"] * len(HIDDEN),
            "kind": ["video" if row % 2 else "product" for row in range(SHOWN)]
            + ["livestream" if name in ("ended", "not-yet-on-air") else "product" for name in HIDDEN],
            "category": [f"one/two-{row % 5}" if row % 7 else None for row in range(SHOWN)] + [None] * len(HIDDEN),
            "title": [f"title {row} 标题" if row % 11 else None for row in range(SHOWN)] + [None] * len(HIDDEN),
            "price": [float(row) if row % 3 else None for row in range(SHOWN)] + [None] * len(HIDDEN),
            "created_ts": [NOW - row * DAY_US for row in range(SHOWN)]
            + [NOW + 1 if name == "not-yet-created" else NOW - DAY_US for name in HIDDEN],
            "live_from": live + [{"ended": NOW - 2, "not-yet-on-air": NOW + 1}.get(name) for name in HIDDEN],
            "live_until": live + [{"ended": NOW - 1, "not-yet-on-air": NOW + 2}.get(name) for name in HIDDEN],
            "policy": ["ALLOW" if row % 5 else "INTERSTITIAL" for row in range(SHOWN)]
            + ["DROP" if name == "dropped" else "ALLOW" for name in HIDDEN],
            "stock": [None] * SHOWN + [0 if name == "sold-out" else 5 for name in HIDDEN],
        },
        {scenario: {} for scenario in config.data.scenarios},
        NOW,
        blocked_authors=("blocked",),
    )
    return private


def _golden(parts: triton.InferenceServerClient, golden: Golden, number: str) -> str:
    if golden.part == "trending":
        found = {"scores": trending_scores(golden.inputs["trending"], golden.inputs.get("match"))}
    else:
        found = _asked(parts, golden.part, golden.inputs, number)
    error = max_abs_error(golden.outputs, found)
    _expect(error <= TOLERANCE, f"It differs from the golden answer by {error:g}, more than {TOLERANCE:g}.")
    return f"max. error {error:.1e}"


def _asked(parts: triton.InferenceServerClient, part: str, arrays: Arrays, number: str) -> Arrays:
    inputs = []
    for name, value in as_batched(part, arrays).items():
        one = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        one.set_data_from_numpy(np.ascontiguousarray(value))
        inputs.append(one)
    answer = parts.infer(f"{part}_{number}", inputs, model_version="1", client_timeout=DEADLINE_S)
    return {name: answer.as_numpy(name) for name in OUTPUTS[part]}


def _largest(cases: Sequence[Arrays], config: Config) -> Arrays:
    """The call with the most in it, with as many candidates as a request has."""
    case = max(cases, key=lambda arrays: sum(value.size for value in arrays.values()))
    places = np.arange(config.serving.retrieve)
    return {
        name: value.take(places, axis=1, mode="wrap") if name.startswith("cand_") else value
        for name, value in case.items()
    }


def _in_time(parts: triton.InferenceServerClient, part: str, inputs: Arrays, number: str, config: Config) -> str:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        _asked(parts, part, inputs, number)
        times.append((time.perf_counter() - start) * 1e3)
    median, limit = float(np.median(times)), config.serving.part_ms
    _expect(median <= limit, f"It takes {median:.0f} ms (median of {CALLS}), more than serving.part_ms, {limit}.")
    return f"{median:.1f} ms, median of {CALLS}"


def _edges(scenario: str) -> tuple[tuple[str, dict[str, Any], set[Reason] | type[InputError]], ...]:
    """Name, request, and the reasons that the answer must give, or the refusal."""
    cut, few = {Reason.QUERY_TRUNCATED}, {Reason.FEWER_THAN_K}

    def history(*items: str) -> History:
        count = len(items)
        return History(items, ("click",) * count, (scenario,) * count, tuple(NOW - n - 1 for n in range(count))[::-1])

    edges: tuple[tuple[str, dict[str, Any], set[Reason] | type[InputError]], ...] = (
        ("a user with a history", {"history": history("shown-1", "shown-2")}, set()),
        ("an unknown user", {"user_id": "nobody knows me"}, set()),
        ("an unknown scenario", {"scenario": "no such scenario"}, {Reason.UNKNOWN_SCENARIO}),
        ("k larger than the catalogue", {"k": MAX_K}, few),
        ("an empty history", {"history": history()}, set()),
        ("an unknown item in the history", {"history": history("never seen", "shown-1")}, set()),
        ("nulls wherever they are allowed", {}, set()),
        ("a query in another script", {"query": "красная лампа 红灯 مصباح 🪔"}, set()),
        ("a query of 10,000 characters", {"query": "long " * 2_000}, cut),
        ("the caller's own candidates", {"candidates": ["shown-3", "shown-4"], "k": 2}, set()),
        (
            "candidates nobody may see",
            {"candidates": [*HIDDEN, "no such item"]},
            {Reason.UNKNOWN_CANDIDATES, Reason.FEWER_THAN_K},
        ),
        ("k of zero", {"k": 0}, InputError),
        (f"k above {MAX_K}", {"k": MAX_K + 1}, InputError),
        ("an id that is too long", {"user_id": "x" * (MAX_ID_CHARS + 1)}, InputError),
        ("an empty id", {"user_id": ""}, InputError),
    )
    usual = {"user_id": "somebody", "scenario": scenario, "k": 10}
    return tuple((name, {**usual, **request}, expected) for name, request, expected in edges)


def _edge(client: Client, number: str, request: dict[str, Any], expected: set[Reason] | type[InputError]) -> str:
    try:
        answer = client.recommend(**request, now=NOW, probe=True)
    except InputError as error:
        if expected is InputError:
            return error.problem
        raise
    if not isinstance(expected, set):
        raise OmnifeedError("It was answered; a refusal was due.", DO_NOT_DEPLOY)
    found = set(answer.degraded) - {Reason.NO_FEATURES}  # there is no feature server here
    _expect(found == expected, f"It is degraded by {sorted(found)}, expected {sorted(expected)}.")
    _expect(answer.release == number, f"Release {answer.release} answered.")
    _expect(len(set(answer.item_ids)) == len(answer.item_ids), "An item stands in it twice.")
    _expect(not set(HIDDEN) & set(answer.item_ids), "It holds an item that may not be shown.")
    _expect(bool(np.isfinite(answer.scores).all()), "A score is not finite.")
    wanted = SHOWN if request["k"] > SHOWN else request["k"]
    if "candidates" not in request:
        _expect(len(answer.item_ids) == wanted, f"It has {len(answer.item_ids)} items, not {wanted}.")
    return f"{len(answer.item_ids)} items"


def _expect(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise OmnifeedError(otherwise, DO_NOT_DEPLOY)
