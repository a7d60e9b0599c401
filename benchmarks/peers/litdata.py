"""litdata: tokens in chunks of its own, written once; a row's length is chosen when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

from benchmarks.corpus import Corpus


def prepare(corpus: Corpus, length: int) -> None:
    if not corpus.own("litdata").exists():
        path = str(corpus.own("litdata"))
        optimize(documents, [corpus], path, chunk_bytes="64MB", num_workers=1, item_loader=TokensLoader())


def documents(corpus: Corpus) -> Iterator[torch.Tensor]:
    tokens, offsets = torch.from_numpy(corpus.tokens().astype("int32")), corpus.offsets().tolist()
    for start, stop in pairwise(offsets):
        yield tokens[start:stop]


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    dataset = StreamingDataset(str(corpus.own("litdata")), item_loader=TokensLoader(block_size=length))
    loader = StreamingDataLoader(dataset, batch_size=rows, num_workers=workers, drop_last=True)
    if step:
        done = {"num_samples_yielded": step * rows, "current_epoch": 1, "latest_worker_idx": 0}
        loader.load_state_dict({"dataset": dataset.state_dict(step * rows, workers, rows), **done})
    while True:
        yield from (batch.long() for batch in loader)
