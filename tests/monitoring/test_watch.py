"""One interval from the logs to what follows from it: state, retraining, page and metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from export.releases import copied, experiment
from prometheus_client.parser import text_string_to_metric_families

from monitoring.served_logs import START, write_day
from omnifeed.config import Config
from omnifeed.errors import InputError, OmnifeedError
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.encode import DAY_US
from omnifeed.home import Home, write_json
from omnifeed.monitoring.exposition import METRICS, exposition
from omnifeed.monitoring.page import monitoring_html, publish
from omnifeed.monitoring.retraining import record_opened, retraining
from omnifeed.monitoring.watch import State, Watch, watch

DAYS = 12
NOW = START + DAYS * DAY_US + 3 * 3_600_000_000  # three hours into the next day
CONFIG = Config()


def served(home: Home, last_click_rate: float = 0.25, features: bool = False, days: int = DAYS) -> Watch:
    """Days under release 1; the features of these made-up days are nobody's, so only some tests keep them."""
    folder = home.experiments / "trial"
    for day in range(days):
        write_day(folder, day, click_rate=last_click_rate if day == days - 1 else 0.25)
    if not features:
        shutil.rmtree(folder / "features")
    return watch(home, CONFIG, START + days * DAY_US + 3 * 3_600_000_000)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = copied(tmp_path / "home")
    Ledger(home).append("BOOTSTRAP", {"release": "1"}, START, expected_champion=None)
    return home


def test_a_quiet_day_is_compared_with_the_champion_s_first_whole_days(home: Home) -> None:
    found = served(home)
    assert found.state is State.QUIET
    assert found.first == found.before == tuple(START + day * DAY_US for day in range(1, DAYS - 1))  # the first: midway
    assert (found.start, found.end) == (START + (DAYS - 1) * DAY_US, START + DAYS * DAY_US)
    assert not retraining(home, CONFIG, found).wanted


def test_drift_opens_a_retraining_once(home: Home) -> None:
    found = served(home, last_click_rate=0.03)
    assert found.state is State.DRIFT
    assert {kind for kind, _ in found.alarms} == {"label"}
    assert "click" in found.paragraph
    assert retraining(home, CONFIG, found).wanted

    record_opened(home, "0007", found)
    assert retraining(home, CONFIG, found).wanted  # run 0007 broke down before it came to a comparison
    write_json(home.runs / "0007" / "steps" / "evaluate.json", {"state": "done"})
    assert not retraining(home, CONFIG, found).wanted


def test_drift_during_a_test_waits_for_its_end(home: Home) -> None:
    found = served(home, last_click_rate=0.03)
    experiment(home, ("champion", "1", 1.0))
    follows = retraining(home, CONFIG, found)
    assert not follows.wanted
    assert "trial is running" in follows.reason


def test_a_fault_beside_drift_is_mended_first(home: Home) -> None:
    """The features of these days are random numbers, and no catalogue or history is as old as they say."""
    found = served(home, last_click_rate=0.03, features=True)
    assert found.state is State.FAULT
    assert {"label", "skew"} <= {kind for kind, _ in found.alarms}
    assert not retraining(home, CONFIG, found).wanted


def test_too_young_a_champion_is_not_tested_and_says_so(home: Home) -> None:
    found = served(home, days=4)
    assert found.state is State.UNTESTED
    assert "2 whole days before; rates need 5" in found.paragraph


def test_another_champion_has_no_reference_yet(home: Home) -> None:
    Ledger(home).append("PROMOTE", {"release": "0"}, START + 1, expected_champion="1")
    found = served(home)
    assert found.state is State.UNTESTED
    assert "has never answered" in found.untested[0]


def test_without_a_champion_or_a_log_there_is_nothing_to_monitor(tmp_path: Path, home: Home) -> None:
    with pytest.raises(InputError, match="no champion"):
        watch(Home(tmp_path / "empty"), CONFIG, NOW)
    with pytest.raises(InputError, match="no exposure log"):
        watch(home, CONFIG, NOW)


def test_the_metrics_are_in_prometheus_own_format_and_complete(home: Home) -> None:
    found = served(home, last_click_rate=0.03, features=True)
    text = exposition(found, retraining(home, CONFIG, found))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == set(METRICS)
    assert all(family.samples for family in families.values())
    alarms = {s.labels["kind"]: s.value for s in families["omnifeed_monitor_alarms"].samples}
    assert alarms["label"] >= 1
    assert sum(alarms.values()) == len(found.alarms)
    states = {s.labels["state"]: s.value for s in families["omnifeed_monitor_state"].samples}
    assert states == {"QUIET": 0, "DRIFT": 0, "FAULT": 1, "UNTESTED": 0}


def test_what_is_published_is_whole_and_offline(home: Home) -> None:
    found = served(home, last_click_rate=0.03)
    publish(home, found, retraining(home, CONFIG, found))
    folder = home.root / "monitoring"
    assert json.loads((folder / "days" / "2026-03-13.json").read_text())["state"] == "DRIFT"
    page = (folder / "monitoring.html").read_text()
    assert "<strong>Drift</strong>" in page
    assert "http" not in page
    assert (folder / "monitoring.prom").read_text().endswith("\n")


def test_a_day_that_was_read_is_not_read_again_and_a_spoilt_file_is_made_anew(home: Home) -> None:
    found = served(home)
    kept = sorted((home.root / "monitoring" / "profiles" / "1").glob("*.json"))
    assert len(kept) == DAYS - 1
    kept[3].write_text("{")
    for path in (home.experiments / "trial").glob("*/*.jsonl"):
        if path.stem in ("0001", "0002"):  # gone, and kept
            path.unlink()
    again = watch(home, CONFIG, NOW)
    assert again.checks == found.checks
    assert kept[3].read_text() != "{"


def test_names_from_outside_are_escaped(home: Home) -> None:
    folder = home.experiments / "trial"
    for day in range(DAYS):
        write_day(folder, day)
    for path in folder.glob("*/*.jsonl"):
        path.write_text(path.read_text().replace('"livestream"', '"<script>\\"a\\\\nb"'))
    shutil.rmtree(folder / "features")
    found = watch(home, CONFIG, NOW)
    assert "<script>" not in monitoring_html(found, retraining(home, CONFIG, found))
    families = text_string_to_metric_families(exposition(found, retraining(home, CONFIG, found)))
    scenarios = {s.labels.get("scenario") for family in families for s in family.samples}
    assert '<script>"a\\nb' in scenarios


def test_a_home_that_cannot_be_written_keeps_the_former_interval(home: Home) -> None:
    found = served(home)
    publish(home, found, retraining(home, CONFIG, found))
    before = (home.root / "monitoring" / "monitoring.prom").read_bytes()
    shutil.rmtree(home.root / "monitoring" / "days")
    (home.root / "monitoring" / "days").write_text("in the way")
    with pytest.raises(OmnifeedError, match="could not be written"):
        publish(home, found, retraining(home, CONFIG, found))
    assert (home.root / "monitoring" / "monitoring.prom").read_bytes() == before
