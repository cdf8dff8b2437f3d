"""What every policy shows the same visitors of a simulated market, and what each item is worth to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from in_process import Engine, Market, Pair, Standing, UserTable, platform_log, sides

from omnifeed.export.catalogue import Catalogue
from omnifeed.model.network import Network
from omnifeed.world.traffic import Visit

VISITS = 1_500
DAYS = 3
TRENDING, RANDOM, ORACLE = "trending", "random", "oracle"
HOME_KIND = {"livestream": "livestream", "short_video": "video", "search": "product"}
Floats = npt.NDArray[np.float64]


def asked_visits(market: Market, rng: np.random.Generator) -> dict[int, list[Visit]]:
    """VISITS of the DAYS after the history, in their order, by day."""
    asked = {}
    first = market.config.world.history_days
    for day in range(first, first + DAYS):
        visits = market.world.visits(day)
        asked[day] = [visits[place] for place in np.sort(rng.permutation(len(visits))[: VISITS // DAYS])]
    return asked


def answered(
    market: Market,
    asked: Mapping[int, list[Visit]],
    arms: Mapping[str, Network | Pair | None],
    rng: np.random.Generator,
) -> Iterator[tuple[Visit, dict[str, list[str]], dict[str, float]]]:
    """Each visit with every policy's slate and every item's expected GMV, 0 where it may not be shown.

    Every arm answers through the server's engine, without exploration, on today's catalogue and last night's features.
    """
    world = market.world
    table = UserTable(market, sorted({visit.user_id for visits in asked.values() for visit in visits}))
    unexplored = replace(market.config.serving, explore_share=0.0)
    engine = Engine(market, Standing(market.config, sides(list(arms)), arms), table, unexplored)
    events = [platform_log(market, max(asked))]
    for day, visits in asked.items():
        midnight = world.day_start(day)
        catalogue = engine.midnight(events, midnight)
        table.midnight(events, midnight)
        for user, history in table.histories(events, midnight).items():
            table.put(user, history)
        kinds = np.array(world.catalogue(midnight)["kind"].to_pylist())
        ids = np.array([str(item) for item in catalogue.texts["item_id"]])
        for visit in visits:
            slates, worth = _slates(market, engine, catalogue, visit, ids, kinds, list(arms), rng)
            yield visit, slates, dict(zip(ids.tolist(), worth.tolist(), strict=True))


def _slates(
    market: Market,
    engine: Engine,
    catalogue: Catalogue,
    visit: Visit,
    ids: npt.NDArray[np.str_],
    kinds: npt.NDArray[np.str_],
    arms: list[str],
    rng: np.random.Generator,
) -> tuple[dict[str, list[str]], Floats]:
    """Each policy's answer, and the expected GMV of every item (0 where it may not be shown)."""
    size = market.config.world.slate
    shown = np.flatnonzero(catalogue.eligible(visit.ts))
    worth = np.zeros(len(ids))
    worth[shown] = market.world.value(visit.user_id, visit.scenario, visit.query, visit.ts, ids[shown].tolist())
    luck = rng.permutation(shown)
    luck = luck[np.argsort(kinds[luck] != HOME_KIND[visit.scenario], kind="stable")]  # at night few livestreams are on
    slates = {
        ORACLE: ids[shown[np.argsort(-worth[shown], kind="stable")[:size]]].tolist(),
        RANDOM: ids[luck[:size]].tolist(),
    }
    for arm in arms:
        answer = engine.ask(visit, arm, f"{visit.visit_id}")
        assert not answer.degraded, answer.degraded
        slates[arm] = list(answer.item_ids)
    return slates, worth
