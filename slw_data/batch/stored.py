"""Batches of a store: chunk by chunk, from any position on, where the order says that they lie.

Read next: :mod:`slw_data.run`. What streams do otherwise: :mod:`slw_data.batch.streamed`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from slw_data.batch.chunk import CHUNK_TOKENS, Chunk, batches_from, chunked, place
from slw_data.batch.reading import Reading
from slw_data.order.position import Order, Position
from slw_data.order.spans import Spans
from slw_data.plan import SequenceLengthPlan, ShardPlan, Stage

__all__ = ["RowOrder", "StoreBatches"]

class RowOrder(Order, Protocol):
    """An order that finds rows without reading. What one iteration remembers is its ``reader``."""

    @property
    def plan(self) -> SequenceLengthPlan | ShardPlan: ...

    def reader(self, at: Position) -> Any:
        """What one iteration looks up rows with, from ``at`` on."""

    def limit(self, stage: Stage, batch: int) -> int | None:
        """The batch of ``stage`` up to which those from ``batch`` on may be looked up together; None: all of them."""

    def enough(self, stage: Stage, batches: range, reader: Any) -> range:
        """As many of ``batches`` as the data suffices for, or as are at hand; none only where the data ends."""

    def skip(self, stage: Stage, batches: range, reader: Any) -> None:
        """Pass over ``batches``, which somebody else reads."""

    def spans(self, stage: Stage, batches: range, rank: int, look: int, reader: Any) -> Spans:
        """Where ``batches`` of ``stage`` (counted from its start) lie on ``rank``, and ``look`` tokens after each run."""

    def after(self, stage: Stage, batches: range, reader: Any) -> Sequence[Position] | None:
        """Where the run stands after each of ``batches``, whose spans were looked up last; None where it is arithmetic."""

    def again(self, stage: Stage, batches: range, reader: Any) -> Any:
        """A reader that stands before ``batches``, whose spans were looked up last."""

    def left(self, reader: Any) -> int | None:
        """Tokens that the end of the data leaves over, once it is met; None: the place where the run ends tells."""


@dataclass(frozen=True)
class StoreBatches:
    """Batches of one ``rank``. See :class:`slw_data.batch.chunk.Batches`. ``about`` describes the order."""

    order: RowOrder
    reading: Reading
    rank: int
    about: Callable[[], str]

    chunk_tokens: ClassVar[int] = 2 * CHUNK_TOKENS  # each is read once: handing over a chunk costs as much as a few batches

    def chunks(self, at: Position, worker: int, num_workers: int, size: int | None) -> Generator[Chunk, None, int | None]:
        number, now, reader = 0, (at.step, at.batch), self.reader(at, num_workers)
        total = self.order.plan.total_steps
        while total is None or now[0] < total:
            stage, first, stop, most = batches_from(self.order.plan, now, size, self.chunk_tokens)
            limit = self.order.limit(stage, first)
            for numbers in chunked(first, stop if limit is None else min(stop, limit), most):
                there = self.order.enough(stage, numbers, reader)
                if not there:
                    return self.order.left(reader)
                if number % num_workers == worker:
                    yield from self._read_safely(stage, there, reader)
                else:
                    self.order.skip(stage, there, reader)
                number, now = number + 1, place(stage, there.stop)
                if len(there) < len(numbers):
                    break
        return None

    def reader(self, at: Position, num_workers: int) -> Any:
        """What one iteration looks up rows with."""
        return self.order.reader(at)

    def part(self, at: Position, worker: int, num_workers: int) -> Iterator[Chunk]:
        return self.chunks(at, worker, num_workers, None)

    def check_parts(self, num_workers: int) -> None:
        """Any number can."""

    def describe(self) -> str:
        return self.about()

    def _read_safely(self, stage: Stage, numbers: range, reader: Any) -> Iterator[Chunk]:
        """The chunk; where it holds a fault, the sound batches before it first, one by one."""
        try:
            chunk = self._read(stage, numbers, reader)
        except Exception:
            if len(numbers) == 1:
                raise
            again = self.order.again(stage, numbers, reader)
            for number in numbers:
                yield self._read(stage, range(number, number + 1), again)
            raise
        yield chunk

    def _read(self, stage: Stage, numbers: range, reader: Any) -> Chunk:
        self.reading.reserve(stage, numbers)
        spans = self.order.spans(stage, numbers, self.rank, self.reading.look, reader)
        return self.reading.read(stage, numbers, spans, self.order.after(stage, numbers, reader))
