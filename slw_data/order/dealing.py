"""Dealing: the documents of a stream, read in order, go to lanes as these run dry.

A lane is dealt a document only when the row that is being cut from it needs more tokens than it holds::

    while tokens held by lane r mod num_lanes < length of row r:
        deal the next document to the lane

What follows a row's last token in its lane may therefore be dealt a while later: a :class:`Row` is told when it is.

No token is kept in a saved position. A lane holds at most one begun document, so ``(document, offset)`` of each lane,
and where the source can be read again from the oldest of these documents, are enough to go on exactly::

    source    [ doc 0 | doc 1 ][ doc 2 | doc 3 | doc 4 ][ doc 5 ...        blocks, each with a position to read it again
    lane 0    doc 0, doc 3 ..                                              begun: document 3, 17 tokens delivered
    lane 1    doc 1, doc 2 ..                                              begun: document 2, 40 tokens delivered
    snapshot  position of the block of document 2; next to deal: document 4; lanes (3, 17, 2, 40)

Read next: :mod:`slw_data.order.documents`, which cuts rows from the lanes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from slw_data.errors import DataError, StateError, warn
from slw_data.sources.streams import Block, DocumentStream

__all__ = ["Dealer", "Lane", "Read", "Row", "Snapshot", "Span"]


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
    """A block that has been read: its pass and the number of its first document."""

    block: Block
    epoch: int
    first: int


Span = tuple[Read, int, int]  # flat tokens [start, stop) of a block


@dataclass(slots=True)
class Row:
    """Tokens that were cut from a lane, and the one that follows them there: None while there is none."""

    spans: list[Span]
    next: Span | None = None

    @property
    def size(self) -> int:
        """How many tokens are the row's own."""
        return sum(stop - start for _, start, stop in self.spans)


@dataclass(slots=True)
class Lane:
    """Documents that were dealt and are not cut up yet; the first may be begun."""

    spans: deque[Span] = field(default_factory=deque)
    waiting: Row | None = None  # the row whose ``next`` is the first token of the document that is dealt next

    @property
    def held(self) -> int:
        """How many tokens there are."""
        return sum(stop - start for _, start, stop in self.spans)

    def add(self, span: Span) -> None:
        """Put a document behind the others."""
        self.spans.append(span)
        if self.waiting is not None:
            self.waiting.next, self.waiting = self._first(), None

    def cut(self, count: int) -> Row:
        """Remove ``count`` of the tokens held."""
        row = Row([])
        while count:
            read, start, stop = self.spans[0]
            end = min(stop, start + count)
            row.spans.append((read, start, end))
            count -= end - start
            if end == stop:
                self.spans.popleft()
            else:
                self.spans[0] = (read, end, stop)
        row.next = self._first()
        return row

    def _first(self) -> Span | None:
        """The first token held."""
        if not self.spans:
            return None
        read, start, _ = self.spans[0]
        return read, start, start + 1


class Dealer:
    """Reads blocks and deals them to lanes: documents, or whole blocks (``whole``) if there is a single lane anyway."""

    def __init__(self, stream: DocumentStream, num_lanes: int, whole: bool, epochs: int | None, at: Snapshot) -> None:
        self.stream, self.whole, self.epochs = stream, whole, epochs
        self.lanes = [Lane() for _ in range(num_lanes)]
        self.dealt, self.delivered, self.discarded = at.dealt, at.delivered, at.discarded
        self._epoch, self._blocks = at.epoch, stream.blocks(at.epoch, at.position)
        self._barren = at.next == 0  # nothing has come of this pass yet
        self._read: Read | None = None
        self._index = 0  # of the next document to deal in self._read
        self._first = at.first
        self._start = at
        self._failure: Exception | None = None  # of the source, met before a document was to be dealt
        self.left: int | None = None  # tokens dealt and not delivered when the data ended
        if at.next:
            self._restore(at)

    def _pull(self) -> bool:
        """Read the next block, in a further pass if there is one. False at the end of the data."""
        if self._failure is not None:
            raise self._failure
        while (block := next(self._blocks, None)) is None:
            if self._barren and self.epochs is None:
                raise DataError(f"{self.stream.name} has no tokens in pass {self._epoch}, so reading it again is no use")
            if self._barren and self._epoch:
                warn(f"{self.stream.name} has no tokens in pass {self._epoch} of {self.epochs}: each pass should read it anew")
            if self.epochs is not None and self._epoch + 1 >= self.epochs:
                return False
            self._epoch, self._barren = self._epoch + 1, True
            self._blocks = self.stream.blocks(self._epoch)
        self._barren = False
        if self._read is not None:
            self._first += len(self._read.block.offsets) - 1
        self._read, self._index = Read(block, self._epoch, self._first), 0
        return True

    def deal(self) -> Span | None:
        """The next document, or the rest of the block; None at the end of the data."""
        while self._read is None or self._index >= len(self._read.block.offsets) - 1:
            if not self._pull():
                return None
        offsets = self._read.block.offsets
        start = self._index
        self._index = len(offsets) - 1 if self.whole else start + 1
        span = (self._read, int(offsets[start]), int(offsets[self._index]))
        self.dealt += span[2] - span[1]
        return span

    def snapshot(self) -> Snapshot:
        """The position. Where nothing that was read is left, it is that of the next block, so its pass is known."""
        if self._read is None:
            return self._start
        if self._index == len(self._read.block) and not any(lane.spans for lane in self.lanes):
            try:
                self._pull()
            except Exception as error:  # to be raised where a document is dealt
                self._failure = error
        oldest, places = self._read, []
        for lane in self.lanes:
            if not lane.spans:
                places += [-1, 0]
                continue
            read, start, _ = lane.spans[0]
            document = int(np.searchsorted(read.block.offsets, start, side="right")) - 1
            places += [read.first + document, start - int(read.block.offsets[document])]
            oldest = min(oldest, read, key=lambda r: r.first)
        return Snapshot(
            oldest.epoch,
            oldest.block.position,
            oldest.first,
            self._read.first + self._index,
            tuple(places),
            self.dealt,
            self.delivered,
            self.discarded,
        )

    def _restore(self, at: Snapshot) -> None:
        """Read on from the oldest begun document and give each lane what it held."""
        held = {at.lanes[i]: (i // 2, at.lanes[i + 1]) for i in range(0, len(at.lanes), 2) if at.lanes[i] >= 0}
        while self._read is None or held or self._first + len(self._read.block.offsets) - 1 < at.next:
            if not self._pull() or self._read is None:
                raise StateError(
                    f"{self.stream.name} ended at document {self._first}, before the saved document {at.next}:"
                    " resume with the source that the state was saved from"
                )
            offsets = self._read.block.offsets
            for document in [d for d in held if d - self._first < len(offsets) - 1]:
                lane, offset = held.pop(document)
                start = int(offsets[document - self._first]) + offset
                after = at.next if self.whole else document + 1  # an error may have ended the saved block earlier
                stop = int(offsets[min(after - self._first, len(offsets) - 1)])
                if start > stop:
                    raise StateError(
                        f"document {document} of {self.stream.name} is shorter than its saved offset {offset}:"
                        " resume with the source that the state was saved from"
                    )
                self.lanes[lane].add((self._read, start, stop))
        self._index = at.next - self._first
