"""Advice: what is odd about the lengths of a run, each with its figure.

Read next: :mod:`slw_data.plan.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slw_data.plan.schedules import StepFunction
from slw_data.plan.stages import Layout, Stage

__all__ = ["advice", "unfinished"]

_TINY = 10  # times shorter than the longest rows


def advice(schedule: Any, stages: Sequence[Stage], steps: int, layout: Layout) -> str | None:
    """A run of ``steps`` steps, ``stages``, that ends before its warmup does, or most of whose steps are tiny; else None.
    ``layout`` goes on beyond the run's end."""
    if not isinstance(schedule, StepFunction):
        return None
    return unfinished(schedule, stages, steps, layout) or _tiny_steps(stages, steps)


def unfinished(schedule: StepFunction, stages: Sequence[Stage], steps: int, layout: Layout) -> str | None:
    """A run that ends before its warmup does; else None."""
    top, longest = max(stage.length for stage in stages), getattr(schedule, "max_length", None)
    full = next((start for start, shape in zip(layout.starts, layout.shapes, strict=True) if shape[0] == longest), 0)
    if not schedule.is_warmup or schedule.is_fraction or full <= steps:
        return None
    return (
        f"this run ends before its warmup does: it has {steps:,} steps of up to {top:,} tokens, and full length,"
        f" {longest:,}, would come at step {full:,}: give a shorter warmup, or a warmup_fraction"
    )


def _tiny_steps(stages: Sequence[Stage], steps: int) -> str | None:
    """A run most of whose steps have short rows; else None."""
    top = max(stage.length for stage in stages)
    tiny = sum((stage.stop or steps) - stage.start for stage in stages if _TINY * stage.length < top)
    if 2 * tiny <= steps:
        return None
    full = next(stage.start for stage in stages if stage.length == top)
    return (
        f"more than half of this run's steps are tiny: full length from step {full:,} of {steps:,}, and {tiny:,} steps"
        f" have rows below a tenth of {top:,} tokens. They are cheap in tokens and dear in steps: give a longer"
        " min_length, a shorter warmup, or tokens_per_batch"
    )
