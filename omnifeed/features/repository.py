"""Where the Feast repository stands once installed: beside the library, found without being imported.

Standard library only: the process that starts the feature server needs no more.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from omnifeed.errors import InputError


def repo_folder() -> Path:
    """The folder of the Feast repository.

    Raises:
        InputError: the package was installed without it.
    """
    spec = importlib.util.find_spec("omnifeed.feature_repo")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("The Feast repository is not installed.", "Install omnifeed again, from its source tree.")
    return Path(next(iter(spec.submodule_search_locations)))


def store_yaml(online_store: str) -> Path:
    """The feature_store.yaml of an online store.

    Args:
        online_store: setting features.online_store.

    Raises:
        InputError: there is none of this name.
    """
    path = repo_folder() / online_store / "feature_store.yaml"
    if not path.is_file():
        known = sorted(file.parent.name for file in repo_folder().glob("*/feature_store.yaml"))
        raise InputError(
            f"Setting features.online_store is {online_store!r}, which is unknown.", f"Known: {', '.join(known)}."
        )
    return path
