from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .synthetic import small_config, write_training_set


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_training_set(folder, small_config())
    return folder
