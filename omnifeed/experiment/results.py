"""Two arms compared in every metric and scope: the numbers beside each other, before any rule is applied to them."""

from __future__ import annotations

from collections.abc import Sequence

from omnifeed.config import ExperimentConfig
from omnifeed.experiment.decision import MetricResult
from omnifeed.experiment.estimate import Effect, effect
from omnifeed.experiment.evidence import CHALLENGER, CHAMPION, ArmNumbers
from omnifeed.experiment.metrics import METRICS


def effects(numbers: Sequence[ArmNumbers], section: ExperimentConfig) -> dict[str, tuple[MetricResult, Effect]]:
    """Every metric in every scope where both arms have users, by "name@scope"; nothing is judged yet."""
    margins = dict(zip(section.guardrails, section.guardrail_margins, strict=True))
    arms = {(each.scope, each.arm): each for each in numbers}
    found = {}
    for scope in sorted({each.scope for each in numbers}):
        champion, challenger = arms.get((scope, CHAMPION)), arms.get((scope, CHALLENGER))
        if champion is None or challenger is None:
            continue
        for name in (*section.success, *section.guardrails, *section.quality):
            margin = margins.get(name) if not scope else None
            if scope and name == section.success[0]:
                margin = section.scenario_harm_margin
            each = effect(champion, challenger, METRICS[name], section.alpha)
            found[f"{name}@{scope}"] = (_result(name, champion, challenger, each, margin, section), each)
    return found


def _result(
    name: str,
    champion: ArmNumbers,
    challenger: ArmNumbers,
    found: Effect,
    margin: float | None,
    section: ExperimentConfig,
) -> MetricResult:
    metric = METRICS[name]
    return MetricResult(
        name=name,
        title=metric.title,
        role="success" if name in section.success else "guardrail" if name in section.guardrails else "quality",
        scenario=champion.scope or None,
        lower_is_better=metric.lower_is_better,
        users_champion=champion.users,
        users_challenger=challenger.users,
        champion=found.champion,
        challenger=found.challenger,
        relative=found.relative,
        low=found.low,
        high=found.high,
        margin=margin,
        p_value=found.p_better,
        p_adjusted=None,
        p_harm=found.p_worse,
        outcome="not judged",
    )
