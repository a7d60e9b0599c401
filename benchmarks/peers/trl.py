"""TRL's ``pack_dataset``, in the way that loses no document's end ("wrapped"), once for each length; and the collator of its
``SFTTrainer``."""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import torch

from benchmarks.corpus import Corpus
from benchmarks.peers.consecutive import loader
from benchmarks.peers.torchvision import let_import

let_import()
from trl import pack_dataset  # noqa: E402 - after torchvision
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling  # noqa: E402 - after torchvision


def prepare(corpus: Corpus, length: int) -> None:
    datasets.disable_progress_bars()
    documents = datasets.load_from_disk(corpus.documents)
    packed = pack_dataset(documents, length, "wrapped", {"load_from_cache_file": False})
    packed.save_to_disk(corpus.own(f"trl_{length}"))


def batches(corpus: Corpus, rows: int, length: int, step: int = 0, workers: int = 0) -> Iterator[torch.Tensor]:
    dataset = datasets.load_from_disk(corpus.own(f"trl_{length}"))
    collate = DataCollatorForLanguageModeling(pad_token_id=0)
    return (batch["input_ids"] for batch in loader(dataset, rows, step, workers, collate))
