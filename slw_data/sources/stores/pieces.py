"""One store for everything: tokens that lie, piece by piece, in one or more arrays.

A *piece* is a run of neighbouring tokens of one *source* (a mapped file, an array, a chunk of an Arrow column)::

    sources     0: [ a a a a a a ]      1: [ b b b b b b ]
    pieces         |---0---|                  |--1--|            (source, begin, length) each
    store          a a a a a b b b                               bounds = [0, 5, 8]

A file or an array is one piece; a list of files has one each; a Hugging Face dataset has one per chunk, or one per
document after ``shuffle``. Pieces that continue each other are joined, so most stores have few.
Windows that lie inside one piece are copied together, source by source; the others are put together from segments.
Read :mod:`slw_data.sources.stores.files` next, for sources that are files.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from slw_data.arguments import as_integer
from slw_data.errors import DataError
from slw_data.sources.stores.fingerprints import fingerprint, sample_documents
from slw_data.sources.stores.protocol import Offsets, Tokens
from slw_data.sources.stores.windows import check_windows, copy_windows, refuse_beyond_int64

__all__ = ["PiecedStore", "Pieces", "Sources", "whole"]


class Sources(Protocol):
    """1-D arrays by number. Each access may check or reopen what lies behind the array."""

    def __getitem__(self, number: int, /) -> Tokens: ...


class Pieces(NamedTuple):
    """Where the pieces lie, in the order of the store: three int64 arrays of one length."""

    source: Offsets
    begin: Offsets
    length: Offsets

    def joined(self) -> "Pieces":
        """The same tokens in as few pieces as possible: empty ones left out, neighbours joined."""
        source, begin, length = (field[self.length > 0] for field in self)
        new = np.ones(len(source), bool)
        new[1:] = (source[1:] != source[:-1]) | (begin[1:] != begin[:-1] + length[:-1])
        first = np.flatnonzero(new)
        return Pieces(source[first], begin[first], np.add.reduceat(length, first) if len(first) else length)


def whole(*lengths: int) -> Pieces:
    """Pieces that are whole sources, one after the other."""
    count = len(lengths)
    return Pieces(np.arange(count), np.zeros(count, np.int64), np.array(lengths, np.int64))


class PiecedStore:
    """A :class:`~slw_data.sources.stores.TokenStore` of ``pieces`` of ``sources``.

    ``dtype`` is the dtype of the sources, in whatever byte order; ``mark`` the fingerprint, taken from samples on
    demand if not given; ``documents`` a picklable function that gives the offsets. ``parts`` names the places whose
    ends are worth checking: (name, start, stop) each. Pickled with its sources, which for files are paths.
    """

    def __init__(
        self,
        sources: Sources,
        pieces: Pieces,
        dtype: np.dtype[Any],
        name: str,
        *,
        mark: str | None = None,
        documents: Callable[[], Offsets] | None = None,
        parts: list[tuple[str, int, int]] | None = None,
    ) -> None:
        self.name = name
        self.dtype: np.dtype[Any] = dtype.newbyteorder("=")
        self.source_dtype, self._sources = dtype, sources
        self._source, self._begin, length = pieces.joined()
        self._only = (int(self._source[0]), int(self._begin[0])) if len(self._begin) == 1 else (0, 0)
        self._bounds = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        if (self._bounds[1:] < self._bounds[:-1]).any():  # it wraps
            total = sum(length.tolist())
            raise DataError(f"{name} holds {total} tokens, and positions go up to 2^63 - 1: make several stores of it")
        self._mark, self._find_documents = mark, documents
        self._documents: Offsets | None = None
        if len(self) == 0:
            raise DataError(f"{name} holds no tokens (0 found, at least 1 expected): leave it out")
        self.parts = parts or [(name, 0, len(self))]

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __repr__(self) -> str:
        return f"<{self.name}: {self.fingerprint}>"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_documents": None}

    @property
    def fingerprint(self) -> str:
        if self._mark is None:
            documents = "" if self.documents is None else sample_documents(self.documents)
            self._mark = fingerprint(self.source_dtype, len(self), self.read, documents=documents)
        return self._mark

    @property
    def documents(self) -> Offsets | None:
        if self._documents is None and self._find_documents is not None:
            found = self._find_documents()
            if int(found[-1]) != len(self):
                raise DataError(f"the documents of {self.name} now end at token {int(found[-1])}, not at {len(self)}")
            found.flags.writeable = False  # it is handed out again and again
            self._documents = found
        return self._documents

    def read(self, start: int, stop: int) -> Tokens:
        first, last = as_integer(start), as_integer(stop)
        if first is None or last is None:
            raise TypeError(f"tokens are read from one int to another, not from {start!r:.80} to {stop!r:.80}")
        start, stop = first, last
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {self.name}, which has {len(self)} tokens")
        starts = np.array([start], np.int64)
        piece = int(np.searchsorted(self._bounds, start, "right")) - 1
        if start < stop <= self._bounds[piece + 1]:
            begin = int(self._begin[piece] - self._bounds[piece])
            tokens = self._sources[int(self._source[piece])][begin + start : begin + stop]
            out: Tokens = np.array(tokens, self.dtype)
        else:
            out = np.empty(stop - start, self.dtype)
            self._gather_split(np.arange(1), np.array([piece]), starts, out[None])
        if self.dtype == np.uint64:
            refuse_beyond_int64(starts, out[None], self.name)
        return out

    def gather(self, starts: Offsets, length: int, out: Tokens) -> None:
        check_windows(starts, length, out, len(self), self.name)
        if out.size == 0:
            return
        if len(self._begin) == 1:
            source, begin = self._only
            copy_windows(self._sources[source], starts + begin if begin else starts, length, out)
        else:
            first = np.searchsorted(self._bounds, starts, "right") - 1
            inside = starts + length <= self._bounds[first + 1]
            if 4 * len(np.unique(self._source[first[inside]])) > inside.sum():
                inside[:] = False  # too few windows for each source to be worth a call of its own
            self._gather_whole(np.flatnonzero(inside), first, starts, out)
            self._gather_split(np.flatnonzero(~inside), first, starts, out)
        if self.dtype == np.uint64:
            refuse_beyond_int64(starts, out, self.name)

    def _gather_whole(self, rows: Offsets, first: Offsets, starts: Offsets, out: Tokens) -> None:
        """Windows inside one piece: one vectorised copy for all that share a source."""
        piece = first[rows]
        begin = self._begin[piece] + starts[rows] - self._bounds[piece]
        length = out.shape[1]
        for source, group in _grouped(self._source[piece]):
            tokens, into = self._sources[source], rows[group]
            if len(group) in (1, len(out)):  # neighbouring rows of out are a view, so nothing is copied twice
                copy_windows(tokens, begin[group], length, out[into[0] : into[-1] + 1])
            else:
                block = np.empty((len(group), length), tokens.dtype)
                copy_windows(tokens, begin[group], length, block)
                out[into] = block

    def _gather_split(self, rows: Offsets, first: Offsets, starts: Offsets, out: Tokens) -> None:
        """Any windows, also across pieces: every piece of every window is one slice copy."""
        last = np.searchsorted(self._bounds, starts[rows] + out.shape[1], "left") - 1
        counts = last - first[rows] + 1
        row = np.repeat(rows, counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        piece = first[row] + within
        low = np.maximum(self._bounds[piece], starts[row])
        high = np.minimum(self._bounds[piece + 1], starts[row] + out.shape[1])
        begin = self._begin[piece] + low - self._bounds[piece]
        source = self._source[piece]
        segments = np.stack([source, row, low - starts[row], high - starts[row], begin, begin + high - low], axis=1)
        current, tokens = -1, out[0]
        for number, r, left, right, start, stop in segments[np.argsort(source, kind="stable")].tolist():
            if number != current:
                current, tokens = number, self._sources[number]
            out[r, left:right] = tokens[start:stop]


def _grouped(keys: Offsets) -> Iterator[tuple[int, Offsets]]:
    """(key, positions that have it) for every distinct key."""
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    for group in np.split(order, cuts) if len(keys) else ():
        yield int(keys[group[0]]), group
