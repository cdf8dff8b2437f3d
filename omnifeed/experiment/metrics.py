"""What an experiment may be judged by: one line a metric, users as the unit.

A total is the sum, over one user's exposures in the experiment, of one outcome; its mean over users is a metric. A
ratio divides the sum of one total over all users by that of another (clicks per view), and is tested by the delta
method with users still the unit. Name, direction and unit stand here; role (success, guardrail with its margin,
quality), attribution window and outlier rule (caps, who counts as a bot) stand in the [experiment] section, fixed
before the start; the digest of that section is written into experiment.json, so that a later change shows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from omnifeed.config import Config, ExperimentConfig
from omnifeed.errors import InputError

#: Totals that are read from the exposures themselves rather than from an outcome of that name.
SERVED = "served"  # each item of an answer
FIRST_SHOWN = "first_shown"  # an item that this user had not been given in this scenario since the start
LAST_WEEK = "last_week"  # 1 for a user who was there in the last seven days of the experiment
ANSWERED = "answered"  # an answer that says how long it took
WAITED = "waited"  # how long that was
AUTHORED = "authored"  # an item whose creator is known to be large or small
OF_TAIL = "of_tail"  # of those: an item of a smaller creator
DERIVED = (SERVED, FIRST_SHOWN, LAST_WEEK, ANSWERED, WAITED, AUTHORED, OF_TAIL)
#: Those that past events do not tell: no plan is made of them, and no covariate.
ONLY_SERVED = (FIRST_SHOWN, LAST_WEEK, ANSWERED, WAITED, AUTHORED, OF_TAIL)


@dataclass(frozen=True, slots=True)
class Metric:
    """A per-user total, or a ratio of two of them."""

    name: str
    title: str  # for people
    outcome: str = ""  # of a total: its name in the outcome log, or one of DERIVED
    lower_is_better: bool = False
    counts: bool = True  # each exposure counts 0 or 1; otherwise the outcome's value is added up
    scale: float = 1.0  # from the log's unit to the metric's
    of: str = ""  # of a ratio: the total above the line
    per: str = ""  # of a ratio: the total below it


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("gmv_per_user", "GMV per user", "gmv", counts=False),  # capped at gmv_cap a user
        Metric("orders_per_user", "Orders per user", "order"),
        Metric("carts_per_user", "Cart additions per user", "cart"),
        Metric("clicks_per_user", "Clicks per user", "click"),
        Metric("likes_per_user", "Likes per user", "like"),
        Metric("long_views_per_user", "Long views per user", "long_view"),
        Metric("dwell_per_user", "Seconds watched per user", "dwell_ms", counts=False, scale=0.001),
        Metric("hides_per_user", "Hides per user", "hide", lower_is_better=True),
        Metric("reports_per_user", "Reports per user", "report", lower_is_better=True),
        Metric("served_per_user", "Items served per user", SERVED),
        Metric("views_per_user", "Items viewed per user", "viewed"),
        Metric("distinct_items_per_user", "Different items per user and scenario", FIRST_SHOWN),
        Metric("retention", "Users active in the last week", LAST_WEEK),
        Metric("answers_per_user", "Timed answers per user", ANSWERED),
        Metric("waiting_per_user", "Seconds waited per user", WAITED, lower_is_better=True, counts=False),
        Metric("authored_per_user", "Items with a known creator per user", AUTHORED),
        Metric("tail_items_per_user", "Items of smaller creators per user", OF_TAIL),
        Metric("click_rate", "Clicks per view", of="clicks_per_user", per="views_per_user"),
        Metric("long_view_rate", "Long views per view", of="long_views_per_user", per="views_per_user"),
        Metric("order_rate", "Orders per click", of="orders_per_user", per="clicks_per_user"),
        Metric("gmv_per_order", "GMV per order", of="gmv_per_user", per="orders_per_user"),
        Metric("hide_rate", "Hides per view", lower_is_better=True, of="hides_per_user", per="views_per_user"),
        Metric("report_rate", "Reports per view", lower_is_better=True, of="reports_per_user", per="views_per_user"),
        Metric("view_rate", "Views per item served", of="views_per_user", per="served_per_user"),
        Metric("click_share", "Clicks per item served", of="clicks_per_user", per="served_per_user"),
        Metric("latency", "Seconds per answer", lower_is_better=True, of="waiting_per_user", per="answers_per_user"),
        Metric("tail_share", "Smaller creators' share of items", of="tail_items_per_user", per="authored_per_user"),
        Metric("diversity", "Different items per item served", of="distinct_items_per_user", per="served_per_user"),
    )
}


def totals_of(metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
    """The per-user totals that these metrics are computed from, each once."""
    names = [name for metric in metrics for name in ((metric.of, metric.per) if metric.per else (metric.name,))]
    return tuple(METRICS[name] for name in dict.fromkeys(names))


def cap_of(total: Metric, config: ExperimentConfig) -> float | None:
    """The most that one user adds to a total; None where it is not capped."""
    if total.outcome == LAST_WEEK:
        return 1.0
    return config.gmv_cap if total.name == "gmv_per_user" else config.caps.get(total.name)


def judged_metrics(config: ExperimentConfig) -> tuple[Metric, ...]:
    """The section's success metrics, then its guardrails, then its quality metrics.

    Raises:
        InputError: a name is unknown or appears twice, there is no success metric, a margin is missing or not in
            (0, 1), an error rate is not in (0, 0.5), the share is not in (0, 1), the hold-back share
            not in [0, 0.5), the horizon is not whole weeks or too
            short for retention, or a bound or cap is not positive.
    """
    names = (*config.success, *config.guardrails, *config.quality)
    unknown = [name for name in names if name not in METRICS]
    uncapped = [name for name in config.caps if name not in METRICS or METRICS[name].per or name == "gmv_per_user"]
    problem = action = ""
    if unknown:
        problem, action = f"metric {unknown[0]!r} is unknown", f"Known are {', '.join(METRICS)}"
    elif len(set(names)) != len(names):
        problem, action = "a metric is named twice", "Name each once, as success metric, guardrail or quality metric"
    elif not config.success:
        problem, action = "there is no success metric", "Name at least one"
    elif len(config.guardrail_margins) != len(config.guardrails):
        problem = f"{len(config.guardrails)} guardrails have {len(config.guardrail_margins)} margins"
        action = "Give guardrail_margins one number for each guardrail"
    elif not all(0 < margin < 1 for margin in (*config.guardrail_margins, config.scenario_harm_margin)):
        problem, action = "a margin is not between 0 and 1", "Margins are relative: 0.1 is 10 %"
    elif config.min_effect <= 0:
        problem, action = f"min_effect is {config.min_effect:g}", "Give the smallest relative change worth finding"
    elif not all(0 < rate < 0.5 for rate in (config.alpha, config.beta, config.srm_alpha)):
        problem, action = "alpha, beta or srm_alpha is not between 0 and 0.5", "Usual are 0.05, 0.1 and 0.001"
    elif not 0 < config.challenger_share < 1:
        problem, action = f"challenger_share is {config.challenger_share:g}", "Give a share between 0 and 1"
    elif not 0 <= config.holdback < 0.5:
        problem, action = f"holdback is {config.holdback:g}", "Give a share below 0.5; usual are 0.01 to 0.05"
    elif list(config.ramp) != sorted({share for share in config.ramp if 0 < share < config.challenger_share}):
        problem = f"the ramp {config.ramp} does not rise to the challenger_share {config.challenger_share:g}"
        action = "Give shares above 0 in ascending order, all below it"
    elif config.ramp_hours <= 0:
        problem, action = f"ramp_hours is {config.ramp_hours}", "Give the hours of each share in ramp"
    elif config.days <= 0 or config.days % 7:
        problem, action = f"the horizon is {config.days} days", "Give whole weeks, so that every weekday counts alike"
    elif "retention" in names and config.days < 14:
        problem, action = "retention is judged after one week, when every user was there", "Give 14 days or more"
    elif config.gmv_cap <= 0 or config.attribution_hours <= 0:
        problem, action = "gmv_cap or attribution_hours is not positive", "Give positive numbers"
    elif uncapped:
        problem, action = f"caps names {uncapped[0]!r}", "Cap per-user totals; GMV has gmv_cap, ratios have none"
    elif not all(cap > 0 for cap in config.caps.values()):
        problem, action = "a cap is not positive", "Give the most that one user may add over the experiment"
    elif config.unit not in ("user", "row"):
        problem, action = f"the unit is {config.unit!r}", "Give user, or row for a log that knows no users"
    elif config.max_requests_per_day <= 0 or config.bot_views <= 0:
        problem, action = "max_requests_per_day or bot_views is not positive", "Give the bounds of who is a bot"
    elif not 0 < config.max_lost_share < 1:
        problem, action = f"max_lost_share is {config.max_lost_share:g}", "Give a share between 0 and 1"
    if problem:
        raise InputError(f"Section [experiment]: {problem}.", f"{action}.")
    return tuple(METRICS[name] for name in names)


def experiment_digest(config: Config) -> str:
    """SHA-256 of the canonical JSON of the [experiment] section: the pre-registration that a verdict is held to."""
    body = json.dumps(dataclasses.asdict(config.experiment), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()
