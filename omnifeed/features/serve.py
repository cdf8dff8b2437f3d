"""How the feature server is started: Feast's own, one process on one port of this machine.

Standard library only in what is imported; the caller runs the command as a subprocess and stops it with SIGTERM.
Pushes do not go through it: its /push lets an older row overwrite a newer one (`omnifeed.features.store.push_users`
does not, and writes to the same store).
"""

from __future__ import annotations

import os
import sys

from omnifeed.config import Config
from omnifeed.features.repository import repo_folder, store_yaml
from omnifeed.home import Home

HOST = "127.0.0.1"


def command(home: Home, config: Config) -> list[str]:
    """The argument list of the feature server; it needs `environment`."""
    return [
        sys.executable,
        *("-m", "feast.cli.cli"),
        *("-c", str(repo_folder())),
        *("-f", str(store_yaml(config.features.online_store))),
        "serve",
        *("--host", HOST),
        *("--port", str(config.serving.features_port)),
        *("--workers", "1"),
        *("--max-requests", "0"),  # Feast's default restarts the worker after 1,000 requests
        "--no-access-log",
        *("--registry_ttl_sec", "3600"),
    ]


def environment(home: Home, config: Config) -> dict[str, str]:
    """The whole environment of that process: this one's, the home, and one thread (it only looks rows up)."""
    return {
        **os.environ,
        "OMNIFEED_HOME": str(home.root.absolute()),
        "OMP_NUM_THREADS": "1",
        "XDG_RUNTIME_DIR": str(home.features.absolute()),  # where gunicorn puts its control socket
    }
