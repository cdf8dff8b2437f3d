"""Embedding tables beyond one device: each process holds a share of the rows and answers for them.

The same call as `nn.Embedding`, so a network is built with plain tables and large ones are exchanged afterwards. What a
process asks is made distinct, sent to the owners, and comes back as vectors; gradients take the same way back and add
up at the owner. The rest of the network is replicated.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single


class ShardedEmbedding(nn.Module):
    """Rows `rank * share ..` of a table of `rows`; the last share may end in rows that nobody asks for.

    Every process of the group must call it equally often, each with its own ids.
    """

    def __init__(self, table: nn.Embedding, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group, self.rows, self.width = group, table.num_embeddings, table.embedding_dim
        self.share = -(-self.rows // group.size())
        self.weight = nn.Parameter(self.part(table.weight.detach()))

    def forward(self, ids: Tensor) -> Tensor:
        """int64 of any shape to that shape and the width."""
        asked, place = torch.unique(ids, return_inverse=True)  # ascending, so each owner's stand together
        send = torch.bincount(asked // self.share, minlength=self.group.size())
        receive = torch.empty_like(send)
        dist.all_to_all_single(receive, send, group=self.group)
        sent, received = send.tolist(), receive.tolist()
        wanted = asked.new_empty(sum(received))
        dist.all_to_all_single(wanted, asked, received, sent, group=self.group)
        vectors = nn.functional.embedding(wanted - self.group.rank() * self.share, self.weight)
        answer = all_to_all_single(vectors, sent, received, self.group)
        return nn.functional.embedding(place, answer)

    def part(self, whole: Any) -> Tensor:
        """This process's rows of a whole table, a tensor or a slice of a file, with zeros after its end."""
        first = min(self.group.rank() * self.share, self.rows)
        own: Tensor = whole[first : min(first + self.share, self.rows)]
        return nn.functional.pad(own, (0, 0, 0, self.share - len(own))).clone()

    def whole(self, part: Tensor) -> Tensor:
        """All rows on the group's first process, nothing on the others; every process must call it."""
        parts = [torch.empty_like(part) for _ in range(self.group.size())] if self.group.rank() == 0 else None
        dist.gather(part.contiguous(), parts, group=self.group, group_dst=0)
        return torch.cat(parts)[: self.rows] if parts else part[:0]


def shard(network: nn.Module, group: dist.ProcessGroup, rows: int) -> None:
    """Exchange every table of at least so many rows for this process's share of it."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Embedding) and child.num_embeddings >= rows:
                setattr(parent, name, ShardedEmbedding(child, group))


def sharded(network: nn.Module) -> dict[str, ShardedEmbedding]:
    """The shared tables by the names of their weights."""
    return {
        f"{name}.weight": module for name, module in network.named_modules() if isinstance(module, ShardedEmbedding)
    }


def restore(network: nn.Module) -> None:
    """Put whole tables back, on the first process alone; every process must call it."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ShardedEmbedding):
                weight = child.whole(child.weight.detach())
                if child.group.rank() == 0:
                    setattr(parent, name, nn.Embedding(child.rows, child.width, _weight=weight))
