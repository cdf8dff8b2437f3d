"""What is dropped, blocked, sold out, off air or excluded is returned by no path, and the list is full without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.releases import NOW, catalogue_columns, config, copied, experiment, workshop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnifeed.export.catalogue import write_snapshot
from omnifeed.export.delta import append_delta, change_of
from omnifeed.export.following import compact, load_catalogue
from omnifeed.serving.recommend import nearest
from omnifeed.serving.recommend.contract import MAX_K
from omnifeed.serving.recommend.live import Live
from serving.recommender import Server


def breaking(*parts: str) -> Callable[[Server], None]:
    return lambda server: server.broken["1"].update(parts)


#: The arm that is asked, and what fails; the challenger is a network, the champion what trends.
PATHS: dict[str, tuple[str, Callable[[Server], None]]] = {
    "network": ("challenger", lambda server: None),
    "trending": ("champion", lambda server: None),
    "champion instead of the challenger": ("challenger", breaking("ranker")),
    "retrieval order": ("alone", breaking("ranker")),
    "trending instead of the network": ("alone", breaking("user_encoder")),
    "an index that is not built again": ("alone", breaking("item_encoder")),
    "no features": ("alone", lambda server: setattr(server.store, "down", True)),
}
HIDE: dict[str, dict[str, Any]] = {
    "policy": {"policy": "DROP"},
    "stock": {"stock": 0},
    "ended": {"kind": "livestream", "live_from": 1, "live_until": NOW},
    "not yet": {"created_ts": NOW + 1},
    "author": {"author_id": "blocked"},
    "locale": {"locales": ["xx"]},
}


@pytest.fixture(params=["exact", "approximate"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Half of the requests are explored, a fifth of the places is for new items, and slates are made diverse.

    The approximate one has inverted lists although its catalogue is small.
    """
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "0", 0.5), ("challenger", "1", 0.5))
    slates = {"explore_share": 0.5, "new_every": 5, "new_views": 10_000, "diversity": 0.5}
    one = Server(home, replace(config().serving, **slates))
    if request.param == "approximate":
        pytest.importorskip("faiss")
        monkeypatch.setattr(nearest, "FEW", 0)
        monkeypatch.setattr(nearest, "TAIL", 3)
        serving = replace(config().serving, exact_up_to=0)
        one.live = Live(home, replace(config(), serving=serving), one.open)
        one.recommender._live = one.live
    return one


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_path_returns_what_must_not_be_shown_whatever_hid_it(server: Server, path: str, data: st.DataObject) -> None:
    arm, fail = PATHS[path]
    home = server.home
    for broken in server.broken.values():
        broken.clear()
    server.store.down = False
    items, features = catalogue_columns(workshop() / "training_set")
    write_snapshot(home, items, features, NOW - 100, blocked_authors=())
    append_delta(home, [change_of({"item_id": str(i), "policy": "ALLOW"}) for i in items["item_id"]], now=NOW - 100)
    ids = [str(item) for item in items["item_id"]]
    if arm == "alone":
        experiment(home, ("champion", "1", 1.0))
        arm = "champion"
    else:
        experiment(home, ("champion", "0", 0.5), ("challenger", "1", 0.5))
    while not server.live.refresh():
        pass
    fail(server)

    hidden: set[str] = set()
    for _ in range(data.draw(st.integers(1, 3), label="deltas")):
        how = data.draw(st.dictionaries(st.sampled_from(ids), st.sampled_from(list(HIDE)), max_size=25), label="hidden")
        changes = [change_of({"item_id": item, **HIDE[reason]}) for item, reason in how.items()]
        append_delta(home, changes, now=NOW, block=["blocked"])
        hidden |= how.keys()
        server.live.follow()
        if data.draw(st.booleans(), label="encoded"):
            server.live.build()
        if data.draw(st.booleans(), label="compacted"):
            compact(home)
            server.live.follow()

    excluded = data.draw(st.sets(st.sampled_from(ids), max_size=5), label="excluded")
    candidates = data.draw(st.none() | st.lists(st.sampled_from(ids), min_size=1, max_size=30), label="candidates")
    k = data.draw(st.sampled_from([1, 5, 20, MAX_K]), label="k")
    answer = server.ask(
        arm=arm,
        k=k,
        query=data.draw(st.none() | st.sampled_from(["lamp", "直播"])),
        exclude=tuple(excluded),
        candidates=None if candidates is None else tuple(candidates),
        locale="de",
        request_id=data.draw(st.uuids()).hex,
    )
    forbidden = hidden | excluded
    assert not forbidden & set(answer.item_ids)
    assert len(set(answer.item_ids)) == len(answer.item_ids)
    catalogue = load_catalogue(home)
    shown = catalogue.eligible_within(len(catalogue), NOW, "de")
    left = {item for item in ids if shown[catalogue.rows[item] - 1]} - excluded
    assert set(answer.item_ids) <= left
    wanted = left if candidates is None else left & set(candidates)
    if path != "an index that is not built again":
        assert len(answer.item_ids) == min(k, len(wanted)), "what is hidden took somebody's place"


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_path_returns_what_the_snapshot_hides(server: Server, path: str, data: st.DataObject) -> None:
    arm, fail = PATHS[path]
    for broken in server.broken.values():
        broken.clear()
    server.store.down = False
    if arm == "alone":
        experiment(server.home, ("champion", "1", 1.0))
        arm = "champion"
    else:
        experiment(server.home, ("champion", "0", 0.5), ("challenger", "1", 0.5))
    items, features = catalogue_columns(workshop() / "training_set")
    count = len(items["item_id"])
    hidden = data.draw(st.sets(st.integers(0, count - 1), max_size=count))
    how = [data.draw(st.sampled_from(["policy", "stock", "author"])) if row in hidden else "" for row in range(count)]
    items["policy"] = ["DROP" if reason == "policy" else "ALLOW" for reason in how]
    items["stock"] = [0 if reason == "stock" else None for reason in how]
    items["author_id"] = ["blocked" if reason == "author" else f"a{row}" for row, reason in enumerate(how)]
    write_snapshot(server.home, items, features, NOW, blocked_authors=("blocked",))
    while not server.live.refresh():
        pass
    fail(server)
    answer = server.ask(
        arm=arm,
        k=data.draw(st.integers(1, MAX_K)),
        query=data.draw(st.none() | st.text(max_size=30)),
        candidates=data.draw(st.none() | st.just(tuple(str(item) for item in items["item_id"]))),
        request_id=data.draw(st.uuids()).hex,
    )
    assert not {str(items["item_id"][row]) for row in hidden} & set(answer.item_ids)
    assert len(set(answer.item_ids)) == len(answer.item_ids)
    assert np.isfinite(answer.scores).all()
