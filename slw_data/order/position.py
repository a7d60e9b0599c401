"""Position: a place between two batches of a run; and what an order is, to those that save and load places.

Read next: :mod:`slw_data.order.spans`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

from slw_data.arguments import shown
from slw_data.errors import StateError

__all__ = ["Order", "Position", "are_ints", "read_cursor"]

Cursor = TypeVar("Cursor")


class Position(NamedTuple):
    """``batch`` micro-batches of ``step`` are delivered on each rank, and all steps before it.

    ``cursor`` is what the order needs beside these to go on, None where the rest is arithmetic, and ``tokens`` are those
    delivered by all ranks where padding makes the plan's count too high.
    """

    step: int = 0
    batch: int = 0
    cursor: Any = None
    tokens: int | None = None


class Order(Protocol):
    """Which row comes when. It is a value, equal on all ranks."""

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""

    @property
    def found_by_step(self) -> bool:
        """Whether a step is state enough, because nothing is read to find its rows."""

    @property
    def begin(self) -> Position:
        """Where a run begins."""

    def seek(self, step: int) -> Position:
        """Where ``step`` begins. A stream is read up to there."""

    def settle(self, at: Position) -> Position:
        """``at``, with all that goes into a state."""

    def epoch(self, at: Position) -> int:
        """The pass over the source that the next row begins in."""

    def rest_at(self, at: Position) -> int | None:
        """The step from which on rows are cut from what the lanes left over, if ``at`` is beyond its beginning."""

    def leftover(self, at: Position) -> int | None:
        """Tokens that the end of the data leaves over where the run ends at ``at``; None if the data does not end it."""

    def dump(self, at: Position) -> str:
        """What a state keeps of a settled position beside counts."""

    def load(self, text: Any, at: Position) -> Any:
        """The cursor that was dumped at ``at``; StateError if it cannot be of this run."""


def read_cursor(text: Any, kind: Callable[..., Cursor], sound: Callable[[Cursor], bool]) -> Cursor:
    """What was saved as the JSON of a mapping: ``kind`` of its values. StateError where this fails, or it is not ``sound``."""
    try:
        values = json.loads(text)
        cursor = kind(**values)
        right = sound(cursor) and len(values) == len(getattr(cursor, "_fields", values))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        right = False
    if not right:
        raise StateError(f"stream must be the JSON that state_dict() wrote, the saved state has {shown(text):.80}")
    return cursor


def are_ints(values: Iterable[Any], *, at_least: int = 0) -> bool:
    """Whether all are ints of a size that a run can come to."""
    return all(type(value) is int and at_least <= value < 1 << 62 for value in values)
