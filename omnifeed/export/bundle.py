"""Writes release bundles: a trained network as ONNX with proof of parity, or release 0, which sorts by trend.

A bundle is made in a temporary folder, checked there, and renamed into place; one whose ONNX graphs do not answer as
PyTorch does is never written. Numbers are given once, in order.
"""

from __future__ import annotations

import fcntl
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import omnifeed
from omnifeed.config import Config
from omnifeed.errors import OmnifeedError
from omnifeed.export.encode import EncodeSpec
from omnifeed.export.golden import TOLERANCE, Arrays, Golden, max_abs_error, same_top_k, write_golden
from omnifeed.export.release import PARTS, Release, bundle_files, load_release
from omnifeed.export.trending import trending_scores
from omnifeed.features.spec import digest
from omnifeed.home import Home, folder_atomic, write_json

if TYPE_CHECKING:
    from omnifeed.export.samples import Samples
    from omnifeed.model.parts import Parts

TRENDING_RELEASE = "0"

Progress = Callable[[str, int, int], None]


def export_release(
    checkpoint_dir: Path,
    training_set: Path,
    home: Home,
    config: Config,
    created_ts: int,
    metrics: dict[str, Any],
    git_commit: str,
    progress: Progress = lambda label, done, total: None,
) -> Release:
    """Write the next release.

    Args:
        checkpoint_dir: what training wrote.
        training_set: what materialize wrote; golden requests are taken from it.
        created_ts: UTC microseconds.
        metrics: of the offline evaluation, kept in release.json.
        progress: called before each of the steps.

    Raises:
        IntegrityError: the checkpoint cannot be read.
        OmnifeedError: a part does not export, or parity is worse than 1e-5; no release is written.
    """
    from omnifeed.export.graphs import export_graph, triton_config
    from omnifeed.export.onnx_parts import OnnxParts
    from omnifeed.export.samples import golden_samples
    from omnifeed.features.training_set import TrainingSet
    from omnifeed.model.network import load_network
    from omnifeed.model.parts import TorchParts

    network = load_network(checkpoint_dir)
    meta = TrainingSet.load(training_set)
    steps = len(PARTS) + 2
    progress("golden requests", 0, steps)
    samples = golden_samples(training_set, network.spec, meta.now)
    parts = TorchParts(network)
    golden = _golden(parts, samples)
    with _numbered(home) as number, folder_atomic(home.releases / number) as folder:
        for done, part in enumerate(PARTS, start=1):
            progress(f"{part} to ONNX", done, steps)
            example = _example(golden, part)
            model = folder / "models" / f"{part}_{number}"
            (model / "1").mkdir(parents=True)
            export_graph(network, part, example, model / "1" / "model.onnx")
            text = triton_config(model.name, part, example, getattr(parts, part)(example), config.serving.threads)
            (model / "config.pbtxt").write_text(text, encoding="utf-8")
        progress("parity", steps - 1, steps)
        parity = measured_parity(golden, OnnxParts(folder, threads=1))
        for name in ("weights.safetensors", "model.json"):
            shutil.copyfile(checkpoint_dir / name, folder / name)
        for one in golden:
            write_golden(folder / "golden", one)
        release = Release(
            number=number,
            kind="network",
            created_ts=created_ts,
            window=meta.window,
            encode=network.spec.to_dict(),
            feature_digest=digest(),
            config_digest=config.digest,
            git_commit=git_commit,
            tasks=network.tasks,
            metrics=metrics,
            parity=parity,
            versions=_versions("numpy", "onnx", "onnxruntime", "onnxscript", "torch"),
            files=bundle_files(folder),
        )
        write_json(folder / "release.json", release.to_dict())
    progress("release", steps, steps)
    return release


def export_trending(
    home: Home, config: Config, created_ts: int, git_commit: str, window: tuple[int, int] = (0, 0)
) -> Release:
    """Write release 0, which needs no network, or return the one that is there.

    Raises:
        IntegrityError: the one that is there is not what was exported.
    """
    with _exporting(home):
        if (home.releases / TRENDING_RELEASE).exists():
            return load_release(home.releases / TRENDING_RELEASE)
        with folder_atomic(home.releases / TRENDING_RELEASE) as folder:
            for one in _golden_trending():
                write_golden(folder / "golden", one)
            release = Release(
                number=TRENDING_RELEASE,
                kind="trending",
                created_ts=created_ts,
                window=window,
                encode=EncodeSpec.from_config(config).to_dict(),
                feature_digest=digest(),
                config_digest=config.digest,
                git_commit=git_commit,
                tasks=(),
                metrics={},
                parity={},
                versions=_versions("numpy"),
                files=bundle_files(folder),
            )
            write_json(folder / "release.json", release.to_dict())
        return release


def measured_parity(golden: tuple[Golden, ...], parts: Parts) -> dict[str, Any]:
    """How far the graphs' answers are from PyTorch's.

    Returns:
        {"max_abs_error": {by part}, "top_k_equal": True, "tolerance": 1e-5, "calls": number of golden calls}.

    Raises:
        OmnifeedError: an error above the tolerance, or another item among the first 50 that no tie explains.
    """
    worst: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    equal, keys = True, [np.zeros((0, 0), np.float32)] * 2
    for one in sorted(golden, key=lambda call: PARTS.index(call.part)):
        found = getattr(parts, one.part)(one.inputs)
        worst[one.part] = max(worst[one.part], max_abs_error(one.outputs, found))
        if one.part == "item_encoder":
            keys = [one.outputs["item_key"], found["item_key"]]
        elif one.part == "user_encoder":
            equal &= same_top_k(keys[0] @ one.outputs["user_vec"][0], keys[1] @ found["user_vec"][0])
        else:
            columns = zip(one.outputs["probabilities"][0].T, found["probabilities"][0].T, strict=True)
            equal &= all(same_top_k(expected, other) for expected, other in columns)
    if not equal or max(worst.values()) > TOLERANCE:
        raise OmnifeedError(
            f"ONNX and PyTorch disagree: largest errors {worst}, same top items: {equal}.",
            f"Nothing was exported; the tolerance is {TOLERANCE:g}. Look for an operator whose export differs.",
        )
    return {"max_abs_error": worst, "top_k_equal": equal, "tolerance": TOLERANCE, "calls": len(golden)}


def _golden(parts: Parts, samples: Samples) -> tuple[Golden, ...]:
    encoded = parts.item_encoder(samples.items)
    calls = [Golden("item_encoder", "items", samples.items, encoded)]
    vec = encoded["item_vec"]
    for sample in samples.requests:
        request: Arrays = {**sample.request, "hist_vec": vec[sample.request["hist_row"]]}
        del request["hist_row"], request["hist_ts"]
        user = parts.user_encoder(request)
        states = {name: user[name] for name in ("states", "states_mask", "request_state")}
        cand = {"cand_vec": vec[sample.candidates][None], "cand_dense": sample.cand_dense}
        inputs = {**states, "scenario": request["scenario"], **cand}
        calls.append(Golden("user_encoder", sample.case, request, user))
        calls.append(Golden("ranker", sample.case, inputs, parts.ranker(inputs)))
    return tuple(calls)


def _example(golden: tuple[Golden, ...], part: str) -> Arrays:
    """One golden call three times along every dynamic axis: a length of one would be taken as fixed."""
    from omnifeed.export.graphs import SECOND_AXIS

    inputs = next(one.inputs for one in golden if one.part == part)
    if part == "item_encoder":
        return inputs
    batch = {name: np.concatenate([value] * 3) for name, value in inputs.items()}
    return {name: np.concatenate([v] * 3, axis=1) if name in SECOND_AXIS else v for name, v in batch.items()}


def _golden_trending() -> tuple[Golden, ...]:
    trending = np.linspace(0, 6, 64, dtype=np.float32)[::-1].copy()
    match = np.sin(np.arange(64, dtype=np.float32)).astype(np.float32)
    return (
        Golden("trending", "feed", {"trending": trending}, {"scores": trending_scores(trending, None)}),
        Golden(
            "trending", "search", {"trending": trending, "match": match}, {"scores": trending_scores(trending, match)}
        ),
    )


@contextmanager
def _exporting(home: Home) -> Iterator[None]:
    """One export at a time; the kernel drops the lock with the process."""
    home.releases.mkdir(parents=True, exist_ok=True)
    with open(home.releases / ".lock", "a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _numbered(home: Home) -> Iterator[str]:
    """The next free number, from 1, kept for the block."""
    with _exporting(home):
        taken = [int(path.name) for path in home.releases.iterdir() if path.name.isdecimal()]
        yield str(max(taken, default=0) + 1)


def _versions(*packages: str) -> dict[str, str]:
    return {
        "omnifeed": omnifeed.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
