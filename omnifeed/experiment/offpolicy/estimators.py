"""What a target policy would have earned an answer, from answers that another policy drew.

Every estimator is a sum of ratios of sums over answers, sum_c (sum_i A_ic / sum_i B_ic). One delta method serves:
with users as the sampled units, the estimate's variance is m / (m - 1) sum_u e_u^2, where e_u = sum_c sum_{i of u}
(A_ic - V_c B_ic) / sum_i B_ic (Taylor linearisation of a ratio under cluster sampling; Deng et al., "Applying the Delta
Method in Metric Analytics", KDD 2018). Weighted rewards are skewed, and a symmetric interval then lies too low; Hall's
cubic transformation of the studentised value takes the skewness out (Hall, "On the Removal of Skewness by
Transformation", Journal of the Royal Statistical Society B 54, 1992).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np

from omnifeed.errors import InputError
from omnifeed.experiment.offpolicy.overlap import Limits, Overlap, Refusal, broken, overlap, refusals
from omnifeed.experiment.offpolicy.slates import Floats, LoggedSlates


class Estimator(StrEnum):
    """How weights are used. With w_k the product of target / propensity over positions 1 to k of an answer:

    IPS: mean of w_K r, the whole answer's weight on its whole reward (Horvitz and Thompson 1952). Assumes nothing.
    SNIPS: the same over the weights' sum (Swaminathan and Joachims 2015). Biased by O(1/n), steadier.
    RIPS: sum_k mean of w_k r_k (reward interaction IPS; McInerney et al., "Counterfactual Evaluation of Slate
        Recommendations with Sequential Reward Interactions", KDD 2020). Assumes that what a position earns depends on
        the items at and above it, as when people read from the top.
    SNRIPS: the same, each position over its own weights' sum.
    DR: sum_k mean of w_k (r_k - q_k) + w_{k-1} v_k, where q is a model's prediction for the logged item and v the
        target's mean of it (cascade doubly robust; Kiyohara et al. 2022; with one position the doubly
        robust of Dudík et al. 2011). Assumes what RIPS does; a good model makes it steadier, none makes it biased if
        it was cross-fitted: each user's predictions from a model that never saw that user.
    """

    IPS = "ips"
    SNIPS = "snips"
    RIPS = "rips"
    SNRIPS = "snrips"
    DR = "dr"


@dataclass(frozen=True, slots=True)
class RewardModel:
    """Cross-fitted predictions of what a position earns (`slates.user_folds`), given the items above it.

    Args:
        logged: float64 [R, K], of the logged item.
        target: float64 [R, K], averaged over the items that the target might show there.
    """

    logged: Floats
    target: Floats


@dataclass(frozen=True, slots=True)
class Estimate:
    """A target's mean reward an answer. Where `refusals` is not empty the numbers must not be used."""

    estimator: Estimator
    value: float | None  # None where the log itself is broken
    standard_error: float | None
    low: float | None
    high: float | None
    overlap: Overlap | None
    refusals: tuple[Refusal, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.refusals


@dataclass(frozen=True, slots=True)
class Linearised:
    """A value with each user's influence on it; differences of values subtract both."""

    value: float
    influence: Floats  # [users], ordered by user

    @property
    def standard_error(self) -> float:
        """By the spread of users."""
        users = len(self.influence)
        return float(np.sqrt(users / max(users - 1, 1) * (self.influence**2).sum()))

    def interval(self, alpha: float) -> tuple[float, float]:
        """Two-sided, of level 1 - alpha; each end is a one-sided bound of level 1 - alpha / 2.

        With T the studentised error and a = sum e^3 / (sum e^2)^1.5, g(T) = T + a T^2 / 3 + a^2 T^3 / 27 + a / 6 is
        closer to normal than T; g has an inverse.
        """
        square = float((self.influence**2).sum())
        if square <= 0:
            return self.value, self.value
        skew = float((self.influence**3).sum()) / square**1.5
        z = NormalDist().inv_cdf(1 - alpha / 2)
        low, high = (
            3 / skew * (np.cbrt(1 + skew * (point - skew / 6)) - 1) if abs(skew) > 1e-6 else point for point in (z, -z)
        )
        return self.value - float(low) * self.standard_error, self.value - float(high) * self.standard_error


def weights(log: LoggedSlates, target: Floats) -> Floats:
    """w_k = prod_{j <= k} target_j / propensity_j, float64 [R, K]; constant beyond an answer's end."""
    ratio = np.where(log.shown, target / np.where(log.shown, log.propensity, 1.0), 1.0)
    return np.asarray(np.cumprod(ratio, axis=1), np.float64)


def linearised(
    estimator: Estimator, log: LoggedSlates, target: Floats, model: RewardModel | None = None
) -> tuple[Linearised, Overlap]:
    """The estimate with users' influences, and the overlap it stands on; numbers must not be broken."""
    weight, reward = weights(log, target), np.where(log.shown, log.reward, 0.0)
    if estimator in (Estimator.IPS, Estimator.SNIPS):
        weight, reward = weight[:, -1:], reward.sum(1, keepdims=True)
    top = weight * reward
    if estimator is Estimator.DR:
        if model is None or model.logged.shape != reward.shape or model.target.shape != reward.shape:
            raise InputError("DR has no predictions in the log's shape.", "Give a RewardModel of arrays [R, K].")
        above = np.concatenate([np.ones((len(weight), 1)), weight[:, :-1]], axis=1)
        correction = above * model.target - weight * model.logged
        top = top + np.where(log.shown, correction, 0.0)
    bottom = weight if estimator in (Estimator.SNIPS, Estimator.SNRIPS) else np.ones_like(weight)
    total = bottom.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(total > 0, top.sum(0) / total, 0.0)
        each = np.where(total > 0, (top - parts * bottom) / total, 0.0).sum(1)
    code = np.unique(log.user, return_inverse=True)[1]
    return Linearised(float(parts.sum()), np.bincount(code, weights=each).astype(np.float64)), overlap(
        log, weight, reward
    )


def estimate(
    estimator: Estimator,
    log: LoggedSlates,
    target: Floats,
    *,
    model: RewardModel | None = None,
    alpha: float = 0.05,
    limits: Limits | None = None,
    outside: float = 0.0,
) -> Estimate:
    """The target's mean reward an answer, with its interval of level 1 - alpha, or the reasons to refuse it.

    Args:
        target: float64 [R, K], the target policy's probability of the logged item given the items above it.
        outside: the target's probability of answers that the log could not show, where the caller knows it.

    Raises:
        InputError: shapes differ, or DR has no model.
    """
    check(log, target)
    faults = broken(log, target)
    if faults:
        return Estimate(estimator, None, None, None, None, None, faults)
    found, reach = linearised(estimator, log, target, model)
    low, high = found.interval(alpha)
    reasons = refusals(reach, limits or Limits(), outside)
    return Estimate(estimator, found.value, found.standard_error, low, high, reach, reasons)


def check(log: LoggedSlates, target: Floats) -> None:
    """Raise InputError unless the target's probabilities have the log's shape and there is a log."""
    if target.shape != log.shown.shape:
        raise InputError(f"Target has shape {target.shape}, the log {log.shown.shape}.", "Line them up.")
    if not log.shown.any():
        raise InputError("The log has no answers.", "Give explored traffic: answers that have propensities.")
