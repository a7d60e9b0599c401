"""Megatron's indexed datasets: a ``.bin`` of tokens, and beside it an ``.idx`` that says where sequences begin.

The index, little-endian and without padding::

    magic "MMIDIDX\\0\\0"   version u64 = 1   dtype code u8   sequences u64   documents u64          34 bytes
    lengths   int32 (sequences,)       tokens of each sequence
    pointers  int64 (sequences,)       byte in the .bin at which each begins
    documents int64 (documents,)       first sequence of each document, and at last the number of sequences
    modes     int8 (sequences,)        in multimodal files only; not read

All of it is checked when the pair is opened, so that an index which does not fit its data fails there and not hours
later. Sequences must follow each other without gaps and fill the ``.bin``: then tokens are one plain file, and the
index matters for document offsets only, which are read again where they are wanted.
Read :mod:`slw_data.sources.stores.opening` next, which decides what a path is.
"""

import os
import struct
from typing import Any, NamedTuple

import numpy as np

from slw_data.errors import DataError
from slw_data.sources.stores.files import TokenFile, describe_file, open_regular
from slw_data.sources.stores.fingerprints import PLACES, sample_documents
from slw_data.sources.stores.protocol import Offsets, Tokens

__all__ = ["megatron_documents", "megatron_file"]

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}


class Index(NamedTuple):
    """The arrays of an index, mapped and not yet checked against each other."""

    dtype: np.dtype[Any]
    lengths: Tokens
    pointers: Tokens
    documents: Tokens


def megatron_file(prefix: str, places: int = PLACES) -> TokenFile:
    """The tokens of the pair ``prefix + ".bin"`` and ``prefix + ".idx"``, checked in full."""
    data, path = prefix + ".bin", prefix + ".idx"
    with open_regular(data) as (_, status):
        size = status.st_size
    index = _read_index(path)
    _check_sequences(path, data, size, index)
    _check_documents(path, index)
    count = size // index.dtype.itemsize
    documents = sample_documents(megatron_documents(path))
    return describe_file(data, index.dtype, 0, count, places, documents)


def megatron_documents(path: str) -> Offsets:
    """Document offsets in tokens from an ``.idx`` that was checked; documents without tokens are skipped."""
    index = _read_index(path)
    ends = np.concatenate([[0], np.cumsum(index.lengths, dtype=np.int64)])
    offsets = ends[index.documents]
    kept: Offsets = offsets[np.concatenate([[True], np.diff(offsets) > 0])]
    return kept


def _read_index(path: str) -> Index:
    with open_regular(path) as (descriptor, status):
        size, header = status.st_size, os.pread(descriptor, HEADER.size, 0)
    if len(header) < HEADER.size:
        raise DataError(f"{path}: header truncated, {size} bytes found, {HEADER.size} expected: write the index again")
    magic, version, code, sequences, documents = HEADER.unpack(header)
    for field, found, expected in (("magic", magic, MAGIC), ("version", version, 1)):
        if found != expected:
            raise DataError(f"{path}: {field} is {found!r}, expected {expected!r}: it is no Megatron index (.idx)")
    if code not in DTYPES:
        raise DataError(f"{path}: dtype code is {code}, expected one of {sorted(DTYPES)}: write the index again")
    if DTYPES[code][1] == "f":
        raise TypeError(f"{path}: dtype code {code} is {np.dtype(DTYPES[code])}, expected integers: no token ids")
    expected = HEADER.size + 12 * sequences + 8 * documents
    if size not in (expected, expected + sequences):
        raise DataError(
            f"{path} has {size} bytes, expected {expected} for the {sequences} sequences and {documents} documents "
            "that its header counts: it was cut short or damaged; write the index again"
        )
    return Index(np.dtype(DTYPES[code]), *_map_arrays(path, sequences, documents))


def _map_arrays(path: str, sequences: int, documents: int) -> list[Tokens]:
    arrays, offset = [], HEADER.size
    for dtype, count in (("<i4", sequences), ("<i8", sequences), ("<i8", documents)):
        empty: Tokens = np.empty(0, dtype)
        arrays.append(np.memmap(path, dtype, "r", offset, (count,)).view(np.ndarray) if count else empty)
        offset += count * np.dtype(dtype).itemsize
    return arrays


def _check_sequences(path: str, data: str, size: int, index: Index) -> None:
    """Lengths are not negative, pointers are their running sum, and together they are the ``.bin``, byte for byte."""
    itemsize = index.dtype.itemsize
    if (bad := _first(index.lengths < 0)) is not None:
        raise DataError(f"{path}: sequence {bad} has length {index.lengths[bad]}, expected 0 or more")
    ends = np.cumsum(index.lengths, dtype=np.int64) * itemsize
    reach = index.pointers + index.lengths.astype(np.int64) * itemsize
    if (bad := _first((index.pointers < 0) | (reach > size) | (reach < 0))) is not None:
        raise DataError(
            f"{path}: sequence {bad} ends at byte {reach[bad]} (pointer {index.pointers[bad]}, {index.lengths[bad]} "
            f"tokens), but {data} has {size} bytes: the index belongs to another file, or its pointers overflowed"
        )
    expected = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    if (bad := _first(index.pointers != expected)) is not None:
        raise DataError(
            f"{path}: the pointer of sequence {bad} is {index.pointers[bad]}, expected {expected[bad]}, where the one "
            "before it ends: sequences must follow each other without gaps; write the index again"
        )
    total = int(ends[-1]) if len(ends) else 0
    if total != size or size == 0:
        raise DataError(
            f"{data} has {size} bytes, but the lengths in {path} sum to {total // itemsize} tokens of {itemsize}, "
            f"{total} bytes: one was cut short, or lengths were counted before an end token; write the pair again"
        )


def _check_documents(path: str, index: Index) -> None:
    """The document index runs from 0 to the number of sequences and never goes back."""
    documents, count = index.documents, len(index.lengths)
    if len(documents) == 0:
        raise DataError(f"{path}: the document index is empty, expected it to run from 0 to {count} sequences")
    wrong = np.append(documents[0] != 0, documents[1:] < documents[:-1])  # compared: a difference might overflow
    if (bad := _first(wrong)) is not None:
        before = documents[bad - 1] if bad else 0
        raise DataError(
            f"{path}: document index entry {bad} is {documents[bad]}, expected {'at least ' if bad else ''}{before}"
        )
    if documents[-1] != count:
        raise DataError(
            f"{path}: the last document index entry, {len(documents) - 1}, is {documents[-1]}, "
            f"expected the number of sequences, {count}"
        )


def _first(wrong: Tokens) -> int | None:
    return int(wrong.argmax()) if wrong.any() else None
