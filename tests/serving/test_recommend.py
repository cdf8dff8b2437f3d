"""`recommend` in process: what it answers, what it says of what it had to do without, and what it logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.releases import NOW, catalogue_columns, config, copied, experiment, workshop

from omnifeed.errors import InputError, UnavailableError
from omnifeed.export.catalogue import load_snapshot, write_snapshot
from omnifeed.export.encode import MAX_QUERY_CHARS, UserRow
from omnifeed.home import Home
from omnifeed.model.parts import OUTPUTS as MODEL_OUTPUTS
from omnifeed.serving.recommend.contract import MAX_ID_CHARS, MAX_K, History, Reason, Request, Source
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.live import MAX_PAUSE
from omnifeed.serving.recommend.parts import OUTPUTS
from serving.recommender import Server


def test_the_outputs_asked_of_triton_are_the_network_s() -> None:
    assert OUTPUTS == MODEL_OUTPUTS


def test_a_known_user_is_answered_by_the_network_without_degradation(alone: Server) -> None:
    answer = alone.ask()
    assert answer.degraded == ()
    assert len(answer.item_ids) == 5
    assert set(answer.sources) <= {Source.DENSE, Source.TRENDING}
    assert answer.propensities is None


def test_history_query_and_scenario_change_the_answer(alone: Server) -> None:
    base = alone.ask(k=20)
    assert alone.ask(user_id="unknown", k=20).scores != base.scores
    assert alone.ask(query="red lamp", k=20).scores != base.scores
    assert alone.ask(scenario="livestream", k=20).scores != base.scores
    mine = History(("i5",), ("order",), ("search",), (NOW - 1,))
    assert alone.ask(history=mine, k=20).scores != base.scores


def test_unknown_users_and_scenarios_are_named_not_refused(alone: Server) -> None:
    answer = alone.ask(user_id="nobody", scenario="new tab")
    assert set(answer.degraded) == {Reason.UNKNOWN_USER, Reason.UNKNOWN_SCENARIO}
    assert len(answer.item_ids) == 5


def test_k_beyond_the_catalogue_returns_what_there_is(alone: Server) -> None:
    answer = alone.ask(k=MAX_K)
    eligible = int(load_snapshot(alone.home).eligible(NOW).sum())
    assert len(answer.item_ids) == len(set(answer.item_ids)) == eligible
    assert Reason.FEWER_THAN_K in answer.degraded


def test_a_long_query_is_cut_as_the_encoder_cuts_it(alone: Server) -> None:
    query = "lamp " * 2_000
    answer = alone.ask(query=query)
    assert answer.degraded == (Reason.QUERY_TRUNCATED,)
    assert answer.scores == alone.ask(query=query[:MAX_QUERY_CHARS]).scores
    assert all(len(line["query"]) == MAX_QUERY_CHARS for line in alone.exposures())


@pytest.mark.parametrize(
    "fields",
    [
        {"k": 0},
        {"k": -1},
        {"k": MAX_K + 1},
        {"user_id": ""},
        {"user_id": "x" * (MAX_ID_CHARS + 1)},
        {"user_id": "new\nline"},
        {"request_id": "x" * (MAX_ID_CHARS + 1)},
        {"scenario": ""},
        {"candidates": ("x" * (MAX_ID_CHARS + 1),)},
        {"exclude": ("",)},
        {"query": "x" * 100_001},
        {"arm": "nobody's"},
        {"now": -1},
        {"history": History(("i1",), (), ("search",), (1,))},
        {"history": History(("i1",), ("stare",), ("search",), (1,))},
    ],
)
def test_what_breaks_a_limit_is_refused_by_name(server: Server, fields: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refusal:
        server.ask(**fields)
    assert refusal.value.action
    assert server.exposures() == []


def test_now_needs_a_simulated_clock(server: Server) -> None:
    real = Recommender(server.live, server.store, server.log, config().serving, lambda: NOW, simulated_clock=False)
    with pytest.raises(InputError, match="real clock"):
        real.recommend(Request(user_id="u", scenario="search", request_id="r", now=NOW))


def test_without_features_a_user_counts_as_new(alone: Server) -> None:
    unknown = alone.ask(user_id="nobody")
    alone.store.down = True
    answer = alone.ask(user_id="nobody")
    assert answer.degraded == (Reason.NO_FEATURES,)
    assert answer.scores == unknown.scores


def test_a_stored_row_that_cannot_be_read_counts_as_none(alone: Server) -> None:
    alone.store.rows["odd"] = UserRow({}, ("i1",), ("one",), ("search",), ("then",))  # type: ignore[arg-type]
    assert Reason.NO_FEATURES in alone.ask(user_id="odd").degraded


def test_without_a_ranker_the_order_is_retrieval_s(alone: Server) -> None:
    alone.broken["1"].add("ranker")
    answer = alone.ask()
    assert set(answer.degraded) == {Reason.RANKER_FAILED, Reason.RETRIEVAL_ORDER}
    assert max(abs(score) for score in answer.scores) <= 1 + 1e-6  # cosines


@pytest.mark.parametrize("candidates", [None, ("i3", "i4", "i5")])
def test_what_trends_in_the_scenario_joins_the_retrieval_by_its_weight(
    alone: Server, candidates: tuple[str, ...] | None
) -> None:
    catalogue = load_snapshot(alone.home)
    grown = dict(zip(catalogue.texts["item_id"], catalogue.features.trending("search"), strict=True))
    assert max(grown.values()) > 0
    scores = []
    alone.broken["1"].add("ranker")  # so that the scores are the retrieval's
    for weight in (0.0, 0.5):
        alone.parts["1"].trend_weight = weight
        answer = alone.ask(k=MAX_K, candidates=candidates)
        scores.append(dict(zip(answer.item_ids, answer.scores, strict=True)))
    assert set(scores[0]) == set(scores[1])
    for item, score in scores[0].items():
        assert scores[1][item] == pytest.approx(score + 0.5 * grown[item], abs=1e-5)


def test_without_a_user_encoder_the_answer_is_what_trends(alone: Server) -> None:
    alone.broken["1"].add("user_encoder")
    answer = alone.ask()
    assert set(answer.degraded) == {Reason.USER_ENCODER_FAILED, Reason.TRENDING_ORDER}
    assert set(answer.sources) == {Source.TRENDING}
    assert answer.release == "1"


def test_a_release_with_a_changed_byte_is_refused_and_the_answer_is_what_trends(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "1", 1.0))
    with (home.releases / "1" / "weights.safetensors").open("r+b") as handle:
        handle.seek(200)
        handle.write(b"\xff")
    server = Server(home)
    assert not server.live.refresh()
    assert set(server.ask().degraded) == {Reason.RELEASE_REFUSED, Reason.TRENDING_ORDER}


def test_an_item_encoder_that_fails_is_asked_again_ever_more_rarely_until_it_answers(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "1", 1.0))
    server = Server(home)
    server.broken["1"] = {"item_encoder"}
    asked = []
    for _ in range(40):
        assert not server.live.refresh()
        asked.append(server.parts["1"].encoded)
    assert len(set(asked)) < 8
    server.broken["1"].clear()
    for _ in range(MAX_PAUSE + 1):
        complete = server.live.refresh()
    assert complete
    assert server.ask().degraded == ()


def test_exposures_are_written_before_the_answer_leaves(server: Server) -> None:
    answer = server.ask(user_id="u1", locale="de", device="phone", query="red lamp", request_id="once")
    lines = server.exposures()
    assert [line["item_id"] for line in lines] == list(answer.item_ids)
    assert [line["position"] for line in lines] == list(range(5))
    assert {line.pop("latency_ms") for line in lines} == {round(answer.elapsed_ms, 3)}
    assert answer.elapsed_ms > 0
    assert lines[0] == {
        "tail_creator": answer.tail_creators[0],
        "request_id": "once",
        "item_id": answer.item_ids[0],
        "position": 0,
        "user_id": "u1",
        "scenario": "search",
        "query": "red lamp",
        "arm": answer.arm,
        "release": answer.release,
        "experiment": "trial",
        "ts": NOW,
        "propensity": None,
        "source": answer.sources[0],
        "degraded": list(answer.degraded),
        "locale": "de",
        "device": "phone",
    }


def test_a_probe_is_logged_nowhere(server: Server) -> None:
    assert server.ask(probe=True).item_ids
    assert not (server.home.experiments / "trial").exists()


def test_a_log_that_cannot_be_written_costs_no_answer_and_is_counted(server: Server) -> None:
    (server.home.experiments / "trial").write_text("a file where the folder should be")
    answer = server.ask()
    assert Reason.EXPOSURES_NOT_LOGGED in answer.degraded
    assert len(answer.item_ids) == 5
    assert server.log.lost == 1


def test_without_a_champion_or_a_catalogue_the_caller_is_told(tmp_path: Path) -> None:
    home = Home(tmp_path)
    server = Server(home)
    server.live.refresh()
    with pytest.raises(UnavailableError, match="champion"):
        server.ask()
    experiment(home, ("champion", "0", 1.0))
    server.live.refresh()
    with pytest.raises(UnavailableError, match="catalogue"):
        server.ask()


def test_a_new_item_is_encoded_alone_and_recommendable_in_both_arms(server: Server) -> None:
    before = server.parts["1"].encoded
    items, features = catalogue_columns(workshop() / "training_set")
    assert before == len(items["item_id"]) + 1
    items = {name: [*values, values[0]] for name, values in items.items()}
    items["item_id"][-1], items["title"][-1], items["stock"][-1] = "new", "a lamp like no other", 5
    items["title"][3] = "retitled"
    features = {s: {n: [*v, 0.0] for n, v in columns.items()} for s, columns in features.items()}
    write_snapshot(server.home, items, features, NOW)
    assert "new" not in server.ask(arm="challenger", k=MAX_K).item_ids
    assert server.live.refresh()
    assert server.parts["1"].encoded == before + 2
    for arm in ("champion", "challenger"):
        assert "new" in server.ask(arm=arm, k=MAX_K, query="a lamp like no other").item_ids
    rebuilt = Server(server.home)
    rebuilt.live.refresh()
    kept, fresh = server.live.state.loaded["1"].index, rebuilt.live.state.loaded["1"].index
    np.testing.assert_allclose(kept.vec, fresh.vec, atol=1e-6)  # type: ignore[arg-type]
    every = np.arange(len(kept.texts))
    np.testing.assert_array_equal(kept.texts.dense(every), fresh.texts.dense(every))
    assert kept.texts is server.live.state.trending.texts  # type: ignore[union-attr]  # one for all releases

    items["stock"][-1] = 0
    write_snapshot(server.home, items, features, NOW + 1)
    assert server.live.refresh()
    for arm in ("champion", "challenger"):
        assert "new" not in server.ask(arm=arm, k=MAX_K).item_ids


def test_the_caller_s_own_candidates_are_ranked_and_no_others(server: Server) -> None:
    for arm in ("champion", "challenger"):
        answer = server.ask(arm=arm, candidates=("i4", "i3", "i4", "made up"), k=5)
        assert set(answer.item_ids) <= {"i3", "i4"}
        assert set(answer.sources) <= {Source.CANDIDATE}
        assert {Reason.UNKNOWN_CANDIDATES, Reason.FEWER_THAN_K} <= set(answer.degraded)


def test_search_puts_matching_titles_first_without_a_model(server: Server) -> None:
    titles = dict(
        zip(*(catalogue_columns(workshop() / "training_set")[0][n] for n in ("item_id", "title")), strict=True)
    )
    answer = server.ask(arm="champion", query="lamp", k=5)
    assert all("lamp" in str(titles[item]) for item in answer.item_ids)
