"""Recommenders in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from export.releases import copied, experiment

from serving.recommender import Server


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Release 0 is the champion, release 1 the challenger."""
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "0", 0.5), ("challenger", "1", 0.5))
    one = Server(home)
    assert one.live.refresh()
    return one


@pytest.fixture
def alone(tmp_path: Path) -> Server:
    """Release 1 is the champion of an experiment without a challenger."""
    home = copied(tmp_path / "home")
    experiment(home, ("champion", "1", 1.0))
    one = Server(home)
    assert one.live.refresh()
    return one
