"""Windows: rows of one length at every step, which the scheduled length cuts into windows for attention masks.

It is SkyLadder's form (arXiv 2503.15450): the schedule changes masks, and never a shape. Windows begin with the row::

    rows of 8    window 3    [0 0 0 1 1 1 2 2]        window_ids
                             [0 1 2 0 1 2 0 1]        position_ids

Read next: :mod:`slw_data.order.lanes`, which says where in the source a row's tokens lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slw_data.arguments import integer
from slw_data.errors import ScheduleError, warn
from slw_data.plan.advice import unfinished
from slw_data.plan.layout import layout_of
from slw_data.plan.plan import SequenceLengthPlan
from slw_data.plan.report import text_table
from slw_data.plan.schedules import ConstantSchedule, Schedule, StagedSchedule, StepFunction
from slw_data.plan.stages import Shape
from slw_data.plan.timeline import Timeline

__all__ = ["Windows", "rows_of"]


def rows_of(schedule: Any) -> ConstantSchedule:
    """The schedule of the rows that hold these windows: always as long as the longest window.

    ScheduleError where the longest is not known, and for a plan: its rows have the scheduled length.
    """
    if isinstance(schedule, SequenceLengthPlan):
        raise ScheduleError(
            f"mode='window' has rows of the largest length at every step, and {schedule!r} has rows of the scheduled length:"
            " pass its schedule, and the batch shape and the end beside it"
        )
    longest = getattr(schedule, "max_length", None)
    if longest is None:
        raise ScheduleError(
            f"mode='window' has rows of the schedule's largest length, and {schedule!r} does not say which that is: give it"
            " an attribute, schedule.max_length = n, or write a StagedSchedule"
        )
    return ConstantSchedule(integer("max_length of the schedule", longest, at_least=1))


@dataclass(frozen=True)
class Windows:
    """The windows of every step, in rows of ``length`` tokens. Of ``timeline`` only lengths count: they are the windows."""

    length: int
    timeline: Timeline

    @classmethod
    def of(cls, schedule: Schedule, plan: SequenceLengthPlan) -> Windows:
        """The windows that ``schedule`` wants in the rows of ``plan``, which all have one length."""
        function = _by_steps(schedule, plan) if isinstance(schedule, StepFunction) else schedule
        layout = layout_of(Shape(function, 1, 1, False, 1), plan.total_steps, None)
        windows = cls(plan.length(0), Timeline(layout, 1, plan.total_steps, None))
        if plan.total_steps and isinstance(function, StepFunction):
            text = unfinished(function, windows.timeline.stages, plan.total_steps, layout)
            if text is not None:
                warn(text)
        return windows

    def at(self, step: int) -> int:
        """Tokens in a window at ``step``. ScheduleError for more than a row has."""
        window = self.timeline.length(step)
        if window > self.length:
            raise ScheduleError(
                f"a window is at most as long as a row, max_length={self.length}, and at step {step} the schedule gives"
                f" {window}: give it a larger max_length"
            )
        return window

    @property
    def shortest(self) -> int:
        """The fewest tokens in a window of the run. ScheduleError where nobody can know them all."""
        return self.timeline.lengths[0]

    def describe(self) -> str:
        """The windows as a table."""
        stages = self.timeline.stages
        lengths = self.timeline.lengths
        lines = [{"step": stage.start, "window": stage.length} for stage in stages]
        return text_table(lines, f"windows of {lengths[0]:,} to {lengths[-1]:,} tokens in rows of {self.length:,}")


def _by_steps(schedule: StepFunction, plan: SequenceLengthPlan) -> StepFunction:
    """``schedule``, where it counts the tokens that ``plan`` delivers as one of the steps that have so many before them."""
    unit, changes = schedule.changes(plan.total_steps)
    if unit == "steps":
        return schedule
    starts = {plan.step_at(tokens - 1) + 1 if tokens else 0: window for tokens, window in changes}
    return StagedSchedule(list(starts.values()), list(starts)[1:])
