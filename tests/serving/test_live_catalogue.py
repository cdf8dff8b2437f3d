"""A catalogue that changes by the minute under running servers: with a clock, in process and behind real Triton."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from export.releases import NOW, catalogue_columns, config, copied, experiment, workshop

from omnifeed.errors import InputError, UnavailableError
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.catalogue import load_snapshot, write_snapshot
from omnifeed.export.delta import append_delta, change_of
from omnifeed.export.following import compact
from omnifeed.home import Home
from omnifeed.serving.client import Client
from omnifeed.serving.recommend.contract import MAX_K, Reason
from omnifeed.serving.recommend.parts import Arrays, Parts
from omnifeed.serving.server import LocalServer, triton_environment
from serving.recommender import Server

ARMS = ("champion", "challenger")
SHOW = {
    "item_id": "show",
    "kind": "livestream",
    "created_ts": NOW - 2,
    "policy": "ALLOW",
    "title": "a kite show",
    "author_id": "kites",
    "live_from": NOW - 1,
    "stock": 3,
}


def change(home: Home, **values: Any) -> None:
    append_delta(home, [change_of(values)], now=NOW)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Release 0 is the champion, release 1 the challenger."""
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "0", 0.5), ("challenger", "1", 0.5))
    one = Server(home)
    assert one.live.refresh()
    return one


def there(server: Server, item: str, arm: str, now: int = NOW) -> bool:
    return item in server.ask(arm=arm, k=MAX_K, query="a kite show", now=now).item_ids


def test_a_livestream_s_life_in_both_arms_by_deltas_alone(server: Server) -> None:
    encoded = server.parts["1"].encoded
    change(server.home, **SHOW)
    assert not any(there(server, "show", arm) for arm in ARMS)
    assert server.live.refresh()
    assert all(there(server, "show", arm) for arm in ARMS)
    assert server.parts["1"].encoded == encoded + 1
    assert server.live.state.loaded["1"].index.rows["show"] == len(load_snapshot(server.home)) + 1
    for values in ({"live_until": NOW}, {"live_until": None, "stock": 0}, {"stock": 1, "policy": "DROP"}):
        change(server.home, item_id="show", **values)
        server.live.follow()  # what hides needs no encoding
        assert not any(there(server, "show", arm) for arm in ARMS)
    change(server.home, item_id="show", policy="ALLOW", price=5.0)
    server.live.follow()
    assert all(there(server, "show", arm) for arm in ARMS)  # by the row that is encoded
    assert server.parts["1"].encoded == encoded + 1
    assert server.live.refresh()
    assert server.parts["1"].encoded == encoded + 2
    assert all(there(server, "show", arm) for arm in ARMS)


def test_a_block_takes_effect_without_a_release_and_is_lifted(server: Server) -> None:
    change(server.home, **SHOW)
    server.live.refresh()
    append_delta(server.home, now=NOW, block=["kites"])
    server.live.follow()
    assert not any(there(server, "show", arm) for arm in ARMS)
    append_delta(server.home, now=NOW, unblock=["kites"])
    server.live.follow()
    assert all(there(server, "show", arm) for arm in ARMS)


def test_an_index_made_of_deltas_is_the_one_made_of_a_snapshot(server: Server) -> None:
    change(server.home, **SHOW)
    change(server.home, item_id="i3", title="retitled", price=3.25)
    assert server.live.refresh()
    change(server.home, item_id="show", title="a kite show, again")
    assert server.live.refresh()
    compact(server.home)
    encoded = server.parts["1"].encoded
    assert server.live.refresh()
    assert server.parts["1"].encoded == encoded  # a snapshot of what is encoded already
    other = Server(server.home)
    assert other.live.refresh()
    mine, fresh = (one.live.state.loaded["1"].index for one in (server, other))
    for item, row in fresh.rows.items():
        np.testing.assert_allclose(mine.vec[mine.rows[item]], fresh.vec[row], atol=1e-6)
        np.testing.assert_allclose(mine.key[mine.rows[item]], fresh.key[row], atol=1e-6)
        at = mine.rows[item]
        np.testing.assert_array_equal(mine.texts.dense(np.array([at])), fresh.texts.dense(np.array([row])))
    assert server.ask(arm="challenger", k=20).item_ids == other.ask(arm="challenger", k=20).item_ids


def test_a_release_that_cannot_encode_serves_on_and_hides_what_is_gone(server: Server) -> None:
    """Also on a new snapshot, whose rows the former index does not have."""
    before = server.ask(arm="challenger", k=MAX_K).item_ids
    server.broken["1"].add("item_encoder")
    change(server.home, **SHOW)
    change(server.home, item_id=before[0], policy="DROP")
    change(server.home, item_id=before[1], price=99.0)
    assert not server.live.refresh()
    after = server.ask(arm="challenger", k=MAX_K)
    assert after.release == "1"
    assert set(after.item_ids) == set(before[1:])
    assert there(server, "show", "champion")
    items, features = catalogue_columns(workshop() / "training_set")
    items["stock"] = [0 if item == before[2] else None for item in items["item_id"]]
    write_snapshot(server.home, items, features, NOW + 1)
    assert not server.live.refresh()
    answer = server.ask(arm="challenger", k=MAX_K)
    assert answer.release == "1"
    assert set(answer.item_ids) <= set(before) - {before[0], before[2]}
    change(server.home, item_id=before[3], stock=0)
    server.live.follow()
    assert before[3] not in server.ask(arm="challenger", k=MAX_K).item_ids
    server.broken["1"].clear()
    while not server.live.refresh():
        pass
    assert server.ask(arm="challenger", k=MAX_K).degraded == (Reason.FEWER_THAN_K,)


def test_behind_a_damaged_snapshot_the_former_one_follows_the_deltas(server: Server) -> None:
    items, features = catalogue_columns(workshop() / "training_set")
    version = write_snapshot(server.home, items, features, NOW - 1)
    path = server.home.catalogue / f"{version}.npz"
    path.write_bytes(path.read_bytes()[:-40])
    gone = server.ask(arm="challenger").item_ids[0]
    change(server.home, item_id=gone, policy="DROP")
    change(server.home, **SHOW)
    server.live.refresh()
    for arm in ARMS:
        assert gone not in server.ask(arm=arm, k=MAX_K).item_ids
        assert there(server, "show", arm)


class Stuck:
    """Parts whose item encoder waits until it is let go."""

    def __init__(self, inner: Parts, reached: threading.Event, go: threading.Event) -> None:
        self._inner, self._reached, self._go = inner, reached, go

    def item_encoder(self, inputs: Arrays) -> Arrays:
        self._reached.set()
        assert self._go.wait(30)
        return self._inner.item_encoder(inputs)

    def user_encoder(self, inputs: Arrays) -> Arrays:
        return self._inner.user_encoder(inputs)

    def ranker(self, inputs: Arrays) -> Arrays:
        return self._inner.ranker(inputs)

    def resting(self) -> str | None:
        return self._inner.resting()


def test_what_sells_out_is_hidden_while_an_item_encoder_hangs(server: Server) -> None:
    reached, go = threading.Event(), threading.Event()
    server.live._bundles["1"] = (server.live._bundles["1"][0], Stuck(server.parts["1"], reached, go))
    gone = server.ask(arm="challenger").item_ids[0]
    change(server.home, **SHOW)
    server.live.follow()
    building = threading.Thread(target=server.live.build)
    building.start()
    assert reached.wait(10)
    change(server.home, item_id=gone, stock=0)
    server.live.follow()
    assert not any(gone in server.ask(arm=arm, k=MAX_K).item_ids for arm in ARMS)
    write_snapshot(server.home, *catalogue_columns(workshop() / "training_set"), NOW - 1)
    server.live.follow()  # a new snapshot while the former is being encoded
    assert not any(gone in server.ask(arm=arm, k=MAX_K).item_ids for arm in ARMS)
    go.set()
    building.join(10)
    assert not any(gone in server.ask(arm=arm, k=MAX_K).item_ids for arm in ARMS)
    assert server.live.refresh()
    assert all(there(server, "show", arm) for arm in ARMS)


def test_a_rollback_of_the_model_keeps_todays_catalogue(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    ledger = Ledger(home)
    ledger.append("BOOTSTRAP", {"release": "0"}, NOW)
    ledger.append("PROMOTE", {"release": "1"}, NOW, expected_champion="0")
    server = Server(home)
    assert server.live.refresh()
    change(home, **SHOW)
    assert server.live.refresh()
    ledger.rollback(NOW, to="0", reason="a test")
    assert server.live.refresh()
    answer = server.ask(k=MAX_K, query="a kite show")
    assert answer.release == "0"
    assert "show" in answer.item_ids
    assert server.live.state.catalogue is not None
    assert server.live.state.catalogue.sequence == 1


def test_what_a_user_rejected_is_not_shown_again_and_the_list_stays_full(server: Server) -> None:
    for arm in ARMS:
        shown = server.ask(arm=arm, k=5)
        row = server.store.rows["known"]
        rejected = shown.item_ids[0]
        server.store.rows["known"] = type(row)(row.values, (rejected,), (7,), ("search",), (1,))
        again = server.ask(arm=arm, k=5)
        assert rejected not in again.item_ids
        assert len(again.item_ids) == 5
        server.store.rows["known"] = row


def test_locales_are_the_request_s_or_else_the_user_s(server: Server) -> None:
    change(server.home, **SHOW)
    change(server.home, item_id="show", locales=["fr"])
    server.live.refresh()
    for arm in ARMS:
        wanted: dict[str, Any] = {"arm": arm, "k": MAX_K, "query": "a kite show"}
        assert "show" in server.ask(locale="fr-CA", **wanted).item_ids
        assert "show" not in server.ask(locale="en", **wanted).item_ids
        assert "show" not in server.ask(user_id="known", **wanted).item_ids  # whose stored locale is de
        assert "show" in server.ask(user_id="nobody", **wanted).item_ids


def test_an_item_behind_a_warning_says_so(server: Server) -> None:
    change(server.home, **{**SHOW, "policy": "INTERSTITIAL"})
    server.live.refresh()
    for arm in ARMS:
        answer = server.ask(arm=arm, k=MAX_K, query="a kite show")
        flagged = {item for item, behind in zip(answer.item_ids, answer.interstitial, strict=True) if behind}
        assert "show" in flagged
        catalogue = load_snapshot(server.home)
        assert all(catalogue.policy[catalogue.rows[item] - 1] == 1 for item in flagged - {"show"})


# Behind real Triton: two instances of `recommend`, each a reader of its own.


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    try:
        triton_environment()
    except UnavailableError as missing:
        pytest.skip(missing.problem)
    home = copied(tmp_path_factory.mktemp("live") / "home")
    experiment(home, ("champion", "0", 0.5), ("challenger", "1", 0.5))
    with LocalServer(home, config(), simulated_clock=True, features=False) as one:
        yield one


def seconds_until(condition: Callable[[], bool], limit: float) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit, f"not within {limit} s"
        time.sleep(0.05)
    return time.monotonic() - start


def test_within_their_times_on_every_instance(running: LocalServer) -> None:
    """A start within 60 s in both arms; an end, a sell-out and a drop within 10 s; a block within 60 s."""
    with Client(running.url, deadline_s=10) as client, ThreadPoolExecutor(2) as two:

        def answers(now: int = NOW) -> list[bool]:
            """By either instance, as two requests at a time reach both."""
            asked = two.map(
                lambda arm: client.recommend("u", "search", "a kite show", k=MAX_K, arm=arm, now=now, probe=True),
                ARMS * 4,
            )
            return ["show" in answer.item_ids for answer in asked]

        change(running.home, **SHOW)
        seconds_until(lambda: all(answers()), 60)
        for values, back in (
            ({"live_until": NOW}, {"live_until": None}),
            ({"stock": 0}, {"stock": 7}),
            ({"policy": "DROP"}, {"policy": "ALLOW"}),
        ):
            change(running.home, item_id="show", **values)
            seconds_until(lambda: not any(answers()), 10)
            change(running.home, item_id="show", **back)
            seconds_until(lambda: all(answers()), 60)
        append_delta(running.home, now=NOW, block=["kites"])
        seconds_until(lambda: not any(answers()), 60)


def test_refusals_are_counted_in_the_server_s_metrics(running: LocalServer) -> None:
    address = f"http://127.0.0.1:{running.config.serving.metrics_port}/metrics"

    def counted() -> Counter[str]:
        found: Counter[str] = Counter()
        for line in urlopen(address, timeout=5).read().decode().splitlines():
            if line.startswith("omnifeed_refusals_total{"):
                found[line.split('kind="')[1].split('"')[0]] += int(float(line.rsplit(" ", 1)[1]))
        return found

    before = counted()
    with Client(running.url, deadline_s=10) as client:
        for fields in ({"k": 0}, {"exclude": ["x"] * 10_001}, {"user_id": "x" * 1_000}):
            with pytest.raises(InputError):
                client.recommend(**{"user_id": "u", "scenario": "search", "now": NOW, **fields})
        refused = []
        for user in ("one", "two") * 20:  # both instances, however the requests fall
            try:
                client.recommend(user, "search", now=NOW, request_id="mine")
            except InputError as error:
                refused.append(error.problem)
        assert refused
        assert all("request_id" in problem for problem in refused)
    expected = {"malformed": 1, "oversized": 2, "replayed": len(refused)}
    seconds_until(lambda: {kind: counted()[kind] - before[kind] for kind in expected} == expected, 10)
