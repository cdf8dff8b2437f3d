"""Whether the releases that are to answer side by side fit into the memory, asked before the second one is loaded.

Every instance of `recommend` holds the catalogue and an index of each release; every model of a release has a process
of its own on the bundled server. What does not fit would end in the kernel killing one of them, champion and all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from omnifeed.config import Config
from omnifeed.errors import OmnifeedError, UnavailableError
from omnifeed.export.catalogue import current_version
from omnifeed.export.encode import EncodeSpec
from omnifeed.export.release import load_release
from omnifeed.home import Home

SHARE = 0.8  # of the limit; the rest is for a new snapshot beside the old one, and for requests
MIB = 2**20
SERVER, PROCESS = 120 * MIB, 110 * MIB  # Triton itself; a model's process before it holds anything
PLAIN = 24  # bytes of an item's price and keys, which every index has
LIMIT = "OMNIFEED_MEMORY_LIMIT"
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_RECOMMEND = Path(__file__).parent / "repository" / "recommend" / "config.pbtxt"


def check_memory(home: Home, config: Config, releases: Sequence[str]) -> None:
    """Refuse releases that would take more than 80 % of the memory; a single one is always let through.

    Raises:
        OmnifeedError: they do not fit; the sentence says what they need and what there is.
        IntegrityError: a bundle is not what was exported.
    """
    if len(releases) < 2:
        return
    wanted, limit, instances = needed(home, config, releases), memory_limit(), _instances(_settings(_RECOMMEND))
    if wanted > SHARE * limit:
        raise OmnifeedError(
            f"Releases {', '.join(releases)} side by side need about {wanted / MIB:,.0f} MiB ({len(releases)} releases "
            f"in {instances} instances of recommend), more than {SHARE:.0%} of the {limit / MIB:,.0f} MiB "
            "that the server may use.",
            "Give it more memory, or run fewer instances of recommend, or end the experiment.",
        )


def needed(home: Home, config: Config, releases: Sequence[str]) -> int:
    """Bytes, estimated from the catalogue, the bundles and the numbers of instances."""
    size, items = _catalogue(home)
    spec = EncodeSpec.from_config(config)
    texts = {(spec.salt, spec.text_dims)}
    models = vectors = 0
    for number in releases:
        folder = home.releases / number
        release = load_release(folder)
        if release.kind != "network":
            continue
        own = EncodeSpec.from_dict(release.encode)
        texts.add((own.salt, own.text_dims))
        for model in (folder / "models").iterdir():
            settings = _settings(model / "config.pbtxt")
            weights = sum(path.stat().st_size for path in model.rglob("*.onnx"))
            models += _instances(settings) * (PROCESS + 2 * weights)
            if model.name.startswith("item_encoder"):
                width = settings.output[0].dims[-1]
                near = width + 8 if items > config.serving.exact_up_to else 0
                vectors += items * (2 * 4 * width + near + PLAIN)
    instance = PROCESS + size + vectors + items * (PLAIN + sum(dims + 4 for _, dims in texts))
    return SERVER + models + _instances(_settings(_RECOMMEND)) * instance


def memory_limit() -> int:
    """Bytes: OMNIFEED_MEMORY_LIMIT, else the control group's limit or the machine's memory, whichever is less."""
    named = os.environ.get(LIMIT)
    if named:
        return int(named)
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _LIMITS):
        text = path.read_text().strip() if path.exists() else ""
        found += [int(text)] if text.isdigit() else []  # "max": none
    return min(found)


def _settings(path: Path) -> ModelConfig:
    return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())


def _instances(settings: ModelConfig) -> int:
    return sum(max(group.count, 1) for group in settings.instance_group) or 1


def _catalogue(home: Home) -> tuple[int, int]:
    """Bytes and items of today's; nothing where none was written yet."""
    try:
        path = home.catalogue / f"{current_version(home)}.npz"
    except UnavailableError:
        return 0, 0
    with np.load(path, allow_pickle=False) as arrays:
        return path.stat().st_size, len(arrays["price"])
