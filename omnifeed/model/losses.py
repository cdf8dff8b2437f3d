"""The joint loss's two terms."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_softmax(
    user_vec: Tensor,
    positive_request: Tensor,
    positive_key: Tensor,
    weight: Tensor,
    negative_key: Tensor,
    negative_mask: Tensor,
    temperature: float,
) -> Tensor:
    """Cross-entropy of each positive against negatives drawn uniformly and shared by the batch, cosine logits.

    Uniform negatives need no logQ correction (it is a constant). Masked negatives take no part.

    Args:
        user_vec: [R, d] of unit length. positive_request: int64 [P], row of each positive's request.
        positive_key: [P, d] and negative_key: [N, d], of unit length.
        weight: [P]. negative_mask: bool [R, N].

    Returns:
        The weighted mean, 0 without positives.
    """
    user = user_vec.index_select(0, positive_request)
    positive = (user * positive_key).sum(-1, keepdim=True) / temperature
    negative = (user_vec @ negative_key.T / temperature).masked_fill(~negative_mask, -1e9)
    logits = torch.cat([positive, negative.index_select(0, positive_request)], dim=1)
    loss = torch.logsumexp(logits, dim=1) - logits[:, 0]
    return (loss * weight).sum() / weight.sum().clamp(min=1e-6)


def task_losses(logits: Tensor, labels: Tensor, parents: tuple[int, ...]) -> Tensor:
    """Mean binary cross-entropy of each task over its known labels.

    Args:
        logits: [..., tasks], of the conditional probability where a task has a parent.
        labels: [..., tasks], 1, 0, or -1 where not known.
        parents: index of each task's parent, -1 for none.

    Returns:
        [tasks], 0 for a task without a known label.
    """
    log_p = torch.nn.functional.logsigmoid(logits).unbind(-1)
    log_q = torch.nn.functional.logsigmoid(-logits).unbind(-1)
    losses = []
    for task, parent in enumerate(parents):
        label = labels[..., task].to(logits.dtype)
        if parent < 0:
            yes, no = log_p[task], log_q[task]
        else:  # 1 - p q = (1 - p) + p (1 - q)
            yes = log_p[parent] + log_p[task]
            no = torch.logaddexp(log_q[parent], log_p[parent] + log_q[task])
        known = (label >= 0).to(logits.dtype)
        loss = -(label * yes + (1 - label) * no) * known
        losses.append(loss.sum() / known.sum().clamp(min=1))
    return torch.stack(losses)
