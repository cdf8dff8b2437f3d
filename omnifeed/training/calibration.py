"""Platt scaling per scenario and task on the validation days, kept inside the network so that ONNX holds it.

A scenario is drawn towards the scale and bias of all scenarios pooled, which it takes whole when it has too few
positives; so does an unknown scenario.
A task with a parent is scaled in its conditional logit against the product of both probabilities, so order <= click
still holds. Scale is positive: calibration never changes the order of candidates by one task.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

Doubles = npt.NDArray[np.float64]

MIN_POSITIVES = 20  # of a scenario and task, and as many negatives
PRIOR = 0.5  # weight of the squared distance, in (log scale, bias), from the centre


def fit_affine(
    logits: Doubles, labels: Doubles, parent: Doubles, centre: tuple[float, float] = (1.0, 0.0)
) -> tuple[float, float]:
    """The scale and bias that minimise the log loss of parent * sigmoid(scale * logit + bias), drawn to a centre.

    Args:
        logits, labels, parent: float64 [N]; parent is 1 for a task of its own.
        centre: scale and bias without data.

    Returns:
        (scale, bias), scale positive.
    """
    origin = np.array([np.log(centre[0]), centre[1]])

    def objective(x: Doubles) -> tuple[float, Doubles]:
        scale, bias = np.exp(x[0]), x[1]
        q = expit(scale * logits + bias)
        p = np.clip(parent * q, 1e-9, 1 - 1e-9)
        loss = -(labels * np.log(p) + (1 - labels) * np.log1p(-p)).sum() + PRIOR * ((x - origin) @ (x - origin))
        slope = (p - labels) / (1 - p) * (1 - q)
        gradient = np.array([(slope * logits).sum() * scale, slope.sum()]) + 2 * PRIOR * (x - origin)
        return float(loss), gradient

    result = minimize(objective, origin, jac=True, method="L-BFGS-B", bounds=[(-4, 4), (-20, 20)])
    return float(np.exp(result.x[0])), float(result.x[1])


def calibrate(
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int8],
    scenario: npt.NDArray[np.int64],
    scenarios: int,
    parents: tuple[int, ...],
) -> tuple[Doubles, Doubles]:
    """Scales and biases.

    Args:
        logits: float32 [N, tasks], uncalibrated. labels: int8 [N, tasks], -1 where not known.
        scenario: int64 [N], encode's scenario id. scenarios: size of the vocabulary, unknown included.
        parents: index of each task's parent, -1 for none.

    Returns:
        scale and bias, float64 [scenarios, tasks].
    """
    tasks = logits.shape[1]
    scale, bias = np.ones((scenarios, tasks)), np.zeros((scenarios, tasks))
    calibrated = np.ones((len(logits), tasks))
    for task in sorted(range(tasks), key=lambda t: parents[t] >= 0):
        known = labels[:, task] >= 0
        x = logits[:, task].astype(np.float64)
        above = calibrated[:, parents[task]] if parents[task] >= 0 else np.ones(len(x))

        def fit(
            rows: npt.NDArray[np.bool_],
            centre: tuple[float, float],
            x: Doubles = x,
            task: int = task,
            above: Doubles = above,
        ) -> tuple[float, float]:
            y = labels[rows, task].astype(np.float64)
            if y.sum() < MIN_POSITIVES or (1 - y).sum() < MIN_POSITIVES:
                return centre
            return fit_affine(x[rows], y, above[rows], centre)

        pooled = fit(known, (1.0, 0.0))
        for name in range(scenarios):
            scale[name, task], bias[name, task] = fit(known & (scenario == name), pooled) if name else pooled
        calibrated[:, task] = above * expit(x * scale[scenario, task] + bias[scenario, task])
    return scale, bias
