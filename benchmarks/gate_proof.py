"""What the verdict does when the truth is known: error rates and power. Early looks: see early_looks.py;
planted faults: see seeded_faults.py.

python -OO benchmarks/gate_proof.py [repetitions]      (default 1,000; four minutes on one core, without -OO far more:
scipy writes the documentation of each distribution that it freezes)

Users' totals come from the simulated market's log (14 days: the first week is the period before, the second is the
experiment). Each repetition draws users of both arms from them with replacement, reduces them to the numbers that the
logs would give, and asks `judge`; the planted effect multiplies the challenger's totals.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import duckdb
import numpy as np
import scipy.stats
from record import row, write_result

from omnifeed.config import Config, ExperimentConfig, WorldConfig
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.experiment.decision import Decision, Verdict
from omnifeed.experiment.evidence import ALL, ArmNumbers, Evidence, LogCounts
from omnifeed.experiment.metrics import cap_of, experiment_digest, judged_metrics, totals_of
from omnifeed.experiment.plan import Plan, make_plan
from omnifeed.experiment.verdict import judge
from omnifeed.tables import write_tables
from omnifeed.world.market import World

DAY = 86_400_000_000
WORLD = WorldConfig(users=4_000, requests_per_user_day=0.5)
SECTION = ExperimentConfig(
    days=7,
    success=("clicks_per_user", "gmv_per_user"),
    guardrails=("hides_per_user", "long_views_per_user"),
    guardrail_margins=(0.25, 0.1),
    min_effect=0.05,
)
ARMS = ("champion", "challenger")
LOOKS = (2, 4, 6)  # days


@dataclasses.dataclass(frozen=True)
class Population:
    """Users of the log with the sums that an arm's numbers are made of."""

    names: tuple[str, ...]
    scopes: tuple[str, ...]
    moments: np.ndarray  # float64 [day, scope, user, 1 + 5 x totals]: present, then y, y^2, x, x^2, x y of each total

    def arm(self, counts: np.ndarray, day: int, scope: int, name: str, factors: np.ndarray) -> ArmNumbers:
        """The numbers of an arm that drew each user `counts` times, its totals multiplied by `factors`."""
        sums = counts @ self.moments[day, scope]
        users = sums[0]
        y, yy, x, xx, xy = sums[1:].reshape(-1, 5).T
        y, yy, xy = y * factors, yy * factors**2, xy * factors

        def spread(square: np.ndarray, left: np.ndarray, right: np.ndarray) -> dict[str, float]:
            return dict(zip(self.names, ((square - left * right / users) / (users - 1)).tolist(), strict=True))

        return ArmNumbers(
            scope=self.scopes[scope],
            arm=name,
            users=int(users),
            mean=dict(zip(self.names, (y / users).tolist(), strict=True)),
            variance=spread(yy, y, y),
            covariate_mean=dict(zip(self.names, (x / users).tolist(), strict=True)),
            covariate_variance=spread(xx, x, x),
            covariance=spread(xy, y, x),
        )


def population(events: Path, start: int, section: ExperimentConfig) -> Population:
    """Cumulative totals by day of the second week, and those of the first week, of every user of the second."""
    totals = totals_of(judged_metrics(section))
    with duckdb.connect() as connection:
        sums = []
        for total in totals:
            each = f'"{total.outcome}"::INT' if total.counts else f'{total.scale} * coalesce("{total.outcome}", 0)'
            sums.append(f"sum({each}) AS {total.name}")
        connection.execute(
            f"CREATE TABLE daily AS SELECT user_id, scenario, (epoch_us(ts) - {start}) // {DAY} AS day, "
            f"{', '.join(sums)} FROM read_parquet('{events}/*/*.parquet') GROUP BY ALL"
        )
        found = connection.execute("SELECT DISTINCT user_id FROM daily WHERE day >= 7 ORDER BY 1").fetchall()
        users = [user for (user,) in found]
        found = connection.execute("SELECT DISTINCT scenario FROM daily ORDER BY 1").fetchall()
        scopes = (ALL, *(name for (name,) in found))
        place, at = {user: number for number, user in enumerate(users)}, {name: n for n, name in enumerate(scopes)}
        raw = np.zeros((14, len(scopes), len(users), 1 + len(totals)))
        for user, scenario, day, *values in connection.execute("SELECT * FROM daily").fetchall():
            if user in place:
                for scope in (0, at[scenario]):
                    raw[int(day), scope, place[user]] += [1, *(float(value or 0) for value in values)]
    before, after = raw[:7].sum(axis=0), raw[7:].cumsum(axis=0)
    caps = np.array([cap_of(total, section) or np.inf for total in totals])
    moments = np.zeros((7, len(scopes), len(users), 1 + 5 * len(totals)))
    for scope in range(len(scopes)):
        x = np.minimum(before[0, :, 1:], caps)  # the covariate is that of all traffic, as the gate's
        for day in range(7):
            present = (after[day, scope, :, 0] > 0).astype(float)[:, None]
            y = np.minimum(after[day, scope, :, 1:], caps)
            found = np.stack([y, y * y, x, x * x, x * y], axis=2) * present[:, :, None]
            moments[day, scope] = np.concatenate([present, found.reshape(len(users), -1)], axis=1)
    return Population(tuple(total.name for total in totals), scopes, moments)


def drawn(
    people: Population, config: Config, seed: int, users: int, factors: Mapping[str, float], days: tuple[int, ...]
) -> list[Decision]:
    """One experiment, looked at after each of `days`; the last look of 7 is the horizon."""
    test = Experiment(
        "proof", "proof", tuple(Arm(name, name, 0.5) for name in ARMS), 0, 7 * DAY, experiment_digest(config)
    )
    random = np.random.default_rng(seed)
    size = people.moments.shape[2]
    split = random.binomial(users, 0.5)
    counts = [random.multinomial(each, np.full(size, 1 / size)) for each in (users - split, split)]
    planted = np.array([factors.get(name, 1.0) for name in people.names])
    found = []
    for day in days:
        numbers = tuple(
            people.arm(counts[side], day - 1, scope, name, planted if side else np.ones(len(planted)))
            for scope in range(len(people.scopes))
            for side, name in enumerate(ARMS)
        )
        now = day * DAY + (config.experiment.attribution_hours * 3_600_000_000 if day == 7 else 0)
        found.append(judge(test, config, now, Evidence(LogCounts(exposures_used=1), numbers)))
        if found[-1].final:
            break
    return found


def rate(metric: str, hits: int, of: int, **labels: object) -> dict[str, object]:
    """A share with its exact 95 % interval."""
    low, high = scipy.stats.binomtest(hits, of).proportion_ci()
    print(f"  {metric:<58}{hits / of:>8.2%}   {low:.2%} to {high:.2%}", flush=True)
    return row(metric, hits / of, low, high, repetitions=of, **labels)


def error_rates(people: Population, config: Config, plan: Plan, repetitions: int) -> list[dict[str, object]]:
    """A/A, a planted effect at the planned size, a planted breach."""
    needed = {each.metric: each.users_needed or 0 for each in plan.metrics if each.scenario is None}
    section = config.experiment
    users = max(needed["clicks_per_user"], *(needed[name] for name in section.guardrails))
    gain = {"clicks_per_user": 1 + section.min_effect}
    planned = needed["clicks_per_user"]

    def ended(size: int, factors: Mapping[str, float], first_seed: int, times: int = repetitions) -> list[Decision]:
        seeds = range(first_seed, first_seed + times)
        return [drawn(people, config, seed, size, factors, (7,))[0] for seed in seeds]

    def promoted(found: list[Decision]) -> int:
        return sum(decision.verdict is Verdict.PROMOTE for decision in found)

    # Ten times the planned users: guardrails all but always pass, so that success alone decides.
    often = 4 * repetitions
    found = ended(10 * users, {}, 0, often)
    rows = [rate(f"A/A, {10 * users:,} users: PROMOTE", promoted(found), often, bound=section.alpha)]
    found = ended(planned, gain, 10_000)
    shown = sum(
        each.outcome == "superior"
        for decision in found
        for each in decision.metrics
        if (each.name, each.scenario) == ("clicks_per_user", None)
    )
    effect = f"clicks {section.min_effect:+.0%}"
    label = f"{effect}, the {planned:,} users of the plan: shown"
    rows.append(rate(label, shown, repetitions, planned=1 - section.beta))
    if users != planned:
        found = ended(users, gain, 20_000)
    rows.append(rate(f"{effect}, {users:,} users, the guardrails' too: PROMOTE", promoted(found), repetitions))
    found = ended(users, {**gain, "hides_per_user": 1.5}, 30_000)
    rows.append(rate(f"{effect}, hides +50% (margin 25 %): PROMOTE", promoted(found), repetitions, bound=0.01))
    stopped = sum(
        drawn(people, config, seed, users, {}, LOOKS)[-1].verdict is Verdict.REJECT for seed in range(repetitions)
    )
    label = f"A/A, looks after {', '.join(map(str, LOOKS))} days: stopped for harm"
    rows.append(rate(label, stopped, repetitions, bound=section.alpha))
    return rows


def main(repetitions: int) -> None:
    begun = time.monotonic()
    world = World(WORLD)
    config = Config(world=WORLD, experiment=SECTION)
    with tempfile.TemporaryDirectory() as scratch:
        write_tables(world.tables(), Path(scratch) / "accepted")
        people = population(Path(scratch) / "accepted" / "events", world.day_start(0), SECTION)
        plan = make_plan(Path(scratch) / "accepted", config, world.day_start(14))
    print(f"{people.moments.shape[2]:,} users, {time.monotonic() - begun:.0f} s")
    rows = error_rates(people, config, plan, repetitions)
    write_result(
        "gate_proof",
        "The verdict where the truth is known: shares of repetitions",
        rows,
        data="the simulated market's log of 14 days, 4,000 users",
        seeds=[WORLD.seed],
        notes=[
            f"Success {', '.join(SECTION.success)}; guardrails {', '.join(SECTION.guardrails)} with margins "
            f"{SECTION.guardrail_margins}; alpha {SECTION.alpha}, power {1 - SECTION.beta}.",
            "Users are drawn with replacement from the log's, so the truth is a simulated market's, not a platform's.",
            "Intervals are exact binomial ones at 95 %.",
        ],
        libraries=("duckdb", "tea-tasting", "numpy"),
    )
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1_000)
