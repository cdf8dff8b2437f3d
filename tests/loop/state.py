"""What a home holds, as a mapping that two homes can be compared by."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

from omnifeed.experiment.ledger import Ledger
from omnifeed.export.catalogue import current_version, load_snapshot
from omnifeed.export.release import load_release
from omnifeed.home import Home

#: Not accepted state: records of runs, locks, the server's scratch, and Feast's registry, which holds its own times.
_PASSING = ("runs/", "serving/", "quarantine/", "features/registry.db", "features/online.db")
#: Folders of an experiment that are made again from its lines where they are missing; the order of their rows varies.
_DERIVED = "/read/"


def state(home: Home) -> dict[str, str]:
    """Digest of every file by its path, and every row of the online store; what a killed write left is hidden."""
    found = {}
    for path in home.root.rglob("*"):
        name = str(path.relative_to(home.root))
        hidden = any(part.startswith(".") for part in path.relative_to(home.root).parts)
        passing = name.startswith(_PASSING) or "lock" in path.name or _DERIVED in name
        if path.is_file() and not hidden and not passing:
            found[name] = hashlib.sha256(_content(path)).hexdigest()
    return found | _online(home.features / "online.db")


def _content(path: Path) -> bytes:
    """A file's bytes; of a manifest without the commit, which may move on while the tests run."""
    if path.name != "release.json":
        return path.read_bytes()
    return json.dumps({**json.loads(path.read_text()), "git_commit": ""}).encode()


def _online(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    rows = {}
    connection = sqlite3.connect(path)
    try:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
            if "entity_key" not in columns:
                continue
            query = f'SELECT entity_key, feature_name, value, event_ts FROM "{table}"'
            for key, feature, value, ts in connection.execute(query):
                rows[f"online/{table}/{key.hex()}/{feature}"] = hashlib.sha256(repr((value, ts)).encode()).hexdigest()
    finally:
        connection.close()
    return rows


def under(found: dict[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    return {name: digest for name, digest in found.items() if name.startswith(prefixes)}


def assert_sound(home: Home) -> None:
    """Every accepted thing is whole: ledger, releases, catalogue, the pointer to the experiment."""
    Ledger(home).verify()
    for folder in home.releases.glob("[!.]*"):
        load_release(folder)
    champion = Ledger(home).champion()
    assert champion is None or (home.releases / champion).is_dir()
    if (home.catalogue / "current").exists():
        current_version(home)
        load_snapshot(home)
    if (home.experiments / "current.json").exists():
        json.loads((home.experiments / "current.json").read_text())
