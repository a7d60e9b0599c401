"""mosaicml-streaming: rows of one length in shards of their own, written once for each length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.corpus import Corpus
from benchmarks.peers.torchvision import let_import

let_import()
from streaming import MDSWriter, StreamingDataset  # noqa: E402 - after torchvision


def prepare(corpus: Corpus, length: int) -> None:
    tokens, columns = corpus.tokens(), {"input_ids": f"ndarray:{corpus.dtype}:{length}"}
    with MDSWriter(out=str(corpus.own(f"mosaic_{length}")), columns=columns) as writer:
        for start in range(0, len(tokens) - length + 1, length):
            writer.write({"input_ids": tokens[start : start + length]})


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    dataset = StreamingDataset(local=str(corpus.own(f"mosaic_{length}")), batch_size=rows)
    if step:
        dataset.load_state_dict(dataset.state_dict(step * rows, True) | {"epoch": 0})
    while True:
        yield from DataLoader(dataset, batch_size=rows, num_workers=workers, collate_fn=collate, drop_last=True)


def collate(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([row["input_ids"] for row in rows]).astype(np.int64))
