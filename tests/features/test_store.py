"""The online store keeps the newest row of a user, in whatever order rows arrive."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.conftest import NOW, Market
from omnifeed.config import Config
from omnifeed.errors import InputError, IntegrityError
from omnifeed.export.encode import UserRow
from omnifeed.features.aggregates import AS_OF
from omnifeed.features.repository import repo_folder
from omnifeed.features.spec import USER_DENSE, of
from omnifeed.features.store import apply, feature_store, push_users, read_user
from omnifeed.home import Home
from omnifeed.tables import TS

_numbers = itertools.count()


def history_rows(users: list[str], stamps: list[int], items: list[list[str]]) -> pa.Table:
    return pa.table(
        {
            "user_id": users,
            AS_OF: pa.array(stamps, pa.int64()).cast(TS),
            "history_item": pa.array(items, pa.list_(pa.string())),
            "history_action": pa.array([[1] * len(row) for row in items], pa.list_(pa.int64())),
            "history_scenario": pa.array([["search"] * len(row) for row in items], pa.list_(pa.string())),
            "history_ts": pa.array(
                [[stamp] * len(row) for stamp, row in zip(stamps, items, strict=True)], pa.list_(pa.int64())
            ),
        }
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3_000_000)), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_the_newest_row_wins_to_the_microsecond(market: Market, batches: list[list[tuple[str, int]]]) -> None:
    run = next(_numbers)
    newest: dict[str, int] = {}
    for batch in batches:
        users = [f"{name}{run}" for name, _ in batch]
        stamps = [NOW + offset for _, offset in batch]
        best = {user: max(s for u, s in zip(users, stamps, strict=True) if u == user) for user in users}
        written = push_users(
            market.home, history_rows(users, stamps, [[f"at{s}"] for s in stamps]), "user_history", market.config
        )
        assert written == sum(stamp >= newest.get(user, -1) for user, stamp in best.items())
        newest |= {user: max(stamp, newest.get(user, -1)) for user, stamp in best.items()}
    for user, stamp in newest.items():
        assert read_user(market.home, user, market.config).history_item == (f"at{stamp}",)


def test_at_the_same_instant_the_row_pushed_last_wins(market: Market) -> None:
    for item in ("first", "second"):
        assert push_users(market.home, history_rows(["tie"], [NOW], [[item]]), "user_history", market.config) == 1
    assert read_user(market.home, "tie", market.config).history_item == ("second",)


def test_feast_alone_lets_an_older_row_win(market: Market) -> None:
    """Guard: the reason for `push_users` (SQLite store, Feast 0.67)."""
    store = feature_store(market.home, market.config)
    for stamp in (NOW + 60_000_000, NOW):
        rows = history_rows(["guard"], [stamp], [[f"at{stamp}"]])
        rows = rows.append_column("user_history_as_of", rows[AS_OF].cast(pa.int64()))
        store.write_to_online_store("user_history", df=rows.to_pandas())
    assert read_user(market.home, "guard", market.config).history_item == (f"at{NOW}",)


def test_views_are_pushed_apart_and_nulls_are_absent(market: Market) -> None:
    stamp = pa.array([NOW], pa.int64()).cast(TS)
    profile = {feature.name: [None] for feature in of("user_profile")} | {"locale": ["ja"]}
    push_users(market.home, pa.table({"user_id": ["apart"], AS_OF: stamp, **profile}), "user_profile", market.config)
    assert read_user(market.home, "apart", market.config) == UserRow({"locale": "ja"})
    daily = {f.name: pa.array([np.float32(0.1) + index], pa.float32()) for index, f in enumerate(USER_DENSE)}
    push_users(market.home, pa.table({"user_id": ["apart"], AS_OF: stamp, **daily}), "user_daily", market.config)
    row = read_user(market.home, "apart", market.config)
    assert row.as_of == {"user_daily": NOW}
    values = dict(row.values)
    assert values.pop("locale") == "ja"
    assert values == {name: column[0].as_py() for name, column in daily.items()}


def test_an_empty_history_and_an_unknown_user_read_alike(market: Market) -> None:
    push_users(market.home, history_rows(["empty"], [NOW], [[]]), "user_history", market.config)
    empty, nobody = (read_user(market.home, user, market.config) for user in ("empty", "nobody"))
    assert dataclasses.replace(empty, as_of={}) == UserRow({}) == nobody
    assert empty.as_of == {"user_history": NOW}


def test_a_push_of_more_users_than_one_statement_holds(market: Market) -> None:
    users = [f"many{index}" for index in range(4_500)]
    rows = history_rows(users, [NOW] * len(users), [[user] for user in users])
    assert push_users(market.home, rows, "user_history", market.config) == len(users)
    older = history_rows(users, [NOW - 1] * len(users), [["older"]] * len(users))
    assert push_users(market.home, older, "user_history", market.config) == 0
    assert read_user(market.home, users[-1], market.config).history_item == (users[-1],)


def _push_in_another_process(home: Path, stamps: list[int]) -> None:
    for stamp in stamps:
        push_users(Home(home), history_rows(["shared"], [stamp], [[f"at{stamp}"]]), "user_history")


def test_two_writers_at_once_leave_the_newest(market: Market) -> None:
    context = multiprocessing.get_context("spawn")
    stamps = [[NOW + 2 * index + side for index in range(20)] for side in (0, 1)]
    writers = [context.Process(target=_push_in_another_process, args=(market.home.root, s)) for s in stamps]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    assert read_user(market.home, "shared", market.config).history_item == (f"at{max(map(max, stamps))}",)


def test_a_missing_column_is_named(market: Market) -> None:
    rows = history_rows(["u0"], [NOW], [["i0"]]).drop_columns(["history_action"])
    with pytest.raises(InputError, match="user_history have no column 'history_action'"):
        push_users(market.home, rows, "user_history", market.config)


def test_a_home_without_features_says_so(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="no features were materialized"):
        read_user(Home(tmp_path), "u0")


def test_an_unknown_online_store_is_named(tmp_path: Path) -> None:
    config = Config(features=dataclasses.replace(Config().features, online_store="etcd"))
    with pytest.raises(InputError, match=r"'etcd', which is unknown\. Known: redis, sqlite\."):
        apply(Home(tmp_path), config)


def test_redis_needs_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNIFEED_REDIS", raising=False)
    config = Config(features=dataclasses.replace(Config().features, online_store="redis"))
    with pytest.raises(InputError, match="'OMNIFEED_REDIS'"):
        apply(Home(tmp_path), config)


def test_the_repository_is_made_from_the_specification(market: Market) -> None:
    assert (repo_folder() / "definitions.py").is_file()
    store = feature_store(market.home, market.config)
    views = {view.name: view for view in store.list_feature_views()}
    for source, view in views.items():
        names = [feature.name for feature in of(source)] + ([f"{source}_as_of"] if view.online else [])
        assert sorted(feature.name for feature in view.features) == sorted(names)
    projections = store.get_feature_service("recommend_user").feature_view_projections
    read = {feature.name for projection in projections for feature in projection.features}
    names = {feature.name for feature in of("user_profile", "user_daily", "user_history")}
    assert read == names | {"user_daily_as_of", "user_history_as_of"}
