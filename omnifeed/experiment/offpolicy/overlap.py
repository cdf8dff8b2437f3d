"""Whether a log can say anything about a policy: effective sample size, and the reasons for which we refuse.

The bounds of `Limits` come from the coverage that was measured within and beyond them: see docs/off-policy.md. They
look at weights and at how many users earned anything, never at weighted rewards: a bound on those passes just the
samples that happen to lack the heavy ones, and intervals then miss far more often than their level.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from omnifeed.experiment.offpolicy.slates import Floats, LoggedSlates


class Reason(StrEnum):
    """Why a log cannot speak for a policy."""

    TOO_FEW_USERS = "too_few_users"
    PROPENSITY_MISSING = "propensity_missing"
    PROPENSITY_INVALID = "propensity_invalid"
    TARGET_MISSING = "target_missing"
    TARGET_INVALID = "target_invalid"
    REWARD_INVALID = "reward_invalid"
    OUTSIDE_SUPPORT = "outside_support"
    WEIGHTS_NOT_ONE = "weights_not_one"
    LOW_EFFECTIVE_SIZE = "low_effective_size"
    ONE_WEIGHT_RULES = "one_weight_rules"
    TOO_FEW_EVENTS = "too_few_events"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason, in words."""

    reason: Reason
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where estimates stop being believed."""

    users: int = 2_000  # with fewer, the handful of bots and enthusiasts among them is too small to show its spread
    effective_share: float = 0.05  # of the answers (Kish)
    weight_share: float = 0.02  # of all weight, in one user
    events: float = 100.0  # users with a reward, times the effective share
    outside: float = 0.01  # the target's probability of answers that the log could not show
    deviation: float = 4.0  # standard errors of the mean weight from 1


@dataclass(frozen=True, slots=True)
class Overlap:
    """How far a log reaches: every number over the answers' weights, positions counted by their share of rewards."""

    answers: int
    users: int
    effective_answers: float  # Kish: (sum w)^2 / sum w^2
    largest_user_share: float  # of all weight
    effective_events: float  # users with a reward, times the effective share of the answers
    mean_weight: float  # 1 in expectation, if the propensities are true and the log could show all that the target does
    mean_weight_error: float  # its standard error


def broken(log: LoggedSlates, target: Floats) -> tuple[Refusal, ...]:
    """What is wrong with the numbers themselves."""
    found = []
    shown, count = log.shown, int(log.shown.sum())

    def add(reason: Reason, bad: int, text: str) -> None:
        if bad:
            found.append(Refusal(reason, f"{bad:,} of {count:,} logged positions {text}"))

    logged, wanted = log.propensity[shown], target[shown]
    add(Reason.PROPENSITY_MISSING, int(np.isnan(logged).sum()), "have no propensity.")
    outside = ~np.isnan(logged) & ~((logged > 0) & (logged <= 1))
    add(Reason.PROPENSITY_INVALID, int(outside.sum()), "have a propensity of zero, below zero or above one.")
    add(Reason.TARGET_MISSING, int(np.isnan(wanted).sum()), "have no probability under the target policy.")
    outside = ~np.isnan(wanted) & ~((wanted >= 0) & (wanted <= 1))
    add(Reason.TARGET_INVALID, int(outside.sum()), "have a target probability below zero or above one.")
    add(Reason.REWARD_INVALID, int((~np.isfinite(log.reward[shown])).sum()), "have a reward that is not a number.")
    return tuple(found)


def overlap(log: LoggedSlates, weight: Floats, reward: Floats) -> Overlap:
    """Measure it.

    Args:
        weight: float64 [R, C], the importance weights of an estimator's parts (C = 1: the whole answer; or one a
            position, up to and with it).
        reward: float64 [R, C], the logged rewards they multiply.
    """
    users, code = np.unique(log.user, return_inverse=True)
    by_part = np.abs(reward).sum(0)
    share = by_part / by_part.sum() if by_part.sum() > 0 else np.full(len(by_part), 1 / max(len(by_part), 1))
    total, square = weight.sum(0), (weight**2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        inflation = np.where(total > 0, square / total**2, np.inf)
        used = share > 0
        effective = 1 / float((share[used] * inflation[used]).sum()) if used.any() else 0.0
        relative = np.where(total > 0, weight / total, 0.0)
    by_user = np.bincount(code, weights=relative @ share, minlength=len(users))
    rewarded = np.bincount(code, weights=np.abs(reward).sum(1), minlength=len(users)) > 0
    typical = weight @ share
    count = max(len(weight), 1)
    mean = float(typical.sum() / count)
    spread = np.bincount(code, weights=typical - mean, minlength=len(users))
    return Overlap(
        answers=len(weight),
        users=len(users),
        effective_answers=effective,
        largest_user_share=float(by_user.max(initial=0.0)),
        effective_events=float(rewarded.sum()) * effective / count,
        mean_weight=mean,
        mean_weight_error=float(np.sqrt((spread**2).sum() * len(users) / max(len(users) - 1, 1)) / count),
    )


def refusals(found: Overlap, limits: Limits, outside: float) -> tuple[Refusal, ...]:
    """The reasons for which an estimate on this overlap must not be used; empty if it may be.

    Args:
        outside: the target's probability of answers that the log could not show.
    """
    reasons = []
    if found.users < limits.users:
        reasons.append(Refusal(Reason.TOO_FEW_USERS, f"{found.users:,} users; {limits.users:,} are needed."))
    if outside > limits.outside:
        text = f"With probability {outside:.1%} the target shows what the log could not; {limits.outside:.1%} may."
        reasons.append(Refusal(Reason.OUTSIDE_SUPPORT, text))
    if abs(found.mean_weight - 1) > max(limits.deviation * found.mean_weight_error, 1e-9):
        text = (
            f"Weights average {found.mean_weight:.3g} (standard error {found.mean_weight_error:.2g}) and not 1: the "
            "propensities are not those of the log's draws, or the target shows what the log never could."
        )
        reasons.append(Refusal(Reason.WEIGHTS_NOT_ONE, text))
    share = found.effective_answers / max(found.answers, 1)
    if share < limits.effective_share:
        text = (
            f"{found.answers:,} answers are worth {found.effective_answers:,.0f} under the target ({share:.2%}; "
            f"{limits.effective_share:.0%} are needed)."
        )
        reasons.append(Refusal(Reason.LOW_EFFECTIVE_SIZE, text))
    if found.largest_user_share > limits.weight_share:
        text = f"One user holds {found.largest_user_share:.1%} of all weight; {limits.weight_share:.0%} is allowed."
        reasons.append(Refusal(Reason.ONE_WEIGHT_RULES, text))
    if found.effective_events < limits.events:
        worth = f"{found.effective_events:.1f} under the target"
        text = f"The users with a reward are worth {worth}; {limits.events:.0f} are needed."
        reasons.append(Refusal(Reason.TOO_FEW_EVENTS, text))
    return tuple(reasons)
