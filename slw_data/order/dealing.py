"""Dealing: the documents of a stream lie on one axis of tokens as they are read, and lanes are dealt them as they run dry.

::

    source    [ doc 0 | doc 1 ][ doc 2 | doc 3 | doc 4 ][ doc 5 ...        blocks, each with a position to read it again
    axis      0       7        12      20      29       35                 places: what lies before, in tokens
    lane 0    doc 0, doc 3 ..                                              begun: document 3, 17 tokens delivered
    lane 1    doc 1, doc 2 ..                                              begun: document 2, 40 tokens delivered
    snapshot  position of the block of document 2; next to deal: document 4; lanes (3, 17, 2, 40)

No token is kept in a saved position. A lane holds at most one begun document, so ``(document, offset)`` of each lane, and
where the source can be read again from the oldest of these documents, are enough to go on exactly. Where lanes stand after
each batch is found when somebody asks, from where they stood a little before and the documents that were dealt since.

Read next: :mod:`slw_data.order.cutting`, which cuts rows from the lanes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from slw_data.cached import cached
from slw_data.errors import DataError, warn
from slw_data.order.permutation import Ints
from slw_data.sources.stores.pieces import PiecedStore, whole
from slw_data.sources.streams import Block, DocumentStream

__all__ = ["Dealt", "Mark", "Read", "Snapshot", "Window"]


class Snapshot(NamedTuple):
    """Where a stream stands between two steps.

    Documents are numbered over the whole run. ``position`` is the source's own, of the block whose first document is
    number ``first`` and which pass ``epoch`` reads; ``next`` is the next document to deal; ``lanes`` holds for each
    lane the number and offset of its begun document, or -1 and 0. The rest counts tokens.
    """

    epoch: int = 0
    position: Any = None
    first: int = 0
    next: int = 0
    lanes: tuple[int, ...] = ()
    dealt: int = 0
    delivered: int = 0
    discarded: int = 0


class Read(NamedTuple):
    """Of a block that was read: the position that reads it again, its pass, and the number and place of its first document."""

    position: Any
    epoch: int
    first: int
    place: int


class Mark(NamedTuple):
    """What tells a block from another one in its place: its pass, the number of its first document, whether it is the first of
    its pass, and a checksum of its documents."""

    epoch: int
    first: int
    begins: bool
    digest: int


@dataclass(frozen=True, eq=False)
class Dealt:
    """The documents of some blocks that were read. ``bounds``, int64 (documents + 1,): where each begins on the axis, and the
    end of the last. ``origin`` is the place where counting began, and ``before`` the tokens that were dealt before it."""

    reads: tuple[Read, ...] = ()
    bounds: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    first: int = 0
    origin: int = 0
    before: int = 0

    @property
    def stop(self) -> int:
        """The number of the document after the last."""
        return self.first + len(self.bounds) - 1

    @cached
    def end(self) -> int:
        """Where the axis ends."""
        return int(self.bounds[-1])

    @property
    def known(self) -> Dealt:
        """These documents. Of a :class:`Window`, those that are known by now."""
        return self

    def reach(self, stop: int) -> bool:
        """Whether documents up to ``stop`` (exclusive) are known."""
        return stop <= self.stop

    def extend(self, place: int) -> bool:
        """Whether the axis reaches ``place``."""
        return place <= self.end

    def place(self, number: int) -> int:
        """Where a document begins."""
        return int(self.bounds[number - self.first])

    def numbers(self, places: Ints) -> Ints:
        """The documents that hold these places."""
        found: Ints = np.searchsorted(self.bounds, places, side="right") - 1 + self.first
        return found

    def tokens_to(self, place: int) -> int:
        """Tokens that are dealt in the whole run where all before ``place`` are."""
        return self.before + place - self.origin

    def read_of(self, number: int) -> int:
        """Which of the blocks holds a document: the last one, for documents behind it."""
        return max((i for i, read in enumerate(self.reads) if read.first <= number), default=0)


class Window:
    """The documents of a stream from the oldest that is still needed on, with their tokens. Further blocks are read as they are
    asked for; while ``reading`` is False, what is not known is not there. It belongs to one iteration."""

    def __init__(self, stream: DocumentStream, epochs: int | None, at: Snapshot) -> None:
        self.stream, self.epochs = stream, epochs
        self.known = Dealt(first=at.first, before=at.dealt)
        self.reading = True
        self.failure: Exception | None = None  # of the source: all before it is there
        self._blocks: list[Block] = []
        self._stores: dict[str, PiecedStore] = {}
        self._epoch, self._unread = at.epoch, stream.blocks(at.epoch, at.position)
        self._begins = at.position is None  # whether the next block is the first of its pass
        self._barren = at.next == 0  # nothing has come of this pass yet
        self.marks = list[Mark]()  # of the blocks that were read since somebody took them
        self.marked = False  # whether blocks are marked that are not the first of their pass, as others read them too

    def reach(self, stop: int) -> bool:
        """Whether documents up to ``stop`` (exclusive) are there."""
        while stop > self.known.stop:
            if not (self.reading and self.pull()):
                return False
        return True

    def extend(self, place: int) -> bool:
        """Whether the axis reaches ``place``."""
        while place > self.known.end:
            if not (self.reading and self.pull()):
                return False
        return True

    def pull(self) -> bool:
        """Read the next block, in a further pass if there is one. False at the end of the data, and where the source fails."""
        if self.failure is not None:
            return False
        try:
            block = self._next()
        except Exception as error:  # to be raised where a row cannot be cut for it
            self.failure = error
            return False
        if block is None:
            return False
        known, self._stores = self.known, {}
        self._blocks.append(block)
        read = Read(block.position, self._epoch, known.stop, known.end)
        bounds = np.concatenate([known.bounds, block.offsets[1:] + known.end])
        self.known = Dealt((*known.reads, read), bounds, known.first, known.origin, known.before)
        begins, self._begins = self._begins, False
        if begins or self.marked:
            self.marks.append(Mark(self._epoch, known.stop, begins, _checksum(block)))
        return True

    def _next(self) -> Block | None:
        while (block := next(self._unread, None)) is None:
            if self._barren and self.epochs is None:
                raise DataError(f"{self.stream.name} has no tokens in pass {self._epoch}, so reading it again is no use")
            if self._barren and self._epoch:
                warn(f"{self.stream.name} has no tokens in pass {self._epoch} of {self.epochs}: each pass should read it anew")
            if self.epochs is not None and self._epoch + 1 >= self.epochs:
                return None
            self._epoch, self._barren, self._begins = self._epoch + 1, True, True
            self._unread = self.stream.blocks(self._epoch)
        self._barren = False
        return block

    def count_from(self, number: int) -> None:
        """Let the tokens that were dealt before be those before document ``number``."""
        known = self.known
        self.known = Dealt(known.reads, known.bounds, known.first, known.place(number), known.before)

    def release(self, place: int) -> None:
        """Forget the blocks that end before ``place``, but for the last."""
        known, count = self.known, 0
        while count + 1 < len(known.reads) and known.reads[count + 1].place <= place:
            count += 1
        if count:
            del self._blocks[:count]
            first, self._stores = known.reads[count].first, {}
            bounds = known.bounds[first - known.first :]
            self.known = Dealt(known.reads[count:], bounds, first, known.origin, known.before)

    def store(self, column: str) -> tuple[PiecedStore, int]:
        """A column's tokens as a store, and the place on the axis where it begins."""
        if column not in self._stores:
            parts = [block.read(column, 0, int(block.offsets[-1])) for block in self._blocks]
            if len({part.dtype for part in parts}) > 1:
                parts = [part.astype(np.int64) for part in parts]
            self._stores[column] = PiecedStore(parts, whole(*map(len, parts)), parts[0].dtype, self.stream.name)
        return self._stores[column], self.known.reads[0].place

    def describe(self, place: int) -> str:
        """The name of a token, for messages."""
        number = int(self.known.numbers(np.array([place]))[0])
        return f"token {place - self.known.place(number)} of document {number} of {self.stream.name}"


def _checksum(block: Block) -> int:
    """Of a block's documents, whatever the dtype."""
    found = zlib.crc32(block.offsets.astype("<i8").tobytes())
    for column in sorted(block.columns):
        found = zlib.crc32(np.ascontiguousarray(block.read(column, 0, int(block.offsets[-1])), "<i8").data, found)
    return found
