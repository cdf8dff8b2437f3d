"""A simulated market answered by the recommender with release 0 in this process, day after day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.releases import COMMIT, experiment

from omnifeed.config import Config, ServingConfig, WorldConfig
from omnifeed.datasets.served import served_events
from omnifeed.export.bundle import export_trending
from omnifeed.export.encode import UserRow
from omnifeed.features.refresh import refresh_catalogue
from omnifeed.home import Home
from omnifeed.pipelines.traffic import OutcomeLog
from omnifeed.serving.recommend.contract import Answer, Request
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.live import Live
from omnifeed.serving.recommend.parts import Parts
from omnifeed.world.market import World
from omnifeed.world.traffic import Visit


class Nobody:
    """A feature store that knows no user: release 0 does without."""

    def user(self, user_id: str, timeout_s: float) -> UserRow:
        return UserRow({})


def no_network(number: str) -> Parts:
    raise AssertionError("release 0 has no network")


class Shop:
    """One market, one home, release 0 for everybody."""

    def __init__(self, root: Path, world: WorldConfig) -> None:
        self.config = Config(world=world)
        self.home, self.world = Home(root / "home"), World(world)
        self.folder = self.home.experiments / "trial"
        self._past = self.world.tables().events
        export_trending(self.home, self.config, self.world.day_start(world.history_days), COMMIT)
        experiment(self.home, ("champion", "0", 1.0))
        self.outcomes = OutcomeLog(self.folder)
        self._live = Live(self.home, self.config, no_network)

    def midnight(self, day: int) -> None:
        """Today's catalogue, with the aggregates of everything that was seen before."""
        now, served = self.world.day_start(day), (self.folder / "exposures").exists()
        self.outcomes.flush()
        events = [self._past, *([served_events(self.folder)] if served else [])]
        refresh_catalogue(self.home, self.config, self.world.catalogue(now), events, now)
        assert self._live.refresh()

    def recommender(self, serving: ServingConfig) -> Recommender:
        """On the catalogue as it is, and as it becomes."""
        log = ExposureLog(self.home, 0)
        return Recommender(self._live, Nobody(), log, serving, lambda: 0, simulated_clock=True)

    def ask(self, recommender: Recommender, visit: Visit, **fields: Any) -> Answer:
        """Answer a visit."""
        usual = {"request_id": visit.visit_id, "k": 10}
        return recommender.recommend(
            Request(
                user_id=visit.user_id,
                scenario=visit.scenario,
                query=visit.query,
                now=visit.ts,
                locale=visit.locale,
                device=visit.device,
                **{**usual, **fields},
            )
        )

    def serve(self, recommender: Recommender, visit: Visit, **fields: Any) -> Answer:
        """Answer, and queue what came of it."""
        answer = self.ask(recommender, visit, **fields)
        self.outcomes.write(visit, answer.request_id, self.world.respond(visit, answer.item_ids))
        return answer
