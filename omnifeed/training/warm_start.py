"""A run may begin with the weights of the release before it, so that a catalogue can grow without training anew.

Ids are hashed: items and users that came since have rows, shared with others, and content beside them. Scenarios are
matched by name; a new one begins as the unknown scenario. Nothing else may differ, or the weights would mean something
else.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.release import load_release
from omnifeed.features.spec import digest
from omnifeed.home import Home
from omnifeed.model.network import Network, load_network

#: Tensors with a row a scenario, the unknown one first.
SCENARIO_ROWS = (
    "user_encoder.event_scenarios.weight",
    "user_encoder.scenarios.weight",
    "user_encoder.trend_weight",
    "ranker.scenarios.weight",
    "ranker.scenario_bias.weight",
    "ranker.calibration_scale",
    "ranker.calibration_bias",
)
#: Settings of the model that shape how it learns and not what its weights mean.
FREE = {"dropout", "expert_dropout", "user_dropout", "item_dropout", "init_std", "temperature", "tasks"}
_COLD = "or train from the beginning with training.warm_start = false."


def former_release(home: Home, config: Config) -> Path | None:
    """The champion's folder, checked byte by byte; None where training begins anew or the champion is no network.

    Raises:
        IntegrityError: the champion's bundle is not what was exported.
    """
    number = Ledger(home).champion() if config.training.warm_start else None
    folder = home.releases / (number or "")
    return folder if number is not None and load_release(folder).kind == "network" else None


def begin_with(network: Network, former: Path) -> None:
    """Replace the weights of a new network by a former one's.

    Args:
        former: folder of a release, or that training wrote.

    Raises:
        InputError: the former network was made with other features, sizes or tasks, or knows a scenario that this one
            does not.
        IntegrityError: it cannot be read.
    """
    old = load_network(former)
    if json.loads((former / "model.json").read_text(encoding="utf-8")).get("features") != digest():
        raise InputError(
            f"The former release in {former} read other features than this version computes.",
            "Train from the beginning with training.warm_start = false.",
        )
    for name, (before, now) in _differences(old, network).items():
        raise InputError(
            f"The former release in {former} was made with {name} = {before}, this run has {now}.",
            f"Set {name} as it was, {_COLD}",
        )
    gone = [name for name in old.spec.scenarios if name not in network.spec.scenarios]
    if gone:
        raise InputError(
            f"The vocabulary of scenarios shrank: the former release in {former} knows {gone[0]!r}.",
            f"Keep it in data.scenarios, even without rows, {_COLD}",
        )
    weights = old.state_dict()
    rows = [0, *(old.spec.scenario_id(name) for name in network.spec.scenarios)]
    network.load_state_dict(weights | {name: weights[name][rows] for name in SCENARIO_ROWS})


def _differences(old: Network, new: Network) -> dict[str, tuple[object, object]]:
    """Settings that must be alike and are not: by name, the former value and this one."""

    def settings(network: Network) -> dict[str, object]:
        encode = {f"features.{name}": value for name, value in asdict(network.spec).items() if name != "scenarios"}
        model = {f"model.{name}": value for name, value in asdict(network.config).items() if name not in FREE}
        return {**encode, **model, "the tasks that have labels": ", ".join(network.tasks)}

    before, now = settings(old), settings(new)
    return {name: (before[name], now[name]) for name in now if before[name] != now[name]}
