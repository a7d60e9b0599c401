"""Hugging Face's ``group_texts`` in an ``IterableDataset``, which joins and cuts documents on the fly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader

from benchmarks.corpus import Corpus
from benchmarks.peers.group_texts import group_texts


def prepare(corpus: Corpus, length: int) -> None:
    """Nothing."""


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    stream = streamed(corpus, length, workers)
    if step:
        stream.load_state_dict(json.loads(state_of(corpus, length, step).read_text()))
    while True:
        yield from loader(stream, rows, workers)


def snapshot(corpus: Corpus, rows: int, length: int, step: int) -> None:
    stream = streamed(corpus, length, 0)
    next(islice(loader(stream, rows, 0), step - 1, None))
    state_of(corpus, length, step).write_text(json.dumps(stream.state_dict()))


def state_of(corpus: Corpus, length: int, step: int) -> Path:
    return corpus.own(f"group_texts_{length}_{step}.json")


def streamed(corpus: Corpus, length: int, workers: int) -> datasets.IterableDataset:
    documents = datasets.load_from_disk(corpus.documents).to_iterable_dataset(num_shards=max(1, workers))
    return documents.map(partial(group_texts, length=length), batched=True)


def loader(stream: datasets.IterableDataset, rows: int, workers: int) -> DataLoader[Any]:
    """Rows come as lists: as tensors they would be slower still."""
    return DataLoader(stream, batch_size=rows, num_workers=workers, collate_fn=collate, drop_last=True)


def collate(rows: list[dict[str, list[int]]]) -> torch.Tensor:
    return torch.tensor([row["input_ids"] for row in rows])
