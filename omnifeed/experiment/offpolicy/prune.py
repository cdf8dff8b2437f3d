"""Which candidates are worth traffic: keep, drop or cannot say. No answer here promotes anything.

A candidate is dropped only where the log shows that it earns less than the champion by more than the margin; whatever
cannot be shown goes on to the offline comparison and the A/B test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

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
    estimate: Estimate  # the candidate's; the champion's where that cannot be read
    relative: float | None  # candidate / champion - 1 on the same answers
    low: float | None  # of it; each end is one-sided at alpha / candidates
    high: float | None


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

    Each comparison is made at alpha / candidates: the chance that any candidate is dropped whose loss is no more than
    the margin is at most alpha.

    Args:
        margin: relative loss that is still let through, e.g. 0.05.
        champion: float64 [R, K], the champion's probabilities; by default it is the policy that drew the log.

    Raises:
        InputError: shapes differ, or the margin is not in [0, 1).
    """
    if not 0 <= margin < 1:
        raise InputError(f"The margin is {margin:g}.", "Give a relative loss of at least 0 and below 1.")
    baseline = log.propensity if champion is None else champion
    kind = Estimator.SNIPS if estimator is Estimator.DR else estimator
    own = estimate(kind, log, baseline, limits=limits)
    problem = " ".join(refusal.text for refusal in own.refusals)
    if own.usable and (own.value or 0.0) <= 0:
        problem = "It is zero or less."
    if problem:
        text = f"The champion's own value cannot be read: {problem}"
        return tuple(Pruned(each.name, Advice.CANNOT_SAY, text, own, None, None, None) for each in candidates)
    reference, _ = linearised(kind, log, baseline)
    rule = _Rule(estimator, reference, margin, lower_is_better, alpha / max(len(candidates), 1), limits)
    return tuple(rule.advise(log, candidate) for candidate in candidates)


@dataclass(frozen=True, slots=True)
class _Rule:
    estimator: Estimator
    reference: Linearised
    margin: float
    lower_is_better: bool
    level: float
    limits: Limits | None

    def advise(self, log: LoggedSlates, candidate: Candidate) -> Pruned:
        found = estimate(
            self.estimator,
            log,
            candidate.target,
            model=candidate.model,
            limits=self.limits,
            outside=candidate.outside,
        )
        if found.refusals:
            text = " ".join(refusal.text for refusal in found.refusals)
            return Pruned(candidate.name, Advice.CANNOT_SAY, text, found, None, None, None)
        own, _ = linearised(self.estimator, log, candidate.target, candidate.model)
        ratio = own.value / self.reference.value
        influence = (own.influence - ratio * self.reference.influence) / self.reference.value
        low, high = Linearised(ratio - 1, influence).interval(2 * self.level)
        worse = low > self.margin if self.lower_is_better else high < -self.margin
        text = (
            f"{ratio - 1:+.1%} against the champion ({low:+.1%} to {high:+.1%}): "
            + ("worse by more than" if worse else "not shown to be worse by")
            + f" {self.margin:.0%}."
        )
        return Pruned(candidate.name, Advice.DROP if worse else Advice.KEEP, text, found, ratio - 1, low, high)
