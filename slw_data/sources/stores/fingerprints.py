"""Short texts that recognise tokens: the same content gives the same text on every host, whatever its path.

A fingerprint such as ``uint16 x 67108864 #3fa29c01ab22`` names the dtype and the number of tokens, and hashes 4 KiB at
up to 16 places, both ends among them. It is there to notice another corpus, another order of files or another dtype,
at a cost that does not grow with the store. It does not notice a single changed token between the places.
Read :mod:`slw_data.sources.stores.files` next, which takes the samples of a file without mapping it.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np

from slw_data.sources.stores.protocol import Offsets, Tokens

__all__ = ["dtype_text", "fingerprint", "mark", "sample_documents"]

SAMPLE_BYTES = 4096
PLACES = 16


def fingerprint(
    dtype: np.dtype[Any], count: int, read: Callable[[int, int], Tokens], *, places: int = PLACES, documents: str = ""
) -> str:
    """Fingerprint of ``count`` tokens that were written as ``dtype``, sampled with ``read(start, stop)``."""
    samples = [
        np.ascontiguousarray(tokens, tokens.dtype.newbyteorder("<")).tobytes()
        for tokens in (read(*place) for place in _sample_places(count, SAMPLE_BYTES // dtype.itemsize, places))
    ]
    label = f"{dtype_text(dtype)} x {count}"
    return mark(label + documents.partition("#")[0].rstrip(), *samples, documents.encode())


def sample_documents(documents: Offsets) -> str:
    """What a fingerprint says about document offsets: their number, and a hash of samples of them."""
    samples = fingerprint(documents.dtype, len(documents), lambda start, stop: documents[start:stop])
    return f" in {len(documents) - 1} documents {samples[samples.index('#') :]}"


def mark(label: str, *parts: bytes) -> str:
    """``label`` and a 12-digit hash of it and of ``parts``, in their order."""
    digest = blake2b(label.encode(), digest_size=6)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return f"{label} #{digest.hexdigest()}"


def dtype_text(dtype: np.dtype[Any]) -> str:
    """``uint16``, or ``>u2`` for tokens written with the high byte first; the same on every host."""
    return dtype.str if dtype.str.startswith(">") else dtype.name


def _sample_places(count: int, width: int, places: int) -> list[tuple[int, int]]:
    if count <= width * places:
        return [(0, count)]
    starts = [(count - width) * place // (places - 1) for place in range(places)]
    return [(start, start + width) for start in starts]
