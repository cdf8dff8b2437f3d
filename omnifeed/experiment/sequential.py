"""What may be looked at every hour: harm, by an asymptotic confidence sequence, and the split of the users, by a
sequential test.

A fixed-horizon interval that is looked at every day rings false far more often than its level says (20 looks at 5 %:
about one in four). A confidence sequence covers at all times together, so that a gate which runs every hour may act on
it. It is wider: success is still read once, with the ordinary interval, at the horizon written down beforehand. So with
the users' split: a chi-square test at every look would sooner or later call any experiment a mismatch.

Sources: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences", 2024, arXiv:2103.06476: Theorem 2.2 for the sequence, and the closed form of the rho that is tightest at n*.
Lindon, Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022: equation 4, the Bayes factor.
"""

from __future__ import annotations

import math


def sequence_factor(information: float, alpha: float) -> float:
    """Half-width of the two-sided (1 - alpha) confidence sequence, in standard errors.

    With n observations, an estimate whose standard error is SE, and rho^2 = (-2 ln a + ln(-2 ln a + 1)) / n*, which
    makes the sequence tightest at n*, the half-width is SE * sqrt(2 (n rho^2 + 1) / (n rho^2) * ln(sqrt(n rho^2 + 1)
    / a)). Only n / n* enters. In an experiment on users whose totals grow with time, evidence accrues with time rather
    than with the number of users (most of them appear in the first week), so n / n* is the share of the planned
    duration that has elapsed.

    Args:
        information: n / n*, positive; 1 at the horizon.
        alpha: probability that the sequence ever misses the truth, over all looks together.
    """
    scaled = information * (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1))
    return math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / alpha))


CONCENTRATIONS = (1.0, 1e2, 1e4, 1e6)
"""Of the priors whose Bayes factors are averaged: the first is made for an arm that is missing, the last for a
split that is off by a fraction of a percent in a large one."""


def sequential_sample_ratio_p_value(champion_users: int, challenger_users: int, champion_weight: float) -> float:
    """Anytime-valid p-value of the users' split against the planned one: one may look after every user, and stop where
    it is at or below alpha. The inverse of `log_sample_ratio_evidence`, at most 1.
    """
    return math.exp(min(-log_sample_ratio_evidence(champion_users, challenger_users, champion_weight), 0.0))


def log_sample_ratio_evidence(champion_users: int, challenger_users: int, champion_weight: float) -> float:
    """Logarithm of the evidence against the planned split.

    The Bayes factor of "the champion's share is Beta(c w, c (1 - w))" against "it is w" is a martingale that starts at
    1 while users come as planned, and so is the mean of several; by Ville's inequality it ever reaches 1 / alpha with
    a probability of at most alpha.
    """
    factors = [
        _log_beta(c * champion_weight + champion_users, c * (1 - champion_weight) + challenger_users)
        - _log_beta(c * champion_weight, c * (1 - champion_weight))
        - champion_users * math.log(champion_weight)
        - challenger_users * math.log1p(-champion_weight)
        for c in CONCENTRATIONS
    ]
    highest = max(factors)
    return highest + math.log(sum(math.exp(each - highest) for each in factors) / len(factors))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
