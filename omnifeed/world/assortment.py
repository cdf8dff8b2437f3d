"""The items: products, videos and livestreams of creators and sellers, more of them every day.

Each day's newcomers are drawn on their own, so an item is the same whichever day asks for it. Tomorrow's livestreams
are announced today: a catalogue of midnight already knows their air times.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from omnifeed.config import WorldConfig
from omnifeed.tables import ITEMS, KINDS
from omnifeed.world.keys import Bools, Floats, Ints, Keys, generator, key, keys, mix, uniforms
from omnifeed.world.laws import Law
from omnifeed.world.population import DAY_US, STYLE_DIMS
from omnifeed.world.vocabulary import LANGUAGES, Vocabulary

LIVESTREAM, VIDEO, PRODUCT = range(3)
TITLE_WORDS = 5
LONGEST_STREAM_US = 5 * 3_600_000_000
_LANGUAGE_SHARES = (0.55, 0.2, 0.25)
_LANGUAGE_AIR_HOUR = (1.5, 18.5, 11.5)  # UTC hour of the evening peak in America, Europe and China
_OLDEST_DAYS = 60.0
_MIDDLING_PRICE = 35.0


@dataclass(frozen=True, slots=True, eq=False)
class Creators:
    """Who shows and sells: parallel arrays of length C."""

    ids: tuple[str, ...]
    top: Ints
    language: Ints
    quality: Floats
    style: Floats  # [C, STYLE_DIMS]
    airtime: Floats  # share of all livestreams, adds up to 1


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Items as parallel arrays of length N, ordered by (created, id)."""

    ids: tuple[str, ...]
    keys: Keys
    kind: Ints
    author: Ints
    leaf: Ints
    top: Ints
    language: Ints
    words: Ints  # [N, TITLE_WORDS], -1 where the title is shorter
    quality: Floats
    rumour: Floats  # quality as the logging policy believes it to be
    style: Floats  # [N, STYLE_DIMS]
    base_price: Floats  # USD; NaN where nothing is sold
    price_ratio: Floats  # log of base_price to its category's median; 0 where nothing is sold
    price_level: Floats  # log of base_price to a middling 35 USD; 0 where nothing is sold
    headline: tuple[str, ...]  # id of the product that an order buys, "" where nothing is sold
    products: tuple[tuple[str, ...], ...]
    created: Ints
    live_from: Ints  # 0 unless a livestream
    live_until: Ints
    policy: tuple[str, ...]
    top_of_leaf: Ints  # [leaves], the same for all

    def on_air(self, rows: Ints, ts: Ints) -> Bools:
        """Recommendable now as far as air times go: not a livestream, or on air."""
        live = (self.live_from[rows] <= ts) & (ts < self.live_until[rows])
        return np.asarray((self.kind[rows] != LIVESTREAM) | live, np.bool_)

    def price(self, rows: Ints, ts: Ints) -> Floats:
        """Price at a time, cents rounded: one product in twelve is 20 % off on any one day."""
        day = (ts // DAY_US).astype(np.uint64)
        sale = uniforms(mix(self.keys[rows], day), 21) < 1 / 12
        return np.round(self.base_price[rows] * np.where(sale & (self.kind[rows] == PRODUCT), 0.8, 1.0), 2)

    def stock(self, rows: Ints, ts: Ints) -> Ints:
        """Pieces left of a product: one in fifty is sold out on any one day."""
        luck = uniforms(mix(self.keys[rows], (ts // DAY_US).astype(np.uint64)), 22)
        return np.where(luck < 0.02, 0, 1 + (400 * luck * luck).astype(np.int64))

    def sellable(self, rows: Ints, ts: Ints) -> Bools:
        """There is a price, and a product is in stock."""
        in_stock = (self.kind[rows] != PRODUCT) | (self.stock(rows, ts) > 0)
        return np.asarray(~np.isnan(self.base_price[rows]) & in_stock, np.bool_)


def join(parts: list[Items]) -> Items:
    """One Items after another, reordered by (created, id)."""
    created = np.concatenate([part.created for part in parts])
    ids = [item for part in parts for item in part.ids]
    order = sorted(range(len(ids)), key=lambda index: (int(created[index]), ids[index]))
    values: dict[str, object] = {}
    for field in fields(Items):
        columns = [getattr(part, field.name) for part in parts]
        if field.name == "top_of_leaf":
            values[field.name] = columns[0]
        elif isinstance(columns[0], tuple):
            flat = [value for column in columns for value in column]
            values[field.name] = tuple(flat[index] for index in order)
        else:
            values[field.name] = np.concatenate(columns)[order]
    return Items(**values)  # type: ignore[arg-type]


class Assortment:
    """Everything that was ever announced, extended day by day on demand."""

    def __init__(self, config: WorldConfig, law: Law, words: Vocabulary, start_ts: int) -> None:
        self._config, self._law, self._words, self._start = config, law, words, start_ts
        self.creators = self._creators()
        self._day = -1
        first = self._contents(-1, config.items)
        self.items = join([first, self._livestreams(0, first)])
        self.row = {item: index for index, item in enumerate(self.items.ids)}

    def through(self, day: int) -> Items:
        """All items announced by the end of a simulated day; rows keep their numbers as days are added."""
        if day > self._day:
            for number in range(self._day + 1, day + 1):
                contents = self._contents(number, self._config.new_items_per_day)
                self.items = join([self.items, contents, self._livestreams(number + 1, self.items)])
            self.row = {item: index for index, item in enumerate(self.items.ids)}
            self._day = day
        return self.items

    def table(self, items: Items, count: int, now: int) -> pa.Table:
        """The canonical items table of the first `count` rows, with prices and stock of `now`."""
        rows = np.arange(count)
        price, stock = items.price(rows, np.full(count, now)), items.stock(rows, np.full(count, now))
        live = items.kind[:count] == LIVESTREAM
        names = self._words.categories
        titles, descriptions = [], []
        for row in range(count):
            known = tuple(int(word) for word in items.words[row] if word >= 0)
            titles.append(self._words.title(known, items.ids[row][1:4].upper() if items.kind[row] == PRODUCT else ""))
            descriptions.append(self._words.description(known, int(items.language[row])))
        return pa.table(
            {
                "item_id": list(items.ids[:count]),
                "author_id": [self.creators.ids[author] for author in items.author[:count]],
                "kind": [KINDS[kind] for kind in items.kind[:count]],
                "category": [names[leaf] for leaf in items.leaf[:count]],
                "title": titles,
                "description": descriptions,
                "price": pa.array(price, mask=np.isnan(price)),
                "currency": pa.array(np.full(count, "USD"), mask=np.isnan(price)),
                "duration_s": pa.nulls(count, pa.float64()),
                "created_ts": items.created[:count],
                "live_from": pa.array(items.live_from[:count], mask=~live),
                "live_until": pa.array(items.live_until[:count], mask=~live),
                "product_ids": [list(products) or None for products in items.products[:count]],
                "image_embedding": pa.nulls(count, ITEMS.field("image_embedding").type),
                "policy": list(items.policy[:count]),
                "stock": pa.array(stock, mask=items.kind[:count] != PRODUCT),
            },
            schema=pa.schema([field.with_nullable(True) for field in ITEMS]),
        )

    def _quality(self, rng: np.random.Generator, count: int) -> Floats:
        draws = rng.normal(size=count) if self._law.quality_df > 1e3 else rng.standard_t(self._law.quality_df, count)
        return self._law.quality_sd * np.clip(draws, -6.0, 6.0)

    def _creators(self) -> Creators:
        config, rng = self._config, generator(self._config.seed, self._config.law, "creators")
        count = config.creators
        airtime = rng.pareto(1.5, count) + 0.3
        return Creators(
            ids=tuple(f"a{key(config.seed, 'author', index):016x}"[:9] for index in range(count)),
            top=np.arange(count) % len(self._words.tops),
            language=rng.choice(len(LANGUAGES), count, p=_LANGUAGE_SHARES),
            quality=self._quality(rng, count),
            style=rng.normal(size=(count, STYLE_DIMS)),
            airtime=airtime / airtime.sum(),
        )

    def _contents(self, day: int, count: int) -> Items:
        """Products and videos that appear on a day; day -1 is everything from before the first."""
        rng = generator(self._config.seed, self._config.law, "contents", day)
        kind = np.where(rng.random(count) < 0.5, PRODUCT, VIDEO)
        author = rng.integers(0, len(self.creators.ids), count)
        span = _OLDEST_DAYS if day < 0 else 1.0
        created = self._start + (day + 1) * DAY_US - (rng.random(count) * span * DAY_US).astype(np.int64) - 1
        shop = self.items if day >= 0 else None
        return self._draw(rng, f"contents/{day}", kind, author, created, np.zeros((2, count), np.int64), shop)

    def _livestreams(self, day: int, shop: Items) -> Items:
        """The livestreams of a day, announced during the day before it."""
        rng = generator(self._config.seed, self._config.law, "livestreams", day)
        count = self._config.livestreams_per_day
        author = rng.choice(len(self.creators.ids), count, p=self.creators.airtime)
        peak = np.array(_LANGUAGE_AIR_HOUR)[self.creators.language[author]]
        hour = np.where(rng.random(count) < 0.5, rng.normal(peak, 3.0) % 24, rng.random(count) * 24)
        begin = self._start + day * DAY_US + (hour * 3_600_000_000).astype(np.int64)
        end = begin + (rng.uniform(1.5, 5.0, count) * 3_600_000_000).astype(np.int64)
        created = self._start + day * DAY_US - (rng.random(count) * DAY_US).astype(np.int64) - 1
        kind = np.full(count, LIVESTREAM)
        return self._draw(rng, f"livestreams/{day}", kind, author, created, np.stack([begin, end]), shop)

    def _draw(
        self,
        rng: np.random.Generator,
        name: str,
        kind: Ints,
        author: Ints,
        created: Ints,
        air: Ints,
        shop: Items | None,
    ) -> Items:
        words, creators, count = self._words, self.creators, len(kind)
        leaf = rng.integers(0, len(words.categories), count)
        home = np.array([rng.choice(np.flatnonzero(words.top_of_leaf == creators.top[a])) for a in author], np.int64)
        leaf = np.where(rng.random(count) < 0.85, home, leaf)
        language = creators.language[author]
        base = words.median_price[leaf] * rng.lognormal(0.0, self._law.price_sigma, count)
        style = 0.8 * creators.style[author] + 0.6 * rng.normal(size=(count, STYLE_DIMS))
        quality = 0.6 * creators.quality[author] + self._quality(rng, count)
        policy = rng.choice(("ALLOW", "INTERSTITIAL", "DROP"), count, p=(0.985, 0.01, 0.005))
        ids = tuple(
            f"{'lvp'[kind[index]]}{key(self._config.seed, 'item', name, index):016x}"[:12] for index in range(count)
        )
        titles = np.full((count, TITLE_WORDS), -1, np.int64)
        for index in range(count):
            nouns = rng.permutation(words.nouns[leaf[index]][language[index]])[: 1 + int(rng.random() < 0.6)]
            pick = [rng.choice(words.adjectives[language[index]]), *nouns, rng.choice(words.brands)]
            titles[index, : len(pick)] = pick
        base, headline, products = self._goods(rng, ids, kind, leaf, np.round(base, 2), shop)
        ratio = np.nan_to_num(np.log(base / words.median_price[leaf]))
        return Items(
            ids=ids,
            keys=keys(f"{self._config.seed}/item", ids),
            kind=kind,
            author=author,
            leaf=leaf,
            top=words.top_of_leaf[leaf],
            language=language,
            words=titles,
            quality=quality,
            rumour=quality + rng.normal(0.0, 0.4, count),
            style=style,
            base_price=base,
            price_ratio=ratio,
            price_level=np.nan_to_num(np.log(base / _MIDDLING_PRICE)),
            headline=headline,
            products=products,
            created=created,
            live_from=air[0],
            live_until=air[1],
            policy=tuple(str(value) for value in policy),
            top_of_leaf=words.top_of_leaf,
        )

    @staticmethod
    def _goods(
        rng: np.random.Generator, ids: tuple[str, ...], kind: Ints, leaf: Ints, base: Floats, shop: Items | None
    ) -> tuple[Floats, tuple[str, ...], tuple[tuple[str, ...], ...]]:
        """Price, headline product and products of each item: a product sells itself, most contents sell products."""
        by_leaf: dict[int, list[tuple[str, float]]] = {}
        shelf = (ids, kind, leaf, base) if shop is None else (shop.ids, shop.kind, shop.leaf, shop.base_price)
        for item, kind_, leaf_, price in zip(*shelf, strict=True):
            if kind_ == PRODUCT:
                by_leaf.setdefault(int(leaf_), []).append((item, float(price)))
        prices, headline = base.copy(), list[str]()
        products: list[tuple[str, ...]] = []
        for index, item in enumerate(ids):
            goods = by_leaf.get(int(leaf[index]), [])
            if kind[index] == PRODUCT:
                headline.append(item)
                products.append((item,))
            elif not goods or (kind[index] == VIDEO and rng.random() < 0.3):
                prices[index] = np.nan
                headline.append("")
                products.append(())
            else:
                some = [goods[pick] for pick in rng.permutation(len(goods))[: 1 + int(rng.integers(0, 4))]]
                prices[index] = some[0][1]
                headline.append(some[0][0])
                products.append(tuple(name for name, _ in some))
        return prices, tuple(headline), tuple(products)
