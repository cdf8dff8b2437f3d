"""PLE (Tang et al. 2020, Progressive Layered Extraction, eq. 1-8) on the features that the one network reads.

Groups have experts of their own beside shared ones: a group is a task, as published, or a tab with both tasks. What
goes in is what the network's ranking head takes in - dense features and their pieces, hashed ids of user, item, author
and category, scenario and hour - and, in place of the trunk, the user's last events, read by target attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from omnifeed.evaluation.metrics import AreaUnderCurve
from omnifeed.export.encode import ACTIONS, CANDIDATE_DIMS, USER_DIMS, EncodeSpec
from omnifeed.model.blocks import embedding
from omnifeed.model.encoders import forget
from omnifeed.model.losses import task_losses
from omnifeed.model.ranker import PIECES
from omnifeed.training.dataset import TrainingData
from omnifeed.training.windows import windows

Array = np.ndarray[Any, Any]
STD = 0.1  # of the embeddings at the start: smaller ones leave the attention blind for epochs
SCORING_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Settings:
    """One configuration; the default is the best of those tried (benchmarks/kuairand_trials.jsonl)."""

    groups: Literal["task", "tab"] = "task"
    levels: int = 2
    experts: int = 4  # of each group, and as many shared
    width: int = 64
    id_width: int = 16
    id_dropout: float = 0.5  # share of the ids of user and item replaced by "unknown" in training
    history: int = 30  # last events of the user that are read, 0 for none
    dropout: float = 0.2
    lr: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 6
    batch: int = 1024


@dataclass(frozen=True, slots=True)
class Inputs:
    """Impressions as arrays, one row each."""

    dense: Array  # float32 [N, CANDIDATE_DIMS + USER_DIMS]
    ids: Array  # int64 [N, 4]: user, item (one hash), author, category
    scenario: Array
    hour: Array
    history: Array  # int64 [N, L, 4]: item, author, category, action; zeros where there is none
    labels: Array  # int8 [N, tasks]

    @staticmethod
    def of(data: TrainingData, history: int) -> Inputs:
        """All impressions of the data."""
        requests, shown, items = data.requests, data.impressions, data.items.inputs
        request = np.repeat(np.arange(len(requests)), np.diff(requests.first))
        content = np.stack([items["id_bucket"][:, 0], items["author_bucket"], items["category_bucket"][:, 0]], 1)
        prefix = requests.prefix
        seen = windows(data.histories, requests.user, np.maximum(prefix - max(history, 1), 0), prefix)
        events = np.concatenate([content[seen["hist_row"]], seen["hist_action"][..., None]], 2)
        events = events * (seen["hist_action"] > 0)[..., None]
        return Inputs(
            np.concatenate([shown.dense, requests.user_dense[request]], 1),
            np.concatenate([data.user_bucket[requests.user[request], None], content[shown.item]], 1),
            requests.scenario[request],
            requests.hour[request],
            events[request, :history],
            shown.labels,
        )

    def __len__(self) -> int:
        return len(self.labels)


class Extraction(nn.Module):
    """One level of extraction: each group mixes its own experts and the shared ones, by a gate of its own."""

    def __init__(self, groups: int, experts: int, inside: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups + 1, experts, inside, width))  # the last group is the shared one
        self.bias = nn.Parameter(torch.zeros(groups + 1, experts, width))
        nn.init.normal_(self.weight, std=(2 / inside) ** 0.5)
        self.gate = nn.Parameter(torch.zeros(groups, inside, 2 * experts))
        self.shared_gate = nn.Linear(inside, (groups + 1) * experts)

    def forward(self, x: Tensor) -> Tensor:
        """[B, groups + 1, inside] to [B, groups + 1, width]."""
        out = torch.relu(torch.einsum("bgi,gniw->bgnw", x, self.weight) + self.bias)
        own, shared = out[:, :-1], out[:, -1:].expand(-1, out.shape[1] - 1, -1, -1)
        weights = torch.softmax(torch.einsum("bgi,gin->bgn", x[:, :-1], self.gate), -1)
        groups = (weights[..., None] * torch.cat([own, shared], 2)).sum(2)
        weights = torch.softmax(self.shared_gate(x[:, -1]), -1)
        return torch.cat([groups, (weights[..., None] * out.flatten(1, 2)).sum(1, keepdim=True)], 1)


class Ple(nn.Module):
    """Logits of every task."""

    mean: Tensor
    scale: Tensor
    start: Tensor
    slope: Tensor
    group: Tensor

    def __init__(self, settings: Settings, spec: EncodeSpec, tasks: int, tabs: Sequence[int], train: Inputs) -> None:
        super().__init__()
        self.settings, width = settings, settings.id_width
        scenarios, dims = len(spec.scenarios) + 1, CANDIDATE_DIMS + USER_DIMS
        self.ids = nn.ModuleList(
            embedding(rows, width, STD)
            for rows in (spec.user_buckets, spec.id_buckets, spec.author_buckets, spec.category_buckets)
        )
        self.actions = embedding(len(ACTIONS) + 1, width, STD)
        self.scenarios, self.hours = embedding(scenarios, width, STD), embedding(24, width, STD)
        deviation = train.dense.std(0)
        self.register_buffer("mean", torch.from_numpy(train.dense.mean(0)))
        usable = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0).astype(np.float32)
        self.register_buffer("scale", torch.from_numpy(usable))
        knots = np.quantile(train.dense, np.linspace(0, 1, PIECES + 1), axis=0)
        length = np.diff(knots, axis=0)
        slope = np.where(length > 1e-6, 1 / np.maximum(length, 1e-6), 0)
        self.register_buffer("start", torch.from_numpy(knots[:-1].T.astype(np.float32)))
        self.register_buffer("slope", torch.from_numpy(slope.T.astype(np.float32)))
        # Every tab of `tabs` is a group of its own, all others are one more.
        place = torch.full((scenarios,), len(tabs))
        place[list(tabs)] = torch.arange(len(tabs))
        each = torch.arange(tasks)
        by_task = settings.groups == "task"
        group = each.expand(scenarios, -1) if by_task else place[:, None].expand(-1, tasks)
        self.register_buffer("group", group.clone())
        groups = tasks if by_task else len(tabs) + 1
        inside = dims * (1 + PIECES) + 7 * width
        self.dropout = nn.Dropout(settings.dropout)
        self.levels = nn.ModuleList(
            Extraction(groups, settings.experts, inside if not level else settings.width, settings.width)
            for level in range(settings.levels)
        )
        self.tower = nn.Parameter(torch.empty(groups, tasks, settings.width, settings.width // 2))
        nn.init.normal_(self.tower, std=(2 / settings.width) ** 0.5)
        self.tower_bias = nn.Parameter(torch.zeros(groups, tasks, settings.width // 2))
        self.head = nn.Parameter(torch.zeros(groups, tasks, settings.width // 2))
        self.head_bias = nn.Parameter(torch.zeros(groups, tasks))

    def read(self, item: Tensor, history: Tensor) -> Tensor:
        """What the user did with events like the item: [B, width], zeros for an empty history."""
        keys = sum(table(history[..., column]) for column, table in enumerate([*self.ids][1:]))
        logits = (keys @ item[..., None])[..., 0] / self.settings.id_width**0.5
        real = history[..., 3] > 0
        weights = torch.softmax(logits.masked_fill(~real, -1e9), -1) * real
        result: Tensor = (weights[..., None] * (keys + self.actions(history[..., 3]))).sum(1)
        return result

    def forward(self, dense: Tensor, ids: Tensor, scenario: Tensor, hour: Tensor, history: Tensor) -> Tensor:
        """[B, tasks]."""
        share = self.settings.id_dropout
        rows = [forget(column, share if place < 2 else 0, self.training) for place, column in enumerate(ids.unbind(1))]
        user, item, author, category = (table(row) for table, row in zip(self.ids, rows, strict=True))
        standard = ((dense - self.mean) * self.scale).clamp(-6, 6)
        pieces = ((dense[..., None] - self.start) * self.slope).clamp(0, 1).flatten(1)
        read = self.read(item + author + category, history)
        parts = (standard, pieces, user, item, author, category, self.scenarios(scenario), self.hours(hour), read)
        x = self.dropout(torch.cat(parts, 1))
        x = x[:, None].expand(-1, self.head.shape[0] + 1, -1)
        for level in self.levels:
            x = self.dropout(level(x))
        hidden = torch.relu(torch.einsum("bgw,gtwh->bgth", x[:, :-1], self.tower) + self.tower_bias)
        logits = (hidden * self.head).sum(-1) + self.head_bias  # [B, groups, tasks]
        return logits.gather(1, self.group[scenario][:, None]).squeeze(1)


def batch_of(inputs: Inputs, rows: Array) -> tuple[Tensor, ...]:
    """The model's arguments for these rows."""
    columns = (inputs.dense, inputs.ids, inputs.scenario, inputs.hour, inputs.history)
    return tuple(torch.from_numpy(np.ascontiguousarray(column[rows])) for column in columns)


def logits_of(model: Ple, inputs: Inputs) -> Array:
    """Float32 [N, tasks], in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        parts = np.array_split(np.arange(len(inputs)), len(inputs) // SCORING_ROWS + 1)
        return np.concatenate([model(*batch_of(inputs, rows)).numpy() for rows in parts])


def fit(
    settings: Settings, spec: EncodeSpec, tabs: Sequence[int], train: Inputs, valid: Inputs, seed: int
) -> tuple[Ple, int]:
    """Train on one split, keep the epoch with the best mean AUC of the tasks on the other; the model and that epoch."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tasks = train.labels.shape[1]
    model = Ple(settings, spec, tasks, tabs, train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    best, best_epoch, best_state = -np.inf, 0, model.state_dict()
    for epoch in range(1, settings.epochs + 1):
        model.train()
        order = rng.permutation(len(train))
        for rows in np.array_split(order, len(order) // settings.batch + 1):
            loss = task_losses(model(*batch_of(train, rows)), torch.from_numpy(train.labels[rows]), (-1,) * tasks).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        logits = logits_of(model, valid)
        areas = [
            AreaUnderCurve.of(logits[:, task], valid.labels[:, task], np.arange(len(valid))).value()
            for task in range(tasks)
        ]
        score = float(np.mean(areas))
        if score > best:
            best, best_epoch = score, epoch
            best_state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best_state)
    return model, best_epoch
