"""What is counted of a request, and what the log says of it."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnifeed.errors import OmnifeedError
from omnifeed.serving.recommend.contract import Answer, Reason, Refusal, RefusedError, Request, Stage
from omnifeed.serving.recommend.journal import SLOW_MS, Flood, JsonFormatter, named, note_slow
from omnifeed.serving.recommend.metrics import FAMILIES, OTHER, STAGE_BOUNDS, STANDING, Metrics, Stages

REQUEST = Request(user_id="a-private-user", scenario="search", request_id="r1", query="a private wish")


def answer(stages: dict[Stage, float] | None = None, degraded: tuple[Reason, ...] = ()) -> Answer:
    return Answer((), (), (), None, (), (), degraded, "champion", "1", "trial", "r1", stages=stages or {})


@given(st.lists(st.floats(0, 5_000), min_size=1, max_size=40))
def test_a_histogram_is_cumulative_and_counts_every_observation_once(times: list[float]) -> None:
    metrics = Metrics(("search",))
    for ms in times:
        metrics.answered(REQUEST, answer({Stage.RANKER: ms}))
    counts = metrics.drain()
    name = "omnifeed_stage_seconds_bucket"
    for bound in STAGE_BOUNDS:
        assert counts.get((name, ("ranker", f"{bound:g}")), 0) == sum(ms / 1_000 <= bound for ms in times)
    assert counts[name, ("ranker", "+Inf")] == counts["omnifeed_stage_seconds_count", ("ranker",)] == len(times)
    assert counts["omnifeed_stage_seconds_sum", ("ranker",)] == pytest.approx(sum(times) / 1_000)


def test_what_was_drained_is_not_counted_again() -> None:
    metrics = Metrics(("search",))
    metrics.answered(REQUEST, answer())
    assert metrics.drain()["omnifeed_requests_total", ("search", "champion", "1")] == 1
    assert metrics.drain() == {}


def test_a_callers_text_never_becomes_a_label() -> None:
    metrics = Metrics(("search",))
    odd = Request(user_id="u", scenario="made up by a caller", request_id="r")
    metrics.answered(odd, answer(degraded=(Reason.UNKNOWN_SCENARIO, Reason.EXPOSURES_NOT_LOGGED)))
    metrics.refused("INVALID_ARGUMENT", RefusedError(Refusal.OVERSIZED, "made up", "by a caller"))
    metrics.refused("UNAVAILABLE", OmnifeedError("made up", "by a caller"))
    counts = metrics.drain()
    assert counts["omnifeed_requests_total", (OTHER, "champion", "1")] == 1
    assert counts["omnifeed_degraded_total", ("unknown_scenario", OTHER, "champion")] == 1
    assert counts["omnifeed_exposures_lost_total", ()] == 1
    assert counts["omnifeed_refusals_total", ("INVALID_ARGUMENT", "oversized")] == 1
    assert counts["omnifeed_refusals_total", ("UNAVAILABLE", "")] == 1
    assert not [label for _, labels in counts for label in labels if "caller" in label]


def test_every_series_has_the_labels_of_its_family() -> None:
    metrics = Metrics(("search",))
    metrics.answered(REQUEST, answer(dict.fromkeys(Stage, 1.0), tuple(Reason)))
    metrics.refused("INTERNAL", OmnifeedError("", ""))
    metrics.read({"user_daily": 5}, now=3)  # computed on a clock that is ahead: of no age
    metrics.feature_log_lost(2)
    metrics.abandoned()
    counts = metrics.drain()
    for name, labels in [*counts, *STANDING]:
        assert len(FAMILIES[name].labels) == len(labels)
    assert counts["omnifeed_feature_age_seconds_sum", ("user_daily",)] == 0
    gauges = {name for name, family in FAMILIES.items() if family.gauge}
    assert {name for name, _ in counts} == set(FAMILIES) - gauges


def test_the_same_stage_again_adds_up_and_an_error_is_timed_too() -> None:
    stage = Stages()
    with stage(Stage.RANKER):
        pass
    first = stage.ms[Stage.RANKER]
    with pytest.raises(ValueError, match="broken"), stage(Stage.RANKER):
        raise ValueError("broken")
    assert stage.ms[Stage.RANKER] > first >= 0


def written(record: logging.LogRecord) -> dict[str, object]:
    line: dict[str, object] = json.loads(JsonFormatter().format(record))
    return line


def test_a_slow_answer_is_logged_with_its_stages_and_without_user_or_query(caplog: pytest.LogCaptureFixture) -> None:
    note_slow(REQUEST, answer({Stage.TOTAL: SLOW_MS - 1}))
    assert not caplog.records
    note_slow(REQUEST, answer({Stage.RANKER: SLOW_MS, Stage.TOTAL: SLOW_MS}, (Reason.NO_FEATURES,)))
    line = written(caplog.records[0])
    assert (line["request_id"], line["release"], line["degraded"]) == ("r1", "1", ["no_features"])
    assert line["stage_ms"] == {"ranker": SLOW_MS, "total": SLOW_MS}
    assert "private" not in json.dumps(line)


def test_a_fault_is_its_type_and_its_place_never_its_message() -> None:
    try:
        raise KeyError("a private wish")
    except KeyError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 1, "recommend failed", (), (KeyError, error, error.__traceback__)
        )
    line = written(record)
    assert line["error"] == "KeyError"
    assert "test_a_fault" in str(line["at"])
    assert "private" not in json.dumps(line)


@pytest.mark.parametrize(
    ("given_id", "shown"),
    [(np.array([b"r\xff1"], np.object_), "r�1"), (np.array([b"x" * 500], np.object_), "x" * 128), (None, "")],
)
def test_a_request_is_named_by_what_it_gave_as_its_id(given_id: object, shown: str) -> None:
    assert named({} if given_id is None else {"request_id": given_id}) == {"fields": {"request_id": shown}}


def test_a_flood_of_lines_is_cut_and_says_how_much_was_left_out() -> None:
    flood = Flood(per_second=3)

    def record(second: float) -> logging.LogRecord:
        one = logging.LogRecord("x", logging.INFO, "", 1, "line", (), None)
        one.created = second
        return one

    assert [flood.filter(record(1.0)) for _ in range(5)] == [True] * 3 + [False] * 2
    late = record(2.0)
    assert flood.filter(late)
    assert written(late)["left_out"] == 2
    assert "left_out" not in written(record(2.1))
