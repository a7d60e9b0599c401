"""Rows of a stream: cut from documents that are dealt to lanes.

Every rank and worker reads the whole stream and deals it the same way; it copies only the tokens of its own rows, and
the rest is arithmetic on lengths. A step is delivered only if all of its rows can be cut, so all ranks end together.

Read next: :mod:`slw_data.batches`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slw_data.batches import IGNORE, Array, Chunk, bad_id, check_ids, stretch
from slw_data.dealing import Dealer, Read, Snapshot, Span, take
from slw_data.errors import StateError
from slw_data.plan import SequenceLengthPlan, Stage
from slw_data.streams import DocumentStream

__all__ = ["MODES", "DocumentRows"]

MODES = ("stream", "segment", "truncate")


class _Row(NamedTuple):
    spans: list[Span]  # the row's tokens, and one more where the lane goes on and a label needs it
    real: int  # how many tokens are the row's own


class _Step(NamedTuple):
    rows: list[_Row]  # of all ranks and micro-batches; a single one if the step is one run of tokens
    before: Snapshot
    after: Snapshot


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
        dealer = Dealer(self.stream, self.num_lanes, self.whole, self.epochs, at)
        accum, number = self.plan.grad_accum_steps, 0
        step: _Step | None = None
        while stop is None or start < stop:
            stage, end = stretch(self.plan, start, stop, size or 1)
            mine, made = number % num_workers == worker, list[Chunk]()
            try:
                for batch in range(start, end):
                    if step is None or batch % accum == 0:
                        step = self._cut_step(dealer, stage, batch // accum)
                        if step is None:
                            break
                    if mine:
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
        for done in range(step):
            if self._cut_step(dealer, self.plan.stage_at(done), done) is None:
                raise StateError(f"{self.stream.name} ends after {done} steps, and step {step} was asked for")
        return dealer.snapshot(), None if self.mode == "stream" else dealer.delivered

    def leftover(self, at: Snapshot) -> int:
        """Tokens of the data that are neither delivered nor discarded at ``at``, by reading on to its end."""
        dealer = Dealer(self.stream, self.num_lanes, self.whole, self.epochs, at)
        while dealer.deal() is not None:
            pass
        return dealer.dealt - at.delivered - at.discarded

    # -- cutting ------------------------------------------------------------------------------------------------------

    def _cut_step(self, dealer: Dealer, stage: Stage, step: int) -> _Step | None:
        """All rows of a step, over all ranks and micro-batches; None if the data does not suffice."""
        count = stage.rows * self.plan.grad_accum_steps * self.plan.world_size
        widths = [count * stage.length] if self.whole else [stage.length] * count
        cut = {"stream": self._cut, "segment": self._cut_segment, "truncate": self._cut_truncated}[self.mode]
        first = 0 if self.num_lanes == 1 else self.plan.rows_before(step)
        before, rows = dealer.snapshot(), []
        for i, width in enumerate(widths):
            row = cut(dealer, dealer.lanes[(first + i) % self.num_lanes], width)
            if row is None:
                dealer.left = dealer.dealt - before.delivered - before.discarded
                return None
            rows.append(row)
        dealer.delivered += sum(row.real for row in rows)
        return _Step(rows, before, dealer.snapshot())

    def _cut(self, dealer: Dealer, lane: deque[Span], width: int) -> _Row | None:
        """A row of joined documents. A lane is dealt to until it goes on after the row, if the data does: then the labels
        of the cut are there, and no choice of labels changes which document goes where."""
        held = sum(stop - start for _, start, stop in lane)
        while held <= width and (span := dealer.deal()) is not None:
            lane.append(span)
            held += span[2] - span[1]
        if held < width:
            return None
        return _Row(take(lane, width, self.look), width)

    def _cut_segment(self, dealer: Dealer, lane: deque[Span], width: int) -> _Row | None:
        """A row from one document: as much of the begun one as fits."""
        if not lane:
            span = dealer.deal()
            if span is None:
                return None
            lane.append(span)
        real = min(width, lane[0][2] - lane[0][1])
        return _Row(take(lane, real, self.look), real)

    def _cut_truncated(self, dealer: Dealer, lane: deque[Span], width: int) -> _Row | None:
        """A row for each document: its first tokens, or the first and the very last."""
        span = dealer.deal()
        if span is None:
            return None
        read, start, stop = span
        real = min(width, stop - start)
        dealer.discarded += stop - start - real
        if self.preserve_eos and real < stop - start:
            return _Row([(read, start, start + real - 1), (read, stop - 1, stop)], real)
        return _Row([(read, start, min(start + real + self.look, stop))], real)

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
            for (read, _, _), start, stop in _within(row.spans, begin, wide[1]):
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
        delivered = step.before.delivered + sum(row.real for row in step.rows[: self._rows_of(stage, micro + 1)])
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


def _within(spans: Sequence[Span], begin: int, width: int) -> Iterator[tuple[Span, int, int]]:
    """The parts of ``spans`` that hold their tokens ``begin`` to ``begin + width``, as far as there are any."""
    for span in spans:
        size = span[2] - span[1]
        if begin < size and width > 0:
            start = span[1] + begin
            stop = min(span[2], start + width)
            yield span, start, stop
            width -= stop - start
        begin = max(0, begin - size)


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
