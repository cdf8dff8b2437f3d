"""What a release was made from: the commit, and the versions of the libraries."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

#: What benchmarks write: it changes no code.
MEASURED = (":(top,exclude)results", ":(top,exclude)docs/RESULTS.md")


def git_commit() -> str:
    """The commit of the code that runs: OMNIFEED_COMMIT (set in the image), else git's, else "unknown".

    A tree with changes that are not committed is marked "+changed".
    """
    if named := os.environ.get("OMNIFEED_COMMIT"):
        return named
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *MEASURED)
        return git("rev-parse", "HEAD") + ("+changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
