"""Entities, views, push sources and services, made from `omnifeed.features.spec` so that nothing is listed twice.

User views are pushed and read online; item views only feed the point-in-time join, because what the ranker reads of
items travels with the catalogue. TTL is never set: freshness is the writer's business, and stores disagree about it.
Every user view carries `<view>_as_of`, the microsecond of its row: online stores keep event times less exactly (SQLite
to the second), and the newest row must win.
"""

from __future__ import annotations

from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Array, FeastType, Float32, Int64, String

from omnifeed.features.online import DATED
from omnifeed.features.spec import Feature, Source, of

_TYPES = {"string": String, "int64": Int64, "float32": Float32}
_KEYS: dict[Source, tuple[str, ...]] = {
    "user_profile": ("user_id",),
    "user_daily": ("user_id",),
    "user_history": ("user_id",),
    "item_daily": ("item_id",),
    "item_monthly": ("item_id",),
    "item_scenario_daily": ("item_id", "scenario"),
    "scenario_daily": ("scenario",),
}


def _type(feature: Feature) -> FeastType:
    return Array(_TYPES[feature.dtype]) if feature.is_list else _TYPES[feature.dtype]


def definitions(home: Path) -> list[Entity | FeatureView | FeatureService | PushSource]:
    """Everything that is registered.

    Args:
        home: OMNIFEED_HOME; each view's offline file is `<home>/features/offline/<view>.parquet`.
    """
    entities = {
        key: Entity(name=key, join_keys=[key], value_type=ValueType.STRING)
        for key in ("user_id", "item_id", "scenario")
    }
    views: dict[Source, FeatureView] = {}
    pushes = []
    for source, keys in _KEYS.items():
        online = source.startswith("user_")
        file = FileSource(
            name=f"{source}_file",
            path=str(home / "features" / "offline" / f"{source}.parquet"),
            timestamp_field="event_timestamp",
        )
        if online:
            pushes.append(PushSource(name=f"{source}_push", batch_source=file))
        views[source] = FeatureView(
            name=source,
            entities=[entities[key] for key in keys],
            schema=[
                *(Field(name=key, dtype=String) for key in keys),
                *(Field(name=feature.name, dtype=_type(feature)) for feature in of(source)),
                *([Field(name=f"{source}_as_of", dtype=Int64)] if online else []),
            ],
            source=pushes[-1] if online else file,
            online=online,
        )
    recommend_user = FeatureService(
        name="recommend_user",
        features=[
            views[source][
                [*(feature.name for feature in of(source)), *([f"{source}_as_of"] if source in DATED else [])]
            ]
            for source in ("user_profile", "user_daily", "user_history")
        ],
    )
    training_rows = FeatureService(
        name="training_rows",
        features=[
            views[source][[feature.name for feature in of(source)]]
            for source in _KEYS
            if source.endswith(("_daily", "_monthly"))
        ],
    )
    return [*entities.values(), *pushes, *views.values(), recommend_user, training_rows]
