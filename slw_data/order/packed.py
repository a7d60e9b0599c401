"""The order of packed rows: windows of documents one after the other, and the rows of each.

A place in a run is the number of its window, and how many rows were delivered of it at each length::

    window 7, packed for rows of 8       r r r r r r . . . .        6 rows are delivered, then the length changes
    what is left, packed for rows of 16  r r . .                    2 rows are delivered

    Packed(window=7, rows=((8, 6), (16, 2)))

How many rows a window gives is known once it is packed, so each rank goes through the windows of all, and packs only those
that it has rows of: the others are counted many at a time. In a divided run (``num_shards``) a rank has its windows to itself.

Read next: :mod:`slw_data.order.packed_stream`, the same of a stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from slw_data.errors import ScheduleError, StateError
from slw_data.order.circle import Documents, whole_steps
from slw_data.order.packing import Fragments, Rows, count_rows, pack
from slw_data.order.permutation import Ints
from slw_data.order.position import Position, are_ints, read_cursor
from slw_data.order.spans import Spans
from slw_data.plan import SequenceLengthPlan, ShardPlan, Stage

__all__ = ["DocumentWindows", "Packed", "PackedRows", "Packer", "Reader", "Windows", "are_taken", "room_of", "rows_of_pieces"]

_TOGETHER = 1024  # windows at most that are counted at once: what they need stays in the cache
_AT_ONCE = 1 << 22  # rows of all ranks at most that are gone through at once
_WORTH = 16  # going through so many sizes for all windows costs about as much as packing one


class Packed(NamedTuple):
    """A cursor: of window ``window`` so many rows are delivered at each length, ``((length, rows), ...)``; then comes the
    next row of it. ``delivered``: tokens of all rows before."""

    window: int = 0
    rows: tuple[tuple[int, int], ...] = ()
    delivered: int = 0

    @property
    def discarded(self) -> int:
        return 0


class Windows(Protocol):
    """Windows of documents, by their numbers. ``lead``: tokens at the beginning of each row that are not the documents'."""

    @property
    def lead(self) -> int: ...

    def fragments(self, number: int) -> Fragments:
        """The documents of a window."""

    def pack(self, number: int, fragments: Fragments, length: int) -> Rows:
        """What there is yet of a window, packed."""


def are_taken(rows: Sequence[Sequence[int]], lead: int) -> bool:
    """Whether the rows of a cursor are some of each length, and those have room."""
    return all(len(pair) == 2 and are_ints(pair[:1], at_least=lead + 1) and are_ints(pair[1:], at_least=1) for pair in rows)


def room_of(length: int, lead: int) -> int:
    """Tokens of documents in a row of ``length``."""
    if length <= lead:
        raise ScheduleError(f"bos_id is the first token of each row, so rows need length >= 2, got a length of {length}")
    return length - lead


# -- rows one after the other -----------------------------------------------------------------------------------------


class Packer:
    """Goes from row to row, from a cursor on. It belongs to one iteration. ``delivered``: tokens of all rows before."""

    def __init__(self, windows: Windows, at: Packed) -> None:
        self.windows, self.window, self.delivered = windows, at.window, at.delivered
        self._start_window()
        for length, taken in at.rows:
            if taken >= self._open(length).count:
                raise StateError(f"window {at.window} has not {taken} rows of {length} and more, as the saved state says")
            self._taken = taken

    def _start_window(self) -> None:
        self._before: tuple[tuple[int, int], ...] = ()
        self._rows: Rows | None = None
        self._taken = 0

    @property
    def cursor(self) -> Packed:
        if self._rows is None:
            return Packed(self.window, (), self.delivered)
        return self._at(self._rows, self._taken, self.delivered)

    def skip(self, count: int, length: int, ahead: int) -> None:
        """Pass over ``count`` rows. ``ahead``: so many are wanted soon, these among them."""
        while count:
            passed = self._pass_windows(count, length, ahead) if self._rows is None else 0
            if not passed:
                passed = min(count, self._open(length).count - self._taken)
                self._pass_rows(passed)
            count, ahead = count - passed, ahead - passed

    def read(self, own: Ints, stops: Ints, length: int) -> tuple[Ints, Fragments, list[Packed]]:
        """``(run, pieces, after)`` of the next ``stops[-1]`` rows: the pieces of rows ``own`` of these, ascending, and for each
        the number of its row in ``own``; and the cursor after each of ``stops`` rows, ascending."""
        found: list[tuple[Ints, ...]] = []
        after: list[Packed] = []
        done, total = 0, int(stops[-1])
        while done < total:
            looked_at = [int(stops[np.searchsorted(stops, done, side="right")]) - 1]
            looked_at += own[np.searchsorted(own, done) :][:1].tolist()
            self.skip(min(looked_at) - done, length, total - done)
            done = min(looked_at)
            rows, before = self._open(length), self._taken - done  # row r of these is row before + r of the window
            stop = min(total, rows.count - before)
            mine = slice(*np.searchsorted(own, [done, stop]))
            run, _, pieces = rows.of(own[mine] + before)
            found.append((run + mine.start, *pieces))
            ends = slice(*np.searchsorted(stops, [done, stop], side="right"))
            for taken in (stops[ends] + before).tolist():
                after.append(self._at(rows, taken, self.delivered + rows.tokens(taken) - rows.tokens(self._taken)))
            self._pass_rows(stop - done)
            done = stop
        run, *values = (np.concatenate(part) for part in zip(*found, strict=True))
        return run, Fragments(*values), after

    def _at(self, rows: Rows, taken: int, delivered: int) -> Packed:
        """The cursor once ``taken`` rows of this window are delivered at this length, and so many tokens in all."""
        if taken == rows.count:
            return Packed(self.window + 1, (), delivered)
        return Packed(self.window, (*self._before, (rows.length, taken)) if taken else self._before, delivered)

    def _open(self, length: int) -> Rows:
        """This window, packed for ``length``."""
        rows = self._rows
        if rows is None:
            rows = self._fresh(length)
        elif rows.length != length:
            self._before = self._at(rows, self._taken, 0).rows
            rows = self.windows.pack(self.window, rows.after(self._taken), length)
            self._taken = 0
        self._rows = rows
        return rows

    def _fresh(self, length: int) -> Rows:
        """This window, of which there is no row yet."""
        return self.windows.pack(self.window, self.windows.fragments(self.window), length)

    def _pass_rows(self, count: int) -> None:
        """Pass over rows of this window."""
        rows = self._rows
        assert rows is not None
        self.delivered += rows.tokens(self._taken + count) - rows.tokens(self._taken)
        self._taken += count
        if self._taken == rows.count:
            self.window += 1
            self._start_window()

    def _pass_windows(self, count: int, length: int, ahead: int) -> int:
        """Pass over whole windows of ``count`` rows without packing them: how many rows these have."""
        return 0


def rows_of_pieces(
    run: Ints, starts: Ints, pieces: Fragments, stage: Stage, rows: int, lead: int, look: int, window: Any = None
) -> Spans:
    """Where ``rows`` rows lie whose pieces are in ``run`` and begin at ``starts`` of the source; with ``look``, where the token
    after each token is too: it is one of the same document."""
    sizes = pieces.sizes
    before = np.cumsum(sizes) - sizes
    firsts = np.searchsorted(run, run)  # for each piece the first one of its row
    at = before - before[firsts] + lead
    after = None
    if look:
        follows = pieces.ends > pieces.places + sizes
        begins = (firsts == np.arange(len(run))) & (lead > 0)  # its first token comes after bos_id
        lengths = sizes - 1 + follows + begins
        some = np.flatnonzero(lengths)
        spans = (starts + 1 - begins, lengths, run, at - begins)
        starts_, lengths, run_, at_ = (values[some] for values in spans)
        after = Spans(rows, stage.length, 0, starts_, lengths, run_, window=window, at=at_)
    return Spans(rows, stage.length, 0, starts, sizes, run, window=window, at=at, after=after)


class Reader:
    """Where one iteration stands; ``before`` the batches that were looked up last, and ``after`` each of them."""

    def __init__(self, packer: Packer) -> None:
        self.packer = packer
        self.before = packer.cursor
        self.after: list[Packed] = []

    def at(self, cursor: Packed) -> Any:
        """The cursor as a position has it."""
        return cursor

    def skip(self, stage: Stage, batches: range, world: int) -> None:
        """Pass over ``batches``, which come next."""
        rows = len(batches) * stage.rows * world
        self.packer.skip(rows, stage.length, rows)

    def positions(self, stage: Stage, batches: range) -> list[Position]:
        """Where the run stands after each of ``batches``, the last that were looked up."""
        places = (divmod(batch + 1, stage.grad_accum_steps) for batch in batches)
        return [
            Position(stage.start + steps, batch, self.at(cursor), cursor.delivered)
            for (steps, batch), cursor in zip(places, self.after, strict=True)
        ]

    def look_up(self, stage: Stage, batches: range, rank: int, world: int) -> tuple[Ints, Fragments, int]:
        """``(run, pieces, rows)`` of ``rank``'s rows in ``batches``, which come next."""
        first = (np.arange(len(batches)) * world + rank) * stage.rows
        own = (first[:, None] + np.arange(stage.rows)).ravel()
        stops = np.arange(1, len(batches) + 1) * world * stage.rows
        self.before = self.packer.cursor
        run, pieces, self.after = self.packer.read(own, stops, stage.length)
        return run, pieces, len(own)


# -- over a store -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DocumentWindows:
    """The windows of ``documents``, ``size`` of these in each, and fewer in the last one of a pass."""

    documents: Documents
    lead: int = 0

    size: ClassVar[int] = 1024

    @property
    def in_pass(self) -> int:
        return -(-self.documents.count // self.size)

    @property
    def end(self) -> int | None:
        """Windows of the whole run; None: there is no end."""
        return None if self.documents.end is None else self.documents.end // self.documents.count * self.in_pass

    @property
    def tokens(self) -> int:
        """In a window, on average."""
        return max(1, self.documents.num_tokens // self.documents.parts // self.in_pass)

    def first(self, number: int) -> int:
        """The first document of a window."""
        epoch, number = divmod(number, self.in_pass)
        return epoch * self.documents.count + number * self.size

    def fragments(self, number: int) -> Fragments:
        """The documents of a window."""
        places, sizes = self.documents.opened(self.first(number), self.first(number + 1))
        return Fragments(places, sizes, places + sizes)

    def pack(self, number: int, fragments: Fragments, length: int) -> Rows:
        """What there is yet of a window, packed."""
        key = (self.documents.seed, *divmod(number, self.in_pass)) if self.documents.shuffle else None
        return pack(fragments, length, room_of(length, self.lead), key)

    def counted(self, numbers: range, length: int) -> tuple[Ints, Ints]:
        """``(rows, tokens)`` of windows, int64 (windows,)."""
        if not self.worth(len(numbers), length):
            packed = [self.pack(number, self.fragments(number), length) for number in numbers]
            both = np.array([(one.count, one.tokens(one.count)) for one in packed], np.int64).reshape(-1, 2)
            return both[:, 0], both[:, 1]
        found = []
        for start in range(numbers.start, numbers.stop, _TOGETHER):
            some = range(start, min(start + _TOGETHER, numbers.stop))
            firsts = [self.first(number) for number in range(some.start, some.stop + 1)]
            _, sizes = self.documents.opened(firsts[0], firsts[-1])
            counts = np.diff(firsts)
            table = np.zeros((len(some), self.size), np.int64)
            table[np.arange(self.size) < counts[:, None]] = sizes
            found.append((count_rows(table, room_of(length, self.lead)), table.sum(axis=1)))
        rows, tokens = (np.concatenate(part) for part in zip(*found, strict=True))
        return rows, tokens

    def worth(self, windows: int, length: int) -> bool:
        """Whether so many windows are counted sooner together than packed one by one."""
        return windows * _WORTH > length


class StorePacker(Packer):
    """Windows that nobody looks at are counted, many at a time."""

    windows: DocumentWindows

    def __init__(self, windows: DocumentWindows, at: Packed) -> None:
        self._counted = (0, 0, *(np.zeros(1, np.int64),) * 2)
        super().__init__(windows, at)

    def begun(self) -> int:
        """Documents of which there are tokens in the rows before."""
        first = self.windows.first(self.window)
        if self._rows is None:
            return first
        whole, left = self.windows.fragments(self.window), self._rows.after(self._taken)
        untouched = np.isin(left.places, whole.places) & (left.places + left.sizes == left.ends)
        return first + len(whole.places) - int(np.count_nonzero(untouched))

    def tokens_left(self) -> int:
        """Tokens of the data that are not delivered yet. Only where it ends."""
        documents = self.windows.documents
        assert documents.end is not None
        return documents.end // documents.count * documents.num_tokens - self.delivered

    def rows_left(self, length: int, wanted: int) -> int:
        """Rows of ``length`` that there are yet, or any number from ``wanted`` on."""
        end = self.windows.end
        if end is None or self.tokens_left() > (wanted - 1) * room_of(length, self.windows.lead):
            return wanted
        here = 0 if self._rows is None else self._open(length).count - self._taken
        numbers = range(self.window + (self._rows is not None), end)
        rows, _ = self._known(numbers.start, length)
        if len(rows) <= len(numbers):
            rows, _ = self._count(numbers, length)
        return int(here + rows[-1])

    def _pass_windows(self, count: int, length: int, ahead: int) -> int:
        windows, room = self.windows, room_of(length, self.windows.lead)
        if count * room < windows.tokens:  # there is hardly one
            return 0
        rows, tokens = self._known(self.window, length)
        if rows[-1] <= count:
            many = min(-(-ahead * room // windows.tokens), _TOGETHER)
            many = many if windows.end is None else min(many, windows.end - self.window)
            if not windows.worth(many, length):
                return 0
            rows, tokens = self._count(range(self.window, self.window + many), length)
        whole = int(np.searchsorted(rows, count, side="right")) - 1
        self.window += whole
        self.delivered += int(tokens[whole])
        return int(rows[whole])

    def _count(self, numbers: range, length: int) -> tuple[Ints, Ints]:
        """Rows and tokens in all of ``numbers`` before each of them, and in all. They stay known."""
        rows, tokens = (np.append(0, np.cumsum(part)) for part in self.windows.counted(numbers, length))
        self._counted = length, numbers.start, rows, tokens
        return rows, tokens

    def _known(self, number: int, length: int) -> tuple[Ints, Ints]:
        """The same of the windows from ``number`` on that were counted last; of none, where it is not one of these."""
        counted, first, rows, tokens = self._counted
        there = slice(number - first, None) if counted == length and first <= number < first + len(rows) else slice(0, 1)
        return rows[there] - rows[there][0], tokens[there] - tokens[there][0]


class StoreReader(Reader):
    packer: StorePacker


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of ``plan`` that are packed from ``windows`` of a store."""

    windows: DocumentWindows
    plan: SequenceLengthPlan | ShardPlan

    found_by_step: ClassVar[bool] = True
    begin: ClassVar[Position] = Position(cursor=Packed(), tokens=0)

    def __post_init__(self) -> None:
        room_of(self.plan.stage_at(0).length, self.windows.lead)

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""
        lead = ", behind bos_id" if self.windows.lead else ""
        return f"mode='pack', windows of {self.windows.size} {self.windows.documents.fingerprint}{lead}"

    def reader(self, at: Position) -> StoreReader:
        """What one iteration looks up rows with, from ``at`` on."""
        return StoreReader(StorePacker(self.windows, at.cursor))

    def limit(self, stage: Stage, batch: int) -> int:
        """The batch up to which rows are looked up at once: windows of all ranks are counted, and there may be many."""
        rows = stage.rows * self.plan.world_size
        return batch + max(1, min(_AT_ONCE, _TOGETHER * self.windows.tokens // stage.length) // rows)

    def enough(self, stage: Stage, batches: range, reader: StoreReader) -> range:
        """As many of ``batches`` as the data suffices for: those of whole steps."""
        return whole_steps(stage, batches, self.plan.world_size, reader.packer.rows_left)

    def skip(self, stage: Stage, batches: range, reader: StoreReader) -> None:
        """Pass over ``batches``, which another worker reads."""
        reader.skip(stage, batches, self.plan.world_size)

    def spans(self, stage: Stage, batches: range, rank: int, look: int, reader: StoreReader) -> Spans:
        """Where ``batches`` lie that are ``rank``'s; with ``look``, where the token after each is too."""
        run, pieces, rows = reader.look_up(stage, batches, rank, self.plan.world_size)
        starts = pieces.places % self.windows.documents.num_tokens
        return rows_of_pieces(run, starts, pieces, stage, rows, self.windows.lead, look)

    def after(self, stage: Stage, batches: range, reader: StoreReader) -> Sequence[Position]:
        """Where the run stands after each of ``batches``, the last that were looked up."""
        return reader.positions(stage, batches)

    def again(self, stage: Stage, batches: range, reader: StoreReader) -> StoreReader:
        """A reader that stands before ``batches``, whose spans were looked up last."""
        return StoreReader(StorePacker(self.windows, reader.before))

    def left(self, reader: StoreReader) -> int:
        return reader.packer.tokens_left()

    # -- saved places -------------------------------------------------------------------------------------------------

    def settle(self, at: Position) -> Position:
        return at

    def seek(self, step: int) -> Position:
        """The beginning of ``step``: the rows of all windows before are counted, and none is read."""
        packer, passed = self.passed(step)
        if passed < step:
            raise StateError(f"the documents end after {passed} steps, and step {step} was asked for")
        return Position(step, 0, packer.cursor, packer.delivered)

    def passed(self, step: int) -> tuple[StorePacker, int]:
        """What has packed all rows before ``step``, and that step; or the one before which the documents end."""
        packer, now = StorePacker(self.windows, Packed()), 0
        while now < step:
            stage = self.plan.stage_at(now)
            stop = step if stage.stop is None else min(step, stage.stop)
            each = stage.rows * stage.grad_accum_steps * self.plan.world_size
            there = min(stop, now + packer.rows_left(stage.length, (stop - now) * each) // each)
            packer.skip((there - now) * each, stage.length, (there - now) * each)
            now = there
            if there < stop:
                break
        return packer, now

    def epoch(self, at: Position) -> int:
        """The pass that the window of the next row is of."""
        return int(at.cursor.window) // self.windows.in_pass

    def rest_at(self, at: Position) -> int | None:
        """None: windows are packed to the end as they are before."""
        return None

    def leftover(self, at: Position) -> int | None:
        """Tokens of the data that are not delivered at ``at``; None: it has no end."""
        return None if self.windows.end is None else self.reader(at).packer.tokens_left()

    def dump(self, at: Position) -> str:
        """The cursor as text."""
        return json.dumps(at.cursor._asdict())

    def load(self, text: Any, at: Position) -> Packed:
        """The cursor that :meth:`dump` wrote. StateError if it cannot be of this run."""
        cursor = read_cursor(text, Packed, self._sound)
        cursor, end = cursor._replace(rows=tuple((length, taken) for length, taken in cursor.rows)), self.windows.end
        if end is not None and cursor.window >= end + (not cursor.rows):
            raise StateError(f"rows of window {cursor.window} are next in the saved state, and this run has {end} windows")
        self._check_tokens(cursor, at)
        StorePacker(self.windows, cursor)  # StateError where a window has not so many rows
        return cursor

    def _sound(self, saved: Packed) -> bool:
        return are_ints([saved.window, saved.delivered]) and are_taken(saved.rows, self.windows.lead)

    def _check_tokens(self, cursor: Packed, at: Position) -> None:
        """Of a part of the documents nobody knows how many tokens it has in a pass."""
        if self.windows.documents.parts > 1:
            return
        num_tokens = self.windows.documents.num_tokens
        first = cursor.window // self.windows.in_pass * num_tokens
        if at.tokens != cursor.delivered or not first <= cursor.delivered < first + num_tokens:
            raise StateError(
                f"tokens must be in [{first}, {first + num_tokens}) where window {cursor.window} is next,"
                f" the saved state has {at.tokens}"
            )
