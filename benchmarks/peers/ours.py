"""This library: an ``SLWLoader`` at one length of a warmup that ends at 1024."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.corpus import Corpus
from slw_data import SLWDataset, SLWLoader, StagedSchedule, open_tokens


def prepare(corpus: Corpus, length: int) -> None:
    """Nothing."""


def batches(
    corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0, *, shuffle: bool, prefetch: int = 2
) -> Iterator[torch.Tensor]:
    schedule = StagedSchedule((length, 1024), (10**8,)) if length < 1024 else StagedSchedule((length,), ())
    store = open_tokens(corpus.path, dtype=corpus.dtype)
    dataset = SLWDataset(store, schedule, batch_size=rows, total_steps=2 * 10**8, labels="none", shuffle=shuffle)
    loader = SLWLoader(dataset, num_workers=workers, prefetch=prefetch)
    loader.seek(step)
    return (batch["input_ids"] for batch in loader)
