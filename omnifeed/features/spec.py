"""The one list of features: it makes the Feast schema, the model's dense inputs, and their order.

Standard library only. A count enters the model as log(1 + x), a rate as it is. A feature that is missing or null takes
its default. Aggregates are daily, as of 00:00 UTC: the row stamped with a midnight holds what was observed before it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

Source = Literal[
    "user_profile",
    "user_daily",
    "user_history",
    "item_daily",
    "item_monthly",
    "item_scenario_daily",
    "scenario_daily",
]


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of one feature view."""

    name: str
    dtype: Literal["string", "int64", "float32"]
    source: Source
    default: str | int | float | None
    is_list: bool = False
    transform: Literal["none", "log1p"] = "none"
    fallback: str = ""  # the feature whose value it takes where its own entity has no row; then the default


def _counts(source: Source, *names: str) -> tuple[Feature, ...]:
    return tuple(Feature(name, "float32", source, 0.0, transform="log1p") for name in names)


def _rates(source: Source, *names: str) -> tuple[Feature, ...]:
    return tuple(Feature(name, "float32", source, 0.0) for name in names)


def _item_rates(source: Source, *names: str) -> tuple[Feature, ...]:
    """Rates of items; an item of which nothing is known reads its scenario's rate of the last 7 days."""
    labels = [name.removeprefix("item_").removeprefix("scenario_").rpartition("_")[0] for name in names]
    return tuple(
        Feature(name, "float32", source, 0.0, fallback=f"scenario_{label}_7d")
        for name, label in zip(names, labels, strict=True)
    )


#: Views: events that were seen (viewed is not false). Rates are (outcomes + prior * weight) / (views + weight) with a
#: weight of 20 views, so an entity without views reads the prior: the rate over all rows of the window, for
#: item_scenario_daily over those of the scenario. item_monthly alone counts the arm "history" too: its times are only
#: roughly known, which a month forgives.
FEATURES: tuple[Feature, ...] = (
    Feature("locale", "string", "user_profile", ""),
    Feature("country", "string", "user_profile", ""),
    Feature("age_band", "string", "user_profile", ""),
    Feature("device", "string", "user_profile", ""),
    *_counts("user_daily", "user_views_7d", "user_views_28d", "user_clicks_28d", "user_long_views_28d"),
    *_counts("user_daily", "user_orders_28d", "user_gmv_28d", "user_active_days_28d"),
    *_rates("user_daily", "user_click_rate_28d", "user_long_view_rate_28d", "user_order_rate_28d"),
    Feature("history_item", "string", "user_history", None, is_list=True),
    Feature("history_action", "int64", "user_history", None, is_list=True),
    Feature("history_scenario", "string", "user_history", None, is_list=True),
    Feature("history_ts", "int64", "user_history", None, is_list=True),  # event time, UTC microseconds
    *_counts("item_daily", "item_views_1d", "item_views_7d", "item_clicks_7d", "item_long_views_7d"),
    *_counts("item_daily", "item_orders_7d", "item_gmv_7d"),
    *_item_rates("item_daily", "item_click_rate_7d", "item_long_view_rate_7d", "item_order_rate_7d"),
    *_item_rates("item_daily", "item_hide_rate_7d"),
    *_counts("item_monthly", "item_views_28d"),
    *_item_rates("item_monthly", "item_click_rate_28d", "item_long_view_rate_28d", "item_like_rate_28d"),
    *_counts("item_scenario_daily", "item_scenario_views_7d"),
    *_item_rates("item_scenario_daily", "item_scenario_click_rate_7d", "item_scenario_long_view_rate_7d"),
    *_item_rates("item_scenario_daily", "item_scenario_order_rate_7d"),
    #: Clicks + 5 long views + 20 orders of the last 7 days, each day worth 0.7 of the next: what release 0 sorts by.
    *_counts("item_scenario_daily", "item_scenario_trending"),
    *_rates("scenario_daily", "scenario_click_rate_7d", "scenario_long_view_rate_7d", "scenario_like_rate_7d"),
    *_rates("scenario_daily", "scenario_order_rate_7d", "scenario_hide_rate_7d"),
)

#: Computed for each request from the item, the query, the time and the user's history (`omnifeed.export.affinity`);
#: appended to the candidate's dense features.
AFFINITY_FEATURES = (
    *(
        f"{name}_{key}"
        for key in ("item", "author", "category")
        for name in ("seen_log", "click_lift", "long_view_lift", "recency")
    ),
    *(f"{name}_scenario" for name in ("seen_log", "click_lift", "long_view_lift")),
    *("seen_log", "click_rate", "long_view_rate", "long_view_lift_recent"),
)
#: What an item is, whatever the day; the item encoder reads it too.
ITEM_PLAIN_FEATURES = ("price_log", "price_known", "duration_log", "duration_known")
REQUEST_TIME_FEATURES = ("age_days_log", "is_live", "query_match", *ITEM_PLAIN_FEATURES, *AFFINITY_FEATURES)


def of(*sources: Source) -> tuple[Feature, ...]:
    """The features of these sources, in the order of the list."""
    return tuple(feature for feature in FEATURES if feature.source in sources)


#: Order of the columns of the model's `user_dense` and `candidate_dense` inputs.
USER_DENSE = of("user_daily")
ITEM_DENSE = of("item_daily", "item_monthly", "item_scenario_daily", "scenario_daily")


def digest() -> str:
    """SHA-256 of the specification; a release made under another one is refused."""
    body = {"features": [asdict(feature) for feature in FEATURES], "request_time": REQUEST_TIME_FEATURES}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
