"""The users: who they are, what they like, what they are after, how active they are. All latent but the profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from omnifeed.config import WorldConfig
from omnifeed.tables import USERS
from omnifeed.world.keys import Bools, Floats, Ints, Keys, generator, key, keys, mix, uniforms
from omnifeed.world.laws import Law
from omnifeed.world.vocabulary import Vocabulary

DAY_US = 86_400_000_000
STYLE_DIMS = 6
INTENT_DAYS = 3  # how long a user stays after the same thing
LOCALES = ("en-US", "de-DE", "zh-CN")
LOCALE_SHARES = (0.6, 0.2, 0.2)
COUNTRIES = (("US", "GB", "CA"), ("DE", "AT", "CH"), ("CN", "SG", "MY"))
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55+")
DEVICES = ("ios", "android", "web")
_SPHERE_DIMS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """Users as parallel arrays of length U, in the order of `ids`."""

    ids: tuple[str, ...]
    row: dict[str, int]
    keys: Keys
    language: Ints  # index in LANGUAGES, the same as the locale's in LOCALES
    country: tuple[str, ...]
    age_band: Ints
    device: Ints
    signup_ts: Ints  # UTC microseconds
    holdout: Bools
    bot: Bools
    activity: Floats  # sessions relative to the mean user
    taste: Floats  # [U, leaves], in units of the law's taste_gain
    taste_cdf: Floats  # [U, leaves], of what the user sets out to buy
    style: Floats  # [U, STYLE_DIMS]
    budget: Floats  # log of the price ratio that feels right
    price_slope: Floats  # positive: how much a higher price repels
    patience: Floats  # added to the log-odds of scrolling on

    def intent(self, users: Ints, ts: Ints) -> Ints:
        """The category each user is after at a time; it holds for INTENT_DAYS, then is drawn again from the taste."""
        offset = (self.keys[users] % np.uint64(INTENT_DAYS)).astype(np.int64)
        epoch = ((ts // DAY_US + offset) // INTENT_DAYS).astype(np.uint64)
        return self.drawn_leaf(users, uniforms(mix(self.keys[users], epoch), 11))

    def drawn_leaf(self, users: Ints, luck: Floats) -> Ints:
        """The category at this point of each user's cumulative taste."""
        places = (self.taste_cdf[users] < luck[:, None]).sum(1)
        return np.asarray(np.minimum(places, self.taste_cdf.shape[1] - 1), np.int64)

    def table(self) -> pa.Table:
        """The canonical users table: the profile, nothing latent."""
        return pa.table(
            {
                "user_id": list(self.ids),
                "locale": [LOCALES[index] for index in self.language],
                "country": list(self.country),
                "age_band": [AGE_BANDS[index] for index in self.age_band],
                "device": [DEVICES[index] for index in self.device],
                "signup_ts": self.signup_ts,
            },
            schema=pa.schema([field.with_nullable(True) for field in USERS]),
        )


def populate(config: WorldConfig, law: Law, words: Vocabulary, start_ts: int) -> Population:
    """Draw every user of the world."""
    count = config.users
    ids = tuple(f"u{index:06d}" for index in range(count))
    rng = generator(config.seed, config.law, "users")
    language = rng.choice(len(LOCALES), count, p=LOCALE_SHARES)
    age = rng.choice(len(AGE_BANDS), count, p=(0.24, 0.3, 0.22, 0.14, 0.1))
    taste = _tastes(law, words, age, rng)
    wants = np.exp(1.1 * taste)
    holdout_limit = config.holdout_share * 2.0**64
    activity = rng.lognormal(0.0, 1.0, count)
    activity = np.minimum(activity / np.exp(0.5), 12.0)
    bot = rng.random(count) < config.bot_share
    user_keys = keys(f"{config.seed}/user", ids)
    return Population(
        ids=ids,
        row={user: index for index, user in enumerate(ids)},
        keys=user_keys,
        language=language,
        country=tuple(
            COUNTRIES[where][pick]
            for where, pick in zip(language, rng.choice(3, count, p=(0.7, 0.2, 0.1)), strict=True)
        ),
        age_band=age,
        device=rng.choice(len(DEVICES), count, p=(0.4, 0.45, 0.15)),
        signup_ts=start_ts - rng.integers(DAY_US, 900 * DAY_US, count),
        holdout=np.array([key(config.seed, "holdout", user) < holdout_limit for user in ids]),
        bot=bot,
        activity=np.where(bot, 4.0, activity),
        taste=taste,
        taste_cdf=np.cumsum(wants / wants.sum(1, keepdims=True), axis=1),
        style=rng.normal(size=(count, STYLE_DIMS)) / np.sqrt(STYLE_DIMS),
        budget=rng.normal(0.0, 0.4, count),
        price_slope=law.price_aversion * rng.gamma(4.0, 0.25, count),
        patience=rng.normal(0.0, 0.5, count),
    )


def _tastes(law: Law, words: Vocabulary, age: Ints, rng: np.random.Generator) -> Floats:
    tops, leaves, count = len(words.tops), len(words.categories), len(age)
    if law.geometry == "sphere":
        ends = rng.normal(size=(leaves, _SPHERE_DIMS))
        ends /= np.linalg.norm(ends, axis=1, keepdims=True)
        lean = rng.normal(0.0, 0.5, (len(AGE_BANDS), _SPHERE_DIMS))
        directions = rng.normal(size=(count, _SPHERE_DIMS)) + lean[age]
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return 4.5 * rng.lognormal(0.0, 0.25, (count, 1)) * (directions @ ends.T) - 1.2
    lean = rng.lognormal(0.0, 0.8, (len(AGE_BANDS), tops))
    top_share = rng.standard_gamma(0.25 * lean[age]) + 1e-9
    top_share /= top_share.sum(1, keepdims=True)
    leaf_share = rng.standard_gamma(0.8, (count, leaves)) + 1e-9
    share = top_share[:, words.top_of_leaf] * leaf_share
    share /= share.sum(1, keepdims=True)
    return np.log(share * leaves + 0.1)
