"""Looks before the horizon where the truth is known: harm on a ramp, and the users' split day by day.

python -OO benchmarks/early_looks.py [repetitions]      (default 1,000 splits and a quarter as many ramps; six minutes
on one core, without -OO far more: see gate_proof.py, from whose market the ramp's users are drawn)
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.stats
from gate_proof import ARMS, DAY, LOOKS, SECTION, WORLD, Population, population, rate
from record import row, write_result

from omnifeed.config import Config, ExperimentConfig
from omnifeed.experiment import trust
from omnifeed.experiment.assignment import Arm, Experiment, Stage
from omnifeed.experiment.decision import Verdict
from omnifeed.experiment.evidence import ALL, ArmNumbers, Evidence, LogCounts, UserGroup
from omnifeed.experiment.metrics import experiment_digest
from omnifeed.experiment.verdict import judge
from omnifeed.tables import write_tables
from omnifeed.world.market import World


def ramp_harm(people: Population, config: Config, repetitions: int) -> list[dict[str, object]]:
    """A ramp of 1, 5 and 25 %, a day each, before a week at 50 %: without a difference, and with a planted harm.

    Each stage is judged once it has ended; the test itself after 2, 4 and 6 days.
    """
    config = dataclasses.replace(config, experiment=dataclasses.replace(config.experiment, ramp=(0.01, 0.05, 0.25)))
    shares = (*config.experiment.ramp, 0.5)
    stages = tuple(Stage(number * DAY, share) for number, share in enumerate(shares))
    arms = tuple(Arm(name, name, 0.5) for name in ARMS)
    test = Experiment("proof", "proof", arms, 0, 10 * DAY, experiment_digest(config), stages)
    looks = [(stage.start_ts, 0) for stage in stages[:-1]] + [(stages[-1].start_ts, day - 1) for day in LOOKS]
    size = people.moments.shape[2]

    def stopped_at(seed: int, users: int, factors: Mapping[str, float]) -> float | None:
        """The share of the stage in which the ramp was ended for harm."""
        random = np.random.default_rng(seed)
        planted = np.array([factors.get(name, 1.0) for name in people.names])
        counts: list[np.ndarray] = []
        for number, (at, day) in enumerate(looks):
            if number < len(shares):  # another day's users, another split
                split = random.binomial(users, shares[number])
                counts = [random.multinomial(each, np.full(size, 1 / size)) for each in (users - split, split)]
            numbers = [
                people.arm(counts[side], day, scope, name, planted if side else np.ones(len(planted)))
                for scope in range(len(people.scopes))
                for side, name in enumerate(ARMS)
                if counts[side] @ people.moments[day, scope, :, 0] > 1
            ]
            now = at + (day + 1) * DAY
            evidence = Evidence(LogCounts(exposures_used=1), tuple(numbers))
            if judge(test, config, now, evidence, at).verdict is Verdict.REJECT:
                return shares[min(number, len(shares) - 1)]
        return None

    rows = []
    for users in (2_000, 20_000):
        found = [stopped_at(seed, users, {}) for seed in range(repetitions)]
        hits = sum(each is not None for each in found)
        label = f"A/A, ramp 1, 5, 25, 50 %, {users:,} users: stopped for harm"
        rows.append(rate(label, hits, repetitions, bound=config.experiment.alpha))
    harm = {name: 0.5 for name in people.names if name != "hides_per_user"}
    found = [stopped_at(seed, 20_000, harm) for seed in range(repetitions)]
    for share in shares:
        label = f"all but hides -50 %, 20,000 users: stopped by the end of the {share:.0%} stage"
        rows.append(rate(label, sum(each is not None and each <= share for each in found), repetitions))
    return rows


def sample_ratios(section: ExperimentConfig, repetitions: int) -> list[dict[str, object]]:
    """The users' split over 14 daily looks: three scenarios, two devices, days of first exposure, and the whole."""
    days = 14
    kinds = {"scenario": (0.5, 0.3, 0.2), "device": (0.7, 0.3)}

    def looked(seed: int, users: int, planned: float, true: float) -> tuple[int | None, bool, bool]:
        """The day at whose end the sequential test calls a mismatch, what the ordinary one says at the horizon, and
        whether the ordinary one would have rung at any of the daily looks.
        """
        random = np.random.default_rng(seed)
        new = random.multinomial(users, np.full(days, 1 / days))
        champion = np.array([random.binomial(each, true) for each in new])
        whole = {arm: counts.cumsum() for arm, counts in zip(ARMS, (champion, new - champion), strict=True)}
        early = None
        for day in range(days):
            numbers, groups = [], []
            for arm in ARMS:
                total = int(whole[arm][day])
                numbers.append(_users(ALL, arm, total))
                numbers += [_users(f"s{n}", arm, round(total * part)) for n, part in enumerate(kinds["scenario"])]
                groups += [UserGroup("device", f"d{n}", arm, round(total * p)) for n, p in enumerate(kinds["device"])]
                came = (champion, new - champion)[ARMS.index(arm)]
                groups += [UserGroup("day", str(n), arm, int(came[n])) for n in range(day + 1)]
            evidence = Evidence(LogCounts(), tuple(numbers), groups=tuple(groups))
            if early is None and any(
                split.mismatched for split in trust.splits(evidence, planned, section, trust.Looks(days, 1))
            ):
                early = day + 1
        closed = any(split.mismatched for split in trust.splits(evidence, planned, section, None))
        total = whole[ARMS[0]] + whole[ARMS[1]]
        squared = (whole[ARMS[0]] - total * planned) ** 2 / (total * planned * (1 - planned))
        return early, closed, bool((scipy.stats.chi2.sf(squared, 1) <= section.srm_alpha).any())

    rows = []
    for users, planned in ((5_000, 0.5), (100_000, 0.5), (100_000, 0.95)):
        found = [looked(seed, users, planned, planned) for seed in range(repetitions)]
        label = f"A/A, {users:,} users, {planned:.0%} planned, daily looks:"
        called = sum(early is not None or closed for early, closed, _ in found)
        rows.append(rate(f"{label} INVALID", called, repetitions, bound=8 * section.srm_alpha))
        ordinary = sum(rung for *_, rung in found)
        rows.append(rate(f"{label} INVALID had each look been a chi-square test of the whole", ordinary, repetitions))
    for users, true in ((20_000, 0.51), (100_000, 0.51), (1_000_000, 0.505), (1_000_000, 0.5 / 0.995)):
        found = [looked(seed, users, 0.5, true) for seed in range(repetitions // 2)]
        label = f"{users:,} users, {true:.2%} instead of 50 %:"
        days_to = [early for early, *_ in found if early is not None]
        called = sum(early is not None or closed for early, closed, _ in found)
        rows.append(rate(f"{label} INVALID", called, len(found)))
        rows.append(rate(f"{label} INVALID before the horizon", len(days_to), len(found)))
        if days_to:
            rows.append(row(f"{label} median day of those", float(np.median(days_to))))
            print(f"  {rows[-1]['metric']:<58}{rows[-1]['value']:>8}")
    return rows


def _users(scope: str, arm: str, users: int) -> ArmNumbers:
    return ArmNumbers(scope, arm, users, {}, {}, {}, {}, {})


def main(repetitions: int) -> None:
    world = World(WORLD)
    with tempfile.TemporaryDirectory() as scratch:
        write_tables(world.tables(), Path(scratch))
        people = population(Path(scratch) / "events", world.day_start(0), SECTION)
    rows = ramp_harm(people, Config(world=WORLD, experiment=SECTION), repetitions // 4)
    rows += sample_ratios(SECTION, repetitions)
    write_result(
        "early_looks",
        "Looks before the horizon where the truth is known: shares of repetitions",
        rows,
        data="ramps: users of the simulated market's log of 14 days, 4,000 users; splits: users drawn by day and arm",
        seeds=[WORLD.seed],
        notes=[
            f"Ramps: alpha {SECTION.alpha} is shared by the stages; success {', '.join(SECTION.success)}; guardrails "
            f"{', '.join(SECTION.guardrails)}. Each stage is judged when it has ended, the test after 2, 4 and 6 days.",
            f"Splits: the looks before the horizon share srm_alpha {SECTION.srm_alpha}, and the ordinary test at the "
            "horizon has its own, so that the bound is twice srm_alpha for each of the four kinds of group. Scenarios "
            "and devices are cut in fixed shares, so they add less than they could.",
            "Intervals are exact binomial ones at 95 %.",
        ],
        libraries=("duckdb", "tea-tasting", "numpy"),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1_000)
