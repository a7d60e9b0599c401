"""Packed rows of a stream: its documents are read window by window.

Each window is packed whole, so what was read stays until its last row is delivered. A place is where the source can be read
again from the window's first document on, and how many rows of the window were delivered at each length. No token is kept.

Read next: :mod:`slw_data.batch.reading`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from slw_data.errors import StateError
from slw_data.order.circle import whole_steps
from slw_data.order.dealing import Mark, Snapshot, Window
from slw_data.order.packed import DocumentWindows, Packed, Packer, Reader, are_taken, room_of, rows_of_pieces
from slw_data.order.packing import Fragments, Rows, pack
from slw_data.order.permutation import Ints
from slw_data.order.position import Position, are_ints, read_cursor
from slw_data.order.spans import Spans
from slw_data.plan import SequenceLengthPlan, ShardPlan, Stage
from slw_data.sources.streams import DocumentStream

__all__ = ["PackedStream", "StreamReader", "WindowAt"]

_AT_ONCE = 1 << 16  # rows of all ranks at most that are packed at once, if they are more than those of a batch


class WindowAt(NamedTuple):
    """A cursor: the window of the next row begins with document ``next`` of the run, and ``rows`` of it are delivered at each
    length, ``((length, rows), ...)``. ``position`` is the source's own, of the block whose first document is number ``first``
    and which pass ``epoch`` reads. ``dealt``: tokens of all windows before; ``delivered``: of all rows before."""

    epoch: int = 0
    position: Any = None
    first: int = 0
    next: int = 0
    dealt: int = 0
    delivered: int = 0
    rows: tuple[tuple[int, int], ...] = ()

    @property
    def discarded(self) -> int:
        return 0


class StreamWindows:
    """The windows of a stream, counted from the first that an iteration needs, read as they are asked for."""

    def __init__(self, documents: Window, lead: int, first: int) -> None:
        self.documents, self.lead = documents, lead
        self._first = {0: first}  # the first document of each window that is needed yet, and of the next one
        self._packed = dict[tuple[int, int], Rows]()  # of windows of which there is no row yet

    def there(self, number: int) -> bool:
        """Whether there is such a window. It is read, unless ``documents.reading`` is False."""
        if number + 1 not in self._first:
            first = self._first[number]
            stop = self._stop(first)
            if stop == first:
                return False
            self._first[number + 1] = stop
        return True

    def at(self, number: int) -> WindowAt:
        """Where a window begins. The block of its first document is read, so that its pass is known."""
        first = self._first[number]
        self.documents.reach(first + 1)
        known = self.documents.known
        read = known.reads[known.read_of(first)]
        dealt = known.tokens_to(known.place(first))
        return WindowAt(read.epoch, read.position, read.first, first, dealt, dealt)

    def fragments(self, number: int) -> Fragments:
        known = self.documents.known
        bounds = known.bounds[self._first[number] - known.first : self._first[number + 1] - known.first + 1]
        return Fragments(bounds[:-1], np.diff(bounds), bounds[1:])

    def pack(self, number: int, fragments: Fragments, length: int) -> Rows:
        return pack(fragments, length, room_of(length, self.lead), None)

    def fresh(self, number: int, length: int) -> Rows:
        """A window of which there is no row yet, packed once for all who ask."""
        if (number, length) not in self._packed:
            self._packed[number, length] = self.pack(number, self.fragments(number), length)
        return self._packed[number, length]

    def release(self, number: int) -> None:
        """Forget all windows before ``number``."""
        self._first = {window: first for window, first in self._first.items() if window >= number}
        self._packed = {key: rows for key, rows in self._packed.items() if key[0] >= number}
        self.documents.release(self.documents.known.place(self._first[number]))

    def _stop(self, begin: int) -> int:
        """The document behind the window that begins with ``begin``; this one where there is none, or not all of it is there.
        A window ends with its pass."""
        documents, wanted = self.documents, begin + DocumentWindows.size
        if not documents.reach(begin + 1):
            return begin
        epoch = documents.known.reads[documents.known.read_of(begin)].epoch
        while documents.known.stop < wanted and documents.known.reads[-1].epoch == epoch:
            if not (documents.reading and documents.pull()):
                ended = documents.reading and documents.failure is None
                return documents.known.stop if ended else begin
        others = [read.first for read in documents.known.reads if read.epoch > epoch]
        return min([wanted, *others])


class StreamPacker(Packer):
    """All windows are packed, as all are read."""

    windows: StreamWindows

    def rows_left(self, length: int, wanted: int) -> int:
        """Rows of ``length`` that there are yet, or any number from ``wanted`` on."""
        found = 0 if self._rows is None else self._open(length).count - self._taken
        number = self.window + (self._rows is not None)
        while found < wanted and self.windows.there(number):
            found += self.windows.fresh(number, length).count
            number += 1
        return found

    def rows_at_hand(self, length: int, wanted: int) -> int:
        """How many of these are there without reading on."""
        self.windows.documents.reading = False
        found = self.rows_left(length, wanted)
        self.windows.documents.reading = True
        return found

    def _fresh(self, length: int) -> Rows:
        return self.windows.fresh(self.window, length)


class StreamReader(Reader):
    """Where one iteration stands. ``alone``: what is there is handed out before more is read, as no other worker has to find
    the same batches."""

    packer: StreamPacker

    def __init__(self, windows: StreamWindows, at: Packed, alone: bool) -> None:
        self.windows, self.alone = windows, alone
        super().__init__(StreamPacker(windows, at))

    def marks(self) -> tuple[Mark, ...]:
        """Of the blocks that were read since they were asked for last."""
        documents = self.windows.documents
        found, documents.marks = tuple(documents.marks), []
        return found

    def look_up(self, stage: Stage, batches: range, rank: int, world: int) -> tuple[Ints, Fragments, int]:
        self.windows.release(self.packer.window)
        return super().look_up(stage, batches, rank, world)

    def skip(self, stage: Stage, batches: range, world: int) -> None:
        self.windows.release(self.packer.window)
        super().skip(stage, batches, world)

    def at(self, cursor: Packed) -> WindowAt:
        return self.windows.at(cursor.window)._replace(rows=cursor.rows, delivered=cursor.delivered)


@dataclass(frozen=True)
class PackedStream:
    """Rows of ``plan`` that are packed from the documents of ``stream``. ``lead``: tokens at the beginning of each row that
    are not the documents'. ``epochs``: passes over it; None: as many as the plan asks for."""

    stream: DocumentStream
    plan: SequenceLengthPlan | ShardPlan
    lead: int = 0
    epochs: int | None = None

    found_by_step: ClassVar[bool] = False
    begin: ClassVar[Position] = Position(cursor=WindowAt(), tokens=0)

    def __post_init__(self) -> None:
        room_of(self.plan.stage_at(0).length, self.lead)

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""
        return f"mode='pack', windows of {DocumentWindows.size} documents in order{', behind bos_id' if self.lead else ''}"

    # -- rows -----------------------------------------------------------------------------------------------------------

    def reader(self, at: Position, look: int = 0, *, alone: bool = False) -> StreamReader:
        """What one iteration packs rows with, from ``at`` on. StateError if the source has not the documents of a state."""
        cursor: WindowAt = at.cursor
        snapshot = Snapshot(cursor.epoch, cursor.position, cursor.first, cursor.next, dealt=cursor.dealt)
        documents = Window(self.stream, self.epochs, snapshot)
        documents.marked = not alone
        windows = StreamWindows(documents, self.lead, cursor.next)
        documents.reach(cursor.next)
        if cursor.next <= documents.known.stop:
            documents.count_from(cursor.next)
        if cursor.next > documents.known.stop or (cursor.rows and not windows.there(0)):
            if documents.failure is not None:
                raise documents.failure
            raise StateError(
                f"{self.stream.name} ended at document {documents.known.stop}, before the saved document"
                f" {cursor.next + bool(cursor.rows)}: resume with the source that the state was saved from"
            )
        return StreamReader(windows, Packed(0, cursor.rows, cursor.delivered), alone)

    def limit(self, stage: Stage, batch: int) -> int:
        """The batch up to which rows are packed at once: those of all ranks are, and there may be many."""
        return batch + max(1, _AT_ONCE // (stage.rows * self.plan.world_size))

    def enough(self, stage: Stage, batches: range, reader: StreamReader) -> range:
        """As many of ``batches`` as the data suffices for: those of whole steps. Of a reader that is alone, those that need no
        reading, or else one."""
        world, packer = self.plan.world_size, reader.packer
        if reader.alone:
            batches = batches[: max(1, len(whole_steps(stage, batches, world, packer.rows_at_hand)))]
        return whole_steps(stage, batches, world, packer.rows_left)

    def skip(self, stage: Stage, batches: range, reader: StreamReader) -> None:
        """Pass over ``batches``, which another worker reads."""
        reader.skip(stage, batches, self.plan.world_size)

    def spans(self, stage: Stage, batches: range, rank: int, look: int, reader: StreamReader) -> Spans:
        """Where ``batches`` lie that are ``rank``'s; with ``look``, where the token after each is too."""
        run, pieces, rows = reader.look_up(stage, batches, rank, self.plan.world_size)
        return rows_of_pieces(run, pieces.places, pieces, stage, rows, self.lead, look, reader.windows.documents)

    def after(self, stage: Stage, batches: range, reader: StreamReader) -> Sequence[Position]:
        """Where the run stands after each of ``batches``, the last that were looked up."""
        return reader.positions(stage, batches)

    def again(self, stage: Stage, batches: range, reader: StreamReader) -> StreamReader:
        """A reader that stands before ``batches``, whose spans were looked up last."""
        return StreamReader(reader.windows, reader.before, reader.alone)

    def left(self, reader: StreamReader) -> int:
        """Tokens that the end of the data leaves over. What the source failed with is raised."""
        documents = reader.windows.documents
        if documents.failure is not None:
            raise documents.failure
        return documents.known.tokens_to(documents.known.end) - reader.packer.delivered

    # -- places ---------------------------------------------------------------------------------------------------------

    def settle(self, at: Position) -> Position:
        return at

    def seek(self, step: int) -> Position:
        """The beginning of ``step``, by reading from the start. StateError if the data ends before it."""
        reader, now = self.reader(self.begin), 0
        packer = reader.packer
        while now < step:
            stage = self.plan.stage_at(now)
            each = stage.rows * stage.grad_accum_steps * self.plan.world_size
            steps = min(step - now, max(1, _AT_ONCE // each), *(() if stage.stop is None else (stage.stop - now,)))
            there = min(steps, packer.rows_left(stage.length, steps * each) // each)
            if not there:
                self.left(reader)
                raise StateError(f"{self.stream.name} ends after {now} steps, and step {step} was asked for")
            packer.skip(there * each, stage.length, there * each)
            reader.windows.release(packer.window)
            now += there
        return Position(step, 0, reader.at(packer.cursor), packer.delivered)

    def epoch(self, at: Position) -> int:
        """The pass that the window of the next row is of."""
        epoch: int = at.cursor.epoch
        return epoch

    def rest_at(self, at: Position) -> int | None:
        return None

    def leftover(self, at: Position) -> int | None:
        """Tokens of the data that are not delivered at ``at``, by reading on to its end."""
        if self.epochs is None:
            return None
        reader = self.reader(at)
        documents = reader.windows.documents
        while documents.pull():
            documents.release(documents.known.end)
        return self.left(reader)

    def dump(self, at: Position) -> str:
        return json.dumps(at.cursor._asdict())

    def load(self, text: Any, at: Position) -> WindowAt:
        cursor = read_cursor(text, WindowAt, self._sound)
        return cursor._replace(rows=tuple((length, taken) for length, taken in cursor.rows))

    def _sound(self, saved: WindowAt) -> bool:
        counts = [saved.epoch, saved.first, saved.next, saved.dealt, saved.delivered]
        in_order = are_ints(counts) and saved.first <= saved.next and saved.dealt <= saved.delivered
        return in_order and are_taken(saved.rows, self.lead)

    def describe(self) -> str:
        """The order in words: what it mixes shows as it is read."""
        return f"{self.fingerprint}: a stream, whose documents are known as they are read"
