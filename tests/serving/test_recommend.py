"""`recommend` in process: the server's code over onnxruntime, with parts and stores that fail on demand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export.releases import NOW, answers_nan, catalogue_columns, config, copied, experiment, variant, workshop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnifeed.config import ServingConfig
from omnifeed.errors import InputError, UnavailableError
from omnifeed.experiment.assignment import Arm, Experiment, Holdback, assign
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.catalogue import load_snapshot, write_snapshot
from omnifeed.export.encode import MAX_QUERY_CHARS, UserRow
from omnifeed.export.onnx_parts import OnnxParts
from omnifeed.home import Home, write_json
from omnifeed.model.parts import OUTPUTS as MODEL_OUTPUTS
from omnifeed.serving.recommend.contract import MAX_ID_CHARS, MAX_K, Answer, History, Reason, Request, Source
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.live import MAX_PAUSE, Live
from omnifeed.serving.recommend.parts import OUTPUTS, Arrays, Parts


class Store:
    """A feature store that holds one user, and can be down."""

    def __init__(self) -> None:
        self.down = False
        self.asked = 0
        items = ("i1", "i2", "no longer in the catalogue")
        self.rows = {
            "known": UserRow({"locale": "de", "user_views_7d": 3.0}, items, (1, 2, 5), ("search",) * 3, (1, 2, 3))
        }

    def user(self, user_id: str, timeout_s: float) -> UserRow:
        self.asked += 1
        if self.down:
            raise UnavailableError("down", "wait")
        return self.rows.get(user_id, UserRow({}))


class Breaking:
    """Parts of which some raise, or whose user encoder lets the trend weigh more; counts the items encoded."""

    def __init__(self, inner: Parts, broken: set[str]) -> None:
        self.inner, self.broken, self.encoded = inner, broken, 0
        self.trend_weight = 0.0

    def _call(self, part: str, inputs: Arrays) -> Arrays:
        if part in self.broken:
            raise RuntimeError(f"{part} is broken")
        result: Arrays = getattr(self.inner, part)(inputs)
        return result

    def item_encoder(self, inputs: Arrays) -> Arrays:
        self.encoded += len(inputs["kind"])
        return self._call("item_encoder", inputs)

    def user_encoder(self, inputs: Arrays) -> Arrays:
        outputs = self._call("user_encoder", inputs)
        return {**outputs, "trend_weight": outputs["trend_weight"] + np.float32(self.trend_weight)}

    def ranker(self, inputs: Arrays) -> Arrays:
        return self._call("ranker", inputs)


class Server:
    """One home and its recommender."""

    def __init__(self, home: Home, serving: ServingConfig | None = None) -> None:
        self.home = home
        self.store = Store()
        self.parts: dict[str, Breaking] = {}
        self.broken: dict[str, set[str]] = {}
        self.live = Live(home, config(), self.open)
        self.log = ExposureLog(home, 123)
        unlimited = replace(serving or config().serving, user_burst=0, repeats=0)
        self.recommender = Recommender(self.live, self.store, self.log, unlimited, lambda: NOW, simulated_clock=True)

    def open(self, number: str) -> Parts:
        broken = self.broken.setdefault(number, set())
        self.parts[number] = Breaking(OnnxParts(self.home.releases / number, threads=1), broken)
        return self.parts[number]

    def ask(self, **fields: Any) -> Answer:
        usual: dict[str, Any] = {"user_id": "known", "scenario": "search", "request_id": "r", "k": 5}
        return self.recommender.recommend(Request(**{**usual, **fields}))

    def exposures(self, name: str = "trial") -> list[dict[str, Any]]:
        files = sorted((self.home.experiments / name / "exposures").glob("*.jsonl"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Release 0 is the champion, release 1 the challenger."""
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "0", 0.5), ("challenger", "1", 0.5))
    one = Server(home)
    assert one.live.refresh()
    return one


@pytest.fixture
def alone(tmp_path: Path) -> Server:
    """Release 1 is the champion of an experiment without a challenger."""
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "1", 1.0))
    one = Server(home)
    assert one.live.refresh()
    return one


def test_the_outputs_asked_of_triton_are_the_network_s() -> None:
    assert OUTPUTS == MODEL_OUTPUTS


def test_arms_are_sticky_and_those_of_the_assignment(server: Server) -> None:
    trial = Experiment.load(server.home.experiments / "current.json")
    for n in range(50):
        expected = assign(trial, f"u{n}")
        answers = [server.ask(user_id=f"u{n}", request_id=str(repetition)) for repetition in range(3)]
        assert {(answer.arm, answer.release) for answer in answers} == {(expected.name, expected.release)}


def test_a_known_user_is_answered_by_the_network_without_degradation(alone: Server) -> None:
    answer = alone.ask()
    assert answer.degraded == ()
    assert len(answer.item_ids) == 5
    assert list(answer.scores) == sorted(answer.scores, reverse=True)
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
    grown = dict(zip(catalogue.texts["item_id"], catalogue.trending_of("search"), strict=True))
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


@pytest.mark.parametrize("part", ["user_encoder", "ranker"])
def test_a_challenger_that_fails_is_answered_by_the_champion_and_keeps_its_user(server: Server, part: str) -> None:
    champion = server.ask(arm="champion")
    server.broken["1"].add(part)
    answer = server.ask(arm="challenger")
    assert (answer.arm, answer.release) == ("challenger", "0")
    assert answer.item_ids == champion.item_ids
    assert {Reason.CHAMPION_ANSWER, Reason(f"{part}_failed")} == set(answer.degraded)


@pytest.mark.parametrize(("part", "output"), [("ranker", "probabilities"), ("user_encoder", "user_vec")])
def test_a_challenger_that_answers_nan_is_answered_by_the_champion(tmp_path: Path, part: str, output: str) -> None:
    home = copied(tmp_path / "home")
    variant(home, "2", answers_nan(part, output))
    experiment(home, ("champion", "1", 0.5), ("challenger", "2", 0.5))
    server = Server(home)
    assert server.live.refresh()
    answer = server.ask(arm="challenger")
    assert (answer.arm, answer.release) == ("challenger", "1")
    assert set(answer.degraded) == {Reason.NAN_SCORES, Reason.CHAMPION_ANSWER}
    assert answer.item_ids == server.ask(arm="champion").item_ids
    assert server.store.asked == 2  # the user's row is read once a request


def test_an_item_encoder_that_answers_nan_never_gets_an_index(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    variant(home, "2", answers_nan("item_encoder", "item_vec"))
    experiment(home, ("champion", "0", 0.5), ("challenger", "2", 0.5))
    server = Server(home)
    assert not server.live.refresh()
    assert set(server.ask(arm="challenger").degraded) == {Reason.INDEX_NOT_READY, Reason.CHAMPION_ANSWER}


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


def test_outside_its_days_an_experiment_routes_nobody(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    arms = (Arm("champion", "0", 0.5), Arm("challenger", "1", 0.5))
    trial = Experiment("trial", "salt", arms, NOW, NOW + 10, "")
    write_json(home.experiments / "current.json", trial.to_dict())
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, NOW)
    server = Server(home)
    server.live.refresh()
    for moment, name in ((NOW - 1, "none"), (NOW, "trial"), (NOW + 9, "trial"), (NOW + 10, "none")):
        answers = [server.ask(user_id=f"u{n}", now=moment) for n in range(20)]
        assert {answer.experiment for answer in answers} == {name}
        assert {answer.arm for answer in answers} == ({"champion", "challenger"} if name == "trial" else {"champion"})
    assert len(server.exposures("none")) == 2 * 20 * 5


def test_a_promotion_and_a_new_split_need_no_restart(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    ledger = Ledger(home)
    ledger.append("BOOTSTRAP", {"release": "0"}, NOW)
    server = Server(home)
    server.live.refresh()
    assert server.ask().release == "0"
    ledger.append("PROMOTE", {"release": "1"}, NOW, expected_champion="0")
    assert server.live.refresh()
    assert server.ask().release == "1"
    experiment(home, ("champion", "1", 0.0), ("challenger", "0", 1.0))
    assert server.live.refresh()
    assert (server.ask().arm, server.ask().release) == ("challenger", "0")


def test_the_hold_back_group_keeps_its_release_through_experiments_and_promotions(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    variant(home, "2", lambda folder: None)
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, NOW)
    group = Holdback("held", 0.3, "0", NOW)
    write_json(home.experiments / "holdback.json", group.to_dict())
    server = Server(home)
    server.live.refresh()
    Ledger(home).append("PROMOTE", {"release": "1"}, NOW, expected_champion="0")
    users = [f"u{number}" for number in range(40)]
    held = {user for user in users if group.holds(user)}
    assert 0 < len(held) < len(users)
    for running in (False, True):
        if running:
            experiment(home, ("champion", "1", 0.5), ("challenger", "2", 0.5))
        assert server.live.refresh()
        answers = {user: server.ask(user_id=user) for user in users}
        assert {user for user, answer in answers.items() if answer.arm == "holdback"} == held
        assert {answers[user].release for user in held} == {"0"}
        assert {answers[user].release for user in set(users) - held} == ({"1", "2"} if running else {"1"})
        logged = server.exposures("trial" if running else "none")
        assert {line["user_id"] for line in logged if line["arm"] == "holdback"} == held
    holdback = home.experiments / "holdback.json"
    holdback.unlink()
    assert server.live.refresh()
    assert {server.ask(user_id=user).arm for user in users} == {"champion", "challenger"}


@pytest.mark.parametrize("part", ["user_encoder", "ranker"])
def test_a_held_user_is_not_given_the_champion_where_the_groups_release_fails(tmp_path: Path, part: str) -> None:
    home = copied(tmp_path / "home")
    variant(home, "2", lambda folder: None)
    Ledger(home).append("BOOTSTRAP", {"release": "2"}, NOW)
    write_json(home.experiments / "holdback.json", Holdback("held", 0.999999, "1", NOW).to_dict())
    server = Server(home)
    server.live.refresh()
    server.parts["1"].broken.add(part)
    answer = server.ask()
    assert (answer.arm, answer.release) == ("holdback", "1")
    assert Reason.CHAMPION_ANSWER not in answer.degraded
    assert answer.degraded
    assert len(answer.item_ids) == 5


def test_routing_that_cannot_be_read_leaves_the_former(server: Server) -> None:
    (server.home.experiments / "current.json").write_text("{")
    server.live.refresh()
    assert server.ask(arm="challenger").release == "1"


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
    np.testing.assert_array_equal(kept.text, fresh.text)

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


def test_explored_answers_log_their_propensities(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "1", 1.0))
    server = Server(home, replace(config().serving, explore_share=0.5))
    server.live.refresh()
    for n in range(40):
        server.ask(request_id=f"request {n}")
    by_request: dict[str, list[float | None]] = {}
    for line in server.exposures():
        by_request.setdefault(line["request_id"], []).append(line["propensity"])
    sampled = [values for values in by_request.values() if values[0] is not None]
    assert 8 <= len(sampled) <= 32
    assert all(0 < value <= 1 for values in sampled for value in values if value is not None)
    assert all(None not in values for values in sampled)
    assert all(set(values) == {None} for values in by_request.values() if values[0] is None)


def breaking(part: str) -> Callable[[Server], None]:
    return lambda server: server.broken["1"].add(part)


#: The arm that is asked, and what fails. The champion is release 1, but where the challenger is asked: there release 0.
PATHS: dict[str, tuple[str, Callable[[Server], None]]] = {
    "network": ("champion", lambda server: None),
    "trending": ("trending", lambda server: None),
    "retrieval order": ("champion", breaking("ranker")),
    "trending instead of the network": ("champion", breaking("user_encoder")),
    "no features": ("champion", lambda server: setattr(server.store, "down", True)),
    "champion instead of the challenger": ("challenger", breaking("ranker")),
}


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_path_returns_what_must_not_be_shown(alone: Server, path: str, data: st.DataObject) -> None:
    server, (arm, fail) = alone, PATHS[path]
    champion = "0" if arm == "challenger" else "1"
    experiment(server.home, ("champion", champion, 1.0), ("challenger", "1", 0.0), ("trending", "0", 0.0))
    items, features = catalogue_columns(workshop() / "training_set")
    count = len(items["item_id"])
    hidden = data.draw(st.sets(st.integers(0, count - 1), max_size=count))
    how = [data.draw(st.sampled_from(["policy", "stock", "author"])) if row in hidden else "" for row in range(count)]
    items["policy"] = ["DROP" if reason == "policy" else "ALLOW" for reason in how]
    items["stock"] = [0 if reason == "stock" else None for reason in how]
    items["author_id"] = ["blocked" if reason == "author" else f"a{row}" for row, reason in enumerate(how)]
    write_snapshot(server.home, items, features, NOW, blocked_authors=("blocked",))
    server.broken["1"].clear()
    assert server.live.refresh()
    fail(server)
    excluded = data.draw(st.sets(st.sampled_from(items["item_id"]), max_size=20))
    answer = server.ask(
        arm=arm,
        k=data.draw(st.integers(1, MAX_K)),
        query=data.draw(st.none() | st.text(max_size=30)),
        exclude=tuple(str(item) for item in excluded),
        candidates=data.draw(st.none() | st.just(tuple(str(item) for item in items["item_id"]))),
        request_id=data.draw(st.uuids()).hex,
    )
    forbidden = {str(items["item_id"][row]) for row in hidden} | {str(item) for item in excluded}
    assert not forbidden & set(answer.item_ids)
    assert len(set(answer.item_ids)) == len(answer.item_ids)
    assert np.isfinite(answer.scores).all()
