"""Today against the reference: quiet days are quiet, planted ones are not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monitoring.served_logs import START, twice, write_day
from omnifeed.config import MonitoringConfig
from omnifeed.export.encode import DAY_US
from omnifeed.monitoring.drift import MIN_DAYS, MIN_HISTORY, Check, compare
from omnifeed.monitoring.profile import Kind, Profile, Rate, profile
from omnifeed.monitoring.served import Window, served
from omnifeed.monitoring.sketch import Sketch

DAYS = 12
CONFIG = MonitoringConfig()


def profiles(folder: Path, days: range, lag: int = 0) -> list[Profile]:
    starts = tuple(START + day * DAY_US for day in days)
    with served([folder], Window(starts[:-1], starts[-1], lag)) as connection:
        return [profile(connection, start, "1") for start in starts]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[Profile]:
    folder = tmp_path_factory.mktemp("served") / "trial"
    for day in range(DAYS):
        write_day(folder, day)
    return profiles(folder, range(DAYS))


def today(folder: Path, **planted: object) -> Profile:
    write_day(folder, DAYS, **planted)  # type: ignore[arg-type]
    return profiles(folder, range(DAYS, DAYS + 1))[0]


def alarms(reference: list[Profile], day: Profile) -> list[tuple[str, str]]:
    return [(check.kind, check.name) for check in compare(reference, reference, day, CONFIG)[0] if check.alarm]


def test_a_quiet_day_raises_no_alarm_in_any_kind_of_check(reference: list[Profile], tmp_path: Path) -> None:
    checks, _ = compare(reference, reference, today(tmp_path / "trial"), CONFIG)
    assert {check.kind for check in checks} == {kind.value for kind in Kind} - {"degraded"}  # nothing ever was
    assert not [check for check in checks if check.alarm]


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ({"click_rate": 0.04}, {("label", "click"), ("calibration", "click")}),
        ({"requests": 20}, {("volume", "requests")}),
        ({"change": twice("item_views_7d")}, {("feature", "item_views_7d")}),
        (
            {"change": lambda line: line.update(user_dense=[0.0] * len(line["user_dense"]))},
            {("feature", "user_gmv_28d")},
        ),
        ({"change": lambda line: line.update(kind=["livestream"] * 4)}, {("feature", "item_kind")}),
        (
            {"change": lambda line: line.update(probabilities=[[p**2, q**2] for p, q in line["probabilities"]])},
            {("prediction", "order"), ("calibration", "click")},
        ),
        ({"change": lambda line: line.update(category=["new"] * 4)}, {("feature", "item_category")}),
    ],
)
def test_what_was_planted_is_found_on_its_first_day(
    reference: list[Profile], tmp_path: Path, planted: dict[str, object], found: set[tuple[str, str]]
) -> None:
    assert set(alarms(reference, today(tmp_path / "trial", **planted))) >= found


def rates(rng: np.random.Generator, days: int, users: int = 40) -> list[Profile]:
    """Days of 30 rates and 30 distributions whose users differ, so that rows are far from independent."""
    found = []
    for day in range(days):
        rates, sketches = {}, {}
        for name in map(str, range(30)):
            p = np.clip(rng.normal(0.2, 0.08, users), 0.01, 1)
            rates[Kind.LABEL, "s", name] = Rate(float(rng.binomial(20, p).sum()), 20 * users)
            values = np.repeat(rng.normal(0, 1, users), 5) + rng.normal(0, 0.3, users * 5)
            sketches[Kind.FEATURE, "s", name] = Sketch.of_numbers(values, users)
        found.append(Profile(day, sketches, rates))
    return found


def test_over_quiet_days_significance_alone_errs_no_more_often_than_alpha() -> None:
    """90 days, alpha 0.05, bounds of zero: at most 10 false days, the 99.5 % quantile of a binomial of 0.05."""
    rng = np.random.default_rng(3)
    bare = MonitoringConfig(alpha=0.05, max_psi=-9, max_label_change=0.0, min_requests=1)
    wrong = 0
    for _ in range(6):
        days = rates(rng, 29)
        wrong += sum(any(check.alarm for check in compare(days[:14], days[:14], day, bare)[0]) for day in days[14:])
    assert wrong <= 10


def test_a_change_within_its_bound_is_no_alarm_however_certain(reference: list[Profile], tmp_path: Path) -> None:
    wide = MonitoringConfig(max_label_change=0.9, max_calibration_change=0.9)
    checks, _ = compare(reference, reference, today(tmp_path / "trial", click_rate=0.06), wide)
    (check,) = [each for each in checks if (each.kind, each.scenario, each.name) == ("label", "search", "click")]
    assert check.p_adjusted < 0.01
    assert -0.9 < check.effect < -0.5
    assert not check.alarm


def test_calibration_s_interval_holds_the_truth_about_as_often_as_it_says(reference: list[Profile]) -> None:
    """Clicks are drawn from the predictions: 20 intervals of 95 %; that 5 or more miss has a chance of 0.3 %."""
    missed = 0
    for day in reference:
        for scenario in ("search", "livestream"):
            rate = day.rates[Kind.CALIBRATION, scenario, "click"]
            missed += abs(np.log(rate.value)) > 1.96 * rate.error
            assert 0.05 < rate.error < 0.3
    assert missed < 5


def test_too_few_days_or_requests_are_not_tested(reference: list[Profile], tmp_path: Path) -> None:
    day = today(tmp_path / "trial")
    few = reference[: MIN_DAYS - 1]
    assert compare(few, few, day, CONFIG)[0] == []
    some = reference[: MIN_HISTORY - 1]
    assert {check.kind for check in compare(some, some, day, CONFIG)[0]} == {"volume", "label", "calibration"}
    thin = today(tmp_path / "thin", requests=20)
    kinds = {check.kind for check in compare(reference, reference, thin, CONFIG)[0]}
    assert kinds <= {"volume", "calibration", "label"}


def test_what_users_do_is_compared_with_the_first_days_and_the_rest_with_the_days_before(
    reference: list[Profile], tmp_path: Path
) -> None:
    """A day that is like the days before, all of them unlike the champion's first."""
    folder = tmp_path / "later"
    for day in range(DAYS + 1):
        write_day(folder, day, click_rate=0.05, change=twice("item_views_7d"))
    later = profiles(folder, range(DAYS + 1))
    checks, _ = compare(reference, later[:-1], later[-1], CONFIG)
    assert {check.kind for check in checks if check.alarm} == {"label", "calibration"}
    moved = named(checks, "feature", "item_views_7d")
    assert moved.effect < 0.2 < (moved.long_run or 0)


def test_a_scenario_that_nobody_asks_for_any_more_is_missing_volume(reference: list[Profile], tmp_path: Path) -> None:
    day = today(tmp_path / "trial")
    rates = {key: rate for key, rate in day.rates.items() if key[1] != "search"}
    found = compare(reference, reference, Profile(day.day, day.sketches, rates), CONFIG)[0]
    assert [(each.scenario, each.effect) for each in found if each.kind == "volume" and each.alarm] == [("search", -1)]


def test_a_profile_survives_its_file(reference: list[Profile]) -> None:
    assert Profile.from_dict(json.loads(json.dumps(reference[0].to_dict()))) == reference[0]


def test_other_checks_of_the_day_share_its_alpha(reference: list[Profile], tmp_path: Path) -> None:
    key = (Kind.FEATURE, "skew", "x")
    checks, adjusted = compare(reference, reference, today(tmp_path / "trial"), CONFIG, {key: 1e-4})
    assert adjusted[key] == pytest.approx(1e-4 * (len(checks) + 1))


def test_a_reason_that_never_was_is_compared_with_none(reference: list[Profile], tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    write_day(folder, DAYS)
    path = next((folder / "exposures").glob("*.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, "degraded": ["no_features"]}) + "\n" for line in lines))
    (day,) = profiles(folder, range(DAYS, DAYS + 1))
    found = alarms(reference, day)
    assert ("degraded", "no_features") in found


def named(checks: list[Check], kind: str, name: str) -> Check:
    return next(check for check in checks if (check.kind, check.name) == (kind, name))


def test_outcomes_that_are_late_count_alike_for_every_day(tmp_path: Path) -> None:
    """Clicks become known six hours later; the newest day, looked at at once, is not taken for a loss of clicks."""
    folder, hour = tmp_path / "trial", DAY_US // 24
    for day in range(DAYS + 1):
        write_day(folder, day, late_us=6 * hour)
    at_once, later = profiles(folder, range(DAYS + 1)), profiles(folder, range(DAYS + 1), lag=6 * hour + 2)
    key = (Kind.LABEL, "search", "click")
    assert later[-1].rates[key].events > at_once[-1].rates[key].events > 0
    assert not named(compare(at_once[:-1], at_once[:-1], at_once[-1], CONFIG)[0], "label", "click").alarm


def test_repeated_and_torn_lines_change_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    write_day(folder, 0)
    (before,) = profiles(folder, range(1))
    for path in folder.glob("*/*.jsonl"):
        text = path.read_text()
        path.write_text(text + text.splitlines()[0] + "\n" + text.splitlines()[1][:40])
    assert profiles(folder, range(1)) == [before]
