"""Reading ahead: where a loader's batches come from, one chunk after the other.

    Direct      a chunk is read when the last one is used up
    Threaded    a thread reads chunks ahead, into a queue; NumPy copies without the interpreter's lock
    Workers     other processes read, and send many batches in one message

Read next: :mod:`slw_data.loader`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from slw_data.batch.building import Batch
from slw_data.batch.chunk import Chunk
from slw_data.delivery.workers import Messages

__all__ = ["Direct", "Threaded", "Workers"]

Build = Callable[[Chunk], Iterator[Batch]]


class Direct:
    """Reads the next chunk when the last one is used up."""

    def __init__(self, chunks: Iterator[Chunk], build: Build) -> None:
        self._chunks, self._build = chunks, build
        self._chunk: Chunk | None = None
        self._batches: Iterator[tuple[int, Batch]] = iter(())

    def take(self) -> tuple[Chunk, int, Batch] | None:
        """The next batch, with its chunk and its place there; None at the end."""
        while True:
            for index, batch in self._batches:
                assert self._chunk is not None
                return self._chunk, index, batch
            self._chunk = next(self._chunks, None)
            if self._chunk is None:
                return None
            self._batches = enumerate(self._build(self._chunk))

    def close(self) -> None:
        self._chunks, self._batches = iter(()), iter(())


class Threaded(Direct):
    """A thread reads chunks ahead. It refers to the queue alone, so dropping this object ends it."""

    def __init__(self, chunks: Iterator[Chunk], build: Build, ahead: int) -> None:
        self._queue: queue.Queue[Chunk | BaseException | None] = queue.Queue(ahead)
        self._stop = threading.Event()
        super().__init__(_received(self._queue), build)
        threading.Thread(target=_fill, args=(chunks, self._queue, self._stop), daemon=True, name="slw_data").start()

    def close(self) -> None:
        super().close()
        self._stop.set()
        while not self._queue.empty():  # a thread that waits for room sees the event at once
            self._queue.get()

    def __del__(self) -> None:
        self.close()


def _received(waiting: queue.Queue[Chunk | BaseException | None]) -> Iterator[Chunk]:
    while (item := waiting.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item


def _fill(chunks: Iterator[Chunk], waiting: queue.Queue[Chunk | BaseException | None], stop: threading.Event) -> None:
    try:
        for chunk in chunks:
            waiting.put(chunk)
            if stop.is_set():
                return
        waiting.put(None)
    except BaseException as error:  # to be raised where the chunk is awaited
        waiting.put(error)


class Workers(Direct):
    """Other processes read. See :mod:`slw_data.delivery.workers`."""

    def __init__(self, messages: Messages, build: Build) -> None:
        self._messages = messages
        super().__init__(messages, build)

    def close(self) -> None:
        self._messages.close()
        super().close()
