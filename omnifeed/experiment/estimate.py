"""Effects with their uncertainty: tea-tasting's tests on aggregated numbers.

Welch's t-test on per-user totals and, by the delta method, on ratios of them, adjusted by the period before where it
is known (CUPED: Deng et al., "Improving the Sensitivity of Online Controlled Experiments by Utilizing Pre-Experiment
Data", WSDM 2013). Hypotheses have a direction that was fixed beforehand, so tests are one-sided at alpha, and the
interval shown is the two-sided (1 - 2 alpha) one: each of its ends is the one-sided bound that the verdict reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tea_tasting as tt
from tea_tasting.aggr import Aggregates
from tea_tasting.experiment import ExperimentResult

from omnifeed.experiment.evidence import CHALLENGER, CHAMPION, ArmNumbers
from omnifeed.experiment.metrics import Metric

#: A relative bound beyond it (+1000 %) says only that the log is too small: not estimable.
LARGEST = 10.0


@dataclass(frozen=True, slots=True)
class Effect:
    """Challenger against champion in one metric and scope; None where the numbers do not allow an estimate."""

    champion: float  # mean a user, or ratio of means; adjusted by CUPED where possible
    challenger: float
    difference: float
    standard_error: float | None  # of the difference
    relative: float | None  # difference / champion
    low: float | None  # of the relative difference, two-sided 1 - 2 alpha
    high: float | None
    p_better: float  # one-sided, null: not better; 1 where not testable
    p_worse: float  # one-sided, null: not worse; 1 where not testable


def test_of(metric: Metric, numbers: ArmNumbers, **options: Any) -> tt.RatioOfMeans:
    """The test of one metric, adjusted by the period before where the numbers know it."""
    numerator, denominator = (metric.of, metric.per) if metric.per else (metric.name, None)
    adjusted = all(name in numbers.covariate_mean for name in filter(None, (numerator, denominator)))
    return tt.RatioOfMeans(
        numerator,
        denominator,
        f"before_{numerator}" if adjusted else None,
        f"before_{denominator}" if adjusted and denominator else None,
        **options,
    )


def effect(champion: ArmNumbers, challenger: ArmNumbers, metric: Metric, alpha: float) -> Effect:
    """Compare two arms in one metric."""
    test = test_of(metric, champion, confidence_level=1 - 2 * alpha)
    data: dict[object, Aggregates] = {
        CHAMPION: aggregates(champion, metric),
        CHALLENGER: aggregates(challenger, metric),
    }
    try:
        with np.errstate(all="ignore"):  # an arm without events: handled below
            result = tt.Experiment({metric.name: test}).analyze(data, control=CHAMPION)[metric.name]
    except (ValueError, OverflowError):  # so few users that a variance falls below zero, or an interval has no end
        means = _plain(champion, metric), _plain(challenger, metric)
        return Effect(means[0], means[1], 0.0, None, None, None, None, p_better=1.0, p_worse=1.0)
    up = result.pvalue / 2 if result.effect_size > 0 else 1 - result.pvalue / 2
    if math.isnan(up):
        p_better = p_worse = 1.0
    else:
        p_better, p_worse = (1 - up, up) if metric.lower_is_better else (up, 1 - up)
    testable = bool(result.effect_size) and math.isfinite(result.statistic)
    relative = _finite(result.rel_effect_size) if result.control > 0 else None
    low, high = _finite(result.rel_effect_size_ci_lower), _finite(result.rel_effect_size_ci_upper)
    if (low is None or high is None) and relative is not None:
        # No event in the challenger: the interval of the logarithm has no width, that of the difference has.
        low = _finite(max(result.effect_size_ci_lower / result.control, -1.0))
        high = _finite(result.effect_size_ci_upper / result.control)
    if relative is None or relative < -1:  # totals are not negative: the adjustment left no mean to divide by
        relative = low = high = None
    if low is None or high is None or high > LARGEST:
        low = high = None
    return Effect(
        champion=_finite(result.control) or 0.0,
        challenger=_finite(result.treatment) or 0.0,
        difference=_finite(result.effect_size) or 0.0,
        standard_error=result.effect_size / result.statistic if testable else None,
        relative=relative,
        low=low,
        high=high,
        p_better=float(p_better),
        p_worse=float(p_worse),
    )


def null_standard_error(champion: ArmNumbers, challenger: ArmNumbers, metric: Metric) -> float | None:
    """Standard error of the difference if the challenger's users spread as the champion's do; None if those do not.

    A few users of whom none bought have no variance of their own, and would make any loss look certain; at a ramp's
    first stage that is the rule. Their spread under the hypothesis of no effect is the champion's.
    """
    above = metric.of or metric.name
    moved = champion.mean[above] * (1 + 1e-6)  # an effect of 0 has no statistic
    alike = replace(champion, arm=CHALLENGER, users=challenger.users, mean={**champion.mean, above: moved})
    return effect(champion, alike, metric, 0.05).standard_error


def sample_ratio_p_value(champion_users: int, challenger_users: int, champion_weight: float) -> float:
    """Two-sided p-value of the users' split against the planned one (exact binomial below 1,000 users)."""
    test = tt.SampleRatio({CHAMPION: champion_weight, CHALLENGER: 1 - champion_weight})
    data: dict[object, Aggregates] = {
        CHAMPION: Aggregates(count_=champion_users),
        CHALLENGER: Aggregates(count_=challenger_users),
    }
    return float(tt.Experiment({"split": test}).analyze(data, control=CHAMPION)["split"].pvalue)


def holm(p_values: Mapping[str, float], alpha: float) -> dict[str, float]:
    """Holm's step-down adjusted p-values (Bonferroni steps: valid under any dependence); reject where <= alpha."""
    if not p_values:
        return {}
    results = ExperimentResult({name: {"pvalue": value} for name, value in p_values.items()})
    adjusted = tt.adjust_fwer(results, alpha=alpha, arbitrary_dependence=True, method="bonferroni")
    (family,) = adjusted.values()
    return {name: float(family[name]["pvalue_adj"]) for name in p_values}


def aggregates(numbers: ArmNumbers, metric: Metric) -> Aggregates:
    """What the test of one metric needs of the numbers, in tea-tasting's form."""
    names = [name for name in (metric.of, metric.per) if name] or [metric.name]
    past = [name for name in names if name in numbers.covariate_mean]
    needed = {*names, *(f"before_{name}" for name in past)}
    pairs = {tuple(key.split(" ")): value for key, value in numbers.cross.items()}
    return Aggregates(
        count_=numbers.users,
        mean_={
            **{name: numbers.mean[name] for name in names},
            **{f"before_{name}": numbers.covariate_mean[name] for name in past},
        },
        var_={
            **{name: numbers.variance[name] for name in names},
            **{f"before_{name}": numbers.covariate_variance[name] for name in past},
        },
        cov_={
            **{(name, f"before_{name}"): numbers.covariance[name] for name in past},
            **{(left, right): value for (left, right), value in pairs.items() if needed >= {left, right}},
        },
    )


def _plain(numbers: ArmNumbers, metric: Metric) -> float:
    """The mean, or ratio of means, without adjustment."""
    if not metric.per:
        return numbers.mean[metric.name]
    return numbers.mean[metric.of] / numbers.mean[metric.per] if numbers.mean[metric.per] else 0.0


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
