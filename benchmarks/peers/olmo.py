"""OLMo-core: its fixed-length dataset and data loader over a file of tokens, without threads of its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from olmo_core.data import NumpyDatasetDType, NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.data.collator import DataCollator
from olmo_core.data.data_loader import NumpyDataLoaderBase

from benchmarks.corpus import EOS, VOCAB_SIZE, Corpus


def prepare(corpus: Corpus, length: int) -> None:
    """Write the order of the rows."""
    next(batches(corpus, 1, length))


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    own = str(corpus.own("olmo"))
    dataset = NumpyFSLDatasetConfig(
        tokenizer=TokenizerConfig(vocab_size=VOCAB_SIZE, eos_token_id=EOS, pad_token_id=EOS),
        paths=[str(corpus.path)],
        sequence_length=length,
        dtype=NumpyDatasetDType(corpus.dtype),
        work_dir=own,
    ).build()
    dataset.prepare()
    loader = NumpyDataLoaderBase.wrap_numpy_dataset(
        dataset,
        global_batch_size=rows * length,
        collator=DataCollator(pad_token_id=EOS),
        work_dir=own,
        shuffle=False,
        num_threads=0,
        num_workers=workers,
    )
    loader.reshuffle(1)
    if step:
        loader.load_state_dict(loader.state_dict() | {"tokens_processed": step * rows * length})
    while True:
        yield from (batch["input_ids"] for batch in loader)
        loader.reset()
        loader.reshuffle()
