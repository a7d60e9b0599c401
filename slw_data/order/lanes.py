"""Lanes: the order in which a store's tokens are delivered. **Row r of the run is cut from lane r mod num_lanes.**

A lane is an endless sequence of tokens: its share of the store, epoch after epoch, without a seam. In stream order
there is one lane, and it is the store itself. Otherwise the store is cut into equal blocks, and block ``b`` of the
(permuted) order belongs to lane ``b mod num_lanes``; what the blocks leave over is dealt evenly at an epoch's end::

    order of blocks   p(0) p(1) p(2) p(3) p(4) p(5) ...          p: the permutation of (seed, epoch), or identity
    lane 0            p(0)      p(2)      p(4)      ... tail     rows 0, 2, 4, ... of the run
    lane 1                 p(1)      p(3)      p(5) ... tail     rows 1, 3, 5, ...

Both steps of a look-up are arithmetic, so nothing is replayed and any process can make any row:
:meth:`Lanes.offsets` from a row of the run to an offset in its lane, :meth:`Lanes.locate` from there to the store.

Read next: :mod:`slw_data.batch.rows`, which reads whole batches this way.
"""

from __future__ import annotations

import numpy as np

from slw_data.errors import DataError
from slw_data.order.permutation import Ints, permute
from slw_data.plan import SequenceLengthPlan, Stage

__all__ = ["Lanes"]

_BLOCK_ROWS = 256  # a block holds about this many of the longest rows, so that few rows straddle two blocks
_BLOCKS_PER_LANE = 8  # and a lane has at least this many blocks, where the store allows
_PERMUTED = 1024  # blocks of several turns are permuted at once, because calls are dear


class Lanes:
    """The lanes of a store of ``num_tokens`` tokens.

    Args:
        num_tokens: length of the store, at least ``num_lanes``.
        num_lanes: readers that rows are dealt to.
        shuffle: permute the blocks, anew in each epoch; else they keep the store's order.
        seed: of the permutations.
        max_length: the longest row, which sizes the blocks.
    """

    def __init__(self, num_tokens: int, *, num_lanes: int = 1, shuffle: bool = False, seed: int = 0, max_length: int):
        if num_tokens < num_lanes:
            raise DataError(f"{num_lanes} lanes need at least as many tokens, the source has {num_tokens}: lower num_lanes")
        self.num_tokens, self.num_lanes, self.shuffle, self.seed = num_tokens, num_lanes, shuffle, seed
        share, self._extra = divmod(num_tokens, num_lanes)  # the first _extra lanes have one token more in an epoch
        self.blocks = 1 if num_lanes == 1 and not shuffle else max(_BLOCKS_PER_LANE, share // (_BLOCK_ROWS * max_length))
        self.blocks = min(self.blocks, share)  # per lane and epoch
        self.block_size = share // self.blocks
        self._tail = share - self.blocks * self.block_size
        self._share = share + (np.arange(num_lanes, dtype=np.int64) < self._extra)
        self._starts: dict[int, Ints] = {}
        self._base: tuple[Stage, Ints] | None = None

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""
        if self.num_lanes == 1 and not self.shuffle:
            return "in order"
        shuffle = f"shuffled with seed {self.seed}" if self.shuffle else "in order"
        return f"{shuffle}, num_lanes={self.num_lanes}, {self.blocks} blocks of {self.block_size} tokens in each"

    def epoch_tokens(self, lanes: Ints) -> Ints:
        """How many tokens each lane has in one epoch."""
        share: Ints = self._share[lanes]
        return share

    def locate(self, lanes: Ints, offsets: Ints) -> tuple[Ints, Ints]:
        """Where the tokens at ``offsets`` of ``lanes`` lie in the store, and how many follow there without a jump."""
        if self.blocks == 1 and self.num_lanes == 1:
            position = offsets % self.num_tokens
            return position, self.num_tokens - position
        share = self._share[lanes]
        epoch = offsets // share
        within = offsets - epoch * share
        block = np.minimum(within // self.block_size, self.blocks)
        within -= block * self.block_size
        turn = epoch * (self.blocks + 1) + block
        size = np.where(block < self.blocks, self.block_size, self._tail + (lanes < self._extra))
        first = int(turn.min())
        if (turn == first).all():
            return self._turn(first)[lanes] + within, size - within
        room = size - within
        position = within
        for value in np.unique(turn).tolist():
            here = turn == value
            position[here] += self._turn(value)[lanes[here]]
        return position, room

    def _turn(self, turn: int) -> Ints:
        """The store position of every lane's ``turn``-th piece: ``blocks`` blocks and a tail in each epoch."""
        if turn not in self._starts:
            if len(self._starts) > max(8, 4 * _PERMUTED // self.num_lanes):
                self._starts.clear()
            epoch, first = divmod(turn, self.blocks + 1)
            last = min(first + max(1, _PERMUTED // self.num_lanes), self.blocks)
            blocks = np.arange(first, last, dtype=np.int64)[:, None] * self.num_lanes + np.arange(self.num_lanes)
            if self.shuffle and blocks.size:
                blocks = permute(blocks, self.blocks * self.num_lanes, (self.seed, epoch))
            self._starts.update(enumerate(blocks * self.block_size, turn))
            lanes = np.arange(self.num_lanes, dtype=np.int64)
            tail = self.blocks * self.num_lanes * self.block_size + lanes * self._tail + np.minimum(lanes, self._extra)
            self._starts[epoch * (self.blocks + 1) + self.blocks] = tail
        return self._starts[turn]

    def offsets(self, plan: SequenceLengthPlan, stage: Stage, rows: Ints) -> Ints:
        """Offsets in lane ``r mod num_lanes`` of the first tokens of run rows ``r``, which lie in ``stage``.

        Before stage i, with length L_i and first row R_i, a lane has delivered the rows below R_i that are its own.
        Summing by parts gives ``offset(r) = L_i (r // n) + sum over stages j <= i of (L_(j-1) - L_j) c(R_j)``, where
        c(R) = ``R // n + (lane < R mod n)`` counts the lane's rows below R.
        """
        base = self._stage_base(plan, stage)
        if self.num_lanes == 1:
            return base + stage.length * rows
        turns, lanes = np.divmod(rows, self.num_lanes)
        offsets: Ints = base[lanes] + stage.length * turns
        return offsets

    def ended(self, plan: SequenceLengthPlan, steps: int, epochs: int) -> bool:
        """Whether ``steps`` steps take more than ``epochs`` epochs of some lane."""
        stage = plan.stage_at(steps - 1)
        taken = self._base_from_history(*plan.history(steps - 1)) + stage.length * self._rows_below(plan.rows_before(steps))
        return bool((taken > epochs * self._share).any())

    def _stage_base(self, plan: SequenceLengthPlan, stage: Stage) -> Ints:
        if self._base is None or self._base[0].start != stage.start:
            if self._base is not None and self._base[0].stop == stage.start:
                before, base = self._base
                row = plan.rows_before(stage.start)
                base = base + (before.length - stage.length) * self._rows_below(row)
            else:
                base = self._base_from_history(*plan.history(stage.start))
            self._base = (stage, base)
        elif self._base[0].stop != stage.stop:  # a callable has been read further meanwhile
            self._base = (stage, self._base[1])
        return self._base[1]

    def _rows_below(self, row: int) -> Ints:
        below: Ints = row // self.num_lanes + (np.arange(self.num_lanes, dtype=np.int64) < row % self.num_lanes)
        return below

    def _base_from_history(self, rows_before: list[int], lengths: list[int]) -> Ints:
        """The sum over all stages at once: whole turns of the lanes, and the lanes below each remainder."""
        rows = np.array(rows_before, dtype=np.int64)[1:]
        of_stages = np.array(lengths, dtype=np.int64)
        steps = of_stages[:-1] - of_stages[1:]
        remainder = np.zeros(self.num_lanes + 1, dtype=np.int64)
        np.add.at(remainder, rows % self.num_lanes, steps)
        above = np.cumsum(remainder[::-1])[::-1][1:]
        base: Ints = (steps * (rows // self.num_lanes)).sum() + above
        return base
