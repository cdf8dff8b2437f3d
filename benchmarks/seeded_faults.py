"""Faults planted in a sound log: each is caught, or shown to change nothing that matters.

python benchmarks/seeded_faults.py

The sound log is of 3,000 users, 15 % of them held back, and its challenger sells no more than its champion: a fault
that goes unnoticed would show as an effect. Each row says what the verdict makes of the fault, and how far the effects
on orders and GMV are from those of the sound log, in standard errors.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from record import ROOT, row, write_result

from omnifeed.config import Config
from omnifeed.experiment.assignment import HELD, Experiment, Holdback, assign
from omnifeed.experiment.decision import Decision, Verdict
from omnifeed.experiment.estimate import effect
from omnifeed.experiment.evidence import ALL, CHALLENGER, CHAMPION
from omnifeed.experiment.metrics import METRICS, experiment_digest
from omnifeed.experiment.verdict import decide

sys.path.insert(0, str(ROOT / "tests" / "experiment"))
from experiment_logs import CONFIG as WITHOUT
from experiment_logs import DAY, HORIZON, HOUR, START, Logs, experiment, outcome, traffic

CONFIG = Config(experiment=dataclasses.replace(WITHOUT.experiment, holdback=0.15))
TEST = dataclasses.replace(
    experiment(), config_digest=experiment_digest(CONFIG), holdback=Holdback("held", 0.15, "0", START)
)
RATES = {"viewed": 0.8, "click": 0.3, "order": 0.08, "hide": 0.12}
SEED = 3  # the first whose sound log reads HOLD: of no difference, one log in ten or so reads REJECT by chance
SHOWN = ("orders_per_user", "gmv_per_user")
Fault = Callable[[Logs], Experiment | None]  # changes the log; another registration, if that is the fault


def bots(arms: tuple[str, ...]) -> Fault:
    def plant(logs: Logs) -> None:
        line, made = logs.exposures[0], 0
        for number in range(1_000):
            user = f"bot-{number}"
            arm = assign(TEST, user)
            if arm.name not in arms or made == 40:
                continue
            made += 1
            for visit in range(100):
                request = f"{user}-{visit}"
                who = {"user_id": user, "arm": arm.name, "release": arm.release, "request_id": request, "position": 0}
                logs.exposures.append({**line, **who})
                happened = ("viewed", "click", "order")
                logs.outcomes += [outcome(request, line["item_id"], name, 1, line["ts"] + 1) for name in happened]

    return plant


def late(hours: int) -> Fault:
    def plant(logs: Logs) -> None:
        mine = requests(logs, CHALLENGER)
        for line in logs.outcomes:
            line["observed_ts"] += hours * HOUR if line["request_id"] in mine else 0

    return plant


def shifted(hours: int, arms: tuple[str, ...]) -> Fault:
    def plant(logs: Logs) -> None:
        for line in logs.exposures:
            line["ts"] += hours * HOUR if line["arm"] in arms else 0

    return plant


def requests(logs: Logs, arm: str) -> set[str]:
    return {line["request_id"] for line in logs.exposures if line["arm"] == arm}


def exposures_twice(logs: Logs) -> None:
    mine = [line for line in logs.exposures if line["arm"] == CHALLENGER]
    logs.exposures += [{**line, "ts": line["ts"] + 7} for line in mine]
    logs.outcomes += [{**line, "observed_ts": line["observed_ts"] + 9} for line in logs.outcomes]


def next_day_twice(logs: Logs) -> None:
    mine = [line for line in logs.exposures if line["arm"] == CHALLENGER]
    logs.exposures += [{**line, "ts": line["ts"] + DAY} for line in mine if line["ts"] < START + 5 * DAY]


def other_salt(logs: Logs) -> Experiment:
    return dataclasses.replace(TEST, salt="another")


def whale(logs: Logs) -> None:
    bought = {line["request_id"] for line in logs.outcomes if line["name"] == "order"}
    line = next(each for each in logs.exposures if each["arm"] == CHALLENGER and each["request_id"] not in bought)
    logs.outcomes.append(outcome(line["request_id"], line["item_id"], "gmv", 1e8, line["ts"] + 1))


def orders_stop(logs: Logs) -> None:
    mine = requests(logs, CHALLENGER)
    logs.outcomes = [
        line
        for line in logs.outcomes
        if line["name"] != "order" or line["request_id"] not in mine or line["ts"] < START + 3 * DAY
    ]


def users_lost(logs: Logs) -> None:
    luck = random.Random(SEED)
    lost = {line["user_id"] for line in logs.exposures if line["arm"] == CHALLENGER and luck.random() < 0.05}
    logs.exposures = [line for line in logs.exposures if line["user_id"] not in lost]


def lines_lost(logs: Logs) -> None:
    luck = random.Random(SEED)
    logs.exposures = [line for line in logs.exposures if line["arm"] != CHALLENGER or luck.random() > 0.1]


def group_spoilt(logs: Logs) -> None:
    line = next(line for line in logs.exposures if line["arm"] == HELD)
    line.update(arm=CHALLENGER, release="1")


def torn(logs: Logs) -> None:
    logs.exposures.append({"request_id": "half a line"})


FAULTS: dict[str, Fault] = {
    "none": lambda logs: None,
    "bots: 40 in both arms, 100 clicks and orders each": bots((CHAMPION, CHALLENGER)),
    "bots: 40 in the challenger's arm": bots((CHALLENGER,)),
    "late: the challenger's outcomes known 3 hours later": late(3),
    "late: the challenger's outcomes known 20 hours later": late(20),
    "duplicates: the challenger's exposures and all outcomes twice": exposures_twice,
    "duplicates: the challenger's exposures again on the next day": next_day_twice,
    "salt: another than the log's": other_salt,
    "time zone: the challenger's exposures 8 hours ahead": shifted(8, (CHALLENGER,)),
    "time zone: the challenger's exposures 8 hours behind": shifted(-8, (CHALLENGER,)),
    "time zone: all exposures 8 hours ahead": shifted(8, (CHAMPION, CHALLENGER, HELD)),
    "whale: one purchase of 100 million in the challenger's arm": whale,
    "instruments: the challenger's arm ceases to log orders on day 4": orders_stop,
    "losses: one in twenty of the challenger's users, or so": users_lost,
    "losses: a tenth of the challenger's exposure lines": lines_lost,
    "hold-back: one held user was shown the challenger": group_spoilt,
    "torn: one line of the log was cut off": torn,
}


def judged(fault: Fault) -> Decision:
    logs = traffic(TEST, users=3_000, seed=SEED, rates=RATES)
    registered = fault(logs) or TEST
    with tempfile.TemporaryDirectory() as scratch:
        return decide(logs.write(Path(scratch)), registered, CONFIG, HORIZON)


def effects(decision: Decision) -> list[tuple[float, float]] | None:
    """Difference a user and its standard error of each shown metric; from the numbers, whatever the verdict."""
    champion, challenger = (decision.evidence.arm(ALL, name) for name in (CHAMPION, CHALLENGER))
    if champion is None or challenger is None:
        return None
    found = [effect(champion, challenger, METRICS[name], CONFIG.experiment.alpha) for name in SHOWN]
    return [(each.difference, each.standard_error) for each in found if each.standard_error is not None]


def main() -> None:
    sound = judged(FAULTS["none"])
    true = effects(sound)
    assert (sound.verdict, true and len(true)) == (Verdict.HOLD, len(SHOWN))
    rows = []
    for name, fault in FAULTS.items():
        decision = judged(fault)
        found, codes = effects(decision), ", ".join(sorted({reason.code.value for reason in decision.reasons}))
        moved = [None] * len(SHOWN)
        if found and true:
            moved = [(now - then) / error for (now, _), (then, error) in zip(found, true, strict=True)]
        alike = decision.verdict is sound.verdict and all(each is not None and abs(each) < 0.25 for each in moved)
        reads = "caught" if decision.verdict is Verdict.INVALID else "harmless" if alike else "MISSED"
        reads = "sound" if name == "none" else reads
        said = "".join("        " if each is None else f"{each:>+8.2f}" for each in moved)
        print(f"  {name:<64}{reads:<10}{decision.verdict.value:<9}{codes:<38}{said}")
        labels = {"fault": name, "reads": reads, "verdict": decision.verdict.value, "reasons": codes, "gmv": moved[1]}
        rows.append(row("orders and gmv moved, standard errors", moved[0], **labels))
    missed = [each["fault"] for each in rows if each["reads"] == "MISSED"]
    print("each is caught or harmless" if not missed else f"missed: {missed}")
    write_result(
        "seeded_faults",
        "Faults planted in a sound log: caught, or harmless",
        rows,
        data="a made log of 3,000 users, 15 % held back, no difference between the arms",
        seeds=[SEED],
        notes=[
            "Caught: the verdict is INVALID, with the reasons given. Harmless: the verdict and its reason are those of "
            "the sound log, and the effects on orders and GMV a user lie within a quarter of a standard error of its.",
            "The effects of a log that was caught are what would have been read, had the fault gone unnoticed.",
            "Of ten logs without a difference about one reads REJECT or PROMOTE by chance; the seed is the first (from "
            "2) whose sound log reads HOLD.",
        ],
        libraries=("duckdb", "tea-tasting"),
    )
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
