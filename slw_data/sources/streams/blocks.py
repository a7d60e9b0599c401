"""From arrays to blocks: what every source shares after its items are read.

A source yields drafts: a position, and some consecutive items, empty ones included. :func:`pack` makes drafts of single
documents, and :func:`sealed` makes blocks of drafts: it drops empty documents, ends each other one with ``append_eos``,
and refuses a source that gives nothing for ever. Read ``items`` next.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slw_data.errors import DataError, StateError
from slw_data.sources.streams.documents import Arrays
from slw_data.sources.streams.protocol import Block, Flat, Integers

MAX_CONSECUTIVE_EMPTY = 1_000_000
MOST_TIMES = 8  # as large as the first blocks of a pass are the later ones


class Entry(NamedTuple):
    """One document: the position that reads it again, its number in the pass, one array per column."""

    position: Any
    number: int
    arrays: Arrays


class Draft(NamedTuple):
    """Consecutive items as they were read. ``first`` is the number of the first one in the pass."""

    position: Any
    first: int
    lengths: npt.NDArray[np.int64]
    columns: Mapping[str, Flat]


def pack(entries: Iterable[Entry], columns: tuple[str, ...], *, items: int, tokens: int) -> Iterator[Draft]:
    """Drafts of at most ``items`` documents, closed by the one that reaches ``tokens``; further into a pass they are larger,
    as then nobody waits for a first one, but for drafts of a single document.

    Where a draft ends depends on nothing but where it began. What was read before an error is handed out before it.
    """
    pending: list[Entry] = []
    size = 0
    try:
        for entry in entries:
            pending.append(entry)
            size += len(entry.arrays[0])
            larger = min(MOST_TIMES, 1 + pending[0].number // items) if items > 1 else 1
            if len(pending) == items * larger or size >= tokens * larger:
                full, pending, size = pending, [], 0
                yield _draft(full, columns)
    except Exception:
        if pending:
            yield _draft(pending, columns)
        raise
    if pending:
        yield _draft(pending, columns)


def _draft(entries: list[Entry], columns: tuple[str, ...]) -> Draft:
    lengths, flat = joined([entry.arrays for entry in entries], columns)
    return Draft(entries[0].position, entries[0].number, lengths, flat)


def marked(drafts: Iterator[Draft], saved: Any, name: str) -> Iterator[Draft]:
    """The same drafts; the position of each, a dict, also gets ``block``: how many items it has, and their checksum.

    ``saved`` is that of the first one when it was read before, or None. It may have had fewer items then, where an error
    of the source ended it. Raises StateError if they are not the same now.
    """
    first = next(drafts, None) if saved is not None else None
    if first is not None:
        size = len(first.lengths)
        if size < saved[0]:
            yield from _last_before_an_error(first, drafts, saved, name)
            return
        if _checksum(first, saved[0]) != saved[1]:
            raise StateError(
                f"{name} does not repeat: items {first.first} to {first.first + saved[0] - 1}, which are read again from "
                "the saved position on, are not the same as when it was saved; resuming needs the same items in the same order"
            )
        yield _marked(first)
    elif saved is not None and saved[0]:
        raise StateError(f"the saved position is before {saved[0]} items of {name}, and it ended before them")
    yield from map(_marked, drafts)


def _last_before_an_error(short: Draft, drafts: Iterator[Draft], saved: Any, name: str) -> Iterator[Draft]:
    """A draft with fewer items than the saved one had is only right if an error of the source ended it."""
    try:
        after = next(drafts, None)
    except Exception:
        yield _marked(short)
        raise
    end = short.first + len(short.lengths)
    how = f"ended after {end} items" if after is None else f"has other items before item {end} now"
    raise StateError(f"the saved position is in a block of items {short.first} to {short.first + saved[0]}, but {name} {how}")


def _marked(draft: Draft) -> Draft:
    return draft._replace(position=draft.position | {"block": [len(draft.lengths), _checksum(draft, len(draft.lengths))]})


def _checksum(draft: Draft, items: int) -> int:
    """Of the first ``items`` of a draft, whatever the dtype and the order of columns."""
    lengths = draft.lengths[:items]
    found, tokens = zlib.crc32(lengths.astype("<i8").tobytes()), int(lengths.sum())
    for column in sorted(draft.columns):
        found = zlib.crc32(np.ascontiguousarray(draft.columns[column][0:tokens], "<i8").data, found)
    return found


def joined(documents: list[Arrays], columns: tuple[str, ...]) -> tuple[npt.NDArray[np.int64], dict[str, Integers]]:
    """The lengths of some documents, and each column of them in one array."""
    lengths = np.array([len(arrays[0]) for arrays in documents], dtype=np.int64)
    # an empty document is int64 whatever its neighbours are, and would widen them
    filled = [arrays for arrays in documents if len(arrays[0])] or documents
    return lengths, {c: np.concatenate([arrays[k] for arrays in filled]) for k, c in enumerate(columns)}


def sealed(drafts: Iterable[Draft], *, name: str, append_eos: int | None = None, first: int = 0) -> Iterator[Block]:
    """The blocks of some drafts, the first of which begins with item ``first``."""
    empty = 0
    try:
        for draft in drafts:
            first = draft.first + len(draft.lengths)
            empty = _empty_run(draft, empty, name)
            if draft.lengths.any():
                yield _block(draft, append_eos)
    except RuntimeError as error:
        if not isinstance(error.__cause__, StopIteration):
            raise
        raise DataError(
            f"{name} was ended by StopIteration at item {first}: code of the source raised it (a bare next() does), "
            "which would silently end the data; return from the generator instead"
        ) from error


def _empty_run(draft: Draft, before: int, name: str) -> int:
    """How many empty items in a row the draft ends with, counting on from the ``before`` ones in front of it."""
    bounds = np.concatenate([[-1 - before], np.flatnonzero(draft.lengths), [len(draft.lengths)]])
    runs = np.diff(bounds) - 1
    if runs.max() > MAX_CONSECUTIVE_EMPTY:
        last = draft.first + bounds[1 + np.argmax(runs > MAX_CONSECUTIVE_EMPTY)] - 1
        raise DataError(
            f"{name} gave more than {MAX_CONSECUTIVE_EMPTY:,} empty documents in a row, up to item {last}: the limit "
            "is there to end a source that gives no more tokens"
        )
    return int(runs[-1])


def _block(draft: Draft, append_eos: int | None) -> Block:
    offsets = offsets_of(draft.lengths[draft.lengths > 0])
    if append_eos is None:
        return Block(draft.position, offsets, draft.columns)
    ((column, flat),) = draft.columns.items()
    offsets, tokens = with_eos(offsets, flat[0 : int(offsets[-1])], append_eos)
    return Block(draft.position, offsets, {column: tokens})


def offsets_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where documents of these lengths begin and end, (n + 1,) from 0."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def with_eos(offsets: npt.NDArray[np.int64], flat: Integers, eos: int) -> tuple[npt.NDArray[np.int64], Integers]:
    """End every document with ``eos`` exactly once: those that already do stay as they are."""
    ends = offsets[1:]
    missing = flat[ends - 1] != eos
    if eos > np.iinfo(flat.dtype).max:
        flat = flat.astype(np.int64)
    shifts = offsets_of(missing.astype(np.int64))
    return offsets + shifts, np.insert(flat, ends[missing], eos)
