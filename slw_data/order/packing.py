"""Packing: rows that hold several whole documents (best-fit packing, Ding et al., arXiv 2404.10830).

Documents are taken in *windows* of some hundred, and a window is packed for the row length of the step. A document longer
than a row is cut into full rows and a rest; then rests and whole documents go into rows one by one, the longest first, each
into the row where it leaves least room. So nothing that fits into a row is ever cut::

    rows of 8, documents of 19, 5, 3, 3, 2      [0 0 0 0 0 0 0 0] [0 0 0 0 0 0 0 0] [0 0 0 1 1 1 1 1] [2 2 2 3 3 3 4 4]

Where the length changes within a window, what is left of it is packed anew: pieces of a document that are still neighbours
are joined first. So a place in a run is the number of its window and the rows that were delivered of it at each length
(:class:`Packed`), and the rows of a window that nobody looks at are only counted.

Read next: :mod:`slw_data.batch.reading`.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from slw_data.arguments import shown
from slw_data.cached import cached
from slw_data.errors import ScheduleError, StateError
from slw_data.order.circle import Documents, whole_steps
from slw_data.order.permutation import Ints, permute
from slw_data.order.position import Position
from slw_data.order.spans import Spans
from slw_data.plan import SequenceLengthPlan, Stage

__all__ = ["DocumentWindows", "Fragments", "Packed", "PackedRows", "Packer", "Rows", "count_rows", "pack"]

_TOGETHER = 1024  # windows at most that are counted at once: what they need stays in the cache
_AT_ONCE = 1 << 22  # rows of all ranks at most that are gone through at once
_WORTH = 16  # going through so many sizes for all windows costs about as much as packing one


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


@dataclass(frozen=True, eq=False)
class DocumentWindows:
    """The windows of ``documents``, ``size`` of these in each, and fewer in the last one of a pass. ``lead``: tokens at the
    beginning of each row that are not the documents'."""

    documents: Documents
    lead: int = 0

    size: ClassVar[int] = 1024

    def room(self, length: int) -> int:
        """Tokens of documents in a row."""
        if length <= self.lead:
            raise ScheduleError(f"bos_id is the first token of each row, so rows need length >= 2, got a length of {length}")
        return length - self.lead

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
        return max(1, self.documents.num_tokens // self.in_pass)

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
        return pack(fragments, length, self.room(length), key)

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
            found.append((count_rows(table, self.room(length)), table.sum(axis=1)))
        rows, tokens = (np.concatenate(part) for part in zip(*found, strict=True))
        return rows, tokens

    def worth(self, windows: int, length: int) -> bool:
        """Whether so many windows are counted sooner together than packed one by one."""
        return windows * _WORTH > length


class Packed(NamedTuple):
    """A cursor: of window ``window`` so many rows are delivered at each length, ``((length, rows), ...)``; then comes the
    next row of it."""

    window: int = 0
    rows: tuple[tuple[int, int], ...] = ()

    @property
    def discarded(self) -> int:
        return 0


# -- rows one after the other -----------------------------------------------------------------------------------------


class Packer:
    """Goes from row to row, from a cursor on. It belongs to one iteration. ``delivered``: tokens of all rows before."""

    def __init__(self, windows: DocumentWindows, at: Packed, delivered: int) -> None:
        self._windows, self.window, self.delivered = windows, at.window, delivered
        self._start_window()
        self._counted = (0, 0, *(np.zeros(1, np.int64),) * 2)
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
        return Packed(self.window) if self._rows is None else self._at(self._rows, self._taken)

    def begun(self) -> int:
        """Documents of which there are tokens in the rows before."""
        first = self._windows.first(self.window)
        if self._rows is None:
            return first
        whole, left = self._windows.fragments(self.window), self._rows.after(self._taken)
        untouched = np.isin(left.places, whole.places) & (left.places + left.sizes == left.ends)
        return first + len(whole.places) - int(np.count_nonzero(untouched))

    def tokens_left(self) -> int:
        """Tokens of the data that are not delivered yet. Only where it ends."""
        documents = self._windows.documents
        assert documents.end is not None
        return documents.end // documents.count * documents.num_tokens - self.delivered

    def rows_left(self, length: int, wanted: int) -> int:
        """Rows of ``length`` that there are yet, or any number from ``wanted`` on."""
        end = self._windows.end
        if end is None or self.tokens_left() > (wanted - 1) * self._windows.room(length):
            return wanted
        here = 0 if self._rows is None else self._open(length).count - self._taken
        numbers = range(self.window + (self._rows is not None), end)
        rows, _ = self._known(numbers.start, length)
        if len(rows) <= len(numbers):
            rows, _ = self._count(numbers, length)
        return int(here + rows[-1])

    def skip(self, count: int, length: int, ahead: int) -> None:
        """Pass over ``count`` rows. ``ahead``: so many are wanted soon, these among them."""
        while count:
            passed = self._pass_windows(count, length, ahead) if self._rows is None else 0
            if not passed:
                passed = min(count, self._open(length).count - self._taken)
                self._pass_rows(passed)
            count, ahead = count - passed, ahead - passed

    def read(self, own: Ints, stops: Ints, length: int) -> tuple[Ints, Fragments, list[tuple[Packed, int]]]:
        """``(run, pieces, after)`` of the next ``stops[-1]`` rows: the pieces of rows ``own`` of these, ascending, and for each
        the number of its row in ``own``; and the cursor and the delivered tokens after each of ``stops`` rows, ascending."""
        found: list[tuple[Ints, ...]] = []
        after: list[tuple[Packed, int]] = []
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
                after.append((self._at(rows, taken), self.delivered + rows.tokens(taken) - rows.tokens(self._taken)))
            self._pass_rows(stop - done)
            done = stop
        run, *values = (np.concatenate(part) for part in zip(*found, strict=True))
        return run, Fragments(*values), after

    def _at(self, rows: Rows, taken: int) -> Packed:
        """The cursor once ``taken`` rows of this window are delivered at this length."""
        if taken == rows.count:
            return Packed(self.window + 1)
        return Packed(self.window, (*self._before, (rows.length, taken)) if taken else self._before)

    def _open(self, length: int) -> Rows:
        """This window, packed for ``length``."""
        rows = self._rows
        if rows is None:
            rows = self._windows.pack(self.window, self._windows.fragments(self.window), length)
        elif rows.length != length:
            self._before = self._at(rows, self._taken).rows
            rows = self._windows.pack(self.window, rows.after(self._taken), length)
            self._taken = 0
        self._rows = rows
        return rows

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
        """Pass over whole windows of ``count`` rows: how many rows these have."""
        windows, room = self._windows, self._windows.room(length)
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
        rows, tokens = (np.append(0, np.cumsum(part)) for part in self._windows.counted(numbers, length))
        self._counted = length, numbers.start, rows, tokens
        return rows, tokens

    def _known(self, number: int, length: int) -> tuple[Ints, Ints]:
        """The same of the windows from ``number`` on that were counted last; of none, where it is not one of these."""
        counted, first, rows, tokens = self._counted
        there = slice(number - first, None) if counted == length and first <= number < first + len(rows) else slice(0, 1)
        return rows[there] - rows[there][0], tokens[there] - tokens[there][0]


class Reader:
    """Where one iteration stands; ``before`` the batches that were looked up last, and ``after`` each of them."""

    def __init__(self, packer: Packer) -> None:
        self.packer = packer
        self.before = packer.cursor, packer.delivered
        self.after: list[tuple[Packed, int]] = []


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Rows of ``plan`` that are packed from ``windows``."""

    windows: DocumentWindows
    plan: SequenceLengthPlan

    found_by_step: ClassVar[bool] = True
    begin: ClassVar[Position] = Position(cursor=Packed(), tokens=0)

    def __post_init__(self) -> None:
        self.windows.room(self.plan.length(0))

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""
        lead = ", behind bos_id" if self.windows.lead else ""
        return f"mode='pack', windows of {self.windows.size} {self.windows.documents.fingerprint}{lead}"

    def reader(self, at: Position) -> Reader:
        """What one iteration looks up rows with, from ``at`` on."""
        return Reader(Packer(self.windows, at.cursor, at.tokens or 0))

    def limit(self, stage: Stage, batch: int) -> int:
        """The batch up to which rows are looked up at once: windows of all ranks are counted, and there may be many."""
        rows = stage.rows * self.plan.world_size
        return batch + max(1, min(_AT_ONCE, _TOGETHER * self.windows.tokens // stage.length) // rows)

    def enough(self, stage: Stage, batches: range, reader: Reader) -> range:
        """As many of ``batches`` as the data suffices for: those of whole steps."""
        return whole_steps(stage, batches, self.plan.world_size, reader.packer.rows_left)

    def skip(self, stage: Stage, batches: range, reader: Reader) -> None:
        """Pass over ``batches``, which another worker reads."""
        rows = len(batches) * stage.rows * self.plan.world_size
        reader.packer.skip(rows, stage.length, rows)

    def spans(self, stage: Stage, batches: range, rank: int, look: int, reader: Reader) -> Spans:
        """Where ``batches`` lie that are ``rank``'s; with ``look``, where the token after each is too."""
        world, packer = self.plan.world_size, reader.packer
        first = (np.arange(len(batches)) * world + rank) * stage.rows
        own = (first[:, None] + np.arange(stage.rows)).ravel()
        reader.before = packer.cursor, packer.delivered
        run, pieces, reader.after = packer.read(own, np.arange(1, len(batches) + 1) * world * stage.rows, stage.length)
        starts, sizes = pieces.places % self.windows.documents.num_tokens, pieces.sizes
        before = np.cumsum(sizes) - sizes
        firsts = np.searchsorted(run, run)  # for each piece the first one of its row
        at = before - before[firsts] + self.windows.lead
        after = None
        if look:
            follows = pieces.ends > pieces.places + sizes
            begins = (firsts == np.arange(len(run))) & (self.windows.lead > 0)  # its first token comes after bos_id
            lengths = sizes - 1 + follows + begins
            some = np.flatnonzero(lengths)
            spans = (starts + 1 - begins, lengths, run, at - begins)
            starts_, lengths, run_, at_ = (values[some] for values in spans)
            after = Spans(len(own), stage.length, 0, starts_, lengths, run_, at=at_)
        return Spans(len(own), stage.length, 0, starts, sizes, run, at=at, after=after)

    def after(self, stage: Stage, batches: range, reader: Reader) -> list[Position]:
        """Where the run stands after each of ``batches``, the last that were looked up."""
        places = (divmod(batch + 1, stage.grad_accum_steps) for batch in batches)
        return [
            Position(stage.start + steps, batch, *after)
            for (steps, batch), after in zip(places, reader.after, strict=True)
        ]

    def again(self, stage: Stage, batches: range, reader: Reader) -> Reader:
        """A reader that stands before ``batches``, whose spans were looked up last."""
        return Reader(Packer(self.windows, *reader.before))

    def left(self, reader: Reader) -> int:
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

    def passed(self, step: int) -> tuple[Packer, int]:
        """What has packed all rows before ``step``, and that step; or the one before which the documents end."""
        packer, now = Packer(self.windows, Packed(), 0), 0
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
        return json.dumps({"window": at.cursor.window, "rows": at.cursor.rows})

    def load(self, text: Any, at: Position) -> Packed:
        """The cursor that :meth:`dump` wrote. StateError if it cannot be of this run."""
        try:
            values = json.loads(text)
            window, rows = values.pop("window"), [tuple(pair) for pair in values.pop("rows")]
            numbers = [window + 1, *(number for length, taken in rows for number in (length - self.windows.lead, taken))]
            sound = not values and all(type(number) is int and 0 < number < 1 << 62 for number in numbers)
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise StateError(f"stream must be the JSON that state_dict() wrote, the saved state has {shown(text):.80}")
        cursor, end = Packed(window, tuple(rows)), self.windows.end
        if end is not None and window >= end + (not rows):
            raise StateError(f"rows of window {window} are next in the saved state, and this run has {end} windows")
        epoch, num_tokens = self.epoch(at._replace(cursor=cursor)), self.windows.documents.num_tokens
        first = epoch * num_tokens
        if at.tokens is None or not first <= at.tokens < first + num_tokens:
            raise StateError(
                f"tokens must be in [{first}, {first + num_tokens}) where window {window} is next,"
                f" the saved state has {at.tokens}"
            )
        Packer(self.windows, cursor, at.tokens)  # StateError where a window has not so many rows
        return cursor
