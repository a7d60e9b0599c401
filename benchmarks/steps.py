"""What a loader costs a training step of a small GPT, that of ``examples/train_gpt.py``, in one thread."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.corpus import VOCAB_SIZE

__all__ = ["effect", "step_time"]

EXAMPLES = Path(__file__).parent.parent / "examples"
WARMING = 5  # steps before the first that is timed


def training(max_length: int) -> Callable[[torch.Tensor], float]:
    """A function that makes one optimizer step on a batch of ids."""
    sys.path.append(str(EXAMPLES))
    gpt = import_module("gpt")
    model = gpt.GPT(VOCAB_SIZE, layers=3, width=96, heads=3, max_length=max_length)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    return lambda ids: gpt.update(model, optimizer, ids[:, :-1], ids[:, 1:], 1e-3)


def effect(batches: Iterator[torch.Tensor], steps: int) -> tuple[float, float]:
    """The share of a step that ``next(batches)`` takes, and by what share of a step's processor time, that of all threads,
    it is longer than with one batch again and again. Both kinds of step take turns."""
    again = next(batches).clone()
    update = training(again.shape[1])
    for _ in range(WARMING):
        update(again)
    waited = whole = 0.0
    processor = {True: 0.0, False: 0.0}
    for step in range(2 * steps):
        fresh = step % 4 in (0, 3)
        used, start = time.process_time(), time.perf_counter()
        batch = next(batches) if fresh else again
        there = time.perf_counter()
        update(batch)
        processor[fresh] += time.process_time() - used
        if fresh:
            waited, whole = waited + there - start, whole + time.perf_counter() - start
    return waited / whole, processor[True] / processor[False] - 1


def step_time(rows: int, length: int, steps: int) -> float:
    """Seconds of a step on one batch again and again, the median."""
    update, ids = training(length), torch.randint(VOCAB_SIZE, (rows, length))
    took = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        update(ids)
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:])
