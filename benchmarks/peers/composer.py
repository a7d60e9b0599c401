"""Composer's sequence length warmup: a loader reads rows of full length, and each batch is cut once it is there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.corpus import Corpus
from benchmarks.peers.consecutive import loader
from benchmarks.peers.torchvision import let_import

let_import()
from composer.algorithms.seq_length_warmup import set_batch_sequence_length  # noqa: E402 - after torchvision

FULL = 1024


def prepare(corpus: Corpus, length: int) -> None:
    """Nothing."""


class Rows(Dataset[dict[str, torch.Tensor]]):
    """As lean as a dataset of rows can be."""

    def __init__(self, corpus: Corpus) -> None:
        tokens = corpus.tokens()
        self.rows = tokens[: len(tokens) // FULL * FULL].reshape(-1, FULL)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.from_numpy(self.rows[index].astype(np.int64))}


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    read = loader(Rows(corpus), rows, 0, workers)
    for batch in islice(read, step, None):  # its trainer replays up to there
        yield set_batch_sequence_length(batch, length)["input_ids"]
