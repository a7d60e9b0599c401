"""Batches of a divided stream: the rows of its shards, side by side.

Each shard makes chunks of whole steps, as large as it likes. They are put together as far as all shards have come::

    shard 0   [ steps 0 to 4         ][ steps 5, 6 ]
    shard 1   [ steps 0, 1 ][ steps 2 to 6         ]
    rank      [ steps 0, 1 ][ 2 to 4 ][ steps 5, 6 ]          each step with the rows of shard 0, then those of shard 1

The same puts together what several workers have made, each from some of the shards.

Read next: :mod:`slw_data.run`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slw_data.batch.chunk import Array, Chunk
from slw_data.batch.stored import StoreBatches
from slw_data.errors import DataError
from slw_data.order.divided import DividedOrder
from slw_data.order.position import Position
from slw_data.plan import SequenceLengthPlan

__all__ = ["DividedBatches"]


@dataclass(frozen=True)
class DividedBatches:
    """Batches of one rank, of the ``shards`` that it reads. See :class:`slw_data.batch.chunk.Batches`."""

    shards: Mapping[int, StoreBatches]
    order: DividedOrder
    plan: SequenceLengthPlan

    def chunks(self, at: Position, worker: int, num_workers: int, size: int | None) -> Generator[Chunk, None, int | None]:
        whole = self.joined(at, [self.part(at, 0, 1)])
        if num_workers == 1 and size is None:
            yield from whole
            return None
        number = 0
        for chunk in whole:  # of a worker that has to make whole batches, and reads all shards for it
            for i in range(len(chunk.numbers)):
                if number % num_workers == worker:
                    yield chunk.part(i, i + 1)
                number += 1
        return None

    def describe(self) -> str:
        return f"{self.order.fingerprint}: shards {', '.join(map(str, self.shards))} are read here, as streams of their own"

    def check_parts(self, num_workers: int) -> None:
        """DataError for more workers than shards."""
        if num_workers > len(self.shards):
            raise DataError(
                f"each worker reads whole shards, so num_workers={num_workers} needs as many, and this rank has"
                f" {len(self.shards)} of num_shards={self.order.num_shards}: give fewer workers, or more shards"
            )

    def part(self, at: Position, worker: int, num_workers: int) -> Iterator[Chunk]:
        """Chunks of whole steps, from the shards that are ``worker``'s: those that follow each other."""
        numbers = list(self.shards)
        first, stop = (k * len(numbers) // num_workers for k in (worker, worker + 1))
        return _side_by_side([self._of_shard(at, number) for number in numbers[first:stop]])

    def _of_shard(self, at: Position, number: int) -> Iterator[Chunk]:
        for chunk in self.shards[number].chunks(self.order.of_shard(at, number), 0, 1, None):
            assert chunk.after is not None
            chunk.after = [Position(after.step, 0, {number: after.cursor}) for after in chunk.after]
            yield chunk

    def joined(self, at: Position, parts: Sequence[Iterator[Chunk]]) -> Iterator[Chunk]:
        """The chunks of this rank, from those of all parts."""
        begin, before = at.batch, at.cursor
        for steps in _side_by_side(parts):
            chunk = self._of_rank(steps, before)
            assert steps.after is not None
            before = steps.after[-1].cursor
            yield chunk.part(begin, len(chunk.numbers)) if begin else chunk
            begin = 0

    def _of_rank(self, steps: Chunk, before: Mapping[int, object]) -> Chunk:
        """Whole steps as batches: a rank's rows of a step are those of its first batch, its second, and so on."""
        first = steps.first[0]
        stage = self.plan.stage_at(first)
        accumulated, shape = stage.grad_accum_steps, (-1, stage.rows, stage.length)
        numbers = range((first - stage.start) * accumulated, (first - stage.start + len(steps.numbers)) * accumulated)
        chunk = Chunk(stage, numbers, {}, after=[])
        chunk.columns = {name: values.reshape(shape) for name, values in steps.columns.items()}
        for name in ("valid", "valid_next", "starts"):
            values = getattr(steps, name)
            setattr(chunk, name, None if values is None else values.reshape(shape))
        after = list[Position]()
        for end in steps.after or ():
            after += [Position(end.step - 1, batch, before) for batch in range(1, accumulated)] + [end]
            before = end.cursor
        chunk.after = after
        return chunk


def _side_by_side(parts: Sequence[Iterator[Chunk]]) -> Iterator[Chunk]:
    """Chunks of the steps that all parts have, with the rows of the first part, those of the second, and so on."""
    waiting = [deque[Chunk]() for _ in parts]
    while True:
        for chunks, made in zip(waiting, parts, strict=True):
            if not chunks:
                chunk = next(made, None)
                if chunk is None:
                    return
                chunks.append(chunk)
        steps = min(len(chunks[0].numbers) for chunks in waiting)
        heads = [chunks.popleft() for chunks in waiting]
        for chunks, head in zip(waiting, heads, strict=True):
            if len(head.numbers) > steps:
                chunks.appendleft(head.part(steps, len(head.numbers)))
        yield heads[0] if len(heads) == 1 else _joined([head.part(0, steps) for head in heads])


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    """Chunks of the same steps, side by side."""
    first = chunks[0]
    stage = first.stage._replace(rows=sum(chunk.rows for chunk in chunks))
    whole = Chunk(stage, first.numbers, {})
    for name in first.columns:
        whole.columns[name] = np.concatenate([chunk.view(chunk.columns[name]) for chunk in chunks], axis=1)
    whole.valid = _marks(chunks, lambda chunk: chunk.valid)
    whole.valid_next = _marks(chunks, lambda chunk: chunk.valid_next)
    whole.starts = _marks(chunks, lambda chunk: chunk.starts)
    after = zip(*(chunk.after or () for chunk in chunks), strict=True)
    whole.after = [at[0]._replace(cursor={k: v for one in at for k, v in one.cursor.items()}) for at in after]
    return whole


def _marks(chunks: Sequence[Chunk], marks: Callable[[Chunk], Array | None]) -> Array | None:
    """Where one chunk has none, all of its tokens are there."""
    found = [marks(chunk) for chunk in chunks]
    if all(one is None for one in found):
        return None
    pairs = zip(found, chunks, strict=True)
    views = [np.ones((len(c.numbers), c.rows, c.length), np.bool_) if one is None else c.view(one) for one, c in pairs]
    return np.concatenate(views, axis=1)
