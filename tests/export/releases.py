"""A home with release 0, a network release that was never trained, and a catalogue: made once a session, copied."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pyarrow as pa
import pyarrow.compute as pc
import torch
from training.synthetic import SCENARIOS, START, small_config, write_training_set

from omnifeed.config import Config, ServingConfig
from omnifeed.experiment.assignment import Arm, Experiment
from omnifeed.export.bundle import export_release, export_trending
from omnifeed.export.catalogue import write_snapshot
from omnifeed.export.encode import DAY_US, EncodeSpec
from omnifeed.export.release import PARTS, bundle_files
from omnifeed.features.spec import ITEM_DENSE
from omnifeed.home import Home, write_json
from omnifeed.model.network import Network, save_network
from omnifeed.tables import read_parquet

COMMIT = "0" * 40
FOREVER = 2**60
DAYS = 8  # of the training set
NOW = START + DAYS * DAY_US  # its end


def config() -> Config:
    """Small tables, free ports."""
    ports = ServingConfig(grpc_port=0, http_port=0, metrics_port=0, features_port=0, explore_share=0.0)
    return replace(small_config(), serving=ports)


def untrained(folder: Path) -> Path:
    """A checkpoint with random weights, large enough that every output depends on every input."""
    torch.manual_seed(0)
    settings = config()
    network = Network(settings.model, EncodeSpec.from_config(settings), settings.model.tasks).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = [0.0 if name in ("", "search") else 0.2 for name in ("", *SCENARIOS)]
    network.user_encoder.trend_weight.copy_(torch.tensor(weights))
    save_network(network, folder)
    return folder


@cache
def workshop() -> Path:
    """Holds `training_set/`, `checkpoint/` and `home/`; removed when the tests end."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="omnifeed-releases-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_training_set(folder / "training_set", config(), days=DAYS)
    home, checkpoint = Home(folder / "home"), untrained(folder / "checkpoint")
    export_trending(home, config(), NOW, COMMIT)
    export_release(checkpoint, folder / "training_set", home, config(), NOW, {"auc": 0.5}, COMMIT)
    catalogue(home, folder / "training_set")
    return folder


def catalogue_columns(training_set: Path) -> tuple[dict[str, list[object]], dict[str, dict[str, list[object]]]]:
    """Items and their features by scenario, as `write_snapshot` takes them."""
    items = read_parquet(training_set / "items.parquet")
    features = read_parquet(training_set / "item_features.parquet")
    features = features.filter(pc.equal(features["day_ts"], pc.max(features["day_ts"])))
    by_scenario = {}
    for scenario in SCENARIOS:
        part = features.filter(pc.equal(features["scenario"], scenario))
        place = {item: row for row, item in enumerate(part["item_id"].to_pylist())}
        part = part.take(pa.array([place[item] for item in items["item_id"].to_pylist()]))
        by_scenario[scenario] = {feature.name: part[feature.name].to_pylist() for feature in ITEM_DENSE}
    return {name: items[name].to_pylist() for name in items.column_names}, by_scenario


def catalogue(home: Home, training_set: Path) -> str:
    """Write the training set's items as today's catalogue."""
    items, features = catalogue_columns(training_set)
    return write_snapshot(home, items, features, NOW)


def copied(to: Path) -> Home:
    """A home of one's own with releases 0 and 1 and the catalogue."""
    shutil.copytree(workshop() / "home", to)
    return Home(to)


def experiment(home: Home, *arms: tuple[str, str, float]) -> Experiment:
    """Route traffic by these arms (name, release, weight), from the beginning of time to its end."""
    chosen = Experiment("trial", "salt", tuple(Arm(*arm) for arm in arms), 0, FOREVER, "")
    write_json(home.experiments / "current.json", chosen.to_dict())
    return chosen


def variant(home: Home, number: str, change: Callable[[Path], None]) -> None:
    """Release 1 again under another number, its files changed by `change` and sealed with true hashes."""
    folder = home.releases / number
    shutil.copytree(home.releases / "1", folder)
    for part in PARTS:
        model = (folder / "models" / f"{part}_1").rename(folder / "models" / f"{part}_{number}")
        settings = model / "config.pbtxt"
        settings.write_text(settings.read_text().replace(f"{part}_1", f"{part}_{number}"))
    change(folder)
    manifest = json.loads((folder / "release.json").read_text())
    write_json(folder / "release.json", {**manifest, "number": number, "files": bundle_files(folder)})


def answers_nan(part: str, output: str) -> Callable[[Path], None]:
    """A change after which one output of one part is NaN throughout."""

    def change(folder: Path) -> None:
        path = next(folder.glob(f"models/{part}_*/1/model.onnx"))
        model = onnx.load(path)
        for node in model.graph.node:
            node.output[:] = [f"{name}_before" if name == output else name for name in node.output]
            node.input[:] = [f"{name}_before" if name == output else name for name in node.input]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "not_a_number"))
        model.graph.node.append(onnx.helper.make_node("Mul", [f"{output}_before", "not_a_number"], [output]))
        onnx.save(model, path)

    return change


def never_answers(folder: Path) -> None:
    """The ranker counts to a trillion first."""
    count_first(folder, 10**12)


def count_first(folder: Path, turns: int) -> None:
    """The ranker does so many turns of nothing before it answers."""
    path = next(folder.glob("models/ranker_*/1/model.onnx"))
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["before" if name == "probabilities" else name for name in node.output]
    make, kinds = onnx.helper, onnx.TensorProto

    def scalar(name: str, kind: int) -> onnx.ValueInfoProto:
        return make.make_tensor_value_info(name, kind, [])

    body = make.make_graph(
        [make.make_node("Identity", [f"{name}_in"], [f"{name}_out"]) for name in ("go", "sum")],
        "count",
        [scalar("turn", kinds.INT64), scalar("go_in", kinds.BOOL), scalar("sum_in", kinds.FLOAT)],
        [scalar("go_out", kinds.BOOL), scalar("sum_out", kinds.FLOAT)],
    )
    for name, value in (("turns", np.array(turns)), ("go", np.array(True)), ("nothing", np.array(0, np.float32))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.graph.node.append(make.make_node("Loop", ["turns", "go", "nothing"], ["counted"], body=body))
    model.graph.node.append(make.make_node("Add", ["before", "counted"], ["probabilities"]))
    onnx.save(model, path)
