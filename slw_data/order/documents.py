"""The order of a stream: rows cut from documents that are dealt to lanes, step by step.

Every rank and worker deals the whole stream in the same way; only the tokens of its own rows are read, and the rest is
arithmetic on lengths. A step is delivered only if all of its rows can be cut, so all ranks end together.

Shifted labels ask for the token after a row. Where a row ends with its document, that is the first of the lane's next
row, so rows are cut ahead until it is dealt, in the order in which they are cut anyway. Labels change neither the order
nor the end, and a position is that of its step, however far ahead the cutting is.

Read next: :mod:`slw_data.batch.reading`, which reads the spans of the rows.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from slw_data.arguments import shown
from slw_data.errors import StateError
from slw_data.order.dealing import Dealer, Lane, Read, Row, Snapshot, Span
from slw_data.order.position import Position
from slw_data.order.spans import Spans
from slw_data.plan import SequenceLengthPlan, Stage
from slw_data.sources.streams import DocumentStream

__all__ = ["DocumentOrder", "Step", "Steps", "spans_of"]


class Step(NamedTuple):
    """The rows of all ranks and micro-batches (a single one if the step is one run of tokens), and where the stream stands
    before and after them."""

    rows: list[Row]
    before: Snapshot
    after: Snapshot


@dataclass(frozen=True)
class DocumentOrder:
    """Rows of ``plan`` from the documents of ``stream``. ``epochs``: passes over it; None: as many as the plan asks for."""

    stream: DocumentStream
    plan: SequenceLengthPlan
    num_lanes: int = 1
    mode: str = "stream"
    preserve_eos: bool = False
    epochs: int | None = None

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""
        return f"mode={self.mode!r}, preserve_eos={self.preserve_eos}, num_lanes={self.num_lanes}"

    found_by_step: ClassVar[bool] = False
    begin: ClassVar[Position] = Position(cursor=Snapshot())

    @property
    def whole(self) -> bool:
        """Whether all tokens form one sequence, whatever the documents."""
        return self.mode == "stream" and self.num_lanes == 1

    def deal(self, at: Snapshot) -> Dealer:
        return Dealer(self.stream, self.num_lanes, self.whole, self.epochs, at)

    def seek(self, step: int) -> Position:
        """The beginning of ``step``, by reading from the start. StateError if the data ends before it."""
        if step == 0:
            return self.begin
        steps = Steps(self, 0, Snapshot(), None)
        for done in range(step):
            if steps.take() is None:
                raise StateError(f"{self.stream.name} ends after {done} steps, and step {step} was asked for")
        return Position(step, 0, steps.dealer.snapshot(), None if self.mode == "stream" else steps.dealer.delivered)

    def settle(self, at: Position) -> Position:
        return at

    def epoch(self, at: Position) -> int:
        """The pass that the oldest block in use is of."""
        epoch: int = at.cursor.epoch
        return epoch

    def rest_at(self, at: Position) -> int | None:
        return None

    def leftover(self, at: Position) -> int | None:
        """Tokens of the data that are neither delivered nor discarded at ``at``, by reading on to its end."""
        if self.epochs is None:
            return None
        dealer = self.deal(at.cursor)
        while dealer.deal() is not None:
            pass
        return dealer.dealt - int(at.cursor.delivered) - int(at.cursor.discarded)

    def dump(self, at: Position) -> str:
        return json.dumps(at.cursor._asdict())

    def load(self, text: Any, at: Position) -> Snapshot:
        try:
            values = json.loads(text)
            snapshot = Snapshot(**values)
            lanes = tuple(snapshot.lanes)
            numbers = (snapshot.epoch, snapshot.first, snapshot.next, *snapshot[5:], *lanes)
            sound = len(values) == len(snapshot) and all(type(n) is int for n in numbers)
            sound = sound and min(numbers[:6]) >= 0 and max(numbers) < 1 << 62 and len(lanes) % 2 == 0
        except (TypeError, ValueError, RecursionError):
            sound = False
        if not sound:
            raise StateError(f"stream must be the JSON that state_dict() wrote, the saved state has {shown(text):.80}")
        if len(lanes) not in (0, 2 * self.num_lanes):
            raise StateError(f"stream has {len(lanes) // 2} lanes in the saved state, this run has num_lanes={self.num_lanes}")
        return snapshot._replace(lanes=lanes)

    def rows_of(self, stage: Stage, step: Step, batch: int, rank: int) -> tuple[Sequence[Row], int, int]:
        """``(rows, begin, width)`` of a micro-batch: tokens ``begin`` to ``begin + width`` of each of ``rows``."""
        block = batch * self.plan.world_size + rank
        if self.whole:
            width = stage.rows * stage.length
            return step.rows, block * width, width
        return step.rows[block * stage.rows : (block + 1) * stage.rows], 0, stage.length

    def position(self, stage: Stage, step: Step, number: int, batch: int) -> Position:
        """Where the run stands once micro-batch ``batch`` of step ``number`` is delivered."""
        last = batch + 1 == stage.grad_accum_steps
        count = None if last or self.whole else (batch + 1) * self.plan.world_size * stage.rows
        tokens = None
        if self.mode != "stream":
            tokens = step.before.delivered + sum(row.size for row in step.rows[:count])
        return Position(number + 1, 0, step.after, tokens) if last else Position(number, batch + 1, step.before, tokens)

    def awaited(self, stage: Stage, step: Step, batch: int) -> Sequence[Row]:
        """The rows of a micro-batch, over all ranks, whose labels ask for the token after the row."""
        if self.mode != "stream":
            return ()
        if self.whole:
            return step.rows if batch + 1 == stage.grad_accum_steps else ()
        many = self.plan.world_size * stage.rows
        return step.rows[batch * many : (batch + 1) * many]

    # -- cutting ------------------------------------------------------------------------------------------------------

    def cut(self, dealer: Dealer, lane: Lane, width: int) -> Row | None:
        """The next row of a lane; None at the end of the data."""
        if self.mode == "stream":
            return self._cut_joined(dealer, lane, width)
        return self._cut_segment(dealer, lane, width) if self.mode == "segment" else self._cut_truncated(dealer, width)

    def _cut_joined(self, dealer: Dealer, lane: Lane, width: int) -> Row | None:
        """A row of joined documents."""
        held = lane.held
        while held < width:
            span = dealer.deal()
            if span is None:
                return None
            lane.add(span)
            held += span[2] - span[1]
        row = lane.cut(width)
        if row.next is None:
            lane.waiting = row
        return row

    def _cut_segment(self, dealer: Dealer, lane: Lane, width: int) -> Row | None:
        """A row from one document: as much of the begun one as fits. Nothing follows the document's end."""
        if not lane.spans:
            span = dealer.deal()
            if span is None:
                return None
            lane.add(span)
        return lane.cut(min(width, lane.held))

    def _cut_truncated(self, dealer: Dealer, width: int) -> Row | None:
        """A row for each document: its first tokens, or the first and the very last."""
        span = dealer.deal()
        if span is None:
            return None
        read, start, stop = span
        if stop - start <= width:
            return Row([span])
        dealer.discarded += stop - start - width
        if self.preserve_eos:
            return Row([(read, start, start + width - 1), (read, stop - 1, stop)])
        return Row([(read, start, start + width)], (read, start + width, start + width + 1))


class Steps:
    """Steps in their order, from the beginning of ``step``, which is at ``at``: each is cut when it is asked for, or before,
    where a row waits for the token after it.

    Beyond step ``last`` its shape holds on, because a schedule need not be defined where the run has ended. ``left`` is
    then known: the tokens that the end of the data left over.
    """

    def __init__(self, order: DocumentOrder, step: int, at: Snapshot, last: int | None) -> None:
        self.order, self.dealer = order, order.deal(at)
        self.left: int | None = None
        self._cutting = self._cut_all(step, last)
        self._ahead: deque[Step] = deque()

    def take(self) -> Step | None:
        """The next step; None at the end of the data."""
        while not self._ahead and self._cut():
            pass
        return self._ahead.popleft() if self._ahead else None

    def follow(self, rows: Sequence[Row]) -> None:
        """Cut on until the token after each row is known, or known not to be there."""
        for row in rows:
            while row.next is None and self._cut():
                pass

    def _cut(self) -> bool:
        """Cut one more row; False at the end of the data."""
        for step in self._cutting:
            if step is not None:
                self._ahead.append(step)
            return True
        return False

    def _cut_all(self, step: int, last: int | None) -> Iterator[Step | None]:
        """The steps, with the rows of all ranks and micro-batches, as long as the data suffices. None after each row, and
        before an error is raised: what a caller waits for may have been dealt by then."""
        plan, order, dealer = self.order.plan, self.order, self.dealer
        lanes = itertools.islice(itertools.cycle(dealer.lanes), plan.rows_before(step) % order.num_lanes, None)
        before = dealer.snapshot()
        for number in itertools.count(step):
            stage = plan.stage_at(number if last is None else min(number, last))
            count = stage.rows * stage.grad_accum_steps * plan.world_size
            rows: list[Row] = []
            for width in [count * stage.length] if order.whole else [stage.length] * count:
                try:
                    row = order.cut(dealer, next(lanes), width)
                except Exception:
                    yield None
                    raise
                if row is None:
                    self.left = dealer.dealt - before.delivered - before.discarded
                    return
                rows.append(row)
                yield None
            dealer.delivered += sum(row.size for row in rows)
            after = dealer.snapshot()
            yield Step(rows, before, after)
            before = after


def spans_of(cuts: Sequence[tuple[Sequence[Row], int, int]], look: int) -> Spans:
    """The spans of some batches' rows, each batch as :meth:`DocumentOrder.rows_of` gives it: all have one width."""
    found: list[tuple[int, int, int, int]] = []
    sources, numbers = list[Read](), dict[int, int]()
    run = 0
    for rows, begin, width in cuts:
        for row in rows:
            for read, start, stop in _within(row, begin, width + look):
                if id(read) not in numbers:
                    numbers[id(read)] = len(sources)
                    sources.append(read)
                found.append((run, start, stop - start, numbers[id(read)]))
            run += 1
    runs, starts, sizes, source = np.array(found, np.int64).reshape(-1, 4).T
    return Spans(run, cuts[0][2] + look, look, starts, sizes, runs, sources=sources, source=source)


def _within(row: Row, begin: int, width: int) -> Iterator[Span]:
    """Tokens ``begin`` to ``begin + width`` of a row and the one after it, as far as there are any."""
    for read, first, last in row.spans if row.next is None else [*row.spans, row.next]:
        if begin < last - first and width > 0:
            start = first + begin
            stop = min(last, start + width)
            yield read, start, stop
            width -= stop - start
        begin = max(0, begin - (last - first))
