"""A keyed permutation of any range, in constant memory: what ``shuffle=True`` shuffles with.

Read next: :mod:`slw_data.order.lanes`, whose blocks it permutes.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["Ints", "permute"]

Ints = npt.NDArray[np.int64]


_TABLE = 16  # bits of half a value up to which the rounds are looked up: six tables of 512 KiB at most
_MANY = 1 << 8  # values from which on that is worth it
_FEW = 1 << 10  # sizes up to which all of a permutation costs as much as a few values of it


def permute(values: Ints, size: int, key: tuple[int, ...]) -> Ints:
    """A keyed permutation of ``range(size)``, evaluated at ``values``, in constant memory.

    A Feistel network over the next power of four; values that leave the range walk on until they return to it
    (Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    if size <= _FEW:  # walking on is then a look into a table
        whole = _all(half, key)
        out = whole[values]
        while (outside := np.flatnonzero(out >= size)).size:
            out[outside] = whole[out[outside]]
        return out
    tabled = half <= _TABLE and len(values) >= _MANY
    tables = _tables(half, key) if tabled else None
    keys = _keys(key)

    def once(some: Ints) -> Ints:
        return _by_tables(some, half, tables) if tables is not None else _feistel(some.astype(np.uint64), half, keys)

    out = once(values)
    while (outside := np.flatnonzero(out >= size)).size:
        out[outside] = once(out[outside])
    return out


def _keys(key: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """Those of the six rounds."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=48).digest()
    return np.frombuffer(digest, dtype="<u8")


def _feistel(values: npt.NDArray[np.uint64], half: int, keys: npt.NDArray[np.uint64]) -> Ints:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ _mixed(right, key, half)
    return ((left << shift) | right).astype(np.int64)


def _mixed(right: npt.NDArray[np.uint64], key: np.uint64, half: int) -> npt.NDArray[np.uint64]:
    """What one round adds to the left half: the upper bits of a product."""
    mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)  # wraps modulo 2^64, as meant
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    upper: npt.NDArray[np.uint64] = mixed >> np.uint64(64 - half)
    return upper


@lru_cache(maxsize=64)
def _all(half: int, key: tuple[int, ...]) -> Ints:
    """The network at each of its values, int64 (4^half,)."""
    return _feistel(np.arange(1 << 2 * half, dtype=np.uint64), half, _keys(key))


@lru_cache(maxsize=4)
def _tables(half: int, key: tuple[int, ...]) -> Ints:
    """What each round adds to the left half, for every right half: int64 (6, 2^half)."""
    halves = np.arange(1 << half, dtype=np.uint64)
    return np.array([_mixed(halves, of_round, half) for of_round in _keys(key)]).astype(np.int64)


def _by_tables(values: Ints, half: int, tables: Ints) -> Ints:
    left, right = values >> half, values & ((1 << half) - 1)
    for table in tables:
        left ^= table.take(right, mode="clip")  # nothing is beyond it, and so nobody looks
        left, right = right, left
    joined: Ints = (left << half) | right
    return joined
