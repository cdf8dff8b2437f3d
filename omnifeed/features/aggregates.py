"""Daily aggregates of users, items and item x scenario, as of midnights, in one expression for DuckDB and Spark.

The row of midnight D holds what was observed before D (strictly) and happened in the whole days of its window before
D. Events are summed once by entity, day of the event and first midnight that may know them; windows are then sums over
that small table, for all midnights together. Everything is summed as integers (money in millionths), so the result does
not depend on the order in which an engine adds. Events that were not seen are left out, and those of the arm "history"
(synthetic times, few outcomes) in all views but item_monthly. An entity has a row from the first midnight that knows an
event of it; before, and for entities without any event, the specification's fallbacks and defaults hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.engine import DuckDBEngine, Engine, EventSource
from omnifeed.export.encode import DAY_US
from omnifeed.features.spec import ITEM_DENSE, USER_DENSE, Feature, Source, of
from omnifeed.tables import TS

if TYPE_CHECKING:
    import ibis

PRIOR_WEIGHT = 20.0  # views
TRENDING_DECAY = 0.7  # a day
TRENDING_WEIGHTS = {"click": 1, "long_view": 5, "order": 20}
#: Name of the time column of every feature table: the midnight, or the moment, that the row is as of.
AS_OF = "event_timestamp"

_KEYS: dict[Source, tuple[str, ...]] = {
    "user_daily": ("user_id",),
    "item_daily": ("item_id",),
    "item_monthly": ("item_id",),
    "item_scenario_daily": ("item_id", "scenario"),
    "scenario_daily": ("scenario",),
}
_WINDOW_DAYS: dict[Source, int] = {
    "user_daily": 28,
    "item_daily": 7,
    "item_monthly": 28,
    "item_scenario_daily": 7,
    "scenario_daily": 7,
}
#: The views that the catalogue is made of, in the order of ITEM_DENSE.
ITEM_VIEWS: tuple[Source, ...] = ("item_daily", "item_monthly", "item_scenario_daily", "scenario_daily")
_LABELS = ("click", "long_view", "like", "order", "hide")
_MICRO = 1_000_000


def midnight(ts: int) -> int:
    """The UTC midnight at or before a time."""
    return ts - ts % DAY_US


def micros(ts: ibis.Column) -> ibis.Column:
    """A timestamp column as int64 UTC microseconds."""
    import ibis

    return ts.delta(ibis.timestamp("1970-01-01"), unit="microsecond")


def seen(events: ibis.Table) -> ibis.Table:
    """Events that reached the screen, or may have: `viewed` is not false."""
    return events.filter(events.viewed.fill_null(True))


def daily(events: ibis.Table, source: Source, midnights: Sequence[int]) -> ibis.Table:
    """The features of a view at each of these midnights.

    Args:
        events: columns of `omnifeed.tables.EVENTS`.
        source: user_daily, or one of ITEM_VIEWS.
        midnights: UTC microseconds, distinct.

    Returns:
        The keys, `as_of` int64 (one of the midnights), and the view's features as float32 in the specification's order.
    """
    import ibis

    keys, window, prefix = _KEYS[source], _WINDOW_DAYS[source], source.rpartition("_")[0]
    rated = seen(events)
    if source != "item_monthly":
        rated = rated.filter(lambda t: t.arm.fill_null("") != "history")
    timed = rated.mutate(ts_us=micros(rated.ts), observed_us=micros(rated.observed_ts))
    days = timed.mutate(
        day=timed.ts_us - timed.ts_us % DAY_US,
        known=ibis.greatest(timed.ts_us, timed.observed_us),
    )
    days = days.mutate(known=days.known - days.known % DAY_US + DAY_US)
    sums = days.group_by(*keys, "day", "known").agg(
        views=lambda t: t.count(),
        gmv=lambda t: (t.gmv.fill_null(0.0) * _MICRO).round().cast("int64").sum(),
        **{f"{label}_yes": lambda t, label=label: t[label].fill_null(False).cast("int64").sum() for label in _LABELS},
        **{f"{label}_known": lambda t, label=label: t[label].notnull().cast("int64").sum() for label in _LABELS},
    )
    clock = ibis.memtable(pa.table({"as_of": pa.array(sorted(midnights), pa.int64())}))
    spine = sums.group_by(*keys).agg(first=lambda t: t.known.min())
    spine = spine.join(clock, spine.first <= clock.as_of).select(*keys, "as_of")
    live = sums.join(clock, [sums.known <= clock.as_of, sums.day >= clock.as_of - window * DAY_US])
    live = live.mutate(age=(live.as_of - live.day) - DAY_US)
    score = sum((live[f"{label}_yes"] * weight for label, weight in TRENDING_WEIGHTS.items()), ibis.literal(0))
    live = live.mutate(score=score)
    windowed = live.group_by(*keys, "as_of").agg(
        views=lambda t: t.views.sum(),
        views_1d=lambda t: t.views.sum(where=t.age < DAY_US),
        views_7d=lambda t: t.views.sum(where=t.age < 7 * DAY_US),
        active=lambda t: t.day.nunique(),
        gmv=lambda t: t.gmv.sum(),
        **{
            name: lambda t, name=name: t[name].sum() for label in _LABELS for name in (f"{label}_yes", f"{label}_known")
        },
        **{f"score_{age}": lambda t, age=age: t.score.sum(where=t.age == age * DAY_US) for age in range(7)},
    )
    pool = ("as_of", "scenario") if source == "item_scenario_daily" else ("as_of",)
    totals = windowed.group_by(*pool).agg(
        **{
            f"all_{name}": lambda t, name=name: t[name].sum()
            for label in _LABELS
            for name in (f"{label}_yes", f"{label}_known")
        }
    )
    joined = spine.left_join(windowed, [*keys, "as_of"]).drop(*(f"{name}_right" for name in (*keys, "as_of")))
    joined = joined.left_join(totals, list(pool)).drop(*(f"{name}_right" for name in pool))

    def number(name: str) -> ibis.Column:
        return joined[name].fill_null(0).cast("float64")

    columns = {
        f"{prefix}_views_1d": number("views_1d"),
        f"{prefix}_views_7d": number("views_7d"),
        f"{prefix}_views_{window}d": number("views"),
        f"{prefix}_gmv_{window}d": number("gmv") / _MICRO,
        f"{prefix}_active_days_{window}d": number("active"),
        f"{prefix}_trending": sum((number(f"score_{k}") * TRENDING_DECAY**k for k in range(7)), ibis.literal(0.0)),
    }
    for label in _LABELS:
        prior = (number(f"all_{label}_yes") / number(f"all_{label}_known").nullif(0.0)).fill_null(0.0)
        columns[f"{prefix}_{label}s_{window}d"] = number(f"{label}_yes")
        columns[f"{prefix}_{label}_rate_{window}d"] = (number(f"{label}_yes") + prior * PRIOR_WEIGHT) / (
            number(f"{label}_known") + PRIOR_WEIGHT
        )
    return joined.select(*keys, "as_of", **{f.name: columns[f.name].cast("float32") for f in of(source)})


def daily_table(engine: Engine, events: ibis.Table, source: Source, midnights: Sequence[int]) -> pa.Table:
    """`daily`, computed and sorted by keys and time; `as_of` becomes `event_timestamp` (timestamp[us, UTC])."""
    table = engine.collect(daily(events, source, midnights))
    names = [*_KEYS[source], AS_OF, *(feature.name for feature in of(source))]
    table = table.append_column(AS_OF, table["as_of"].cast(pa.int64()).cast(TS)).select(names)
    return table.sort_by([(name, "ascending") for name in (*_KEYS[source], AS_OF)])


def with_defaults(table: pa.Table, features: Sequence[Feature]) -> pa.Table:
    """Replace the nulls of these feature columns by their fallback's values, then by the specification's defaults."""
    given = table
    for feature in features:
        index = table.column_names.index(feature.name)
        column = given[feature.name]
        if feature.fallback:
            column = pc.coalesce(column, given[feature.fallback])
        table = table.set_column(index, feature.name, pc.fill_null(column, pa.scalar(feature.default, pa.float32())))
    return table


def item_features(
    views: Mapping[Source, pa.Table], item_ids: Sequence[str], scenarios: Sequence[str], day: int
) -> pa.Table:
    """Every item in every scenario at one midnight, fallbacks and defaults where nothing is known.

    Args:
        views: ITEM_VIEWS, as `daily_table` makes them.

    Returns:
        item_id, scenario, and the ITEM_DENSE features as float32; ordered by item as given, then scenario as given.
    """
    at = pa.scalar(day, pa.int64()).cast(TS)
    spine = pa.table(
        {
            "item_id": pa.array([item for item in item_ids for _ in scenarios], pa.string()),
            "scenario": pa.array([name for _ in item_ids for name in scenarios], pa.string()),
            "row": pa.array(range(len(item_ids) * len(scenarios)), pa.int64()),
        }
    )
    for source in ITEM_VIEWS:
        table = views[source]
        spine = spine.join(table.filter(pc.equal(table[AS_OF], at)).drop_columns([AS_OF]), list(_KEYS[source]))
    names = ["item_id", "scenario", *(feature.name for feature in ITEM_DENSE)]
    return with_defaults(spine.sort_by("row").select(names).combine_chunks(), ITEM_DENSE)


def item_features_asof(
    events: Sequence[EventSource],
    day_ts: int,
    config: Config,
    engine: Engine | None = None,
    item_ids: Sequence[str] | None = None,
) -> pa.Table:
    """What the catalogue reads at a midnight, in every configured scenario.

    Args:
        events: folders of table sets, or tables of events; together they hold at least the last 28 days.
        day_ts: the midnight, UTC microseconds.
        item_ids: of the catalogue; by default the items with an event before the midnight.

    Returns:
        item_id, scenario, and the ITEM_DENSE features as float32.
    """
    engine = engine or DuckDBEngine()
    table = engine.events(events)
    views = {source: daily_table(engine, table, source, [midnight(day_ts)]) for source in ITEM_VIEWS}
    if item_ids is None:
        item_ids = views["item_monthly"]["item_id"].to_pylist()
    return item_features(views, item_ids, config.data.scenarios, midnight(day_ts))


def user_features_asof(events: Sequence[EventSource], day_ts: int, engine: Engine | None = None) -> pa.Table:
    """The rows of `user_daily` at a midnight, ready for `push_users`.

    Returns:
        user_id, event_timestamp (the midnight), and the USER_DENSE features as float32.
    """
    engine = engine or DuckDBEngine()
    names = ["user_id", AS_OF, *(feature.name for feature in USER_DENSE)]
    return daily_table(engine, engine.events(events), "user_daily", [midnight(day_ts)]).select(names)
