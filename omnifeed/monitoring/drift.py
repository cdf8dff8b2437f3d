"""A day against others, check by check, with false alarms counted over all of them together.

A check is an alarm only if both hold: the change is beyond its bound (large enough to matter), and it is beyond what
usual days differ by (too large to be luck), Holm-adjusted over every check of the day. How much usual days differ is
taken from the days themselves: rows of one request and requests of one user are not independent, weekends differ, and a
recommender's own slates wander as items come into fashion and go; no textbook variance knows that.

- Distributions are looked at for sudden change: a day against the days before it. The same distance was measured for
  each earlier day against the days before *that*; n x PSI of those N days has some mean m, and where nothing changed
  today's n x PSI / m is an F ratio with (v, v N) degrees of freedom, v from the spread of the N values
  (Satterthwaite), half its own and half that of its kind. How far the day is from the champion's first days stands
  beside it and raises no alarm: catalogues grow older and fashions pass while the model is as good as ever.
- What users do (labels, observed / predicted) is looked at for slow change too: a day against the champion's first
  days. Volume and degraded answers: against the days before. Rates are compared on the arcsine-root (shares) or the
  logarithmic scale (volumes, observed / predicted) by a t prediction interval, its variance a multiple of that of the
  counts: as many times as the days show, and at least once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from omnifeed.config import MonitoringConfig
from omnifeed.experiment.estimate import holm
from omnifeed.monitoring.profile import Key, Kind, Profile, Rate
from omnifeed.monitoring.sketch import Groups, Sketch, middle, psi

MIN_DAYS = 5  # that a day is compared with
MIN_HISTORY = 2 * MIN_DAYS  # days before a day whose distributions are compared
SINCE_PROMOTION = (Kind.LABEL, Kind.CALIBRATION)  # compared with the champion's first days
Z95 = 1.959964
#: Share of Satterthwaite's degrees of freedom that is used. PSI has a longer tail than his gamma, and v is estimated
#: from few days; in simulated quiet days with clustered rows (6 to 14 days, 40 to 100 users) p-values of all of them
#: come out 8 times too often at 1e-4, with this share not more often than they should.
TAIL = 0.6
LARGEST = 10.0  # relative change; what came from nothing has no larger one


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison."""

    kind: str
    scenario: str
    name: str
    now: str  # the day, for a reader
    before: str  # what it is compared with, for a reader
    effect: float  # what is held against the bound: PSI beyond the usual, a relative or absolute change
    bound: float
    p_value: float  # that a quiet day differs so much
    p_adjusted: float
    alarm: bool
    value: float  # the day's number: PSI, rate, requests, or observed / predicted
    low: float | None  # 95 % interval of observed / predicted, users as the units; None elsewhere
    high: float | None
    long_run: float | None  # PSI beyond the usual against the champion's first days; None for rates

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Distance:
    psi: float
    usual: float  # that of earlier days, at this day's number of requests
    scaled: float  # n x PSI / the mean of earlier days'
    spread: float  # squared coefficient of variation of earlier days' n x PSI
    days: int  # earlier days with a distance
    groups: int
    long_run: float | None


def compare(
    first: Sequence[Profile],
    before: Sequence[Profile],
    today: Profile,
    config: MonitoringConfig,
    more: Mapping[Key, float] | None = None,
) -> tuple[list[Check], dict[Key, float]]:
    """Every check that can be made.

    Args:
        first: the champion's first days.
        before: the days before this one on which it answered, oldest first, at most `history_days`.
        more: p-values of other checks of the same day, which share its alpha.

    Returns:
        The checks by kind, scenario and name, and the Holm-adjusted p-values of `more`.
    """
    recent = before[-config.reference_days :]
    slow, sudden = _rates(first, today, config), _rates(recent, today, config)
    drafts = {
        **_distributions(first, before, today, config),
        **{key: draft for key, draft in slow.items() if key[0] in SINCE_PROMOTION},
        **{key: draft for key, draft in sudden.items() if key[0] not in SINCE_PROMOTION},
    }
    others = more or {}
    raw = {key: draft.p_value for key, draft in drafts.items()} | dict(others)
    adjusted = holm({"\t".join(key): p for key, p in raw.items()}, config.alpha)
    checks = []
    for key in sorted(drafts):
        p = adjusted["\t".join(key)]
        draft = drafts[key]
        alarm = p <= config.alpha and abs(draft.effect) > draft.bound
        checks.append(Check(**{**asdict(draft), "p_adjusted": p, "alarm": alarm}))
    return checks, {key: adjusted["\t".join(key)] for key in others}


def _distributions(
    first: Sequence[Profile], before: Sequence[Profile], today: Profile, config: MonitoringConfig
) -> dict[Key, Check]:
    distances: dict[Key, tuple[_Distance, Sketch, Sketch]] = {}
    for key, now in today.sketches.items():
        days, start = _usable(before, key, config), _usable(first, key, config)
        if len(days) >= MIN_HISTORY and now.units >= config.min_requests and now.counts:
            recent = Sketch.merged(days[-config.reference_days :])
            distances[key] = (_distance(start, days, now, config.reference_days), recent, now)
    result = {}
    for key, (found, recent, now) in distances.items():
        kind, scenario, name = key
        spreads = [other.spread for (of, _, _), (other, _, _) in distances.items() if of == kind]
        spread = max((found.spread + float(np.mean(spreads))) / 2, 1e-9)
        freedom = TAIL * min(max(2 / spread, 1.0), found.groups - 1)
        result[key] = Check(
            kind=kind.value,
            scenario=scenario,
            name=name,
            now=middle(now),
            before=middle(recent),
            effect=found.psi - found.usual,
            bound=config.max_psi,
            p_value=float(stats.f.sf(found.scaled, freedom, freedom * found.days)),
            p_adjusted=1.0,
            alarm=False,
            value=found.psi,
            low=None,
            high=None,
            long_run=found.long_run,
        )
    return result


def _usable(days: Sequence[Profile], key: Key, config: MonitoringConfig) -> list[Sketch]:
    sketches = [day.sketches[key] for day in days if key in day.sketches]
    return [sketch for sketch in sketches if sketch.units >= config.min_requests and sketch.counts]


def _distance(start: Sequence[Sketch], days: Sequence[Sketch], now: Sketch, width: int) -> _Distance:
    groups = Groups(Sketch.merged(days))
    tallies = [groups.tally(day) for day in days]
    own = np.array(
        [
            day.units * psi(tallies[place], np.sum(tallies[max(0, place - width) : place], axis=0))
            for place, day in enumerate(days)
            if place >= MIN_DAYS
        ]
    )
    value = psi(groups.tally(now), np.sum(tallies[-width:], axis=0))
    mean = max(float(own.mean()), 1e-6 * now.units)
    long_run = None
    if start:
        whole = Sketch.merged(start)
        since = Groups(whole)
        long_run = psi(since.tally(now), since.tally(whole)) - mean / now.units
    return _Distance(
        psi=value,
        usual=mean / now.units,
        scaled=now.units * value / mean,
        spread=float(own.var(ddof=1)) / mean**2,
        days=len(own),
        groups=groups.count,
        long_run=long_run,
    )


def _rates(reference: Sequence[Profile], today: Profile, config: MonitoringConfig) -> dict[Key, Check]:
    bounds = {
        Kind.VOLUME: config.max_volume_change,
        Kind.LABEL: config.max_label_change,
        Kind.DEGRADED: config.max_degraded_change,
        Kind.CALIBRATION: config.max_calibration_change,
    }
    known: dict[Key, tuple[list[Rate], Rate]] = {}
    for key in sorted({key for day in (*reference, today) for key in day.rates}):
        days = [rate for rate in (_rate(day, key) for day in reference) if rate is not None]
        days = [rate for rate in days if _enough(key[0], rate, config)]
        now = _rate(today, key)
        if now is None or len(days) < MIN_DAYS or not _enough(key[0], now, config):
            continue
        if now.events or any(rate.events for rate in days):
            known[key] = days, now
    excess = {key: _excess(key[0], days) for key, (days, _) in known.items()}
    result = {}
    for key, (days, now) in known.items():
        kind, scenario, name = key
        usual = sum(rate.events for rate in days) / sum(rate.base for rate in days)
        change = now.value - usual if kind is Kind.DEGRADED else now.value / usual - 1 if usual else LARGEST
        interval = kind is Kind.CALIBRATION and now.events > 0
        pooled = float(np.mean([value for (of, _, _), value in excess.items() if of is kind]))
        result[key] = Check(
            kind=kind.value,
            scenario=scenario,
            name=name,
            now=_shown(kind, now.value),
            before=_shown(kind, usual),
            effect=min(change, LARGEST),
            bound=bounds[kind],
            p_value=_prediction_p(kind, days, now, (excess[key] + pooled) / 2),
            p_adjusted=1.0,
            alarm=False,
            value=now.value,
            low=now.value * math.exp(-Z95 * now.error) if interval else None,
            high=now.value * math.exp(Z95 * now.error) if interval else None,
            long_run=None,
        )
    return result


def _rate(day: Profile, key: Key) -> Rate | None:
    """A day's rate; what did not occur has a rate of zero: a scenario without requests, a reason among answers."""
    kind, scenario, _ = key
    found = day.rates.get(key)
    if found is None and kind is Kind.VOLUME:
        return Rate(0, 1)
    if found is None and kind is Kind.DEGRADED:
        answered = day.rates.get((kind, scenario, "any"))
        return None if answered is None else Rate(0, answered.base)
    return found


def _enough(kind: Kind, rate: Rate, config: MonitoringConfig) -> bool:
    if kind is Kind.VOLUME:
        return True
    return rate.base > 0 if kind is Kind.CALIBRATION else rate.base >= config.min_requests


def _excess(kind: Kind, days: Sequence[Rate]) -> float:
    """How many times the variance between days is that of counts."""
    points = [_stable(kind, rate) for rate in days]
    return float(np.var(points, ddof=1) / np.mean([_variance(rate) for rate in days]))


def _prediction_p(kind: Kind, days: Sequence[Rate], now: Rate, excess: float) -> float:
    """Two-sided p-value of a t prediction interval for one more day.

    Args:
        excess: see `_excess`; half the check's own, half that of all checks of its kind, so that a variance which few
            days happen to show as small makes no alarm (moderated t: Smyth 2004, section 3).
    """
    usual = float(np.mean([_stable(kind, rate) for rate in days]))
    own = _variance(now) + float(np.mean([_variance(rate) for rate in days])) / len(days)
    distance = abs(_stable(kind, now) - usual) / math.sqrt(own * max(excess, 1.0))
    return float(2 * stats.t.sf(distance, 2 * (len(days) - 1)))


def _stable(kind: Kind, rate: Rate) -> float:
    """The rate on a scale on which its luck does not depend on its size: of counts the root, of shares the arcsine."""
    if kind in (Kind.VOLUME, Kind.CALIBRATION):
        return 2 * math.sqrt((rate.events + 0.375) / rate.base)
    return 2 * math.asin(math.sqrt((rate.events + 0.375) / (rate.base + 0.75)))


def _variance(rate: Rate) -> float:
    """What counting alone makes of the variance on that scale."""
    return 1 / rate.base


def _shown(kind: Kind, value: float) -> str:
    match kind:
        case Kind.VOLUME:
            return f"{value:,.0f}"
        case Kind.CALIBRATION:
            return f"{value:.2f}"
        case _:
            return f"{value:.2%}"
