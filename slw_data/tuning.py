"""Tuning: the starting length and the duration of a warmup, from a few short runs.

This is the cheap recipe of Li et al., "The Stability-Efficiency Dilemma" (https://arxiv.org/abs/2108.06084). A short run
is a *probe*: it trains for a few multiples of the learning rate's warmup, and shows whether the validation perplexity
fluctuates. First the warmup is as short as it may be, and the starting length grows until nothing fluctuates; then, from
that length, the warmup is made as long as it can be::

                    warmup_steps   100   200   300   400   500
    min_length   8                  x                             x  fluctuates
                16                  o                 o     x     o  does not: 16 over 400 steps is the answer

Both are searched by bisection, which takes for granted that a longer start is not less stable and a longer warmup not more
so. What is found was probed itself in any case.

Read next: :mod:`slw_data.training`, whose ``LossRatio`` watches a run while it goes on.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from slw_data.arguments import as_number, integer, items
from slw_data.errors import ScheduleError
from slw_data.plan.schedules import LinearSchedule

__all__ = ["Probe", "Tuning", "tune_warmup"]

WIDTHS = (5, 11, 13, 12, 16, 12)
HEADINGS = ("probe", "min_length", "warmup_steps", "validations", "best perplexity", "fluctuation")


@dataclass(frozen=True)
class Probe:
    """A short run: the schedule that it was trained under, and its validation losses (nats per token) in order.

    ValueError for a loss that is not above 0, and for fewer than two, unless the run diverged at once: a single loss
    cannot fluctuate.
    """

    schedule: LinearSchedule
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        for loss in self.losses:
            if loss <= 0:
                raise ValueError(f"a validation loss must be above 0 (nats per token), got {loss} under {self.schedule!r}")
        if len(self.losses) < 2 and all(map(math.isfinite, self.losses)):
            raise ValueError(
                f"a probe needs two validation losses or more, as a single one cannot fluctuate: got {list(self.losses)}"
                f" under {self.schedule!r}"
            )

    @property
    def fluctuation(self) -> float:
        """The largest ratio of a validation perplexity to the best one before it; infinite for a run that diverged.

        It is 1 or less where every validation was at least as good as all before it.
        """
        if not all(map(math.isfinite, self.losses)):
            return math.inf
        best_before = accumulate(self.losses, min)
        return _exp(max(loss - best for loss, best in zip(self.losses[1:], best_before, strict=False)))

    @property
    def best_perplexity(self) -> float:
        """Of all validations; NaN ones are left out."""
        return _exp(min((loss for loss in self.losses if not math.isnan(loss)), default=math.inf))


@dataclass(frozen=True)
class Tuning:
    """What :func:`tune_warmup` found: the schedule, and every probe on the way to it, in the order of the search."""

    schedule: LinearSchedule
    probes: tuple[Probe, ...]
    max_fluctuation: float

    def describe(self) -> str:
        """The probes as a table, the schedule below it; what fluctuates too much is marked."""
        return f"{_table(self.probes, self.max_fluctuation)}\n{self.schedule!r}"


def tune_warmup(
    train: Callable[[LinearSchedule], Iterable[float]],
    *,
    max_length: int,
    warmup_steps: Sequence[int],
    min_lengths: Sequence[int] | None = None,
    max_fluctuation: float = 1.3,
    multiple_of: int = 8,
) -> Tuning:
    """The smallest starting length without fluctuation, and from it the longest linear warmup without.

    It bisects, taking for granted that longer starts are not less stable and longer warmups not more; what it returns was
    probed, and so was the next longer warmup, which fluctuates unless there is none.
    Of ``n`` starting lengths and ``m`` durations at most ``1 + ceil(log2(n)) + ceil(log2(m))`` are probed. Schedules are
    values, so a ``train`` that looks its result up first (``functools.cache``, a file) makes a repeated search free.

    Args:
        train: ``train(schedule)`` trains a new model from the same start and returns the validation losses on the way, two
            or more, in nats per token. Let it run for a few multiples of the learning rate's warmup, with the validation
            set at full length. It may stop at a loss that is NaN or infinite: that is a fluctuation.
        max_length: of all schedules, in tokens.
        warmup_steps: the durations to choose from, ascending: ``range(600, 6001, 300)``. Li et al. begin with a few
            multiples of the learning rate's warmup.
        min_lengths: the starting lengths to choose from, ascending, below ``max_length``. None: ``multiple_of``, twice as
            much, and so on; Li et al. begin with 8.
        max_fluctuation: how many times the best perplexity before it a perplexity may be; 1.3 is Li et al.'s limit.
        multiple_of: of every schedule.

    Raises:
        ScheduleError: before anything is trained, for candidates that are no schedule, do not ascend, or are none at all;
            afterwards, with the table of all probes, if every starting length that was probed fluctuates.
        ValueError, TypeError: for losses that are no numbers, fewer than two, or not above 0; see :class:`Probe`.

    >>> def train(schedule):  # a model that bears a warmup of up to 400 steps, from 16 tokens or more
    ...     return [5.0, 4.0, 4.1 if schedule.min_length >= 16 and schedule.warmup_steps <= 400 else 4.5]
    >>> tuning = tune_warmup(train, max_length=64, warmup_steps=range(100, 501, 100))
    >>> tuning.schedule
    LinearSchedule(min_length=16, max_length=64, warmup_steps=400)
    >>> [(probe.schedule.min_length, probe.schedule.warmup_steps) for probe in tuning.probes]
    [(8, 100), (32, 100), (16, 100), (16, 400), (16, 500)]
    """
    starts, durations = _starts(min_lengths, max_length, multiple_of), _ascending("warmup_steps", warmup_steps)
    if not callable(train):
        raise TypeError(f"train must be a function of a schedule, got {type(train).__name__}")
    if not isinstance(max_fluctuation, (int, float)) or not 1 < max_fluctuation < math.inf:
        raise ScheduleError(f"max_fluctuation must be a number above 1, got {max_fluctuation!r:.200}: Li et al. take 1.3")
    probes: list[Probe] = []

    def schedule(start: int, steps: int) -> LinearSchedule:
        return LinearSchedule(start, max_length, warmup_steps=steps, multiple_of=multiple_of)

    def fluctuates(start: int, steps: int) -> bool:
        candidate = schedule(start, steps)
        probes.append(Probe(candidate, _numbers(train(candidate))))
        return probes[-1].fluctuation > max_fluctuation

    for start in starts:
        schedule(start, durations[0])  # what is no schedule is refused before anything is trained
    shortest, first = durations[0], 0
    if fluctuates(starts[0], shortest):  # mostly it does not, which saves the bisection
        first = bisect_left(starts, True, lo=1, key=lambda start: not fluctuates(start, shortest))
    if first == len(starts):
        raise ScheduleError(
            f"no min_length up to {starts[-1]} is without fluctuation at warmup_steps={shortest}: lower the learning rate,"
            f" or give longer min_lengths\n{_table(probes, max_fluctuation)}"
        )
    start = starts[first]
    beyond = bisect_left(durations, True, lo=1, key=lambda steps: fluctuates(start, steps))
    return Tuning(schedule(start, durations[beyond - 1]), tuple(probes), max_fluctuation)


def _numbers(losses: Iterable[float]) -> tuple[float, ...]:
    what = "the validation losses that train returns, an iterable of numbers"
    numbers = []
    for loss in items("losses", losses, what):
        number = as_number(loss)
        if number is None:
            raise TypeError(f"losses must be {what}, got {losses!r:.200}")
        numbers.append(number)
    return tuple(numbers)


def _ascending(name: str, values: Sequence[int]) -> list[int]:
    given = items(name, values, "a sequence of ints")
    numbers = [integer(f"{name}[{i}]", value, at_least=1) for i, value in enumerate(given)]
    if not numbers:
        raise ScheduleError(f"{name} must hold one candidate or more, got {values!r:.200}")
    for one, other in pairwise(numbers):
        if one >= other:
            raise ScheduleError(f"{name} must ascend, as the search halves them: got {other} after {one}")
    return numbers


def _starts(min_lengths: Sequence[int] | None, max_length: int, multiple_of: int) -> list[int]:
    """The starting lengths to choose from: if none are given, ``multiple_of`` and its doublings below ``max_length``."""
    top, step = integer("max_length", max_length, at_least=1), integer("multiple_of", multiple_of, at_least=1)
    if min_lengths is None:
        min_lengths = [step << k for k in range(top.bit_length()) if step << k < top]
    starts = _ascending("min_lengths", min_lengths)
    if starts[-1] >= top:
        raise ScheduleError(f"min_lengths must be below max_length={top}, got {starts[-1]}: leave it out")
    return starts


def _table(probes: Sequence[Probe], limit: float) -> str:
    lines = [_aligned(HEADINGS)]
    for number, probe in enumerate(probes, 1):
        schedule, ratio = probe.schedule, probe.fluctuation
        shape = (f"{number}", f"{schedule.min_length:,}", f"{schedule.warmup_steps:,}", f"{len(probe.losses):,}")
        mark = f"  above {limit:g}" if ratio > limit else ""
        lines.append(_aligned((*shape, f"{probe.best_perplexity:.4g}", f"{ratio:.3f}")) + mark)
    return "\n".join(lines)


def _aligned(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def _exp(value: float) -> float:
    """Infinite where it is too large for a float, which ``math.exp`` refuses."""
    return math.exp(value) if value < 700 else math.inf
