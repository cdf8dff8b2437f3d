"""Items and users as vectors.

The item encoder reads content beside hashed ids, so an item uploaded a minute ago has a vector; ids are dropped at
random in training, which makes "unknown" (bucket 0) mean what an id adds on average. The user encoder is the trunk
over [user prefix, events] and a request token that reads the trunk's states after it (docs/decisions/0001).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omnifeed.config import ModelConfig
from omnifeed.export.encode import (
    ACTIONS,
    CATEGORY_LEVELS,
    GAP_BUCKETS,
    ITEM_DIMS,
    KIND_IDS,
    PROFILE,
    USER_DIMS,
    EncodeSpec,
)
from omnifeed.model.blocks import TRACE_SCALE, TRACES, CausalBlock, StateAttention, embedding, last_index, unit
from omnifeed.model.packed import Packing, through

#: Share of requests whose scenario is hidden in training, so that an unknown scenario reads a trained row.
SCENARIO_DROPOUT = 0.02
#: Initial standard deviation of the text projection, and weight of a query in the retrieval vector: at the start the
#: text is about half of an item's vector, and the query most of a search's.
TEXT_STD, DIRECT = 0.08, 5.0
#: Initial standard deviation of the action embeddings: as large in an event's token as the item is.
ACTION_STD = 0.1


def forget(ids: Tensor, share: float, training: bool) -> Tensor:
    """Replace whole rows of ids by 0 with this probability, in training only. Shapes [N] or [N, C]."""
    if not training or share == 0:
        return ids
    keep = torch.rand(ids.shape[0], device=ids.device) >= share
    return ids * (keep if ids.dim() == 1 else keep[:, None])


class ItemEncoder(nn.Module):
    """Raw vectors of items for tokens and ranking, unit keys for retrieval.

    Keys have a projection of their own, so that retrieval need not bend the vectors that ranking reads; where
    engagement is near chance it still does (docs/decisions/0001).
    """

    def __init__(self, config: ModelConfig, spec: EncodeSpec) -> None:
        super().__init__()
        width, std = config.width, config.init_std
        self.id_dropout = config.item_dropout
        self.ids = embedding(spec.id_buckets, width, std)
        self.authors = embedding(spec.author_buckets, width, std)
        self.categories = embedding(spec.category_buckets * CATEGORY_LEVELS, width, std)
        self.register_buffer("levels", torch.arange(CATEGORY_LEVELS) * spec.category_buckets, persistent=False)
        self.kinds = embedding(len(KIND_IDS) + 1, width, std)
        self.text = nn.Linear(spec.text_dims, width, bias=False)
        nn.init.normal_(self.text.weight, std=TEXT_STD)
        self.dense = nn.Linear(ITEM_DIMS, width)
        for parameter in self.dense.parameters():
            nn.init.zeros_(parameter)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)
        nn.init.zeros_(self.outer.weight)
        self.key = nn.Linear(width, width)
        nn.init.eye_(self.key.weight)
        nn.init.zeros_(self.key.bias)

    levels: Tensor

    def forward(
        self,
        id_bucket: Tensor,
        author_bucket: Tensor,
        category_bucket: Tensor,
        kind: Tensor,
        text: Tensor,
        item_dense: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Inputs as `omnifeed.export.encode.encode_items` makes them, N rows.

        Returns:
            item_vec [N, width] (raw, for tokens and the ranker), item_key [N, width] (unit length, for retrieval).
        """
        x = (
            self.ids(forget(id_bucket, self.id_dropout, self.training)).sum(1)
            + self.authors(author_bucket)
            + self.categories(category_bucket + self.levels).sum(1)
            + self.kinds(kind)
            + self.text(text)
            + self.dense(item_dense)
        )
        x = x + self.outer(nn.functional.gelu(self.inner(self.norm(x))))
        return x, unit(self.key(x))


class UserEncoder(nn.Module):
    """Trunk over the history, request token after it, retrieval head.

    A query is projected by the same matrix as the items' titles and also enters the retrieval vector directly, so that
    titles that match are near before the first training step.
    """

    user_mean: Tensor
    user_scale: Tensor
    profile_offset: Tensor
    traces: Tensor
    trend_weight: Tensor

    def __init__(self, config: ModelConfig, spec: EncodeSpec, text: nn.Linear) -> None:
        super().__init__()
        width, std, scenarios = config.width, config.init_std, len(spec.scenarios) + 1
        self.user_dropout = config.user_dropout
        self.users = embedding(spec.user_buckets, width, std)
        self.profile = embedding(spec.profile_buckets * len(PROFILE), width, std)
        self.register_buffer("profile_offset", torch.arange(len(PROFILE)) * spec.profile_buckets, persistent=False)
        self.prefix_norm = nn.LayerNorm(width)
        self.item = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.item.weight)
        self.actions = embedding(len(ACTIONS) + 1, width, ACTION_STD)
        self.event_scenarios = embedding(scenarios, width, std)
        self.gaps = embedding(GAP_BUCKETS, width, std)
        self.event_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(CausalBlock(width, config.heads, config.dropout) for _ in range(config.blocks))
        self.state = nn.Linear(width, width - TRACES)
        nn.init.eye_(self.state.weight)
        self.state_norm = nn.LayerNorm(width - TRACES)
        self.register_buffer("traces", TRACE_SCALE * torch.eye(TRACES), persistent=False)

        self.register_buffer("user_mean", torch.zeros(USER_DIMS))
        self.register_buffer("user_scale", torch.ones(USER_DIMS))
        self.scenarios = embedding(scenarios, width, std)
        self.now_gaps = embedding(GAP_BUCKETS, width, std)
        self.hours = embedding(24, width, std)
        self.query = text
        self.user_dense = nn.Linear(USER_DIMS, width)
        nn.init.normal_(self.user_dense.weight, std=std)
        self.request_norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, width)
        self.reader = StateAttention(width, config.heads, config.dropout)
        self.out_norm = nn.LayerNorm(width)
        self.retrieval = nn.Linear(width, width)
        nn.init.normal_(self.retrieval.weight, std=std)
        self.direct = nn.Parameter(torch.tensor(DIRECT))
        self.register_buffer("trend_weight", torch.zeros(scenarios))

    def trunk(
        self,
        hist_vec: Tensor,
        hist_action: Tensor,
        hist_scenario: Tensor,
        hist_gap: Tensor,
        user_bucket: Tensor,
        profile: Tensor,
        packed: Packing | None = None,
    ) -> Tensor:
        """States of B right-padded sequences: [B, 1 + L, width], row 0 the user prefix, row i + 1 event i.

        The last TRACES channels hold the event's action, one-hot, and zeros for the prefix.
        A state reads only what stands at or before it, so padding at the end changes none before it.
        """
        user = self.users(forget(user_bucket, self.user_dropout, self.training))
        prefix = self.prefix_norm(user + self.profile(profile + self.profile_offset).sum(1))
        tokens = (
            self.item(hist_vec) + self.actions(hist_action) + self.event_scenarios(hist_scenario) + self.gaps(hist_gap)
        )
        x = self.dropout(torch.cat([prefix[:, None], self.event_norm(tokens)], dim=1))
        x = through(self.blocks, x, packed)
        done = nn.functional.pad(nn.functional.embedding(hist_action, self.traces), (0, 0, 1, 0))
        return torch.cat([self.state_norm(self.state(x)), done], dim=-1)

    def hide_scenario(self, scenario: Tensor) -> Tensor:
        """In training, a small share of the scenarios becomes unknown."""
        return forget(scenario, SCENARIO_DROPOUT, self.training)

    def read(
        self,
        last_state: Tensor,
        memory: Tensor,
        mask: Tensor,
        user_dense: Tensor,
        scenario: Tensor,
        now_gap: Tensor,
        hour: Tensor,
        query: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The request token reads the states of its prefix.

        Args:
            last_state: [R, width], the last state that the request may read.
            memory: [R, T, ...], `self.reader.memory` of the states.
            mask: bool [R, T].

        Returns:
            user_vec [R, width] of unit length, request_state [R, width].
        """
        standard = ((user_dense - self.user_mean) * self.user_scale).clamp(-6, 6)
        token = self.request_norm(
            self.scenarios(scenario)
            + self.now_gaps(now_gap)
            + self.hours(hour)
            + self.query(query)
            + self.user_dense(standard)
        )
        x, _ = self.reader((token + self.last(last_state))[:, None], memory, mask)
        request_state = self.out_norm(x[:, 0])
        return unit(self.retrieval(request_state) + self.direct * self.query(query)), request_state

    def forward(
        self,
        hist_vec: Tensor,
        hist_action: Tensor,
        hist_scenario: Tensor,
        hist_gap: Tensor,
        hist_mask: Tensor,
        user_bucket: Tensor,
        profile: Tensor,
        user_dense: Tensor,
        scenario: Tensor,
        now_gap: Tensor,
        hour: Tensor,
        query: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """B requests, one sequence each, padded on the right; inputs as `encode_request` makes them.

        Returns:
            user_vec [B, width] (unit length), trend_weight [B, 1] (what log(1 + trend) counts beside the
            cosine), request_state [B, width], states [B, L + 1, width], states_mask bool [B, L + 1].
        """
        states = self.trunk(hist_vec, hist_action, hist_scenario, hist_gap, user_bucket, profile)
        mask = torch.cat([torch.ones_like(hist_mask[:, :1]), hist_mask], dim=1)
        last = states.gather(1, last_index(mask)[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]
        user_vec, request_state = self.read(
            last, self.reader.memory(states), mask, user_dense, scenario, now_gap, hour, query
        )
        trend_weight = nn.functional.embedding(scenario, self.trend_weight[:, None])
        return user_vec, trend_weight, request_state, states, mask
