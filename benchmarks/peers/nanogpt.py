"""nanoGPT's ``get_batch``, its inputs only: a slice, a cast and a tensor for each row, from a file that is mapped anew."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.corpus import Corpus


def prepare(corpus: Corpus, length: int) -> None:
    """Nothing."""


class RandomWindows(IterableDataset[torch.Tensor]):
    def __init__(self, corpus: Corpus, rows: int, length: int) -> None:
        self.path, self.dtype, self.rows, self.length = corpus.path, corpus.dtype, rows, length

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            data = np.memmap(self.path, self.dtype, "r")
            starts = torch.randint(len(data) - self.length, (self.rows,))
            yield torch.stack([torch.from_numpy(data[i : i + self.length].astype(np.int64)) for i in starts])


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    windows = RandomWindows(corpus, rows, length)
    return iter(DataLoader(windows, batch_size=None, num_workers=workers) if workers else windows)
