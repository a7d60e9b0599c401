"""Stages: the steps that share one shape, as a record and as the list that a plan looks things up in.

Length, rows and accumulation are step functions. A :class:`Layout` joins them to stages, each with all that came before it::

    length   8 8 8 8 16 16 16 16 ...      stages  start  length  rows  rows_before  tokens_before
    rows     2 2 4 4  4  4  4  4 ...              0      8       2     0            0
                                                  2      8       4     4            32
                                                  4      16      4     12           96

Changes are counted in steps, or in tokens of all ranks: then they take effect at the next step.

Read next: :mod:`slw_data.plan.reading`, for functions that do not know where they change.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from slw_data.errors import ScheduleError

__all__ = ["Layout", "Past", "Shape", "Stage", "Track"]


class Stage(NamedTuple):
    """Steps ``start`` to ``stop`` (exclusive; None: for ever) share one shape.

    ``rows`` are rows of one batch (one micro-batch of one rank), ``length`` tokens in a row, and ``grad_accum_steps`` batches
    of a rank in a step. ``rows_before`` and ``tokens_before`` are what all ranks have delivered before ``start``.
    """

    start: int
    stop: int | None
    length: int
    rows: int
    grad_accum_steps: int
    rows_before: int
    tokens_before: int


class Shape(NamedTuple):
    """The three step functions of a plan. ``size`` is rows of a batch, or with ``budget`` its tokens; ``names`` what they are
    called in messages."""

    length: Any
    size: Any
    accumulation: Any
    budget: bool
    world: int

    @property
    def functions(self) -> tuple[tuple[str, Any], ...]:
        size = "tokens_per_batch" if self.budget else "batch_size"
        return ("the schedule's length", self.length), (size, self.size), ("grad_accum_steps", self.accumulation)


class Layout:
    """Stages in parallel lists, that are only ever appended to; the last stage is open."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.starts: list[int] = []
        self.shapes: list[tuple[int, int, int]] = []  # length, rows, grad_accum_steps
        self.rows_before: list[int] = []
        self.tokens_before: list[int] = []
        self.batches_before: list[int] = []  # of one rank
        self.pasts: list[Past] = []
        self.sizes: list[tuple[int, int]] = []  # (start, rows or tokens of a batch times accumulation): what was asked for

    def append(self, start: int, length: int, size: int, accumulation: int) -> None:
        """Let these values hold from step ``start`` on."""
        self.check_budget(start, length, size)
        shape = (length, size // length if self.shape.budget else size, accumulation)
        if not self.sizes or self.sizes[-1][1] != size * accumulation:
            self.sizes.append((start, size * accumulation))
        if self.shapes and shape == self.shapes[-1]:
            return
        before, past = (0, 0, 0), Past()
        if self.starts:
            held, (last_length, last_rows, last_accumulation) = start - self.starts[-1], self.shapes[-1]
            rows = held * last_rows * last_accumulation * self.shape.world
            added = (rows, rows * last_length, held * last_accumulation)
            last = (self.rows_before[-1], self.tokens_before[-1], self.batches_before[-1])
            before = tuple(a + b for a, b in zip(last, added, strict=True))  # type: ignore[assignment]
            past = self.pasts[-1].then(last_length, last_rows * last_accumulation * self.shape.world, held)
        self.pasts.append(past)
        self.shapes.append(shape)
        self.rows_before.append(before[0])
        self.tokens_before.append(before[1])
        self.batches_before.append(before[2])
        self.starts.append(start)  # last, as others may look meanwhile

    def check_budget(self, step: int, length: int, size: int) -> None:
        """ScheduleError for a budget that holds no row."""
        if self.shape.budget and size < length:
            raise ScheduleError(
                f"tokens_per_batch={size} holds no row of {length} tokens (step {step} or later):"
                f" write tokens_per_batch={length} or more, or a smaller max_length"
            )

    def find(self, step: int) -> int:
        """The number of the stage that holds ``step``."""
        return bisect_right(self.starts, step) - 1

    def find_tokens(self, tokens: int) -> int:
        """The number of the stage that delivers token ``tokens``."""
        return bisect_right(self.tokens_before, tokens, hi=len(self.starts)) - 1

    def known_to(self, step: int) -> int | None:
        """The step up to which the open stage is known to hold; None: for ever. ``step`` is known then."""
        return None


class Past(NamedTuple):
    """What fixes the shapes of some steps from the first on: a digest of all runs of steps of one length and as many global
    rows, but for the last one, which is ``open``: (length, rows, steps). ``extent`` are the shortest and longest length."""

    digest: str = ""
    open: tuple[int, int, int] | None = None
    extent: tuple[int, int] = (0, 0)

    def then(self, length: int, rows: int, steps: int) -> Past:
        """These steps and ``steps`` more."""
        if steps == 0:
            return self
        if self.open is None:
            return Past("", (length, rows, steps), (length, length))
        extent = min(self.extent[0], length), max(self.extent[1], length)
        if self.open[:2] == (length, rows):
            return Past(self.digest, (length, rows, self.open[2] + steps), extent)
        return Past(_digest(self.digest, *self.open), (length, rows, steps), extent)

    def text(self, steps: int) -> str:
        """In words, of the first ``steps`` steps."""
        if self.open is None:
            return "nothing yet"
        mark = _digest(self.digest, *self.open)
        return f"{self.extent[0]}..{self.extent[1]} tokens in {steps} steps, {self.open[1]} global rows #{mark}"


def _digest(before: str, *values: int) -> str:
    return hashlib.sha256(f"{before} {values}".encode()).hexdigest()[:12]


class Track:
    """One step function that knows its changes, followed from the first step on."""

    def __init__(self, unit: str, changes: Sequence[tuple[int, int]]) -> None:
        self.unit, self.changes, self.number = unit, changes, 0

    def at(self, step: int, tokens: int) -> int:
        """The value at ``step``, with ``tokens`` before it; both may only grow."""
        now = step if self.unit == "steps" else tokens
        while self.number + 1 < len(self.changes) and self.changes[self.number + 1][0] <= now:
            self.number += 1
        return self.changes[self.number][1]

    def next(self, step: int, tokens: int, each: int) -> int | None:
        """The step of the next change, if every step has ``each`` tokens until then."""
        if self.number + 1 == len(self.changes):
            return None
        at = self.changes[self.number + 1][0]
        return at if self.unit == "steps" else step - (tokens - at) // each
