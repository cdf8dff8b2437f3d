"""What a log must stand up to before any effect is read: each fault planted in a sound log."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_logs import CONFIG, DAY, HORIZON, HOUR, START, Logs, experiment, outcome, traffic

from omnifeed.config import Config
from omnifeed.experiment.assignment import assign
from omnifeed.experiment.decision import Decision, Verdict
from omnifeed.experiment.evidence import DayLog, Evidence, LogCounts
from omnifeed.experiment.trust import findings
from omnifeed.experiment.verdict import decide

TEST = experiment()
RATES = {"viewed": 0.8, "click": 0.3, "order": 0.08, "hide": 0.12}


@pytest.fixture(scope="module")
def sound() -> Logs:
    return traffic(TEST, users=3000, seed=1, rates=RATES, challenger=lambda name, _: 1.5 if name == "order" else 1.0)


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., Decision]:
    def run(logs: Logs, now: int = HORIZON, **section: Any) -> Decision:
        config = Config(experiment=dataclasses.replace(CONFIG.experiment, **section))
        return decide(logs.write(tmp_path / "experiment"), experiment(config), config, now)

    return run


def copy(logs: Logs) -> Logs:
    return Logs([dict(line) for line in logs.exposures], [dict(line) for line in logs.outcomes])


def codes(decision: Decision) -> list[str]:
    return [reason.code.value for reason in decision.reasons]


def of_arm(logs: Logs, arm: str) -> set[str]:
    return {line["request_id"] for line in logs.exposures if line["arm"] == arm}


def test_a_sound_log_raises_no_doubt(judged: Callable[..., Decision], sound: Logs) -> None:
    decision = judged(sound)
    assert decision.verdict is Verdict.PROMOTE
    assert {split.dimension for split in decision.splits} == {"all", "scenario", "day", "device"}
    assert decision.path[2].state == "passed"
    assert "7 days of first exposure" in decision.path[2].text
    counts = decision.counts
    assert (counts.exposures_missing, counts.outcomes_unexposed, counts.users_too_busy) == (0, 0, 0)
    views = sum(line["name"] == "viewed" for line in sound.outcomes)
    assert counts.exposures_viewed == views < counts.exposures_used == len(sound.exposures)


# The split, by what was settled before an arm could answer


def test_users_lost_on_one_day_or_device_are_a_mismatch(judged: Callable[..., Decision], sound: Logs) -> None:
    first: dict[str, int] = {}
    for line in sound.exposures:
        first[line["user_id"]] = min(first.get(line["user_id"], line["ts"]), line["ts"])
    lost = {
        user
        for user, ts in first.items()
        if (ts - START) // DAY == 3 and assign(TEST, user).name == "challenger" and int(user.rsplit("-", 1)[1]) % 2
    }
    logs = copy(sound)
    logs.exposures = [line for line in logs.exposures if line["user_id"] not in lost]
    decision = judged(logs)
    assert decision.verdict is Verdict.INVALID
    assert "SAMPLE_RATIO_MISMATCH" in codes(decision)
    assert any("first seen on day 4" in reason.text for reason in decision.reasons)
    logs = copy(sound)
    for line in logs.exposures:
        old = int(line["user_id"].rsplit("-", 1)[1]) % 5 == 0
        line["device"] = "old phone" if old and line["arm"] == "champion" else "phone"
    decision = judged(logs)
    assert (decision.verdict, set(codes(decision))) == (Verdict.INVALID, {"SAMPLE_RATIO_MISMATCH"})
    assert any("on old phone" in reason.text for reason in decision.reasons)


# Bots


def add_bots(logs: Logs, number: int, arm: str | None = None, requests: int = 60) -> int:
    """Users who ask all day and click everything; returns how many there are."""
    releases, added = {each.name: each.release for each in TEST.arms}, 0
    for candidate in range(10 * number):
        user = f"bot-{candidate}"
        own = assign(TEST, user).name
        if added == number or arm not in (None, own):
            continue
        added += 1
        for visit in range(requests):
            request, ts = f"{user}-{visit}", START + DAY + visit * 60_000_000
            logs.exposures.append(
                {**logs.exposures[0], "request_id": request, "item_id": "i", "user_id": user, "arm": own}
                | {"release": releases[own], "ts": ts, "position": 0}
            )
            logs.outcomes += [outcome(request, "i", name, 1, ts + 1) for name in ("viewed", "click")]
    return added


def test_bots_are_left_out_of_both_arms_and_the_effect_of_that_is_shown(
    judged: Callable[..., Decision], sound: Logs
) -> None:
    plain, logs = judged(sound), copy(sound)
    assert plain.with_bots == ()
    assert add_bots(logs, 20) == 20
    clicking = judged(logs)
    assert (clicking.verdict, clicking.counts.users_clicking_all) == (plain.verdict, 20)
    assert clicking.metrics == plain.metrics  # not one number moved
    assert {each.name for each in clicking.with_bots} == {each.name for each in clicking.metrics}
    assert clicking.with_bots[0].users_champion + clicking.with_bots[0].users_challenger == 3020
    assert "20 users were left out as bots" in clicking.paragraph
    busy = judged(logs, max_requests_per_day=50)
    assert (busy.counts.users_too_busy + busy.counts.users_clicking_all, busy.metrics) == (20, plain.metrics)
    kept = judged(logs, bot_views=1000)
    assert (kept.counts.users_clicking_all, kept.with_bots) == (0, ())


def test_bots_in_one_arm_only_are_no_accident(judged: Callable[..., Decision], sound: Logs) -> None:
    logs = copy(sound)
    add_bots(logs, 25, arm="challenger")
    decision = judged(logs)
    assert (decision.verdict, codes(decision)) == (Verdict.INVALID, ["EXCLUSION_UNEVEN"])


# Lost lines


def test_lost_exposures_and_outcomes_without_exposure_are_counted_and_bounded(
    judged: Callable[..., Decision], sound: Logs
) -> None:
    for every, verdict in ((100, Verdict.PROMOTE), (20, Verdict.INVALID)):
        logs = copy(sound)
        kept = [line for place, line in enumerate(logs.exposures) if place % every]
        gone = {(line["request_id"], line["item_id"]) for line in logs.exposures[::every]}
        logs.exposures = kept
        decision = judged(logs)
        orphans = [line for line in logs.outcomes if (line["request_id"], line["item_id"]) in gone]
        assert decision.counts.outcomes_unexposed == len(orphans)
        assert decision.verdict is verdict
    assert codes(decision) == ["LOG_INCOMPLETE"]


def test_a_gap_in_an_answers_positions_is_a_missing_exposure(judged: Callable[..., Decision], sound: Logs) -> None:
    logs = copy(sound)
    for line in logs.exposures:
        line["position"] *= 2  # 0 and 2: the item between was never logged
    decision = judged(logs)
    requests = {line["request_id"] for line in sound.exposures}
    assert decision.counts.exposures_missing == len(requests)
    assert codes(decision) == ["LOG_INCOMPLETE"]


def test_outcomes_of_traffic_after_the_horizon_are_not_without_exposure(
    judged: Callable[..., Decision], sound: Logs
) -> None:
    logs = copy(sound)
    for place, line in enumerate(sound.exposures[:800]):
        ts = START + 7 * DAY + place
        logs.exposures.append({**line, "request_id": f"later-{place}", "ts": ts})
        logs.outcomes.append(outcome(f"later-{place}", line["item_id"], "click", 1, ts + 1))
    decision = judged(logs)
    assert decision.verdict is Verdict.PROMOTE
    assert (decision.counts.outcomes_unexposed, decision.counts.outcomes_outside) == (0, 800)


# Clocks


def test_a_log_in_another_time_zone_is_found(judged: Callable[..., Decision], sound: Logs) -> None:
    ahead, behind = copy(sound), copy(sound)
    mine = of_arm(sound, "challenger")
    for logs, shift in ((ahead, 8 * HOUR), (behind, -8 * HOUR)):
        for line in logs.exposures:
            line["ts"] += shift if line["request_id"] in mine else 0
    for logs, what in ((ahead, "happened before their exposure"), (behind, "lie before the start")):
        decision = judged(logs)
        assert decision.verdict is Verdict.INVALID
        assert "CLOCK_SKEW" in codes(decision)
        assert what in decision.paragraph
    skewed = copy(sound)
    for line in skewed.outcomes[::10]:
        line["observed_ts"] = line["ts"] - 1
    assert codes(judged(skewed)) == ["CLOCK_SKEW"]


def test_an_arm_that_logs_hours_later_is_found_before_it_looks_like_harm(
    judged: Callable[..., Decision], sound: Logs
) -> None:
    logs, mine = copy(sound), of_arm(sound, "challenger")
    for line in logs.outcomes:
        line["observed_ts"] += 20 * HOUR if line["request_id"] in mine else 0
    for now in (START + 3 * DAY, HORIZON):
        decision = judged(logs, now)
        assert (decision.verdict, set(codes(decision))) == (Verdict.INVALID, {"LATE_LOGGING"})


# Instrumentation


@pytest.mark.parametrize("ends", [True, False])
def test_an_outcome_that_one_arm_ceases_or_begins_to_log_is_found(
    judged: Callable[..., Decision], sound: Logs, ends: bool
) -> None:
    logs, mine = copy(sound), of_arm(sound, "champion")
    logs.outcomes = [
        line
        for line in logs.outcomes
        if not (line["name"] == "hide" and line["request_id"] in mine and (line["ts"] > START + 4 * DAY) is ends)
    ]
    decision = judged(logs)
    assert (decision.verdict, codes(decision)) == (Verdict.INVALID, ["INSTRUMENTATION_CHANGED"])
    assert "logging of hide changed in one arm with day 5" in decision.paragraph


def test_what_happens_to_both_arms_alike_or_by_the_release_is_no_change_of_instruments(
    judged: Callable[..., Decision], sound: Logs
) -> None:
    logs = copy(sound)  # a holiday: both arms lose the same half of their clicks from the fifth day on
    logs.outcomes = [
        line
        for place, line in enumerate(logs.outcomes)
        if not (line["name"] == "click" and line["ts"] > START + 4 * DAY and place % 2)
    ]
    assert judged(logs).verdict is Verdict.PROMOTE
    logs, mine = copy(sound), of_arm(sound, "challenger")  # a release that is never hidden, from the first day on
    logs.outcomes = [line for line in logs.outcomes if not (line["name"] == "hide" and line["request_id"] in mine)]
    assert "INSTRUMENTATION_CHANGED" not in codes(judged(logs))


def test_a_few_busy_users_are_no_change_of_instruments() -> None:
    """How often people come is left to chance here, heavily: 35 users an arm, some of them ten times as busy."""
    alarms = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        logs = []
        for arm in ("champion", "challenger"):
            activity = random.lognormal(0, 1.2, 35)
            taste = random.beta(1, 4, 35)
            for day in range(7):
                requests = random.poisson(activity)
                depth = random.integers(1, 11, 35)  # of an answer's ten items, those that a user looks at
                views = requests * depth
                events = {"requests": requests, "exposures": 10 * requests, "viewed": views}
                events["click"] = random.binomial(views, taste)
                events["order"] = random.binomial(events["click"], 0.1)
                logs.append(DayLog(arm, day, {name: int(each.sum()) for name, each in events.items()}))
        evidence = Evidence(LogCounts(exposures_used=1), (), day_logs=tuple(logs))
        alarms += findings(evidence, CONFIG.experiment, START, HORIZON) != ()
    assert alarms == 0


def test_a_day_whose_attribution_window_is_open_is_not_compared() -> None:
    logs = tuple(
        DayLog(arm, day, {"exposures": 1000, "order": 0 if day == 4 and arm == "challenger" else 200})
        for arm in ("champion", "challenger")
        for day in range(5)
    )
    evidence = Evidence(LogCounts(exposures_used=1), (), day_logs=logs)
    assert findings(evidence, CONFIG.experiment, START, START + 5 * DAY + 47 * HOUR) == ()
    (found,) = findings(evidence, CONFIG.experiment, START, START + 5 * DAY + 48 * HOUR)
    assert found.code.value == "INSTRUMENTATION_CHANGED"


# What may still come


def test_an_experiment_without_data_goes_on_until_its_horizon(tmp_path: Path) -> None:
    for now, final in ((START, False), (HORIZON - 1, False), (HORIZON, True)):
        decision = decide(tmp_path / "nothing", TEST, CONFIG, now)
        assert (decision.verdict, codes(decision), decision.final) == (Verdict.INVALID, ["NO_DATA"], final)


def test_a_missing_arm_ends_the_test_only_when_chance_is_no_excuse(judged: Callable[..., Decision]) -> None:
    few = traffic(TEST, users=4, keep=lambda user, arm: arm == "champion")
    many = traffic(TEST, users=60, keep=lambda user, arm: arm == "champion")
    for logs, final in ((few, False), (many, True)):
        decision = judged(logs, START + 6 * DAY)
        assert (decision.verdict, codes(decision), decision.final) == (Verdict.INVALID, ["ARM_MISSING"], final)
    assert judged(few, HORIZON).final
