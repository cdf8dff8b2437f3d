from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from export.releases import COMMIT, config, copied, variant, workshop
from omnifeed.errors import IntegrityError, OmnifeedError
from omnifeed.export.bundle import export_trending, measured_parity
from omnifeed.export.encode import CANDIDATE_DIMS, USER_DIMS, EncodeSpec
from omnifeed.export.golden import TOLERANCE, max_abs_error, read_golden, same_top_k
from omnifeed.export.onnx_parts import OnnxParts
from omnifeed.export.release import PARTS, load_release
from omnifeed.features.spec import digest
from omnifeed.home import Home
from omnifeed.model.network import load_network
from omnifeed.model.parts import INPUTS, OUTPUTS, Arrays, TorchParts

RELEASE_1 = "releases/1"


@pytest.fixture(scope="module")
def parts() -> tuple[TorchParts, OnnxParts]:
    return TorchParts(load_network(workshop() / "checkpoint")), OnnxParts(workshop() / "home" / RELEASE_1, threads=1)


def requests(batch: int, length: int) -> Arrays:
    spec = EncodeSpec.from_config(config())
    rng = np.random.default_rng(batch * 1_000 + length)
    width, scenarios = config().model.width, len(spec.scenarios) + 1
    return {
        "hist_vec": rng.normal(size=(batch, length, width)).astype(np.float32),
        "hist_action": rng.integers(0, 8, (batch, length)),
        "hist_scenario": rng.integers(0, scenarios, (batch, length)),
        "hist_gap": rng.integers(0, 32, (batch, length)),
        "hist_mask": np.arange(length)[None] < rng.integers(0, length + 1, (batch, 1)),
        "user_bucket": rng.integers(0, spec.user_buckets, batch),
        "profile": rng.integers(0, spec.profile_buckets, (batch, 4)),
        "user_dense": rng.normal(size=(batch, USER_DIMS)).astype(np.float32),
        "scenario": rng.integers(0, scenarios, batch),
        "now_gap": rng.integers(0, 32, batch),
        "hour": rng.integers(0, 24, batch),
        "query": rng.normal(size=(batch, spec.text_dims)).astype(np.float32),
    }


@pytest.mark.parametrize(("batch", "length", "candidates"), [(1, 1, 1), (1, 100, 200), (3, 7, 2), (2, 250, 33)])
def test_graphs_answer_as_the_network_for_any_batch_length_and_number_of_candidates(
    parts: tuple[TorchParts, OnnxParts], batch: int, length: int, candidates: int
) -> None:
    torch_parts, onnx_parts = parts
    asked = requests(batch, length)
    user = torch_parts.user_encoder(asked)
    assert max_abs_error(user, onnx_parts.user_encoder(asked)) <= TOLERANCE
    rng = np.random.default_rng(0)
    ranked = {
        **{name: user[name] for name in ("states", "states_mask", "request_state")},
        "scenario": asked["scenario"],
        "cand_vec": rng.normal(size=(batch, candidates, user["user_vec"].shape[1])).astype(np.float32),
        "cand_dense": rng.normal(size=(batch, candidates, CANDIDATE_DIMS)).astype(np.float32),
    }
    assert max_abs_error(torch_parts.ranker(ranked), onnx_parts.ranker(ranked)) <= TOLERANCE


def test_a_release_says_what_it_was_made_from_and_by_how_much_onnx_differs() -> None:
    release = load_release(workshop() / "home" / RELEASE_1)
    assert (release.number, release.kind, release.git_commit) == ("1", "network", COMMIT)
    assert release.feature_digest == digest()
    assert release.config_digest == config().digest
    assert release.tasks == config().model.tasks
    assert release.metrics == {"auc": 0.5}
    assert release.window[0] < release.window[1]
    assert set(release.parity["max_abs_error"]) == set(PARTS)
    assert max(release.parity["max_abs_error"].values()) <= release.parity["tolerance"] == TOLERANCE
    assert release.parity["top_k_equal"] is True
    assert {"torch", "onnx", "onnxruntime"} <= release.versions.keys()
    assert {"weights.safetensors", "model.json"} <= release.files.keys()


def test_golden_requests_hold_the_odd_ones_and_real_histories() -> None:
    golden = read_golden(workshop() / "home" / RELEASE_1 / "golden")
    cases = {one.case for one in golden if one.part == "user_encoder"}
    assert {"empty", "unknown-item", "unknown-scenario"} <= cases
    lengths = {one.inputs["hist_mask"].shape[1] for one in golden if one.part == "user_encoder"}
    assert min(lengths) == 1
    assert max(lengths) > 20
    for one in golden:
        assert set(one.inputs) == set(INPUTS[one.part])
        assert set(one.outputs) == set(OUTPUTS[one.part])


def test_the_configuration_names_every_input_and_output() -> None:
    for part in PARTS:
        text = (workshop() / "home" / RELEASE_1 / "models" / f"{part}_1" / "config.pbtxt").read_text()
        for name in (*INPUTS[part], *OUTPUTS[part]):
            assert f'name: "{name}"' in text
        assert 'backend: "onnxruntime"' in text


def test_a_bundle_names_no_folder_of_the_machine_and_holds_no_pickle() -> None:
    root = str(Path(__file__).resolve().parents[2]).encode()
    for path in (workshop() / "home" / RELEASE_1).rglob("*"):
        if path.is_file():
            assert root not in path.read_bytes(), path
            assert path.suffix in (".onnx", ".pbtxt", ".npz", ".json", ".safetensors")


def test_export_refuses_graphs_that_disagree(parts: tuple[TorchParts, OnnxParts]) -> None:
    class Biased:
        def __init__(self, inner: OnnxParts, part: str, by: float) -> None:
            self.inner, self.part, self.by = inner, part, by

        def __getattr__(self, part: str):  # type: ignore[no-untyped-def]
            shift = self.by if part == self.part else 0.0
            return lambda inputs: {
                name: value + np.float32(shift) if value.dtype == np.float32 else value
                for name, value in getattr(self.inner, part)(inputs).items()
            }

    golden = read_golden(workshop() / "home" / RELEASE_1 / "golden")
    assert measured_parity(golden, parts[1])["top_k_equal"]
    for part in PARTS:
        with pytest.raises(OmnifeedError, match="disagree"):
            measured_parity(golden, Biased(parts[1], part, 1e-4))
    with pytest.raises(OmnifeedError, match="disagree"):
        measured_parity(golden, Biased(parts[1], "ranker", float("nan")))


def test_the_same_top_items_but_for_ties() -> None:
    scores = np.array([0.9, 0.5, 0.5 + 1e-6, 0.1], np.float32)
    swapped = np.array([0.9, 0.5 + 1e-6, 0.5, 0.1], np.float32)
    assert same_top_k(scores, swapped, k=2)
    assert not same_top_k(scores, np.array([0.9, 0.1, 0.2, 0.5], np.float32), k=2)


@pytest.mark.parametrize(
    "name", ["models/ranker_1/1/model.onnx", "models/ranker_1/config.pbtxt", "weights.safetensors"]
)
def test_one_changed_byte_is_refused(tmp_path: Path, name: str) -> None:
    folder = copied(tmp_path / "home").root / RELEASE_1
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(IntegrityError, match=f"{Path(name).name} has changed"):
        load_release(folder)


def test_a_missing_and_an_added_file_are_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "home").root / RELEASE_1
    (folder / "extra").write_text("")
    with pytest.raises(IntegrityError, match="is not in release"):
        load_release(folder)
    (folder / "extra").unlink()
    shutil.rmtree(folder / "golden")
    with pytest.raises(IntegrityError, match="missing"):
        load_release(folder)


def test_release_0_is_written_once(tmp_path: Path) -> None:
    home = Home(tmp_path)
    first = export_trending(home, config(), 1, COMMIT, window=(2, 3))
    assert (first.kind, first.number, first.window) == ("trending", "0", (2, 3))
    assert EncodeSpec.from_dict(first.encode) == EncodeSpec.from_config(config())
    assert export_trending(home, config(), 99, COMMIT) == first == load_release(home.releases / "0")
    assert not (home.releases / "0" / "models").exists()
    assert [one.case for one in read_golden(home.releases / "0" / "golden")] == ["feed", "search"]


def test_a_graph_that_onnxruntime_cannot_open_is_named(tmp_path: Path) -> None:
    home = copied(tmp_path / "home")
    variant(home, "2", lambda folder: (folder / "models/ranker_2/1/model.onnx").write_bytes(b"no graph") and None)
    with pytest.raises(IntegrityError, match="ranker_2"):
        OnnxParts(home.releases / "2", threads=1)
