"""A ``DataLoader`` whose dataset hands over one tensor that is already there: the price of handing over, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, repeat

import torch
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.corpus import Corpus


def prepare(corpus: Corpus, length: int) -> None:
    """Nothing."""


class Ready(IterableDataset[torch.Tensor]):
    def __init__(self, rows: int, length: int) -> None:
        self.tensor = torch.zeros(rows, length, dtype=torch.int64)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return repeat(self.tensor)


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    loader = DataLoader(Ready(rows, length), batch_size=None, num_workers=workers)
    return islice(loader, step, None)  # without a state, it replays
