"""What a server process counts of its own requests, and where each stage's time went.

Counting is a dictionary's addition; handing a number to Triton costs a trip to another process, so that is done for all
of them together, about twice a second, by whoever calls `drain`. A histogram is three counters by the names that
Prometheus gives them (`_bucket` with a cumulative `le`, `_sum`, `_count`): the servers' Python has no histogram that
takes more than one observation at a time. Labels come from closed sets, never from a request's free text.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from omnifeed.errors import OmnifeedError
from omnifeed.serving.recommend.contract import Answer, Reason, Refusal, RefusedError, Request, Stage

OTHER = "other"  # a scenario that the configuration does not name

#: Seconds.
STAGE_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
AGE_BOUNDS = (1.0, 60.0, 600.0, 3_600.0, 6 * 3_600.0, 26 * 3_600.0, 50 * 3_600.0, 7 * 86_400.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric's name, as Prometheus reads it."""

    help: str
    labels: tuple[str, ...]
    gauge: bool = False


def _histogram(name: str, text: str, labels: tuple[str, ...]) -> dict[str, Family]:
    return {
        f"{name}_bucket": Family(f"{text}: observations of at most le.", (*labels, "le")),
        f"{name}_sum": Family(f"{text}: their sum.", labels),
        f"{name}_count": Family(f"{text}: how many.", labels),
    }


#: Every metric that `recommend` adds to Triton's own.
FAMILIES: dict[str, Family] = {
    "omnifeed_requests_total": Family("Requests answered.", ("scenario", "arm", "release")),
    "omnifeed_refusals_total": Family("Requests that got an error instead of an answer.", ("code", "kind")),
    "omnifeed_abandoned_total": Family("Requests whose caller was gone before their turn came.", ()),
    "omnifeed_degraded_total": Family("Answers that had to do without something.", ("reason", "scenario", "arm")),
    "omnifeed_exposures_lost_total": Family("Answers whose exposures could not be logged.", ()),
    "omnifeed_feature_log_lost_total": Family("Requests whose features were to be logged and could not.", ()),
    **_histogram("omnifeed_stage_seconds", "Time that a request spent in a stage, seconds", ("stage",)),
    **_histogram("omnifeed_feature_age_seconds", "Age of the user's features when they were read, seconds", ("view",)),
    "omnifeed_catalogue_items": Family("Items in the catalogue that is served.", (), gauge=True),
    "omnifeed_catalogue_age_seconds": Family("Time since the catalogue's last change, seconds.", (), gauge=True),
    "omnifeed_catalogue_sequence": Family("The last catalogue delta in force.", ("process",), gauge=True),
    "omnifeed_releases_routed": Family("Releases that the routing names.", (), gauge=True),
    "omnifeed_releases_ready": Family("Those of them that can answer.", (), gauge=True),
}

Series = tuple[str, tuple[str, ...]]  # a family's name, its labels' values in the family's order

#: Series that are there before anything was counted: a rate needs the 0 that they start from.
STANDING: tuple[Series, ...] = (
    *((name, ()) for name, family in FAMILIES.items() if not family.labels),
    *(("omnifeed_refusals_total", ("INVALID_ARGUMENT", kind.value)) for kind in Refusal),
    ("omnifeed_refusals_total", ("UNAVAILABLE", "")),
    *(
        (name, (stage.value,))
        for stage in Stage
        for name in ("omnifeed_stage_seconds_sum", "omnifeed_stage_seconds_count")
    ),
    *(
        ("omnifeed_stage_seconds_bucket", (stage.value, bound))
        for stage in Stage
        for bound in (*(f"{bound:g}" for bound in STAGE_BOUNDS), "+Inf")
    ),
)


class Stages:
    """Milliseconds by stage of one request; the same stage again adds up."""

    def __init__(self) -> None:
        self.ms: dict[Stage, float] = {}
        self._begun = time.perf_counter()

    def elapsed_ms(self) -> float:
        """Since the request came."""
        return (time.perf_counter() - self._begun) * 1_000

    @contextmanager
    def __call__(self, stage: Stage) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms[stage] = self.ms.get(stage, 0.0) + (time.perf_counter() - start) * 1_000


class Metrics:
    """Counts of one process; one thread counts, another may drain.

    Args:
        scenarios: the configuration's; others are counted together.
    """

    def __init__(self, scenarios: tuple[str, ...]) -> None:
        self._scenarios = frozenset(scenarios)
        self._added: dict[Series, float] = defaultdict(float)
        self._lock = threading.Lock()

    def answered(self, request: Request, answer: Answer) -> None:
        """Count an answer with its stages and what it had to do without."""
        scenario = request.scenario if request.scenario in self._scenarios else OTHER
        with self._lock:
            self._added["omnifeed_requests_total", (scenario, answer.arm, answer.release)] += 1
            for reason in answer.degraded:
                self._added["omnifeed_degraded_total", (reason.value, scenario, answer.arm)] += 1
            if Reason.EXPOSURES_NOT_LOGGED in answer.degraded:
                self._added["omnifeed_exposures_lost_total", ()] += 1
            for stage, ms in answer.stages.items():
                self._observe("omnifeed_stage_seconds", (stage.value,), ms / 1_000, STAGE_BOUNDS)

    def refused(self, code: str, error: OmnifeedError) -> None:
        """Count a request that got an error; `code` is gRPC's name of it."""
        kind = error.kind.value if isinstance(error, RefusedError) else ""
        with self._lock:
            self._added["omnifeed_refusals_total", (code, kind)] += 1

    def abandoned(self) -> None:
        """Count a request whose caller was gone before its turn came."""
        with self._lock:
            self._added["omnifeed_abandoned_total", ()] += 1

    def feature_log_lost(self, count: int) -> None:
        """Count requests whose features were to be logged and could not."""
        with self._lock:
            self._added["omnifeed_feature_log_lost_total", ()] += count

    def read(self, as_of: Mapping[str, int], now: int) -> None:
        """Count the age of a user's features.

        Args:
            as_of: by view, when its row was computed, UTC microseconds.
            now: of the request, UTC microseconds.
        """
        with self._lock:
            for view, ts in as_of.items():
                self._observe("omnifeed_feature_age_seconds", (view,), max(now - ts, 0) / 1e6, AGE_BOUNDS)

    def drain(self) -> dict[Series, float]:
        """What was added since the last call."""
        with self._lock:
            added, self._added = self._added, defaultdict(float)
        return dict(added)

    def _observe(self, name: str, labels: tuple[str, ...], value: float, bounds: tuple[float, ...]) -> None:
        first = bisect_left(bounds, value)
        for bound in bounds[first:]:
            self._added[f"{name}_bucket", (*labels, f"{bound:g}")] += 1
        self._added[f"{name}_bucket", (*labels, "+Inf")] += 1
        self._added[f"{name}_sum", labels] += value
        self._added[f"{name}_count", labels] += 1
