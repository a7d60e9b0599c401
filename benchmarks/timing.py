"""Several things timed in turn, round after round, so that a machine that slows down slows all of them down."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

__all__ = ["above_zero", "per_item", "ratios", "table"]


def per_item(contenders: Mapping[str, Callable[[], Iterator[Any]]], *, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Seconds per item of each iterator, one figure a round. Each lives through all rounds, and is warmed up first."""
    iterators = {name: make() for name, make in contenders.items()}
    for iterator in iterators.values():
        _burst(iterator, seconds / 2)
    found: dict[str, list[float]] = {name: [] for name in iterators}
    for _ in range(rounds):
        for name, iterator in iterators.items():
            found[name].append(_burst(iterator, seconds))
    return found


def _burst(iterator: Iterator[Any], seconds: float) -> float:
    start, count, some = time.perf_counter(), 0, 1
    while (spent := time.perf_counter() - start) < seconds:
        for _ in range(some):
            item = next(iterator)  # held until the next one is there, as a training loop does
        count, some = count + some, min(64, 2 * some)
    del item
    return spent / count


def ratios(one: list[float], other: list[float]) -> float:
    """How many times faster ``one`` is than ``other``: the median over the rounds of what they took in the same round."""
    return statistics.median(b / a for a, b in zip(one, other, strict=True))


def table(head: list[str], rows: list[list[str]]) -> str:
    """The rows under their head, as a Markdown table that can also be read as it is."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * (width - 1) + ":" for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


Number = TypeVar("Number", int, float)


def above_zero(kind: type[Number]) -> Callable[[str], Number]:
    """The type of an option that counts or lasts: an int or a float, finite and above 0."""

    def number(text: str) -> Number:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    return number
