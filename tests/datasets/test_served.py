"""What Omnifeed served comes back as canonical events, by the rules of the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from omnifeed.config import Config
from omnifeed.datasets.served import collect, ingest, served_events
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.home import Home, write_json
from omnifeed.tables import EVENTS, read_tables
from omnifeed.world.market import World

DAY = 86_400_000_000
T0 = 1_773_619_200_000_000


def exposure(request: str, item: str, position: int, ts: int = T0, user: str = "u1", **more: Any) -> dict[str, Any]:
    fields = {"scenario": "search", "query": "tea", "arm": "champion", "release": "0", "propensity": None}
    return {"request_id": request, "item_id": item, "position": position, "user_id": user, "ts": ts, **fields, **more}


def outcome(request: str, item: str, name: str, value: float, observed: int) -> dict[str, Any]:
    return {"request_id": request, "item_id": item, "name": name, "value": value, "ts": T0, "observed_ts": observed}


def write(folder: Path, exposures: list[dict[str, Any]], outcomes: list[dict[str, Any]]) -> None:
    for name, rows in (("exposures", exposures), ("outcomes", outcomes)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_late_repeated_and_unordered_outcomes_make_one_event_each(tmp_path: Path) -> None:
    write(
        tmp_path,
        [exposure("r1", "a", 0), exposure("r1", "b", 1), exposure("r1", "a", 0, ts=T0 + 5)],
        [
            outcome("r1", "a", "gmv", 20.0, T0 + 2 * DAY),
            outcome("r1", "a", "order", 1, T0 + DAY),
            outcome("r1", "a", "order", 1, T0 + DAY),
            outcome("r1", "a", "gmv", 18.0, T0 + DAY),
            outcome("r1", "a", "viewed", 1, T0),
            outcome("r9", "a", "click", 1, T0),
        ],
    )
    events = served_events(tmp_path)
    assert events.schema.names == EVENTS.names
    first, second = events.to_pylist()
    assert (first["event_id"], first["order"], first["click"], first["gmv"]) == ("r1/0000", True, False, 20.0)
    assert pc.cast(events["observed_ts"], "int64").to_pylist() == [T0 + 2 * DAY, T0]
    assert (first["viewed"], second["viewed"], second["gmv"]) == (True, False, 0.0)


def test_a_torn_last_line_is_left_out_and_an_empty_log_is_an_empty_table(tmp_path: Path) -> None:
    assert served_events(tmp_path).num_rows == 0
    write(tmp_path, [exposure("r1", "a", 0)], [])
    with (tmp_path / "exposures" / "log.jsonl").open("a") as handle:
        handle.write('{"request_id": "r2", "item')
    assert served_events(tmp_path)["request_id"].to_pylist() == ["r1"]


@pytest.fixture
def config() -> Config:
    return Config.load(Path(__file__).resolve().parents[2] / "pipelines" / "configs" / "tiny.toml")


def test_after_an_experiment_the_market_moves_on_and_the_users_who_took_part_have_our_answers(
    tmp_path: Path, config: Config
) -> None:
    home, world = Home(tmp_path), World(config.world)
    start = world.day_start(config.world.history_days)
    assert ingest(config, home).now == start
    user = min(world.holdout_users())
    arms = (Arm("champion", "0", 0.5), Arm("challenger", "1", 0.5))
    experiment = Experiment("e1", "e1", arms, start, start + 7 * DAY, "")
    write_json(home.experiments / "e1" / "experiment.json", experiment.to_dict())
    item = world.catalogue(start)["item_id"][0].as_py()
    write(home.experiments / "e1", [exposure("r1", item, 0, ts=start + 7, user=user)], [])
    assert collect(home, "e1") == 1
    assert read_tables(home.lake / "served" / "e1").events.num_rows == 1
    after = ingest(config, home)
    assert after.now == start + 7 * DAY
    late = after.tables.events.filter(pc.greater_equal(pc.cast(after.tables.events["ts"], "int64"), start))
    assert late.filter(pc.equal(late["user_id"], user))["request_id"].to_pylist() == ["r1"]
    others = set(late["user_id"].to_pylist()) - {user}
    assert others
    assert not others & world.holdout_users()
