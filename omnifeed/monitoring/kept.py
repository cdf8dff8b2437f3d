"""Profiles of days that were read once: a day that is over does not change, so its log is not read again.

One file a day under `monitoring/profiles/<release>/`, named by how late its outcomes were read. They can be deleted at
any time; what is missing or unreadable is made again from the logs.
"""

from __future__ import annotations

import json

from omnifeed.features.spec import digest
from omnifeed.home import Home, write_atomic
from omnifeed.monitoring.profile import Profile

FORMAT = 1  # counts up where a profile comes to hold something else


class ProfileStore:
    """The kept profiles of one release, with outcomes read `lag` microseconds after the end of each day."""

    def __init__(self, home: Home, release: str, lag: int) -> None:
        self._folder = home.root / "monitoring" / "profiles" / release
        self._lag = lag
        self._made = f"{FORMAT} {digest()}"

    def read(self, day: int) -> Profile | None:
        """The profile of the day that begins at this midnight; None where it is to be made."""
        try:
            raw = json.loads((self._folder / self._name(day)).read_text(encoding="utf-8"))
            return Profile.from_dict(raw["profile"]) if raw["made"] == self._made else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, profile: Profile) -> Profile:
        """Keep a profile, and return it."""
        body = {"made": self._made, "profile": profile.to_dict()}
        write_atomic(self._folder / self._name(profile.day), json.dumps(body, ensure_ascii=False))
        return profile

    def _name(self, day: int) -> str:
        return f"{day}-{self._lag}.json"
