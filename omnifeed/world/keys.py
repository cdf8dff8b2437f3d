"""Randomness that does not depend on the order of calls.

What is drawn in bulk comes from a Philox generator keyed by SHA-256 of (seed, purpose, ...). What is drawn for one
(visit, item) pair is a hash of both: two arms that show the same item in the same visit meet the same luck.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


def key(*parts: object) -> int:
    """The first 8 bytes of SHA-256 over the parts, joined by NUL."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")


def keys(prefix: str, names: Sequence[object]) -> Keys:
    """uint64 [N], one key a name."""
    return np.array([key(prefix, name) for name in names], np.uint64)


def generator(*parts: object) -> np.random.Generator:
    """A numpy generator of its own for this purpose."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


def mix(left: Keys, right: Keys | np.uint64) -> Keys:
    """Combine two keys into a third, elementwise with broadcasting (the finaliser of splitmix64)."""
    state = left + np.multiply(right, _GOLDEN)  # the ufunc wraps around in silence, also for a scalar
    state = (state ^ (state >> _SHIFT_1)) * _MIX_1
    state = (state ^ (state >> _SHIFT_2)) * _MIX_2
    return np.asarray(state ^ (state >> _SHIFT_3), np.uint64)


def uniforms(keys_: Keys, purpose: int) -> Floats:
    """float64 strictly inside (0, 1), one a key; another purpose gives independent numbers."""
    bits = mix(keys_, np.uint64(purpose)) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) / 2.0**53


def uniform_rows(keys_: Keys, purposes: int) -> Floats:
    """float64 [purposes, *keys_.shape] strictly inside (0, 1)."""
    offsets = np.arange(1, purposes + 1, dtype=np.uint64).reshape(-1, *([1] * keys_.ndim))
    bits = mix(np.broadcast_to(keys_, (purposes, *keys_.shape)), offsets) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) / 2.0**53
