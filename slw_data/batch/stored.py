"""Batches of a store: chunk by chunk, from any position on, where the order says that they lie.

Read next: :mod:`slw_data.run`. For sources that can only be read in order: :mod:`slw_data.batch.streamed`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from slw_data.batch.chunk import CHUNK_TOKENS, Chunk, batches_from, chunked, place
from slw_data.batch.reading import Reading
from slw_data.errors import DataError
from slw_data.order.diversity import describe_order
from slw_data.order.lanes import LaneReader
from slw_data.order.permutation import Ints
from slw_data.order.position import Position
from slw_data.order.store import StoreOrder
from slw_data.plan import Stage

__all__ = ["StoreBatches"]

_READ_TOKENS = 2 * CHUNK_TOKENS  # of a chunk, each read once: handing over a chunk costs as much as a few batches


@dataclass(frozen=True)
class StoreBatches:
    """Batches of one ``rank``. See :class:`slw_data.batch.chunk.Batches`. ``documents``: where they begin, if that is known."""

    order: StoreOrder
    reading: Reading
    rank: int
    documents: Ints | None = None

    message_size = None
    begin = Position()

    def chunks(self, at: Position, worker: int, num_workers: int, size: int | None) -> Generator[Chunk, None, int | None]:
        number, now, reader = 0, (at.step, at.batch), self.order.reader()
        total = self.order.plan.total_steps
        while total is None or now[0] < total:
            stage, first, stop, most = batches_from(self.order.plan, now, size, _READ_TOKENS)
            limit = self.order.limit(stage, first)
            for numbers in chunked(first, stop if limit is None else min(stop, limit), most):
                if number % num_workers == worker:
                    yield from self._read_safely(stage, numbers, reader)
                number, now = number + 1, place(stage, numbers.stop)
        return None

    def seek(self, step: int) -> Position:
        return Position(step)

    def epoch(self, at: Position, rows: int) -> int:
        return self.order.epoch(at.step, rows)

    def rest(self, at: Position) -> int | None:
        rest = self.order.rest
        return rest.step if rest is not None and (at.step, at.batch) > (rest.step, 0) else None

    def leftover(self, at: Position) -> int | None:
        order = self.order
        if order.epochs is None:
            return None
        return order.epochs * order.lanes.num_tokens - (order.plan.total_tokens or 0)

    def describe(self) -> str:
        return describe_order(self.order, self.documents)

    def _read_safely(self, stage: Stage, numbers: range, reader: LaneReader) -> Iterator[Chunk]:
        """The chunk; where it holds a fault, the sound batches before it first, one by one."""
        try:
            chunk = self._read(stage, numbers, reader)
        except DataError:
            if len(numbers) == 1:
                raise
            for number in numbers:
                yield self._read(stage, range(number, number + 1), reader)
            raise
        yield chunk

    def _read(self, stage: Stage, numbers: range, reader: LaneReader) -> Chunk:
        self.reading.reserve(stage, numbers)
        spans = self.order.spans(stage, numbers, self.rank, self.reading.look, reader)
        return self.reading.read(stage, numbers, spans)
