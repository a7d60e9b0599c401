"""The order of a store: where the rows of any batch of any step lie, on any rank, by arithmetic alone.

    batch of a stage -> rows of the run -> lanes and offsets -> spans of the store

In a stage, batch ``k`` (counted from the stage's first, on one rank) has the rows ``(k world + rank) rows + i`` of the
stage. Where the data ends with its last epoch, the lanes end at different rows. From the first step on that some lane
has too few tokens for, what all lanes have left over is joined in the order of the lanes, and rows are cut from that::

    lane 0   ######### rows in turn ######### | 0 0 0
    lane 1   ######### rows in turn ######### | 1                 the rest: 0 0 0 1 2 2, cut as one lane
    lane 2   ######### rows in turn ######### | 2 2
                                              rest.step

Read next: :mod:`slw_data.batch.reading`, which reads what lies there.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from slw_data.arguments import shown
from slw_data.cached import cached
from slw_data.errors import ScheduleError, StateError
from slw_data.order.lanes import LaneReader, Lanes
from slw_data.order.permutation import Ints
from slw_data.order.position import Position
from slw_data.order.spans import Spans, joined
from slw_data.plan import SequenceLengthPlan, Stage

__all__ = ["Rest", "StoreOrder"]

_BEGIN = Position()
_MOST_TOKENS = (1 << 63) - 1  # offsets are int64


class Rest(NamedTuple):
    """What the lanes leave over at the end of the data.

    From ``step`` on rows are cut from it. Each lane had ``delivered`` so many tokens before; its part of the rest is from
    ``bounds[lane]`` to ``bounds[lane + 1]``. Both are int64, of shape (num_lanes,) and (num_lanes + 1,).
    """

    step: int
    delivered: Ints
    bounds: Ints


@dataclass(frozen=True)
class StoreOrder:
    """Rows of ``plan`` from ``lanes``. ``epochs``: where the data ends; None: lanes run on as long as the plan does."""

    lanes: Lanes
    plan: SequenceLengthPlan
    epochs: int | None = None

    @cached
    def rest(self) -> Rest | None:
        """None if there is nothing to join: one lane, or no end."""
        if self.epochs is None or self.lanes.num_lanes == 1:
            return None
        reader = LaneReader(self.lanes, self.plan)
        ends = self.epochs * self.lanes.epoch_tokens(np.arange(self.lanes.num_lanes))

        def too_few(step: int) -> bool:
            return bool((reader.delivered(step + 1) > ends).any())

        step = bisect_left(range(self.plan.total_steps or 0), True, key=too_few)
        delivered = reader.delivered(step)
        return Rest(step, delivered, np.concatenate([[0], np.cumsum(ends - delivered)]))

    @property
    def fingerprint(self) -> str:
        """What fixes the order of the rows before the rest, in words."""
        return self.lanes.fingerprint

    @property
    def may_jump(self) -> bool:
        """Whether a row may go on at another place of the store: of another block, or the beginning in another epoch."""
        tokens = self.plan.total_tokens
        return not self.lanes.in_order or tokens is None or tokens > self.lanes.num_tokens

    found_by_step: ClassVar[bool] = True

    @property
    def begin(self) -> Position:
        return _BEGIN

    def reader(self, at: Position = _BEGIN) -> LaneReader:
        """What one iteration looks up lanes with."""
        return LaneReader(self.lanes, self.plan)

    def settle(self, at: Position) -> Position:
        return at

    def seek(self, step: int) -> Position:
        return Position(step)

    def epoch(self, at: Position) -> int:
        """The pass over the store that the next row begins in."""
        step, rows = at.step, at.batch * self.plan.rows(at.step) * self.plan.world_size if at.batch else 0
        if self.lanes.num_lanes == 1 or step == self.plan.total_steps:
            tokens = self.plan.tokens_before(step) + (rows * self.plan.length(step) if rows else 0)
            return tokens // self.lanes.num_tokens
        stage, reader = self.plan.stage_at(step), self.reader()
        self._check_reach(stage, step)
        row = np.array([self.plan.rows_before(step) + rows])
        if self.rest is not None and step >= self.rest.step:
            _, lanes, offsets, _ = self._in_rest(self.rest, stage, row, 1)
        else:
            lanes, offsets = row % self.lanes.num_lanes, reader.offsets(stage, row)
        return int((offsets // self.lanes.epoch_tokens(lanes))[0])

    def leftover(self, at: Position) -> int | None:
        """Tokens that the end of the data leaves over; None if the data does not end the run."""
        return None if self.epochs is None else self.epochs * self.lanes.num_tokens - (self.plan.total_tokens or 0)

    def enough(self, stage: Stage, batches: range, reader: LaneReader) -> range:
        """All of ``batches``: the plan ends with the data."""
        return batches

    def skip(self, stage: Stage, batches: range, reader: LaneReader) -> None:
        """Nothing: any row is found at once."""

    def after(self, stage: Stage, batches: range, reader: LaneReader) -> None:
        """None: where the run stands is arithmetic."""

    def again(self, stage: Stage, batches: range, reader: LaneReader) -> LaneReader:
        return reader

    def left(self, reader: LaneReader) -> int:
        raise AssertionError("the plan ends before the data does")

    def spans(self, stage: Stage, batches: range, rank: int, look: int, reader: LaneReader) -> Spans:
        """Where ``batches`` of ``stage`` (counted from its start) lie that are ``rank``'s, and ``look`` tokens after each run.

        They must all come before the rest, or all be of it: see :meth:`limit`.
        """
        rows, world, lanes = stage.rows, self.plan.world_size, self.lanes.num_lanes
        self._check_reach(stage, self._step(stage, batches[-1]) + 1)
        if self.lanes.in_order and world == 1:  # a single run, as a rule without a jump
            width = len(batches) * rows * stage.length + look
            start = (stage.tokens_before + batches.start * rows * stage.length) % self.lanes.num_tokens
            if start + width <= self.lanes.num_tokens:
                return Spans(1, width, look, np.array([start]))
        first, cycle = stage.rows_before + (batches.start * world + rank) * rows, world * rows
        rest = self.rest if self.rest is not None and self._step(stage, batches.start) >= self.rest.step else None
        by_lane = False
        if lanes == 1 or rest is not None:  # a batch is a run, and so are all of a single rank
            starts = first + cycle * np.arange(1 if world == 1 else len(batches))
        elif (world == 1 and rows % lanes == 0) or cycle == lanes:  # a lane's rows follow each other
            starts, by_lane = first + np.arange(min(rows, lanes)), True
        else:  # a row is a run
            starts = (first + cycle * np.arange(len(batches))[:, None] + np.arange(rows)).ravel()
        width = len(batches) * rows * stage.length // len(starts)
        if rest is not None:
            where = self._in_rest(rest, stage, starts, width + look)
        else:
            where = self._in_lanes(stage, starts, width, look, reader)
        run, starts_, sizes = self._cut(reader, *where)
        alone = run if len(run) != len(starts) or (sizes != width + look).any() else None
        return Spans(len(starts), width + look, look, starts_, None if alone is None else sizes, alone, by_lane)

    def _check_reach(self, stage: Stage, step: int) -> None:
        """ScheduleError for a ``step`` of ``stage`` with more tokens before it than an int64 counts."""
        each = stage.length * stage.rows * stage.grad_accum_steps * self.plan.world_size
        if stage.tokens_before + (step - stage.start) * each > _MOST_TOKENS:
            raise ScheduleError(f"a run over a store has fewer than 2^63 tokens, and step {step} comes after more")

    def rest_at(self, at: Position) -> int | None:
        """The step from which on rows are cut from the rest, if ``at`` is beyond its beginning."""
        return self.rest.step if self.rest is not None and (at.step, at.batch) > (self.rest.step, 0) else None

    def dump(self, at: Position) -> str:
        """Nothing is needed beside the step and the batch."""
        return ""

    def load(self, text: Any, at: Position) -> None:
        if type(text) is not str or text:
            raise StateError(f"stream must be '' for a store, the saved state has {shown(text):.80}")

    def limit(self, stage: Stage, batch: int) -> int | None:
        """The batch of ``stage`` at which the rest begins, if that is after ``batch``."""
        if self.rest is None or self._step(stage, batch) >= self.rest.step:
            return None
        return (self.rest.step - stage.start) * stage.grad_accum_steps

    @staticmethod
    def _step(stage: Stage, batch: int) -> int:
        return stage.start + batch // stage.grad_accum_steps

    def _in_lanes(
        self, stage: Stage, rows: Ints, width: int, look: int, reader: LaneReader
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """``(run, lane, offset, size)`` of runs that begin with ``rows``. Nothing follows a lane's very last token."""
        lanes, offsets = rows % self.lanes.num_lanes, reader.offsets(stage, rows)
        sizes = np.full(len(rows), width + look)
        if self.epochs is not None and look:
            sizes = np.minimum(sizes, self.epochs * self.lanes.epoch_tokens(lanes) - offsets)
        return np.arange(len(rows)), lanes, offsets, sizes

    def _in_rest(self, rest: Rest, stage: Stage, rows: Ints, width: int) -> tuple[Ints, Ints, Ints, Ints]:
        """``(run, lane, offset, size)`` of runs of the joined rest: each is of one lane or more."""
        begin = stage.tokens_before - self.plan.tokens_before(rest.step) + (rows - stage.rows_before) * stage.length
        end = np.minimum(begin + width, rest.bounds[-1])
        first = np.searchsorted(rest.bounds, begin, side="right") - 1
        counts = np.maximum(np.searchsorted(rest.bounds, end, side="left") - first, 1)
        run = np.repeat(np.arange(len(rows)), counts)
        lanes = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
        lanes = np.minimum(lanes, self.lanes.num_lanes - 1)
        low = np.maximum(rest.bounds[lanes], begin[run])
        sizes = np.minimum(rest.bounds[lanes + 1], end[run]) - low
        some = np.flatnonzero(sizes > 0)  # of a lane nothing may be left
        offsets = rest.delivered[lanes] + low - rest.bounds[lanes]
        return run[some], lanes[some], offsets[some], sizes[some]

    @staticmethod
    def _cut(reader: LaneReader, run: Ints, lanes: Ints, offsets: Ints, sizes: Ints) -> tuple[Ints, Ints, Ints]:
        """``(run, start, size)`` of the spans: each piece of a lane is cut where the lane jumps."""
        starts, room = reader.locate(lanes, offsets)
        if (room >= sizes).all():
            return run, starts, sizes
        piece, found = np.arange(len(run)), []
        while True:
            size = np.minimum(room, sizes)
            found.append((piece, starts, size))
            left = np.flatnonzero(sizes > size)
            if not left.size:
                break
            piece, lanes, offsets, sizes = piece[left], lanes[left], (offsets + size)[left], (sizes - size)[left]
            starts, room = reader.locate(lanes, offsets)
        piece, starts, size = (np.concatenate(part) for part in zip(*found, strict=True))
        order = np.argsort(piece, kind="stable")  # of one piece, the earlier spans were found earlier
        return joined(run[piece[order]], starts[order], size[order])
