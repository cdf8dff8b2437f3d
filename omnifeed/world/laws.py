"""How people behave, as numbers: two laws that differ in kind, so that a conclusion can be checked in a second world.

Every figure is an assumption of the simulator, chosen so that the marginals are plausible; none is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omnifeed.errors import InputError

#: The world's surfaces; rows of every per-scenario table below.
SCENARIOS = ("livestream", "short_video", "search")


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The behaviour of a whole population. Gains and bases are log-odds; scenario tuples follow SCENARIOS."""

    geometry: Literal["simplex", "sphere"]  # tastes: a few favourite topics, or directions in a dense space
    choice: Literal["independent", "single"]  # each item on its own, or one click at most a screen of three
    examination: Literal["cascade", "power"]  # scrolling stops after a success, or thins out with rank alone
    taste_gain: float  # of one unit of taste
    style_gain: float  # of the creator's and item's style
    intent_gain: float  # what the user is after these days
    language_gap: float  # title in a language that is not the user's
    quality_sd: float
    quality_df: float  # degrees of freedom of quality's Student t; large: normal
    price_sigma: float  # of log prices within a category
    price_aversion: float  # mean slope of buying against log price
    relevance_gain: float  # query against item, in search
    click_base: tuple[float, float, float]
    cart_base: tuple[float, float, float]
    long_base: float
    order_base: float
    hide_base: float
    examine: tuple[float, float, float]  # cascade: chance to scroll on; power: exponent of rank


LAWS = {
    "default": Law(
        geometry="simplex",
        choice="independent",
        examination="cascade",
        taste_gain=0.85,
        style_gain=0.5,
        intent_gain=1.2,
        language_gap=1.3,
        quality_sd=0.5,
        quality_df=1e6,
        price_sigma=0.55,
        price_aversion=1.0,
        relevance_gain=2.2,
        click_base=(-1.6, -1.35, -2.5),
        cart_base=(-2.1, -2.7, -2.6),
        long_base=0.1,
        order_base=-1.0,
        hide_base=-5.6,
        examine=(0.89, 0.93, 0.84),
    ),
    "other": Law(
        geometry="sphere",
        choice="single",
        examination="power",
        taste_gain=1.2,
        style_gain=0.9,
        intent_gain=0.8,
        language_gap=0.9,
        quality_sd=0.2,
        quality_df=4.0,
        price_sigma=0.8,
        price_aversion=0.8,
        relevance_gain=2.6,
        click_base=(-1.1, -0.9, -2.2),
        cart_base=(-2.8, -3.1, -3.1),
        long_base=0.1,
        order_base=-1.6,
        hide_base=-5.6,
        examine=(0.35, 0.2, 0.5),
    ),
}


def law(name: str) -> Law:
    """The law of this name.

    Raises:
        InputError: there is none.
    """
    if name not in LAWS:
        raise InputError(f"Setting world.law is {name!r}.", f"Known laws: {', '.join(sorted(LAWS))}.")
    return LAWS[name]
