"""Whatever is sent, `recommend` keeps its promises or refuses in two sentences; benchmarks/fuzz.py asks more."""

from __future__ import annotations

from pathlib import Path

import pytest
from export.releases import NOW, copied, experiment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training.synthetic import SCENARIOS

from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.home import write_json
from omnifeed.serving.recommend.contract import Request
from serving.fuzzing import UNLIMITED, answered, tensors
from serving.recommender import Server

EXAMPLES = 250


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    home = copied(tmp_path_factory.mktemp("fuzz") / "home")
    experiment(home, ("champion", "1", 0.5), ("challenger", "0", 0.5))
    one = Server(home, UNLIMITED)
    assert one.live.refresh()
    return one


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
@given(data=st.data())
def test_every_input_is_answered_or_refused_in_two_sentences(server: Server, data: st.DataObject) -> None:
    catalogue = server.live.state.catalogue
    assert catalogue is not None
    ids = [str(item) for item in catalogue.texts["item_id"]]

    def eligible(now: int) -> set[str]:
        shown = catalogue.eligible(now)
        return {item for row, item in enumerate(ids) if shown[row]}

    sent = data.draw(tensors(NOW, ids, [*SCENARIOS, "elsewhere"]))
    answered(server.recommender.recommend, sent, eligible, NOW)


def test_a_clock_that_is_set_back_costs_no_answer_and_mixes_no_arms(server: Server, tmp_path: Path) -> None:
    """An hour, a day and ten years before the last request; before the experiment's start the champion answers."""
    home = copied(tmp_path / "home")
    arms = (Arm("champion", "0", 0.5), Arm("challenger", "1", 0.5))
    write_json(
        home.experiments / "current.json", Experiment("trial", "salt", arms, NOW - 10**10, NOW + 10**12, "").to_dict()
    )
    one = Server(home)
    assert one.live.refresh()
    hour = 3_600_000_000
    seen = {}
    for step, now in enumerate((NOW, NOW - hour, NOW + hour, NOW - 24 * hour, NOW - 87_600 * hour, NOW)):
        one.recommender._clock = lambda now=now: now
        for user in range(20):
            answer = one.recommender.recommend(
                Request(user_id=f"u{user}", scenario="search", request_id=f"{step}-{user}")
            )
            during = now >= NOW - 10**10
            assert answer.experiment == ("trial" if during else "none")
            if during:
                assert seen.setdefault(user, answer.arm) == answer.arm
            else:
                assert answer.arm == "champion"
    assert {line["ts"] for line in one.exposures()} == {NOW, NOW - hour, NOW + hour}
