"""What an experiment may be judged by: one line a metric, users as the unit.

A metric is the sum, over one user's exposures in the experiment, of one outcome. Which of them are success metrics and
which guardrails, with what margins, is fixed in the [experiment] section before the start; the digest of that section
is written into experiment.json, so that a later change shows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from omnifeed.config import Config, ExperimentConfig
from omnifeed.errors import InputError


@dataclass(frozen=True, slots=True)
class Metric:
    """One per-user total."""

    name: str
    outcome: str  # name in the outcome log
    title: str  # for people
    lower_is_better: bool = False
    counts: bool = True  # each exposure counts 0 or 1; otherwise the outcome's value is added up
    scale: float = 1.0  # from the log's unit to the metric's


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("gmv_per_user", "gmv", "GMV per user", counts=False),  # capped at gmv_cap a user
        Metric("orders_per_user", "order", "Orders per user"),
        Metric("carts_per_user", "cart", "Cart additions per user"),
        Metric("clicks_per_user", "click", "Clicks per user"),
        Metric("long_views_per_user", "long_view", "Long views per user"),
        Metric("dwell_per_user", "dwell_ms", "Seconds watched per user", counts=False, scale=0.001),
        Metric("hides_per_user", "hide", "Hides per user", lower_is_better=True),
        Metric("reports_per_user", "report", "Reports per user", lower_is_better=True),
    )
}


def judged_metrics(config: ExperimentConfig) -> tuple[Metric, ...]:
    """The section's success metrics, then its guardrails.

    Raises:
        InputError: a name is unknown or appears twice, there is no success metric, a margin is missing or not in
            (0, 1), an error rate is not in (0, 0.5), the share is not in (0, 1), or the horizon is not whole weeks.
    """
    names = (*config.success, *config.guardrails)
    unknown = [name for name in names if name not in METRICS]
    problem = action = ""
    if unknown:
        problem, action = f"metric {unknown[0]!r} is unknown", f"Known are {', '.join(METRICS)}"
    elif len(set(names)) != len(names):
        problem, action = "a metric is named twice", "Name each once, as success metric or as guardrail"
    elif not config.success:
        problem, action = "there is no success metric", "Name at least one"
    elif len(config.guardrail_margins) != len(config.guardrails):
        problem = f"{len(config.guardrails)} guardrails have {len(config.guardrail_margins)} margins"
        action = "Give guardrail_margins one number for each guardrail"
    elif not all(0 < margin < 1 for margin in (*config.guardrail_margins, config.scenario_harm_margin)):
        problem, action = "a margin is not between 0 and 1", "Margins are relative: 0.1 is 10 %"
    elif not all(0 < rate < 0.5 for rate in (config.alpha, config.beta, config.srm_alpha)):
        problem, action = "alpha, beta or srm_alpha is not between 0 and 0.5", "Usual are 0.05, 0.1 and 0.001"
    elif not 0 < config.challenger_share < 1:
        problem, action = f"challenger_share is {config.challenger_share:g}", "Give a share between 0 and 1"
    elif config.days <= 0 or config.days % 7:
        problem, action = f"the horizon is {config.days} days", "Give whole weeks, so that every weekday counts alike"
    elif config.gmv_cap <= 0 or config.attribution_hours <= 0:
        problem, action = "gmv_cap or attribution_hours is not positive", "Give positive numbers"
    if problem:
        raise InputError(f"Section [experiment]: {problem}.", f"{action}.")
    return tuple(METRICS[name] for name in names)


def experiment_digest(config: Config) -> str:
    """SHA-256 of the canonical JSON of the [experiment] section: the pre-registration that a verdict is held to."""
    body = json.dumps(dataclasses.asdict(config.experiment), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()
