"""Today against the reference, check by check, with false alarms counted over all of them together.

A check is an alarm only if both hold: the change is beyond its bound (large enough to matter), and it is beyond what
the reference's own days differ by (too large to be luck), Holm-adjusted over every check of the interval. How much
quiet days differ is taken from the reference itself, day against the other days: rows of one request and requests of
one user are not independent, weekends differ, and no textbook variance knows that.

- Distributions: n x PSI of each reference day against the others, for n requests, has some mean m; where nothing
  changed, today's n x PSI / m is an F ratio with (v, v N) degrees of freedom, v from the spread of those N values
  (Satterthwaite), pooled over the checks of a kind.
- Rates: the arcsine root (of shares), the logarithm (of volumes and observed / predicted); today against the N days by
  a t prediction interval, its variance a multiple of that of the counts: as many times as the days show, and at least
  once.
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

MIN_DAYS = 5  # of the reference on which a check could be made
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
    now: str  # today, for a reader
    before: str  # the reference, for a reader
    effect: float  # what is held against the bound: PSI beyond the reference's own, a relative or absolute change
    bound: float
    p_value: float  # that quiet days differ so much
    p_adjusted: float
    alarm: bool
    value: float  # today's number: PSI, rate, requests, or observed / predicted
    low: float | None  # 95 % interval of observed / predicted, users as the units; None elsewhere
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Distance:
    psi: float
    usual: float  # the reference's own at today's number of requests
    scaled: float  # n x PSI / the reference's mean
    spread: float  # squared coefficient of variation of the reference's n x PSI
    days: int
    groups: int


def compare(
    reference: Sequence[Profile], today: Profile, config: MonitoringConfig, more: Mapping[Key, float] | None = None
) -> tuple[list[Check], dict[Key, float]]:
    """Every check that can be made.

    Args:
        reference: quiet days, of the same release.
        more: p-values of other checks of the same interval, which share its alpha.

    Returns:
        The checks by kind, scenario and name, and the Holm-adjusted p-values of `more`.
    """
    drafts = {**_distributions(reference, today, config), **_rates(reference, today, config)}
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


def _distributions(reference: Sequence[Profile], today: Profile, config: MonitoringConfig) -> dict[Key, Check]:
    distances: dict[Key, tuple[_Distance, Sketch, Sketch]] = {}
    for key, now in today.sketches.items():
        days = [day.sketches[key] for day in reference if key in day.sketches]
        days = [sketch for sketch in days if sketch.units >= config.min_requests and sketch.counts]
        if len(days) >= MIN_DAYS and now.units >= config.min_requests and now.counts:
            whole = Sketch.merged(days)
            distances[key] = (_distance(days, whole, now), whole, now)
    result = {}
    for key, (found, whole, now) in distances.items():
        kind, scenario, name = key
        spreads = [other.spread for (of, _, _), (other, _, _) in distances.items() if of == kind]
        freedom = TAIL * min(max(2 / max(float(np.mean(spreads)), 1e-9), 1.0), found.groups - 1)
        result[key] = Check(
            kind=kind.value,
            scenario=scenario,
            name=name,
            now=middle(now),
            before=middle(whole),
            effect=found.psi - found.usual,
            bound=config.max_psi,
            p_value=float(stats.f.sf(found.scaled, freedom, freedom * found.days)),
            p_adjusted=1.0,
            alarm=False,
            value=found.psi,
            low=None,
            high=None,
        )
    return result


def _distance(days: Sequence[Sketch], whole: Sketch, now: Sketch) -> _Distance:
    groups = Groups(whole)
    tallies = [groups.tally(day) for day in days]
    total = np.sum(tallies, axis=0)
    own = np.array([day.units * psi(tally, total - tally) for day, tally in zip(days, tallies, strict=True)])
    value = psi(groups.tally(now), total)
    mean = max(float(own.mean()), 1e-6 * now.units)
    return _Distance(
        psi=value,
        usual=mean / now.units,
        scaled=now.units * value / mean,
        spread=float(own.var(ddof=1)) / mean**2,
        days=len(days),
        groups=groups.count,
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
        )
    return result


def _rate(day: Profile, key: Key) -> Rate | None:
    """A day's rate; a reason of degradation that did not occur has a rate of zero wherever answers were given."""
    kind, scenario, _ = key
    found = day.rates.get(key)
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
    return float(np.var(points, ddof=1) / np.mean([_variance(kind, rate) for rate in days]))


def _prediction_p(kind: Kind, days: Sequence[Rate], now: Rate, excess: float) -> float:
    """Two-sided p-value of a t prediction interval for one more day.

    Args:
        excess: see `_excess`; half the check's own, half that of all checks of its kind, so that a variance which few
            days happen to show as small makes no alarm (moderated t: Smyth 2004, section 3).
    """
    usual = float(np.mean([_stable(kind, rate) for rate in days]))
    own = _variance(kind, now) + float(np.mean([_variance(kind, rate) for rate in days])) / len(days)
    distance = abs(_stable(kind, now) - usual) / math.sqrt(own * max(excess, 1.0))
    return float(2 * stats.t.sf(distance, 2 * (len(days) - 1)))


def _stable(kind: Kind, rate: Rate) -> float:
    """The rate on a scale on which its luck does not depend on its size."""
    if kind in (Kind.VOLUME, Kind.CALIBRATION):
        return math.log((rate.events + 0.5) / (rate.base + (0.5 if kind is Kind.CALIBRATION else 0.0)))
    return 2 * math.asin(math.sqrt((rate.events + 0.375) / (rate.base + 0.75)))


def _variance(kind: Kind, rate: Rate) -> float:
    """What counting alone makes of the variance on that scale."""
    if kind in (Kind.VOLUME, Kind.CALIBRATION):
        return max(1 / (rate.events + 0.5), rate.error**2)
    return 1 / (rate.base + 0.75)


def _shown(kind: Kind, value: float) -> str:
    match kind:
        case Kind.VOLUME:
            return f"{value:,.0f}"
        case Kind.CALIBRATION:
            return f"{value:.2f}"
        case _:
            return f"{value:.2%}"
