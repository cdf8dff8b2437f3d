"""What the page shows of one user: every scenario's slate of every arm, in words that a person reads.

The slates are probes: answered in full by the running server and logged nowhere, so looking changes no experiment.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omnifeed.errors import OmnifeedError
from omnifeed.export.catalogue_state import Catalogue
from omnifeed.serving.async_client import AsyncClient
from omnifeed.serving.recommend.contract import Reason, Source, Stage
from omnifeed.serving.wire import Options, Recommendation

#: Why an item is there.
WHY = {
    Source.DENSE: ("for you", "near this user's tastes, by the release's retrieval"),
    Source.TRENDING: ("trending", "among what trends in this scenario now"),
    Source.NEW: ("new", "a new item that few have seen yet"),
    Source.CANDIDATE: ("given", "one of the caller's own candidates"),
}
#: What an answer had to do without.
MISSING = {
    Reason.NO_FEATURES: "the feature server did not answer in time: treated as a new user",
    Reason.UNKNOWN_USER: "the feature store does not know this user",
    Reason.UNKNOWN_SCENARIO: "the release does not know this scenario",
    Reason.QUERY_TRUNCATED: "the query was cut",
    Reason.FEWER_THAN_K: "the catalogue has no more that may be shown",
    Reason.CHAMPION_ANSWER: "the challenger could not answer: this is the champion's slate",
    Reason.RETRIEVAL_ORDER: "not ranked: in retrieval's order",
    Reason.TRENDING_ORDER: "no model took part: in the order of the trend",
}


@dataclass(frozen=True, slots=True)
class Slot:
    """One item of a slate."""

    item_id: str
    title: str
    category: str
    kind: str
    price: float | None
    why: str
    reason: str
    score: float
    interstitial: bool
    moved: str  # against the champion's slate: "+3", "-1", "new", or nothing


@dataclass(frozen=True, slots=True)
class Bar:
    """A stage's time."""

    stage: str
    ms: float
    share: float  # of the longest answer on the page, percent


@dataclass(frozen=True, slots=True)
class Slate:
    """One arm's answer in one scenario."""

    arm: str
    release: str
    slots: tuple[Slot, ...]
    notes: tuple[str, ...]
    bars: tuple[Bar, ...]
    ms: float  # as the page waited for it
    error: str = ""


@dataclass(frozen=True, slots=True)
class Shelf:
    """One scenario: the arms' slates, the champion's first."""

    scenario: str
    query: str
    slates: tuple[Slate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the page asks the server."""

    user: str
    query: str
    k: int
    now: int | None  # UTC microseconds; None: the server's own clock
    scenarios: tuple[str, ...]
    arms: tuple[str, ...]  # the champion first


@dataclass(frozen=True, slots=True)
class _Answered:
    answer: Recommendation | None
    ms: float
    error: str = ""


async def shelves(client: AsyncClient, question: Question, catalogue: Catalogue) -> tuple[Shelf, ...]:
    """Ask for every scenario and arm, one after the other so that the times shown are a single request's.

    An error stands in its slate's place.
    Where there is a scenario called search, only it gets the query.
    """
    searched = tuple(name for name in question.scenarios if name == "search") or question.scenarios
    answers = {
        (scenario, arm): await _asked(client, question, scenario, arm, question.query if scenario in searched else "")
        for scenario in question.scenarios
        for arm in question.arms
    }
    longest = max((one.ms for one in answers.values()), default=1.0)
    result = []
    for scenario in question.scenarios:
        first = answers[scenario, question.arms[0]].answer
        before = {item: place for place, item in enumerate(first.item_ids)} if first else {}
        slates = tuple(_slate(arm, answers[scenario, arm], before, catalogue, longest) for arm in question.arms)
        result.append(Shelf(scenario, question.query if scenario in searched else "", slates))
    return tuple(result)


async def _asked(client: AsyncClient, question: Question, scenario: str, arm: str, query: str) -> _Answered:
    options: Options = {"k": question.k, "arm": arm, "probe": True, "now": question.now}
    start = time.perf_counter()
    try:
        answer = await client.recommend(question.user, scenario, query or None, **options)
    except OmnifeedError as error:
        return _Answered(None, (time.perf_counter() - start) * 1_000, f"{error.problem} {error.action}")
    return _Answered(answer, (time.perf_counter() - start) * 1_000)


def _slate(arm: str, found: _Answered, before: Mapping[str, int], catalogue: Catalogue, longest: float) -> Slate:
    answer = found.answer
    if answer is None:
        return Slate(arm, "", (), (), (), found.ms, found.error)
    inside = answer.stage_ms.get(Stage.TOTAL, 0.0)
    named = [(stage.value.replace("_", " "), ms) for stage, ms in answer.stage_ms.items() if stage is not Stage.TOTAL]
    named += [
        ("between the stages", max(inside - sum(ms for _, ms in named), 0.0)),
        ("Triton and the way there", max(found.ms - inside, 0.0)),
    ]
    return Slate(
        arm=arm,
        release=answer.release,
        slots=_slots(answer, before, catalogue),
        notes=tuple(MISSING.get(reason, reason.value.replace("_", " ")) for reason in answer.degraded),
        bars=tuple(Bar(name, ms, 100 * ms / longest) for name, ms in named),
        ms=found.ms,
    )


def _slots(answer: Recommendation, before: Mapping[str, int], catalogue: Catalogue) -> tuple[Slot, ...]:
    slots = []
    for place, item in enumerate(answer.item_ids):
        row = catalogue.rows.get(item, 0) - 1
        texts = {name: catalogue.texts[name][row] if row >= 0 else None for name in ("title", "category", "kind")}
        price = float(catalogue.price[row]) if row >= 0 else float("nan")
        why, reason = WHY[answer.sources[place]]
        slots.append(
            Slot(
                item_id=item,
                title=texts["title"] or item,
                category=(texts["category"] or "").replace("/", " › "),
                kind=texts["kind"] or "",
                price=price if price == price else None,
                why=why,
                reason=reason,
                score=answer.scores[place],
                interstitial=answer.interstitial[place],
                moved=_moved(place, before.get(item)),
            )
        )
    return tuple(slots)


def _moved(place: int, before: int | None) -> str:
    if before is None:
        return "new"
    return f"{before - place:+d}" if before != place else ""


def titles(catalogue: Catalogue, items: Sequence[str]) -> tuple[str, ...]:
    """The items' titles, their ids where the catalogue no longer has them."""
    rows = [catalogue.rows.get(item, 0) for item in items]
    return tuple(
        (catalogue.texts["title"][row - 1] if row else None) or item for row, item in zip(rows, items, strict=True)
    )
