"""Experiment logs with a known truth, written the way the server and the traffic write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omnifeed.config import Config, ExperimentConfig
from omnifeed.experiment.assignment import Arm, Experiment, assign
from omnifeed.experiment.metrics import experiment_digest

DAY = 86_400_000_000
HOUR = 3_600_000_000
START = 1_772_409_600_000_000  # 2026-03-02 00:00 UTC
SCENARIOS = ("livestream", "search", "short_video")
CONFIG = Config(experiment=ExperimentConfig(days=7, guardrails=("hides_per_user",), guardrail_margins=(0.25,)))
HORIZON = START + 7 * DAY + 48 * HOUR  # the last attribution window of a 7-day test closes


def experiment(config: Config = CONFIG, share: float = 0.5, name: str = "release-1-vs-0") -> Experiment:
    return Experiment(
        name=name,
        salt=name,
        arms=(Arm("champion", "0", 1 - share), Arm("challenger", "1", share)),
        start_ts=START,
        end_ts=START + config.experiment.days * DAY,
        config_digest=experiment_digest(config),
    )


@dataclass
class Logs:
    """Lines to be written, open to spoiling by a test."""

    exposures: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        for name, lines in (("exposures", self.exposures), ("outcomes", self.outcomes)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / name / "1.jsonl").write_text(text)
        return folder


Rate = Mapping[str, float]


def traffic(
    test: Experiment,
    users: int = 2000,
    seed: int = 0,
    rates: Rate | None = None,
    challenger: Callable[[str, str], float] = lambda outcome, scenario: 1.0,
    keep: Callable[[str, str], bool] = lambda user, arm: True,
    days: int = 7,
    start: int = START,
    better: str = "challenger",
) -> Logs:
    """One to four answers of two items a user.

    Args:
        rates: probability of each outcome an item; order implies gmv.
        challenger: factor on an outcome's probability in the arm `better`, by outcome and scenario.
        keep: whether a user's exposures are logged, by user and arm.
    """
    chances = rates or {"click": 0.3, "order": 0.08, "hide": 0.05}
    random = np.random.default_rng(seed)
    logs = Logs()
    for number in range(users):
        user = f"u{seed}-{number}"
        given = assign(test, user)
        arm = given.name
        taste = random.gamma(4, 0.25)
        for visit in range(int(random.integers(1, 5))):
            ts = start + int(random.integers(0, days * DAY))
            scenario = SCENARIOS[int(random.integers(0, 3))]
            request = f"{user}-{visit}"
            for position in range(2):
                item = f"i{int(random.integers(0, 50))}-{position}"
                draws = random.random(len(chances))
                spend = round(float(random.gamma(3, 20)), 2)
                if not keep(user, arm):
                    continue
                logs.exposures.append(
                    {
                        "request_id": request,
                        "item_id": item,
                        "position": position,
                        "user_id": user,
                        "scenario": scenario,
                        "query": None,
                        "arm": arm,
                        "release": given.release,
                        "experiment": test.name,
                        "ts": ts,
                        "propensity": None,
                        "source": "dense",
                        "degraded": [],
                        "locale": "en",
                        "device": "phone",
                    }
                )
                for (name, chance), draw in zip(chances.items(), draws, strict=True):
                    factor = challenger(name, scenario) if arm == better else 1.0
                    if draw < chance * taste * factor:
                        logs.outcomes += _happened(request, item, name, ts, spend)
    return logs


def _happened(request: str, item: str, name: str, ts: int, spend: float) -> Iterable[dict[str, Any]]:
    later = ts + 30_000_000
    yield outcome(request, item, name, 1, later)
    if name == "order":
        yield outcome(request, item, "gmv", spend, later)


def outcome(
    request: str, item: str, name: str, value: float, ts: int, observed_ts: int | None = None
) -> dict[str, Any]:
    return {
        "request_id": request,
        "item_id": item,
        "name": name,
        "value": value,
        "ts": ts,
        "observed_ts": ts + 1_000_000 if observed_ts is None else observed_ts,
    }
