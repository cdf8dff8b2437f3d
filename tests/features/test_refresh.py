"""While a release is served, features stay what the training's own code would compute for the same instant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from omnifeed.config import Config
from omnifeed.datasets.served import served_events
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.export.catalogue import load_snapshot
from omnifeed.features.history import histories_asof
from omnifeed.features.refresh import Freshness
from omnifeed.features.store import apply, read_user
from omnifeed.home import Home
from omnifeed.pipelines.traffic import HOUR_US, OutcomeLog, _seen
from omnifeed.quality.lake import accepted
from omnifeed.tables import write_tables
from omnifeed.world.market import World

CONFIG = Config.load(Path(__file__).resolve().parents[2] / "pipelines" / "configs" / "tiny.toml")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, World, int, set[str]]:
    """A home in which half a day of visits was answered and logged, with every hour's push made."""
    home, world = Home(tmp_path_factory.mktemp("home")), World(CONFIG.world)
    write_tables(world.tables(), accepted(home))
    apply(home, CONFIG)
    day = CONFIG.world.history_days
    midnight = world.day_start(day)
    visits = [visit for visit in world.visits(day) if visit.ts < midnight + 12 * HOUR_US]
    users = {visit.user_id for visit in visits}
    arms = (Arm("champion", "0", 0.5), Arm("challenger", "1", 0.5))
    folder = home.experiments / Experiment("e", "e", arms, midnight, midnight, "").name
    (folder / "exposures").mkdir(parents=True)
    freshness, log = Freshness(home, CONFIG, folder, users, midnight), OutcomeLog(folder)
    freshness.midnight(world.catalogue(midnight), midnight)
    shown = world.catalogue(midnight)["item_id"].to_pylist()[:10]
    with (folder / "exposures" / "log.jsonl").open("w") as exposures:
        for hour in range(12):
            freshness.hour(users, midnight + hour * HOUR_US)
            for visit in visits:
                if (visit.ts - midnight) // HOUR_US != hour:
                    continue
                responses = world.respond(visit, shown)
                for response in responses:
                    row = {
                        "request_id": visit.visit_id,
                        "item_id": response.item_id,
                        "position": response.position,
                        "user_id": visit.user_id,
                        "scenario": visit.scenario,
                        "ts": visit.ts,
                    }
                    exposures.write(json.dumps(row) + "\n")
                log.write(visit, visit.visit_id, responses)
                freshness.saw(_seen(visit, visit.visit_id, responses))
    log.flush()
    freshness.hour(users, midnight + 12 * HOUR_US)
    return home, world, midnight + 12 * HOUR_US, users


def test_pushed_histories_equal_those_computed_from_the_logs_for_the_same_instant(
    played: tuple[Home, World, int, set[str]],
) -> None:
    home, _, now, users = played
    logs = [accepted(home), served_events(home.experiments / "e")]
    expected = {row["user_id"]: row for row in histories_asof(logs, now, CONFIG, users).to_pylist()}
    grown = 0
    for user in sorted(users):
        stored = read_user(home, user, CONFIG)
        if not stored.history_item:  # nothing has become known since the lake, so nothing was pushed
            continue
        grown += 1
        assert list(stored.history_item) == expected[user]["history_item"]
        assert list(stored.history_action) == expected[user]["history_action"]
        assert list(stored.history_ts) == expected[user]["history_ts"]
    assert grown > len(users) / 2


def test_the_catalogue_holds_every_item_with_the_aggregates_of_its_midnight(
    played: tuple[Home, World, int, set[str]],
) -> None:
    home, world, now, _ = played
    catalogue = load_snapshot(home)
    assert list(catalogue.texts["item_id"]) == world.catalogue(now - 12 * HOUR_US)["item_id"].to_pylist()
    every = np.arange(len(catalogue))
    assert all(np.isfinite(catalogue.features.rows(name, every)).all() for name in catalogue.features.within)
    assert (catalogue.features.trending("short_video") > 0).mean() > 0.1
