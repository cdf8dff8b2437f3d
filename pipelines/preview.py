"""A few users' recommendations from both arms, side by side, for a person to look at; logged nowhere."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.experiment.assignment import Experiment
from omnifeed.home import Home
from omnifeed.quality.lake import accepted
from omnifeed.tables import read_tables

if TYPE_CHECKING:
    from omnifeed.serving.client import Client

SCENARIOS = 5  # those with most clicks
ITEMS = 5


def preview(home: Home, config: Config, experiment: Experiment, client: Client) -> list[dict[str, Any]]:
    """Ask in the busiest scenarios what each arm would show to one user of the log, over gRPC.

    Returns:
        One entry a user and scenario: user, scenario, query, what the user last clicked, and by arm the slate with
        titles, prices and sources.
    """
    tables = read_tables(accepted(home))
    named = {
        row["item_id"]: row
        for row in tables.items.select(["item_id", "title", "price", "category", "kind"]).to_pylist()
    }
    clicks = tables.events.filter(pc.fill_null(tables.events["click"], False))
    counts = Counter(clicks["scenario"].to_pylist())
    busiest = sorted(config.data.scenarios, key=lambda name: -counts[name])[:SCENARIOS]
    shown = []
    for scenario in [name for name in config.data.scenarios if name in busiest and counts[name]]:
        events = clicks.filter(pc.equal(clicks["scenario"], scenario))
        user = min(
            pc.unique(events["user_id"]).to_pylist(),
            key=lambda user: hashlib.sha256(f"preview {user}".encode()).digest(),
        )
        mine = events.filter(pc.equal(events["user_id"], user)).sort_by([("ts", "descending")])
        query = mine["query"][0].as_py()
        arms = {}
        for arm in experiment.arms:
            answer = client.recommend(
                user, scenario, query=query, k=ITEMS, arm=arm.name, now=experiment.start_ts, probe=True
            )
            arms[arm.name] = {
                "release": answer.release,
                "degraded": list(answer.degraded),
                "items": [
                    {**_card(named, item), "score": score, "source": source}
                    for item, score, source in zip(answer.item_ids, answer.scores, answer.sources, strict=True)
                ],
            }
        clicked = [_card(named, item) for item in mine["item_id"].to_pylist()[:3]]
        shown.append({"user": user, "scenario": scenario, "query": query, "clicked": clicked, "arms": arms})
    return shown


def _card(named: dict[str, dict[str, Any]], item: str) -> dict[str, Any]:
    row = named.get(item, {})
    return {"item_id": item, **{name: row.get(name) for name in ("title", "price", "category", "kind")}}
