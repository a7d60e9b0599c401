"""Reading: plans of callables, which do not know where they change, step by step as far as they are asked for.

What has been read is kept, so a callable is asked once for each step. Threads that read plans wait for each other, and a fork
for both, so that no child inherits a plan that is half read.

Read next: :mod:`slw_data.plan.layout`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from slw_data.arguments import integer
from slw_data.errors import ScheduleError
from slw_data.plan.stages import Layout, Shape, Track

__all__ = ["ReadLayout"]

_ASKED_TWICE = (0, 1, 2, 3, 10, 100)
_SAMPLED = (*range(256), *(1 << k for k in range(8, 41)))  # dense at first, then doubling: callables are told apart here

_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class ReadLayout(Layout):
    """A layout whose values are asked for: each function is a :class:`Track`, or a callable ``step -> int``.

    ScheduleError for a callable that raises, gives anything but an int >= 1, or answers one question in two ways: ranks and
    workers ask it independently.
    """

    def __init__(self, shape: Shape, sources: tuple[Track | Callable[[int], Any], ...], total_steps: int | None) -> None:
        super().__init__(shape)
        self._sources, self._read_to = sources, 0
        for number, source in enumerate(sources):
            if not isinstance(source, Track):
                self._ask_twice(number, total_steps)
        self.known_to(0)

    def __getstate__(self) -> dict[str, Any]:
        with _LOCK:
            return {name: list(value) if isinstance(value, list) else value for name, value in vars(self).items()}

    def find(self, step: int) -> int:
        self.known_to(step)
        return super().find(step)

    def find_tokens(self, tokens: int) -> int:
        while self._tokens_read() < tokens:
            self.known_to(self._read_to)
        return super().find_tokens(tokens)

    def known_to(self, step: int) -> int | None:
        if step >= self._read_to:
            with _LOCK:
                self._read(step)
        return self._read_to

    def samples(self) -> list[tuple[int, int, Any]]:
        """``(step, length, tokens of a step)`` at some steps, beyond the end of the run too, as far as callables are defined.
        Where a function counts tokens, which are not known without reading all before, there is what it looks like."""
        samples = []
        for step in _SAMPLED:
            try:
                samples.append((step, *self._sample(step)))
            except ScheduleError:
                if step == 0 or self._is_sampled(step):  # a signal's handler may have raised within the callable
                    raise
                break
        return samples

    def _is_sampled(self, step: int) -> bool:
        with suppress(ScheduleError):
            self._sample(step)
            return True
        return False

    def _sample(self, step: int) -> tuple[int, Any]:
        values = [
            self._ask(number, step)
            if not isinstance(source, Track)
            else Track(source.unit, source.changes).at(step, 0)
            for number, source in enumerate(self._sources)
        ]
        by_tokens = [repr(source.changes) for source in self._sources if isinstance(source, Track) and source.unit == "tokens"]
        length, size, accumulation = values
        rows = size // length if self.shape.budget else size
        if by_tokens:
            return length, (rows, accumulation * self.shape.world, by_tokens)
        return length, length * rows * accumulation * self.shape.world

    def _tokens_read(self) -> int:
        """Tokens before the first step that has not been read."""
        with _LOCK:
            length, rows, accumulation = self.shapes[-1]
            each = length * rows * accumulation * self.shape.world
            return self.tokens_before[-1] + (self._read_to - self.starts[-1]) * each

    def _read(self, step: int) -> None:
        """Read up to and including ``step``."""
        tokens = self._tokens_read() if self.starts else 0
        last: tuple[int, ...] | None = None
        each = 0
        for s in range(self._read_to, step + 1):
            values = tuple(
                source.at(s, tokens) if isinstance(source, Track) else self._ask(number, s)
                for number, source in enumerate(self._sources)
            )
            if values != last:
                self.append(s, *values)
                length, rows, accumulation = self.shapes[-1]
                each, last = length * rows * accumulation * self.shape.world, values
            tokens, self._read_to = tokens + each, s + 1

    def _ask(self, number: int, step: int) -> int:
        """The value of a callable at ``step``, checked."""
        name, function = self.shape.functions[number]
        try:
            value = self._sources[number](step)  # type: ignore[operator]
        except Exception as error:
            what = "the schedule" if number == 0 else name
            raise ScheduleError(f"{what} raised {type(error).__name__} at step {step}: {error} ({function!r})") from error
        if type(value) is int and value > 0:
            return value
        try:
            return integer(f"{name} at step {step}", value, at_least=1)
        except ScheduleError as error:
            raise ScheduleError(f"{error} ({'schedule: ' if number == 0 else ''}{function!r})") from None

    def _ask_twice(self, number: int, total_steps: int | None) -> None:
        name, function = self.shape.functions[number]
        steps = [step for step in _ASKED_TWICE if total_steps is None or step < total_steps]
        for step, value in [(step, self._ask(number, step)) for step in steps]:
            if number == 0 and isinstance(self.shape.size, int):
                self.check_budget(step, value, self.shape.size)
            again = self._ask(number, step)
            if again != value:
                raise ScheduleError(
                    f"the schedule must be a pure function of the step, but gave {value} and then {again} at step {step}"
                    f" ({name}: {function!r})"
                )
