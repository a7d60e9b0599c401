"""Buckets: rows without padding, none of which crosses a document (Pouransari et al., arXiv 2405.13226).

A document is cut into pieces of the lengths of the run, the longest first, and a step takes its rows from the pieces of its
own length, its *bucket*::

    lengths 2, 4, 8      a document of 23 tokens      [ 8 ][ 8 ][ 4 ][ 2 ] .        the last token is in no bucket

A bucket is passed over again and again, its pieces in the documents' order, or permuted anew in each pass. How many pieces a
document has of each length follows from its size, so the k-th piece of a bucket is found by running sums over groups of
documents, and then within a group: nothing is replayed, and no rank looks up the rows of another.

Read next: :mod:`slw_data.batch.reading`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from slw_data.arguments import shown
from slw_data.cached import cached
from slw_data.errors import DataError, ScheduleError, StateError
from slw_data.order.permutation import Ints, permute
from slw_data.order.position import Position
from slw_data.order.spans import Spans
from slw_data.plan import SequenceLengthPlan, Stage

__all__ = ["BucketReader", "BucketRows", "Buckets"]

_GROUP = 8  # documents whose pieces are counted together
_AT_ONCE = 1 << 12  # rows that are looked up together: what they need stays in the cache


@dataclass(frozen=True, eq=False)
class Buckets:
    """The pieces of documents. ``bounds``, int64 (documents + 1,): where documents begin; ``lengths``: of the buckets,
    ascending, each a multiple of the one before."""

    bounds: Ints
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        for shorter, longer in pairwise(self.lengths):
            if longer % shorter:
                raise ScheduleError(
                    f"mode='buckets' cuts long pieces into short ones, so each length must be a multiple of the one before, and"
                    f" {longer} is none of {shorter}: use powers of two, as DoublingSchedule and BucketSchedule do"
                )

    @property
    def num_tokens(self) -> int:
        return int(self.bounds[-1])

    @cached
    def ends(self) -> tuple[Ints, ...]:
        """For each bucket the pieces in the groups of documents up to and including each group: int64 (groups,)."""
        sizes = np.diff(self.bounds)
        groups = np.arange(0, len(sizes), _GROUP)
        return tuple(np.cumsum(np.add.reduceat(self._counts(bucket, sizes), groups)) for bucket in range(len(self.lengths)))

    @cached
    def counts(self) -> tuple[int, ...]:
        """How many pieces each bucket has."""
        return tuple(int(ends[-1]) for ends in self.ends)

    @property
    def left_out(self) -> int:
        """Tokens that are in no bucket: what documents have beyond a multiple of the shortest length."""
        return self.num_tokens - sum(count * length for count, length in zip(self.counts, self.lengths, strict=True))

    def pieces(self, bucket: int, numbers: Ints) -> tuple[Ints, Ints]:
        """``(starts, left)`` of pieces of a bucket: where each begins, and the tokens that its document has from there on."""
        starts, left = np.empty_like(numbers), np.empty_like(numbers)
        for first in range(0, len(numbers), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            starts[some], left[some] = self._pieces(bucket, numbers[some])
        return starts, left

    def _pieces(self, bucket: int, numbers: Ints) -> tuple[Ints, Ints]:
        """A group of documents with 1, 0 and 2 pieces has the running sums 1, 1 and 3: its piece 2 is of the first document
        whose sum is above 2, the third, which has 1 before it; so it is that document's piece 1."""
        ends, length = self.ends[bucket], self.lengths[bucket]
        group = np.searchsorted(ends, numbers, side="right")
        within = numbers - np.where(group > 0, ends[group - 1], 0)
        documents = np.minimum(group[:, None] * _GROUP + np.arange(_GROUP + 1), len(self.bounds) - 1)
        bounds = self.bounds[documents]
        counts = self._counts(bucket, np.diff(bounds, axis=1))
        sums = np.cumsum(counts, axis=1)
        found = (sums <= within[:, None]).sum(axis=1)
        row = np.arange(len(numbers))
        begin, end = bounds[row, found], bounds[row, found + 1]
        starts = begin + (within - sums[row, found] + counts[row, found]) * length
        if bucket + 1 < len(self.lengths):  # behind the longer pieces
            longer = self.lengths[bucket + 1]
            starts += (end - begin) // longer * longer
        return starts, end - starts

    def _counts(self, bucket: int, sizes: Ints) -> Ints:
        """How many pieces of a bucket documents of these sizes have."""
        if bucket + 1 < len(self.lengths):
            sizes = sizes % self.lengths[bucket + 1]
        counts: Ints = sizes // self.lengths[bucket]
        return counts


class BucketReader:
    """Remembers how many rows of each length came before a stage. It belongs to one iteration."""

    def __init__(self, plan: SequenceLengthPlan) -> None:
        self._plan = plan
        self._stage: Stage | None = None
        self._used: dict[int, int] = {}

    def used(self, stage: Stage) -> int:
        """Rows of the stage's length before it."""
        before = self._stage
        if before is not None and before.stop == stage.start:
            self._used[before.length] = self._used.get(before.length, 0) + stage.rows_before - before.rows_before
        elif before is None or before.start != stage.start:
            rows, lengths = (np.array(values) for values in self._plan.history(stage.start))
            self._used = {int(length): int(np.diff(rows)[lengths[:-1] == length].sum()) for length in np.unique(lengths)}
        self._stage = stage
        return self._used.get(stage.length, 0)


@dataclass(frozen=True, eq=False)
class BucketRows:
    """Rows of ``plan`` from ``buckets``. ``epochs``: passes over each bucket after which it is empty; None: they go on."""

    buckets: Buckets
    plan: SequenceLengthPlan
    shuffle: bool = False
    seed: int = 0
    epochs: int | None = None

    found_by_step: ClassVar[bool] = True
    begin: ClassVar[Position] = Position()

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""
        shuffle = f"shuffled with seed {self.seed}" if self.shuffle else "in order"
        return f"mode='buckets', lengths {', '.join(map(str, self.buckets.lengths))}, pieces {shuffle}"

    def reader(self, at: Position = begin) -> BucketReader:
        """What one iteration looks up rows with."""
        return BucketReader(self.plan)

    def limit(self, stage: Stage, batch: int) -> int | None:
        """None: one rule holds to the end."""
        return None

    def enough(self, stage: Stage, batches: range, reader: BucketReader) -> range:
        """As many of ``batches`` as the bucket has rows for: those of whole steps."""
        count = self._pieces_of(stage.length)
        if self.epochs is None:
            return batches
        step = stage.rows * self.plan.world_size * stage.grad_accum_steps
        steps = (self.epochs * count - reader.used(stage)) // step
        return range(batches.start, max(batches.start, min(batches.stop, steps * stage.grad_accum_steps)))

    def skip(self, stage: Stage, batches: range, reader: BucketReader) -> None:
        """Pass over ``batches``, which another worker reads."""
        reader.used(stage)

    def spans(self, stage: Stage, batches: range, rank: int, look: int, reader: BucketReader) -> Spans:
        """Where ``batches`` lie that are ``rank``'s, and ``look`` tokens after each row, where its document has some."""
        bucket, count = self._bucket(stage.length), self._pieces_of(stage.length)
        first = (np.arange(batches.start, batches.stop) * self.plan.world_size + rank) * stage.rows
        rows = reader.used(stage) + (first[:, None] + np.arange(stage.rows)).ravel()
        epochs, numbers = np.divmod(rows, count)
        if self.shuffle:
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
                here = np.flatnonzero(epochs == epoch)
                key = self.seed, epoch * len(self.buckets.lengths) + bucket  # another permutation for each bucket
                numbers[here] = permute(numbers[here], count, key)
        starts, left = self.buckets.pieces(bucket, numbers)
        width = stage.length + look
        if look:
            return Spans(len(starts), width, look, starts, np.minimum(left, width), np.arange(len(starts)))
        return Spans(len(starts), width, look, starts)

    def after(self, stage: Stage, batches: range, reader: BucketReader) -> None:
        """None: where the run stands is arithmetic."""

    def again(self, stage: Stage, batches: range, reader: BucketReader) -> BucketReader:
        return reader

    def left(self, reader: BucketReader) -> int | None:
        """None: it is known from where the run ends."""
        return None

    def _bucket(self, length: int) -> int:
        return self.buckets.lengths.index(length)

    def _pieces_of(self, length: int) -> int:
        """DataError for an empty bucket, ScheduleError for a length without one."""
        if length not in self.buckets.lengths:
            raise ScheduleError(f"length {length} has no bucket, only {', '.join(map(str, self.buckets.lengths))} have")
        count = self.buckets.counts[self._bucket(length)]
        if count == 0:
            raise DataError(f"the bucket of length {length} is empty: no document has a piece of {length} tokens; leave it out")
        return count

    # -- saved places -------------------------------------------------------------------------------------------------

    def settle(self, at: Position) -> Position:
        return at

    def seek(self, step: int) -> Position:
        return Position(step)

    def epoch(self, at: Position) -> int:
        """The pass over its bucket that the next row begins in."""
        if at.step == self.plan.total_steps:
            return self.epochs or 0
        stage = self.plan.stage_at(at.step)
        rows = self.reader().used(stage) + self._batches_from(at).start * stage.rows * self.plan.world_size
        return rows // self._pieces_of(stage.length)

    def _batches_from(self, at: Position) -> range:
        """The batches of the step at ``at`` that are still to come, counted from the stage's start."""
        stage = self.plan.stage_at(at.step)
        first = (at.step - stage.start) * stage.grad_accum_steps
        return range(first + at.batch, first + stage.grad_accum_steps)

    def rest_at(self, at: Position) -> int | None:
        return None

    def leftover(self, at: Position) -> int | None:
        """Tokens that are not delivered, those in no bucket among them, if the data ends the run at ``at``."""
        if self.epochs is None:
            return None
        there = self.enough(self.plan.stage_at(at.step), self._batches_from(at), self.reader())
        return None if there else self.epochs * self.buckets.num_tokens - self.plan.tokens_before(at.step)

    def dump(self, at: Position) -> str:
        return ""

    def load(self, text: Any, at: Position) -> None:
        if type(text) is not str or text:
            raise StateError(f"stream must be '' where all is arithmetic, the saved state has {shown(text):.80}")
