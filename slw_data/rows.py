"""Rows of a store: the tokens of any batch of any step, read at once, by arithmetic alone.

    run-level batch number -> row of the run -> lane and offset -> store position -> tokens

In a stage, batch ``t`` (counted from the stage's first, on one rank) has the rows ``(t world + rank) batch_size + i``
of the stage. Rows that follow each other in a lane are read as one run, so a chunk of batches costs a few calls.

Read next: :mod:`slw_data.batches`. The same for sources that can only be read in order is :mod:`slw_data.documents`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from slw_data.batches import Array, Chunk, bad_id, check_ids, stretch
from slw_data.errors import DataError
from slw_data.lanes import Ints, Lanes
from slw_data.plan import SequenceLengthPlan, Stage
from slw_data.stores import TokenStore

__all__ = ["StoreRows"]

_APART = 32  # tokens between runs in memory: a distance that is a power of two would put all of them in the same cache sets


class StoreRows:
    """Cuts the batches of one rank from a store.

    Args:
        stores: a store for each column, all of one length.
        plan: the shapes.
        lanes: the order.
        rank: data-parallel rank.
        epochs: where the data ends, or None: lanes run on into further epochs as long as the plan does.
        parts: what to read: for each name a column, and how many tokens further on (1 for labels).
        documents: whether to find where documents begin; by the store's own offsets, else after each ``eos_id``.
    """

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        plan: SequenceLengthPlan,
        lanes: Lanes,
        *,
        rank: int,
        epochs: int | None,
        parts: Mapping[str, tuple[str, int]],
        documents: bool,
        eos_id: int | None,
        vocab_size: int | None,
    ) -> None:
        self.stores, self.plan, self.lanes, self.rank, self.epochs, self.parts = stores, plan, lanes, rank, epochs, parts
        self.documents, self.eos_id, self.vocab_size = documents, eos_id, vocab_size
        self.cast = True  # to int64 while reading; a worker leaves that to the main process
        self._offsets = stores["input_ids"].documents if documents else None

    def chunks(self, start: int, stop: int | None, worker: int, num_workers: int, size: int | None) -> Iterator[Chunk]:
        """Batches ``start`` to ``stop`` in chunks of at most ``size``: the ``worker``-th of every ``num_workers``.

        Where chunks begin depends on the arguments alone, so workers agree on them without talking.
        """
        number = 0
        while stop is None or start < stop:
            stage, end = stretch(self.plan, start, stop, size)
            if number % num_workers == worker:
                yield from self._read_safely(stage, range(start, end))
            number, start = number + 1, end

    def _read_safely(self, stage: Stage, numbers: range) -> Iterator[Chunk]:
        """The chunk; where it holds a fault, the sound batches before it first, one by one."""
        try:
            chunk = self._read(stage, numbers)
        except DataError:
            if len(numbers) == 1:
                raise
            for number in numbers:
                yield self._read(stage, range(number, number + 1))
            raise
        yield chunk

    def _read(self, stage: Stage, numbers: range) -> Chunk:
        rows, length, plan = stage.rows, stage.length, self.plan
        batch = numbers[0] - stage.start * plan.grad_accum_steps
        first = plan.rows_before(stage.start) + (batch * plan.world_size + self.rank) * rows
        lanes, cycle = self.lanes.num_lanes, plan.world_size * rows
        if lanes == 1 and plan.world_size == 1:  # a run of tokens from the first to the last
            starts, width, by_lane = np.array([first]), len(numbers) * rows * length, False
        elif lanes == 1:  # a batch is a run
            starts, width, by_lane = first + cycle * np.arange(len(numbers)), rows * length, False
        elif (plan.world_size == 1 and rows % lanes == 0) or cycle == lanes:  # a lane's rows follow each other
            starts = first + np.arange(min(rows, lanes))
            width, by_lane = len(numbers) * rows // len(starts) * length, True
        else:  # a row is a run
            starts = (first + cycle * np.arange(len(numbers))[:, None] + np.arange(rows)).ravel()
            width, by_lane = length, False
        offsets = self.lanes.offsets(plan, stage, starts)
        return self._runs(Chunk(numbers, rows, length, {}, by_lane), starts % lanes, offsets, width)

    def _runs(self, chunk: Chunk, lanes: Ints, offsets: Ints, width: int) -> Chunk:
        """Read ``width`` tokens of each part of a chunk, from each offset."""
        shape = (len(lanes), width)
        for part, (column, shift) in self.parts.items():
            store = self.stores[column]
            if self.cast and not chunk.by_lane:  # what is read is in its final order already
                array: Array = np.empty(shape, np.int64)
            else:
                array = np.empty((shape[0], width + _APART), store.dtype)[:, :width]
            chunk.columns[part] = array
            starts = np.zeros(shape, np.bool_) if part == "input_ids" and self.documents else None
            self._read_runs(store, lanes, offsets + shift, array, starts)
            if starts is not None:
                chunk.starts = starts
            if column == "input_ids":
                self._check(store, array, lanes, offsets + shift)
        if "next" in chunk.columns and self.epochs is not None:
            ended = offsets + width + 1 > self.epochs * self.lanes.epoch_tokens(lanes)
            if ended.any():  # only the token after a lane's very last one does not exist
                chunk.valid_next = np.ones(shape, np.bool_)
                chunk.valid_next[ended, -1] = False
        return chunk

    def _read_runs(
        self, store: TokenStore, lanes: Ints, offsets: Ints, out: Array, starts: npt.NDArray[np.bool_] | None
    ) -> None:
        """Fill ``out``, a row from each offset: piece by piece, as far as no lane jumps."""
        done, width, jumped = 0, out.shape[1], np.ones(len(lanes), np.bool_)
        while done < width:
            position, room = self.lanes.locate(lanes, offsets + done)
            stop = min(width, done + int(room.min()))
            store.gather(position, stop - done, out[:, done:stop])
            if starts is not None:
                starts[jumped, done] = True  # after a jump, or at the start of the run
                if self._offsets is not None:
                    _mark(self._offsets, position, starts[:, done:stop])
            done, jumped = stop, room == stop - done
        if starts is not None and self._offsets is None and self.eos_id is not None:
            starts[:, 1:] |= out[:, :-1] == self.eos_id

    def _check(self, store: TokenStore, ids: Array, lanes: Ints, offsets: Ints) -> None:
        if self.vocab_size is None and store.dtype.kind == "u" and store.dtype.itemsize < 8:
            return
        found = check_ids(ids, self.vocab_size)
        if found is not None:
            run, i = found
            [position], _ = self.lanes.locate(lanes[run : run + 1], offsets[run : run + 1] + i)
            raise bad_id(int(ids[run, i]), self.vocab_size, f"token {position} of {store.name}")


def _mark(documents: Ints, positions: Ints, starts: npt.NDArray[np.bool_]) -> None:
    """Set ``starts`` where one of ``documents`` (sorted offsets) lies in a run that begins at its position."""
    low = np.searchsorted(documents, positions)
    high = np.searchsorted(documents, positions + starts.shape[1])
    for run, (a, b, position) in enumerate(zip(low.tolist(), high.tolist(), positions.tolist(), strict=True)):
        starts[run, documents[a:b] - position] = True
