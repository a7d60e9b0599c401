"""A circle of open documents: the order of a store's rows that hold one document each.

Documents are opened in the store's order, or permuted anew in each epoch. ``num_lanes`` of them are open at a time, one in
each lane; rows are cut from the lanes in turn, and a document that ends makes room for the next one in its lane::

    rows of 4        0       1       2       3       4       5       6
    lane 0           0 0 0 0         0 0 0 0         0 0 . .         3 3 3 3      document 0 has ended, 3 is opened
    lane 1                   1 1 1 1         1 . . .         2 2 2 2              and 2 before it, where 1 has ended

Where no document is left to open, lanes whose own has ended drop out of the circle, so all tokens are delivered. The shape
of a step says nothing about the next one's documents, so what is open at a row is found by cutting all rows before it, of
all ranks; that is a few operations on arrays for each turn of the circle, and no token is read. A :class:`Circle` is such a
place: with it a run goes on at once.

In mode "truncate" a row is the beginning of a document of its own, and row r is document r: there is no circle.

Read next: :mod:`slw_data.batch.reading`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from slw_data.cached import cached
from slw_data.errors import StateError
from slw_data.order.lanes import open_lanes
from slw_data.order.permutation import Ints, permute
from slw_data.order.position import Position, are_ints, read_cursor
from slw_data.order.spans import Spans
from slw_data.plan import SequenceLengthPlan, Stage

__all__ = ["Circle", "Cutter", "DocumentRows", "Documents", "Opened", "Reader", "Truncating", "whole_steps"]

_COUNTS = ("next", "delivered", "discarded")
_AHEAD = 1 << 12  # documents at least that are looked up at once
_PASSES = 4  # and, of a store of few documents, passes
_TOGETHER = 1 << 13  # of these, as many as the lines of the offsets that they touch stay in the cache
_AT_ONCE = 1 << 16  # rows of all ranks at most that are cut at once, if they are more than those of a batch
_SKIPPED = 1 << 16  # documents at most that are looked up at once where no row is looked at


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of a store as they are opened: number ``k`` of the run is number ``k mod count`` of pass ``k // count``.

    Args:
        bounds: int64 (documents + 1,), where documents begin, from 0 to the store's tokens; empty ones are left out.
        shuffle: permute them, anew in each pass.
        seed: of the permutations.
        epochs: passes after which there are no more; None: they go on.
        eos_id: the token that they were found by; None: the store knows them.
        part: of these the documents ``part``, ``part + parts``, ... of each pass, as they are opened.
        parts: how many such parts there are.
    """

    bounds: Ints
    shuffle: bool = False
    seed: int = 0
    epochs: int | None = None
    eos_id: int | None = None
    part: int = 0
    parts: int = 1

    @cached
    def kept(self) -> Ints:
        """``bounds`` without empty documents."""
        kept = np.ones(len(self.bounds), np.bool_)
        kept[1:] = self.bounds[1:] > self.bounds[:-1]
        return self.bounds if kept.all() else self.bounds[kept]

    def shard(self, number: int, num_shards: int) -> Documents:
        """A part of them."""
        part = replace(self, part=number, parts=num_shards)
        vars(part)["kept"] = self.kept  # found once for all
        return part

    @property
    def whole(self) -> int:
        """Documents of all parts."""
        return len(self.kept) - 1

    @property
    def count(self) -> int:
        return -(-(self.whole - self.part) // self.parts)

    @property
    def num_tokens(self) -> int:
        """Of all parts."""
        return int(self.kept[-1])

    @property
    def lanes(self) -> int:
        """How many are open at a time where the user does not say: with ``shuffle`` as many as a store of so many tokens has
        lanes (:func:`slw_data.order.lanes.open_lanes`), or a power of two that documents suffice for."""
        if not self.shuffle:
            return 1
        return min(open_lanes(self.num_tokens, shuffle=True).num_lanes, 1 << (self.count.bit_length() - 1))

    @property
    def fingerprint(self) -> str:
        """What fixes their order, in words."""
        shuffle = f"shuffled with seed {self.seed}" if self.shuffle else "in order"
        return f"documents{'' if self.eos_id is None else f' that end with {self.eos_id}'} {shuffle}"

    @property
    def end(self) -> int | None:
        """Documents of the whole run; None: there is no end."""
        return None if self.epochs is None else self.epochs * self.count

    def opened(self, first: int, stop: int) -> tuple[Ints, Ints]:
        """``(places, sizes)``, int64 (stop - first,): where documents ``first`` to ``stop`` of the run begin, counted over
        the tokens of all passes, and their tokens."""
        places, sizes = np.empty(stop - first, np.int64), np.empty(stop - first, np.int64)
        while first < stop:
            epoch, number = divmod(first, self.count)
            last = min(self.count, number + min(stop - first, _TOGETHER))
            here = slice(len(places) - (stop - first), len(places) - (stop - first) + last - number)
            if self.shuffle or self.parts > 1:
                numbers = np.arange(number, last) * self.parts + self.part
                numbers = permute(numbers, self.whole, (self.seed, epoch)) if self.shuffle else numbers
                starts, ends = self.kept[numbers], self.kept[numbers + 1]
            else:
                starts, ends = self.kept[number:last], self.kept[number + 1 : last + 1]
            places[here], sizes[here] = starts + epoch * self.num_tokens, ends - starts
            first += last - number
        return places, sizes

    def left(self, places: Ints) -> Ints:
        """How many tokens a document has from each of ``places`` on."""
        starts = places % self.num_tokens
        left: Ints = self.kept[np.searchsorted(self.kept, starts, side="right")] - starts
        return left


@dataclass(frozen=True, eq=False)
class Circle:
    """What is open before ``row`` of the run: document ``next`` is the next to open, and ``places``, int64 (lanes,), are those
    of the next token of each lane, from the lane of that row on; -1 where a lane has none yet, or its document has ended."""

    row: int = 0
    next: int = 0
    places: Ints = field(default_factory=lambda: np.empty(0, np.int64))


class Opened(NamedTuple):
    """A cursor: document ``next`` is the next to open, so many tokens of all ranks are delivered and discarded, and ``circle``
    is a place there or a little before."""

    next: int = 0
    delivered: int = 0
    discarded: int = 0
    circle: Circle = Circle()


class Cut(NamedTuple):
    """Rows of all ranks: where each begins, how many tokens its document has from there on, and whether it opens the document.
    Shape (rows,); int64, int64, bool."""

    places: Ints
    left: Ints
    opens: npt.NDArray[np.bool_]


class Cutter:
    """Cuts rows one after the other, from a cursor on. It belongs to one iteration."""

    def __init__(self, documents: Documents, num_lanes: int, at: Circle) -> None:
        self.documents = documents
        self.row, self.next = at.row, at.next
        self.delivered = self.discarded = 0  # tokens
        self._places = at.places.copy() if len(at.places) else np.full(num_lanes, -1, np.int64)
        self._left = np.where(self._places < 0, 0, documents.left(np.maximum(self._places, 0)))
        self._turn = 0
        self._ahead = (at.next, *(np.empty(0, np.int64),) * 2)

    @property
    def circle(self) -> Circle:
        """Without lanes for which no document is left: how far ahead it was looked for them does not show."""
        places = np.roll(np.where(self._left, self._places, -1), -self._turn)
        if self.documents.end is not None:
            places = np.delete(places, np.flatnonzero(places < 0)[self.documents.end - self.next :])
        return Circle(self.row, self.next, places)

    def tokens_left(self) -> int:
        """Tokens of the data that are not cut yet. Only where it ends."""
        assert self.documents.end is not None
        return int(self._left.sum()) + int(self._open(self.documents.end - self.next, keep=True)[1].sum())

    def rows_left(self, length: int, wanted: int) -> int:
        """Rows that can be cut yet, or any number above ``wanted``."""
        end = self.documents.end
        if end is None or end - self.next >= wanted:
            return wanted
        _, sizes = self._open(end - self.next, keep=True)
        return int((-(-self._left // length)).sum() - (-sizes // length).sum())

    def cut(self, count: int, length: int) -> Cut:
        """The next ``count`` rows. There must be so many."""
        places, left, opens = np.empty(count, np.int64), np.empty(count, np.int64), np.zeros(count, np.bool_)
        done = 0
        while done < count:
            if len(self._places) == 1:
                done += self._cut_in_line(places[done:], left[done:], opens[done:], length)
                continue
            lanes, empty, _ = self._next_lanes(count - done)
            rows = slice(done, done + lanes.stop - lanes.start)
            places[rows], left[rows], opens[rows][empty] = self._places[lanes], self._left[lanes], True
            self._take(lanes, length)
            done = rows.stop
        self.row += count
        self.delivered += int(np.minimum(left, length).sum())
        return Cut(places, left, opens)

    def skip(self, count: int, length: int) -> None:
        """Cut ``count`` rows that nobody looks at: as :meth:`cut`, but nothing is written down of a row."""
        held, opened = int(self._left.sum()), 0
        self.row += count
        while count:
            if len(self._places) == 1:
                rows, tokens = self._skip_in_line(count, length)
            else:
                lanes, _, tokens = self._next_lanes(count)
                rows = lanes.stop - lanes.start
                self._take(lanes, length)
            count, opened = count - rows, opened + tokens
        self.delivered += held + opened - int(self._left.sum())

    def _skip_in_line(self, count: int, length: int) -> tuple[int, int]:
        """``(rows, tokens)``: of a single lane, some rows of those that are wanted, and the tokens of what was opened."""
        if self._left[0]:
            rows = min(count, -(-int(self._left[0]) // length))
            self._places += rows * length
            self._left[:] = max(0, int(self._left[0]) - rows * length)
            return rows, 0
        places, sizes = self._open(min(count, _SKIPPED), keep=True)
        ends = np.cumsum(-(-sizes // length))
        whole = int(np.searchsorted(ends, count, side="right"))  # documents that are cut up
        if whole:
            self.next += whole
            return int(ends[whole - 1]), int(sizes[:whole].sum())
        self._places, self._left = places[:1].copy(), sizes[:1].copy()
        self.next += 1
        return 0, int(sizes[0])

    def _cut_in_line(self, places: Ints, left: Ints, opens: npt.NDArray[np.bool_], length: int) -> int:
        """Of a single lane, the rows of several documents at once, as many as are looked up together: how many rows.

        A document of 10 tokens gives 3 rows of 4. Of documents of 10, 3 and 5 these are rows 0 to 2, 3, 4 to 5: the running
        sum of 3, 1 and 2 says where each document's end, and a row's number in its document says where it begins in it.
        """
        wanted = len(places)
        if not self._left[0]:
            starts, sizes = self._open(min(wanted, _AHEAD), keep=True)
        else:
            starts, sizes = self._places.copy(), self._left.copy()
        rows = -(-sizes // length)
        ends = np.cumsum(rows)
        used = int(np.searchsorted(ends, wanted)) + 1  # documents that are begun
        count = min(wanted, int(ends[-1]))
        document = np.repeat(np.arange(len(rows[:used])), rows[:used])[:count]
        behind = (np.arange(count) - (ends - rows)[document]) * length
        places[:count], left[:count] = starts[document] + behind, sizes[document] - behind
        if not self._left[0]:
            opens[:count] = behind == 0
            self.next += len(rows[:used])
        self._places[0], self._left[0] = places[count - 1] + length, max(0, int(left[count - 1]) - length)
        return count

    def _next_lanes(self, most: int) -> tuple[slice, Ints, int]:
        """``(lanes, empty, tokens)``: whose turn it is, ``most`` of them at most, all with a document now; which of them were
        empty before; and the tokens of what was opened."""
        while True:
            lanes = slice(self._turn, min(self._turn + most, len(self._places)))
            empty = np.flatnonzero(self._left[lanes] == 0)
            if not empty.size:
                return lanes, empty, 0
            if self.documents.end is None or empty.size <= self.documents.end - self.next:
                self._places[lanes][empty], sizes = self._open(empty.size)
                self._left[lanes][empty] = sizes
                return lanes, empty, int(sizes.sum())
            self._drop_empty(self.documents.end - self.next)

    def _drop_empty(self, documents: int) -> None:
        """Leave out the lanes that are empty, but for those of the last ``documents``. The first is then the next row's."""
        held, places = np.roll(self._left, -self._turn), np.roll(self._places, -self._turn)
        kept = held > 0
        kept[np.flatnonzero(~kept)[:documents]] = True
        self._places, self._left, self._turn = places[kept], held[kept], 0

    def _take(self, lanes: slice, length: int) -> None:
        """A row of each of ``lanes``. Where a document ends, its place no longer matters."""
        self._turn = lanes.stop % len(self._places)
        self._places[lanes] += length
        left = self._left[lanes]
        left -= length
        np.maximum(left, 0, out=left)

    def _open(self, count: int, *, keep: bool = False) -> tuple[Ints, Ints]:
        """``(places, sizes)`` of the next ``count`` documents, or of those that there are. ``keep``: they stay to be opened."""
        end = self.documents.end
        stop = self.next + count if end is None else min(self.next + count, end)
        first, places, sizes = self._ahead
        if stop > first + len(places) and (end is None or self.next < end):
            last = max(stop, self.next + min(_AHEAD, _PASSES * self.documents.count))
            places, sizes = self.documents.opened(self.next, last if end is None else min(last, end))
            first, self._ahead = self.next, (self.next, places, sizes)
        here = slice(self.next - first, stop - first)
        if not keep:
            self.next = stop
        return places[here], sizes[here]


class Truncating(Cutter):
    """Row r is document r."""

    @property
    def circle(self) -> Circle:
        return Circle(self.row, self.next)

    def cut(self, count: int, length: int) -> Cut:
        places, sizes = self._open(count)
        self.row += count
        self._count(sizes, length)
        return Cut(places, sizes, np.ones(count, np.bool_))

    def skip(self, count: int, length: int) -> None:
        """Cut ``count`` rows that nobody looks at. Of a pass that is skipped as a whole the order does not matter."""
        whole = self.documents.count
        while count:
            some = min(count, whole - self.next % whole)
            if some == whole:
                self._count(np.diff(self.documents.kept), length)
                self.row, self.next = self.row + some, self.next + some
            else:
                some = min(some, _SKIPPED)
                self.cut(some, length)
            count -= some

    def rows_left(self, length: int, wanted: int) -> int:
        end = self.documents.end
        return wanted if end is None else min(wanted, end - self.next)

    def _count(self, sizes: Ints, length: int) -> None:
        taken = int(np.minimum(sizes, length).sum())
        self.delivered += taken
        self.discarded += int(sizes.sum()) - taken


class Reader:
    """Where one iteration stands; ``before`` the batches that were looked up last, and ``after`` each of them."""

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self.before = self.opened
        self.after: list[Opened] = []

    @property
    def opened(self) -> Opened:
        cutter = self.cutter
        return Opened(cutter.next, cutter.delivered, cutter.discarded, cutter.circle)


def whole_steps(stage: Stage, batches: range, world_size: int, rows_left: Callable[[int, int], int]) -> range:
    """As many of ``batches`` as there are rows for: those of whole steps. ``rows_left(length, wanted)``: how many rows of a
    length there are yet, or any number from ``wanted`` on."""
    each, accumulated = stage.rows * world_size, stage.grad_accum_steps
    begun = batches.start % accumulated
    wanted = (-(-batches.stop // accumulated) * accumulated - batches.start) * each
    left = rows_left(stage.length, wanted)
    if left >= wanted:
        return batches
    steps = (left // each + begun) // accumulated
    return range(batches.start, max(batches.start, min(batches.stop, batches.start - begun + steps * accumulated)))


def _sound(saved: Mapping[str, Any]) -> bool:
    lanes = saved["lanes"]
    return set(saved) == {*_COUNTS, "lanes"} and are_ints(saved[name] for name in _COUNTS) and are_ints(lanes, at_least=-1)


@dataclass(frozen=True, eq=False)
class DocumentRows:
    """Rows of ``plan`` that hold one document each. ``mode``: "segment", or "truncate", where ``preserve_eos`` keeps a
    document's last token as its row's last."""

    documents: Documents
    plan: SequenceLengthPlan
    num_lanes: int = 1
    mode: str = "segment"
    preserve_eos: bool = False

    found_by_step: ClassVar[bool] = True

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""
        lanes = "" if self.mode == "truncate" else f", num_lanes={self.num_lanes}"
        return f"mode={self.mode!r}, preserve_eos={self.preserve_eos}, {self.documents.fingerprint}{lanes}"

    @property
    def begin(self) -> Position:
        return Position(cursor=Opened(), tokens=0)

    def reader(self, at: Position) -> Reader:
        """What one iteration looks up rows with, from ``at`` on."""
        opened: Opened = at.cursor
        kind = Truncating if self.mode == "truncate" else Cutter
        cutter = kind(self.documents, self.num_lanes, opened.circle)
        self._skip(cutter, at)
        if opened.circle.row:
            cutter.delivered, cutter.discarded = opened.delivered, opened.discarded
        return Reader(cutter)

    def settle(self, at: Position) -> Position:
        """``at`` with a circle of its own row."""
        opened = self.reader(at).opened
        return at._replace(cursor=opened, tokens=opened.delivered)

    def seek(self, step: int) -> Position:
        """The beginning of ``step``: all rows before it are cut, and none is read."""
        return self.settle(self.begin._replace(step=step))

    def epoch(self, at: Position) -> int:
        """The pass that the next document to open is of."""
        return int(at.cursor.next) // self.documents.count

    def rest_at(self, at: Position) -> int | None:
        """None: a circle that has shrunk at the end of the data says so itself."""
        return None

    def limit(self, stage: Stage, batch: int) -> int:
        """The batch up to which rows are looked up at once: those of all ranks are cut, and there may be many."""
        return batch + max(1, _AT_ONCE // (stage.rows * self.plan.world_size))

    def leftover(self, at: Position) -> int | None:
        """Tokens of the data that are neither delivered nor discarded at ``at``; None: it has no end."""
        if self.documents.epochs is None:
            return None
        return self.documents.epochs * self.documents.num_tokens - int(at.cursor.delivered) - int(at.cursor.discarded)

    def enough(self, stage: Stage, batches: range, reader: Reader) -> range:
        """As many of ``batches`` as the data suffices for: those of whole steps."""
        return whole_steps(stage, batches, self.plan.world_size, reader.cutter.rows_left)

    def skip(self, stage: Stage, batches: range, reader: Reader) -> None:
        """Pass over ``batches``, which another worker reads."""
        reader.cutter.skip(len(batches) * stage.rows * self.plan.world_size, stage.length)

    def spans(self, stage: Stage, batches: range, rank: int, look: int, reader: Reader) -> Spans:
        """Where ``batches`` lie that are ``rank``'s, and ``look`` tokens after each row, where its document has some."""
        length, shape = stage.length, (len(batches), self.plan.world_size, stage.rows)
        reader.before = reader.opened
        cut = reader.cutter.cut(shape[0] * shape[1] * shape[2], length)
        reader.after = self._after(reader.before, cut, len(batches), length)
        starts = cut.places.reshape(shape)[:, rank].ravel() % self.documents.num_tokens
        left = cut.left.reshape(shape)[:, rank].ravel()
        run, width = np.arange(len(starts)), length + look
        if not self.preserve_eos:
            sizes = np.minimum(left, width)
            return Spans(len(starts), width, look, starts, sizes, run)
        sizes, long = np.minimum(left, length), np.flatnonzero(left > length)
        sizes[long] -= 1
        run, starts = np.concatenate([run, long]), np.concatenate([starts, starts[long] + left[long] - 1])
        sizes = np.concatenate([sizes, np.ones(len(long), np.int64)])
        order = np.argsort(run, kind="stable")
        order = order[sizes[order] > 0]  # a row of one token has nothing but the last
        return Spans(shape[0] * shape[2], width, look, starts[order], sizes[order], run[order])

    def again(self, stage: Stage, batches: range, reader: Reader) -> Reader:
        """A reader that stands before ``batches``, whose spans were looked up last."""
        steps, batch = divmod(batches.start, stage.grad_accum_steps)
        return self.reader(Position(stage.start + steps, batch, reader.before))

    def left(self, reader: Reader) -> int:
        return reader.cutter.tokens_left()

    def after(self, stage: Stage, batches: range, reader: Reader) -> list[Position]:
        """Where the run stands after each of ``batches``, the last that were looked up."""
        places = (divmod(batch + 1, stage.grad_accum_steps) for batch in batches)
        return [
            Position(stage.start + steps, batch, opened, opened.delivered)
            for (steps, batch), opened in zip(places, reader.after, strict=True)
        ]

    def _after(self, before: Opened, cut: Cut, batches: int, length: int) -> list[Opened]:
        """The cursor after each of ``batches``."""
        opens = np.cumsum(cut.opens.reshape(batches, -1).sum(1)) + before.next
        delivered = np.cumsum(np.minimum(cut.left, length).reshape(batches, -1).sum(1)) + before.delivered
        discarded = np.full(batches, before.discarded)
        if self.mode == "truncate":
            discarded += np.cumsum(np.maximum(cut.left - length, 0).reshape(batches, -1).sum(1))
        counts = zip(opens.tolist(), delivered.tolist(), discarded.tolist(), strict=True)
        return [Opened(*count, before.circle) for count in counts]

    def _skip(self, cutter: Cutter, at: Position) -> None:
        """Cut all rows before ``at``."""
        plan, row = self.plan, self.row(at)
        step = bisect_right(range(at.step + 1), cutter.row, key=plan.rows_before) - 1
        while cutter.row < row:
            stage = plan.stage_at(step)
            each = stage.rows * stage.grad_accum_steps * plan.world_size
            stop = row if stage.stop is None else min(row, stage.rows_before + (stage.stop - stage.start) * each)
            left = cutter.rows_left(stage.length, stop - cutter.row)
            if left < stop - cutter.row:
                done = step + (left // each)
                raise StateError(f"the documents end after {done} steps, and step {at.step} was asked for")
            cutter.skip(stop - cutter.row, stage.length)
            step = at.step if stage.stop is None else stage.stop

    def row(self, at: Position) -> int:
        """Rows of the run before ``at``."""
        return self.plan.rows_before(at.step) + (at.batch * self.plan.rows(at.step) * self.plan.world_size if at.batch else 0)

    # -- saved places -------------------------------------------------------------------------------------------------

    def dump(self, at: Position) -> str:
        """The cursor of a settled position as text."""
        opened: Opened = at.cursor
        places = opened.circle.places.tolist()
        return json.dumps({"next": opened.next, "delivered": opened.delivered, "discarded": opened.discarded, "lanes": places})

    def load(self, text: Any, at: Position) -> Opened:
        """The cursor that :meth:`dump` wrote. StateError if it cannot be of this run."""
        saved = read_cursor(text, dict, _sound)
        lanes, counts = saved["lanes"], [saved[name] for name in _COUNTS]
        self._check(counts[0], lanes)
        opened, delivered, discarded = counts
        return Opened(opened, delivered, discarded, Circle(self.row(at), opened, np.array(lanes, np.int64)))

    def _check(self, opened: int, lanes: list[int]) -> None:
        end = self.documents.end
        if end is not None and opened > end:
            raise StateError(f"{opened} documents are open in the saved state, and this run has {end}")
        if self.mode == "truncate":
            if lanes:
                raise StateError(f"mode 'truncate' has no lanes, and the saved state has {len(lanes)}")
            return
        beyond = max(1, -(-opened // self.documents.count)) * self.documents.num_tokens
        if not all(-1 <= place < beyond for place in lanes):
            raise StateError(f"places in lanes must be below {beyond}, got {max(lanes)} and {min(lanes)} in the saved state")
        shrunk = end is not None and end - opened < self.num_lanes >= len(lanes)
        if len(lanes) != self.num_lanes and not shrunk and (opened or lanes):
            raise StateError(f"stream has {len(lanes)} lanes in the saved state, this run has num_lanes={self.num_lanes}")
