"""A ``DataLoader`` over the rows of a map-style dataset in order, epoch after epoch without a new start of its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from itertools import count
from typing import Any

from torch.utils.data import DataLoader, Dataset


class Consecutive:
    """A batch sampler: from batch ``step`` on, the indices of ``rows`` rows; what is less at an epoch's end is left out."""

    def __init__(self, dataset: Sized, rows: int, step: int) -> None:
        self.each, self.rows, self.step = len(dataset) // rows, rows, step

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self.step):
            start = step % self.each * self.rows
            yield list(range(start, start + self.rows))


def loader(
    dataset: Dataset[Any], rows: int, step: int, workers: int, collate: Callable[[Any], Any] | None = None
) -> DataLoader[Any]:
    return DataLoader(dataset, batch_sampler=Consecutive(dataset, rows, step), num_workers=workers, collate_fn=collate)
