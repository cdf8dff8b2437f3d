"""What may be shown, remembered: between two moments at which an item comes or goes the mask is the same.

Stock, policy and blocks arrive as another state of the catalogue; within one state only its times pass: creation, and
the beginning and the end of broadcasts. So a mask holds from the last of these times to the next, and a request on a
large catalogue copies it instead of comparing every row again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnifeed.export.catalogue_state import Bools, Catalogue

REMEMBERED = 32  # locales and states; the oldest goes first
ALWAYS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Held:
    catalogue: Catalogue
    since: int  # UTC microseconds, inclusive
    until: int  # exclusive
    mask: Bools


class Eligibility:
    """Masks of one index over the states of its catalogue; for one thread at a time."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str | None], _Held] = {}

    def mask(self, catalogue: Catalogue, rows: int, now: int, locale: str | None) -> Bools:
        """bool [rows], the caller's own copy: `Catalogue.eligible_within`."""
        if len(catalogue.locales) < 2:
            locale = None  # nothing is bound to one
        held = self._held.get((rows, locale))
        if held is None or held.catalogue is not catalogue or not held.since <= now < held.until:
            since, until = _between(catalogue, rows, now)
            held = _Held(catalogue, since, until, catalogue.eligible_within(rows, now, locale))
            self._held.pop((rows, locale), None)
            self._held[rows, locale] = held
            if len(self._held) > REMEMBERED:
                del self._held[next(iter(self._held))]
        return held.mask.copy()


def _between(catalogue: Catalogue, rows: int, now: int) -> tuple[int, int]:
    """The last time up to now, and the first one after it, at which any of the rows comes or goes."""
    since, until = -ALWAYS, ALWAYS
    for times in (catalogue.created_ts, catalogue.live_from, catalogue.live_until):
        passed = times[:rows] <= now
        since = max(since, int(np.max(times[:rows], where=passed, initial=-ALWAYS)))
        until = min(until, int(np.min(times[:rows], where=~passed, initial=ALWAYS)))
    return since, until
