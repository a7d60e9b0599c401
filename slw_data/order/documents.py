"""The order of a stream: rows cut from documents that are dealt to lanes, step by step.

Every rank and worker deals the whole stream in the same way, by sizes alone; only the tokens of its own rows are looked at.
A step is delivered only if all of its rows can be cut, so all ranks end together.

Shifted labels ask for the token after a row. Where a row ends with its document, that is the first of the lane's next
row, so rows are cut ahead until it is dealt, in the order in which they are cut anyway. Labels change neither the order
nor the end, and a position is that of its step, however far ahead the cutting is.

Read next: :mod:`slw_data.batch.reading`, which reads the spans of the rows.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from slw_data.errors import StateError, warn
from slw_data.order.circle import whole_steps
from slw_data.order.cutting import Cut, Held, dealer_of
from slw_data.order.dealing import Dealt, Mark, Snapshot, Window
from slw_data.order.diversity import neighbours
from slw_data.order.permutation import Ints
from slw_data.order.position import Position, are_ints, read_cursor
from slw_data.order.spans import Spans, joined
from slw_data.plan import SequenceLengthPlan, ShardPlan, Stage
from slw_data.plan.schedules import ConstantSchedule
from slw_data.sources.streams import DocumentStream

__all__ = ["DocumentOrder", "DocumentReader", "Unsettled"]

_AT_ONCE = 1 << 16  # rows of all ranks at most that are cut at once, if they are more than those of a batch


class Unsettled(NamedTuple):
    """A cursor that nobody has asked for yet: what lanes held at some row before, the documents dealt since, and the tokens
    that are delivered and discarded in whole steps by now."""

    held: Held
    dealt: Dealt
    delivered: int
    discarded: int


class DocumentReader:
    """Where one iteration stands: rows that are cut and not handed out yet, and what lanes held before these.

    Args:
        order: what to cut.
        at: from where on.
        look: tokens after each row that are asked for too.
        alone: hand out what is there before more is read, as no other worker has to find the same batches.
    """

    def __init__(self, order: DocumentOrder, at: Position, look: int = 0, *, alone: bool = False) -> None:
        self.order, self.look, self.alone = order, look, alone
        snapshot: Snapshot = order.settle(at).cursor
        self.window = Window(order.stream, order.epochs, snapshot)
        self.window.marked = not alone
        held = order.restored(self.window, snapshot, order.plan.rows_before(at.step))
        self.dealer = dealer_of(self.window, held, order.mode, order.preserve_eos)
        self.row, self.delivered = held.row, held.delivered  # of what is handed out
        self.in_steps, self.discarded = held.delivered, held.discarded  # before the step that was begun last
        self.handed: Cut | None = None  # last
        self.after = list[Position]()  # each of its batches
        self._marks = deque([held])
        self._cuts = deque[Cut]()
        self._step = at.step  # of the next row to cut
        begun = at.batch * order.plan.rows(at.step) * order.plan.world_size if at.batch else 0
        if begun and self.need(begun) >= begun:
            self.take(begun)

    @property
    def waiting(self) -> int:
        """Rows that are cut and not handed out."""
        return self.dealer.row - self.row

    def need(self, count: int, *, reading: bool = True) -> int:
        """Cut on until ``count`` rows are there: how many are. With ``reading=False`` nothing is read for it."""
        self.window.reading = reading
        while self.waiting < count:
            length, room = self._shape()
            self._mark()
            rows = self.dealer.cut(min(count - self.waiting, room), length)
            if not len(rows.places):
                break
            self._cuts.append(rows)
        self.window.reading = True
        return self.waiting

    def rows_left(self, length: int, wanted: int) -> int:
        """How many rows there are yet, of ``wanted``."""
        return self.need(wanted)

    def rows_at_hand(self, length: int, wanted: int) -> int:
        """How many of these are wholly known without reading on."""
        self.need(wanted, reading=False)
        return self.known_rows(wanted)

    def _mark(self) -> None:
        if self._marks[-1].row != self.dealer.row:
            self._marks.append(self.dealer.held)

    def _shape(self) -> tuple[int, int]:
        """The length of the next row to cut, and how many rows there are of it. Beyond the run's last step its shape holds on,
        because a schedule need not be defined there."""
        plan, total = self.order.plan, self.order.plan.total_steps
        while True:
            stage = plan.stage_at(self._step if total is None else min(self._step, total - 1))
            if stage.stop is None or (total is not None and stage.stop >= total):
                return stage.length, _AT_ONCE
            stop = stage.rows_before + (stage.stop - stage.start) * self.order.rows_of_step(stage)
            if self.dealer.row < stop:
                return stage.length, stop - self.dealer.row
            self._step = stage.stop

    def known_rows(self, count: int) -> int:
        """How many of the next ``count`` rows are wholly known, with the tokens that follow them."""
        there = min(count, self.waiting)
        if not self.look:
            return there
        return min([there, *(waiting.row - self.row for waiting in self.dealer.waiting.values())])

    def follow(self, count: int) -> int:
        """Cut on until the next ``count`` rows are wholly known, or known to be followed by nothing: how many are. They are
        fewer only where the source has failed."""
        while self.look and self.known_rows(count) < count:
            last = max(w.row for w in self.dealer.waiting.values() if w.row < self.row + count)
            wanted = last + self.order.num_lanes + 1 - self.row
            self.dealer.look_on()
            if self.dealer.waiting and self.need(wanted) < wanted:
                return count if self.window.failure is None else self.known_rows(count)
        return count

    def take(self, count: int) -> Cut:
        """Hand out the next ``count`` rows."""
        parts, self.row = list[Cut](), self.row + count
        while count:
            rows = self._cuts.popleft()
            some = min(count, len(rows.places))
            parts.append(rows.part(0, some))
            if some < len(rows.places):
                self._cuts.appendleft(rows.part(some, len(rows.places)))
            count -= some
        self.handed = parts[0] if len(parts) == 1 else Cut(*map(np.concatenate, zip(*parts, strict=True)))
        self.delivered += self.handed.tokens
        return self.handed

    def marks(self) -> tuple[Mark, ...]:
        """Of the blocks that were read since they were asked for last."""
        found, self.window.marks = tuple(self.window.marks), []
        return found

    def give_back(self) -> None:
        """Undo the last :meth:`take`."""
        assert self.handed is not None
        self.row -= len(self.handed.places)
        self.delivered -= self.handed.tokens
        self._cuts.appendleft(self.handed)

    def held_at(self, row: int) -> Held:
        """What lanes held at ``row``, or a little before. What lies before that is forgotten."""
        while len(self._marks) > 1 and self._marks[1].row <= row:
            self._marks.popleft()
        self.window.release(self._marks[0].oldest(self.window.known))
        return self._marks[0]

    def dealt(self) -> Dealt:
        """The documents that are known. Where all are used up, those of the next block too, so that its pass is known."""
        if not self.waiting and self.dealer.used_up:
            self.window.pull()
        return self.window.known


@dataclass(frozen=True)
class DocumentOrder:
    """Rows of ``plan`` from the documents of ``stream``. ``epochs``: passes over it; None: as many as the plan asks for."""

    stream: DocumentStream
    plan: SequenceLengthPlan | ShardPlan
    num_lanes: int = 1
    mode: str = "stream"
    preserve_eos: bool = False
    epochs: int | None = None

    found_by_step: ClassVar[bool] = False
    begin: ClassVar[Position] = Position(cursor=Snapshot())

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""
        return f"mode={self.mode!r}, preserve_eos={self.preserve_eos}, num_lanes={self.num_lanes}"

    @property
    def whole(self) -> bool:
        """Whether all tokens form one sequence, whatever the documents."""
        return self.mode == "stream" and self.num_lanes == 1

    def rows_of_step(self, stage: Stage) -> int:
        """Rows of a step of ``stage``, over all ranks."""
        return stage.rows * stage.grad_accum_steps * self.plan.world_size

    # -- rows -----------------------------------------------------------------------------------------------------------

    def reader(self, at: Position, look: int = 0, *, alone: bool = False) -> DocumentReader:
        """What one iteration cuts rows with, from ``at`` on."""
        return DocumentReader(self, at, look, alone=alone)

    def limit(self, stage: Stage, batch: int) -> int:
        """The batch up to which rows are cut at once: those of all ranks are, and there may be many."""
        return batch + max(1, _AT_ONCE // (stage.rows * self.plan.world_size))

    def enough(self, stage: Stage, batches: range, reader: DocumentReader) -> range:
        """As many of ``batches`` as the data suffices for: those of whole steps. Of a reader that is alone, those that need no
        reading, or else one."""
        world = self.plan.world_size
        if reader.alone:
            batches = batches[: max(1, len(whole_steps(stage, batches, world, reader.rows_at_hand)))]
        there = whole_steps(stage, batches, world, reader.rows_left)
        each = stage.rows * world
        return there[: reader.follow(len(there) * each) // each]

    def skip(self, stage: Stage, batches: range, reader: DocumentReader) -> None:
        """Pass over ``batches``, which another worker reads."""
        self._take(stage, batches, reader)

    def spans(self, stage: Stage, batches: range, rank: int, look: int, reader: DocumentReader) -> Spans:
        """Where ``batches`` lie that are ``rank``'s, and ``look`` tokens after each row."""
        cut = self._take(stage, batches, reader)
        if rank == 0 and (stage.start, batches.start) == (0, 0) and self.whole:
            self._warn_of_neighbours(stage, reader.window.known)
        shape = len(batches), self.plan.world_size, stage.rows
        mine = Cut(*(values.reshape(shape)[:, rank].ravel() for values in cut))
        return (_whole_batches if self.whole else _single_rows)(stage, mine, look, reader.window)

    def _take(self, stage: Stage, batches: range, reader: DocumentReader) -> Cut:
        each = stage.rows * self.plan.world_size
        step_row = stage.rows_before + batches.start // stage.grad_accum_steps * stage.grad_accum_steps * each
        held, delivered = reader.held_at(step_row), reader.delivered
        cut = reader.take(len(batches) * each)
        dealt = reader.dealt()
        tokens = delivered + np.cumsum((cut.sizes + cut.rest).reshape(len(batches), -1).sum(axis=1))
        discarded = self._discarded(cut.places.reshape(len(batches), -1)[:, -1], tokens, dealt)
        reader.after = []
        for batch, now, gone in zip(batches, tokens.tolist(), discarded.tolist(), strict=True):
            steps, within = divmod(batch + 1, stage.grad_accum_steps)
            if not within:
                reader.in_steps, reader.discarded = now, gone
            cursor = Unsettled(held, dealt, reader.in_steps, reader.discarded)
            reader.after.append(Position(stage.start + steps, within, cursor, None if self.mode == "stream" else now))
        return cut

    def _discarded(self, last: Ints, delivered: Ints, dealt: Dealt) -> Ints:
        """The tokens that are discarded after rows that begin at ``last``, where so many are delivered."""
        if self.mode != "truncate":
            return np.zeros(len(last), np.int64)
        ends = dealt.bounds[dealt.numbers(last) + 1 - dealt.first]
        return ends - dealt.origin + dealt.before - delivered

    def _warn_of_neighbours(self, stage: Stage, dealt: Dealt) -> None:
        """Warn of a warmup whose first step has tokens of fewer documents than rows."""
        rows = self.rows_of_step(stage)
        documents = int(np.searchsorted(dealt.bounds[:-1], rows * stage.length))
        if documents < rows and not isinstance(self.plan.schedule, ConstantSchedule):
            warn(neighbours(rows, stage.length, documents, f"num_lanes={rows} or more"))

    def after(self, stage: Stage, batches: range, reader: DocumentReader) -> Sequence[Position]:
        """Where the run stands after each of ``batches``, whose spans were looked up last."""
        return reader.after

    def again(self, stage: Stage, batches: range, reader: DocumentReader) -> DocumentReader:
        """The reader, before ``batches``, whose spans were looked up last."""
        reader.give_back()
        return reader

    def left(self, reader: DocumentReader) -> int:
        """Tokens that the end of the data leaves over. What the source failed with is raised."""
        if reader.window.failure is not None:
            raise reader.window.failure
        known = reader.window.known
        return known.tokens_to(known.end) - reader.delivered - reader.discarded

    # -- places ---------------------------------------------------------------------------------------------------------

    def settle(self, at: Position) -> Position:
        """``at`` with a snapshot: rows are cut from the lanes as they were a little before."""
        if isinstance(at.cursor, Snapshot):
            return at
        held, dealt, *_ = at.cursor
        dealer = dealer_of(dealt, held, self.mode, self.preserve_eos)
        row = self.plan.rows_before(at.step)
        step = bisect_right(range(at.step + 1), held.row, key=self.plan.rows_before) - 1
        while dealer.row < row:
            stage = self.plan.stage_at(step)
            stop = row
            if stage.stop is not None:
                step, stop = stage.stop, stage.rows_before + (stage.stop - stage.start) * self.rows_of_step(stage)
            dealer.cut(min(row, stop) - dealer.row, stage.length)
        return at._replace(cursor=dealer.snapshot())

    def seek(self, step: int) -> Position:
        """The beginning of ``step``, by reading from the start. StateError if the data ends before it."""
        if step == 0:
            return self.begin
        reader, wanted = self.reader(self.begin), self.plan.rows_before(step)
        while reader.row < wanted:
            some = reader.need(min(wanted - reader.row, _AT_ONCE))
            if not some:
                self.left(reader)
                done = bisect_right(range(step + 1), reader.row, key=self.plan.rows_before) - 1
                raise StateError(f"{self.stream.name} ends after {done} steps, and step {step} was asked for")
            reader.take(some)
            reader.held_at(reader.row)
        reader.dealt()
        return Position(step, 0, reader.dealer.snapshot(), None if self.mode == "stream" else reader.delivered)

    def restored(self, window: Window, at: Snapshot, row: int) -> Held:
        """What lanes hold at a snapshot, which is before ``row``: the source is read from the oldest begun document on."""
        lanes = np.array(at.lanes or (-1, 0) * self.num_lanes, np.int64).reshape(-1, 2)
        begun = np.flatnonzero(lanes[:, 0] >= 0)
        numbers, offsets = lanes[begun].T
        self._check_restored(window, at, numbers)
        window.count_from(at.next)
        known = window.known
        places, left = np.full(self.num_lanes, known.place(at.next)), np.zeros(self.num_lanes, np.int64)
        starts, ends = known.bounds[numbers - at.first], known.bounds[numbers - at.first + 1]
        if self.whole:
            ends[:] = known.place(at.next)
        for number, offset in zip(numbers[starts + offsets > ends], offsets[starts + offsets > ends], strict=True):
            raise StateError(
                f"document {number} of {self.stream.name} is shorter than its saved offset {offset}:"
                " resume with the source that the state was saved from"
            )
        places[begun], left[begun] = starts + offsets, ends - starts - offsets
        return Held(row, at.next, places, left, at.delivered, at.discarded, at)

    def _check_restored(self, window: Window, at: Snapshot, numbers: Ints) -> None:
        """StateError if the source does not have the documents of a snapshot."""
        if numbers.size and numbers.min() < at.first:
            raise StateError(f"document {numbers.min()} is begun in the saved state, which says that {at.first} is the oldest")
        last = max([at.next, *(numbers + 1).tolist()])
        if not window.reach(last):
            if window.failure is not None:
                raise window.failure
            raise StateError(
                f"{self.stream.name} ended at document {window.known.stop}, before the saved document {last}:"
                " resume with the source that the state was saved from"
            )

    def epoch(self, at: Position) -> int:
        """The pass that the oldest block in use is of."""
        epoch: int = self.settle(at).cursor.epoch
        return epoch

    def rest_at(self, at: Position) -> int | None:
        return None

    def leftover(self, at: Position) -> int | None:
        """Tokens of the data that are neither delivered nor discarded at ``at``, by reading on to its end."""
        if self.epochs is None:
            return None
        reader = self.reader(self.settle(at)._replace(batch=0))
        while reader.window.pull():
            reader.window.release(reader.window.known.end)
        return self.left(reader)

    def dump(self, at: Position) -> str:
        return json.dumps(at.cursor._asdict())

    def load(self, text: Any, at: Position) -> Snapshot:
        snapshot = read_cursor(text, Snapshot, _sound)
        lanes = tuple(snapshot.lanes)
        if len(lanes) not in (0, 2 * self.num_lanes):
            raise StateError(f"stream has {len(lanes) // 2} lanes in the saved state, this run has num_lanes={self.num_lanes}")
        return snapshot._replace(lanes=lanes)

    def describe(self) -> str:
        """The order in words: what it mixes shows as it is read."""
        return f"{self.fingerprint}: a stream, whose documents are known as they are read"


def _sound(at: Snapshot) -> bool:
    return are_ints([at.epoch, at.first, at.next, *at[5:]]) and are_ints(at.lanes, at_least=-1) and len(at.lanes) % 2 == 0


def _whole_batches(stage: Stage, cut: Cut, look: int, window: Window) -> Spans:
    """The rows of a batch follow each other, and are read as one run."""
    starts, width = cut.places[:: stage.rows], stage.rows * stage.length + look
    if not look or cut.follow[-1] >= 0:
        return Spans(len(starts), width, look, starts, window=window)
    sizes = np.full(len(starts), width)
    sizes[-1] -= look  # the data ends there
    return Spans(len(starts), width, look, starts, sizes, np.arange(len(starts)), window=window)


def _single_rows(stage: Stage, cut: Cut, look: int, window: Window) -> Spans:
    """Each row is a run, of up to three spans: what its lane held, what it was dealt, and what follows."""
    rows = len(cut.places)
    follow = (cut.follow >= 0).astype(np.int64) if look else np.zeros(rows, np.int64)
    starts = np.stack([cut.places, cut.others, cut.follow], axis=1).ravel()
    sizes = np.stack([cut.sizes, cut.rest, follow], axis=1).ravel()
    filled = np.flatnonzero(sizes)
    run, starts, sizes = joined(filled // 3, starts[filled], sizes[filled])
    return Spans(rows, stage.length + look, look, starts, sizes, run, window=window)
