"""The release bundle's manifest: what is in it, made from what, and the hashes that must match before it is loaded.

Standard library only. A bundle is `releases/<number>/` with `release.json`, `models/<part>_<number>/` (Triton model
folders: config.pbtxt and 1/model.onnx), `weights.safetensors`, and `golden/` (requests and expected answers). It is
immutable: a number is never written twice.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omnifeed.errors import IntegrityError

#: The Triton models of a network release, in the order they are called.
PARTS = ("item_encoder", "user_encoder", "ranker")


@dataclass(frozen=True, slots=True)
class Release:
    """The content of release.json."""

    number: str  # decimal, "0" is the trending release
    kind: str  # "trending" (no network) or "network"
    created_ts: int  # UTC microseconds
    window: tuple[int, int]  # training events' first and last ts, UTC microseconds
    encode: dict[str, Any]  # EncodeSpec.to_dict()
    feature_digest: str  # omnifeed.features.spec.digest()
    config_digest: str
    git_commit: str
    tasks: tuple[str, ...]  # columns of the ranker's output
    metrics: dict[str, Any]
    parity: dict[str, Any]  # {"max_abs_error": {...by part}, "top_k_equal": bool, "tolerance": 1e-5}
    versions: dict[str, str]  # of the libraries that made it
    files: dict[str, str]  # relative path -> SHA-256

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def bundle_files(folder: Path) -> dict[str, str]:
    """Relative path and hash of every file of a bundle but release.json itself."""
    return {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / "release.json"
    }


def load_release(folder: Path) -> Release:
    """Read release.json and check every file against it.

    Raises:
        IntegrityError: the manifest is missing or malformed, or a file is missing, added or changed.
    """
    manifest = folder / "release.json"
    try:
        raw = json.loads(manifest.read_text(encoding="utf-8"))
        release = Release(**{**raw, "window": tuple(raw["window"]), "tasks": tuple(raw["tasks"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise IntegrityError(
            f"{manifest} cannot be read: {error}.", "Export the release again, or roll back to another one."
        ) from error
    found = bundle_files(folder)
    for name in sorted(found.keys() | release.files.keys()):
        if found.get(name) != release.files.get(name):
            state = (
                "is missing"
                if name not in found
                else "is not in release.json"
                if name not in release.files
                else "has changed"
            )
            raise IntegrityError(
                f"{folder / name} {state}: the bundle of release {release.number} is not what was exported.",
                "Do not serve it; restore the folder or export again.",
            )
    return release
