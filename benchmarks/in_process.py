"""One simulated market up to its first experiment, and the server's own engine answering its visits in this process.

The data goes the pipeline's way: logs, contract, features, training set, training, catalogue. In the server's place
stand `Recommender` with the network in PyTorch (whose ONNX export is held to 1e-5 of it) and a table of user rows in
the feature server's place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from omnifeed.config import Config, ServingConfig
from omnifeed.datasets.source import load_tables
from omnifeed.engine import EventSource
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.export.catalogue import load_snapshot
from omnifeed.export.catalogue_state import Catalogue
from omnifeed.export.encode import EncodeSpec, UserRow
from omnifeed.export.provenance import git_commit
from omnifeed.export.release import Release
from omnifeed.features.aggregates import user_features_asof
from omnifeed.features.history import histories_asof
from omnifeed.features.materialize import materialize
from omnifeed.features.online import user_row
from omnifeed.features.refresh import refresh_catalogue
from omnifeed.features.spec import digest, of
from omnifeed.home import Home
from omnifeed.model.network import Network, load_network
from omnifeed.model.parts import TorchParts
from omnifeed.quality.lake import accepted, publish
from omnifeed.quality.validate import validate
from omnifeed.serving.recommend.contract import Answer, Request
from omnifeed.serving.recommend.engine import Recommender
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.index import build_index
from omnifeed.serving.recommend.live import Live, Loaded, State
from omnifeed.serving.recommend.parts import Arrays
from omnifeed.serving.recommend.routing import Routing
from omnifeed.tables import read_parquet, write_tables
from omnifeed.training.loop import train
from omnifeed.world.market import World
from omnifeed.world.traffic import Visit

FOREVER = 2**62


@dataclass(frozen=True)
class Market:
    """A world at the end of its history, with everything that the training pipeline makes before it trains."""

    config: Config
    world: World
    home: Home
    training_set: Path
    now: int  # UTC microseconds; midnight after the last logged day


def prepare(config: Config, folder: Path) -> Market:
    """Ingest, validate, materialize."""
    home, source = Home(folder / "home"), load_tables(config)
    write_tables(source.tables, folder / "tables")
    validate(
        folder / "tables",
        folder / "accepted",
        folder / "quarantine",
        folder / "quality.html",
        config,
        source.now,
        folder / "profile.json",
    )
    publish(folder / "accepted", home)
    materialize(accepted(home), folder / "training_set", home, config, source.now, source.holdout_users)
    return Market(config, World(config.world), home, folder / "training_set", source.now)


def fitted(market: Market, name: str, config: Config) -> Network:
    """Train one model on the market's training set."""
    folder = market.home.root / "models" / name
    train(market.training_set, folder, config)
    return load_network(folder)


def sides(names: Sequence[str], start_ts: int = 0, end_ts: int = FOREVER) -> Experiment:
    """An experiment in which each model is an arm of its own; requests name their arm."""
    arms = tuple(Arm(name, name, 1 / len(names)) for name in names)
    return Experiment("in-process", "in-process", arms, start_ts, end_ts, "")


class Pair:
    """Two networks in one's place: the first retrieves, the second ranks what it found. See `Parts`.

    An item's vector is the first's and the second's side by side.
    """

    def __init__(self, retrieving: Network, ranking: Network) -> None:
        self.spec, self.tasks = ranking.spec, ranking.tasks
        self._retrieving, self._ranking = TorchParts(retrieving), TorchParts(ranking)
        self._width = retrieving.config.width

    def item_encoder(self, inputs: Arrays) -> Arrays:
        first, second = self._retrieving.item_encoder(inputs), self._ranking.item_encoder(inputs)
        both = np.concatenate([first["item_vec"], second["item_vec"]], axis=1)
        return {"item_vec": both, "item_key": first["item_key"]}

    def user_encoder(self, inputs: Arrays) -> Arrays:
        own, others = (inputs["hist_vec"][..., part] for part in (slice(self._width), slice(self._width, None)))
        first = self._retrieving.user_encoder({**inputs, "hist_vec": own})
        second = self._ranking.user_encoder({**inputs, "hist_vec": others})
        return {**second, "user_vec": first["user_vec"], "trend_weight": first["trend_weight"]}

    def ranker(self, inputs: Arrays) -> Arrays:
        return self._ranking.ranker({**inputs, "cand_vec": inputs["cand_vec"][..., self._width :]})

    def resting(self) -> str | None:
        return None


class Standing(Live):
    """The state that `Live` reads from releases and pointer files, made from networks in memory.

    Args:
        networks: by release; None is release 0, what trends.
    """

    def __init__(self, config: Config, experiment: Experiment, networks: Mapping[str, Network | Pair | None]) -> None:
        self._experiment, self._networks = experiment, networks
        self._trending_spec = EncodeSpec.from_config(config)
        self._config = config
        self.state = State()

    def onto(self, catalogue: Catalogue) -> None:
        """Put every release onto today's catalogue."""
        former = self.state
        trending = build_index(self._trending_spec, catalogue, None, former.trending)
        loaded = {}
        for number, network in self._networks.items():
            if network is None:
                loaded[number] = Loaded(self._release(number, self._trending_spec, ()), None, trending)
                continue
            parts = network if isinstance(network, Pair) else TorchParts(network)
            previous = former.loaded[number].index if number in former.loaded else None
            index = build_index(network.spec, catalogue, parts, previous)
            loaded[number] = Loaded(self._release(number, network.spec, network.tasks), parts, index)
        self.state = State(Routing(self._experiment, None), catalogue, trending, loaded)

    def _release(self, number: str, spec: EncodeSpec, tasks: tuple[str, ...]) -> Release:
        return Release(
            number=number,
            kind="network" if tasks else "trending",
            created_ts=0,
            window=(0, 0),
            encode=spec.to_dict(),
            feature_digest=digest(),
            config_digest=self._config.digest,
            git_commit=git_commit(),
            tasks=tasks,
            metrics={},
            parity={},
            versions={},
            files={},
        )


class UserTable:
    """What the feature server would answer: profile, daily aggregates as of a midnight, histories as they are put."""

    def __init__(self, market: Market, users: Sequence[str]) -> None:
        names = [feature.name for feature in of("user_profile")]
        table = read_parquet(accepted(market.home) / "users.parquet").select(["user_id", *names])
        wanted = set(users)
        self._profile = {row.pop("user_id"): row for row in table.to_pylist() if row["user_id"] in wanted}
        self._daily: dict[str, dict[str, float]] = {}
        self._config = market.config
        self.rows: dict[str, UserRow] = {}

    def midnight(self, events: Sequence[EventSource], ts: int) -> None:
        """Aggregates as of a midnight."""
        table = user_features_asof(events, ts)
        names = [feature.name for feature in of("user_daily")]
        columns = {name: table[name].to_pylist() for name in names}
        self._daily = {
            user: {name: columns[name][row] for name in names}
            for row, user in enumerate(table["user_id"].to_pylist())
            if user in self._profile
        }

    def histories(self, events: Sequence[EventSource], ts: int) -> dict[str, list[tuple[str, int, str, int]]]:
        """(item, action, scenario, ts) of each user as of a time, oldest first."""
        packed = histories_asof(events, ts, self._config, self._profile.keys()).to_pydict()
        lists = (packed[f"history_{name}"] for name in ("item", "action", "scenario", "ts"))
        found = {user: list(zip(*rows, strict=True)) for user, *rows in zip(packed["user_id"], *lists, strict=True)}
        return {user: found.get(user, []) for user in self._profile}

    def put(self, user_id: str, history: Sequence[tuple[str, int, str, int]]) -> None:
        """The row that the next request of this user reads."""
        last = history[-self._config.features.history_length :]
        items, actions, scenarios, times = zip(*last, strict=True) if last else ((), (), (), ())
        values = {**self._profile.get(user_id, {}), **self._daily.get(user_id, {})}
        lists = {"history_item": items, "history_action": actions}
        self.rows[user_id] = user_row({**values, **lists, "history_scenario": scenarios, "history_ts": times})

    def user(self, user_id: str, timeout_s: float) -> UserRow:
        """As the engine asks it."""
        return self.rows.get(user_id, UserRow({}))


class Engine:
    """The server's `Recommender` over a standing state."""

    def __init__(self, market: Market, live: Standing, users: UserTable, serving: ServingConfig) -> None:
        self._market, self._live = market, live
        log = ExposureLog(market.home, 0)
        self._recommender = Recommender(live, users, log, serving, lambda: 0, simulated_clock=True)

    def midnight(self, events: Sequence[EventSource], ts: int) -> Catalogue:
        """Today's items, with their aggregates as of this midnight."""
        market = self._market
        refresh_catalogue(market.home, market.config, market.world.catalogue(ts), events, ts)
        catalogue = load_snapshot(market.home)
        self._live.onto(catalogue)
        return catalogue

    def ask(self, visit: Visit, arm: str, request_id: str, log: bool = False) -> Answer:
        """Answer one visit by one arm; exposures are logged only where asked for."""
        return self._recommender.recommend(
            Request(
                user_id=visit.user_id,
                scenario=visit.scenario,
                query=visit.query,
                k=self._market.config.world.slate,
                now=visit.ts,
                arm=arm,
                request_id=request_id,
                locale=visit.locale,
                device=visit.device,
                probe=not log,
            )
        )


def platform_log(market: Market, days: int) -> pa.Table:
    """The events of the first `days` days, as the platform's own policy goes on answering everybody."""
    return market.world.tables(days).events
