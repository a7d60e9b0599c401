"""Chunks: some consecutive batches of one rank in one shape, still in the source's own dtype.

It is what is read at once, and what a worker sends to the main process in one message.

Read next: :mod:`slw_data.batch.reading`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slw_data.order.dealing import Mark
from slw_data.order.position import Order, Position
from slw_data.plan import SequenceLengthPlan, ShardPlan, Stage

__all__ = ["CHUNK_TOKENS", "NEXT", "Array", "Batches", "Chunk", "Mark", "batches_from", "chunked", "place"]

Array = npt.NDArray[Any]

CHUNK_TOKENS = 1 << 18  # of all tensors together; enough to spread the cost of a call, and in the cache: 2 MiB of int64
NEXT = "the token after each"  # where a column would be, the tokens one further on: a column may be called "next"
SPAN_BATCHES = 1024  # as far as a schedule that is only a callable is asked ahead


@dataclass
class Chunk:
    """Batches ``numbers`` of ``stage`` (counted from its start, on one rank).

    ``columns`` are arrays of their tokens: the parallel columns, and as ``NEXT`` the tokens one further on, for labels.
    An array has shape (runs, width), in the order of the batches; or, ``by_lane``, run i has the i-th row of each cycle of
    runs. ``valid`` (of the tokens) and ``valid_next`` are False where there is no token (padding, the end of the data),
    ``starts`` is True where a document begins; None means all, all and none. ``after[i]`` is the position of a stream once
    batch i is delivered; None where it is arithmetic.
    """

    stage: Stage
    numbers: range
    columns: dict[str, Array]
    by_lane: bool = False
    valid: npt.NDArray[np.bool_] | None = None
    valid_next: npt.NDArray[np.bool_] | None = None
    starts: npt.NDArray[np.bool_] | None = None
    after: Sequence[Position] | None = None
    worker: int = 0  # that has made it
    marks: Sequence[Mark] = ()  # of the blocks of a stream that were read for it

    @property
    def rows(self) -> int:
        return self.stage.rows

    @property
    def length(self) -> int:
        return self.stage.length

    @property
    def first(self) -> tuple[int, int]:
        """Step and micro-batch of the first batch."""
        return place(self.stage, self.numbers.start)

    @property
    def end(self) -> tuple[int, int]:
        """Step and micro-batch of the batch after the last."""
        return place(self.stage, self.numbers.stop)

    def position(self, i: int) -> Position:
        """Where the run stands once batch ``i`` of the chunk is delivered."""
        return self.after[i] if self.after is not None else Position(*place(self.stage, self.numbers[i] + 1))

    def part(self, start: int, stop: int) -> Chunk:
        """Batches ``start`` to ``stop`` of these."""
        if (start, stop) == (0, len(self.numbers)):
            return self
        some = Chunk(self.stage, self.numbers[start:stop], {})
        some.columns = {name: self.view(values)[start:stop] for name, values in self.columns.items()}
        for name in ("valid", "valid_next", "starts"):
            values = getattr(self, name)
            setattr(some, name, None if values is None else self.view(values)[start:stop])
        some.after = None if self.after is None else self.after[start:stop]
        return some

    def view(self, array: Array) -> Array:
        """``array`` by batch: ``view[i]`` has the tokens of batch i in their order, in two or more dimensions."""
        batches, runs = len(self.numbers), array.shape[0]
        if not self.by_lane:
            return array.reshape(batches, self.rows, self.length)
        return array.reshape(runs, batches, self.rows // runs, self.length).transpose(1, 2, 0, 3)

    def final(self, array: Array) -> Array:
        """``array`` as ``(batches, rows, length)``."""
        return self.view(array).reshape(len(self.numbers), self.rows, self.length)


class Batches(Protocol):
    """The batches of one rank, whatever they are read from. It never changes, so threads and processes share it."""

    @property
    def order(self) -> Order:
        """Which rows they have."""

    def chunks(self, at: Position, worker: int, num_workers: int, size: int | None) -> Generator[Chunk, None, int | None]:
        """Batches from ``at`` on in chunks of at most ``size``: the ``worker``-th of every ``num_workers``.

        Where chunks begin depends on the arguments alone, so workers agree on them without talking. Returns how many tokens
        the end of the data left over, if it was met while reading.
        """

    def part(self, at: Position, worker: int, num_workers: int) -> Iterator[Chunk]:
        """What ``worker`` of ``num_workers`` of an :class:`slw_data.SLWLoader` makes."""

    def check_parts(self, num_workers: int) -> None:
        """DataError if so many workers cannot share the reading."""

    def describe(self) -> str:
        """The order in words, and how much it mixes the source, as far as that is known before."""


def place(stage: Stage, number: int) -> tuple[int, int]:
    """Step and micro-batch of batch ``number`` of ``stage``."""
    steps, batch = divmod(number, stage.grad_accum_steps)
    return stage.start + steps, batch


def batches_from(
    plan: SequenceLengthPlan | ShardPlan, at: tuple[int, int], size: int | None, tokens: int
) -> tuple[Stage, int, int, int]:
    """``(stage, first, stop, most)``: the stage of the batch at ``at`` (step and micro-batch), the batches of it to go on
    with, and how many of them make a chunk: ``size``, or so many tokens.

    It depends on the arguments alone, so all workers agree without talking.
    """
    step, batch = at
    last = plan.total_steps
    accumulated = plan.micro_batches(step)
    ahead = 1 if size == 1 else SPAN_BATCHES // accumulated + 2
    stage = plan.stage_at(step, ahead if last is None else min(ahead, last - step))
    first = (step - stage.start) * stage.grad_accum_steps + batch
    most = size or max(1, min(tokens // (stage.rows * stage.length), SPAN_BATCHES))
    steps = [end for end in (stage.stop, last) if end is not None]
    stop = first + max(most, SPAN_BATCHES)
    return stage, first, min([stop, *((end - stage.start) * stage.grad_accum_steps for end in steps)]), most


def chunked(first: int, stop: int, most: int) -> Iterator[range]:
    """Ranges of at most ``most`` from ``first`` to ``stop``."""
    return (range(start, min(start + most, stop)) for start in range(first, stop, most))
