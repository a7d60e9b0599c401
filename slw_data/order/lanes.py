"""Lanes: the order in which a store's tokens are delivered. **Row r of the run is cut from lane r mod num_lanes.**

A lane is an endless sequence of tokens: its share of the store, epoch after epoch, without a seam. In stream order
there is one lane, and it is the store itself. Otherwise the store is cut into equal blocks, and block ``b`` of the
(permuted) order belongs to lane ``b mod num_lanes``; what the blocks leave over is dealt evenly at an epoch's end::

    order of blocks   p(0) p(1) p(2) p(3) p(4) p(5) ...          p: the permutation of (seed, epoch), or identity
    lane 0            p(0)      p(2)      p(4)      ... tail     rows 0, 2, 4, ... of the run
    lane 1                 p(1)      p(3)      p(5) ... tail     rows 1, 3, 5, ...

Both steps of a look-up are arithmetic, so nothing is replayed and any process can make any row: from a row of the run to
an offset in its lane, and from there to the store. :class:`Lanes` is the geometry, a value; a :class:`LaneReader`
remembers what one reader looked up last, and is shared by none.

Read next: :mod:`slw_data.order.store`, which says where whole batches lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np

from slw_data.cached import cached
from slw_data.errors import DataError
from slw_data.order.permutation import Ints, permute
from slw_data.plan import SequenceLengthPlan, Stage

__all__ = ["LaneReader", "Lanes", "open_lanes"]

_MOST_LANES = 1 << 16  # by default; a reader keeps a few numbers for each
_WHOLE = 1 << 20  # tokens of a lane by default that stay in one block
_BLOCK = 1 << 18  # tokens of a block at most, where the user chose the lanes
_BLOCKS = 8  # and blocks of each lane at least, so that few lanes come to many places too


@dataclass(frozen=True)
class Lanes:
    """The lanes of a store.

    Args:
        num_tokens: length of the store, at least ``num_lanes``.
        num_lanes: readers that rows are dealt to.
        shuffle: permute the blocks, anew in each epoch; else they keep the store's order.
        seed: of the permutations.
        blocks: of each lane in an epoch.
    """

    num_tokens: int
    num_lanes: int = 1
    shuffle: bool = False
    seed: int = 0
    blocks: int = 1

    @cached
    def share(self) -> int:
        """Tokens of a lane in an epoch; the first ``extra`` lanes have one more."""
        return self.num_tokens // self.num_lanes

    @cached
    def extra(self) -> int:
        return self.num_tokens % self.num_lanes

    @cached
    def block_size(self) -> int:
        return self.share // self.blocks

    @cached
    def tail(self) -> int:
        """Tokens of a lane that its blocks leave over in an epoch."""
        return self.share % self.blocks

    @property
    def in_order(self) -> bool:
        """Whether the only lane is the store itself."""
        return self.num_lanes == 1 and self.blocks == 1

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""
        if self.num_lanes == 1 and not self.shuffle:
            return "in order"
        shuffle = f"shuffled with seed {self.seed}" if self.shuffle else "in order"
        return f"{shuffle}, num_lanes={self.num_lanes}, {self.blocks} blocks of {self.block_size} tokens in each"

    def epoch_tokens(self, lanes: Ints) -> Ints:
        """How many tokens each lane has in one epoch."""
        share: Ints = self.share + (lanes < self.extra)
        return share

    def rows_below(self, row: int) -> Ints:
        """How many of the rows below ``row`` are each lane's."""
        below: Ints = row // self.num_lanes + (np.arange(self.num_lanes, dtype=np.int64) < row % self.num_lanes)
        return below

    def piece_starts(self, lanes: Ints, turns: Ints) -> Ints:
        """The store position of each lane's ``turn``-th piece: ``blocks`` blocks and a tail in each epoch."""
        epochs, block = np.divmod(turns, self.blocks + 1)
        number = block * self.num_lanes + lanes
        tail = self.blocks * self.num_lanes * self.block_size + lanes * self.tail + np.minimum(lanes, self.extra)
        if self.shuffle:
            for epoch in np.unique(epochs).tolist():
                here = np.flatnonzero((epochs == epoch) & (block < self.blocks))
                number[here] = permute(number[here], self.blocks * self.num_lanes, (self.seed, epoch))
        starts: Ints = np.where(block < self.blocks, number * self.block_size, tail)
        return starts


def open_lanes(num_tokens: int, num_lanes: int | None = None, *, shuffle: bool = False, seed: int = 0) -> Lanes:
    """The lanes of a store of ``num_tokens`` tokens: ``num_lanes`` of them, or as many as are good for training.

    Without ``shuffle`` that is one. With it, a power of two near a quarter of the square root of ``num_tokens``, 65,536 at
    most: batches that follow each other then come from many places, and a lane still reads on for about six square roots, so
    that few rows are put together from two places. It depends on the store alone, so no change of plan moves it.

    >>> [open_lanes(n, shuffle=True).num_lanes for n in (1_000, 10**6, 31_500_000, 10**9, 10**12)]
    [4, 128, 1024, 4096, 65536]

    DataError for more lanes than tokens.
    """
    if num_lanes is None and not shuffle:
        return Lanes(num_tokens)
    if num_lanes is None:
        num_lanes = 1 << (min(max(isqrt(num_tokens) // 4, 1), _MOST_LANES).bit_length() - 1)
        blocks = max(1, num_tokens // num_lanes // _WHOLE)
        return Lanes(num_tokens, num_lanes, shuffle, seed, blocks)
    if num_tokens < num_lanes:
        raise DataError(f"{num_lanes} lanes need at least as many tokens, the source has {num_tokens}: lower num_lanes")
    share = num_tokens // num_lanes
    blocks = 1 if num_lanes == 1 and not shuffle else min(max(_BLOCKS, share // _BLOCK), share)
    return Lanes(num_tokens, num_lanes, shuffle, seed, blocks)


class LaneReader:
    """Looks up rows in ``lanes`` along ``plan``, and remembers each lane's block and what it had delivered before the
    stage. It belongs to one iteration in one thread."""

    def __init__(self, lanes: Lanes, plan: SequenceLengthPlan) -> None:
        self.lanes, self.plan = lanes, plan
        self._turn = np.full(lanes.num_lanes, -1, np.int64)
        self._start = np.zeros(lanes.num_lanes, np.int64)
        self._base: tuple[Stage, Ints] | None = None

    def locate(self, lanes: Ints, offsets: Ints) -> tuple[Ints, Ints]:
        """Where the tokens at ``offsets`` of ``lanes`` lie in the store, and how many follow there without a jump."""
        of = self.lanes
        if of.in_order:
            position = offsets % of.num_tokens
            return position, of.num_tokens - position
        share = of.epoch_tokens(lanes)
        epoch = offsets // share
        within = offsets - epoch * share
        block = np.minimum(within // of.block_size, of.blocks)
        within -= block * of.block_size
        size = np.where(block < of.blocks, of.block_size, of.tail + (lanes < of.extra))
        return self._piece_starts(lanes, epoch * (of.blocks + 1) + block) + within, size - within

    def _piece_starts(self, lanes: Ints, turns: Ints) -> Ints:
        starts = self._start[lanes]
        new = np.flatnonzero(self._turn[lanes] != turns)
        if new.size:
            # the same piece may be asked for by many rows: permuted once
            pairs, inverse = np.unique(np.stack([turns[new], lanes[new]]), axis=1, return_inverse=True)
            found = self.lanes.piece_starts(pairs[1], pairs[0])
            starts[new] = found[inverse.ravel()]
            self._turn[pairs[1]], self._start[pairs[1]] = pairs[0], found  # of two pieces of a lane the later one stays
        return starts

    def offsets(self, stage: Stage, rows: Ints) -> Ints:
        """Offsets in lane ``r mod num_lanes`` of the first tokens of run rows ``r``, which lie in ``stage``.

        Before stage i, with length L_i and first row R_i, a lane has delivered the rows below R_i that are its own.
        Summing by parts gives ``offset(r) = L_i (r // n) + sum over stages j <= i of (L_(j-1) - L_j) c(R_j)``, where
        c(R) = ``R // n + (lane < R mod n)`` counts the lane's rows below R.
        """
        base = self._stage_base(stage)
        if self.lanes.num_lanes == 1:
            return base + stage.length * rows
        turns, lanes = np.divmod(rows, self.lanes.num_lanes)
        offsets: Ints = base[lanes] + stage.length * turns
        return offsets

    def delivered(self, step: int) -> Ints:
        """How many tokens each lane has delivered before ``step``."""
        if step == 0:
            return np.zeros(self.lanes.num_lanes, np.int64)
        stage = self.plan.stage_at(step - 1)
        base = self._from_history(*self.plan.history(step - 1))
        delivered: Ints = base + stage.length * self.lanes.rows_below(self.plan.rows_before(step))
        return delivered

    def _stage_base(self, stage: Stage) -> Ints:
        if self._base is None or self._base[0].start != stage.start:
            if self._base is not None and self._base[0].stop == stage.start:
                before, base = self._base
                base = base + (before.length - stage.length) * self.lanes.rows_below(stage.rows_before)
            else:
                base = self._from_history(*self.plan.history(stage.start))
            self._base = (stage, base)
        elif self._base[0].stop != stage.stop:  # a callable has been read further meanwhile
            self._base = (stage, self._base[1])
        return self._base[1]

    def _from_history(self, rows_before: list[int], lengths: list[int]) -> Ints:
        """The sum over all stages at once: whole turns of the lanes, and the lanes below each remainder."""
        num_lanes = self.lanes.num_lanes
        rows = np.array(rows_before, dtype=np.int64)[1:]
        of_stages = np.array(lengths, dtype=np.int64)
        steps = of_stages[:-1] - of_stages[1:]
        remainder = np.zeros(num_lanes + 1, dtype=np.int64)
        np.add.at(remainder, rows % num_lanes, steps)
        above = np.cumsum(remainder[::-1])[::-1][1:]
        base: Ints = (steps * (rows // num_lanes)).sum() + above
        return base
