"""Packing: each request once, with its own prefix, in little padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omnifeed.model.network import Network
from omnifeed.model.parts import TorchParts
from omnifeed.training.batching import batches, build, request_inputs, sequences
from omnifeed.training.dataset import TrainingData, load_training_set
from omnifeed.training.objective import ItemTable, forward

from .synthetic import small_config

TASKS = ("click", "long_view", "cart", "order", "hide")


@pytest.fixture(scope="module")
def data(training_set: Path) -> TrainingData:
    return load_training_set(training_set, TASKS, ("train", "valid", "test"))


def shortened(data: TrainingData, length: int) -> TrainingData:
    return replace(data, spec=replace(data.spec, history_length=length))


@pytest.mark.parametrize("history_length", [100, 7])
def test_every_request_is_trained_once_inside_its_window(data: TrainingData, history_length: int) -> None:
    data = shortened(data, history_length)
    packed = sequences(data, np.arange(len(data.requests)))
    assert sorted(packed.requests.tolist()) == list(range(len(data.requests)))
    size = packed.stop - packed.start
    assert size.max() <= 2 * history_length
    for s in range(len(packed)):
        rows = packed.requests[packed.first[s] : packed.first[s + 1]]
        prefix = data.requests.prefix[rows]
        assert (data.requests.user[rows] == packed.user[s]).all()
        assert (prefix <= packed.stop[s]).all()
        assert (np.minimum(prefix, history_length) <= prefix - packed.start[s]).all() or packed.start[s] > 0
        assert (prefix - packed.start[s] >= np.minimum(prefix, history_length)).all()


def test_batches_hold_every_sequence_once_within_the_token_budget(data: TrainingData) -> None:
    packed = sequences(data, data.requests.of("train"))
    plan = batches(packed, 512, (0, 0))
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(packed)))
    length = packed.stop - packed.start + 1
    assert all(len(rows) * length[rows].max() <= 512 or len(rows) == 1 for rows in plan)
    padding = 1 - length.sum() / sum(len(rows) * length[rows].max() for rows in plan)
    assert padding < 0.15
    assert [r.tolist() for r in plan] == [r.tolist() for r in batches(packed, 512, (0, 0))]
    assert [r.tolist() for r in plan] != [r.tolist() for r in batches(packed, 512, (0, 1))]


def test_a_user_with_a_hundred_thousand_events_is_cut_into_windows(data: TrainingData) -> None:
    count = 100_000
    histories = replace(
        data.histories,
        offsets=np.array([0, count]),
        **{
            name: np.ones(count, getattr(data.histories, name).dtype)
            for name in ("item", "action", "scenario", "gap", "ts")
        },
    )
    requests = replace(
        data.requests,
        user=np.zeros(len(data.requests), np.int32),
        prefix=np.linspace(0, count, len(data.requests)).astype(np.int64),
    )
    huge = replace(data, histories=histories, requests=requests)
    packed = sequences(huge, np.arange(len(requests)))
    assert (packed.stop - packed.start).max() <= 200
    batch = build(huge, packed, batches(packed, 512, (0,))[0], 8, (0,))
    assert batch.tokens <= 512


def test_negatives_are_what_the_request_could_have_been_given_and_did_not_engage_with(data: TrainingData) -> None:
    hour_long = np.where(data.items.livestream, data.items.created + 3_600_000_000, data.items.live_until)
    data = replace(data, items=replace(data.items, live_until=hour_long))
    packed = sequences(data, data.requests.of("train"))
    batch = build(data, packed, batches(packed, 512, (0,))[0], 10_000, (0,))
    drawn = batch.items[batch.negatives]
    assert sorted(drawn.tolist()) == list(range(1, len(data.items.created)))  # the whole catalogue, unknown left out
    ended = set()
    for r, request in enumerate(batch.request_rows):
        engaged = set(batch.items[batch.positive_item[batch.positive_request == r]].tolist())
        ts = data.requests.ts[request]
        future = set(np.flatnonzero(data.items.created > ts).tolist())
        off_air = set(np.flatnonzero(data.items.livestream & ~data.items.on_air(slice(None), ts)).tolist())
        ended |= off_air - future
        assert set(drawn[~batch.negative_mask[r]].tolist()) == (engaged | future | off_air) - {0}
        shown = slice(data.requests.first[request], data.requests.first[request + 1])
        weight = data.impressions.engagement[shown]
        assert engaged == set(data.impressions.item[shown][weight > 0].tolist())
    assert ended


def test_a_packed_request_reads_what_the_single_request_reads(data: TrainingData) -> None:
    """One trunk pass over a user's history gives each of its requests the vector that a server computes (1e-5)."""
    config = small_config()
    torch.manual_seed(0)
    network = Network(config.model, data.spec, TASKS).eval()
    parts = TorchParts(network)
    packed = sequences(data, np.arange(len(data.requests)))
    encoded = parts.item_encoder(data.items.inputs)
    checked = 0
    for rows in batches(packed, 2048, None):
        batch = build(data, packed, rows, 0, (0,))
        with torch.inference_mode():
            output = forward(network, ItemTable(data.items, torch.device("cpu")), batch)
        inside = data.requests.prefix[batch.request_rows] <= data.spec.history_length
        single = request_inputs(data, batch.request_rows)
        single["hist_vec"] = encoded["item_vec"][single.pop("hist_row")]
        served = parts.user_encoder(single)["user_vec"]
        np.testing.assert_allclose(output.user_vec.numpy()[inside], served[inside], atol=1e-5)
        checked += int(inside.sum())
    assert checked > 500
