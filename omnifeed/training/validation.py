"""What a network does on requests held out in time: the number that early stopping reads, the logits to calibrate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from omnifeed.config import TrainingConfig
from omnifeed.evaluation.metrics import AreaUnderCurve, positive_ranks, retrieval_metrics
from omnifeed.export.encode import Ints
from omnifeed.model.losses import task_losses
from omnifeed.model.network import Network
from omnifeed.training.batching import Sequences, batches, build
from omnifeed.training.dataset import TrainingData
from omnifeed.training.objective import ItemTable, forward


@dataclass(frozen=True, slots=True)
class Validation:
    """Metrics and uncalibrated logits of held-out requests."""

    auc: dict[str, float]  # by task, of the uncalibrated probabilities; absent where a class is missing
    recall: float  # mean recall@k over the requests with an engaged item, full catalogue; NaN without one
    loss: float  # sum of the tasks' losses, uncalibrated
    logits: npt.NDArray[np.float32]  # [N, tasks]
    labels: npt.NDArray[np.int8]  # [N, tasks]
    scenario: Ints  # [N]

    def score(self, settings: TrainingConfig) -> float:
        """What early stopping maximises: AUC of the first task plus recall, each where its head is trained at all.

        A missing one counts as zero.
        """
        area = next(iter(self.auc.values()), 0.0) if settings.ranking_weight else 0.0
        return area + (0.0 if np.isnan(self.recall) or not settings.retrieval_weight else self.recall)


def validate(
    network: Network, table: ItemTable, data: TrainingData, packed: Sequences, tokens: int, k: int
) -> Validation:
    """Run the network in evaluation mode over packed requests.

    Args:
        k: cut-off of the recall.
    """
    network.eval()
    logits, labels, scenarios = [], [], []
    hits, asked = 0.0, 0
    everything = torch.arange(len(data.items.created), device=next(network.parameters()).device)
    with torch.inference_mode():
        keys = table.encode(network, everything)[1].T
        for rows in batches(packed, tokens, None):
            batch = build(data, packed, rows, 0, (0,))
            output = forward(network, table, batch)
            shown = np.diff(data.requests.first)[batch.request_rows]
            real = np.arange(batch.cand_item.shape[1]) < shown[:, None]
            logits.append(output.logits.cpu().numpy()[real])
            labels.append(batch.labels[real])
            scenarios.append(np.repeat(batch.scenario, shown))
            if len(batch.positive_request):
                engaged, row = np.unique(batch.positive_request, return_inverse=True)
                scores = (output.user_vec[torch.from_numpy(engaged).to(keys.device)] @ keys).cpu().numpy()
                eligible = data.items.created <= data.requests.ts[batch.request_rows[engaged]][:, None]
                eligible[:, 0] = False
                pairs = np.unique(np.stack([row, batch.items[batch.positive_item]]), axis=1)
                ranks = positive_ranks(scores, eligible, pairs[0], pairs[1])
                hits += float(retrieval_metrics(ranks, pairs[0], len(engaged), (k,)).recall[k].sum())
                asked += len(engaged)
        all_logits, all_labels = np.concatenate(logits), np.concatenate(labels)
        tensor = torch.from_numpy(all_logits)
        loss = float(task_losses(tensor, torch.from_numpy(all_labels), network.ranker.parents).sum())
        probabilities = network.ranker.probabilities(tensor).numpy()
    auc = {}
    for index, task in enumerate(data.tasks):
        known = all_labels[:, index] >= 0
        area = AreaUnderCurve.of(
            probabilities[known, index], all_labels[known, index], np.arange(int(known.sum()))
        ).value()
        if not np.isnan(area):
            auc[task] = area
    return Validation(
        auc, hits / asked if asked else float("nan"), loss, all_logits, all_labels, np.concatenate(scenarios)
    )
