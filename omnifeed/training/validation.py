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

SCORES = 1 << 25  # of requests against the whole catalogue, about, held at once


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
                pairs = np.unique(np.stack([batch.positive_request, batch.items[batch.positive_item]]), axis=1)
                engaged = np.unique(pairs[0])
                asked += len(engaged)
                for part in np.array_split(engaged, len(engaged) * keys.shape[1] // SCORES + 1):
                    mine = pairs[:, np.isin(pairs[0], part)]
                    row = np.searchsorted(part, mine[0])
                    scores = (output.user_vec[torch.from_numpy(part).to(keys.device)] @ keys).cpu().numpy()
                    eligible = data.items.available(slice(None), data.requests.ts[batch.request_rows[part]][:, None])
                    eligible[:, 0] = False
                    ranks = positive_ranks(scores, eligible, row, mine[1])
                    hits += float(retrieval_metrics(ranks, row, len(part), (k,)).recall[k].sum())
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
