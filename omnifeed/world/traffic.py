"""Who comes when, to which surface, and what they type: the requests of one simulated day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omnifeed.config import WorldConfig
from omnifeed.world.behaviour import SEARCH, SECOND_US, Requests
from omnifeed.world.keys import Ints, generator, key, keys, mix, uniform_rows, uniforms
from omnifeed.world.laws import SCENARIOS
from omnifeed.world.population import DAY_US, DEVICES, LOCALES, Population
from omnifeed.world.vocabulary import MAX_WORDS, Vocabulary

_SESSION_REQUESTS = 1.6  # mean
_LONGEST_SESSION = 6
_SCENARIO_SHARES = (0.36, 0.4, 0.24)
_UTC_OFFSET_HOURS = (-6, 1, 8)  # America, Europe, China
_WEEKEND = 1.15


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for recommendations. `ts` is UTC microseconds; `query` is null unless search."""

    visit_id: str
    user_id: str
    ts: int
    scenario: str
    query: str | None
    locale: str
    device: str


def visits_of_day(config: WorldConfig, people: Population, words: Vocabulary, start_ts: int, day: int) -> list[Visit]:
    """Every user's requests of a day, sorted by (ts, visit_id)."""
    rng = generator(config.seed, config.law, "traffic", day)
    midnight = start_ts + day * DAY_US
    rate = config.requests_per_user_day / _SESSION_REQUESTS * people.activity
    weekend = (midnight // DAY_US + 3) % 7 >= 5  # 1970-01-01 was a Thursday
    sessions = np.repeat(np.arange(config.users), rng.poisson(rate * (_WEEKEND if weekend else 1.0)))
    length = np.minimum(rng.geometric(1 / _SESSION_REQUESTS, len(sessions)), _LONGEST_SESSION)
    local_hour = np.where(
        rng.random(len(sessions)) < 0.6, rng.normal(20.0, 2.5, len(sessions)), rng.uniform(7, 24, len(sessions))
    )
    hour = (local_hour - np.array(_UTC_OFFSET_HOURS)[people.language[sessions]]) % 24
    begin = np.minimum(hour * 3_600, 86_400 - 480 * _LONGEST_SESSION)
    session = np.repeat(np.arange(len(sessions)), length)
    user = sessions[session]
    first = np.r_[True, session[1:] != session[:-1]] if len(session) else np.zeros(0, bool)
    gap = np.where(first, 0.0, rng.uniform(40, 470, len(session)))
    elapsed = np.cumsum(gap)
    ts = midnight + ((begin[session] + elapsed - elapsed[np.flatnonzero(first)][session]) * SECOND_US).astype(np.int64)
    anew = first | (rng.random(len(session)) < 0.4)
    drawn = rng.choice(len(SCENARIOS), len(session), p=_SCENARIO_SHARES)
    scenario = drawn[np.maximum.accumulate(np.where(anew, np.arange(len(session)), 0))] if len(session) else drawn
    names = [
        f"r{value:016x}"
        for value in mix(
            np.arange(len(session), dtype=np.uint64), np.uint64(key(config.seed, config.law, "visit", day))
        )
    ]
    queries = _queries(config, people, words, names, user, ts, scenario)
    order = sorted(range(len(names)), key=lambda index: (int(ts[index]), names[index]))
    return [
        Visit(
            visit_id=names[index],
            user_id=people.ids[user[index]],
            ts=int(ts[index]),
            scenario=SCENARIOS[scenario[index]],
            query=queries[index],
            locale=LOCALES[people.language[user[index]]],
            device=DEVICES[people.device[user[index]]],
        )
        for index in order
    ]


def _queries(
    config: WorldConfig, people: Population, words: Vocabulary, names: list[str], user: Ints, ts: Ints, scenario: Ints
) -> list[str | None]:
    """Two in three searches are for what the user is after these days, the others for something else they like."""
    visit_keys = keys(f"{config.seed}/query", names)
    luck = uniform_rows(visit_keys, 6)
    other = people.drawn_leaf(user, uniforms(visit_keys, 31))
    wanted = np.where(luck[5] < 0.67, people.intent(user, ts), other)
    return [
        words.typed(int(wanted[index]), int(people.language[user[index]]), tuple(luck[:5, index]))
        if scenario[index] == SEARCH
        else None
        for index in range(len(names))
    ]


def requests_of(config: WorldConfig, people: Population, words: Vocabulary, visits: Sequence[Visit]) -> Requests:
    """The visits as arrays."""
    meanings = [words.meaning(visit.query) for visit in visits]
    known = np.full((len(visits), MAX_WORDS), -1, np.int64)
    for row, meaning in enumerate(meanings):
        known[row, : len(meaning.words)] = meaning.words
    return Requests(
        keys=keys(f"{config.seed}/visit", [visit.visit_id for visit in visits]),
        user=np.array([people.row[visit.user_id] for visit in visits], np.int64),
        ts=np.array([visit.ts for visit in visits], np.int64),
        scenario=np.array([SCENARIOS.index(visit.scenario) for visit in visits], np.int64),
        leaf=np.array([meaning.leaf for meaning in meanings], np.int64),
        words=known,
    )
