"""The ranking head: candidates read the history, never each other; experts are mixed by the scenario.

A candidate's probabilities do not depend on which others are scored with it. Experts are shared by the tasks and gated
per task by scenario and request (MMoE, Ma et al. 2018, eq. 5-7). An order is a click and a conversion
(ESMM, Ma et al. 2018, eq. 1), so its probability never exceeds the click's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnifeed.config import ModelConfig
from omnifeed.export.encode import CANDIDATE_DIMS, EncodeSpec
from omnifeed.model.blocks import TRACES, StateAttention, embedding

#: A task whose probability is its parent's times a conditional one.
PARENT = {"order": "click"}


def parents(tasks: tuple[str, ...]) -> tuple[int, ...]:
    """Index of each task's parent among the tasks, -1 for none."""
    return tuple(tasks.index(PARENT[task]) if PARENT.get(task) in tasks else -1 for task in tasks)


class Ranker(nn.Module):
    """Calibrated probabilities of every task for K candidates of each request."""

    dense_mean: Tensor
    dense_scale: Tensor
    calibration_scale: Tensor
    calibration_bias: Tensor

    def __init__(self, config: ModelConfig, spec: EncodeSpec, tasks: tuple[str, ...]) -> None:
        super().__init__()
        width, scenarios = config.width, len(spec.scenarios) + 1
        self.parents = parents(tasks)
        self.experts = config.experts
        self.register_buffer("dense_mean", torch.zeros(CANDIDATE_DIMS))
        self.register_buffer("dense_scale", torch.ones(CANDIDATE_DIMS))
        self.item_norm = nn.LayerNorm(width)
        self.item = nn.Linear(width, width)
        self.dense = nn.Linear(CANDIDATE_DIMS, width)
        self.request = nn.Linear(width, width)
        nn.init.eye_(self.item.weight)
        nn.init.normal_(self.dense.weight, std=config.init_std)
        nn.init.normal_(self.request.weight, std=config.init_std)
        self.token_norm = nn.LayerNorm(width)
        self.reader = StateAttention(width, config.heads, config.dropout)
        self.reader.start_as_similarity()
        self.candidate_norm = nn.LayerNorm(width)
        self.match = nn.Linear(width, width)
        self.scenarios = embedding(scenarios, width, config.init_std)
        plain = CANDIDATE_DIMS + config.heads * TRACES
        self.expert = nn.Linear(2 * width + plain, config.experts * width)
        self.expert_request = nn.Linear(width, config.experts * width, bias=False)
        self.gate = nn.Linear(2 * width, len(tasks) * config.experts)
        self.tower = nn.Parameter(torch.empty(len(tasks), width, width // 2))
        self.tower_bias = nn.Parameter(torch.zeros(len(tasks), width // 2))
        nn.init.xavier_normal_(self.tower)
        self.head = nn.Parameter(torch.zeros(len(tasks), width // 2))
        self.wide = nn.Linear(plain, len(tasks))
        nn.init.zeros_(self.wide.weight)
        self.register_buffer("calibration_scale", torch.ones(scenarios, len(tasks)))
        self.register_buffer("calibration_bias", torch.zeros(scenarios, len(tasks)))

    def logits(
        self,
        memory: Tensor,
        mask: Tensor,
        request_state: Tensor,
        scenario: Tensor,
        cand_vec: Tensor,
        cand_dense: Tensor,
    ) -> Tensor:
        """Uncalibrated logits [R, K, tasks]; a task with a parent has that of its conditional probability.

        Args:
            memory: [R, T, ...], `self.reader.memory` of the states.
        """
        dense = ((cand_dense - self.dense_mean) * self.dense_scale).clamp(-6, 6)
        item = self.item_norm(cand_vec)
        request = request_state[:, None]
        token = self.token_norm(self.item(item) + self.dense(dense) + self.request(request))
        read, traces = self.reader(token, memory, mask)
        candidate = self.candidate_norm(read)
        plain = torch.cat([dense, traces], dim=-1)
        scenario_vec = self.scenarios(scenario)
        features = torch.cat([candidate, item * self.match(request), plain], dim=-1)
        expert = nn.functional.gelu(self.expert(features) + self.expert_request(request))
        expert = expert.reshape(*expert.shape[:2], self.experts, -1)
        gate = self.gate(torch.cat([scenario_vec, request_state], dim=-1))
        gate = gate.reshape(gate.shape[0], -1, self.experts)
        mixed = torch.softmax(gate, dim=-1)[:, None] @ expert  # [R, K, tasks, width]
        hidden = torch.einsum("rktw,twh->rkth", mixed, self.tower) + self.tower_bias
        deep = (nn.functional.gelu(hidden) * self.head).sum(-1)
        result: Tensor = deep + self.wide(plain)
        return result

    def probabilities(self, logits: Tensor) -> Tensor:
        """Sigmoids [..., tasks], a task with a parent multiplied by the parent's."""
        own = torch.sigmoid(logits).unbind(-1)
        return torch.stack(
            [p if parent < 0 else p * own[parent] for p, parent in zip(own, self.parents, strict=True)], dim=-1
        )

    def forward(
        self,
        states: Tensor,
        states_mask: Tensor,
        request_state: Tensor,
        scenario: Tensor,
        cand_vec: Tensor,
        cand_dense: Tensor,
    ) -> Tensor:
        """Calibrated probabilities [B, K, tasks].

        Args:
            states: [B, T, width]; states_mask: bool [B, T]; request_state: [B, width], all from the user encoder.
            scenario: int64 [B].
            cand_vec: [B, K, width], raw item vectors.
            cand_dense: [B, K, CANDIDATE_DIMS], `omnifeed.export.encode.candidate_dense`.
        """
        logits = self.logits(self.reader.memory(states), states_mask, request_state, scenario, cand_vec, cand_dense)
        scale = torch.nn.functional.embedding(scenario, self.calibration_scale)[:, None]
        bias = torch.nn.functional.embedding(scenario, self.calibration_bias)[:, None]
        return self.probabilities(logits * scale + bias)
