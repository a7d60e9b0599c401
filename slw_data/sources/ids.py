"""Ids: the one rule for token ids, wherever they are read: at least 0, and below the vocabulary's size or 2^63.

Read next: :mod:`slw_data.batch.reading`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from slw_data.errors import DataError

__all__ = ["bad_id", "check_ids"]

Array = npt.NDArray[Any]


def check_ids(ids: Array, vocab_size: int | None) -> tuple[int, ...] | None:
    """The index of the first token id that is negative or not below ``vocab_size``; None if there is none.

    One pass: read as unsigned, a negative id is larger than any limit.
    """
    signed = ids.dtype.kind == "i"
    if ids.size == 0 or (vocab_size is None and not signed and ids.dtype.itemsize < 8):
        return None
    limit = min(vocab_size or 1 << 63, 1 << (8 * ids.dtype.itemsize - signed))
    unsigned = ids.view(ids.dtype.str.replace("i", "u")) if signed else ids
    if int(unsigned.max()) < limit:
        return None
    return tuple(int(i) for i in np.argwhere(unsigned >= limit)[0])


def bad_id(token: int, vocab_size: int | None, where: str) -> DataError:
    """The error for a token id that :func:`check_ids` found."""
    bound = f"below vocab_size={vocab_size}" if vocab_size is not None else "below 2^63"
    return DataError(
        f"token ids must be at least 0 and {bound}, found {token} at {where}: check the dtype, the byte order and the"
        " tokenizer of the source (targets to be ignored, such as -100, belong in a labels column)"
    )
