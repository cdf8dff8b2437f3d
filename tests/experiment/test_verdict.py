"""The verdict's rules, each on logs (or numbers) with a known truth."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from experiment_logs import CONFIG, DAY, HORIZON, HOUR, START, Logs, experiment, outcome, traffic

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.experiment.assignment import Arm, assign
from omnifeed.experiment.decision import Code, Decision, Verdict
from omnifeed.experiment.evidence import ALL, ArmNumbers, Evidence, LogCounts
from omnifeed.experiment.verdict import RULES, decide, judge

TEST = experiment()
RATES = {"click": 0.3, "order": 0.08, "hide": 0.12}


def better(name: str, scenario: str) -> float:
    return 1.5 if name == "order" else 1.0


@pytest.fixture(scope="module")
def winning() -> Logs:
    return traffic(TEST, users=3000, seed=1, challenger=better, rates=RATES)


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., Decision]:
    def run(logs: Logs, now: int = HORIZON, config: Config = CONFIG) -> Decision:
        return decide(logs.write(tmp_path / "experiment"), TEST, config, now)

    return run


def codes(decision: Decision) -> list[str]:
    return [reason.code.value for reason in decision.reasons]


def changed(**section: Any) -> Config:
    return dataclasses.replace(CONFIG, experiment=dataclasses.replace(CONFIG.experiment, **section))


def copy(logs: Logs) -> Logs:
    return Logs([dict(line) for line in logs.exposures], [dict(line) for line in logs.outcomes])


# The four verdicts at the horizon


def test_a_planted_effect_is_promoted(judged: Callable[..., Decision], winning: Logs) -> None:
    decision = judged(winning)
    assert decision.verdict is Verdict.PROMOTE
    assert decision.final
    assert set(codes(decision)) == {"SUCCESS_SUPERIOR"}
    assert [rule.state for rule in decision.path] == ["passed"] * 6
    assert [rule.name for rule in decision.path] == list(RULES)
    assert "GMV per user: +" in decision.paragraph
    assert json.loads(json.dumps(decision.to_dict(), allow_nan=False))["verdict"] == "PROMOTE"


def test_no_difference_is_held_finally(judged: Callable[..., Decision]) -> None:
    decision = judged(traffic(TEST, users=3000, seed=2, rates=RATES))
    assert (decision.verdict, decision.final) == (Verdict.HOLD, True)
    assert set(codes(decision)) == {"SUPERIORITY_NOT_SHOWN"}


def test_a_breached_guardrail_is_rejected_although_success_rose(judged: Callable[..., Decision]) -> None:
    logs = traffic(TEST, users=3000, seed=1, rates=RATES, challenger=lambda name, _: 1.6 if name != "click" else 1.0)
    decision = judged(logs)
    assert (decision.verdict, codes(decision)) == (Verdict.REJECT, ["GUARDRAIL_HARM"])
    assert [rule.state for rule in decision.path] == ["passed", "passed", "passed", "failed", "passed", "passed"]


def test_a_guardrail_that_is_not_shown_to_hold_is_held(judged: Callable[..., Decision]) -> None:
    logs = traffic(TEST, users=600, seed=1, rates={"order": 0.2, "hide": 0.01}, challenger=better)
    decision = judged(logs)
    assert (decision.verdict, decision.final) == (Verdict.HOLD, True)
    assert codes(decision) == ["NON_INFERIORITY_NOT_SHOWN"]


def test_harm_in_one_scenario_is_rejected_although_the_whole_rose(judged: Callable[..., Decision]) -> None:
    def uneven(name: str, scenario: str) -> float:
        return (0.2 if scenario == "search" else 2.5) if name == "order" else 1.0

    decision = judged(traffic(TEST, users=3000, seed=1, rates=RATES, challenger=uneven))
    assert (decision.verdict, codes(decision)) == (Verdict.REJECT, ["SCENARIO_HARM"])
    assert "in search" in decision.reasons[0].text
    assert {each.outcome for each in decision.metrics if each.role == "success" and not each.scenario} == {"superior"}


def test_every_success_metric_inferior_is_rejected(tmp_path: Path) -> None:
    config = changed(scenario_harm_margin=0.5)  # so that the whole decides, not a scenario
    rates = {"click": 0.3, "order": 0.3, "hide": 0.12}
    logs = traffic(TEST, users=3000, seed=1, rates=rates, challenger=lambda name, _: 0.8 if name == "order" else 1.0)
    decision = decide(logs.write(tmp_path), experiment(config), config, HORIZON)
    assert (decision.verdict, set(codes(decision))) == (Verdict.REJECT, {"SUCCESS_INFERIOR"})


# Time


def test_before_the_horizon_even_a_clear_gain_is_held(judged: Callable[..., Decision], winning: Logs) -> None:
    for now in (START + 3 * DAY, START + 7 * DAY, HORIZON - 1):
        decision = judged(winning, now)
        assert (decision.verdict, decision.final, codes(decision)) == (Verdict.HOLD, False, ["BEFORE_HORIZON"])
    assert judged(winning, HORIZON).verdict is Verdict.PROMOTE


def test_harm_stops_early(judged: Callable[..., Decision]) -> None:
    ruined = traffic(TEST, users=3000, seed=1, rates=RATES, challenger=lambda name, _: 3.0 if name == "hide" else 1.0)
    decision = judged(ruined, START + 4 * DAY)
    assert (decision.verdict, decision.final, set(codes(decision))) == (Verdict.REJECT, True, {"EARLY_HARM"})
    assert "Hides per user" in decision.reasons[0].text


def test_a_challenger_that_sells_nothing_is_stopped_early(judged: Callable[..., Decision]) -> None:
    logs = traffic(TEST, users=3000, seed=1, rates=RATES, challenger=lambda name, _: 0.0 if name == "order" else 1.0)
    decision = judged(logs, START + 4 * DAY)
    assert (decision.verdict, set(codes(decision))) == (Verdict.REJECT, {"EARLY_HARM"})


def test_what_was_observed_after_now_is_not_read(judged: Callable[..., Decision], winning: Logs) -> None:
    early = judged(winning, START + 2 * DAY)
    known = copy(winning)
    known.exposures = [line for line in known.exposures if line["ts"] <= START + 2 * DAY]
    known.outcomes = [line for line in known.outcomes if line["observed_ts"] <= START + 2 * DAY]
    again = judged(known, START + 2 * DAY)
    assert again.metrics == early.metrics
    assert early.counts.exposures_outside == len(winning.exposures) - len(known.exposures)


# Trust


def test_no_traffic_is_invalid_with_exactly_that_reason(tmp_path: Path) -> None:
    for now in (START, HORIZON):
        decision = decide(tmp_path / "nothing", TEST, CONFIG, now)
        assert (decision.verdict, codes(decision)) == (Verdict.INVALID, ["NO_DATA"])
        assert "There is no live traffic" in decision.paragraph
        assert [rule.state for rule in decision.path] == ["failed"] + ["not reached"] * 5


def test_traffic_outside_the_experiments_time_is_no_traffic(judged: Callable[..., Decision], winning: Logs) -> None:
    logs = copy(winning)
    for line in logs.exposures:
        line["ts"] -= 30 * DAY
    assert codes(judged(logs)) == ["NO_DATA"]


@pytest.mark.parametrize("missing", ["champion", "challenger"])
def test_a_missing_arm_is_invalid(judged: Callable[..., Decision], missing: str) -> None:
    decision = judged(traffic(TEST, users=500, keep=lambda user, arm: arm != missing))
    assert (decision.verdict, codes(decision)) == (Verdict.INVALID, ["ARM_MISSING"])
    assert missing in decision.paragraph


def sixty_forty(logs: Logs) -> Logs:
    """A third of the challenger's users never reached the log."""
    lost = {user for user in challengers(logs) if hash_of(user) % 3 == 0}
    return Logs([line for line in logs.exposures if line["user_id"] not in lost], logs.outcomes)


def challengers(logs: Logs) -> set[str]:
    return {line["user_id"] for line in logs.exposures if line["arm"] == "challenger"}


def hash_of(user: str) -> int:
    return int(user.rsplit("-", 1)[1])


@pytest.mark.parametrize("now", [START + 3 * DAY, HORIZON])
def test_sixty_to_forty_is_invalid_with_the_p_value(judged: Callable[..., Decision], winning: Logs, now: int) -> None:
    decision = judged(sixty_forty(winning), now)
    assert decision.verdict is Verdict.INVALID
    assert codes(decision)[0] == "SAMPLE_RATIO_MISMATCH"
    overall = decision.splits[0]
    total = overall.champion + overall.challenger
    assert 0.57 < overall.champion / total < 0.63
    z = (abs(overall.challenger - total / 2) - 0.5) / math.sqrt(total / 4)
    assert decision.srm_p_value == pytest.approx(2 * scipy.stats.norm.sf(z), rel=1e-9)
    assert f"p = {decision.srm_p_value:.2g}" in decision.paragraph
    assert decision.path[2].state == "failed"


def test_a_mismatch_in_one_scenario_is_invalid(judged: Callable[..., Decision], winning: Logs) -> None:
    logs = copy(winning)
    logs.exposures = [
        line
        for line in logs.exposures
        if not (line["scenario"] == "search" and line["arm"] == "challenger" and hash_of(line["user_id"]) % 3 == 0)
    ]
    decision = judged(logs)
    # a third of the challenger's search outcomes lost their exposures, which shows as well
    assert (decision.verdict, codes(decision)) == (Verdict.INVALID, ["SAMPLE_RATIO_MISMATCH", "LOG_INCOMPLETE"])
    assert "in search" in decision.reasons[0].text


def test_settings_that_changed_after_the_start_are_invalid(judged: Callable[..., Decision], winning: Logs) -> None:
    for change in ({"alpha": 0.1}, {"guardrail_margins": (0.5,)}, {"days": 14}):
        decision = judged(winning, HORIZON + 7 * DAY, changed(**change))
        assert (decision.verdict, codes(decision)) == (Verdict.INVALID, ["CONFIG_CHANGED"])


def test_a_changed_salt_is_invalid(tmp_path: Path, winning: Logs) -> None:
    other = dataclasses.replace(TEST, salt="another")
    decision = decide(winning.write(tmp_path), other, CONFIG, HORIZON)
    assert (decision.verdict, codes(decision)) == (Verdict.INVALID, ["ASSIGNMENT_MISMATCH"])


def test_a_challengers_user_answered_by_the_champion_still_counts_as_the_challengers(
    judged: Callable[..., Decision], winning: Logs
) -> None:
    plain, logs = judged(winning), copy(winning)
    crossed = {user for user in challengers(logs) if hash_of(user) < 99}
    for line in logs.exposures:
        if line["user_id"] in crossed:
            line |= {"arm": "champion", "release": "0", "degraded": ["champion_answer"]}
    decision = judged(logs)
    assert decision.metrics == plain.metrics
    assert decision.counts.users_crossed == len(crossed) > 20
    for line in logs.exposures:
        line["degraded"] = []  # the same without the log's word for it
    assert codes(judged(logs)) == ["ASSIGNMENT_MISMATCH"]


def test_one_torn_line_a_file_is_skipped_and_more_break_the_log(tmp_path: Path, winning: Logs) -> None:
    folder = winning.write(tmp_path)
    path = folder / "exposures" / "1.jsonl"
    text = path.read_text()
    path.write_text(text[:-40])
    decision = decide(folder, TEST, CONFIG, HORIZON)
    assert (decision.verdict, decision.counts.torn) == (Verdict.PROMOTE, 1)
    assert decision.counts.exposures == len(winning.exposures) - 1
    path.write_text("broken {\n" + text[:-40])
    decision = decide(folder, TEST, CONFIG, HORIZON)
    assert (decision.verdict, codes(decision)) == (Verdict.INVALID, ["LOG_BROKEN"])
    assert "2 unreadable" in decision.paragraph


def test_negative_gmv_is_a_broken_log(judged: Callable[..., Decision], winning: Logs) -> None:
    logs = copy(winning)
    gmv = next(line for line in logs.outcomes if line["name"] == "gmv")
    gmv["value"] = -5.0
    decision = judged(logs)
    assert (decision.verdict, codes(decision)) == (Verdict.INVALID, ["LOG_BROKEN"])


# Joining


def test_repeated_and_shuffled_lines_change_nothing(judged: Callable[..., Decision], winning: Logs) -> None:
    plain, logs = judged(winning), copy(winning)
    logs.exposures += [{**line, "ts": line["ts"] + 5} for line in logs.exposures[::7]]
    logs.outcomes += [{**line, "observed_ts": line["observed_ts"] + 9} for line in logs.outcomes[::5]]
    random = np.random.default_rng(0)
    random.shuffle(logs.exposures)
    random.shuffle(logs.outcomes)
    decision = judged(logs)
    assert (decision.metrics, decision.daily) == (plain.metrics, plain.daily)
    assert decision.counts.exposures_repeated == len(winning.exposures[::7])
    assert decision.counts.outcomes_repeated == len(winning.outcomes[::5])
    assert decision.counts.exposures_used == plain.counts.exposures_used


def test_the_first_of_repeated_exposures_wins(tmp_path: Path) -> None:
    logs = traffic(TEST, users=50)
    later = {**logs.exposures[0], "scenario": "elsewhere", "ts": logs.exposures[0]["ts"] + 1}
    logs.exposures.insert(0, later)
    decision = decide(logs.write(tmp_path), TEST, CONFIG, HORIZON)
    assert "elsewhere" not in decision.evidence.scenarios()


def test_an_outcome_counts_once_known_within_its_window_and_only_with_an_exposure(tmp_path: Path) -> None:
    logs = traffic(TEST, users=200, rates={"order": 0.0})
    first = logs.exposures[0]
    key, ts = (first["request_id"], first["item_id"]), first["ts"]
    window = CONFIG.experiment.attribution_hours * HOUR
    logs.outcomes = [
        outcome(*key, "order", 0, ts + 1, ts + 2),  # a report that nothing was ordered yet is no order
        outcome(*key, "order", 1, ts + window, ts + window),  # the last moment that counts
        outcome(*key, "order", 1, ts + window, ts + window + 50),  # repeated
        outcome(*key, "gmv", 30, ts + 5, ts + 90),  # the last observed amount wins,
        outcome(*key, "gmv", 20, ts + 5, ts + 10),  # whatever its place in the file
        outcome(*key, "hide", 1, ts + window + 1),  # late
        outcome(*key, "report", 1, ts - 1),  # before its exposure
        outcome("r?", "i?", "order", 1, ts + 1),  # without exposure
        outcome(*key, "wave", 1, ts + 1),  # a name nobody reads
    ]
    decision = decide(logs.write(tmp_path), TEST, CONFIG, HORIZON)
    counts = decision.counts
    arm = assign(TEST, first["user_id"]).name
    numbers = decision.evidence.arm(ALL, arm)
    assert numbers is not None
    assert numbers.mean["orders_per_user"] * numbers.users == pytest.approx(1)
    assert numbers.mean["gmv_per_user"] * numbers.users == pytest.approx(30)
    assert numbers.mean["hides_per_user"] == 0
    assert dataclasses.asdict(counts) | {"requests": 0, "exposures": 0, "exposures_used": 0} == dataclasses.asdict(
        LogCounts(
            outcomes=9,
            outcomes_used=2,
            outcomes_repeated=2,
            outcomes_late=1,
            outcomes_early=1,
            outcomes_unexposed=1,
            outcomes_unknown=1,
        )
    )


def test_one_whale_cannot_win_an_experiment(judged: Callable[..., Decision]) -> None:
    logs = traffic(TEST, users=1000, seed=4, rates=RATES)
    line = next(line for line in logs.exposures if line["arm"] == "challenger")
    plain = judged(logs)
    logs.outcomes.append(outcome(line["request_id"], line["item_id"], "gmv", 1e9, line["ts"] + 1))
    decision = judged(logs)
    assert decision.verdict is plain.verdict is Verdict.HOLD
    whale, before = (each.evidence.arm(ALL, "challenger") for each in (decision, plain))
    assert whale is not None
    assert before is not None
    gain = (whale.mean["gmv_per_user"] - before.mean["gmv_per_user"]) * whale.users
    assert 0 < gain <= CONFIG.experiment.gmv_cap


# Error rates, on numbers rather than logs


def numbers(random: np.random.Generator, rate: dict[str, float], arm: str, users: int, scope: str) -> ArmNumbers:
    """Per-user totals of one arm: overdispersed counts, gmv as orders times amounts."""
    taste = random.gamma(4, 0.25, users)
    drawn = {name: random.poisson(chance * taste).astype(float) for name, chance in rate.items()}
    spend = np.minimum(random.gamma(3, 20, users) * drawn["orders_per_user"], 500)
    columns = {"gmv_per_user": spend, **drawn}
    return ArmNumbers(
        scope=scope,
        arm=arm,
        users=users,
        mean={name: float(column.mean()) for name, column in columns.items()},
        variance={name: float(column.var(ddof=1)) for name, column in columns.items()},
        covariate_mean={},
        covariate_variance={},
        covariance={},
    )


def simulated(seed: int, **factor: float) -> Decision:
    random = np.random.default_rng(seed)
    rate = {"orders_per_user": 0.3, "hides_per_user": 0.4}
    changed = {name: value * factor.get(name, 1.0) for name, value in rate.items()}
    both = [
        numbers(random, changed if arm == "challenger" else rate, arm, 1500, scope)
        for scope in (ALL, "a", "b")
        for arm in ("champion", "challenger")
    ]
    return judge(TEST, CONFIG, HORIZON, Evidence(LogCounts(exposures_used=1), tuple(both)))


def test_of_200_experiments_without_a_difference_at_most_alpha_are_promoted() -> None:
    promoted = sum(simulated(seed).verdict is Verdict.PROMOTE for seed in range(200))
    # binomial(200, alpha): the 99.9 % quantile above the expected 10
    assert promoted <= scipy.stats.binom.ppf(0.999, 200, CONFIG.experiment.alpha)


def test_a_planted_guardrail_breach_is_never_promoted() -> None:
    verdicts = {simulated(seed, orders_per_user=1.5, hides_per_user=1.5).verdict for seed in range(60)}
    assert Verdict.PROMOTE not in verdicts
    assert Verdict.REJECT in verdicts


def test_looking_every_day_for_harm_rings_false_less_often_than_alpha() -> None:
    alarms = 0
    for seed in range(150):
        random = np.random.default_rng(seed)
        days = {"champion": np.zeros((3, 800)), "challenger": np.zeros((3, 800))}
        for day in range(1, 7):
            arms = []
            for arm, totals in days.items():
                orders = random.poisson(0.1, 800)
                totals += np.stack([orders * random.gamma(3, 20, 800), orders, random.poisson(0.1, 800)])
                names = ("gmv_per_user", "orders_per_user", "hides_per_user")
                arms.append(
                    ArmNumbers(
                        scope=ALL,
                        arm=arm,
                        users=800,
                        mean=dict(zip(names, totals.mean(axis=1).tolist(), strict=True)),
                        variance=dict(zip(names, totals.var(axis=1, ddof=1).tolist(), strict=True)),
                        covariate_mean={},
                        covariate_variance={},
                        covariance={},
                    )
                )
            decision = judge(TEST, CONFIG, START + day * DAY, Evidence(LogCounts(exposures_used=1), tuple(arms)))
            if decision.verdict is Verdict.REJECT:
                alarms += 1
                break
            assert decision.reasons[0].code is Code.BEFORE_HORIZON
    assert alarms <= scipy.stats.binom.ppf(0.999, 150, CONFIG.experiment.alpha)


# Input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"success": ("likes_per_use",)}, "likes_per_use"),
        ({"success": ()}, "no success metric"),
        ({"success": ("hides_per_user",)}, "named twice"),
        ({"guardrail_margins": ()}, "1 guardrails have 0 margins"),
        ({"guardrail_margins": (25.0,)}, "between 0 and 1"),
        ({"days": 10}, "10 days"),
        ({"challenger_share": 1.0}, "challenger_share"),
        ({"alpha": 0.0}, "alpha"),
        ({"gmv_cap": 0.0}, "gmv_cap"),
    ],
)
def test_a_section_that_cannot_be_judged_by_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decide(tmp_path, TEST, changed(**change), HORIZON)


def test_an_experiment_with_other_arms_is_refused(tmp_path: Path) -> None:
    three = dataclasses.replace(TEST, arms=(*TEST.arms[:1], Arm("a", "1", 0.25), Arm("b", "2", 0.25)))
    with pytest.raises(InputError, match="one champion with one challenger"):
        decide(tmp_path, three, CONFIG, HORIZON)
