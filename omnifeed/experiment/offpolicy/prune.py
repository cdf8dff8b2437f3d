"""Which candidates are worth traffic: keep, drop or cannot say. No answer here promotes anything.

A candidate is dropped only where the log shows that it earns less than the champion by more than the margin; whatever
cannot be shown goes on to the offline comparison and the A/B test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np

from omnifeed.errors import InputError
from omnifeed.experiment.offpolicy.estimators import (
    Estimate,
    Estimator,
    Linearised,
    RewardModel,
    estimate,
    linearised,
)
from omnifeed.experiment.offpolicy.overlap import Limits
from omnifeed.experiment.offpolicy.slates import Floats, LoggedSlates


class Advice(StrEnum):
    """What to do with a candidate before any traffic."""

    KEEP = "keep"
    DROP = "drop"
    CANNOT_SAY = "cannot say"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target policy on the log."""

    name: str
    target: Floats  # [R, K], its probability of each logged item given those above
    model: RewardModel | None = None  # for DR
    outside: float = 0.0  # its probability of answers that the log could not show


@dataclass(frozen=True, slots=True)
class Pruned:
    """The advice and what it rests on."""

    name: str
    advice: Advice
    text: str
    estimate: Estimate
    relative: float | None  # to the champion's value on the same log
    upper: float | None  # the highest relative difference that the log admits


def prune(
    log: LoggedSlates,
    candidates: Sequence[Candidate],
    *,
    estimator: Estimator,
    margin: float,
    champion: Floats | None = None,
    lower_is_better: bool = False,
    alpha: float = 0.05,
    limits: Limits | None = None,
) -> tuple[Pruned, ...]:
    """Advise on each candidate, paired with the champion on the same answers.

    With as many comparisons as candidates, each is made at alpha / candidates: the chance that any candidate is dropped
    which is no worse than the margin allows is at most alpha.

    Args:
        margin: relative loss that is still let through, e.g. 0.05.
        champion: float64 [R, K], the champion's probabilities; by default it is the policy that drew the log.

    Raises:
        InputError: shapes differ, the margin is not in [0, 1), or the champion's own estimate has to be refused.
    """
    if not 0 <= margin < 1:
        raise InputError(f"The margin is {margin:g}.", "Give a relative loss of at least 0 and below 1.")
    baseline = log.propensity if champion is None else champion
    own = estimate(Estimator.SNIPS if estimator is Estimator.DR else estimator, log, baseline, limits=limits)
    if not own.usable:
        raise InputError(
            f"The champion's own value cannot be read from this log: {own.refusals[0].text}",
            "Collect more explored traffic.",
        )
    reference, _ = linearised(own.estimator, log, baseline)
    level = alpha / max(len(candidates), 1)
    return tuple(
        _advise(log, each, estimator, reference, -margin if not lower_is_better else margin, level, limits)
        for each in candidates
    )


def _advise(
    log: LoggedSlates,
    candidate: Candidate,
    estimator: Estimator,
    reference: Linearised,
    bound: float,
    level: float,
    limits: Limits | None,
) -> Pruned:
    found = estimate(
        estimator, log, candidate.target, model=candidate.model, limits=limits, outside=candidate.outside
    )
    if not found.usable:
        text = f"The log cannot say: {' '.join(refusal.text for refusal in found.refusals)}"
        return Pruned(candidate.name, Advice.CANNOT_SAY, text, found, None, None)
    own, _ = linearised(estimator, log, candidate.target, candidate.model)
    relative = own.value / reference.value - 1
    # delta method for the ratio of two values on the same users
    error = Linearised(
        relative, (own.influence - own.value / reference.value * reference.influence) / reference.value
    ).standard_error
    worse = -1.0 if bound <= 0 else 1.0
    del worse
    upper = relative + NormalDist().inv_cdf(1 - level) * error
    return Pruned(candidate.name, Advice.KEEP, "", found, relative, float(np.asarray(upper)))
