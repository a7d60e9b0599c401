"""A keyed permutation of any range, in constant memory: what ``shuffle=True`` shuffles with.

Read next: :mod:`slw_data.order.lanes`, whose blocks it permutes.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

__all__ = ["Ints", "permute"]

Ints = npt.NDArray[np.int64]


def permute(values: Ints, size: int, key: tuple[int, int]) -> Ints:
    """A keyed permutation of ``range(size)``, evaluated at ``values``, in constant memory.

    A Feistel network over the next power of four; values that leave the range walk on until they return to it
    (Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=48).digest()
    keys = np.frombuffer(digest, dtype="<u8")
    out = _feistel(values.astype(np.uint64), half, keys)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], half, keys)
    return out.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], half: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)  # wraps modulo 2^64, as meant
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(0xD6E8FEB86659FD93)
        left, right = right, left ^ ((mixed >> np.uint64(64 - half)) & mask)
    joined: npt.NDArray[np.uint64] = (left << shift) | right
    return joined
