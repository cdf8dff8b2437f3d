from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.synthetic import small_config, with_model, write_training_set

from omnifeed.config import Config
from omnifeed.training.loop import train


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def config() -> Config:
    return with_model(small_config(epochs=4, lr=5e-3), width=32)


@pytest.fixture(scope="session")
def training_set(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_training_set(folder, config, users=300, requests=14)
    return folder


@pytest.fixture(scope="session")
def trained(training_set: Path, tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(training_set, folder, config)
    return folder
