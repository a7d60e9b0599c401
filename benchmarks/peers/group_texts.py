"""Hugging Face's ``group_texts``, as in its examples: of a thousand documents at a time all tokens are joined and cut, and
what is left is dropped. Here ``Dataset.map`` does it once for each length, and keeps the rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain

import datasets
import torch

from benchmarks.corpus import Corpus
from benchmarks.peers.consecutive import loader


def group_texts(documents: dict[str, list[list[int]]], length: int) -> dict[str, list[list[int]]]:
    joined = list(chain.from_iterable(documents["input_ids"]))
    return {"input_ids": [joined[i : i + length] for i in range(0, len(joined) // length * length, length)]}


def prepare(corpus: Corpus, length: int) -> None:
    datasets.disable_progress_bars()
    documents = datasets.load_from_disk(corpus.documents)
    rows = documents.map(partial(group_texts, length=length), batched=True, load_from_cache_file=False)
    rows.save_to_disk(corpus.own(f"group_texts_{length}"))


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    dataset = datasets.load_from_disk(corpus.own(f"group_texts_{length}")).with_format("torch")
    return (batch["input_ids"] for batch in loader(dataset, rows, step, workers))
