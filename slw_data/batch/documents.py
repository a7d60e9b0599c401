"""Rows of a stream: cut from documents that are dealt to lanes.

Every rank and worker reads the whole stream and deals it the same way; it copies only the tokens of its own rows, and
the rest is arithmetic on lengths. A step is delivered only if all of its rows can be cut, so all ranks end together.

Shifted labels ask for the token after a row. Where a row ends with its document, that is the first of the lane's next
row, so rows are cut ahead until it is dealt, in the order in which they are cut anyway. Labels change neither the order
nor the end, and a position is that of its step, however far ahead the cutting is.

Read next: :mod:`slw_data.batch.building`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slw_data.batch.chunk import Array, Chunk, chunks_from
from slw_data.batch.flat import IGNORE
from slw_data.errors import StateError
from slw_data.order.dealing import Dealer, Lane, Read, Row, Snapshot, Span
from slw_data.plan import SequenceLengthPlan, Stage
from slw_data.sources.ids import bad_id, check_ids
from slw_data.sources.streams import DocumentStream

__all__ = ["MODES", "DocumentRows"]

MODES = ("stream", "segment", "truncate")


class _Step(NamedTuple):
    rows: list[Row]  # of all ranks and micro-batches; a single one if the step is one run of tokens
    before: Snapshot
    after: Snapshot


class _Steps:
    """Steps in their order: each is cut when it is asked for, or before, where a row waits for the token after it."""

    def __init__(self, cutting: Iterator[_Step | None]) -> None:
        self._cutting = cutting
        self._ahead: deque[_Step] = deque()

    def take(self) -> _Step | None:
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


@dataclass
class DocumentRows:
    """Cuts the batches of one rank from a stream.

    ``parts`` says what to read: for each name a column, and how many tokens further on (1 for labels). ``documents`` asks
    where documents begin. In modes "segment" and "truncate" rows are padded with ``pad_id``, labels with -100 and other
    columns with 0.
    """

    stream: DocumentStream
    plan: SequenceLengthPlan
    rank: int
    num_lanes: int
    mode: str
    columns: tuple[str, ...]
    epochs: int | None
    parts: Mapping[str, tuple[str, int]]
    documents: bool
    pad_id: int | None
    preserve_eos: bool
    vocab_size: int | None
    left: int | None = None  # tokens that the end of the data left over, once it has been met

    @property
    def look(self) -> int:
        """Tokens to read after each row."""
        return max(shift for _, shift in self.parts.values())

    @property
    def whole(self) -> bool:
        """Whether all tokens form one sequence, whatever the documents."""
        return self.mode == "stream" and self.num_lanes == 1

    def chunks(
        self, start: int, stop: int | None, worker: int, num_workers: int, size: int | None, at: Snapshot
    ) -> Iterator[Chunk]:
        """Batches ``start`` to ``stop`` from ``at``, the snapshot at the beginning of the step of ``start``.

        Chunks have at most ``size`` batches; this worker makes the ``worker``-th of every ``num_workers``.
        """
        accum, number = self.plan.grad_accum_steps, 0
        last = None if stop is None else (stop - 1) // accum
        dealer = Dealer(self.stream, self.num_lanes, self.whole, self.epochs, at)
        steps = _Steps(self._cut_steps(dealer, start // accum, last))
        step: _Step | None = None
        while stop is None or start < stop:
            stage, chunks = chunks_from(self.plan, start, stop, size or 1)
            end = next(chunks).stop
            mine, made = number % num_workers == worker, list[Chunk]()
            try:
                for batch in range(start, end):
                    if step is None or batch % accum == 0:
                        step = steps.take()
                        if step is None:
                            break
                    if mine:
                        steps.follow(self._followed(stage, batch % accum, step))
                        made.append(self._make(stage, batch, step))
            except Exception:
                yield from _join(made)
                raise
            yield from _join(made)
            if step is None:
                self.left = dealer.left
                return
            number, start = number + 1, end

    def skip_to(self, step: int) -> tuple[Snapshot, int | None]:
        """The snapshot at the beginning of ``step``, and the tokens before it, by reading from the start."""
        dealer = Dealer(self.stream, self.num_lanes, self.whole, self.epochs, Snapshot())
        steps = _Steps(self._cut_steps(dealer, 0, None))
        for done in range(step):
            if steps.take() is None:
                raise StateError(f"{self.stream.name} ends after {done} steps, and step {step} was asked for")
        return dealer.snapshot(), None if self.mode == "stream" else dealer.delivered

    def leftover(self, at: Snapshot) -> int:
        """Tokens of the data that are neither delivered nor discarded at ``at``, by reading on to its end."""
        dealer = Dealer(self.stream, self.num_lanes, self.whole, self.epochs, at)
        while dealer.deal() is not None:
            pass
        return dealer.dealt - at.delivered - at.discarded

    # -- cutting ------------------------------------------------------------------------------------------------------

    def _cut_steps(self, dealer: Dealer, step: int, last: int | None) -> Iterator[_Step | None]:
        """``step`` and those after it, each with the rows of all ranks and micro-batches, as long as the data suffices.

        None after each row, and before an error is raised: what a caller waits for may have been dealt by then. Beyond the
        step ``last`` its shape holds on, because a schedule need not be defined where the run has ended.
        """
        cut = {"stream": self._cut, "segment": self._cut_segment, "truncate": self._cut_truncated}[self.mode]
        lanes = itertools.islice(itertools.cycle(dealer.lanes), self.plan.rows_before(step) % self.num_lanes, None)
        before = dealer.snapshot()
        for number in itertools.count(step):
            stage = self.plan.stage_at(number if last is None else min(number, last))
            count = stage.rows * self.plan.grad_accum_steps * self.plan.world_size
            rows: list[Row] = []
            for width in [count * stage.length] if self.whole else [stage.length] * count:
                try:
                    row = cut(dealer, next(lanes), width)
                except Exception:
                    yield None
                    raise
                if row is None:
                    dealer.left = dealer.dealt - before.delivered - before.discarded
                    return
                rows.append(row)
                yield None
            dealer.delivered += sum(row.size for row in rows)
            after = dealer.snapshot()
            yield _Step(rows, before, after)
            before = after

    def _cut(self, dealer: Dealer, lane: Lane, width: int) -> Row | None:
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

    def _cut_truncated(self, dealer: Dealer, lane: Lane, width: int) -> Row | None:
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

    # -- copying ------------------------------------------------------------------------------------------------------

    def _make(self, stage: Stage, batch: int, step: _Step) -> Chunk:
        """This rank's micro-batch ``batch`` of a step that has been cut."""
        micro = batch % self.plan.grad_accum_steps
        block = micro * self.plan.world_size + self.rank
        if self.whole:
            width = stage.rows * stage.length
            wanted, begin = step.rows, block * width
        else:
            width, begin = stage.length, 0
            wanted = step.rows[block * stage.rows : (block + 1) * stage.rows]
        wide = (len(wanted), width + self.look)
        columns = {name: np.full(wide, self._padding(name), np.int64) for name in self.columns}
        valid = np.zeros(wide, np.bool_)
        starts = np.zeros(wide, np.bool_) if self.documents else None
        for i, row in enumerate(wanted):
            done = 0
            for read, start, stop in _within(row, begin, wide[1]):
                here = slice(done, done + stop - start)
                for name, column in columns.items():
                    column[i, here] = read.block.read(name, start, stop)
                self._check(columns["input_ids"][i, here], read, start)
                if starts is not None:
                    offsets = read.block.offsets
                    low, high = np.searchsorted(offsets, (start, stop))
                    starts[i, here][offsets[low:high] - start] = True
                done += stop - start
            valid[i, :done] = True
        last = micro + 1 == self.plan.grad_accum_steps
        delivered = step.before.delivered + sum(row.size for row in step.rows[: self._rows_of(stage, micro + 1)])
        after = [(step.after if last else step.before, None if self.mode == "stream" else delivered)]
        chunk = Chunk(range(batch, batch + 1), stage.rows, stage.length, {}, after=after)
        for part, (name, shift) in self.parts.items():
            chunk.columns[part] = columns[name][:, shift : shift + width]
        if self.mode != "stream":
            chunk.valid = valid[:, :width]
        if self.look and not (self.mode == "stream" and valid.all()):
            chunk.valid_next = valid[:, 1:]
        chunk.starts = None if starts is None else starts[:, :width]
        return chunk

    def _followed(self, stage: Stage, micro: int, step: _Step) -> Sequence[Row]:
        """The rows of a micro-batch, over all ranks, whose labels ask for the token after the row."""
        if not self.look or self.mode != "stream":
            return ()
        if self.whole:
            return step.rows if micro + 1 == self.plan.grad_accum_steps else ()
        return step.rows[self._rows_of(stage, micro) : self._rows_of(stage, micro + 1)]

    def _rows_of(self, stage: Stage, micros: int) -> int | None:
        """Rows of a step's first ``micros`` micro-batches over all ranks; None for all, or if the step is one run."""
        if micros == self.plan.grad_accum_steps or self.whole:
            return None
        return micros * self.plan.world_size * stage.rows

    def _padding(self, column: str) -> int:
        if column == "input_ids":
            return self.pad_id or 0
        return IGNORE if column == "labels" else 0

    def _check(self, ids: Array, read: Read, start: int) -> None:
        found = check_ids(ids, self.vocab_size)
        if found is not None:
            document = int(np.searchsorted(read.block.offsets, start + found[0], side="right")) - 1
            at = start + found[0] - int(read.block.offsets[document])
            where = f"token {at} of document {read.first + document} of {self.stream.name}"
            raise bad_id(int(ids[found[0]]), self.vocab_size, where)


def _within(row: Row, begin: int, width: int) -> Iterator[Span]:
    """Tokens ``begin`` to ``begin + width`` of a row and the one after it, as far as there are any."""
    for read, first, last in row.spans if row.next is None else [*row.spans, row.next]:
        if begin < last - first and width > 0:
            start = first + begin
            stop = min(last, start + width)
            yield read, start, stop
            width -= stop - start
        begin = max(0, begin - (last - first))


def _join(chunks: list[Chunk]) -> Iterator[Chunk]:
    """One chunk of consecutive batches of one shape; none of none."""
    if len(chunks) < 2:
        yield from chunks
        return
    first = chunks[0]
    joined = Chunk(range(first.numbers.start, chunks[-1].numbers.stop), first.rows, first.length, {})
    joined.columns = {name: np.concatenate([c.columns[name] for c in chunks]) for name in first.columns}
    if first.valid is not None:
        joined.valid = np.concatenate([c.valid for c in chunks if c.valid is not None])
    if any(c.valid_next is not None for c in chunks):
        masks = [np.ones_like(c.columns["next"], np.bool_) if c.valid_next is None else c.valid_next for c in chunks]
        joined.valid_next = np.concatenate(masks)
    if first.starts is not None:
        joined.starts = np.concatenate([c.starts for c in chunks if c.starts is not None])
    joined.after = [after for c in chunks for after in c.after or ()]
    yield joined
