"""The plan: a schedule and a batch shape together, so that every step's length, rows and tokens are known at once.

A schedule is piecewise constant, and so are rows and accumulation; a plan is a short list of *stages*, each with the rows
and tokens before it::

    step    0 ........ 24 ........ 48 ...            stages    start  stop  length  rows  rows_before  tokens_before
    length  8          16          24                          0      24    8       16    0            0
    tokens  16 x 8     16 x 16     16 x 24                     24     48    16      16    384          3072

Read next: :mod:`slw_data.order.lanes`, which says where in the source a row's tokens lie.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slw_data.arguments import integer
from slw_data.errors import ScheduleError, warn
from slw_data.plan.advice import advice
from slw_data.plan.layout import layout_of
from slw_data.plan.plotting import draw_lengths
from slw_data.plan.reading import ReadLayout
from slw_data.plan.report import Cost, cost_of, html_table, lines, summary, text_table
from slw_data.plan.schedules import Schedule
from slw_data.plan.stages import Shape
from slw_data.plan.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SequenceLengthPlan"]


class SequenceLengthPlan(Timeline):
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
        world_size = integer("world_size", world_size, at_least=1)
        if total_steps is not None and total_tokens is not None:
            raise ScheduleError(f"give total_steps or total_tokens, not both: got {total_steps} and {total_tokens}")
        total_steps = None if total_steps is None else integer("total_steps", total_steps, at_least=1)
        total_tokens = None if total_tokens is None else integer("total_tokens", total_tokens, at_least=1)
        size = self.tokens_per_batch if self.batch_size is None else self.batch_size
        shape = Shape(schedule, size, self.grad_accum_steps, self.batch_size is None, world_size)
        super().__init__(layout_of(shape, total_steps, total_tokens), world_size, total_steps, total_tokens)
        self._advise()

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
        plan._advise()
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

    def _advise(self) -> None:
        """Warn of a run whose lengths are hardly what was meant, where they are known without asking for each."""
        if not isinstance(self._layout, ReadLayout) and self.total_steps:
            text = advice(self.schedule, self.stages, self.total_steps, self._layout)
            if text is not None:
                warn(text)

    # -- what it costs and looks like -----------------------------------------------------------------------------------

    def cost(self, *, num_params: int, num_layers: int, hidden_size: int) -> Cost:
        """Training FLOPs, ``6 N + 12 layers hidden length`` per token (Narayanan et al., arXiv 2104.04473, and
        Chowdhery et al., arXiv 2204.02311, appendix B), beside as many tokens at the longest length of the run."""
        return cost_of(self, num_params=num_params, num_layers=num_layers, hidden_size=hidden_size)

    def describe(self) -> str:
        """The stages as a table (the first and last ten of many), with totals."""
        return text_table(lines(self), summary(self))

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
            return html_table(lines(self), summary(self))
        except ScheduleError:
            return None

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
