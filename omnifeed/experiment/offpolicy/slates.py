"""The log that off-policy estimates read: answers that were drawn by chance, with the chances and what came of them.

A log of single choices is one of slates of one position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from omnifeed.errors import InputError
from omnifeed.experiment.assignment import unit_interval

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LoggedSlates:
    """R answers of at most K positions, filled from the top.

    Args:
        user: int64 [R], the unit within which answers depend on each other.
        shown: bool [R, K], false beyond an answer's end.
        propensity: float64 [R, K], the probability of the item at a position given the items above it.
        reward: float64 [R, K], what each position earned.
    """

    user: Ints
    shown: Bools
    propensity: Floats
    reward: Floats

    def __post_init__(self) -> None:
        shape = self.shown.shape
        if len(shape) != 2 or self.propensity.shape != shape or self.reward.shape != shape:
            raise InputError(
                f"shown, propensity and reward have shapes {shape}, {self.propensity.shape} and {self.reward.shape}.",
                "Give three arrays of one shape [answers, positions].",
            )
        if self.user.shape != shape[:1]:
            raise InputError(f"user has shape {self.user.shape}.", f"Give one user for each of {shape[0]} answers.")
        if np.any(self.shown[:, 1:] & ~self.shown[:, :-1]):
            raise InputError("An answer has a gap between its positions.", "Fill answers from the top.")

    def take(self, rows: npt.NDArray[Any]) -> LoggedSlates:
        """Some answers, by number or mask."""
        return LoggedSlates(self.user[rows], self.shown[rows], self.propensity[rows], self.reward[rows])


@dataclass(frozen=True, slots=True)
class Explored:
    """Omnifeed's own explored answers, and which they are."""

    slates: LoggedSlates
    request_id: tuple[str, ...]  # [R]
    item_id: npt.NDArray[np.str_]  # [R, K], "" beyond an answer's end
    incomplete: int  # explored answers left out because a position's exposure is missing


def explored_slates(events: pa.Table, reward: str) -> Explored:
    """The answers of `omnifeed.datasets.served.served_events` that were sampled: those with propensities.

    Args:
        events: EVENTS rows; others than explored ones are left out.
        reward: the column that counts: an outcome, `gmv` or `dwell_ms`; null counts zero.

    Raises:
        InputError: there is no such column, or it is not a number.
    """
    if reward not in events.column_names or reward in ("propensity", "position"):
        raise InputError(f"Events have no reward {reward!r}.", "Name an outcome, gmv or dwell_ms.")
    try:
        worth = pc.fill_null(events[reward].cast(pa.float64()), 0.0)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"Column {reward} of events is not a number.", "Name an outcome, gmv or dwell_ms.") from None
    columns = ["request_id", "user_id", "item_id", "position", "propensity"]
    rows = events.select(columns).append_column("worth", worth).filter(pc.is_valid(events["propensity"]))
    rows = rows.sort_by([("request_id", "ascending"), ("position", "ascending")])
    names, first, count = np.unique(_texts(rows["request_id"]), return_index=True, return_counts=True)
    position = rows["position"].cast(pa.int64()).to_numpy()
    last = np.maximum.reduceat(position, first) if len(first) else np.zeros(0, np.int64)
    whole = last == count - 1  # as positions of one request are distinct and sorted
    width = int(count[whole].max(initial=0))
    place = np.arange(width)[None] + first[whole][:, None]
    shown = np.arange(width)[None] < count[whole][:, None]
    place = np.where(shown, place, 0)

    def grid(name: str, blank: float) -> Floats:
        return np.where(shown, rows[name].to_numpy()[place], blank) if place.size else np.zeros(place.shape)

    users = np.unique(_texts(rows["user_id"]), return_inverse=True)[1]
    slates = LoggedSlates(np.asarray(users[first[whole]], np.int64), shown, grid("propensity", 1.0), grid("worth", 0.0))
    items = np.where(shown, _texts(rows["item_id"])[place], "") if place.size else np.zeros(place.shape, np.str_)
    return Explored(slates, tuple(names[whole].tolist()), items, int((~whole).sum()))


def target_probabilities(
    explored: Explored, request_id: Sequence[str], item_id: Sequence[str], probability: Sequence[float]
) -> Floats:
    """Another policy's probability of each logged item given the items above it, lined up with the log.

    Returns:
        float64 [R, K], NaN where an item has none (estimates refuse that), 1 beyond an answer's end.
    """
    given = dict(zip(zip(request_id, item_id, strict=True), probability, strict=True))
    target = np.ones(explored.slates.shown.shape)
    for row, place in np.argwhere(explored.slates.shown):
        target[row, place] = given.get((explored.request_id[row], str(explored.item_id[row, place])), np.nan)
    return target


def user_folds(user_id: Sequence[str], folds: int, salt: str = "cross-fit") -> Ints:
    """A fold for each row by its user: a reward model predicts a fold after learning from the others alone.

    Returns:
        int64 [len(user_id)], 0 to folds - 1.
    """
    return np.array([int(unit_interval(salt, user) * folds) for user in user_id], np.int64)


def _texts(column: pa.ChunkedArray) -> npt.NDArray[np.str_]:
    return np.array(column.to_pylist(), np.str_) if len(column) else np.zeros(0, np.str_)
