"""The market: logs of its past, its catalogue, its traffic, and its answers to recommendations.

Held-out users come and go in the logs like everyone, never train a model, and receive the A/B traffic.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import WorldConfig
from omnifeed.errors import InputError
from omnifeed.tables import EVENTS, Tables
from omnifeed.world.assortment import Assortment, Items
from omnifeed.world.behaviour import Expected, Reactions, Requests, chances, expected, react, sigmoid
from omnifeed.world.keys import Floats, Ints, generator
from omnifeed.world.laws import SCENARIOS, law
from omnifeed.world.logging_policy import Shelf, logged_slates
from omnifeed.world.population import DAY_US, populate
from omnifeed.world.traffic import Visit, requests_of, visits_of_day
from omnifeed.world.vocabulary import Vocabulary

LOGGING_ARM = "logging"


@dataclass(frozen=True, slots=True)
class Response:
    """What a user did with one position of an answer."""

    item_id: str
    position: int
    viewed: bool
    outcomes: dict[str, bool]  # by name, all false where not viewed
    dwell_ms: int
    gmv: float  # USD
    delay_us: int  # from the request until the outcomes are known


class World:
    """One simulated market. The same configuration gives the same bytes, whatever is asked in whatever order."""

    def __init__(self, config: WorldConfig) -> None:
        self._config, self._law = config, law(config.law)
        try:
            first = datetime.date.fromisoformat(config.start)
        except ValueError:
            raise InputError(f"Setting world.start is {config.start!r}.", "Write a date as YYYY-MM-DD.") from None
        self._start = (first - datetime.date(1970, 1, 1)).days * DAY_US
        self._words = Vocabulary()
        self._people = populate(config, self._law, self._words, self._start)
        self._assortment = Assortment(config, self._law, self._words, self._start)

    def day_start(self, day: int) -> int:
        """Midnight of a simulated day, UTC microseconds."""
        return self._start + day * DAY_US

    def holdout_users(self) -> frozenset[str]:
        """Users whose rows never train a model and who receive the A/B traffic."""
        people = self._people
        return frozenset(people.ids[row] for row in np.flatnonzero(people.holdout))

    def catalogue(self, now: int) -> pa.Table:
        """Items announced by `now` (UTC microseconds) with the stock and prices of `now`, in the ITEMS schema.

        Ended livestreams and those yet to begin are in it; their air times say so.
        """
        items = self._assortment.through(max((now - self._start) // DAY_US, 0))
        return self._assortment.table(items, int(np.searchsorted(items.created, now, side="right")), now)

    def visits(self, day: int) -> list[Visit]:
        """The requests of held-out users on a simulated day, sorted by time."""
        people = self._people
        return [visit for visit in self._visits(day) if people.holdout[people.row[visit.user_id]]]

    def respond(self, visit: Visit, item_ids: Sequence[str]) -> list[Response]:
        """What the visitor does with this answer, one response a position.

        A pure function of seed, visit and items. Luck belongs to (visit, item), so two answers to one visit differ by
        the items and their places alone.

        Raises:
            InputError: the user, the scenario or an item is not of this world.
        """
        if not item_ids:
            return []
        requests = self._requests(visit)
        rows = self._rows(item_ids, visit.ts)
        reactions = react(self._law, self._people, self._assortment.items, requests, rows[None])
        names = tuple(reactions.outcomes)
        happened = np.stack([reactions.outcomes[name][0] for name in names], axis=1).tolist()
        viewed, dwell = reactions.viewed[0].tolist(), reactions.dwell_ms[0].tolist()
        gmv, delay = reactions.gmv[0].tolist(), reactions.delay_us[0].tolist()
        return [
            Response(
                item,
                place,
                viewed[place],
                dict(zip(names, happened[place], strict=True)),
                dwell[place],
                gmv[place],
                delay[place],
            )
            for place, item in enumerate(item_ids)
        ]

    def expected(self, visit: Visit, item_ids: Sequence[str]) -> Expected:
        """What `respond` gives on average over luck, which only an oracle knows; arrays [1, len(item_ids)].

        Raises:
            InputError: the user, the scenario or an item is not of this world.
        """
        rows = self._rows(item_ids, visit.ts)[None]
        return expected(self._law, self._people, self._assortment.items, self._requests(visit), rows)

    def value(self, user_id: str, scenario: str, query: str | None, ts: int, item_ids: Sequence[str]) -> Floats:
        """Expected GMV of each item shown alone at the top, USD; what only an oracle knows.

        Returns:
            float64 [len(item_ids)].
        """
        requests = self._requests(Visit("", user_id, ts, scenario, query, "", ""))
        rows = self._rows(item_ids, ts)[None]
        likely = chances(self._law, self._people, self._assortment.items, requests, rows)
        return np.asarray((sigmoid(likely.click_odds) * likely.cart * likely.order * likely.price)[0], np.float64)

    def tables(self, days: int | None = None) -> Tables:
        """The logged history of the first `days` days (default: history_days) of all users.

        Items are as of the end of the history. Propensities are null: see `logging_policy`.
        """
        days = self._config.history_days if days is None else days
        items = self._assortment.through(max(days - 1, 0))
        shelf = Shelf(items)
        parts = [self._logged_day(day, items, shelf) for day in range(days)]
        return Tables(
            events=pa.concat_tables(parts).combine_chunks() if parts else EVENTS.empty_table(),
            items=self.catalogue(self.day_start(days)),
            users=self._people.table(),
        )

    def _visits(self, day: int) -> list[Visit]:
        return visits_of_day(self._config, self._people, self._words, self._start, day)

    def _requests(self, visit: Visit) -> Requests:
        if visit.user_id not in self._people.row or visit.scenario not in SCENARIOS:
            raise InputError(
                f"Visit {visit.visit_id!r} of user {visit.user_id!r} to {visit.scenario!r} is not of this world.",
                f"Use a user of World.tables().users and one of {', '.join(SCENARIOS)}.",
            )
        return requests_of(self._config, self._people, self._words, [visit])

    def _rows(self, item_ids: Sequence[str], ts: int) -> Ints:
        self._assortment.through(max((ts - self._start) // DAY_US, 0))
        row = self._assortment.row
        unknown = [item for item in item_ids if item not in row]
        if unknown:
            raise InputError(f"Item {unknown[0]!r} is not of this world.", "Recommend items of World.catalogue(now).")
        return np.array([row[item] for item in item_ids], np.int64)

    def _logged_day(self, day: int, items: Items, shelf: Shelf) -> pa.Table:
        visits = self._visits(day)
        requests = requests_of(self._config, self._people, self._words, visits)
        rng = generator(self._config.seed, self._config.law, "logging", day)
        rows = logged_slates(self._law, self._people, shelf, requests, self._config.slate, rng)
        return _event_rows(visits, rows, items, react(self._law, self._people, items, requests, rows))


def _event_rows(visits: Sequence[Visit], rows: Ints, items: Items, reactions: Reactions) -> pa.Table:
    """One row an item served, in the order of (ts, request, position)."""
    served = rows.reshape(-1) >= 0
    size = rows.shape[1]
    request = np.repeat(np.arange(len(visits)), size)[served]
    place = np.tile(np.arange(size), len(visits))[served]

    def by_request(values: list[str] | list[str | None]) -> pa.Array:
        return pa.array(values, pa.string()).take(pa.array(request))

    def flat(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1)[served]

    request_id = by_request([visit.visit_id for visit in visits])
    ts = np.array([visit.ts for visit in visits], np.int64)[request]
    columns = {
        "event_id": pc.binary_join_element_wise(request_id, pa.array(place).cast(pa.string()), "-"),
        "request_id": request_id,
        "user_id": by_request([visit.user_id for visit in visits]),
        "item_id": pa.array(items.ids).take(pa.array(flat(rows))),
        "scenario": by_request([visit.scenario for visit in visits]),
        "ts": ts,
        "position": place.astype(np.int32),
        "served": np.ones(len(place), bool),
        "viewed": flat(reactions.viewed),
        "query": by_request([visit.query for visit in visits]),
        **{name: flat(values) for name, values in reactions.outcomes.items()},
        "dwell_ms": flat(reactions.dwell_ms),
        "gmv": flat(reactions.gmv),
        "arm": pa.repeat(LOGGING_ARM, len(place)),
        "release": pa.nulls(len(place), pa.string()),
        "propensity": pa.nulls(len(place), pa.float64()),
        "locale": by_request([visit.locale for visit in visits]),
        "device": by_request([visit.device for visit in visits]),
        "observed_ts": ts + flat(reactions.delay_us),
    }
    schema = pa.schema([field.with_nullable(True) for field in EVENTS])
    return pa.table([pa.array(columns[f.name]).cast(f.type) for f in schema], schema=schema)
