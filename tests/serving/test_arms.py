"""Who is answered by which release: sticky arms, the hold-back group, and the champion in a challenger's stead."""

from __future__ import annotations

from pathlib import Path

import pytest
from export.releases import NOW, answers_nan, copied, experiment, variant

from omnifeed.experiment.assignment import Arm, Experiment, Holdback, assign
from omnifeed.experiment.ledger import Ledger
from omnifeed.home import write_json
from omnifeed.serving.recommend.contract import Reason
from serving.recommender import Server


def test_arms_are_sticky_and_those_of_the_assignment(server: Server) -> None:
    trial = Experiment.load(server.home.experiments / "current.json")
    for n in range(50):
        expected = assign(trial, f"u{n}")
        answers = [server.ask(user_id=f"u{n}", request_id=str(repetition)) for repetition in range(3)]
        assert {(answer.arm, answer.release) for answer in answers} == {(expected.name, expected.release)}


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
