"""Cutting: rows of a stream, one after the other, from lanes that documents are dealt to.

Row r of the run is cut from lane ``r mod num_lanes``. A lane is dealt a document only when a row needs more tokens than it
holds, so it holds one begun document at most::

    "stream"     while tokens held by the lane < length: deal it the next document
    "segment"    where the lane holds nothing: deal it one; the row is what fits of it
    "truncate"   deal the row a document; what does not fit is discarded

Only sizes are needed for it, and lanes in a row that hold enough are cut together. What follows a row's last token in its
lane may be dealt a while later: until then the row *waits*.

Read next: :mod:`slw_data.order.documents`, the order that is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slw_data.order.dealing import Dealt, Snapshot, Window
from slw_data.order.permutation import Ints

__all__ = ["Cut", "Dealer", "Held", "dealer_of"]

@dataclass(frozen=True, eq=False)
class Held:
    """What lanes hold before row ``row``: the place of the next token of each, and how many there are; document ``next`` is
    the next to deal. ``snapshot`` is the same as saved, where it was."""

    row: int
    next: int
    places: Ints
    left: Ints
    delivered: int
    discarded: int
    snapshot: Snapshot | None = None

    def oldest(self, known: Dealt) -> int:
        """The place from which on tokens are needed yet."""
        return int(self.places.min(where=self.left > 0, initial=known.place(self.next)))


class Cut(NamedTuple):
    """Rows in their order: ``sizes`` tokens from ``places`` on, then ``rest`` tokens from ``others`` on; and the token that
    follows in the lane, -1 where there is none. int64 (rows,) each."""

    places: Ints
    sizes: Ints
    others: Ints
    rest: Ints
    follow: Ints

    @classmethod
    def empty(cls, rows: int) -> Cut:
        places, sizes = np.empty((2, rows), np.int64)
        others, rest = np.zeros((2, rows), np.int64)
        return cls(places, sizes, others, rest, np.full(rows, -1, np.int64))

    @property
    def tokens(self) -> int:
        """How many tokens the rows hold."""
        return int(self.sizes.sum()) + int(self.rest.sum())

    def part(self, start: int, stop: int) -> Cut:
        """Some of the rows."""
        return Cut(*(values[start:stop] for values in self))


class Waiting(NamedTuple):
    """A row whose following token is not dealt yet, and where to write its place down."""

    row: int
    follow: Ints
    at: int


class Dealer:
    """Cuts rows of ``documents``, from what lanes hold on. It belongs to one iteration."""

    def __init__(self, documents: Window | Dealt, at: Held) -> None:
        self.documents = documents
        self.row, self.next, self.delivered, self.discarded = at.row, at.next, at.delivered, at.discarded
        self.waiting: dict[int, Waiting] = {}  # by lane
        self._places, self._left = at.places.copy(), at.left.copy()
        self._at = at

    @property
    def held(self) -> Held:
        """What lanes hold now."""
        if self.row == self._at.row:
            return self._at
        return Held(self.row, self.next, self._places.copy(), self._left.copy(), self.delivered, self.discarded)

    @property
    def used_up(self) -> bool:
        """Whether nothing is left of the documents that are known."""
        return self.next == self.documents.known.stop and not self._left.any()

    def cut(self, count: int, length: int) -> Cut:
        """The next ``count`` rows, or as many as there are documents for."""
        rows, done = Cut.empty(count), 0
        while done < count:
            some = self._cut(rows, done, count, length)
            done, self.row = done + some, self.row + some
            if not some:
                rows = rows.part(0, done)
                break
        self.delivered += rows.tokens
        return rows

    def _cut(self, rows: Cut, done: int, count: int, length: int) -> int:
        """Cut some of the rows ``done`` to ``count``: how many; 0 where documents do not suffice for one."""
        raise NotImplementedError

    def look_on(self) -> None:
        """See whether a token follows the last row, where no further row has to be cut for it."""

    def snapshot(self) -> Snapshot:
        """The position. Where nothing that was read is left, it is that of the next block, if that is known."""
        if self.row == self._at.row and self._at.snapshot is not None:
            return self._at.snapshot
        known = self.documents.known
        begun = self._left > 0
        places = self._places[begun]
        numbers = known.numbers(places)
        lanes = np.tile(np.array([-1, 0]), (len(begun), 1))
        lanes[begun, 0], lanes[begun, 1] = numbers, places - known.bounds[numbers - known.first]
        oldest = int(numbers.min()) if len(numbers) else self.next
        return self._snapshot(oldest, self.next, tuple(lanes.ravel().tolist()))

    def _snapshot(self, oldest: int, following: int, lanes: tuple[int, ...]) -> Snapshot:
        known = self.documents.known
        read = known.reads[known.read_of(oldest)]
        dealt = known.tokens_to(known.place(following))
        return Snapshot(
            read.epoch, read.position, read.first, following, lanes, dealt, self.delivered, self.discarded
        )


class Whole(Dealer):
    """A single lane of joined documents: all tokens in their order, whatever the documents."""

    @property
    def held(self) -> Held:
        if self.row != self._at.row:
            self.next = int(self.documents.known.numbers(self._places)[0])
        return super().held

    @property
    def used_up(self) -> bool:
        return int(self._places[0]) == self.documents.known.end

    def _cut(self, rows: Cut, done: int, count: int, length: int) -> int:
        place = int(self._places[0])
        self.documents.extend(place + (count - done) * length)
        some = min(count - done, (self.documents.known.end - place) // length)
        if some:
            self._follow(place)
            here = slice(done, done + some)
            rows.places[here] = place + np.arange(some) * length
            rows.sizes[here] = length
            rows.follow[here] = rows.places[here] + length
            self._places[0] = place = place + some * length
            if place == self.documents.known.end:
                rows.follow[done + some - 1] = -1
                self.waiting[0] = Waiting(self.row + some - 1, rows.follow, done + some - 1)
        elif place < self.documents.known.end:
            self._follow(place)
        return some

    def _follow(self, place: int) -> None:
        if self.waiting:
            waiting = self.waiting.pop(0)
            waiting.follow[waiting.at] = place

    def look_on(self) -> None:
        place = int(self._places[0])
        if self.waiting and self.documents.extend(place + 1):
            self._follow(place)

    def snapshot(self) -> Snapshot:
        if self.row == self._at.row and self._at.snapshot is not None:
            return self._at.snapshot
        known, place = self.documents.known, int(self._places[0])
        if place == known.end:
            return self._snapshot(known.stop, known.stop, (-1, 0))
        number = int(known.numbers(np.array([place]))[0])
        block = known.read_of(number)
        if place == known.reads[block].place:
            return self._snapshot(number, number, (-1, 0))
        following = known.reads[block + 1].first if block + 1 < len(known.reads) else known.stop
        return self._snapshot(number, following, (number, place - known.place(number)))


class Joined(Dealer):
    """Several lanes of joined documents."""

    def __init__(self, documents: Window | Dealt, at: Held) -> None:
        super().__init__(documents, at)
        self._ahead = list[int]()  # bounds of documents from number self._first on
        self._first = 0

    def _cut(self, rows: Cut, done: int, count: int, length: int) -> int:
        first = self.row % len(self._places)
        some = min(count - done, len(self._places) - first)
        lanes = slice(first, first + some)
        places, left = self._places[lanes], self._left[lanes]
        short = np.flatnonzero(left < length)
        starts, ends = self._deal(first, short.tolist(), (length - left[short]).tolist())
        if len(starts) < len(short):  # the lane after these cannot be filled
            some = int(short[len(starts)])
            short, places, left = short[: len(starts)], places[:some], left[:some]
        here = slice(done, done + some)
        rows.places[here], rows.sizes[here] = places, np.minimum(left, length)
        places += length
        left -= length
        if len(starts):
            begin, end = np.array(starts), np.array(ends)
            rows.others[here][short], rows.rest[here][short] = begin, -left[short]
            places[short], left[short] = begin - left[short], end - begin + left[short]
        rows.follow[here] = np.where(left > 0, places, -1)
        for lane in np.flatnonzero(left == 0).tolist():
            self.waiting[first + lane] = Waiting(self.row + lane, rows.follow, done + lane)
        return some

    def _deal(self, first: int, short: list[int], lacks: list[int]) -> tuple[list[int], list[int]]:
        """Deal each of the lanes that are ``short`` (counted from lane ``first``) the documents that it lacks tokens of: where
        these begin and end, for as many lanes as there are documents for. They lie side by side on the axis."""
        starts, ends = list[int](), list[int]()
        for lane, lack in zip(short, lacks, strict=True):
            at = self.next - self._first
            if at + 1 >= len(self._ahead) and not self._look():
                break
            at = self.next - self._first
            start = self._ahead[at]
            if first + lane in self.waiting:
                waiting = self.waiting.pop(first + lane)
                waiting.follow[waiting.at] = start
            while self._ahead[at] < start + lack:
                at += 1
                if at == len(self._ahead):
                    at -= self.next - self._first
                    if not self._look(at):
                        return starts, ends
            starts.append(start)
            ends.append(self._ahead[at])
            self.next = self._first + at
        return starts, ends

    def _look(self, more: int = 1) -> bool:
        """Look at the documents from the next one on; False if there are not ``more`` than that."""
        there = self.documents.reach(self.next + more)
        known = self.documents.known
        self._first = self.next
        self._ahead = known.bounds[self.next - known.first :].tolist()
        return there


class Segments(Dealer):
    """Lanes of documents that are not joined: a row ends where its document does."""

    def _cut(self, rows: Cut, done: int, count: int, length: int) -> int:
        if len(self._places) == 1 and not self._left[0]:
            return self._cut_in_line(rows, done, count, length)
        first = self.row % len(self._places)
        some = min(count - done, len(self._places) - first)
        lanes = slice(first, first + some)
        places, left = self._places[lanes], self._left[lanes]
        empty = np.flatnonzero(left == 0)
        if empty.size:
            self.documents.reach(self.next + empty.size)
            known = self.documents.known
            there = min(empty.size, known.stop - self.next)
            bounds = known.bounds[self.next - known.first : self.next - known.first + there + 1]
            places[empty[:there]], left[empty[:there]] = bounds[:-1], np.diff(bounds)
            self.next += there
            if there < empty.size:
                some = int(empty[there])
                places, left = places[:some], left[:some]
        here = slice(done, done + some)
        rows.places[here], rows.sizes[here] = places, np.minimum(left, length)
        rows.follow[here] = np.where(left > length, places + length, -1)
        places += length
        left -= rows.sizes[here]
        return some

    def _cut_in_line(self, rows: Cut, done: int, count: int, length: int) -> int:
        """Of a single lane, the rows of all documents that are known. Documents of 10, 3 and 5 tokens give 3, 1 and 2 rows of
        4: the running sum says where each document's rows end, and a row's number among them where it begins."""
        if not self.documents.reach(self.next + 1):
            return 0
        known = self.documents.known
        at = self.next - known.first
        bounds = known.bounds[at : at + count - done + 1]
        each = -(-np.diff(bounds) // length)
        ends = np.cumsum(each)
        used = min(int(np.searchsorted(ends, count - done)) + 1, len(each))  # documents that are begun
        some = min(count - done, int(ends[used - 1]))
        document = np.repeat(np.arange(used), each[:used])[:some]
        behind = (np.arange(some) - (ends - each)[document]) * length
        here = slice(done, done + some)
        rows.places[here] = bounds[document] + behind
        left = bounds[document + 1] - rows.places[here]
        rows.sizes[here] = np.minimum(left, length)
        rows.follow[here] = np.where(left > length, rows.places[here] + length, -1)
        self.next += used
        self._places[0] = rows.places[done + some - 1] + length
        self._left[0] = max(0, int(left[-1]) - length)
        return some


class Heads(Dealer):
    """A row for each document, its first tokens; the rest is discarded. ``preserve_eos``: the last token is the document's."""

    def __init__(self, documents: Window | Dealt, at: Held, preserve_eos: bool) -> None:
        super().__init__(documents, at)
        self._preserve_eos = preserve_eos

    def _cut(self, rows: Cut, done: int, count: int, length: int) -> int:
        if not self.documents.reach(self.next + 1):
            return 0
        known = self.documents.known
        some = min(count - done, known.stop - self.next)
        bounds = known.bounds[self.next - known.first : self.next - known.first + some + 1]
        here, sizes = slice(done, done + some), np.diff(bounds)
        long = sizes > length
        rows.places[here], rows.sizes[here] = bounds[:-1], np.minimum(sizes, length)
        if self._preserve_eos:
            rows.sizes[here] -= long
            rows.others[here], rows.rest[here] = bounds[1:] - 1, long
        else:
            rows.follow[here] = np.where(long, bounds[:-1] + length, -1)
        self.next += some
        self.discarded += int((sizes - length)[long].sum())
        return some


def dealer_of(documents: Window | Dealt, at: Held, mode: str, preserve_eos: bool) -> Dealer:
    """The kind of dealer that a mode has."""
    if mode == "truncate":
        return Heads(documents, at, preserve_eos)
    if mode == "segment":
        return Segments(documents, at)
    return Whole(documents, at) if len(at.places) == 1 else Joined(documents, at)
