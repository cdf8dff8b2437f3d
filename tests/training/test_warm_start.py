"""A run that begins with the weights of the release before it: the catalogue grew, the settings did not change."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from omnifeed.config import Config
from omnifeed.errors import InputError, IntegrityError
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.bundle import export_trending
from omnifeed.export.release import bundle_files
from omnifeed.features.training_set import TrainingSet
from omnifeed.home import Home, write_json
from omnifeed.model.network import load_network
from omnifeed.training.key import training_key
from omnifeed.training.loop import TrainResult, train
from omnifeed.training.warm_start import former_release

from .synthetic import SCENARIOS, small_config, with_model, write_training_set

CONFIG = small_config(epochs=1)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of 130 items and 200 users."""
    folder = tmp_path_factory.mktemp("grown")
    write_training_set(folder, CONFIG, users=200, items=130)
    return folder


@pytest.fixture(scope="module")
def former(grown: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was trained before 30 of the items and 50 of the users came."""
    folder = tmp_path_factory.mktemp("former")
    shutil.copytree(grown, folder / "set")
    for name, column, known in (
        ("items", "item_id", [f"i{n}" for n in range(100)]),
        ("rows", "item_id", [f"i{n}" for n in range(100)]),
        ("rows", "user_id", [f"u{n}" for n in range(150)]),
        ("history", "user_id", [f"u{n}" for n in range(150)]),
    ):
        table = pq.read_table(folder / "set" / f"{name}.parquet")
        pq.write_table(table.filter(pc.is_in(table[column], pa.array(known))), folder / "set" / f"{name}.parquet")
    train(folder / "set", folder / "out", small_config(epochs=4))
    return folder / "out"


@pytest.fixture(scope="module")
def warm(grown: Path, former: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    folder = tmp_path_factory.mktemp("warm")
    return folder, train(grown, folder, CONFIG, former=former)


def test_one_epoch_after_a_former_release_is_better_than_one_from_the_beginning(
    grown: Path, warm: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    cold = train(grown, tmp_path, CONFIG)
    assert warm[1].losses[0]["loss"] < cold.losses[0]["loss"]
    assert warm[1].valid["auc_click"] > cold.valid["auc_click"]


def test_a_warm_start_is_reproducible_to_the_bit(
    grown: Path, former: Path, warm: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    train(grown, tmp_path, CONFIG, former=former)
    for name in ("weights.safetensors", "model.json", "losses.json"):
        assert (tmp_path / name).read_bytes() == (warm[0] / name).read_bytes()


def test_a_new_scenario_begins_as_the_unknown_one_and_the_others_keep_their_rows(
    training_set: Path, former: Path, tmp_path: Path
) -> None:
    config = small_config(epochs=1, lr=0.0, weight_decay=0.0)
    names = ("feed", *reversed(SCENARIOS))
    write_training_set(tmp_path / "set", config)
    meta = TrainingSet.load(tmp_path / "set")
    write_json(tmp_path / "set" / "meta.json", replace(meta, encode=replace(meta.encode, scenarios=names)).to_dict())
    train(tmp_path / "set", tmp_path / "out", config, former=former)
    old, new = load_network(former), load_network(tmp_path / "out")
    for table in ("event_scenarios", "scenarios"):
        before, after = (getattr(net.user_encoder, table).weight for net in (old, new))
        assert after[1].equal(before[0])
        for name in SCENARIOS:
            assert after[new.spec.scenario_id(name)].equal(before[old.spec.scenario_id(name)])


def spec_with(folder: Path, source: Path, **encode: object) -> Path:
    shutil.copytree(source, folder)
    meta = TrainingSet.load(folder)
    write_json(folder / "meta.json", replace(meta, encode=replace(meta.encode, **encode)).to_dict())  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize(
    ("encode", "says"),
    [
        ({"id_buckets": 256}, r"features.id_buckets = 512, this run has 256"),
        ({"salt": "other"}, r"features.salt = omnifeed, this run has other"),
        ({"scenarios": SCENARIOS[:2]}, r"vocabulary of scenarios shrank: .* knows 'search'"),
    ],
)
def test_a_vocabulary_that_shrank_or_hashes_otherwise_is_refused(
    training_set: Path, former: Path, tmp_path: Path, encode: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        train(spec_with(tmp_path / "set", training_set, **encode), tmp_path / "out", CONFIG, former=former)
    assert "training.warm_start = false" in caught.value.action


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"width": 32}, r"model.width = 16, this run has 32"),
        ({"heads": 4}, r"model.heads = 2, this run has 4"),
        ({"tasks": ("click", "order")}, r"tasks that have labels = .*hide, this run has click, order"),
    ],
)
def test_a_network_of_another_shape_is_refused(
    training_set: Path, former: Path, tmp_path: Path, model: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        train(training_set, tmp_path, with_model(CONFIG, **model), former=former)


def test_a_network_of_other_features_or_a_damaged_one_is_refused(
    training_set: Path, former: Path, tmp_path: Path
) -> None:
    shutil.copytree(former, tmp_path / "former")
    raw = json.loads((former / "model.json").read_text())
    write_json(tmp_path / "former" / "model.json", {**raw, "features": "of another version"})
    with pytest.raises(InputError, match="read other features"):
        train(training_set, tmp_path / "out", CONFIG, former=tmp_path / "former")
    (tmp_path / "former" / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match="no usable checkpoint"):
        train(training_set, tmp_path / "out", CONFIG, former=tmp_path / "former")


def test_the_former_release_is_the_champion_where_it_is_a_network(former: Path, tmp_path: Path) -> None:
    home, asked = Home(tmp_path / "home"), Config(training=replace(CONFIG.training, warm_start=True))
    assert former_release(home, asked) is None  # nothing serves yet
    trending = export_trending(home, asked, 1, "commit")
    Ledger(home).append("BOOTSTRAP", {"release": trending.number}, 1)
    assert former_release(home, asked) is None  # the champion has no weights
    folder = home.releases / "1"
    shutil.copytree(former, folder, ignore=shutil.ignore_patterns("checkpoint"))
    bundle = replace(trending, number="1", kind="network", files=bundle_files(folder))
    write_json(folder / "release.json", bundle.to_dict())
    Ledger(home).append("PROMOTE", {"release": "1"}, 2, expected_champion="0")
    assert former_release(home, asked) == folder
    assert former_release(home, Config()) is None  # not asked for
    (folder / "weights.safetensors").write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="has changed"):
        former_release(home, asked)


def test_checkpoints_of_another_former_release_are_not_gone_on_with(
    training_set: Path, former: Path, warm: tuple[Path, TrainResult]
) -> None:
    keys = {training_key(training_set, CONFIG, folder) for folder in (None, former, warm[0])}
    assert len(keys) == 3
