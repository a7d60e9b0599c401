"""Copy many windows of one array at once, and refuse windows that leave it.

``n`` overlapping windows are one fancy-indexing call: an array of ``length`` tokens at every position is described by
its strides alone, as void items that NumPy moves with one ``memcpy`` each, without a Python loop over rows.
Read :mod:`slw_data.sources.stores.pieces` next, which does the same where the tokens lie in more than one array.
"""

import numpy as np

from slw_data.errors import DataError
from slw_data.sources.stores.protocol import Offsets, Tokens

__all__ = ["check_windows", "copy_windows", "refuse_beyond_int64"]

LONG = 8192  # bytes


def copy_windows(tokens: Tokens, starts: Offsets, length: int, out: Tokens) -> None:
    """Set ``out[i, :] = tokens[starts[i] : starts[i] + length]``; the windows were checked before."""
    width = tokens.itemsize * length
    # Long windows cost more to copy twice than to loop over; NumPy refuses to describe more than 2^63 bytes,
    # overlapping or not; and void items need neighbouring tokens.
    if len(starts) == 1 or width >= LONG or len(tokens) * width >= 2**62 or not tokens.flags.c_contiguous:
        for row, start in zip(out, starts.tolist(), strict=True):
            row[:] = tokens[start : start + length]
        return
    windows = np.ndarray((len(tokens) - length + 1,), f"V{width}", tokens, 0, (tokens.itemsize,))
    np.copyto(out, windows[starts].view(tokens.dtype).reshape(len(starts), length), casting="same_kind")


def check_windows(starts: Offsets, length: int, out: Tokens, total: int, name: str) -> None:
    """Raise IndexError for windows outside ``total`` tokens, ValueError for an ``out`` of another shape."""
    if out.shape != (len(starts), length):
        raise ValueError(f"out must have shape ({len(starts)}, {length}) for these starts, found {out.shape}")
    if len(starts) == 0:
        return
    few = starts.tolist() if len(starts) < 64 else (int(starts.min()), int(starts.max()))
    first, last = min(few), max(few)
    if not 0 <= first <= last <= total - length:
        raise IndexError(
            f"windows of {length} tokens from {first} to {last} leave {name}, "
            f"which has {total} tokens: the last one may start at {total - length}"
        )


def refuse_beyond_int64(starts: Offsets, out: Tokens, name: str) -> None:
    """Raise DataError if uint64 tokens, now in ``out``, do not fit the int64 that batches are made of."""
    bad = np.argwhere(out.astype(np.int64, copy=False) < 0)
    if len(bad):
        row, column = bad[0].tolist()
        value = int(out[row, column]) % 2**64
        raise DataError(
            f"{name}: token {int(starts[row]) + column} is {value}, above the largest int64 {2**63 - 1}: "
            "it is no token id; check the dtype that the tokens were written with"
        )
