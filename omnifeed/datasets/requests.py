"""Requests for logs that have none: what one user sees on one surface within one observation delay.

A request lasts from its first row until the delay has passed, at most MAX_REQUEST rows: no outcome inside it is known
before its last row, so sharing the history of the first row hides next to nothing from the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_REQUEST = 20

Ints = npt.NDArray[np.int64]


def request_ids(user: Ints, surface: Ints, ts: Ints, window_us: int) -> list[str]:
    """The request of each row: user, surface and the first row's millisecond, then its part where it is overfull.

    Args:
        user, surface: numbers of the source. ts: UTC microseconds.
    """
    order = np.lexsort((ts, surface, user))
    part, start = np.zeros(len(ts), np.int64), np.zeros(len(ts), np.int64)
    last = (-1, -1)
    begin, size = 0, 0
    for row, u, s, moment in zip(
        order.tolist(), user[order].tolist(), surface[order].tolist(), ts[order].tolist(), strict=True
    ):
        if (u, s) != last or moment - begin > window_us:
            last, begin, size = (u, s), moment, 0
        part[row], start[row] = size // MAX_REQUEST, begin
        size += 1
    names = (f"{u}-{s}-{ms}" for u, s, ms in zip(user, surface, start // 1000, strict=True))
    return [name if index == 0 else f"{name}-{index}" for name, index in zip(names, part, strict=True)]
