"""The request and the answer of `recommend`: limits, tensor names, and the closed sets of sources and reasons.

The client and the server's model read the same names from here. A request that breaks a limit is refused with an
`InputError`; everything else gets an answer that says what was degraded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from omnifeed.errors import InputError
from omnifeed.export.encode import ACTIONS

MAX_K = 500
MAX_ID_CHARS = 128  # of user, item and request ids
MAX_NAME_CHARS = 64  # of scenario, arm, locale and device
MAX_CANDIDATES = 1_000
MAX_EXCLUDED = 10_000
MAX_HISTORY = 1_000
MAX_QUERY_BYTES = 100_000  # beyond it the request is refused; up to it the query is cut to encode.MAX_QUERY_CHARS
MAX_TS = 2**61  # UTC microseconds; far beyond any date, and safe to subtract

PART_S = 0.5  # then a release's part counts as failed; while it hangs, its next calls fail at once
REST_S = 30.0  # longest time that a part which hangs again and again is not asked

#: Separates what is wrong from what to do in an error that crosses gRPC.
ERROR_SEPARATOR = "\n"
#: What Triton says in place of a model whose process has crashed.
DEAD = "is not healthy"

#: Triton tensors of the `recommend` model: name -> Triton data type. The first two are required.
INPUT_TYPES = {
    "user_id": "BYTES",
    "scenario": "BYTES",
    "k": "INT32",
    "query": "BYTES",
    "candidates": "BYTES",
    "exclude": "BYTES",
    "arm": "BYTES",
    "now": "INT64",
    "request_id": "BYTES",
    "locale": "BYTES",
    "device": "BYTES",
    "history_item": "BYTES",
    "history_action": "BYTES",
    "history_scenario": "BYTES",
    "history_ts": "INT64",
    "probe": "BOOL",
}
OUTPUT_TYPES = {
    "item_ids": "BYTES",
    "scores": "FP32",
    "sources": "BYTES",
    "propensities": "FP32",  # NaN where nothing was sampled
    "interstitial": "BOOL",  # to be shown behind a warning
    "degraded": "BYTES",
    "arm": "BYTES",
    "release": "BYTES",
    "experiment": "BYTES",
    "request_id": "BYTES",
    "stage_ms": "FP32",  # in the order of Stage, NaN where the request did not pass
}
#: How many values an input may have; one where nothing is said.
MAX_VALUES = {
    "candidates": MAX_CANDIDATES,
    "exclude": MAX_EXCLUDED,
    **dict.fromkeys(("history_item", "history_action", "history_scenario", "history_ts"), MAX_HISTORY),
}


class Refusal(StrEnum):
    """Why a request gets no answer; each is counted."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    REPLAYED = "replayed"  # its request_id belongs to another request, or came too often
    TOO_MANY = "too_many"  # of one user


class RefusedError(InputError):
    """A request that is not answered."""

    def __init__(self, kind: Refusal, problem: str, action: str) -> None:
        super().__init__(problem, action)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.problem, self.action)


class Source(StrEnum):
    """Why an item is in the answer."""

    DENSE = "dense"
    TRENDING = "trending"
    NEW = "cold_start"  # a new item that was hardly seen: in a place kept for such, or found as one
    CANDIDATE = "candidate"  # the caller's own


class Reason(StrEnum):
    """What the answer had to do without, or what the request named that nobody knows."""

    NO_FEATURES = "no_features"  # the feature server did not answer in time: as for a user without history
    UNKNOWN_USER = "unknown_user"  # the feature store has no row of this user
    UNKNOWN_SCENARIO = "unknown_scenario"  # not in the release's vocabulary
    UNKNOWN_CANDIDATES = "unknown_candidates"  # candidates left out: not in the catalogue, or not to be shown now
    QUERY_TRUNCATED = "query_truncated"
    FEWER_THAN_K = "fewer_than_k"  # the catalogue has no more that may be shown
    RELEASE_REFUSED = "release_refused"  # a hash, or the feature list, is not the release's
    INDEX_NOT_READY = "index_not_ready"  # the release's item vectors are still being made
    USER_ENCODER_FAILED = "user_encoder_failed"
    RANKER_FAILED = "ranker_failed"
    NAN_SCORES = "nan_scores"
    CHAMPION_ANSWER = "champion_answer"  # the challenger could not; its user stays the challenger's
    RETRIEVAL_ORDER = "retrieval_order"  # not ranked
    TRENDING_ORDER = "trending_order"  # no model took part although the release has one
    EXPOSURES_NOT_LOGGED = "exposures_not_logged"  # the log could not be written; counted as a loss


class Stage(StrEnum):
    """Where a request's time goes, in the order in which it passes."""

    FEATURES = "features"  # the read of the user's row
    ENCODE = "encode"
    USER_ENCODER = "user_encoder"
    RETRIEVAL = "retrieval"  # the filters included
    RANKER = "ranker"
    SLATE = "slate"
    LOG = "log"
    TOTAL = "total"  # all of it inside `recommend`, what lies between the stages included


@dataclass(frozen=True, slots=True)
class History:
    """Events that override the stored ones, oldest first; the four lists are parallel."""

    items: tuple[str, ...]
    actions: tuple[str, ...]  # names of encode.ACTIONS
    scenarios: tuple[str, ...]
    ts: tuple[int, ...]  # UTC microseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of `recommend`, checked by `check`."""

    user_id: str
    scenario: str
    request_id: str
    k: int = 10
    query: str | None = None
    candidates: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    arm: str | None = None
    now: int | None = None  # UTC microseconds; only on a server with a simulated clock
    locale: str | None = None
    device: str | None = None
    history: History | None = None
    probe: bool = False  # answered in full, logged nowhere: for health checks and infrastructure validation


@dataclass(frozen=True, slots=True)
class Answer:
    """One slate. The lists are parallel."""

    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    sources: tuple[Source, ...]
    propensities: tuple[float, ...] | None  # None unless the slate was sampled; see `slate.fill`
    interstitial: tuple[bool, ...]  # the item's policy asks for a warning before it is shown
    tail_creators: tuple[bool | None, ...]  # the item's creator is none of the largest; None where it has none
    degraded: tuple[Reason, ...]
    arm: str
    release: str  # that made the answer; not the arm's where degraded holds CHAMPION_ANSWER
    experiment: str  # "none" outside an experiment
    request_id: str
    elapsed_ms: float = field(default=0.0, compare=False)  # until it was made, all but its logging
    stages: Mapping[Stage, float] = field(default_factory=dict, compare=False)  # milliseconds


def check(request: Request) -> None:
    """Refuse what breaks a limit.

    Raises:
        RefusedError: names the field, and what is allowed.
    """
    _text("user_id", request.user_id, MAX_ID_CHARS)
    _text("request_id", request.request_id, MAX_ID_CHARS)
    _text("scenario", request.scenario, MAX_NAME_CHARS)
    for name, value in (("arm", request.arm), ("locale", request.locale), ("device", request.device)):
        if value is not None:
            _text(name, value, MAX_NAME_CHARS)
    if not 1 <= request.k <= MAX_K:
        kind = Refusal.OVERSIZED if request.k > MAX_K else Refusal.MALFORMED
        raise RefusedError(kind, f"k is {request.k}.", f"Ask for 1 to {MAX_K} items.")
    if request.query is not None and len(request.query.encode("utf-8", "surrogatepass")) > MAX_QUERY_BYTES:
        problem = f"The query has more than {MAX_QUERY_BYTES:,} bytes."
        raise RefusedError(Refusal.OVERSIZED, problem, "Send a shorter one.")
    if request.now is not None:
        _time("now", request.now)
    _ids("candidates", request.candidates or (), MAX_CANDIDATES)
    _ids("exclude", request.exclude, MAX_EXCLUDED)
    if request.history is not None:
        _history(request.history)


def _history(history: History) -> None:
    _ids("history_item", history.items, MAX_HISTORY)
    lengths = {len(history.items), len(history.actions), len(history.scenarios), len(history.ts)}
    if len(lengths) != 1:
        problem = f"The history's lists have lengths {sorted(lengths)}."
        raise RefusedError(Refusal.MALFORMED, problem, "Give parallel lists.")
    for action in history.actions:
        if action not in ACTIONS:
            problem = f"The history names an action {action[:MAX_NAME_CHARS]!r}."
            raise RefusedError(Refusal.MALFORMED, problem, f"Use {', '.join(ACTIONS)}.")
    for scenario in history.scenarios:
        _text("history_scenario", scenario, MAX_NAME_CHARS)
    for ts in history.ts:
        _time("history_ts", ts)


def _ids(name: str, values: Sequence[str], limit: int) -> None:
    if len(values) > limit:
        raise RefusedError(Refusal.OVERSIZED, f"{name} has {len(values):,} entries.", f"Send at most {limit:,}.")
    for value in values:
        _text(name, value, MAX_ID_CHARS)


def _text(name: str, value: str, limit: int) -> None:
    if not value or len(value) > limit:
        kind = Refusal.OVERSIZED if value else Refusal.MALFORMED
        raise RefusedError(kind, f"{name} has {len(value):,} characters.", f"Send 1 to {limit}.")
    if not value.isprintable():
        problem = f"{name} holds characters that cannot be printed."
        raise RefusedError(Refusal.MALFORMED, problem, "Send printable text.")


def _time(name: str, value: int) -> None:
    if not 0 <= value < MAX_TS:
        raise RefusedError(Refusal.MALFORMED, f"{name} is {value}.", "Send UTC microseconds since 1970.")
