"""The design before the start: how many users, how long, and what could be found at all; and the pre-registration.

Means and variances come from the accepted events of the past, through the same tests that the verdict uses: a window of
whole weeks stands for the experiment, the time before it gives the covariates of CUPED. Where the lake is shorter than
twice the horizon the window is shorter too, and evidence is taken to accrue with time, as the confidence sequence does.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import tea_tasting as tt
from tea_tasting.aggr import Aggregates

from omnifeed.config import Config, ExperimentConfig
from omnifeed.errors import InputError
from omnifeed.experiment.decision import Role
from omnifeed.experiment.deploy import pending_plan
from omnifeed.experiment.estimate import aggregates, test_of
from omnifeed.experiment.evidence import ALL, ArmNumbers
from omnifeed.experiment.metrics import (
    FIRST_SHOWN,
    LAST_WEEK,
    ONLY_SERVED,
    SERVED,
    Metric,
    cap_of,
    experiment_digest,
    judged_metrics,
    totals_of,
)
from omnifeed.home import Home, write_json

DAY = 86_400_000_000  # microseconds
WEEK = 7
BEFORE_DAYS = 28
MOST_USERS = 1e12  # a search for a number of users that ends beyond it has found none


@dataclass(frozen=True, slots=True)
class PlannedMetric:
    """What the experiment could show of one metric in one scope."""

    metric: str
    title: str
    role: Role
    scenario: str | None
    mean: float  # a user over the window, or ratio of means
    deviation: float | None  # over users, before CUPED; None for a ratio, whose spread is that of two totals
    variance_left: float  # share of the variance that CUPED leaves
    effect: float  # relative: gain to be found, or margin to be kept
    alpha: float  # one-sided, after sharing among the metrics of the role
    users_needed: int | None  # in both arms, for power 1 - beta; None where no number suffices
    users_expected: int  # in both arms until the horizon, in windows' worth of evidence
    power: float | None  # at the horizon
    detectable: float | None  # smallest relative effect found with power 1 - beta at the horizon
    weeks: int | None  # whole weeks until users_needed have come


@dataclass(frozen=True, slots=True)
class Plan:
    """The pre-registration: what will be judged, by what rules, for how long, and what that can show."""

    created_ts: int  # UTC microseconds
    config_digest: str  # of the [experiment] section
    section: ExperimentConfig
    window_days: int
    before_days: int  # of the covariates; 0: none known
    users: int  # distinct, in the window
    traffic_share: float  # of those users whom the experiment will reach
    metrics: tuple[PlannedMetric, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)

    @property
    def weeks(self) -> int | None:
        """Whole weeks until every success metric and guardrail has its users; None where one never has."""
        needed = [each.weeks for each in self.metrics if each.role != "quality" and each.scenario is None]
        return None if None in needed else max(filter(None, needed), default=None)


def required_users(
    mean: float,
    variance: float,
    relative_effect: float,
    alpha: float,
    power: float,
    challenger_share: float = 0.5,
    covariate_correlation: float = 0.0,
) -> int:
    """Users in both arms together to show an effect with a one-sided test (normal approximation of the verdict's).

    Args:
        mean: of the per-user total over the horizon, from past data.
        variance: of the same, over users.
        relative_effect: smallest effect worth finding, as a fraction of the mean; negative where lower is better.
        alpha: one-sided error. With m success metrics under Holm, alpha / m is on the safe side.
        power: probability of showing the effect when it is there.
        challenger_share: share of the users in the challenger's arm.
        covariate_correlation: between the total and the one of the period before; CUPED leaves 1 - r^2 of the variance.
    """
    test = tt.Mean("metric", **_options(relative_effect, alpha, power, challenger_share))
    left = variance * (1 - covariate_correlation**2)
    data = Aggregates(count_=100, mean_={"metric": mean}, var_={"metric": left}, cov_={})
    (result,) = test.solve_power_from_aggregates(data, "n_obs")
    return int(result.n_obs)


def _options(effect: float, alpha: float, power: float, share: float) -> dict[str, Any]:
    alternative: Literal["greater", "less"] = "greater" if effect > 0 else "less"
    return {
        "alternative": alternative,
        "use_t": False,  # its search for a number starts at three users, where an uneven split has no t distribution
        "rel_effect_size": effect,
        "alpha": alpha,
        "power": power,
        "ratio": share / (1 - share),
    }


def make_plan(accepted: Path, config: Config, now: int, traffic_share: float = 1.0) -> Plan:
    """Compute the design from the lake's accepted events before `now`.

    Args:
        accepted: the accepted table set.
        config: the [experiment] section that the verdict will be held to.
        now: UTC microseconds.
        traffic_share: share of the log's users whom the experiment will reach.

    Raises:
        InputError: the section is not usable, there are fewer than two days of events, or the share is not in (0, 1].
    """
    section = config.experiment
    metrics = judged_metrics(section)
    if not 0 < traffic_share <= 1:
        raise InputError(f"The traffic share is {traffic_share:g}.", "Give a share above 0, at most 1.")
    past = _Past(accepted / "events", section, metrics, now)
    scopes = past.numbers()
    users = scopes[ALL].users
    planned = [_planned(metric, scopes[ALL], section, past.window, traffic_share) for metric in metrics]
    planned += [
        _planned(metrics[0], numbers, section, past.window, traffic_share, scenario=scope, scenarios=len(scopes) - 1)
        for scope, numbers in sorted(scopes.items())
        if scope
    ]
    return Plan(
        created_ts=now,
        config_digest=experiment_digest(config),
        section=section,
        window_days=past.window,
        before_days=past.before,
        users=users,
        traffic_share=traffic_share,
        metrics=tuple(planned),
    )


def log_end(accepted: Path) -> int:
    """The midnight (UTC microseconds) after the last accepted event.

    Raises:
        InputError: nothing was accepted yet.
    """
    days = sorted(path.name.removeprefix("day=") for path in (accepted / "events").glob("day=*"))
    if not days:
        raise InputError(f"{accepted} holds no events.", "Run the training pipeline once: it accepts the log.")
    return int(datetime.fromisoformat(f"{days[-1]}T00:00:00+00:00").timestamp()) * 1_000_000 + DAY


def plan_text(plan: Plan) -> str:
    """The plan as a table for a person."""
    section = plan.section
    power = 1 - section.beta
    lines = [
        f"{section.days} days, {section.challenger_share:.0%} of the users with the challenger, power {power:.0%}. "
        f"Planned from {plan.window_days} days of {plan.users:,} users and {plan.before_days} days before them.",
        "",
        f"{'metric':<44}{'role':<11}{'mean':>9}{'CUPED':>8}{'effect':>8}{'users needed':>14}{'expected':>10}"
        f"{'power':>7}{'smallest effect':>17}{'weeks':>7}",
    ]
    for each in plan.metrics:
        named = each.title + ("" if each.scenario is None else f", {each.scenario}")
        needed = "-" if each.users_needed is None else f"{each.users_needed:,}"
        lines.append(
            f"{named:<44}{each.role:<11}{each.mean:>9.4g}{each.variance_left - 1:>8.0%}{each.effect:>8.0%}{needed:>14}"
            f"{each.users_expected:>10,}{_share(each.power):>7}{_share(each.detectable, 1):>17}"
            f"{'-' if each.weeks is None else f'{each.weeks:,}':>7}"
        )
    weeks = plan.weeks
    lines.append("")
    if weeks is None:
        lines.append("One metric has no events in that time: nothing can be planned for it.")
    elif weeks * WEEK <= section.days:
        lines.append(f"The horizon suffices: {weeks} of {section.days // WEEK} weeks are needed.")
    else:
        lines.append(
            f"The horizon is too short for what is to be found: {weeks:,} weeks would be needed. Raise min_effect or "
            "the margins to the smallest effects shown, or bring more traffic."
        )
    return "\n".join(lines)


def _share(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}%}"


def register(home: Home, plan: Plan) -> Path:
    """Write the pre-registration that the next experiment is held to; returns its path."""
    path = pending_plan(home)
    write_json(path, plan.to_dict())
    return path


def _planned(
    metric: Metric,
    numbers: ArmNumbers,
    section: ExperimentConfig,
    window: int,
    traffic_share: float,
    scenario: str | None = None,
    scenarios: int = 0,
) -> PlannedMetric:
    margins = dict(zip(section.guardrails, section.guardrail_margins, strict=True))
    role: Role = "quality"
    size, alpha = section.min_effect, section.alpha / max(len(section.quality), 1)
    if scenario is not None:
        role, size = "success", section.scenario_harm_margin
        alpha = section.alpha / (len(section.guardrails) + scenarios)
    elif metric.name in section.success:
        role, alpha = "success", section.alpha / len(section.success)
    elif metric.name in margins:
        role, size, alpha = "guardrail", margins[metric.name], section.alpha
    data, share = aggregates(numbers, metric), section.challenger_share
    options = _options(size, alpha, 1 - section.beta, share)
    expected = int(numbers.users * traffic_share * section.days / window)
    test = test_of(metric, numbers, **options)
    plain = test_of(metric, dataclasses.replace(numbers, covariate_mean={}), **options)
    needed = _solved(test, data, "n_obs")
    without = _solved(plain, data, "n_obs")
    detectable = power = None
    if needed is not None and expected > 2:
        sized = test_of(metric, numbers, **{**options, "rel_effect_size": None, "n_obs": expected})
        detectable = _solved(sized, data, "rel_effect_size")
        power = _solved(test_of(metric, numbers, **{**options, "power": None, "n_obs": expected}), data, "power")
    per_week = numbers.users * traffic_share / window * WEEK
    total = numbers.mean[metric.of] if metric.per else numbers.mean[metric.name]
    below = numbers.mean[metric.per] if metric.per else 1.0
    return PlannedMetric(
        metric=metric.name,
        title=metric.title,
        role=role,
        scenario=scenario,
        mean=total / below if below else 0.0,
        deviation=None if metric.per else math.sqrt(numbers.variance[metric.name]),
        variance_left=needed / without if needed and without else 1.0,
        effect=size,
        alpha=alpha,
        users_needed=None if needed is None else math.ceil(needed),
        users_expected=expected,
        power=power,
        detectable=detectable,
        weeks=None if needed is None else math.ceil(needed / per_week),
    )


def _solved(
    test: tt.RatioOfMeans, data: Aggregates, parameter: Literal["n_obs", "rel_effect_size", "power"]
) -> float | None:
    """The parameter, None where the metric has no events or no spread, or no number suffices."""
    try:
        with np.errstate(all="ignore"):
            (result,) = test.solve_power_from_aggregates(data, parameter)
    except (ValueError, ZeroDivisionError, RuntimeError):
        return None
    value = float(getattr(result, parameter))
    return value if math.isfinite(value) and abs(value) < MOST_USERS else None


class _Past:
    """Per-user totals of a window of the lake, and of the time before it."""

    def __init__(self, events: Path, section: ExperimentConfig, metrics: tuple[Metric, ...], now: int) -> None:
        self.section, self.metrics, self.totals, self.now = section, metrics, totals_of(metrics), now
        days = sorted(path.name.removeprefix("day=") for path in events.glob("day=*") if any(path.glob("*.parquet")))
        if not days:
            raise InputError(f"{events} holds no events.", "Run the training pipeline once: it accepts the log.")
        self.files = str(events / "*" / "*.parquet").replace("'", "''")
        with duckdb.connect() as connection:
            (first,) = connection.execute(
                f"SELECT min(epoch_us(ts)) FROM read_parquet('{self.files}') WHERE epoch_us(ts) < {now}"
            ).fetchall()[0]
        length = 0 if first is None else math.ceil((now - int(first)) / DAY)
        if length < 2:
            raise InputError(f"{events} holds {length} days of events before now.", "A plan needs two days at least.")
        half = length // 2
        whole = half - half % WEEK if half >= WEEK else half
        self.window = min(section.days, whole)
        self.before = min(BEFORE_DAYS, length - self.window)

    def numbers(self) -> dict[str, ArmNumbers]:
        """Moments by scope: all traffic, and each scenario. Users of the window only."""
        start = self.now - self.window * DAY
        rows = f"FROM read_parquet('{self.files}') WHERE epoch_us(ts)"
        window = f"{rows} >= {start} AND epoch_us(ts) < {self.now}"
        before = f"{rows} >= {start - self.before * DAY} AND epoch_us(ts) < {start} AND epoch_us(observed_ts) < {start}"
        known = [total for total in self.totals if total.outcome not in ONLY_SERVED]
        found = {}
        with duckdb.connect() as connection:
            scenarios = [name for (name,) in connection.execute(f"SELECT DISTINCT scenario {window}").fetchall()]
            for scope in (ALL, *scenarios):
                within = f" AND scenario = '{scope.replace(chr(39), chr(39) * 2)}'" if scope else ""
                sums = ", ".join(f"{self._sum(total, start)} AS {total.name}" for total in self.totals)
                past = ", ".join(f"{self._sum(total, start)} AS before_{total.name}" for total in known)
                filled = "".join(f", coalesce(before_{total.name}, 0) AS before_{total.name}" for total in known)
                connection.execute(
                    "CREATE OR REPLACE TEMP TABLE users AS "
                    f"SELECT {', '.join(total.name for total in self.totals)}{filled} FROM "
                    f"(SELECT user_id, {sums} {window}{within} GROUP BY user_id) LEFT JOIN "
                    f"(SELECT user_id, {past} {before} GROUP BY user_id) USING (user_id)"
                )
                found[scope] = self._moments(connection, scope, [total.name for total in known])
        return found

    def _sum(self, total: Metric, start: int) -> str:
        if total.outcome == SERVED:
            text = "count(*) FILTER (served)"
        elif total.outcome == FIRST_SHOWN:
            text = "count(DISTINCT scenario || chr(0) || item_id)"
        elif total.outcome == LAST_WEEK:
            text = f"max((epoch_us(ts) >= {start + (self.window - WEEK) * DAY})::INT)"
        elif total.outcome in ONLY_SERVED:
            text = "0"
        elif total.counts:
            text = f'sum(coalesce("{total.outcome}", false)::INT)'
        else:
            text = f'{total.scale} * sum(coalesce("{total.outcome}", 0))'
        cap = cap_of(total, self.section)
        return f"({text})::DOUBLE" if cap is None else f"least({text}, {cap})::DOUBLE"

    def _moments(self, connection: duckdb.DuckDBPyConnection, scope: str, known: list[str]) -> ArmNumbers:
        names = [total.name for total in self.totals]
        known = known if self.before else []
        columns = [*names, *(f"before_{name}" for name in known)]
        pairs = [(left, right) for place, left in enumerate(columns) for right in columns[place:]]
        users, *values = connection.execute(
            f"SELECT count(*), {', '.join(f'avg({name})' for name in columns)}, "
            f"{', '.join(f'coalesce(covar_samp({left}, {right}), 0)' for left, right in pairs)} FROM users"
        ).fetchall()[0]
        mean = {name: float(value or 0) for name, value in zip(columns, values, strict=False)}
        covariance = {pair: float(value) for pair, value in zip(pairs, values[len(columns) :], strict=True)}
        own = {(name, f"before_{name}") for name in known}
        return ArmNumbers(
            scope=scope,
            arm="",
            users=int(users),
            mean={name: mean[name] for name in names},
            variance={name: covariance[name, name] for name in names},
            covariate_mean={name: mean[f"before_{name}"] for name in known},
            covariate_variance={name: covariance[f"before_{name}", f"before_{name}"] for name in known},
            covariance={name: covariance[name, f"before_{name}"] for name in known},
            cross={
                f"{left} {right}": value
                for (left, right), value in covariance.items()
                if left != right and (left, right) not in own
            },
        )
