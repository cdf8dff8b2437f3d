"""What the shop showed before anyone trained a model: rumours of popularity, a hazy idea of taste, and exploration.

One request in four is a random order of its pool, so a model can learn what the policy never believed. Propensities are
not logged: the pool that each slate was drawn from is not recorded either.
"""

from __future__ import annotations

import numpy as np

from omnifeed.world.assortment import LIVESTREAM, PRODUCT, VIDEO, Items
from omnifeed.world.behaviour import KIND_GAP, LIVE, SEARCH, SHORT, Requests, preference, relevance
from omnifeed.world.keys import Floats, Ints
from omnifeed.world.laws import Law
from omnifeed.world.population import Population

_EXPLORE = 0.25
_LIVE_WINDOW = 64  # the most recently started livestreams that a pool can hold
_POPULAR = 1.2  # sharpness of popularity draws
_LEAF_STRIDE = 1 << 52  # above any time in microseconds
#: Candidates of each request: (livestreams, popular videos, random videos, popular products, random products,
#: products of the wanted category, videos of the wanted category).
_POOLS = {LIVE: (_LIVE_WINDOW, 6, 0, 4, 0, 0, 0), SHORT: (8, 24, 24, 4, 0, 0, 0), SEARCH: (6, 4, 0, 12, 8, 24, 6)}


class Shelf:
    """Items indexed for drawing: those of a kind that exist at a time, at random or by rumoured popularity."""

    def __init__(self, items: Items) -> None:
        self.items = items
        allowed = np.array([policy != "DROP" for policy in items.policy])
        live = np.flatnonzero((items.kind == LIVESTREAM) & allowed)
        self.live = live[np.argsort(items.live_from[live], kind="stable")]
        self.of_kind = {kind: np.flatnonzero((items.kind == kind) & allowed) for kind in (VIDEO, PRODUCT)}
        self.weight = {kind: np.cumsum(np.exp(_POPULAR * items.rumour[rows])) for kind, rows in self.of_kind.items()}
        self.by_leaf = {
            kind: rows[np.lexsort((items.created[rows], items.leaf[rows]))] for kind, rows in self.of_kind.items()
        }

    def started(self, ts: Ints, back: Ints) -> Ints:
        """The livestreams that started `back` places ago; [R, K]. -1 where there is none."""
        place = np.searchsorted(self.items.live_from[self.live], ts, side="right")[:, None] - 1 - back
        return np.asarray(np.where(place >= 0, self.live[np.maximum(place, 0)], -1), np.int64)

    def random(self, kind: int, ts: Ints, luck: Floats) -> Ints:
        """Uniform draws of a kind among what exists; [R, K]."""
        rows = self.of_kind[kind]
        exist = np.searchsorted(self.items.created[rows], ts, side="right")
        return np.asarray(rows[(luck * exist[:, None]).astype(np.int64)], np.int64)

    def popular(self, kind: int, ts: Ints, luck: Floats) -> Ints:
        """Draws of a kind among what exists, weighted by rumoured popularity; [R, K]."""
        rows, weight = self.of_kind[kind], self.weight[kind]
        exist = np.searchsorted(self.items.created[rows], ts, side="right")
        place = np.searchsorted(weight, luck * weight[exist - 1][:, None])
        return np.asarray(rows[np.minimum(place, exist[:, None] - 1)], np.int64)

    def of_leaf(self, kind: int, ts: Ints, leaf: Ints, luck: Floats) -> Ints:
        """Uniform draws of a kind and category among what exists; [R, K]. -1 where there is none."""
        rows = self.by_leaf[kind]
        order = self.items.leaf[rows] * _LEAF_STRIDE + self.items.created[rows]
        begin = np.searchsorted(order, leaf * _LEAF_STRIDE)
        exist = np.searchsorted(order, leaf * _LEAF_STRIDE + ts, side="right") - begin
        place = begin[:, None] + (luck * exist[:, None]).astype(np.int64)
        return np.where((exist > 0)[:, None], rows[np.minimum(place, len(rows) - 1)], -1)


def logged_slates(
    law: Law, people: Population, shelf: Shelf, requests: Requests, size: int, rng: np.random.Generator
) -> Ints:
    """The slate of each request, best first.

    Returns:
        int64 [R, size], rows of the shelf's items; -1 where fewer than `size` could be shown.
    """
    slates = np.full((len(requests.keys), size), -1, np.int64)
    for scenario in _POOLS:
        chosen = np.flatnonzero(requests.scenario == scenario)
        if len(chosen):
            slates[chosen] = _ranked(law, people, shelf, requests.take(chosen), scenario, size, rng)
    return slates


def _pool(shelf: Shelf, requests: Requests, scenario: int, rng: np.random.Generator) -> Ints:
    live, hot_videos, videos, hot_products, products, leaf_products, leaf_videos = _POOLS[scenario]
    count, ts = len(requests.keys), requests.ts
    back = np.arange(live)[None] if live == _LIVE_WINDOW else rng.integers(0, _LIVE_WINDOW // 2, (count, live))
    return np.concatenate(
        [
            shelf.started(ts, back),
            shelf.popular(VIDEO, ts, rng.random((count, hot_videos))),
            shelf.random(VIDEO, ts, rng.random((count, videos))),
            shelf.popular(PRODUCT, ts, rng.random((count, hot_products))),
            shelf.random(PRODUCT, ts, rng.random((count, products))),
            shelf.of_leaf(PRODUCT, ts, requests.leaf, rng.random((count, leaf_products))),
            shelf.of_leaf(VIDEO, ts, requests.leaf, rng.random((count, leaf_videos))),
        ],
        axis=1,
    )


def _ranked(
    law: Law, people: Population, shelf: Shelf, requests: Requests, scenario: int, size: int, rng: np.random.Generator
) -> Ints:
    items = shelf.items
    pool = np.sort(_pool(shelf, requests, scenario, rng), axis=1)
    rows = np.maximum(pool, 0)
    ts = np.broadcast_to(requests.ts[:, None], rows.shape)
    usable = (pool >= 0) & items.on_air(rows, ts)
    usable[:, 1:] &= pool[:, 1:] != pool[:, :-1]
    usable &= (items.kind[rows] != PRODUCT) | (items.stock(rows, ts) > 0)
    hazy = preference(law, people, items, requests, rows) + rng.normal(0.0, 2.0, rows.shape)
    score = 0.9 * items.rumour[rows] + 0.3 * hazy + 1.2 * KIND_GAP[scenario, items.kind[rows]]
    if scenario == SEARCH:
        score += 2.5 * relevance(requests, items, rows)
    explore = rng.random(len(rows)) < _EXPLORE
    noise = rng.gumbel(size=rows.shape)
    score = np.where(explore[:, None], noise + 0.6 * KIND_GAP[scenario, items.kind[rows]], score + 0.5 * noise)
    score = np.where(usable, score, -np.inf)
    best = np.argsort(-score, axis=1, kind="stable")[:, :size]
    shown = np.take_along_axis(np.where(usable, pool, -1), best, axis=1)
    if shown.shape[1] < size:
        shown = np.pad(shown, ((0, 0), (0, size - shown.shape[1])), constant_values=-1)
    return shown
