"""Layouts: step functions of lengths, rows and accumulation, joined to stages.

Functions that know their changes are laid out at once, whatever their units; callables are read as they are asked for.

Read next: :mod:`slw_data.plan.timeline`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from slw_data.errors import ScheduleError
from slw_data.plan.reading import ReadLayout
from slw_data.plan.schedules import StepFunction
from slw_data.plan.stages import Layout, Shape, Track

__all__ = ["layout_of"]


def layout_of(shape: Shape, total_steps: int | None, total_tokens: int | None) -> Layout:
    """The stages of ``shape`` in a run of that end."""
    functions = [function for _, function in shape.functions]
    if all(isinstance(function, (int, StepFunction)) for function in functions):
        steps = total_steps
        if total_tokens is not None:
            steps = _steps_of(shape, functions, total_tokens) if any(map(_is_fraction, functions)) else None
        return _laid_out(shape, [_track(function, steps) for function in functions])
    if total_tokens is not None and any(map(_is_fraction, functions)):
        raise ScheduleError(
            "warmup_fraction is one of the steps of the run, and beside a plain callable nobody knows how many total_tokens"
            f"={total_tokens} make: write warmup_steps, or total_steps"
        )
    sources = [_track(f, total_steps) if isinstance(f, (int, StepFunction)) else f for f in functions]
    return ReadLayout(shape, tuple(sources), total_steps)


def _laid_out(shape: Shape, tracks: Sequence[Track], tokens_end: int | None = None) -> Layout:
    """All stages of functions that know their changes; with ``tokens_end`` only those that begin before so many tokens."""
    layout, step, tokens = Layout(shape), 0, 0
    while True:
        layout.append(step, *(track.at(step, tokens) for track in tracks))
        length, rows, accumulation = layout.shapes[-1]
        each = length * rows * accumulation * shape.world
        following = [at for track in tracks if (at := track.next(step, tokens, each)) is not None]
        if not following or (tokens_end is not None and tokens >= tokens_end):
            return layout
        step, tokens = min(following), tokens + (min(following) - step) * each


def _track(function: Any, total_steps: int | None) -> Track:
    return Track("steps", [(0, function)]) if isinstance(function, int) else Track(*function.changes(total_steps))


def _is_fraction(function: Any) -> bool:
    return isinstance(function, StepFunction) and function.is_fraction


def _steps_of(shape: Shape, functions: list[Any], total_tokens: int) -> int:
    """The steps of a run of ``total_tokens`` whose warmups are fractions of its steps: a number that, if the warmups are
    fractions of it, is not exceeded, while one less would be. Where batches shrink there may be several such numbers."""

    def held(steps: int) -> int:
        layout = _laid_out(shape, [_track(function, steps) for function in functions], total_tokens)
        number = layout.find_tokens(total_tokens)
        length, rows, accumulation = layout.shapes[number]
        each = length * rows * accumulation * shape.world
        return layout.starts[number] + (total_tokens - layout.tokens_before[number]) // each

    def enough(steps: int) -> bool:
        try:
            return held(steps) <= steps
        except ScheduleError:  # a length above the budget: with more steps it comes later, when the budget has grown
            return steps == total_tokens

    steps = bisect_left(range(total_tokens + 1), True, key=enough)
    if steps and held(steps) != steps:
        held(steps - 1)  # raises, if only that made it too few
    return steps
