"""The lake: the last accepted tables, replaced whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from omnifeed.home import Home, folder_atomic


def accepted(home: Home) -> Path:
    """Folder of the last accepted table set."""
    return home.lake / "accepted"


def publish(tables: Path, home: Home) -> None:
    """Make a validated table set the lake's accepted one."""
    with folder_atomic(accepted(home)) as folder:
        shutil.copytree(tables, folder, dirs_exist_ok=True)
