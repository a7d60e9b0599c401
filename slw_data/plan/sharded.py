"""The plan of a shard: each step takes as many rows from each of ``num_shards`` parts of a stream.

::

    a step of 8 rows     0 1 | 2 3 | 4 5 | 6 7          shards 0, 1, 2, 3
    2 ranks              rank 0    | rank 1             rank k has the rows of shards k * 2 and k * 2 + 1

Read next: :mod:`slw_data.plan.drawn`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from slw_data.errors import ScheduleError
from slw_data.plan.plan import SequenceLengthPlan
from slw_data.plan.stages import Stage

__all__ = ["ShardPlan", "nearest_divisor"]


@dataclass(frozen=True)
class ShardPlan:
    """What ``plan`` asks of each of ``num_shards`` shards: a step is one batch there, of a single rank."""

    plan: SequenceLengthPlan
    num_shards: int

    world_size: ClassVar[int] = 1

    @property
    def schedule(self) -> Any:
        return self.plan.schedule

    @property
    def total_steps(self) -> int | None:
        return self.plan.total_steps

    def check(self) -> None:
        """ScheduleError if there is a step whose rows cannot be divided, as far as steps are known."""
        known = self.plan.stages if self.plan.total_steps is not None else (self.plan.stage_at(0),)
        common = math.gcd(*map(self._rows, known))
        for stage in known:
            if self._rows(stage) % self.num_shards:
                raise self._uneven(stage, common)

    def _rows(self, stage: Stage) -> int:
        return stage.rows * stage.grad_accum_steps * self.plan.world_size

    def _uneven(self, stage: Stage, common: int) -> ScheduleError:
        """``common`` divides the rows of all steps that are known."""
        fitting = nearest_divisor(common, self.num_shards, self.plan.world_size)
        write = "" if fitting in (None, 1) else f"num_shards={fitting}, or "
        return ScheduleError(
            f"every step takes as many rows from each shard, so num_shards={self.num_shards} must divide the"
            f" {self._rows(stage)} rows of step {stage.start}: write {write}other batch sizes"
        )

    def stage_at(self, step: int, ahead: int = 1) -> Stage:
        return self._of_shard(self.plan.stage_at(step, ahead))

    def _of_shard(self, stage: Stage) -> Stage:
        rows = self._rows(stage)
        if rows % self.num_shards:
            raise self._uneven(stage, rows)
        before = stage.rows_before // self.num_shards, stage.tokens_before // self.num_shards
        return Stage(stage.start, stage.stop, stage.length, rows // self.num_shards, 1, *before)

    def rows_before(self, step: int) -> int:
        return self.plan.rows_before(step) // self.num_shards

    def tokens_before(self, step: int) -> int:
        return self.plan.tokens_before(step) // self.num_shards

    def rows(self, step: int) -> int:
        return self.stage_at(step).rows

    def length(self, step: int) -> int:
        return self.plan.length(step)

    def micro_batches(self, step: int) -> int:
        return 1


def nearest_divisor(number: int, wanted: int, multiple_of: int) -> int | None:
    """The divisor of ``number`` that is nearest to ``wanted``, among the multiples of ``multiple_of``; None if there is none.

    >>> nearest_divisor(12, 8, 1), nearest_divisor(12, 8, 4), nearest_divisor(12, 8, 5)
    (6, 4, None)
    """
    divisors = (d for d in range(multiple_of, number + 1, multiple_of) if number % d == 0)
    return min(divisors, key=lambda d: (abs(d - wanted), d), default=None)
