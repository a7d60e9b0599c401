"""Where the documents of a store begin: what the store knows itself, or found by the token that ends each.

Read next: :mod:`slw_data.order.circle`, which opens them.
"""

from __future__ import annotations

import numpy as np

from slw_data.errors import DataError
from slw_data.sources.stores.protocol import Offsets, TokenStore

__all__ = ["find_documents"]

_WINDOW = 1 << 22  # tokens that are searched at once


def find_documents(store: TokenStore, eos_id: int | None) -> Offsets:
    """Where documents begin, int64 (documents + 1,), from 0 to the store's tokens.

    Where the store does not know, each ends with ``eos_id``, and the last one with the store: all tokens are read once.
    DataError where neither is known, or the store's own offsets are of other tokens.
    """
    known = store.documents
    if known is not None:
        if len(known) == 0 or known[0] != 0 or known[-1] != len(store) or (known[1:] < known[:-1]).any():
            raise DataError(
                f"the documents of {store.name} ascend from 0 to its {len(store)} tokens, but their offsets are {known}"
            )
        return known
    if eos_id is None:
        raise DataError(f"{store.name} does not say where its documents end: pass eos_id, or use mode='stream'")
    ends = [np.zeros(1, np.int64)]
    for start in range(0, len(store), _WINDOW):
        ends.append(np.flatnonzero(store.read(start, min(start + _WINDOW, len(store))) == eos_id) + start + 1)
    return np.unique(np.append(np.concatenate(ends), len(store)))
