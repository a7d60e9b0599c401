"""Reading ahead: where a loader's batches come from, one chunk after the other.

    Direct      a chunk is read when the last one is used up
    Threaded    a thread reads chunks ahead, into a queue; NumPy copies without the interpreter's lock
    Workers     other processes read, and send many batches in one message

Read next: :mod:`slw_data.loader`.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import NamedTuple

from slw_data.batch.building import Batch
from slw_data.batch.chunk import Chunk
from slw_data.delivery.workers import Messages

__all__ = ["Direct", "Threaded", "Workers"]

_LOOKS_AFTER = 0.01  # seconds of waiting for a chunk that is given up, after which to see whether the thread has ended

_of_parents: list[Messages] = []
_forks = 0  # between this process and the first: asking the system for the process would take longer than making a batch


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

Build = Callable[[Chunk], Iterator[Batch]]
Chunks = Generator[Chunk, None, "int | None"]


class Direct:
    """Reads the next chunk when the last one is used up. ``left`` is what ``chunks`` returned at their end."""

    def __init__(self, chunks: Iterator[Chunk], build: Build) -> None:
        self._chunks, self._build = chunks, build
        self._chunk: Chunk | None = None
        self._batches: Iterator[tuple[int, Batch]] = iter(())
        self._forks = _forks
        self.left: int | None = None

    @property
    def alive(self) -> bool:
        """Whether it can be taken from. In a child of the process that opened it the thread and workers do not exist."""
        return self._forks == _forks

    def take(self) -> tuple[Chunk, int, Batch] | None:
        """The next batch, with its chunk and its place there; None at the end, and where it is not :attr:`alive`."""
        while True:
            for index, batch in self._batches:
                assert self._chunk is not None
                return self._chunk, index, batch
            if not self.alive:
                return None
            try:
                self._chunk = next(self._chunks)
            except StopIteration as end:
                self.left = end.value
                return None
            self._batches = enumerate(self._build(self._chunk))

    def close(self) -> None:
        """End all reading, and wait for it: whoever comes next may read the same source."""
        self._chunks, self._batches = iter(()), iter(())


class Threaded(Direct):
    """A thread reads chunks ahead. It refers to the queue alone, so dropping this object ends it."""

    def __init__(self, chunks: Chunks, build: Build, ahead: int) -> None:
        self._queue: queue.Queue[Chunk | _End] = queue.Queue(ahead)
        self._stop = threading.Event()
        super().__init__(_received(self._queue), build)
        self._thread = threading.Thread(target=_fill, args=(chunks, self._queue, self._stop), daemon=True, name="slw_data")
        self._thread.start()

    def close(self) -> None:
        super().close()
        self._stop.set()
        if not self.alive:
            return
        while self._thread.is_alive():  # it may wait for room
            with suppress(queue.Empty):
                self._queue.get(timeout=_LOOKS_AFTER)

    def __del__(self) -> None:
        self._stop.set()
        if self.alive:
            while not self._queue.empty():  # a thread that waits for room sees the event at once
                self._queue.get()


class _End(NamedTuple):
    """Of what a thread reads: an error to be raised where the chunk is awaited, or what the chunks returned."""

    error: BaseException | None
    left: int | None = None


def _received(waiting: queue.Queue[Chunk | _End]) -> Chunks:
    while isinstance(item := waiting.get(), Chunk):
        yield item
    if item.error is not None:
        raise item.error
    return item.left


def _fill(chunks: Chunks, waiting: queue.Queue[Chunk | _End], stop: threading.Event) -> None:
    try:
        while not stop.is_set():
            waiting.put(next(chunks))
        chunks.close()  # here, in the thread that has read them
    except StopIteration as end:
        waiting.put(_End(None, end.value))
    except BaseException as error:
        waiting.put(_End(error))


class Workers(Direct):
    """Other processes read. See :mod:`slw_data.delivery.workers`."""

    def __init__(self, messages: Messages, chunks: Iterator[Chunk], build: Build) -> None:
        self._messages = messages
        super().__init__(chunks, build)

    def close(self) -> None:
        if self.alive:
            self._messages.close()
        super().close()

    def __del__(self) -> None:
        if not self.alive:  # dropping the messages here would end the workers of the parent
            _of_parents.append(self._messages)
