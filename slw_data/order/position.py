"""Position: a place between two batches of a run.

Read next: :mod:`slw_data.order.spans`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Position"]


class Position(NamedTuple):
    """``batch`` micro-batches of ``step`` are delivered on each rank, and all steps before it.

    ``cursor`` is a stream's place at the beginning of the step (None for a store, where the rest is arithmetic), and
    ``tokens`` are those delivered by all ranks where padding makes the plan's count too high.
    """

    step: int = 0
    batch: int = 0
    cursor: Any = None
    tokens: int | None = None
