"""The plan: a schedule and a batch shape together, so that every step's length, rows and tokens are known at once.

A schedule is piecewise constant, and so are rows and accumulation; a plan is a short list of *stages*, each with the rows
and tokens before it::

    step    0 ........ 24 ........ 48 ...            stages    start  stop  length  rows  rows_before  tokens_before
    length  8          16          24                          0      24    8       16    0            0
    tokens  16 x 8     16 x 16     16 x 24                     24     48    16      16    384          3072

Every look-up is one bisection, at step 10^9 as at step 1, in Python's own integers, so nothing overflows.

Read next: :mod:`slw_data.order.lanes`, which says where in the source a row's tokens lie.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from slw_data.arguments import integer
from slw_data.errors import ScheduleError
from slw_data.plan.plotting import draw_lengths
from slw_data.plan.reading import ReadLayout
from slw_data.plan.report import html_table, text_table
from slw_data.plan.schedules import Schedule, StepFunction
from slw_data.plan.stages import Layout, Shape, Stage, Track, laid_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Cost", "SequenceLengthPlan", "Stage"]

# Callables are told apart by their values at these steps: dense at first, then doubling.
_SAMPLED_STEPS = (*range(256), *(1 << k for k in range(8, 41)))

@dataclass(frozen=True)
class Cost:
    """Training FLOPs of a plan: ``stages[i]`` belongs to ``plan.stages[i]``, ``full_length`` is as many tokens at max."""

    stages: tuple[int, ...]
    total: int
    full_length: int

    @property
    def saving(self) -> float:
        """The share of the full-length FLOPs that the plan does not spend, in [0, 1)."""
        return 1 - self.total / self.full_length if self.full_length else 0.0


class SequenceLengthPlan:
    """``SequenceLengthPlan(schedule, batch_size=16)``: the shape of every step, in closed form.

    Args:
        schedule: any callable ``step -> int``; see :mod:`slw_data.plan.schedules`.
        batch_size: rows of a batch, so tokens per step grow with the length; or
        tokens_per_batch: a budget: rows are ``tokens_per_batch // length``. At least the length.
            Both are per rank and micro-batch. Give exactly one.
        grad_accum_steps: batches of one rank in an optimizer step; they all have one length.
        world_size: data-parallel ranks.
        total_steps: optimizer steps of the run; or
        total_tokens: tokens of the run over all ranks; it has the whole steps that fit in.
            Give at most one; None of them: endless.

    ``batch_size``, ``tokens_per_batch`` and ``grad_accum_steps`` may change with the step as lengths do: each is an int, a
    callable ``step -> int``, or one of our schedules, such as ``StagedSchedule([8, 16], [1000])``, by tokens with
    ``unit="tokens"``. A ``warmup_fraction`` is always one of the steps of the run, also where ``total_tokens`` ends it.

    Raises:
        ScheduleError: a size that is not a positive integer, both or neither of a pair, a budget below a length,
            a schedule that returns anything but an int >= 1 or that contradicts itself.

    >>> from slw_data import LinearSchedule, StagedSchedule
    >>> plan = SequenceLengthPlan(LinearSchedule(8, 1024, warmup_steps=3000), batch_size=16, total_steps=10_000)
    >>> plan.length(0), plan.length(1500), plan.length(3000)
    (8, 512, 1024)
    >>> plan.tokens_before(1500), plan.step_at(plan.tokens_before(1500))
    (6188416, 1500)
    >>> len(plan.stages), plan.largest_batch()
    (128, (16, 1024))
    >>> rows = StagedSchedule([4, 8], [1_000_000], unit="tokens")
    >>> plan = SequenceLengthPlan(StagedSchedule([512, 1024], [400]), batch_size=rows, total_steps=1000)
    >>> [(stage.start, stage.length, stage.rows) for stage in plan.stages]
    [(0, 512, 4), (400, 1024, 4), (445, 1024, 8)]
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        batch_size: int | Callable[[int], int] | None = None,
        tokens_per_batch: int | Callable[[int], int] | None = None,
        grad_accum_steps: int | Callable[[int], int] = 1,
        world_size: int = 1,
        total_steps: int | None = None,
        total_tokens: int | None = None,
    ) -> None:
        if not callable(schedule) or isinstance(schedule, type):
            raise TypeError(f"schedule must be a callable step -> int, got {schedule!r}; a fixed length is lambda step: n")
        self.schedule = schedule
        self.batch_size, self.tokens_per_batch = _one_size(batch_size, tokens_per_batch)
        self.grad_accum_steps = _size("grad_accum_steps", grad_accum_steps)
        self.world_size = integer("world_size", world_size, at_least=1)
        if total_steps is not None and total_tokens is not None:
            raise ScheduleError(f"give total_steps or total_tokens, not both: got {total_steps} and {total_tokens}")
        self._total_steps = None if total_steps is None else integer("total_steps", total_steps, at_least=1)
        self._total_tokens = None if total_tokens is None else integer("total_tokens", total_tokens, at_least=1)
        size = self.tokens_per_batch if self.batch_size is None else self.batch_size
        shape = Shape(schedule, size, self.grad_accum_steps, self.batch_size is None, self.world_size)
        self._layout = _layout(shape, self._total_steps, self._total_tokens)
        self._parts = 1  # the layout counts rows and tokens of so many times this plan's ranks
        if self._total_steps is not None or self._total_tokens is not None:
            self._warn_of_lengths(3)

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
                f"a callable schedule has no last stage, so the stages of an endless run are unknown ({self.schedule!r}):"
                " give total_steps, or ask length(step) and tokens_before(step)"
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

    @cached_property
    def fingerprint(self) -> str:
        """What fixes every step's shape, in short: the lengths and global rows of all stages.

        Left out: how the global rows are dealt to ranks and micro-batches, and how long the run is.
        """
        if isinstance(self._layout, ReadLayout):
            samples = _samples(self._layout)
            rows, top, marked = self.global_rows(0), max(sample[0] for _, sample in samples), repr((samples, self.world_size))
        else:
            shapes = [(step, self.length(step), self.tokens(step)) for step in self._layout.starts]
            _, top, tokens = max(shapes, key=lambda one: one[1])
            rows, marked = tokens // top, repr(shapes)
        digest = hashlib.sha256(marked.encode()).hexdigest()[:12]
        return f"{self.length(0)}..{top} tokens, {rows} global rows #{digest}"

    def past(self, step: int, batch: int = 0) -> str:
        """What fixes the shapes of all steps before ``step``, and of ``step`` too where ``batch`` of its batches are
        delivered: their lengths and global rows. It is the same for all plans that agree so far, whatever comes later."""
        steps = integer("step", step, at_least=0) + (batch > 0)
        number, held = self._before(steps)
        length, rows, accumulation = self._layout.shapes[number]
        return self._layout.pasts[number].then(length, rows * accumulation * self._layout.shape.world, held).text(steps)

    def fixed_accumulation(self, who: str) -> int:
        """``grad_accum_steps`` as a number; ScheduleError naming ``who`` needs one, where it changes with the step."""
        if isinstance(self.grad_accum_steps, int):
            return self.grad_accum_steps
        raise ScheduleError(
            f"{who} accumulates a fixed number of batches, and this plan's changes, grad_accum_steps={self.grad_accum_steps!r}:"
            " write a number, or drive the loop with loader.steps()"
        )

    # -- other ends and ranks -----------------------------------------------------------------------------------------

    def ending_at(self, tokens: int) -> SequenceLengthPlan:
        """The same plan for a run of ``tokens`` tokens: stages are not laid out anew, so no warmup is stretched."""
        plan = self._with(_total_steps=None, _total_tokens=tokens)
        plan._warn_of_lengths(5)
        return plan

    def of_one_rank(self) -> SequenceLengthPlan:
        """The same stages, counting the rows and tokens of a single rank."""
        ends = {"_total_steps": self.total_steps, "_total_tokens": None}
        return self._with(world_size=1, _parts=self._parts * self.world_size, **ends)

    def _with(self, **changed: Any) -> SequenceLengthPlan:
        """Another plan over the same layout, which only ever grows."""
        plan = copy.copy(self)
        vars(plan).pop("fingerprint", None)
        vars(plan).update(changed)
        return plan

    def _warn_of_lengths(self, stacklevel: int) -> None:
        """Warn of a run that ends before its warmup does, or has far too many steps of tiny rows."""
        steps, longest = self.total_steps, getattr(self.schedule, "max_length", None)
        if not steps or not isinstance(self.schedule, StepFunction):
            return
        stages = self.stages
        top, tiny = max(stage.length for stage in stages), 0
        for stage in stages:
            tiny += (stage.stop - stage.start) * (10 * stage.length < top)  # type: ignore[operator]
        full = next((stage.start for stage in stages if stage.length == longest), None)
        if full is None and self.schedule.is_warmup and not self.schedule.is_fraction:
            begins = [self._layout.starts[i] for i, (length, _, _) in enumerate(self._layout.shapes) if length == longest]
            warnings.warn(
                f"this run ends before its warmup does: it has {steps:,} steps of up to {top:,} tokens, and full length,"
                f" {longest:,}, would come at step {begins[0]:,}: give a shorter warmup, or a warmup_fraction",
                stacklevel=stacklevel + 1,
            )
        elif 2 * tiny > steps:
            at = next(stage.start for stage in stages if stage.length == top)
            warnings.warn(
                f"more than half of this run's steps are tiny: full length from step {at:,} of {steps:,}, and {tiny:,} steps"
                f" have rows below a tenth of {top:,} tokens. They are cheap in tokens and dear in steps: give a longer"
                " min_length, a shorter warmup, or tokens_per_batch",
                stacklevel=stacklevel + 1,
            )

    # -- what it costs and looks like -----------------------------------------------------------------------------------

    def largest_batch(self) -> tuple[int, int]:
        """``(rows, length)`` of the batch with the most tokens, the longest of these: the shape to allocate for."""
        if self.total_steps == 0:
            raise ScheduleError(
                f"total_tokens={self._total_tokens} is less than a step, which has {self.tokens(0)}: give more, or a smaller"
                " batch"
            )
        return max(((s.rows, s.length) for s in self.stages), key=lambda shape: (shape[0] * shape[1], shape[1]))

    def cost(self, *, num_params: int, num_layers: int, hidden_size: int) -> Cost:
        """Training FLOPs, ``6 N + 12 layers hidden length`` per token (Narayanan et al., arXiv 2104.04473, and
        Chowdhery et al., arXiv 2204.02311, appendix B), beside as many tokens at the longest length of the run."""
        n = integer("num_params", num_params, at_least=1)
        attention = 12 * integer("num_layers", num_layers, at_least=1) * integer("hidden_size", hidden_size, at_least=1)
        if self.total_steps is None:
            raise ScheduleError("cost is of a whole run, and this one is endless: give total_steps or total_tokens")
        stages = self.stages
        tokens = [(s.stop - s.start) * self.tokens(s.start) for s in stages]  # type: ignore[operator]
        flops = tuple(t * (6 * n + attention * s.length) for t, s in zip(tokens, stages, strict=True))
        full = sum(tokens) * (6 * n + attention * max(s.length for s in stages))
        return Cost(stages=flops, total=sum(flops), full_length=full)

    def describe(self) -> str:
        """The stages as a table (the first and last ten of many), with totals."""
        return text_table(self._lines(), self._summary())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the length over the steps on ``ax`` (None: on new axes), and return the axes. Needs matplotlib.

        Several plans on the same axes are compared with ``ax.legend()``: each is labelled by its schedule and lengths.
        """
        name = getattr(self.schedule, "__name__", type(self.schedule).__name__)
        lengths = self.lengths or (0,)  # of a run that is shorter than a step, nothing is drawn
        return draw_lengths(self.stages, ax, label=f"{name}, {lengths[0]:,} to {lengths[-1]:,}")

    def _repr_html_(self) -> str | None:
        """The lines of :meth:`describe` for notebooks; None, and so the plain repr, where no stages are known."""
        try:
            return html_table(self._lines(), self._summary())
        except ScheduleError:
            return None

    def _lines(self) -> list[tuple[int, int, int, int, int]]:
        return [(s.start, s.length, s.rows, self.tokens(s.start), s.tokens_before) for s in self.stages]

    def _summary(self) -> str:
        steps = self.total_steps
        end = "endless" if steps is None else f"{steps:,} steps, {self.tokens_before(steps):,} tokens"
        rows, length = self.largest_batch()
        return f"{end}; {len(self.lengths)} lengths; largest batch {rows:,} x {length:,}"

    def __repr__(self) -> str:
        shape = f"batch_size={self.batch_size!r}"
        if self.batch_size is None:
            shape = f"tokens_per_batch={self.tokens_per_batch!r}"
        optional = {
            "grad_accum_steps": self.grad_accum_steps if self.grad_accum_steps != 1 else None,
            "world_size": self.world_size if self.world_size > 1 else None,
            "total_steps": self._total_steps,
            "total_tokens": self._total_tokens,
        }
        given = "".join(f", {name}={value!r}" for name, value in optional.items() if value is not None)
        return f"SequenceLengthPlan({self.schedule!r}, {shape}{given})"

    # -- stages -------------------------------------------------------------------------------------------------------

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
        stop = layout.starts[number + 1] if number + 1 < len(layout.starts) else layout.known_to(start)
        before = layout.rows_before[number] // self._parts, layout.tokens_before[number] // self._parts
        return Stage(start, stop, *layout.shapes[number], *before)


def _samples(layout: ReadLayout) -> list[tuple[int, list[Any]]]:
    """What callables give at the sampled steps, beyond the end of the run too, as far as they are defined."""
    samples = []
    for step in _SAMPLED_STEPS:
        try:
            samples.append((step, layout.sample(step)))
        except ScheduleError:
            if step == 0:
                raise
            break
    return samples


def _one_size(batch_size: Any, tokens_per_batch: Any) -> tuple[Any, Any]:
    if (batch_size is None) == (tokens_per_batch is None):
        raise ScheduleError(
            "give exactly one of batch_size (rows) and tokens_per_batch (tokens), per rank and micro-batch:"
            f" got batch_size={batch_size} and tokens_per_batch={tokens_per_batch}"
        )
    if batch_size is not None:
        return _size("batch_size", batch_size), None
    return None, _size("tokens_per_batch", tokens_per_batch)


def _size(name: str, value: Any) -> Any:
    """An int >= 1, or a function of the step."""
    if callable(value) and not isinstance(value, type) and not hasattr(value, "__index__"):
        return value
    return integer(name, value, at_least=1)


def _layout(shape: Shape, total_steps: int | None, total_tokens: int | None) -> Layout:
    """The stages of ``shape`` in a run of that end."""
    functions = [function for _, function in shape.functions]
    if all(isinstance(function, (int, StepFunction)) for function in functions):
        steps = total_steps
        if total_tokens is not None:
            steps = _steps_of(shape, functions, total_tokens) if any(map(_is_fraction, functions)) else None
        return laid_out(shape, [_track(function, steps) for function in functions])
    if total_tokens is not None and any(map(_is_fraction, functions)):
        raise ScheduleError(
            "warmup_fraction is one of the steps of the run, and beside a plain callable nobody knows how many total_tokens"
            f"={total_tokens} make: write warmup_steps, or total_steps"
        )
    sources = [_track(f, total_steps) if isinstance(f, (int, StepFunction)) else f for f in functions]
    return ReadLayout(shape, tuple(sources), total_steps)


def _track(function: Any, total_steps: int | None) -> Track:
    return Track("steps", [(0, function)]) if isinstance(function, int) else Track(*function.changes(total_steps))


def _is_fraction(function: Any) -> bool:
    return isinstance(function, StepFunction) and function.is_fraction


def _steps_of(shape: Shape, functions: list[Any], total_tokens: int) -> int:
    """The steps of a run of ``total_tokens`` whose warmups are fractions of its steps: the least number that, if the warmups
    are fractions of it, is not exceeded."""

    def enough(steps: int) -> bool:
        layout = laid_out(shape, [_track(function, steps) for function in functions], total_tokens)
        number = layout.find_tokens(total_tokens)
        length, rows, accumulation = layout.shapes[number]
        held = (total_tokens - layout.tokens_before[number]) // (length * rows * accumulation * shape.world)
        return steps >= layout.starts[number] + held

    return bisect_left(range(total_tokens + 1), True, key=enough)
