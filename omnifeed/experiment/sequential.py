"""When harm may be called before the horizon: an asymptotic confidence sequence.

A fixed-horizon interval that is looked at every day rings false far more often than its level says (20 looks at 5 %:
about one in four). A confidence sequence covers at all times together, so that a gate which runs every hour may act on
it. It is wider: success is still read once, with the ordinary interval, at the horizon written down beforehand.

Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences", 2024, arXiv:2103.06476: Theorem 2.2 for the sequence, and the closed form of the rho that is tightest at n*.
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
