"""What the network promises: causal, isolated candidates, no effect of padding or batch, sane on the unknown."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from omnifeed.config import Config, FeatureConfig, ModelConfig
from omnifeed.errors import IntegrityError
from omnifeed.export.encode import (
    CANDIDATE_DIMS,
    USER_DIMS,
    EncodeSpec,
    UserRow,
    encode_items,
    encode_request,
    unknown_item,
)
from omnifeed.model.losses import sampled_softmax, task_losses
from omnifeed.model.network import Network, load_network, save_network
from omnifeed.model.parts import INPUTS, OUTPUTS, Arrays, TorchParts
from omnifeed.model.ranker import PIECES

CONFIG = Config(
    features=FeatureConfig(id_buckets=64, author_buckets=16, category_buckets=16, user_buckets=64, text_dims=16),
    model=ModelConfig(width=16, heads=2, members=2),
)
SPEC: EncodeSpec = EncodeSpec.from_config(CONFIG)
ITEMS = {
    "item_id": [f"i{n}" for n in range(12)],
    "title": [f"red shoe {n}" for n in range(12)],
    "category": ["a/b", "c"] * 6,
    "kind": ["video", "livestream", "product"] * 4,
    "price": [1.0, None, 20.0] * 4,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    made = Network(CONFIG.model, SPEC, CONFIG.model.tasks).eval()
    for parameter in (made.ranker.head, made.ranker.wide.weight):  # zero before training
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture(scope="module")
def parts(network: Network) -> TorchParts:
    return TorchParts(network)


def users(parts: TorchParts, batch: int = 3, length: int = 9, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    vec = parts.item_encoder(encode_items(ITEMS, SPEC))["item_vec"]
    return {
        "hist_vec": vec[rng.integers(0, 12, (batch, length))],
        "hist_action": rng.integers(1, 8, (batch, length)),
        "hist_scenario": rng.integers(0, 4, (batch, length)),
        "hist_gap": rng.integers(0, 32, (batch, length)),
        "hist_mask": np.ones((batch, length), bool),
        "user_bucket": rng.integers(0, 64, batch),
        "profile": rng.integers(0, 256, (batch, 4)),
        "user_dense": rng.normal(size=(batch, USER_DIMS)).astype(np.float32),
        "scenario": rng.integers(0, 4, batch),
        "now_gap": rng.integers(0, 32, batch),
        "hour": rng.integers(0, 24, batch),
        "query": rng.normal(size=(batch, 16)).astype(np.float32),
    }


def candidates(parts: TorchParts, request: Arrays, count: int = 5, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    user = parts.user_encoder(request)
    vec = parts.item_encoder(encode_items(ITEMS, SPEC))["item_vec"]
    batch = len(request["scenario"])
    return {
        **{name: user[name] for name in ("states", "states_mask", "request_state")},
        "scenario": request["scenario"],
        "cand_vec": vec[rng.integers(0, 12, (batch, count))],
        "cand_dense": rng.normal(size=(batch, count, CANDIDATE_DIMS)).astype(np.float32),
    }


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["hist_vec", "hist_action", "hist_scenario", "hist_gap"])
def test_a_later_event_changes_no_earlier_state(parts: TorchParts, name: str) -> None:
    request = users(parts)
    changed = {**request, name: request[name].copy()}
    changed[name][:, 6] = request[name][:, 6] * 0 + 1
    before, after = parts.user_encoder(request)["states"], parts.user_encoder(changed)["states"]
    close(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3


def test_a_candidate_scores_the_same_alone_and_among_others(parts: TorchParts) -> None:
    inputs = candidates(parts, users(parts))
    together = parts.ranker(inputs)["probabilities"]
    for k in range(5):
        alone = {**inputs, **{name: inputs[name][:, k : k + 1] for name in ("cand_vec", "cand_dense")}}
        close(parts.ranker(alone)["probabilities"][:, 0], together[:, k])


def test_a_request_answers_the_same_alone_in_a_batch_and_padded(parts: TorchParts) -> None:
    request = users(parts)
    whole = parts.user_encoder(request)
    ranked = parts.ranker(candidates(parts, request))["probabilities"]
    for b in range(3):
        alone = {name: value[b : b + 1] for name, value in request.items()}
        close(parts.user_encoder(alone)["user_vec"], whole["user_vec"][b : b + 1])
        padded = dict(alone)
        for name in ("hist_vec", "hist_action", "hist_scenario", "hist_gap", "hist_mask"):
            shape = list(alone[name].shape)
            shape[1] = 4
            padded[name] = np.concatenate([alone[name], np.zeros(shape, alone[name].dtype)], axis=1)
        answer = parts.user_encoder(padded)
        close(answer["user_vec"], whole["user_vec"][b : b + 1])
        inputs = candidates(parts, request)
        of_row = {name: value[b : b + 1] for name, value in inputs.items()}
        of_row |= {name: answer[name] for name in ("states", "states_mask", "request_state")}
        close(parts.ranker(of_row)["probabilities"], ranked[b : b + 1])


def test_vectors_have_the_promised_length_and_orders_never_exceed_clicks(parts: TorchParts) -> None:
    items = parts.item_encoder(encode_items(ITEMS, SPEC))
    close(np.linalg.norm(items["item_key"], axis=1), np.ones(12))
    request = users(parts)
    close(np.linalg.norm(parts.user_encoder(request)["user_vec"], axis=1), np.ones(3))
    tasks = CONFIG.model.tasks
    p = parts.ranker(candidates(parts, request))["probabilities"]
    assert ((p > 0) & (p < 1)).all()
    assert (p[..., tasks.index("order")] <= p[..., tasks.index("click")]).all()


def test_members_read_the_same_inputs_differently_and_their_mean_is_the_answer(
    network: Network, parts: TorchParts
) -> None:
    inputs = {name: torch.from_numpy(value) for name, value in candidates(parts, users(parts)).items()}
    memory = network.ranker.reader.memory(inputs["states"])
    rest = [inputs[name] for name in ("states_mask", "request_state", "scenario", "cand_vec", "cand_dense")]
    with torch.inference_mode():
        members = network.ranker.member_logits(memory, *rest)
        mean = network.ranker.logits(memory, *rest)
    assert members.shape == (3, 5, 2, len(CONFIG.model.tasks))
    assert (members[:, :, 0] - members[:, :, 1]).abs().max() > 1e-3
    torch.testing.assert_close(mean, members.mean(dim=2))


def test_a_threshold_in_a_dense_feature_is_linear_in_its_pieces() -> None:
    ranker = Network(CONFIG.model, SPEC, CONFIG.model.tasks).ranker
    ranker.set_pieces(np.repeat(np.array([0, 0, 0, 1, 2, 4, 8, 16, 32], np.float64)[:, None], CANDIDATE_DIMS, 1))
    pieces = ranker.encode_pieces(torch.tensor([-1.0, 0.0, 3.0, 40.0])[:, None, None].expand(4, 1, CANDIDATE_DIMS))
    first = pieces.reshape(4, CANDIDATE_DIMS, PIECES)[:, 0].tolist()
    assert first == [[0] * 8, [0] * 8, [0, 0, 1, 1, 0.5, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]]  # an empty piece is mute


def test_a_user_nobody_knows_with_no_history_gets_an_answer(parts: TorchParts) -> None:
    """Unknown user, scenario and item, empty history, no query: what a server sends on its worst day."""
    request = encode_request("", "nowhere", None, 1_772_409_600_000_000, UserRow({}), {}, SPEC)
    unknown = parts.item_encoder(unknown_item(SPEC))
    assert np.isfinite(unknown["item_vec"]).all()
    request["hist_vec"] = unknown["item_vec"][request.pop("hist_row")]
    inputs = {**candidates(parts, request), "cand_vec": np.repeat(unknown["item_vec"][None], 5, 1)}
    assert list(inputs["states_mask"][0]) == [True, False]
    assert np.isfinite(parts.ranker(inputs)["probabilities"]).all()


def test_scenario_query_and_history_matter(parts: TorchParts) -> None:
    request = users(parts)
    base = parts.user_encoder(request)["user_vec"]
    for name in ("scenario", "query", "hist_action", "user_dense", "now_gap", "profile"):
        value = request[name]
        changed = {**request, name: (value + 1) % 4 if value.dtype == np.int64 else -value}
        assert np.abs(parts.user_encoder(changed)["user_vec"] - base).max() > 1e-4, name


def test_an_item_whose_title_is_the_query_is_near_before_any_training(parts: TorchParts) -> None:
    items = {**ITEMS, "title": ["lamp"] * 6 + ["tea"] * 6}
    keys = parts.item_encoder(encode_items(items, SPEC))["item_key"]
    request = encode_request("u", "search", "tea", 1_772_409_600_000_000, UserRow({}), {}, SPEC)
    request["hist_vec"] = np.zeros((1, 1, 16), np.float32)
    del request["hist_row"], request["hist_ts"]
    scores = (parts.user_encoder(request)["user_vec"] @ keys.T)[0]
    assert scores[6:].min() > scores[:6].max()


def test_ids_are_forgotten_in_training_and_remembered_in_evaluation(network: Network) -> None:
    encoded = {name: torch.from_numpy(value) for name, value in encode_items(ITEMS, SPEC).items()}
    forgetful = Network(dataclasses.replace(CONFIG.model, item_dropout=1.0), SPEC, CONFIG.model.tasks)
    forgetful.load_state_dict(network.state_dict())
    arguments = [encoded[name] for name in INPUTS["item_encoder"]]
    without_ids = [torch.zeros_like(arguments[0]), *arguments[1:]]
    with torch.inference_mode():
        forgotten = forgetful.train().item_encoder(*arguments)[0]
        torch.testing.assert_close(forgotten, network.item_encoder(*without_ids)[0])
        torch.testing.assert_close(forgetful.eval().item_encoder(*arguments)[0], network.item_encoder(*arguments)[0])


def test_a_checkpoint_comes_back_whole_and_a_damaged_one_is_refused(network: Network, tmp_path) -> None:  # type: ignore[no-untyped-def]
    save_network(network, tmp_path)
    again = load_network(tmp_path)
    request = users(TorchParts(network))
    for name in OUTPUTS["user_encoder"]:
        np.testing.assert_array_equal(
            TorchParts(again).user_encoder(request)[name], TorchParts(network).user_encoder(request)[name]
        )
    assert (again.config, again.spec, again.tasks) == (network.config, network.spec, network.tasks)
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="no usable checkpoint"):
        load_network(tmp_path)


def test_sampled_softmax_is_the_cross_entropy_over_what_is_not_masked() -> None:
    rng = np.random.default_rng(0)
    user, positive, negative = (torch.from_numpy(unit_rows(rng, n)) for n in (2, 3, 4))
    of = torch.tensor([0, 0, 1])
    mask = torch.tensor([[True, True, False, True], [True, False, True, True]])
    weight = torch.tensor([1.0, 2.0, 1.0])
    loss = sampled_softmax(user, of, positive, weight, negative, mask, 0.1)
    total = 0.0
    for p in range(3):
        u = user[of[p]].numpy()
        logits = [float(u @ positive[p].numpy()) / 0.1]
        logits += [float(u @ negative[n].numpy()) / 0.1 for n in range(4) if mask[of[p], n]]
        total += float(weight[p]) * (np.log(np.exp(logits).sum()) - logits[0])
    assert float(loss) == pytest.approx(total / 4, rel=1e-5)


def unit_rows(rng: np.random.Generator, rows: int) -> np.ndarray:
    x = rng.normal(size=(rows, 6)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_task_losses_are_the_mean_over_known_labels_and_multiply_the_parent() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 2))
    labels = rng.integers(-1, 2, (50, 2)).astype(np.int8)
    click = 1 / (1 + np.exp(-logits[:, 0]))
    order = click / (1 + np.exp(-logits[:, 1]))
    expected = []
    for p, y in ((click, labels[:, 0]), (order, labels[:, 1])):
        known = y >= 0
        expected.append(-np.mean(np.where(y[known] == 1, np.log(p[known]), np.log(1 - p[known]))))
    found = task_losses(torch.from_numpy(logits), torch.from_numpy(labels), (-1, 0))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    nothing = task_losses(torch.from_numpy(logits), torch.full((50, 2), -1), (-1, 0))
    assert nothing.tolist() == [0, 0]


def test_each_part_exports_with_free_batch_and_length(network: Network, parts: TorchParts, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The graph of every part keeps batch, length and candidates free; values are the export room's to compare."""
    request = users(parts)
    samples = {
        "item_encoder": encode_items(ITEMS, SPEC),
        "user_encoder": request,
        "ranker": candidates(parts, request),
    }
    free = {"states": 2, "states_mask": 2, "cand_vec": 2, "cand_dense": 2}
    for name, sample in samples.items():
        shapes = [
            dict.fromkeys(range(2 if key.startswith("hist") else free.get(key, 1)), torch.export.Dim.DYNAMIC)
            for key in INPUTS[name]
        ]
        arguments = tuple(torch.from_numpy(sample[key]) for key in INPUTS[name])
        graph = torch.export.export(getattr(network, name), arguments, dynamic_shapes=tuple(shapes)).module()
        for size in (1, 2):
            part = [torch.from_numpy(sample[key][:size]) for key in INPUTS[name]]
            answer = graph(*part)
            answer = answer if isinstance(answer, tuple) else (answer,)
            expected = getattr(parts, name)({key: sample[key][:size] for key in INPUTS[name]})
            for key, value in zip(OUTPUTS[name], answer, strict=True):
                close(value.detach().numpy().astype(np.float32), expected[key].astype(np.float32))
