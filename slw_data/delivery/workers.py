"""Workers: chunks of batches from other processes, as messages in the source's own dtype.

torch's ``DataLoader`` starts the processes and carries the messages. Beside it stand the three watches that a run needs
which may lose any process at any time::

    the parent is killed            each worker waits for its parent's end, and ends too
    a worker is stopped             it is continued before it is told to end
    a worker dies in a message      nobody would end that message, and torch would await it for ever: a thread fills it up

Read next: :mod:`slw_data.loader`, which casts the messages.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from slw_data.arguments import flag, integer
from slw_data.batch.chunk import Chunk
from slw_data.order.position import Position
from slw_data.run import Run

__all__ = ["Messages", "check_workers", "worker_options"]

LOOKS_AFTER = 5  # seconds of waiting after which torch looks whether its workers live, if there is no timeout
PIPE = 1 << 20  # bytes, as many as Linux lets anybody ask for: with the usual 64 KiB both processes wait 16 times a message
FILLING = bytes(4096)  # a pipe that is writable takes so much at once (POSIX, PIPE_BUF)


def worker_options(
    prefetch_factor: int | None, persistent_workers: bool, multiprocessing_context: str | BaseContext | None, timeout: float
) -> dict[str, Any]:
    """The options of worker processes, checked; all are false where none is given."""
    return {
        "prefetch_factor": None if prefetch_factor is None else integer("prefetch_factor", prefetch_factor, at_least=1),
        "persistent_workers": flag("persistent_workers", persistent_workers),
        "multiprocessing_context": _checked_context(multiprocessing_context),
        "timeout": _checked_timeout(timeout),
    }


def _checked_context(context: Any) -> Any:
    """ValueError for what no process is started by."""
    methods = multiprocessing.get_all_start_methods()
    if context is None or isinstance(context, BaseContext) or (isinstance(context, str) and context in methods):
        return context
    named = ", ".join(map(repr, methods))
    raise ValueError(f"multiprocessing_context must be {named}, a context or None, got {context!r:.200}")


def _checked_timeout(timeout: Any) -> float:
    """ValueError for anything but seconds."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout must be seconds, 0 (for ever) or more, got {timeout!r:.200}")
    return timeout


def check_workers(run: Run, num_workers: int, options: dict[str, Any]) -> None:
    """ValueError for options of no workers; DataError and TypeError where the run cannot be read by any."""
    if num_workers:
        run.check_workers(num_workers)
        run.batches.check_parts(num_workers)
        _check_picklable(run, options["multiprocessing_context"])
    elif any(options.values()):
        given = ", ".join(f"{name}={value!r}" for name, value in options.items() if value)
        raise ValueError(f"{given}: these options are of worker processes, and num_workers is 0")


def _check_picklable(run: Run, context: str | BaseContext | None) -> None:
    """TypeError naming the culprit if the start method pickles the run and it cannot be pickled."""
    method = context if isinstance(context, BaseContext) else multiprocessing.get_context(context)
    if method.get_start_method() == "fork":
        return
    parts = {"the schedule": run.plan.schedule, "the source": run.source, "the dataset": run}
    for name, part in parts.items():
        try:
            pickle.dumps(part)
        except Exception as error:
            raise TypeError(
                f"{name} cannot be pickled for {method.get_start_method()}ed workers ({error}): use module-level functions and"
                " classes instead of lambdas and open handles, or num_workers=0"
            ) from error


# -- in the main process -----------------------------------------------------------------------------------------------


class Messages:
    """The chunks from a position on, in their order."""

    def __init__(self, run: Run, at: Position, num_workers: int, options: Mapping[str, Any]) -> None:
        self._next = (at.step, at.batch)
        with torch.device("cpu"):  # where the generator is, and torch draws a seed on the default device
            self._received: Any = iter(
                DataLoader(
                    WorkerChunks(run, at),
                    batch_size=None,
                    num_workers=num_workers,
                    generator=torch.Generator(),  # else iterating would draw a seed from the global generator
                    **options,
                )
            )
        self.waiting_since: float | None = None  # time.monotonic(), while a message is awaited
        self._closed = threading.Event()
        pipe = vars(self._received)["_worker_result_queue"]._writer
        _widen(pipe)
        watch = partial(_end_half_messages, weakref.ref(self), self._closed, list(self._workers), pipe, options["timeout"])
        threading.Thread(target=watch, daemon=True, name="slw_data").start()

    @property
    def _workers(self) -> list[BaseProcess]:
        workers: list[BaseProcess] = self._received._workers
        return workers

    def __iter__(self) -> Messages:
        return self

    def __next__(self) -> Chunk:
        """Where a worker failed within a chunk, the others' next chunks come before its error, and are not delivered."""
        while True:
            chunk = self._receive()
            if chunk.first == self._next:
                self._next = chunk.end
                return chunk

    def _receive(self) -> Chunk:
        """The next message: workers send in turn."""
        self.waiting_since = time.monotonic()
        try:
            chunk: Chunk = next(self._received)
        finally:
            self.waiting_since = None
        return chunk

    def parts(self) -> list[Iterator[Chunk]]:
        """The chunks of each worker on their own."""
        waiting = [deque[Chunk]() for _ in self._workers]
        return [self._of(worker, waiting) for worker in range(len(waiting))]

    def _of(self, worker: int, waiting: list[deque[Chunk]]) -> Iterator[Chunk]:
        while True:
            while not waiting[worker]:
                try:
                    chunk = self._receive()
                except StopIteration:
                    return
                waiting[chunk.worker].append(chunk)
            yield waiting[worker].popleft()

    def close(self) -> None:
        """End the workers. Dropping the iterator does, unless a traceback still holds it; one that is stopped never ends."""
        self._closed.set()
        for worker in self._workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, signal.SIGCONT)
        self._received._shutdown_workers()


def _widen(pipe: Connection) -> None:
    """Let a message of uint16 fit in whole, where the system allows it: so its worker goes on while it is read."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE)


def _end_half_messages(
    messages: weakref.ref[Messages], closed: threading.Event, workers: list[BaseProcess], pipe: Connection, timeout: float
) -> None:
    """Where a message is awaited for longer than torch takes to look at its workers, torch is within the message, and does
    not look. If its worker is dead, or the user's ``timeout`` over: end all workers, and write zeros until the reader has
    its message. It is no pickle, so torch does look then, and raises.

    (To close the pipe would not do: processes that were forked meanwhile hold it open.)
    """

    def stuck() -> bool:
        owner = messages()
        since = None if owner is None or closed.is_set() else owner.waiting_since
        return since is not None and time.monotonic() - since > 1 + (timeout or LOOKS_AFTER)

    while not (stuck() and (timeout or any(worker.exitcode for worker in workers))):
        if closed.wait(1) or messages() is None:
            return
    for worker in workers:
        worker.kill()
        worker.join()
    with suppress(OSError):  # the reader has closed it
        while stuck():
            if select.select([], [pipe], [], 0.1)[1]:
                os.write(pipe.fileno(), FILLING)


# -- in a worker -------------------------------------------------------------------------------------------------------


class WorkerChunks(IterableDataset[Chunk]):
    """A worker's own chunks."""

    def __init__(self, run: Run, at: Position) -> None:
        self.run, self.at = run, at

    def __iter__(self) -> Iterator[Chunk]:
        info = get_worker_info()
        assert info is not None
        threading.Thread(target=_end_with_parent, daemon=True, name="slw_data").start()
        return self._chunks(info.id, info.num_workers)

    def _chunks(self, worker: int, num_workers: int) -> Iterator[Chunk]:
        for chunk in self.run.batches.part(self.at, worker, num_workers):
            chunk.worker = worker
            yield chunk


def _end_with_parent() -> None:
    """torch's own watch asks who its parent is when it begins, so it never misses one that was killed before."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
