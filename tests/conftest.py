"""What every test shares: where the optional data lies, and the flag that refreshes goldens."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh-goldens", action="store_true", help="write tests/golden instead of comparing with it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes at once: a room's tests share one, with their fixtures, and the longest room begins."""
    rooms = {item: item.path.relative_to(ROOT / "tests").parts[0] for item in items}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(rooms[item]))
    items.sort(key=lambda item: rooms[item] != "loop")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data beside the repository; a test that needs it skips where it is missing."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    return folder
