"""Timelines: what is known of every step of a layout, up to the end of a run.

Every look-up is one bisection, at step 10^9 as at step 1, in Python's own integers, so nothing overflows.

Read next: :mod:`slw_data.plan.plan`, which makes one of a schedule and a batch shape.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right

from slw_data.arguments import integer
from slw_data.cached import cached
from slw_data.errors import ScheduleError
from slw_data.plan.reading import ReadLayout
from slw_data.plan.stages import Layout, Stage

__all__ = ["Timeline"]


class Timeline:
    """Steps of ``world_size`` ranks along a layout, which counts rows and tokens of ``parts`` times as many."""

    def __init__(self, layout: Layout, world_size: int, total_steps: int | None, total_tokens: int | None) -> None:
        self._layout, self.world_size, self._parts = layout, world_size, 1
        self._total_steps, self._total_tokens = total_steps, total_tokens

    # -- look-ups -----------------------------------------------------------------------------------------------------

    def length(self, step: int) -> int:
        """Tokens in a row at ``step``. Defined for every step >= 0, past the end of the run too."""
        return self._shape(step)[0]

    def rows(self, step: int) -> int:
        """Rows of one batch (one micro-batch of one rank) at ``step``."""
        return self._shape(step)[1]

    def micro_batches(self, step: int) -> int:
        """Batches of one rank in ``step``: its ``grad_accum_steps``."""
        return self._shape(step)[2]

    def global_rows(self, step: int) -> int:
        """Rows of the whole step, over all ranks and micro-batches."""
        _, rows, accumulation = self._shape(step)
        return rows * accumulation * self.world_size

    def tokens(self, step: int) -> int:
        """Tokens of the whole step, over all ranks and micro-batches: ``global_rows(step) * length(step)``."""
        return self._tokens(self._find(step))

    def tokens_before(self, step: int) -> int:
        """Tokens that all ranks have delivered before ``step``."""
        number, held = self._before(step)
        return self._layout.tokens_before[number] // self._parts + held * self._tokens(number)

    def rows_before(self, step: int) -> int:
        """Rows that all ranks have delivered before ``step``."""
        number, held = self._before(step)
        _, rows, accumulation = self._layout.shapes[number]
        return self._layout.rows_before[number] // self._parts + held * rows * accumulation * self.world_size

    def batches_before(self, step: int) -> int:
        """Batches of one rank before ``step``."""
        number, held = self._before(step)
        return self._layout.batches_before[number] + held * self._layout.shapes[number][2]

    def batch(self, step: int) -> int:
        """What a step is asked to hold on each rank: rows where the plan has ``batch_size``, and tokens where it has
        ``tokens_per_batch``, times ``grad_accum_steps``. Lengths do not change it."""
        self._find(step)
        sizes = self._layout.sizes
        return sizes[bisect_right(sizes, step, key=lambda one: one[0]) - 1][1]

    def step_at(self, tokens: int) -> int:
        """The step that delivers token ``tokens`` (counted from 0): the inverse of :meth:`tokens_before`."""
        tokens = integer("tokens", tokens, at_least=0)
        number = self._layout.find_tokens(tokens * self._parts)
        within = tokens - self._layout.tokens_before[number] // self._parts
        return self._layout.starts[number] + within // self._tokens(number)

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the run; None if it is endless."""
        if self._total_tokens is not None:
            return self.step_at(self._total_tokens)
        return self._total_steps

    @property
    def total_tokens(self) -> int | None:
        """Tokens that the run delivers over all ranks; None if it is endless."""
        steps = self.total_steps
        return None if steps is None else self.tokens_before(steps)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The run as :class:`Stage`\\ s, in order. The last one's ``stop`` is ``total_steps``."""
        end = self.total_steps
        if end is None and self._layout.known_to(0) is not None:
            raise ScheduleError(
                "a callable schedule has no last stage, so the stages of an endless run are unknown"
                f" ({self._layout.shape.length!r}): give total_steps, or ask length(step) and tokens_before(step)"
            )
        if end:
            self._layout.known_to(end - 1)
        starts = self._layout.starts
        count = len(starts) if end is None else bisect_left(starts, end)
        stages = [self._stage(number) for number in range(count)]
        return (*stages[:-1], *(stage._replace(stop=end) for stage in stages[-1:]))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The distinct lengths of the run, ascending."""
        return tuple(sorted({stage.length for stage in self.stages}))

    def largest_batch(self) -> tuple[int, int]:
        """``(rows, length)`` of the batch with the most tokens, the longest of these: the shape to allocate for."""
        if self.total_steps == 0:
            raise ScheduleError(
                f"total_tokens={self._total_tokens} is less than a step, which has {self.tokens(0)}: give more, or a smaller"
                " batch"
            )
        return max(((s.rows, s.length) for s in self.stages), key=lambda shape: (shape[0] * shape[1], shape[1]))

    def stage_at(self, step: int, ahead: int = 1) -> Stage:
        """The stage that holds ``step``. Callables are read ``ahead`` steps; where their stage is still open then, ``stop``
        is as far as they have been read."""
        number = self._find(step)
        self._layout.known_to(step + ahead - 1)
        return self._stage(number)

    def history(self, step: int) -> tuple[list[int], list[int]]:
        """``(rows_before, lengths)`` of every stage up to the one that holds ``step``: what lanes have delivered."""
        stop = self._find(step) + 1
        lengths = [length for length, _, _ in self._layout.shapes[:stop]]
        return [rows // self._parts for rows in self._layout.rows_before[:stop]], lengths

    @cached
    def fingerprint(self) -> str:
        """What fixes every step's shape, in short: the lengths and global rows of all stages.

        Left out: how the global rows are dealt to ranks and micro-batches, and how long the run is.
        """
        if isinstance(self._layout, ReadLayout):
            shapes = self._layout.samples()
        else:
            shapes = [(step, self.length(step), self.tokens(step)) for step in self._layout.starts]
        _, top, tokens = max(shapes, key=lambda one: one[1])
        rows = tokens // top if isinstance(tokens, int) else self.global_rows(0)
        marked = repr(shapes)
        digest = hashlib.sha256(marked.encode()).hexdigest()[:12]
        return f"{self.length(0)}..{top} tokens, {rows} global rows #{digest}"

    def past(self, step: int, batch: int = 0) -> str:
        """What fixes the shapes of all steps before ``step``, and of ``step`` too where ``batch`` of its batches are
        delivered: their lengths and global rows. It is the same for all plans that agree so far, whatever comes later."""
        steps = integer("step", step, at_least=0) + (batch > 0)
        number, held = self._before(steps)
        length, rows, accumulation = self._layout.shapes[number]
        return self._layout.pasts[number].then(length, rows * accumulation * self._layout.shape.world, held).text(steps)

    # -- within the layout --------------------------------------------------------------------------------------------

    def _find(self, step: int) -> int:
        """The number of the stage that holds ``step``."""
        if type(step) is not int or step < 0:
            step = integer("step", step, at_least=0)
        return self._layout.find(step)

    def _shape(self, step: int) -> tuple[int, int, int]:
        return self._layout.shapes[self._find(step)]

    def _before(self, step: int) -> tuple[int, int]:
        """The stage of the step before ``step``, as a callable need not be defined where the run has ended, and how many of
        its steps come before ``step``."""
        step = integer("step", step, at_least=0)
        number = self._layout.find(max(step - 1, 0))
        return number, step - self._layout.starts[number]

    def _tokens(self, number: int) -> int:
        length, rows, accumulation = self._layout.shapes[number]
        return length * rows * accumulation * self.world_size

    def _stage(self, number: int) -> Stage:
        layout = self._layout
        start = layout.starts[number]
        known = layout.known_to(start)  # before the look at what follows: others may read on meanwhile
        stop = layout.starts[number + 1] if number + 1 < len(layout.starts) else known
        before = layout.rows_before[number] // self._parts, layout.tokens_before[number] // self._parts
        return Stage(start, stop, *layout.shapes[number], *before)
