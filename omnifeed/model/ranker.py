"""The ranking head: candidates read the history, never each other; experts are mixed by the scenario.

A candidate's probabilities do not depend on which others are scored with it. Experts are shared by the tasks and gated
per task by scenario and request (MMoE, Ma et al. 2018, eq. 5-7). An order is a click and a conversion
(ESMM, Ma et al. 2018, eq. 1), so its probability never exceeds the click's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from omnifeed.config import ModelConfig
from omnifeed.export.encode import CANDIDATE_DIMS, EncodeSpec
from omnifeed.model.blocks import TRACES, StateAttention, embedding

#: Pieces of a dense feature's range, each holding as many training rows (piecewise linear encoding, Gorishniy et al.
#: 2022, eq. 1): a step in a feature is linear in them, where a standardised value would need hidden units for it.
PIECES = 8

#: A task whose probability is its parent's times a conditional one.
PARENT = {"order": "click"}


def parents(tasks: tuple[str, ...]) -> tuple[int, ...]:
    """Index of each task's parent among the tasks, -1 for none."""
    return tuple(tasks.index(PARENT[task]) if PARENT.get(task) in tasks else -1 for task in tasks)


class Ranker(nn.Module):
    """Calibrated probabilities of every task for K candidates of each request."""

    dense_mean: Tensor
    dense_scale: Tensor
    piece_start: Tensor
    piece_slope: Tensor
    calibration_scale: Tensor
    calibration_bias: Tensor

    def __init__(self, config: ModelConfig, spec: EncodeSpec, tasks: tuple[str, ...]) -> None:
        super().__init__()
        width, scenarios = config.width, len(spec.scenarios) + 1
        self.parents = parents(tasks)
        self.experts = config.experts
        self.dropout = nn.Dropout(config.expert_dropout)
        self.register_buffer("dense_mean", torch.zeros(CANDIDATE_DIMS))
        self.register_buffer("dense_scale", torch.ones(CANDIDATE_DIMS))
        self.register_buffer("piece_start", torch.zeros(CANDIDATE_DIMS, PIECES))
        self.register_buffer("piece_slope", torch.zeros(CANDIDATE_DIMS, PIECES))
        self.pieces = nn.Linear(CANDIDATE_DIMS * PIECES, width, bias=False)
        nn.init.normal_(self.pieces.weight, std=config.init_std)
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
        self.expert = nn.Linear(3 * width + plain, config.experts * width)
        signs = torch.randint(0, 2, (config.members, 3 * width + plain)) * 2.0 - 1
        signs[0] = 1
        self.signs = nn.Parameter(signs)
        self.expert_request = nn.Linear(width, config.experts * width, bias=False)
        self.gate = nn.Linear(2 * width, len(tasks) * config.experts)
        self.tower = nn.Parameter(torch.empty(len(tasks), width, width // 2))
        self.tower_bias = nn.Parameter(torch.zeros(len(tasks), width // 2))
        nn.init.xavier_normal_(self.tower)
        self.head = nn.Parameter(torch.zeros(config.members, len(tasks), width // 2))
        self.wide = nn.Linear(plain + CANDIDATE_DIMS * PIECES, len(tasks))
        nn.init.zeros_(self.wide.weight)
        self.scenario_bias = embedding(scenarios, len(tasks), 0.0)
        self.register_buffer("calibration_scale", torch.ones(scenarios, len(tasks)))
        self.register_buffer("calibration_bias", torch.zeros(scenarios, len(tasks)))

    def set_pieces(self, knots: npt.NDArray[np.float64]) -> None:
        """Set the pieces' ends, [PIECES + 1, CANDIDATE_DIMS] rising; a piece without length is always 0."""
        length = np.diff(knots, axis=0)
        slope = np.where(length > 1e-6, 1 / np.maximum(length, 1e-6), 0)
        self.piece_start.copy_(torch.from_numpy(np.ascontiguousarray(knots[:-1].T)))
        self.piece_slope.copy_(torch.from_numpy(np.ascontiguousarray(slope.T)))

    def encode_pieces(self, cand_dense: Tensor) -> Tensor:
        """The piecewise linear encoding: [R, K, CANDIDATE_DIMS] to [R, K, CANDIDATE_DIMS * PIECES], each in 0..1."""
        return ((cand_dense[..., None] - self.piece_start) * self.piece_slope).clamp(0, 1).flatten(2)

    def member_logits(
        self,
        memory: Tensor,
        mask: Tensor,
        request_state: Tensor,
        scenario: Tensor,
        cand_vec: Tensor,
        cand_dense: Tensor,
    ) -> Tensor:
        """Each member's uncalibrated logits [R, K, members, tasks], for the loss; see `logits`."""
        dense = ((cand_dense - self.dense_mean) * self.dense_scale).clamp(-6, 6)
        item = self.item_norm(cand_vec)
        request = request_state[:, None]
        pieces = self.encode_pieces(cand_dense)
        piecewise = self.pieces(pieces)
        token = self.token_norm(self.item(item) + self.dense(dense) + piecewise + self.request(request))
        read, traces = self.reader(token, memory, mask)
        candidate = self.candidate_norm(read)
        plain = torch.cat([dense, traces], dim=-1)
        scenario_vec = self.scenarios(scenario)
        features = torch.cat([candidate, item * self.match(request), piecewise, plain], dim=-1)
        each = features[:, :, None] * self.signs
        expert = nn.functional.gelu(self.expert(each) + self.expert_request(request)[:, :, None])
        expert = expert.reshape(*expert.shape[:3], self.experts, -1)
        gate = self.gate(torch.cat([scenario_vec, request_state], dim=-1))
        gate = gate.reshape(gate.shape[0], -1, self.experts)
        mixed = torch.softmax(gate, dim=-1)[:, None, None] @ expert  # [R, K, members, tasks, width]
        hidden = torch.einsum("rkmtw,twh->rkmth", self.dropout(mixed), self.tower) + self.tower_bias
        deep = (nn.functional.gelu(hidden) * self.head).sum(-1)
        wide = self.wide(torch.cat([plain, pieces], dim=-1)) + self.scenario_bias(scenario)[:, None]
        result: Tensor = deep + wide[:, :, None]
        return result

    def logits(
        self,
        memory: Tensor,
        mask: Tensor,
        request_state: Tensor,
        scenario: Tensor,
        cand_vec: Tensor,
        cand_dense: Tensor,
    ) -> Tensor:
        """Uncalibrated logits [R, K, tasks], the members' mean; a task with a parent has its conditional's.

        Args:
            memory: [R, T, ...], `self.reader.memory` of the states.
        """
        return self.member_logits(memory, mask, request_state, scenario, cand_vec, cand_dense).mean(dim=2)

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
