"""A better policy earns more: oracle above the best unpersonal order above random, in both laws."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from omnifeed.config import WorldConfig
from omnifeed.world.laws import LAWS
from omnifeed.world.market import World


@pytest.mark.parametrize("law", sorted(LAWS))
def test_knowing_more_about_users_earns_more(law: str) -> None:
    world = World(WorldConfig(law=law, users=1_500, requests_per_user_day=0.5))
    day = 15
    catalogue = world.catalogue(world.day_start(day))
    ids = np.array(catalogue["item_id"].to_pylist())
    begins, ends = (
        catalogue[name].cast(pa.int64()).fill_null(bound).to_numpy()
        for name, bound in (("live_from", 0), ("live_until", 2**62))
    )
    visits = world.visits(day)[:200]
    users = sorted(world.holdout_users())[:40]
    rng = np.random.default_rng(0)
    gmv: dict[str, list[float]] = {"oracle": [], "popularity": [], "random": []}
    for visit in visits:
        here = ids[(begins <= visit.ts) & (visit.ts < ends)].tolist()
        asked = (visit.scenario, visit.query, visit.ts, here)
        scores = {
            "oracle": world.value(visit.user_id, *asked),
            "popularity": np.mean([world.value(user, *asked) for user in users[:20]], axis=0),
            "random": rng.random(len(here)),
        }
        for name, score in scores.items():
            slate = [here[place] for place in np.argsort(-score, kind="stable")[:10]]
            gmv[name].append(sum(response.gmv for response in world.respond(visit, slate)))
    means = {name: float(np.mean(values)) for name, values in gmv.items()}
    assert means["oracle"] > 1.8 * means["popularity"]  # popularity here knows the true mean, query included
    assert means["popularity"] > 1.3 * means["random"]
