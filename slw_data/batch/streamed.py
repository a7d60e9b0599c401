"""Batches of a stream: as those of a store, in small chunks, so that none waits long for what is read for others.

Read next: :mod:`slw_data.run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from slw_data.batch.chunk import Chunk
from slw_data.batch.stored import StoreBatches
from slw_data.order.documents import DocumentOrder, DocumentReader
from slw_data.order.packed_stream import PackedStream, StreamReader
from slw_data.order.position import Position
from slw_data.plan import Stage

__all__ = ["StreamBatches"]


@dataclass(frozen=True)
class StreamBatches(StoreBatches):
    """Batches of one ``rank``. Several workers agree on their chunks without talking; one alone hands out what is at hand."""

    order: DocumentOrder | PackedStream

    chunk_tokens: ClassVar[int] = 1 << 15

    def _read(self, stage: Stage, numbers: range, reader: DocumentReader | StreamReader) -> Chunk:
        chunk = super()._read(stage, numbers, reader)
        chunk.marks = reader.marks()
        return chunk

    def reader(self, at: Position, num_workers: int) -> DocumentReader | StreamReader:
        return self.order.reader(at, self.reading.look, alone=num_workers == 1)
