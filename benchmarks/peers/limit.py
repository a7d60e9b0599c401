"""The memory limit: a slice of a mapped file and one cast to int64 for each batch, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.corpus import Corpus


def prepare(corpus: Corpus, length: int) -> None:
    """Nothing."""


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    tokens, size = corpus.tokens(), rows * length
    each = len(tokens) // size
    while True:
        start = step % each * size
        yield torch.from_numpy(tokens[start : start + size].astype(np.int64)).view(rows, length)
        step += 1
