"""Schedules: the sequence length of every optimizer step.

A schedule is any callable ``step -> int``. The classes here are frozen dataclasses: they compare by value, pickle,
and print as the expression that makes them. A warmup climbs a ladder of lengths, from ``min_length`` to
``max_length``; all that a class adds is *when* a rung is reached. With progress ``p = t / T`` in [0, 1], where ``t``
counts optimizer steps or tokens and ``T`` is the warmup, and ``d = max_length - min_length``::

    LinearSchedule        min + d p
    RootSchedule          min + d p^(1 / degree)
    SineSchedule          min + d sin(pi p / 2)
    CosineSchedule        min + d (1 - cos(pi p)) / 2
    ExponentialSchedule   min (max / min)^p
    DoublingSchedule      the largest min 2^k not above the linear value

The value is rounded down to a multiple of ``multiple_of``. ``t = 0`` gives ``min_length`` and ``t >= T`` gives
``max_length``, exactly. Lengths are tokens in a row; steps are optimizer steps counted from 0.

Read next: :mod:`slw_data.plan`, which joins a schedule and a batch shape.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Literal, Protocol

from slw_data.arguments import choice, integer, items
from slw_data.errors import ScheduleError

__all__ = [
    "LONGEST",
    "ConstantSchedule",
    "CosineSchedule",
    "CyclicSchedule",
    "DoublingSchedule",
    "ExponentialSchedule",
    "LinearSchedule",
    "RootSchedule",
    "Schedule",
    "SineSchedule",
    "StagedSchedule",
    "StepFunction",
    "check_ladder",
]

LONGEST = 1 << 62  # tokens in a row, and steps or tokens in a run; bisect counts in C's integers
_MOST_LENGTHS = 1 << 20  # of a warmup: each is a stage of the plan
Unit = Literal["steps", "tokens"]
Changes = list[tuple[int, int]]


class Schedule(Protocol):
    """``schedule(step)`` is the length, an int >= 1, of optimizer step ``step`` = 0, 1, 2, ...

    It has to be a pure function: every worker and every rank evaluates it for itself. Ten lines are enough::

        @dataclass(frozen=True)
        class Sawtooth:
            period: int
            def __call__(self, step: int) -> int:
                return 64 * (1 + step % self.period)

    Write a module-level function or a class rather than a lambda if worker processes are spawned: they pickle it.
    """

    def __call__(self, step: int, /) -> int: ...


def check_ladder(low: int, high: int, step: int, remedy: str) -> None:
    """ScheduleError for more lengths than a plan can hold stages."""
    if (high - low) // step > _MOST_LENGTHS:
        raise ScheduleError(
            f"a warmup has at most {_MOST_LENGTHS:,} lengths, and from {low} to {high} in steps of {step} are"
            f" {(high - low) // step + 1:,}: {remedy}"
        )


class StepFunction:
    """A step function that knows its changes. It has a repr that names only what differs from the defaults, so that it can
    be pasted back."""

    is_warmup = False  # from a shortest length to a longest
    is_fraction = False  # of a run, so its changes depend on how many steps that has

    def __repr__(self) -> str:
        shown = [f for f in fields(self) if getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    def changes(self, total_steps: int | None = None) -> tuple[Unit, Changes]:
        """All of it as ``(unit, [(start, value), ...])``: ``value`` holds from ``start`` on.

        Starts ascend from 0 and count ``unit``: optimizer steps, or tokens delivered before the step.
        ``total_steps`` are those of the run, which ``warmup_fraction`` is a fraction of.
        """
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class ConstantSchedule(StepFunction):
    """The same length at every step: the baseline without a warmup.

    >>> ConstantSchedule(1024)(0)
    1024
    """

    length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", integer("length", self.length, at_least=1))

    @property
    def max_length(self) -> int:
        return self.length

    def __call__(self, step: int) -> int:
        integer("step", step, at_least=0)
        return self.length

    def changes(self, total_steps: int | None = None) -> tuple[Unit, Changes]:
        return "steps", [(0, self.length)]


@dataclass(frozen=True, repr=False)
class StagedSchedule(StepFunction):
    """``lengths[0]`` from step 0, ``lengths[i]`` from step ``boundaries[i - 1]`` on. They may shrink, too, and be rows or
    tokens of a batch as well. With ``unit="tokens"`` boundaries count the tokens that all ranks have delivered before a step.

    >>> schedule = StagedSchedule([256, 512, 2048], [100, 200])
    >>> [schedule(step) for step in (0, 99, 100, 199, 200, 10**9)]
    [256, 256, 512, 512, 2048, 2048]
    """

    lengths: Sequence[int]
    boundaries: Sequence[int]
    _: KW_ONLY
    unit: Unit = "steps"

    def __post_init__(self) -> None:
        lengths, boundaries = (
            tuple(integer(f"{name}[{i}]", x, at_least=1) for i, x in enumerate(items(name, values, "a sequence of ints")))
            for name, values in (("lengths", self.lengths), ("boundaries", self.boundaries))
        )
        if len(boundaries) != len(lengths) - 1:
            raise ScheduleError(
                f"{len(lengths)} lengths need {max(len(lengths) - 1, 0)} boundaries between them, got {len(boundaries)}"
                " (a schedule has at least one length)"
            )
        for i in range(1, len(boundaries)):
            if boundaries[i] <= boundaries[i - 1]:
                raise ScheduleError(
                    f"boundaries must ascend: boundaries[{i}] = {boundaries[i]} after {boundaries[i - 1]}"
                )
        object.__setattr__(self, "lengths", lengths)
        object.__setattr__(self, "boundaries", boundaries)
        choice("unit", self.unit, ("steps", "tokens"))

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    def __call__(self, step: int) -> int:
        step = integer("step", step, at_least=0)
        if self.unit == "tokens":
            raise _follows_tokens(self, step)
        return self.lengths[bisect_right(self.boundaries, step)]

    def changes(self, total_steps: int | None = None) -> tuple[Unit, Changes]:
        return self.unit, list(zip((0, *self.boundaries), self.lengths, strict=True))


@dataclass(frozen=True, repr=False)
class _Warmup(StepFunction):
    """What every warmup shares: its bounds, its duration, the ladder, and rounding (the ladder *is* the rounding).

    Give exactly one of ``warmup_steps`` (optimizer steps), ``warmup_tokens`` (tokens over all ranks) and
    ``warmup_fraction`` (of the steps of the run, in [0, 1], whichever way the end of the run is given). ``warmup_steps=0``
    and ``min_length == max_length`` are constant. ``max_distinct`` thins the ladder evenly to at most that many lengths, first
    and last kept: each distinct length is a graph for ``torch.compile``. ScheduleError for anything impossible.
    """

    min_length: int
    max_length: int
    _: KW_ONLY
    warmup_steps: int | None = None
    warmup_fraction: float | None = None
    warmup_tokens: int | None = None
    multiple_of: int = 8
    max_distinct: int | None = None

    def __post_init__(self) -> None:
        step = integer("multiple_of", self.multiple_of, at_least=1)
        low = integer("min_length", self.min_length, at_least=1)
        high = integer("max_length", self.max_length, at_least=1)
        for name, length in (("min_length", low), ("max_length", high)):
            if length % step:
                below, above = length - length % step, length - length % step + step
                nearest = f"{below} or {above}" if below else f"{above}"
                raise ScheduleError(f"{name} must be a multiple of multiple_of={step}, got {length}: write {nearest}")
        if high > LONGEST:
            raise ScheduleError(f"max_length must be at most 2^62, got {high}: no row holds so many tokens")
        if low > high:
            raise ScheduleError(f"min_length must not exceed max_length, got {low} > {high}; to shrink: StagedSchedule")
        self._check_duration()
        if self.max_distinct is not None:
            integer("max_distinct", self.max_distinct, at_least=1 if low == high else 2)
        for field in fields(self):  # plain ints, so that equal schedules have equal reprs
            value = getattr(self, field.name)
            if hasattr(value, "__index__"):
                object.__setattr__(self, field.name, int(value))
            elif isinstance(value, float):
                object.__setattr__(self, field.name, float(value))
        if (self.max_distinct or LONGEST) > _MOST_LENGTHS and isinstance(self._ladder(), range):
            check_ladder(low, high, step, "give a max_distinct below that, or a larger multiple_of")

    def _check_duration(self) -> None:
        given = {n: getattr(self, n) for n in ("warmup_steps", "warmup_fraction", "warmup_tokens")}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            got = " and ".join(f"{name}={value!r}" for name, value in given.items()) or "none of them"
            raise ScheduleError(f"give exactly one of warmup_steps, warmup_fraction and warmup_tokens, got {got}")
        [(name, value)] = given.items()
        if name != "warmup_fraction":
            if integer(name, value, at_least=0) > LONGEST:
                raise ScheduleError(f"{name} must be at most 2^62, got {value}: no run is longer")
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ScheduleError(f"warmup_fraction must be a number in [0, 1], got {value!r}")

    is_warmup = True

    @property
    def is_fraction(self) -> bool:  # type: ignore[override]
        return self.warmup_fraction is not None

    def _duration(self, total_steps: int | None) -> tuple[Unit, int]:
        if self.warmup_steps is not None:
            return "steps", self.warmup_steps
        if self.warmup_tokens is not None:
            return "tokens", self.warmup_tokens
        assert self.warmup_fraction is not None  # exactly one of the three: _check_duration
        if total_steps is not None:
            return "steps", round(self.warmup_fraction * total_steps)
        raise ScheduleError(
            f"warmup_fraction={self.warmup_fraction} is a fraction of a run whose length is unknown: give total_steps or"
            " total_tokens (or epochs of a store) where the plan is made, or write warmup_steps here"
        )

    def _ladder(self) -> Sequence[int]:
        """Every length before ``max_length`` that the warmup may take, ascending from ``min_length``."""
        return range(self.min_length, self.max_length, self.multiple_of)

    def _rungs(self) -> Sequence[int]:
        """The ladder, thinned to ``max_distinct`` rungs with ``max_length``."""
        ladder = self._ladder()
        if self.max_distinct is None or len(ladder) < self.max_distinct:
            return ladder
        last = self.max_distinct - 1
        return [ladder[(i * len(ladder) + last // 2) // last] for i in range(last)]

    def _first(self, length: int, duration: int) -> int:
        """The smallest ``t`` at which the curve has reached ``length``, a rung above ``min_length``."""
        progress = self._progress((length - self.min_length) / (self.max_length - self.min_length))
        # The inverse of a smooth curve is good to about 1e-15; a rung that is met exactly at a step must not slip past it.
        return math.ceil(duration * progress * (1 - 1e-12))

    def _progress(self, fraction: float) -> float:
        """The inverse curve: the progress at which ``fraction`` of the way from min to max is reached."""
        raise NotImplementedError

    def _climb(self, duration: int) -> Changes:
        """When each rung begins to hold, ``max_length`` from ``duration`` on."""
        changes: Changes = [(0, self.min_length)]
        for rung in self._rungs()[1:]:
            start = self._first(rung, duration)
            if start >= duration:
                break
            if start == changes[-1][0]:
                changes.pop()
            changes.append((start, rung))
        if duration == 0 or self.min_length == self.max_length:
            return [(0, self.max_length)]
        return [*changes, (duration, self.max_length)]

    def changes(self, total_steps: int | None = None) -> tuple[Unit, Changes]:
        unit, duration = self._duration(total_steps)
        return unit, self._climb(duration)

    def __call__(self, step: int) -> int:
        step = integer("step", step, at_least=0)
        unit, duration = self._duration(None)
        if unit == "tokens":
            raise _follows_tokens(self, step)
        if step >= duration or self.min_length == self.max_length:
            return self.max_length
        rungs = self._rungs()
        return rungs[bisect_right(rungs, step, lo=1, key=lambda rung: self._first(rung, duration)) - 1]


def _follows_tokens(schedule: StepFunction, step: int) -> ScheduleError:
    return ScheduleError(
        f"{schedule!r} follows tokens, and how many come before step {step} depends on the batch:"
        " ask SequenceLengthPlan(schedule, batch_size=...).length(step)"
    )


@dataclass(frozen=True, repr=False)
class LinearSchedule(_Warmup):
    """``min + d p``: the method's own warmup (Li et al., arXiv 2108.06084, section 4).

    >>> schedule = LinearSchedule(8, 1024, warmup_steps=20_000)
    >>> [schedule(step) for step in (0, 157, 158, 10_000, 19_999, 20_000)]
    [8, 8, 16, 512, 1016, 1024]
    """

    def _first(self, length: int, duration: int) -> int:
        return -(-(length - self.min_length) * duration // (self.max_length - self.min_length))


@dataclass(frozen=True, repr=False)
class RootSchedule(_Warmup):
    """``min + d p^(1 / degree)``: fast at first, then slower. ``degree=1`` is linear; degrees below 1 start slowly.

    >>> schedule = RootSchedule(64, 1024, warmup_steps=1000, degree=2)
    >>> [schedule(step) for step in (0, 1, 250, 999, 1000)]
    [64, 88, 544, 1016, 1024]
    """

    _: KW_ONLY
    degree: float = 2

    def __post_init__(self) -> None:
        if isinstance(self.degree, bool) or not isinstance(self.degree, (int, float)) or not 0 < self.degree < LONGEST:
            raise ScheduleError(f"degree must be a positive number below 2^62, got {self.degree!r:.200}")
        super().__post_init__()

    def _first(self, length: int, duration: int) -> int:
        if not isinstance(self.degree, int) or self.degree > 64:  # a larger power has too many digits
            return super()._first(length, duration)
        climbed, span = length - self.min_length, self.max_length - self.min_length
        first: int = -(-(climbed**self.degree) * duration // span**self.degree)
        return first

    def _progress(self, fraction: float) -> float:
        return float(fraction**self.degree)


@dataclass(frozen=True, repr=False)
class SineSchedule(_Warmup):
    """``min + d sin(pi p / 2)``: steep at first, flat at the end.

    >>> schedule = SineSchedule(8, 1024, warmup_steps=900)
    >>> [schedule(step) for step in (0, 299, 300, 899, 900)]
    [8, 512, 512, 1016, 1024]
    """

    def _progress(self, fraction: float) -> float:
        return math.asin(fraction) * 2 / math.pi


@dataclass(frozen=True, repr=False)
class CosineSchedule(_Warmup):
    """``min + d (1 - cos(pi p)) / 2``: flat at both ends.

    >>> schedule = CosineSchedule(8, 24, warmup_steps=10)
    >>> [schedule(step) for step in (0, 4, 5, 9, 10)]
    [8, 8, 16, 16, 24]
    """

    def _progress(self, fraction: float) -> float:
        return math.acos(1 - 2 * fraction) / math.pi


@dataclass(frozen=True, repr=False)
class ExponentialSchedule(_Warmup):
    """``min (max / min)^p``: each length holds in proportion to its step on a logarithmic scale.

    >>> schedule = ExponentialSchedule(8, 1024, warmup_steps=7)
    >>> [schedule(step) for step in range(8)]
    [8, 16, 32, 64, 128, 256, 512, 1024]
    """

    def _progress(self, fraction: float) -> float:
        ratio = self.max_length / self.min_length
        return math.log1p(fraction * (ratio - 1)) / math.log(ratio)


@dataclass(frozen=True, repr=False)
class DoublingSchedule(LinearSchedule):
    """The largest ``min 2^k`` not above the linear value: few lengths, hence few graphs to compile.

    >>> schedule = DoublingSchedule(8, 64, warmup_steps=56)
    >>> [schedule(step) for step in (0, 7, 8, 23, 24, 55, 56)]
    [8, 8, 16, 16, 32, 32, 64]
    """

    def _ladder(self) -> Sequence[int]:
        return [self.min_length << k for k in range(((self.max_length - 1) // self.min_length).bit_length())]


@dataclass(frozen=True, repr=False)
class CyclicSchedule(StepFunction):
    """``schedule``, one of the warmups, ``num_cycles`` times in a row; its ``max_length`` after the last.

    >>> schedule = CyclicSchedule(LinearSchedule(8, 24, warmup_steps=2), num_cycles=2)
    >>> [schedule(step) for step in range(6)]
    [8, 16, 8, 16, 24, 24]
    """

    schedule: _Warmup
    num_cycles: int

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, _Warmup):
            raise ScheduleError(
                f"schedule must be one of the warmups, which end and can begin again, got {self.schedule!r};"
                " spell other cycles out with StagedSchedule(lengths, boundaries)"
            )
        object.__setattr__(self, "num_cycles", integer("num_cycles", self.num_cycles, at_least=1))

    is_warmup = True

    @property
    def is_fraction(self) -> bool:  # type: ignore[override]
        return self.schedule.is_fraction

    @property
    def max_length(self) -> int:
        return self.schedule.max_length

    def changes(self, total_steps: int | None = None) -> tuple[Unit, Changes]:
        unit, duration = self.schedule._duration(total_steps)
        *climb, (_, top) = self.schedule._climb(duration)
        if not climb:
            return unit, [(0, top)]
        if self.num_cycles * len(climb) > _MOST_LENGTHS:
            raise ScheduleError(
                f"a plan has at most {_MOST_LENGTHS:,} stages, num_cycles={self.num_cycles} of {len(climb)} each are more:"
                " give fewer, or max_distinct"
            )
        cycles = [(cycle * duration + start, length) for cycle in range(self.num_cycles) for start, length in climb]
        return unit, [*cycles, (self.num_cycles * duration, top)]

    def __call__(self, step: int) -> int:
        step = integer("step", step, at_least=0)
        unit, duration = self.schedule._duration(None)
        return self.schedule(step % duration if unit == "steps" and step < self.num_cycles * duration else step)
