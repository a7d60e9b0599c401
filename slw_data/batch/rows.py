"""Rows of a store: the tokens of any batch of any step, read at once, by arithmetic alone.

    run-level batch number -> row of the run -> lane and offset -> store position -> tokens

In a stage, batch ``t`` (counted from the stage's first, on one rank) has the rows ``(t world + rank) batch_size + i``
of the stage. Rows that follow each other in a lane are read as one run, so a chunk of batches costs a few calls.

Read next: :mod:`slw_data.batch.building`. For sources that can only be read in order: :mod:`slw_data.batch.documents`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slw_data.batch.chunk import CHUNK_TOKENS, Array, Chunk, chunks_from
from slw_data.errors import DataError
from slw_data.order.lanes import Lanes
from slw_data.order.permutation import Ints
from slw_data.plan import SequenceLengthPlan, Stage
from slw_data.sources.ids import bad_id, check_ids
from slw_data.sources.stores import TokenStore

__all__ = ["StoreRows"]

_READ_TOKENS = 2 * CHUNK_TOKENS  # of a chunk, each read once: handing over a chunk costs as much as a few batches
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
        self._offsets = stores["input_ids"].documents if documents else None
        dtype = stores["input_ids"].dtype
        self._checked = vocab_size is not None or dtype.kind == "i" or dtype.itemsize == 8  # else no id can be bad

    def chunks(self, start: int, stop: int | None, worker: int, num_workers: int, size: int | None) -> Iterator[Chunk]:
        """Batches ``start`` to ``stop`` in chunks of at most ``size``: the ``worker``-th of every ``num_workers``.

        Where chunks begin depends on the arguments alone, so workers agree on them without talking.
        """
        number = 0
        while stop is None or start < stop:
            stage, chunks = chunks_from(self.plan, start, stop, size, _READ_TOKENS)
            runs: _Runs | None = None
            for numbers in chunks:
                if number % num_workers == worker:
                    runs = (runs and runs.moved_to(numbers)) or self._find(stage, numbers)
                    yield from self._read_safely(stage, numbers, runs)
                number, start = number + 1, numbers.stop

    def _read_safely(self, stage: Stage, numbers: range, runs: _Runs) -> Iterator[Chunk]:
        """The chunk; where it holds a fault, the sound batches before it first, one by one."""
        try:
            chunk = self._read(stage, numbers, runs)
        except DataError:
            if len(numbers) == 1:
                raise
            for number in numbers:
                alone = range(number, number + 1)
                yield self._read(stage, alone, self._find(stage, alone))
            raise
        yield chunk

    def _read(self, stage: Stage, numbers: range, runs: _Runs) -> Chunk:
        chunk = Chunk(numbers, stage.rows, stage.length, {}, runs.by_lane)
        shape = (len(runs.lanes), runs.width)
        if self.documents:
            chunk.starts = np.zeros(shape, np.bool_)
        blocks: dict[str, Array] = {}  # each column is read once
        for part, (column, shift) in self.parts.items():
            if column not in blocks:
                width = runs.width + max(ahead for name, ahead in self.parts.values() if name == column)
                array = np.empty((shape[0], width + _APART), self.stores[column].dtype)[:, :width]
                blocks[column] = self._fill(column, runs, 0, array, chunk.starts if column == "input_ids" else None)
            chunk.columns[part] = blocks[column][:, shift : shift + runs.width]
        if "next" in chunk.columns and self.epochs is not None and runs.room <= runs.width:
            ended = runs.offsets + runs.width + 1 > self.epochs * self.lanes.epoch_tokens(runs.lanes)
            if ended.any():  # only the token after a lane's very last one does not exist
                chunk.valid_next = np.ones(shape, np.bool_)
                chunk.valid_next[ended, -1] = False
        return chunk

    def _find(self, stage: Stage, numbers: range) -> _Runs:
        """Where the rows of batches ``numbers`` lie."""
        batches, rows, length = len(numbers), stage.rows, stage.length
        world, lanes = self.plan.world_size, self.lanes.num_lanes
        batch, cycle, by_lane = numbers[0] - stage.start * self.plan.grad_accum_steps, world * rows, False
        first = self.plan.rows_before(stage.start) + (batch * world + self.rank) * rows
        if lanes == 1 and world == 1:  # a run of tokens from the first to the last
            starts = np.array([first])
        elif lanes == 1:  # a batch is a run
            starts = first + cycle * np.arange(batches)
        elif (world == 1 and rows % lanes == 0) or cycle == lanes:  # a lane's rows follow each other
            starts, by_lane = first + np.arange(min(rows, lanes)), True
        else:  # a row is a run
            starts = (first + cycle * np.arange(batches)[:, None] + np.arange(rows)).ravel()
        width = batches * rows * length // len(starts)
        offsets = self.lanes.offsets(self.plan, stage, starts)
        positions, room = self.lanes.locate(starts % lanes, offsets)
        per_batch = 0 if cycle % lanes else cycle // lanes * length
        return _Runs(numbers, by_lane, width, starts % lanes, offsets, positions, int(room.min()), per_batch)

    def _fill(self, column: str, runs: _Runs, shift: int, out: Array, starts: npt.NDArray[np.bool_] | None) -> Array:
        """Fill ``out``, a row from each run, and check it; ``starts`` is set where documents begin."""
        store, width = self.stores[column], out.shape[1]
        if starts is None and runs.room >= shift + width:  # no lane jumps
            store.gather(runs.positions + shift, width, out)
        else:
            self._fill_by_pieces(store, runs, shift, out, starts)
        if self._checked and column == "input_ids":
            found = check_ids(out, self.vocab_size)
            if found is not None:
                run, i = found
                [position], _ = self.lanes.locate(runs.lanes[run : run + 1], runs.offsets[run : run + 1] + (shift + i))
                raise bad_id(int(out[found]), self.vocab_size, f"token {position} of {store.name}")
        return out

    def _fill_by_pieces(
        self, store: TokenStore, runs: _Runs, shift: int, out: Array, starts: npt.NDArray[np.bool_] | None
    ) -> None:
        """As far as no lane jumps, again and again."""
        done, width, jumped = 0, out.shape[1], np.ones(len(runs.lanes), np.bool_)
        while done < width:
            positions, room = self.lanes.locate(runs.lanes, runs.offsets + (shift + done))
            stop = min(width, done + int(room.min()))
            store.gather(positions, stop - done, out[:, done:stop])
            if starts is not None and done < runs.width:
                starts[jumped, done] = True  # after a jump, or at the start of the run
                if self._offsets is not None:
                    _mark(self._offsets, positions, starts[:, done:stop])
            done, jumped = stop, room == stop - done
        if starts is not None and self._offsets is None and self.eos_id is not None:
            starts[:, 1:] |= out[:, : runs.width - 1] == self.eos_id


@dataclass
class _Runs:
    """Where the rows of batches ``numbers`` lie: in runs of ``width`` tokens that follow each other in a lane.

    A run begins at ``offsets`` of ``lanes``, which are ``positions`` of the store; from there at least ``room`` tokens
    follow before any lane jumps. Each batch moves the runs ``per_batch`` tokens on; 0 if it is not that simple.
    """

    numbers: range
    by_lane: bool
    width: int
    lanes: Ints
    offsets: Ints
    positions: Ints
    room: int
    per_batch: int

    def moved_to(self, numbers: range) -> _Runs | None:
        """The runs of batches ``numbers``, if they are as many and no lane jumps before their end."""
        tokens = self.per_batch * (numbers.start - self.numbers.start)
        room = self.room - tokens
        if tokens <= 0 or room < self.width or len(numbers) != len(self.numbers):
            return None
        offsets, positions = self.offsets + tokens, self.positions + tokens
        return _Runs(numbers, self.by_lane, self.width, self.lanes, offsets, positions, room, self.per_batch)


def _mark(documents: Ints, positions: Ints, starts: npt.NDArray[np.bool_]) -> None:
    """Set ``starts`` where one of ``documents`` (sorted offsets) lies in a run that begins at its position."""
    low = np.searchsorted(documents, positions)
    high = np.searchsorted(documents, positions + starts.shape[1])
    for run, (a, b, position) in enumerate(zip(low.tolist(), high.tolist(), positions.tolist(), strict=True)):
        starts[run, documents[a:b] - position] = True
