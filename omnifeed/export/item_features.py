"""The daily aggregates of a catalogue's items, each number held once.

A candidate's features are the item's counts, which every scenario shares, its rates and its counts within the scenario,
and the scenario's own rates. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from omnifeed.errors import InputError
from omnifeed.export.encode import Columns, Floats, Ints, dense
from omnifeed.export.rows import Stack
from omnifeed.features.spec import ITEM_DENSE

#: Of ITEM_DENSE: the item's in every scenario, its within one (a rate of the item alone is there, too, since an item of
#: which nothing is known reads its scenario's), and the scenario's.
SHARED = tuple(one for one in ITEM_DENSE if one.source in ("item_daily", "item_monthly") and not one.fallback)
OWN = tuple(one for one in ITEM_DENSE if one.source == "scenario_daily")
WITHIN = tuple(one for one in ITEM_DENSE if one not in SHARED and one not in OWN)

_PARTS = tuple([ITEM_DENSE.index(one) for one in part] for part in (SHARED, WITHIN, OWN))
_SHARED, _WITHIN, _OWN = ({one.name: place for place, one in enumerate(part)} for part in (SHARED, WITHIN, OWN))
_OF_SCENARIO = [place for place, one in enumerate(WITHIN) if one.source == "item_scenario_daily"]
TRENDING, VIEWS_7D, VIEWS = _WITHIN["item_scenario_trending"], _SHARED["item_views_7d"], _SHARED["item_views_28d"]


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """Of N items: float32 [N, SHARED], and by scenario [N, WITHIN] and [OWN]; all as `encode.dense` stacks them."""

    shared: Stack
    within: Mapping[str, Stack]
    own: Mapping[str, Floats]

    @staticmethod
    def of(columns: Mapping[str, Columns], count: int) -> ItemFeatures:
        """From columns of ITEM_DENSE by scenario, aligned with `count` items; absent or null values take defaults.

        Raises:
            InputError: a column has another length, a count of the item differs between scenarios, or a rate of the
                scenario between items.
        """
        for scenario, named in columns.items():
            for name, values in named.items():
                if len(values) != count:
                    raise InputError(
                        f"Feature {name!r} of scenario {scenario!r} has {len(values)} rows for {count} items.",
                        "Align the features with the items, row by row.",
                    )
        shared = {scenario: dense(named, SHARED, count) for scenario, named in columns.items()}
        own = {scenario: dense(named, OWN, count) for scenario, named in columns.items()}
        first = next(iter(shared.values()), dense({}, SHARED, count))
        for scenario in columns:
            _same(shared[scenario], first, [one.name for one in SHARED], f"differs between {scenario!r} and another")
            _same(own[scenario], own[scenario][:1], [one.name for one in OWN], f"differs between items of {scenario!r}")
        return ItemFeatures(
            Stack(first),
            {scenario: Stack(dense(named, WITHIN, count)) for scenario, named in columns.items()},
            {scenario: rows[0] if count else dense({}, OWN, 1)[0] for scenario, rows in own.items()},
        )

    def rows(self, scenario: str, rows: Ints) -> Floats:
        """float32 [len(rows), ITEM_DENSE]; of an unknown scenario: the item's, and defaults."""
        result = np.empty((len(rows), len(ITEM_DENSE)), np.float32)
        known = scenario if scenario in self.within else next(iter(self.within), None)
        within = dense({}, WITHIN, len(rows)) if known is None else self.within[known].rows[rows]
        if known != scenario:
            within[:, _OF_SCENARIO] = dense({}, WITHIN, 1)[0, _OF_SCENARIO]
        own = self.own[scenario] if known == scenario else dense({}, OWN, 1)[0]
        for places, values in zip(_PARTS, (self.shared.rows[rows], within, own), strict=True):
            result[:, places] = values
        return result

    def trending(self, scenario: str) -> Floats:
        """float32 [N], log(1 + x); of an unknown scenario: the largest over the known ones."""
        if scenario in self.within:
            return self.within[scenario].rows[:, TRENDING]
        columns = [stack.rows[:, TRENDING] for stack in self.within.values()]
        largest: Floats = np.max(columns or [np.zeros(len(self.shared.rows), np.float32)], axis=0)
        return largest

    def extended(self, former: Ints) -> ItemFeatures:
        """With further rows: each as row `former` (from 1) has it; of 0, as an item of which nothing is known."""
        moved, old = former > 0, former[former > 0] - 1

        def more(stack: Stack, blank: Floats) -> Stack:
            added = np.repeat(blank[None], len(former), axis=0)
            added[moved] = stack.rows[old]
            return stack.extended(added)

        shared = more(self.shared, dense({}, SHARED, 1)[0])
        within = {scenario: more(stack, self._unknown(scenario)) for scenario, stack in self.within.items()}
        return replace(self, shared=shared, within=within)

    def taken(self, rows: Ints) -> ItemFeatures:
        """Of these rows, in this order."""
        within = {scenario: Stack(stack.rows[rows]) for scenario, stack in self.within.items()}
        return replace(self, shared=Stack(self.shared.rows[rows]), within=within)

    def _unknown(self, scenario: str) -> Floats:
        blank: Floats = dense({}, WITHIN, 1)[0]
        for place, feature in enumerate(WITHIN):
            if feature.fallback:
                blank[place] = self.own[scenario][_OWN[feature.fallback]]
        return blank


def _same(rows: Floats, as_these: Floats, names: Iterable[str], otherwise: str) -> None:
    for place, name in enumerate(names):
        if (rows[:, place] != as_these[:, place]).any():
            raise InputError(f"Feature {name!r} {otherwise}.", "Give it the same value wherever it is the same number.")
