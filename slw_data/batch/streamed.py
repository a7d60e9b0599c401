"""Batches of a stream: steps are cut in their order, and the rows of one rank read.

Read next: :mod:`slw_data.run`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from slw_data.batch.chunk import CHUNK_TOKENS, Chunk, batches_from, chunked, place
from slw_data.batch.reading import Reading
from slw_data.errors import warn
from slw_data.order.diversity import neighbours
from slw_data.order.documents import DocumentOrder, Step, Steps, spans_of
from slw_data.order.position import Position
from slw_data.plan import Stage
from slw_data.plan.schedules import ConstantSchedule

__all__ = ["StreamBatches"]


@dataclass(frozen=True)
class StreamBatches:
    """Batches of one ``rank``. See :class:`slw_data.batch.chunk.Batches`."""

    order: DocumentOrder
    reading: Reading
    rank: int

    message_size = 16  # batches that a worker sends at once: each carries its position, so all count

    def chunks(self, at: Position, worker: int, num_workers: int, size: int | None) -> Generator[Chunk, None, int | None]:
        plan, number, now = self.order.plan, 0, (at.step, at.batch)
        total = plan.total_steps
        steps = Steps(self.order, at.step, at.cursor, None if total is None else total - 1)
        step: Step | None = None
        first_step = at == self.order.begin and worker == 0 and self.rank == 0 and self.order.whole
        while total is None or now[0] < total:
            stage, first, stop, most = batches_from(plan, now, size or 1, CHUNK_TOKENS)
            numbers = next(chunked(first, stop, most))
            mine, made = number % num_workers == worker, list[tuple[int, Step]]()
            try:
                for batch in numbers:
                    if step is None or batch % stage.grad_accum_steps == 0:
                        step = steps.take()
                        if step is None:
                            break
                        if first_step:
                            self._warn_of_neighbours(stage, step)
                            first_step = False
                    if mine:
                        if self.reading.look:
                            steps.follow(self.order.awaited(stage, step, batch % stage.grad_accum_steps))
                        made.append((batch, step))
            except Exception:
                yield from self._read_safely(stage, made)
                raise
            yield from self._read_safely(stage, made)
            if step is None:
                return steps.left
            number, now = number + 1, place(stage, numbers.stop)
        return None

    def describe(self) -> str:
        return f"{self.order.fingerprint}: a stream, whose documents are known as they are read"

    def _warn_of_neighbours(self, stage: Stage, step: Step) -> None:
        """Warn of a warmup whose first step has tokens of fewer documents than rows."""
        rows, documents = self.order.plan.global_rows(stage.start), 0
        for read, start, stop in step.rows[0].spans:
            low, high = np.searchsorted(read.block.offsets, [start, stop], side="left").tolist()
            documents += high - low + (low == high or read.block.offsets[low] > start)
        if documents < rows and not isinstance(self.order.plan.schedule, ConstantSchedule):
            warn(neighbours(rows, stage.length, documents, f"num_lanes={rows} or more"))

    def _read_safely(self, stage: Stage, made: list[tuple[int, Step]]) -> Generator[Chunk, None, None]:
        """The chunk of the batches that were cut; where it holds a fault, the sound ones before it first."""
        if not made:
            return
        try:
            chunk = self._read(stage, made)
        except Exception:
            if len(made) == 1:
                raise
            for one in made:
                yield self._read(stage, [one])
            raise
        yield chunk

    def _read(self, stage: Stage, made: list[tuple[int, Step]]) -> Chunk:
        cuts, after = [], []
        for number, step in made:
            at, batch = place(stage, number)
            cuts.append(self.order.rows_of(stage, step, batch, self.rank))
            after.append(self.order.position(stage, step, at, batch))
        spans = spans_of(cuts, self.reading.look)
        return self.reading.read(stage, range(made[0][0], made[-1][0] + 1), spans, after)
