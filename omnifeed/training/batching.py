"""Batches: users' histories packed once, their requests attached by prefix length.

A sequence is a window of one user's history, at most twice `history_length` long, with all requests whose prefix ends
inside it: one trunk pass trains them all. A request reads at most the last `history_length` events of its prefix. Up
to that length a packed prefix equals the single request that a server encodes; in a longer window the oldest states
have also seen what came before. Sequences of similar length share a batch, so little of it is padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.export.encode import Floats, Ints
from omnifeed.training.dataset import Int32s, TrainingData
from omnifeed.training.windows import windows

Bools = npt.NDArray[np.bool_]

REQUESTS_PER_SEQUENCE = 256  # of one sequence; a user with more gets several
READS_PER_TOKEN = 32  # bound of a batch's requests x length, as a multiple of its tokens


@dataclass(frozen=True, slots=True)
class Sequences:
    """S windows of histories and the requests that they train, request rows in `requests[first[s]:first[s + 1]]`."""

    user: Int32s  # [S]
    start: Ints  # [S], event of the user's history, from 0
    stop: Ints  # [S], one past the last event
    requests: Ints  # rows in TrainingData.requests
    first: Ints  # [S + 1]

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True, slots=True)
class Batch:
    """B sequences with R requests of up to K candidates each, P positives and N shared negatives.

    Items stand as rows of `items`, the distinct items of the batch.
    """

    request_rows: Ints  # [R], rows in TrainingData.requests
    items: Ints  # [M], rows in TrainingData.items
    size: Ints  # [B], tokens of each sequence, its user prefix included
    hist_item: Ints  # [B, L]
    hist_action: Ints
    hist_scenario: Ints
    hist_gap: Ints
    user_bucket: Ints  # [B]
    profile: Ints  # [B, 4]
    row: Ints  # [R], sequence of each request
    last: Ints  # [R], index of the last state that the request reads
    mask: Bools  # [R, L + 1], states that the request reads
    user_dense: Floats  # [R, USER_DIMS]
    scenario: Ints
    now_gap: Ints
    hour: Ints
    query: Floats  # [R, text_dims]
    cand_item: Ints  # [R, K]
    cand_dense: Floats  # [R, K, CANDIDATE_DIMS]
    labels: npt.NDArray[np.int8]  # [R, K, tasks], -1 where not known or padding
    positive_request: Ints  # [P], row of the batch's requests
    positive_item: Ints  # [P]
    positive_weight: Floats  # [P]
    negatives: Ints  # [N]
    negative_mask: Bools  # [R, N], false where the request engages with the negative or could not be given it

    @property
    def tokens(self) -> int:
        """Cells of the padded histories, user prefixes included."""
        return int(self.hist_item.shape[0] * (self.hist_item.shape[1] + 1))


def sequences(data: TrainingData, rows: Ints) -> Sequences:
    """Cut every user's requests, of these rows of `data.requests`, into windows of history.

    A window starts `history_length` events before its first request's prefix ends and holds every further request
    whose prefix ends at most twice `history_length` events after the start.
    """
    limit = data.spec.history_length
    order = rows[np.lexsort((data.requests.prefix[rows], data.requests.user[rows]))]
    user, prefix = data.requests.user[order], data.requests.prefix[order]
    firsts, starts = [], []
    index, count = 0, len(order)
    ends = np.append(np.flatnonzero(np.diff(user)) + 1, count)
    owner_end = np.repeat(ends, np.diff(ends, prepend=0)) if count else ends
    while index < count:
        start = max(0, int(prefix[index]) - limit)
        end = int(owner_end[index])
        within = index + int(np.searchsorted(prefix[index:end], start + 2 * limit, side="right"))
        firsts.append(index)
        starts.append(start)
        index = min(within, index + REQUESTS_PER_SEQUENCE)
    first = np.array([*firsts, count], np.int64)
    begin = np.array(starts, np.int64)
    stop = np.maximum(prefix[first[1:] - 1] if firsts else begin, begin)
    return Sequences(user=user[first[:-1]], start=begin, stop=stop, requests=order, first=first)


def batches(packed: Sequences, tokens: int, seed: tuple[int, ...] | None) -> list[Ints]:
    """Group sequences of similar length into batches of at most `tokens` padded cells.

    Args:
        seed: shuffles sequences of equal length and the batches; None keeps the order of length.

    Returns:
        Rows of `packed`, one array a batch.
    """
    rng = np.random.default_rng(seed) if seed is not None else None
    length = packed.stop - packed.start + 1
    requests = np.diff(packed.first)
    jitter = rng.random(len(packed)) if rng is not None else np.arange(len(packed))
    order = np.lexsort((jitter, length))
    result: list[Ints] = []
    begin, reads = 0, 0
    for position, sequence in enumerate(order):
        widest = int(length[sequence])
        reads += int(requests[sequence])
        size = position - begin + 1
        if size > 1 and (size * widest > tokens or reads * widest > READS_PER_TOKEN * tokens):
            result.append(order[begin:position])
            begin, reads = position, int(requests[sequence])
    if begin < len(order):
        result.append(order[begin:])
    if rng is not None:
        result = [result[index] for index in rng.permutation(len(result))]
    return result


def request_inputs(data: TrainingData, rows: Ints) -> dict[str, npt.NDArray[Any]]:
    """What `encode_request` gives for each of these requests, stacked and right-padded."""
    requests = data.requests
    user, prefix = requests.user[rows], requests.prefix[rows]
    return {
        **windows(data.histories, user, np.maximum(prefix - data.spec.history_length, 0), prefix),
        "user_bucket": data.user_bucket[user],
        "profile": data.profile[user],
        "user_dense": requests.user_dense[rows],
        "scenario": requests.scenario[rows],
        "now_gap": requests.now_gap[rows],
        "hour": requests.hour[rows],
        "query": data.queries[requests.query[rows]],
    }


def candidates(data: TrainingData, rows: Ints) -> dict[str, npt.NDArray[Any]]:
    """The impressions of these requests, padded to the longest.

    Returns:
        impression int64 [R, K] (row in data.impressions, -1 for padding), item int64 [R, K], cand_dense float32
        [R, K, CANDIDATE_DIMS], labels int8 [R, K, tasks].
    """
    first = data.requests.first
    size = first[rows + 1] - first[rows]
    position = np.arange(max(int(size.max(initial=0)), 1))
    mask = position < size[:, None]
    index = np.where(mask, first[rows][:, None] + position, 0)
    shown = data.impressions
    return {
        "impression": np.where(mask, index, -1),
        "item": np.where(mask, shown.item[index], 0).astype(np.int64),
        "cand_dense": shown.dense[index] * mask[..., None],
        "labels": np.where(mask[..., None], shown.labels[index], -1).astype(np.int8),
    }


def build(data: TrainingData, packed: Sequences, rows: Ints, negatives: int, seed: tuple[int, ...]) -> Batch:
    """Assemble one batch.

    Args:
        rows: sequences of the batch.
        negatives: how many items to draw, uniformly and without replacement.
        seed: of the draw.
    """
    requests, limit = data.requests, data.spec.history_length
    counts = packed.first[rows + 1] - packed.first[rows]
    row = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    request = packed.requests[packed.first[rows][row] + within]
    start = packed.start[rows]
    hist = windows(data.histories, packed.user[rows], start, packed.stop[rows])
    last = requests.prefix[request] - start[row]
    state = np.arange(hist["hist_row"].shape[1] + 1)
    mask = (state == 0) | ((state > (last - limit)[:, None]) & (state <= last[:, None]))
    shown = candidates(data, request)

    known = len(data.items.created) - 1
    rng = np.random.default_rng(seed)
    drawn = 1 + rng.choice(known, min(negatives, known), replace=False, shuffle=False).astype(np.int64)
    weight = np.where(shown["impression"] >= 0, data.impressions.engagement[shown["impression"]], 0)
    positive_request, slot = np.nonzero(weight)
    positive_item = shown["item"][positive_request, slot]
    column = np.full(known + 1, -1, np.int64)
    column[drawn] = np.arange(len(drawn))
    negative_mask = data.items.available(drawn, requests.ts[request][:, None])
    hit = column[positive_item]
    negative_mask[positive_request[hit >= 0], hit[hit >= 0]] = False

    cells = (hist["hist_row"], shown["item"], positive_item, drawn)
    items, local = np.unique(np.concatenate([cell.ravel() for cell in cells]), return_inverse=True)
    parts = np.split(local, np.cumsum([cell.size for cell in cells])[:-1])
    return Batch(
        request_rows=request,
        items=items,
        size=packed.stop[rows] - start + 1,
        hist_item=parts[0].reshape(cells[0].shape),
        hist_action=hist["hist_action"],
        hist_scenario=hist["hist_scenario"],
        hist_gap=hist["hist_gap"],
        user_bucket=data.user_bucket[packed.user[rows]],
        profile=data.profile[packed.user[rows]],
        row=row,
        last=last,
        mask=mask,
        user_dense=requests.user_dense[request],
        scenario=requests.scenario[request],
        now_gap=requests.now_gap[request],
        hour=requests.hour[request],
        query=data.queries[requests.query[request]],
        cand_item=parts[1].reshape(cells[1].shape),
        cand_dense=shown["cand_dense"],
        labels=shown["labels"],
        positive_request=positive_request,
        positive_item=parts[2],
        positive_weight=weight[positive_request, slot].astype(np.float32),
        negatives=parts[3],
        negative_mask=negative_mask,
    )
