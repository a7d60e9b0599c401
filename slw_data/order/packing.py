"""Packing: rows that hold several whole documents (best-fit packing, Ding et al., arXiv 2404.10830).

Documents are taken in *windows* of some hundred, and a window is packed for the row length of the step. A document longer
than a row is cut into full rows and a rest; then rests and whole documents go into rows one by one, the longest first, each
into the row where it leaves least room. So nothing that fits into a row is ever cut::

    rows of 8, documents of 19, 5, 3, 3, 2      [0 0 0 0 0 0 0 0] [0 0 0 0 0 0 0 0] [0 0 0 1 1 1 1 1] [2 2 2 3 3 3 4 4]

Where the length changes within a window, what is left of it is packed anew: pieces of a document that are still neighbours
are joined first. The rows of a window that nobody looks at are only counted.

Read next: :mod:`slw_data.order.packed`, the order that is made of it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slw_data.cached import cached
from slw_data.order.permutation import Ints, permute

__all__ = ["Fragments", "Rows", "count_rows", "pack"]

# -- one window -------------------------------------------------------------------------------------------------------


class Fragments(NamedTuple):
    """What is to be packed: where each fragment begins, its tokens, and where its document ends. int64 (fragments,)."""

    places: Ints
    sizes: Ints
    ends: Ints


def best_fit(sizes: Ints, room: int) -> tuple[Ints, int]:
    """``(row, rows)``: the row of each item, the longest placed first, and how many rows there are. Sizes are 1 to ``room``.

    >>> best_fit(np.array([3, 5, 3, 2]), 8)
    (array([0, 0, 1, 1]), 2)
    """
    rows = np.empty(len(sizes), np.int64)
    order = np.argsort(-sizes, kind="stable")
    shift = len(sizes).bit_length()
    number, opened, found = (1 << shift) - 1, 0, []
    left: list[int] = []  # room of each row that has some, and its number in the lower bits, ascending
    for size in sizes[order].tolist():
        at = bisect_left(left, size << shift)
        if at < len(left):
            row = left.pop(at)
        else:
            row, opened = room << shift | opened, opened + 1
        found.append(row & number)
        if row >> shift > size:
            insort(left, row - (size << shift))
    rows[order] = found
    return rows, opened


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a window: those that one fragment fills, in the order of the fragments, and then those of several, as they
    were opened. In these fragments keep their order. Rows are delivered in this order, or permuted.

    Args:
        length: tokens in a row.
        room: of these the fragments'.
        fragments: what was packed.
        full: int64 (fragments + 1,), full rows before each fragment, and all.
        rests: the fragments that have a rest, or are one, row by row.
        bounds: int64 (rows of several + 1,), where in ``rests`` each of these rows begins.
        order: which row comes when; None: they come as they are.
    """

    length: int
    room: int
    fragments: Fragments
    full: Ints
    rests: Ints
    bounds: Ints
    order: Ints | None

    @property
    def count(self) -> int:
        return int(self.full[-1]) + len(self.bounds) - 1

    def of(self, rows: Ints) -> tuple[Ints, Ints, Fragments]:
        """``(row, fragment, pieces)`` of the ``rows``-th rows to be delivered, one after the other: of each piece the number
        of its row in ``rows``, and the fragment that it was cut from."""
        rows = rows if self.order is None else self.order[rows]
        first = self._pieces_before(rows)
        counts = self._pieces_before(rows + 1) - first
        row = np.repeat(np.arange(len(rows)), counts)
        piece = np.arange(len(row)) + (first - np.cumsum(counts) + counts)[row]
        fragment = np.searchsorted(self.full, piece, side="right") - 1
        rest = np.flatnonzero(piece >= self.full[-1])
        fragment[rest] = self.rests[piece[rest] - self.full[-1]]
        behind = np.minimum(piece, self.full[fragment + 1]) - self.full[fragment]
        places, sizes, ends = (values[fragment] for values in self.fragments)
        sizes = np.minimum(sizes - behind * self.room, self.room)
        return row, fragment, Fragments(places + behind * self.room, sizes, ends)

    def _pieces_before(self, rows: Ints) -> Ints:
        """How many pieces there are in the rows before, not permuted."""
        full = int(self.full[-1])
        pieces: Ints = np.minimum(rows, full) + self.bounds[np.maximum(rows - full, 0)]
        return pieces

    @cached
    def missing(self) -> tuple[Ints, Ints]:
        """Which rows are those of several, as they are delivered, and the room left in all before each of them, and in all."""
        sizes = self.fragments.sizes[self.rests] % self.room
        left = self.room - np.diff(np.append(0, np.cumsum(sizes))[self.bounds])
        if self.order is None:
            return np.arange(self.full[-1], self.count), np.append(0, np.cumsum(left))
        rows = np.flatnonzero(self.order >= self.full[-1])
        return rows, np.append(0, np.cumsum(left[self.order[rows] - self.full[-1]]))

    def tokens(self, row: int) -> int:
        """Tokens in the rows that are delivered before ``row``."""
        rows, missing = self.missing
        return row * self.room - int(missing[np.searchsorted(rows, row)])

    def after(self, row: int) -> Fragments:
        """What is left to pack anew from ``row`` on: pieces of one fragment that are neighbours are one."""
        _, fragment, pieces = self.of(np.arange(row, self.count))
        order = np.lexsort((pieces.places, fragment))
        (places, sizes, ends), fragment = (values[order] for values in pieces), fragment[order]
        begins = np.ones(len(order), np.bool_)
        begins[1:] = (fragment[1:] != fragment[:-1]) | (places[1:] != places[:-1] + sizes[:-1])
        first = np.flatnonzero(begins)
        return Fragments(places[first], np.add.reduceat(sizes, first), ends[first])


def pack(fragments: Fragments, length: int, room: int, key: tuple[int, ...] | None) -> Rows:
    """Rows of ``room`` tokens, in an order permuted by ``key``, if any."""
    full = np.append(0, np.cumsum(fragments.sizes // room))
    rests = np.flatnonzero(fragments.sizes % room)
    row, opened = best_fit(fragments.sizes[rests] % room, room)
    in_order = np.argsort(row, kind="stable")
    bounds = np.searchsorted(row[in_order], np.arange(opened + 1))
    count = int(full[-1]) + opened
    order = None if key is None else permute(np.arange(count), count, key)
    return Rows(length, room, fragments, full, rests[in_order], bounds, order)


# -- many windows -----------------------------------------------------------------------------------------------------


def count_rows(sizes: Ints, room: int) -> Ints:
    """How many rows :func:`pack` makes of each of many windows. ``sizes``, int64 (windows, documents): 0 where there is none.

    All windows go through the sizes together, from the longest that can share a row down to 1. In each, the rows that have
    room for the size are a pile, the least room on top: ``top`` is that room, and ``below`` the room of what lies under it.
    Items go into the top, and what they leave of it is put down until its size comes. Below all lies a row that is empty.
    """
    windows, half, empty = len(sizes), room // 2, 1 << 14
    shift = (windows - 1).bit_length()  # what is kept of room r of window w is at r << shift | w
    stride = 1 << shift
    counts = np.bincount(((sizes % room << shift) + np.arange(windows)[:, None]).ravel(), minlength=room * stride)
    items = counts.astype(np.int16).reshape(room, stride)
    rows = np.zeros((room + 1, stride), np.int16)
    rows[1 : room - half] = items[:half:-1]  # each of one item that shares with no other of its kind
    rows[room] = empty
    flat, below, top = rows.reshape(-1), np.empty((room + 1) * stride, np.int32), (room << shift) + np.arange(stride)
    for size in range(half, 0, -1):
        some = rows[size].nonzero()[0]
        at = (size << shift) + some
        below[at], top[some] = top[some], at
        some = items[size].nonzero()[0]
        wanted = items[size, some]
        while some.size:
            at = top[some]
            there, room_there = flat[at], at >> shift
            fit = room_there // size
            filled = np.minimum(wanted // fit, there).astype(np.int16)
            wanted, there = wanted - filled * fit, there - filled
            flat[(room_there - fit * size << shift) + some] += filled
            shared = (wanted * there).nonzero()[0]  # one row more takes the last items, and has room yet
            there[shared] -= 1
            flat[at] = there
            used = (there == 0).nonzero()[0]
            top[some[used]] = below[at[used]]
            if shared.size:
                at, some_of = at[shared] - (wanted[shared] * size << shift), some[shared]
                flat[at], below[at], top[some_of], wanted[shared] = 1, top[some_of], at, 0
            more = wanted.nonzero()[0]
            some, wanted = some[more], wanted[more]
    shared_rows = (items[half + 1 :].sum(axis=0) + empty - rows[room])[:windows]
    total: Ints = (sizes // room).sum(axis=1) + shared_rows
    return total
