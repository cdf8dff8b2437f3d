"""How many users a test needs before it is started."""

from __future__ import annotations

from typing import Literal

import tea_tasting as tt
from tea_tasting.aggr import Aggregates


def required_users(
    mean: float,
    variance: float,
    relative_effect: float,
    alpha: float,
    power: float,
    challenger_share: float = 0.5,
    covariate_correlation: float = 0.0,
) -> int:
    """Users in both arms together to show an effect with a one-sided test (normal approximation of the verdict's).

    Args:
        mean: of the per-user total over the horizon, from past data.
        variance: of the same, over users.
        relative_effect: smallest effect worth finding, as a fraction of the mean; negative where lower is better.
        alpha: one-sided error. With m success metrics under Holm, alpha / m is on the safe side.
        power: probability of showing the effect when it is there.
        challenger_share: share of the users in the challenger's arm.
        covariate_correlation: between the total and the one of the period before; CUPED leaves 1 - r^2 of the variance.
    """
    alternative: Literal["greater", "less"] = "greater" if relative_effect > 0 else "less"
    test = tt.Mean(
        "metric",
        alternative=alternative,
        use_t=False,  # its search for a number starts at three users, where an uneven split has no t distribution
        rel_effect_size=relative_effect,
        alpha=alpha,
        power=power,
        ratio=challenger_share / (1 - challenger_share),
    )
    left = variance * (1 - covariate_correlation**2)
    data = Aggregates(count_=100, mean_={"metric": mean}, var_={"metric": left}, cov_={})
    (result,) = test.solve_power_from_aggregates(data, "n_obs")
    return int(result.n_obs)
