"""What people do with a slate: the one place where luck, taste and position become outcomes.

Everything is computed for R requests of K positions at once; answering one live request is R = 1, so a logged row and a
live answer obey the same law to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnifeed.world.assortment import LIVESTREAM, Items
from omnifeed.world.keys import Bools, Floats, Ints, Keys, mix, uniform_rows, uniforms
from omnifeed.world.laws import SCENARIOS, Law
from omnifeed.world.population import DAY_US, Population

LIVE, SHORT, SEARCH = range(len(SCENARIOS))
#: Log-odds of a click for each scenario (rows) and kind of item (livestream, video, product).
KIND_GAP = np.array([[0.0, -1.4, -1.6], [-0.9, 0.0, -1.6], [-0.4, -0.6, 0.0]])
OFF_AIR_GAP = -4.0
SCREEN = 3  # positions seen at a time, under single choice
SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US
LATEST_ORDER_US = 36 * HOUR_US


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """R requests as parallel arrays."""

    keys: Keys
    user: Ints  # rows of the population
    ts: Ints  # UTC microseconds
    scenario: Ints  # index in SCENARIOS
    leaf: Ints  # category that the query asks for, -1 if none
    words: Ints  # [R, MAX_WORDS] known words of the query, -1 where there are fewer

    def take(self, rows: Ints) -> Requests:
        """These rows, in this order."""
        return Requests(
            self.keys[rows], self.user[rows], self.ts[rows], self.scenario[rows], self.leaf[rows], self.words[rows]
        )


@dataclass(frozen=True, slots=True, eq=False)
class Chances:
    """Probabilities of each item, [R, K], were it the only one seen."""

    click_odds: Floats  # log-odds
    long_view: Floats  # given a click
    cart: Floats  # given a click
    order: Floats  # given a cart
    hide: Floats  # given no click
    price: Floats  # of an order; 0 where nothing is sold


@dataclass(frozen=True, slots=True, eq=False)
class Reactions:
    """What happened, [R, K]: outcomes by name, and the rest of an impression."""

    viewed: Bools
    outcomes: dict[str, Bools]
    dwell_ms: Ints
    gmv: Floats
    delay_us: Ints  # until the last outcome was known


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What a slate earns on average over the luck of its visit, position by position, [R, K]."""

    views: Floats
    clicks: Floats
    orders: Floats
    gmv: Floats


def sigmoid(odds: Floats) -> Floats:
    """Probability of log-odds."""
    return 1.0 / (1.0 + np.exp(-odds))


def relevance(requests: Requests, items: Items, rows: Ints) -> Floats:
    """How well items answer the typed query, in [0, 1]; 0 without a query. [R, K]."""
    wanted = requests.leaf[:, None]
    top_of_wanted = np.where(wanted >= 0, items_top(items, requests.leaf)[:, None], -2)
    same = np.where(items.leaf[rows] == wanted, 1.0, np.where(items.top[rows] == top_of_wanted, 0.3, 0.0))
    known = requests.words >= 0
    hits = ((items.words[rows][:, :, :, None] == requests.words[:, None, None, :]) & known[:, None, None, :]).any(2)
    share = hits.sum(2) / np.maximum(known.sum(1), 1)[:, None]
    return np.asarray(0.55 * same + 0.45 * share, np.float64)


def items_top(items: Items, leaves: Ints) -> Ints:
    """The top category of each leaf."""
    return items.top_of_leaf[np.maximum(leaves, 0)]


def preference(law: Law, people: Population, items: Items, requests: Requests, rows: Ints) -> Floats:
    """How much each user likes each item now, in log-odds, before scenario, query and slate. [R, K]."""
    user = requests.user[:, None]
    intent = people.intent(requests.user, requests.ts)
    after = np.where(
        items.leaf[rows] == intent[:, None],
        1.0,
        np.where(items.top[rows] == items_top(items, intent)[:, None], 0.4, 0.0),
    )
    style = np.einsum("rkd,rd->rk", items.style[rows], people.style[requests.user])
    age_days = np.maximum(requests.ts[:, None] - items.created[rows], 0) / DAY_US
    return np.asarray(
        law.taste_gain * people.taste[user, items.leaf[rows]]
        + law.style_gain * style
        + law.intent_gain * after
        - law.language_gap * (items.language[rows] != people.language[user])
        + items.quality[rows]
        - 0.01 * np.minimum(age_days, 60.0),
        np.float64,
    )


def chances(law: Law, people: Population, items: Items, requests: Requests, rows: Ints) -> Chances:
    """The probabilities behind every outcome. [R, K]."""
    scenario, user, ts = requests.scenario[:, None], requests.user[:, None], requests.ts[:, None]
    liking = preference(law, people, items, requests, rows)
    searching = (np.equal(requests.scenario, SEARCH) & (requests.words >= 0).any(1))[:, None]
    match = np.where(searching, relevance(requests, items, rows) - 0.25, 0.0)
    fit = items.price_ratio[rows] - people.budget[user]
    dear = people.price_slope[user] * fit + 0.4 * items.price_level[rows]
    mood = 0.6 * (uniforms(mix(people.keys[requests.user], (requests.ts // DAY_US).astype(np.uint64)), 12) - 0.5)
    on_air = items.on_air(rows, np.broadcast_to(ts, rows.shape))
    sellable = items.sellable(rows, np.broadcast_to(ts, rows.shape)) & on_air
    odds = (
        np.array(law.click_base)[scenario]
        + 0.8 * liking
        + law.relevance_gain * match
        + KIND_GAP[scenario, items.kind[rows]]
        + np.where(on_air, 0.0, OFF_AIR_GAP)
        - 0.15 * dear
        + mood[:, None]
    )
    cart = sigmoid(np.array(law.cart_base)[scenario] + 0.55 * liking + 0.6 * match - dear)
    price = items.price(rows, np.broadcast_to(ts, rows.shape))
    return Chances(
        click_odds=odds,
        long_view=sigmoid(law.long_base + 0.5 * liking + np.where(on_air, 0.0, OFF_AIR_GAP)),
        cart=np.where(sellable, cart, 0.0),
        order=sigmoid(law.order_base + 0.3 * liking - 0.5 * dear + mood[:, None]),
        hide=sigmoid(law.hide_base - 0.45 * liking),
        price=np.where(sellable, np.nan_to_num(price), 0.0),
    )


def react(law: Law, people: Population, items: Items, requests: Requests, rows: Ints) -> Reactions:
    """Let users meet slates.

    Args:
        rows: int64 [R, K], rows of `items` in the order shown; -1 where a slate is shorter (never viewed).
    """
    real = rows >= 0
    rows = np.where(real, rows, 0)
    pair = mix(requests.keys[:, None], items.keys[rows])
    luck = uniform_rows(pair, 14)
    likely = chances(law, people, items, requests, rows)
    odds = likely.click_odds - _tiredness(items, rows)
    bot = people.bot[requests.user][:, None]
    click = luck[0] < sigmoid(odds) if law.choice == "independent" else _single_choice(odds, luck[0], requests.keys)
    click |= bot
    cart = click & ~bot & (luck[2] < likely.cart)
    order = cart & (luck[3] < likely.order)
    viewed = real & _examined(law, people, requests, click, order)
    click &= viewed
    cart &= viewed
    order &= viewed
    hide = viewed & ~click & ~bot & (luck[4] < likely.hide)
    long_view = click & ~bot & (luck[1] < likely.long_view)
    keen = sigmoid(odds)
    outcomes = {
        "click": click,
        "long_view": long_view,
        "like": long_view & (luck[5] < 0.06 + 0.14 * keen),
        "follow": long_view & (luck[6] < 0.02),
        "share": long_view & (luck[7] < 0.02),
        "comment": long_view & (luck[8] < 0.03),
        "cart": cart,
        "order": order,
        "hide": hide,
        "report": hide & (luck[9] < 0.06),
    }
    dwell = _dwell(items, rows, luck[10], click, long_view, bot)
    dwell = np.where(viewed, dwell, 0)
    delay = SECOND_US * (2 + (20 * luck[11]).astype(np.int64)) + 1_000 * dwell
    delay = np.where(cart, delay + (-np.log(luck[12]) * 180 * SECOND_US).astype(np.int64), delay)
    late = np.minimum((-np.log(luck[13]) * 4 * HOUR_US).astype(np.int64), LATEST_ORDER_US)
    delay = np.where(order, np.minimum(delay + late, LATEST_ORDER_US), delay)
    return Reactions(viewed, outcomes, dwell, np.where(order, likely.price, 0.0), delay)


def expected(law: Law, people: Population, items: Items, requests: Requests, rows: Ints) -> Expected:
    """The mean of `react`, exact for both laws: what stands above tires, and decides who gets further.

    Args:
        rows: int64 [R, K], rows of `items` in the order shown.
    """
    likely = chances(law, people, items, requests, rows)
    odds = likely.click_odds - _tiredness(items, rows)
    bot = people.bot[requests.user][:, None]
    click = np.where(bot, 1.0, sigmoid(odds) if law.choice == "independent" else _chosen(odds))
    order = np.where(bot, 0.0, click * likely.cart * likely.order)
    seen = np.where(bot, 1.0, _reached(law, people, requests, click, order))
    return Expected(seen, seen * click, seen * order, seen * order * likely.price)


def _chosen(odds: Floats) -> Floats:
    """The probabilities behind `_single_choice`."""
    result = np.empty_like(odds)
    for start in range(0, odds.shape[1], SCREEN):
        part = np.exp(odds[:, start : start + SCREEN])
        result[:, start : start + SCREEN] = part / (1.0 + part.sum(1, keepdims=True))
    return result


def _reached(law: Law, people: Population, requests: Requests, click: Floats, order: Floats) -> Floats:
    """The probabilities behind `_examined`."""
    base = np.array(law.examine)[requests.scenario]
    if law.examination == "power":
        exponent = base * np.exp(-0.5 * people.patience[requests.user])
        return np.asarray((1.0 + np.arange(click.shape[1]))[None, :] ** -exponent[:, None])
    odds = (np.log(base / (1.0 - base)) + people.patience[requests.user])[:, None]
    after_click = sigmoid(odds - np.where(requests.scenario == SEARCH, 0.4, 0.0)[:, None])
    onward = order * sigmoid(odds - 3.0) + (click - order) * after_click + (1.0 - click) * sigmoid(odds)
    return np.concatenate([np.ones((len(click), 1)), np.cumprod(onward[:, :-1], axis=1)], axis=1)


def _tiredness(items: Items, rows: Ints) -> Floats:
    """Log-odds lost to what stood higher in the same slate: the same creator again, the same category over and over."""
    earlier = np.tri(rows.shape[1], k=-1, dtype=bool)[None]
    author, leaf = items.author[rows], items.leaf[rows]
    same_author = ((author[:, :, None] == author[:, None, :]) & earlier).sum(2)
    same_leaf = ((leaf[:, :, None] == leaf[:, None, :]) & earlier).sum(2)
    return np.asarray(0.25 * same_author + 0.06 * same_leaf, np.float64)


def _single_choice(odds: Floats, luck: Floats, keys_: Keys) -> Bools:
    """At most one click a screen: the best of the items and of leaving, each with Gumbel noise (multinomial logit)."""
    noisy = odds - np.log(-np.log(luck))
    clicks = np.zeros(odds.shape, bool)
    for screen, start in enumerate(range(0, odds.shape[1], SCREEN)):
        part = noisy[:, start : start + SCREEN]
        leaving = -np.log(-np.log(uniforms(keys_, 1_000_000 + screen)))
        best = part.argmax(1)
        chosen = part[np.arange(len(part)), best] > leaving
        clicks[chosen.nonzero()[0], start + best[chosen]] = True
    return clicks


def _examined(law: Law, people: Population, requests: Requests, click: Bools, order: Bools) -> Bools:
    """Which positions reach the screen: the first always, a later one only after all before it."""
    count = click.shape[1]
    bot = people.bot[requests.user]
    base = np.array(law.examine)[requests.scenario]
    luck = uniform_rows(requests.keys, count)
    if law.examination == "power":
        exponent = base * np.exp(-0.5 * people.patience[requests.user])
        reach = (1.0 + np.arange(count))[None, :] ** -exponent[:, None]
        return np.asarray((luck[0][:, None] < reach) | bot[:, None])
    odds = np.log(base / (1.0 - base)) + people.patience[requests.user]
    satisfied = np.where(order, 3.0, np.where(click & (requests.scenario == SEARCH)[:, None], 0.4, 0.0))
    onward = sigmoid(odds[:, None] - satisfied) > luck.T
    seen = np.ones(click.shape, bool)
    seen[:, 1:] = np.logical_and.accumulate(onward[:, :-1], axis=1)
    return np.asarray(seen | bot[:, None])


def _dwell(items: Items, rows: Ints, luck: Floats, click: Bools, long_view: Bools, bot: Bools) -> Ints:
    """Milliseconds on the item: a glance, a look, or a long view; log-uniform within each."""
    low = np.where(long_view, 18_000.0, np.where(click, 3_000.0, 400.0))
    high = np.where(
        long_view, np.where(items.kind[rows] == LIVESTREAM, 900_000.0, 120_000.0), np.where(click, 18_000.0, 3_000.0)
    )
    low, high = np.where(bot, 150.0, low), np.where(bot, 700.0, high)
    return np.asarray(low * (high / low) ** luck, np.int64)
