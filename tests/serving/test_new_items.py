"""Places for new items: they are seen at last, no longer than until it is enough, and never past the filters."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest
from export.releases import NOW, catalogue_columns, config, copied, experiment, workshop

from omnifeed.config import ServingConfig, WorldConfig
from omnifeed.datasets.served import served_events
from omnifeed.export.catalogue import write_snapshot
from omnifeed.export.encode import DAY_US
from omnifeed.serving.recommend.contract import Source
from serving.market import Shop
from serving.recommender import Server

WORLD = WorldConfig(users=700, items=600, new_items_per_day=6, livestreams_per_day=8, history_days=3)
DAYS = range(3, 8)
ENOUGH = 4


def played(root: Path, new_every: int) -> tuple[Shop, dict[int, list[str]]]:
    """The market, and what stood in its kept places on each day."""
    shop = Shop(root, WORLD)
    serving = ServingConfig(
        explore_share=0.0, user_burst=0, repeats=0, diversity=0.0, new_every=new_every, new_views=ENOUGH
    )
    kept: dict[int, list[str]] = defaultdict(list)
    for day in DAYS:
        shop.midnight(day)
        recommender = shop.recommender(serving)
        for visit in shop.world.visits(day):
            answer = shop.serve(recommender, visit)
            if new_every and answer.sources[-1] is Source.NEW:
                kept[day].append(answer.item_ids[-1])
    shop.outcomes.flush()
    return shop, kept


def test_new_items_are_seen_until_it_is_enough_and_without_their_places_hardly(tmp_path: Path) -> None:
    shop, kept = played(tmp_path / "with", 10)
    without, _ = played(tmp_path / "without", 0)
    last = shop.world.day_start(DAYS[-1] + 1)
    items = shop.world.catalogue(last).to_pylist()
    first = shop.world.day_start(DAYS[0])
    # Videos and products that came in the first days; livestreams are gone before anybody can count.
    new = {
        item["item_id"]
        for item in items
        if first - DAY_US <= item["created_ts"].timestamp() * 1e6 < last - 2 * DAY_US
        and item["kind"] != "livestream"
        and item["policy"] != "DROP"
    }

    def seen_enough(shop: Shop) -> int:
        seen = Counter(served_events(shop.folder).filter(pc.field("viewed"))["item_id"].to_pylist())
        return sum(seen[item] >= ENOUGH for item in new)

    assert seen_enough(shop) > 0.9 * len(new) > 3 * seen_enough(without)

    created = {item["item_id"]: item["created_ts"].timestamp() * 1e6 for item in items}
    seen = served_events(shop.folder).filter(pc.field("viewed"))
    past = shop.world.tables().events.filter(pc.field("viewed"))
    views = [
        *zip(seen["item_id"].to_pylist(), seen["observed_ts"].to_pylist(), strict=True),
        *zip(past["item_id"].to_pylist(), past["observed_ts"].to_pylist(), strict=True),
    ]
    enough: set[str] = set()
    for day in DAYS:
        midnight = shop.world.day_start(day)
        count = Counter(item for item, ts in views if ts.timestamp() * 1e6 < midnight)
        assert kept[day], "nobody stood in the kept places"
        for item in kept[day]:
            assert count[item] < ENOUGH
            assert created[item] > midnight - 7 * DAY_US
        enough |= {item for item in kept[day - 1] if count[item] >= ENOUGH} if day - 1 in kept else set()
        assert not enough & set(kept[day])
    assert len(enough) >= 5, "none was ever seen enough"


@pytest.mark.parametrize(("release", "broken"), [("0", ""), ("1", ""), ("1", "ranker"), ("1", "user_encoder")])
def test_the_kept_places_and_their_source(tmp_path: Path, release: str, broken: str) -> None:
    home = copied(tmp_path / "home")
    experiment(home, ("champion", release, 1.0))
    items, features = catalogue_columns(workshop() / "training_set")
    count = len(items["item_id"])
    items["kind"] = ["product"] * count
    items["created_ts"] = [NOW - (2 if row < 14 else 9) * DAY_US for row in range(count)]
    views = [3.0 if row < 12 else 100.0 for row in range(count)]
    features = {name: {**columns, "item_views_7d": views} for name, columns in features.items()}
    write_snapshot(home, items, features, NOW)
    server = Server(home, replace(config().serving, new_every=4, new_views=10, creator_limit=12))
    server.live.refresh()
    server.broken.setdefault("1", set()).add(broken)
    new = {str(item) for item in items["item_id"][:12]}
    hidden = "i0"
    drawn: set[tuple[str, ...]] = set()
    for request in range(30):
        answer = server.ask(k=12, request_id=f"{request}", exclude=(hidden,))
        assert hidden not in answer.item_ids
        for place in (3, 7, 11):
            if new - {hidden} <= set(answer.item_ids[:place]):
                continue  # all of them stand above by their scores
            assert answer.item_ids[place] in new
            assert answer.sources[place] == Source.NEW
        assert answer.propensities is None
        drawn.add(answer.item_ids)
    assert len(drawn) > 1, "they do not take turns"
    assert server.ask(k=12, request_id="1").item_ids == server.ask(k=12, request_id="1").item_ids
    few = server.ask(k=3)
    assert Source.NEW not in few.sources
    own = server.ask(k=8, candidates=tuple(str(item) for item in items["item_id"][:20]))
    assert set(own.sources) == {Source.CANDIDATE}
