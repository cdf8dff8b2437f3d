"""Effects with their uncertainty: tea-tasting's tests on aggregated numbers.

Welch's t-test on per-user totals, adjusted by the period before where it is known (CUPED: Deng et al., "Improving the
Sensitivity of Online Controlled Experiments by Utilizing Pre-Experiment Data", WSDM 2013). Hypotheses have a direction
that was fixed beforehand, so tests are one-sided at alpha, and the interval shown is the two-sided (1 - 2 alpha) one:
each of its ends is the one-sided bound that the verdict reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tea_tasting as tt
from tea_tasting.aggr import Aggregates
from tea_tasting.experiment import ExperimentResult

from omnifeed.experiment.evidence import CHALLENGER, CHAMPION, ArmNumbers
from omnifeed.experiment.metrics import Metric


@dataclass(frozen=True, slots=True)
class Effect:
    """Challenger against champion in one metric and scope; None where the numbers do not allow it (no events)."""

    champion: float  # mean a user, adjusted by CUPED where possible
    challenger: float
    difference: float
    standard_error: float | None  # of the difference
    relative: float | None  # difference / champion
    low: float | None  # of the relative difference, two-sided 1 - 2 alpha
    high: float | None
    p_better: float  # one-sided, null: not better; 1 where not testable
    p_worse: float  # one-sided, null: not worse; 1 where not testable


def effect(champion: ArmNumbers, challenger: ArmNumbers, metric: Metric, alpha: float) -> Effect:
    """Compare two arms in one metric."""
    covariate = f"before_{metric.name}" if metric.name in champion.covariate_mean else None
    test = tt.Mean(metric.name, covariate, confidence_level=1 - 2 * alpha)
    data: dict[object, Aggregates] = {
        CHAMPION: _aggregates(champion, metric.name, covariate),
        CHALLENGER: _aggregates(challenger, metric.name, covariate),
    }
    with np.errstate(all="ignore"):  # an arm without events: handled below
        result = tt.Experiment({metric.name: test}).analyze(data, control=CHAMPION)[metric.name]
    up = result.pvalue / 2 if result.effect_size > 0 else 1 - result.pvalue / 2
    if math.isnan(up):
        p_better = p_worse = 1.0
    else:
        p_better, p_worse = (1 - up, up) if metric.lower_is_better else (up, 1 - up)
    testable = bool(result.effect_size) and math.isfinite(result.statistic)
    relative = _finite(result.rel_effect_size)
    low, high = _finite(result.rel_effect_size_ci_lower), _finite(result.rel_effect_size_ci_upper)
    if (low is None or high is None) and relative is not None and result.control > 0:
        # No event in the challenger: the interval of the logarithm has no width, that of the difference has.
        low = _finite(max(result.effect_size_ci_lower / result.control, -1.0))
        high = _finite(result.effect_size_ci_upper / result.control)
    return Effect(
        champion=float(result.control),
        challenger=float(result.treatment),
        difference=float(result.effect_size),
        standard_error=result.effect_size / result.statistic if testable else None,
        relative=relative,
        low=low,
        high=high,
        p_better=float(p_better),
        p_worse=float(p_worse),
    )


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


def _aggregates(numbers: ArmNumbers, name: str, covariate: str | None) -> Aggregates:
    mean, variance = {name: numbers.mean[name]}, {name: numbers.variance[name]}
    covariance = {}
    if covariate is not None:
        mean[covariate] = numbers.covariate_mean[name]
        variance[covariate] = numbers.covariate_variance[name]
        covariance[(name, covariate)] = numbers.covariance[name]
    return Aggregates(count_=numbers.users, mean_=mean, var_=variance, cov_=covariance)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
