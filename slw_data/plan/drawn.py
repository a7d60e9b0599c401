"""Lengths that are drawn: a random order of the steps that documents suffice for, for mode "buckets".

Read next: :mod:`slw_data.plan.stages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from slw_data.arguments import integer, items
from slw_data.errors import ScheduleError

__all__ = ["BucketSchedule"]


@dataclass(frozen=True)
class BucketSchedule:
    """For each step a length drawn at random: in one pass over the documents as many steps of each length as its bucket of
    pieces suffices for, so each piece is delivered once (dataset decomposition, Pouransari et al., arXiv 2405.13226).

    Without ``weights`` all orders of the steps are alike. With them the next length is drawn with these odds from those of
    which there are steps left: large ones for short lengths grow the length, as the short ones are used up first (their
    "Grow-P2" is ``weights=(32, 16, 8, 4, 2, 1)`` over six lengths, in 8 cycles). A pass is cut into ``num_cycles`` equal parts,
    each with its share of the steps of every length.

    Args:
        lengths: ascending, each a multiple of the one before; as a rule powers of two.
        weights: odds of each length, above 0; None: as the steps that are left.
        num_cycles: parts of a pass, each drawn from the beginning.
        seed: of the draw; each pass has another one.
        steps: of each length in a pass. :class:`slw_data.SLWDataset` fills them in.

    >>> schedule = BucketSchedule([8, 16, 32], weights=[100, 10, 1], steps=(4, 2, 1))
    >>> [schedule(step) for step in range(7)]
    [8, 8, 8, 8, 16, 32, 16]
    """

    lengths: Sequence[int]
    _: KW_ONLY
    weights: Sequence[float] | None = None
    num_cycles: int = 1
    seed: int = 0
    steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        given = items("lengths", self.lengths, "a sequence of ints")
        lengths = tuple(integer(f"lengths[{i}]", length, at_least=1) for i, length in enumerate(given))
        if not lengths or any(b <= a or b % a for a, b in pairwise(lengths)):
            raise ScheduleError(f"lengths must ascend, each a multiple of the one before, got {lengths}: write powers of two")
        object.__setattr__(self, "lengths", lengths)
        if self.weights is not None:
            weights = items("weights", self.weights, "a sequence of numbers")
            if len(weights) != len(lengths) or not all(_above_zero(weight) for weight in weights):
                raise ScheduleError(
                    f"weights are a number above 0 for each of the {len(lengths)} lengths, got {self.weights!r:.200}"
                )
            object.__setattr__(self, "weights", tuple(map(float, weights)))
        object.__setattr__(self, "num_cycles", integer("num_cycles", self.num_cycles, at_least=1))
        object.__setattr__(self, "seed", integer("seed", self.seed, at_least=0))
        if self.steps is not None:
            steps = tuple(items("steps", self.steps, "a sequence of ints"))
            if len(steps) != len(lengths) or not all(type(n) is int and n >= 0 for n in steps) or not any(steps):
                raise ScheduleError(
                    f"steps are a number from 0 on for each of the {len(lengths)} lengths, one of them above 0, got"
                    f" {self.steps!r:.200}"
                )
            object.__setattr__(self, "steps", steps)

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    @property
    def pass_steps(self) -> int:
        """Steps of a pass. ScheduleError where nobody has said how many there are."""
        if self.steps is None:
            raise ScheduleError(
                f"{self!r} draws from as many steps as the documents suffice for: pass it to SLWDataset(..., mode='buckets'),"
                " which counts them, or write steps=, one number for each length"
            )
        return sum(self.steps)

    def over(self, steps: Mapping[int, int]) -> BucketSchedule:
        """This schedule with so many steps of each length in a pass."""
        return replace(self, steps=tuple(steps[length] for length in self.lengths))

    def __call__(self, step: int) -> int:
        number, at = divmod(integer("step", step, at_least=0), max(1, self.pass_steps))
        return int(_drawn(self, number)[at])


def _above_zero(weight: Any) -> bool:
    return isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight < float("inf")


@lru_cache(maxsize=8)
def _drawn(schedule: BucketSchedule, number: int) -> npt.NDArray[np.int64]:
    """The lengths of the steps of pass ``number``."""
    assert schedule.steps is not None
    parts, lengths = [], np.array(schedule.lengths, np.int64)
    for cycle in range(schedule.num_cycles):
        counts = np.array([n * (cycle + 1) // schedule.num_cycles - n * cycle // schedule.num_cycles for n in schedule.steps])
        bits = np.random.PCG64([schedule.seed, number, cycle]).random_raw(int(counts.sum()))
        if schedule.weights is None:
            parts.append(np.repeat(lengths, counts)[np.argsort(bits, kind="stable")])
        else:
            parts.append(lengths[_with_odds(np.array(schedule.weights), counts, (bits >> np.uint64(11)) * 2.0**-53)])
    return np.concatenate(parts)


def _with_odds(weights: npt.NDArray[Any], counts: npt.NDArray[np.int64], chances: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Numbers drawn with these odds, ``counts`` of each; ``chances`` are uniform in [0, 1), one for each draw.

    As long as some of each are left, draws do not depend on each other, so all are made at once, up to the one that takes the
    last of a number; then without that number, and so on.
    """
    left, drawn, at = counts.copy(), np.empty(len(chances), np.int64), 0
    while at < len(chances):
        odds = np.cumsum(np.where(left > 0, weights, 0.0))
        picked = np.minimum(np.searchsorted(odds, chances[at:] * odds[-1], side="right"), np.flatnonzero(left)[-1])
        seen = [np.flatnonzero(picked == number) for number in range(len(weights))]
        last = [int(where[n - 1]) + 1 for where, n in zip(seen, left.tolist(), strict=True) if len(where) >= n > 0]
        stop = min([len(picked), *last])
        drawn[at : at + stop] = picked[:stop]
        left -= np.bincount(picked[:stop], minlength=len(weights))
        at += stop
    return drawn
