"""The simulated market's logged history."""

from __future__ import annotations

from omnifeed.config import Config
from omnifeed.datasets.source import Source
from omnifeed.world.market import World


def load(config: Config) -> Source:
    """The first `history_days` days of the world of `config.world`; its held-out users are the A/B traffic's."""
    world = World(config.world)
    return Source(
        tables=world.tables(),
        holdout_users=world.holdout_users(),
        now=world.day_start(config.world.history_days),
        description=(
            f"simulated market, law {config.world.law}, seed {config.world.seed}, "
            f"{config.world.history_days} days from {config.world.start}"
        ),
    )
