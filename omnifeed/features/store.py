"""The Feast store: applying the repository, newest-wins pushes, and reads in process.

Feast is imported inside the functions: it takes seconds. The repository is found beside the installed package and its
definitions are executed from their file, so that this library does not depend on `omnifeed.feature_repo`. The registry
is derived state: each apply builds it afresh under a temporary name and renames it, so a kill cannot leave half of one.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import sqlite3
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.config import Config
from omnifeed.errors import InputError, IntegrityError, OmnifeedError
from omnifeed.export.encode import UserRow
from omnifeed.features.aggregates import AS_OF
from omnifeed.features.online import SERVICE, user_row
from omnifeed.features.repository import repo_folder, store_yaml
from omnifeed.features.spec import of
from omnifeed.home import Home

UserView = Literal["user_profile", "user_daily", "user_history"]
_BATCH = 2_000  # users a read or a write: below SQLite's limit of bound variables


def registry_file(home: Home) -> Path:
    """Feast's registry; it exists once the repository has been applied."""
    return home.features / "registry.db"


def _open(home: Home, online_store: str, registry: Path) -> Any:
    import yaml
    from feast import FeatureStore, RepoConfig

    path = store_yaml(online_store)
    try:
        text = string.Template(path.read_text(encoding="utf-8")).substitute(
            {**os.environ, "OMNIFEED_HOME": str(home.root.absolute())}
        )
    except KeyError as error:
        raise InputError(f"{path} needs the environment variable {error}.", "Set it.") from None
    raw = yaml.safe_load(text)
    raw["registry"]["path"] = str(registry)
    return FeatureStore(config=RepoConfig(repo_path=path.parent, **raw))


def apply(home: Home, config: Config) -> None:
    """Register the repository's definitions and make the online tables. Safe to repeat."""
    module_spec = importlib.util.spec_from_file_location("feature_definitions", repo_folder() / "definitions.py")
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    fresh = home.features / f".registry.{os.getpid()}.db"
    with _writing(home):
        home.features.mkdir(parents=True, exist_ok=True)
        try:
            store = _open(home, config.features.online_store, fresh)
            store.apply(module.definitions(home.root.absolute()))
            if store.config.online_store.type == "sqlite":
                with sqlite3.connect(store.config.online_store.path) as connection:
                    connection.execute("PRAGMA journal_mode = WAL")  # a push does not block the feature server's reads
                connection.close()
            os.replace(fresh, registry_file(home))
        finally:
            fresh.unlink(missing_ok=True)


@lru_cache(maxsize=4)
def _opened(root: Path, online_store: str, applied: tuple[int, int]) -> Any:
    return _open(Home(root), online_store, registry_file(Home(root)))


def feature_store(home: Home, config: Config) -> Any:
    """The `feast.FeatureStore` of this home, opened once a process for each apply.

    Raises:
        IntegrityError: the repository was never applied here.
    """
    try:
        stat = registry_file(home).stat()
    except FileNotFoundError:
        raise IntegrityError(
            f"{registry_file(home)} does not exist: no features were materialized here.", "Run the materialize step."
        ) from None
    return _opened(home.root.absolute(), config.features.online_store, (stat.st_ino, stat.st_mtime_ns))


@contextmanager
def _writing(home: Home) -> Iterator[None]:
    """A full disk as two sentences: SQLite has an error of its own for it."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise OmnifeedError(
            f"The feature store in {home.features} could not be written: {error}.",
            "Free some space or fix the permissions and run again; rows that were written before are still there.",
        ) from error


@contextmanager
def _writer(home: Home) -> Iterator[None]:
    """One writer at a time: read-compare-write must not interleave."""
    with _writing(home), open(home.features / "online.lock", "a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _stored_as_of(store: Any, view: UserView, users: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64 [N]: the microsecond of each user's stored row, the least integer where there is none."""
    result = np.full(len(users), np.iinfo(np.int64).min, np.int64)
    name = f"{view}_as_of"
    for start in range(0, len(users), _BATCH):
        rows = [{"user_id": user} for user in users[start : start + _BATCH]]
        values = store.get_online_features([f"{view}:{name}"], rows).to_dict()[name]
        for index, value in enumerate(values, start):
            if value is not None:
                result[index] = value
    return result


def push_users(home: Home, rows: pa.Table, view: UserView, config: Config | None = None) -> int:
    """Write rows to the online store unless a newer one is there; at the same instant the row pushed last wins.

    Args:
        rows: user_id, event_timestamp, and the view's features; of several rows of one user the newest counts.
        view: user_profile, user_daily or user_history.

    Returns:
        Rows written; the others were older than another row of their user.

    Raises:
        IntegrityError: the repository was never applied in this home.
        InputError: a column is missing.
        OmnifeedError: the disk is full or not writable.
    """
    columns = ["user_id", AS_OF, *(feature.name for feature in of(view))]
    missing = [name for name in columns if name not in rows.column_names]
    if missing:
        raise InputError(f"The rows pushed to {view} have no column {missing[0]!r}.", "Add it.")
    store = feature_store(home, config or Config())
    as_of = rows[AS_OF].cast(pa.int64())
    rows = rows.select(columns).append_column(f"{view}_as_of", as_of)
    order = pc.sort_indices(
        pa.table({"user": rows["user_id"], "as_of": as_of}), [("user", "ascending"), ("as_of", "ascending")]
    )
    rows = rows.take(order)
    users = rows["user_id"].to_pylist()
    newest = np.array([index + 1 == len(users) or users[index + 1] != user for index, user in enumerate(users)], bool)
    rows = rows.filter(pa.array(newest))
    with _writer(home):
        stored = _stored_as_of(store, view, rows["user_id"].to_pylist())
        fresh = rows.filter(pa.array(np.asarray(rows[f"{view}_as_of"]) >= stored))
        for start in range(0, fresh.num_rows, _BATCH):
            store.write_to_online_store(view, df=fresh.slice(start, _BATCH).to_pandas())
    return int(fresh.num_rows)


def read_user(home: Home, user_id: str, config: Config | None = None) -> UserRow:
    """What the online store knows of a user now; an unknown user has no features and an empty history."""
    store = feature_store(home, config or Config())
    answer = store.get_online_features(store.get_feature_service(SERVICE, allow_cache=True), [{"user_id": user_id}])
    return user_row({name: values[0] for name, values in answer.to_dict().items()})
