"""grain's concatenate-and-split: documents are joined and cut on the fly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import grain
import numpy as np
import torch
from grain.experimental import ConcatThenSplitIterDataset

from benchmarks.corpus import Corpus


def prepare(corpus: Corpus, length: int) -> None:
    """Nothing."""


class Documents:
    """As lean as a source of documents can be."""

    def __init__(self, corpus: Corpus) -> None:
        self.tokens, self.offsets = corpus.tokens(), corpus.offsets()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray[Any, Any]]:
        return {"input_ids": self.tokens[self.offsets[index] : self.offsets[index + 1]]}


def iterator(corpus: Corpus, rows: int, length: int, workers: int) -> grain.DatasetIterator[Any]:
    documents = grain.MapDataset.source(Documents(corpus)).repeat()
    cut = ConcatThenSplitIterDataset(documents.to_iter_dataset(READ), length_struct={"input_ids": length}).batch(rows)
    return iter(cut.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)) if workers else cut)


READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # as little as it can do for a batch


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    made = iterator(corpus, rows, length, workers)
    if step:
        made.set_state(json.loads(corpus.own(f"grain_{length}_{step}.json").read_text()))
    return (torch.from_numpy(batch["input_ids"].astype(np.int64)) for batch in made)


def snapshot(corpus: Corpus, rows: int, length: int, step: int) -> None:
    made = iterator(corpus, rows, length, 0)
    next(islice(made, step - 1, None))
    corpus.own(f"grain_{length}_{step}.json").write_text(json.dumps(made.get_state()))
