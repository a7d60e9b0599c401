"""Composer: what its ``Trainer`` wants to know of batches that change shape.

::

    Trainer(model=..., train_dataloader=data_spec(loader), max_duration="1000ba", device_train_microbatch_size=2)

A Composer batch is an optimizer step: ``device_train_microbatch_size`` splits it again, so the dataset's
``grad_accum_steps`` stays 1. Give the dataset ``total_steps``, so that the run is one of Composer's epochs; with
``train_subset_num_batches`` it is several, and resuming then reads one batch for each epoch before, which moves the loader.

Composer saves the state of a torch ``DataLoader``'s dataset only. For any other iterable it reads the batches before the
checkpoint again, which is exact, from a store fast, and works with another number of workers. Its own algorithm
``SeqLengthWarmup`` must not be used beside this: it would cut the batches once more.

What was run: Composer 0.32.1 pins a torch that is older than the others tested here, and is not part of the tests. By
hand it was run on torch 2.13 without its pins: 20 batches on a CPU, one process, micro-batches of one and two rows, a
checkpoint at batch 10, and going on from it with two workers to the same parameters. Several processes were not run, and
with ``train_subset_num_batches`` going on was seen to be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from slw_data.loader import SLWLoader

__all__ = ["data_spec", "get_num_samples_in_batch", "get_num_tokens_in_batch", "split_batch"]


def data_spec(loader: SLWLoader) -> dict[str, Any]:
    """The arguments of Composer's ``DataSpec`` for ``loader``; its ``Trainer`` takes them as they are.

    Raises:
        TypeError: not an :class:`slw_data.SLWLoader`. Composer asks the dataset of a ``DataLoader`` for its state in a way of
            its own, which ends the run at the first checkpoint.
        ValueError: ``grad_accum_steps`` is not 1.
    """
    if not isinstance(loader, SLWLoader):
        raise TypeError(
            f"data_spec takes an SLWLoader, got {type(loader).__name__}: Composer calls state_dict(num_samples, ...) of a"
            " DataLoader's dataset at each checkpoint, which only its own datasets know. Write data_spec(SLWLoader(dataset))"
        )
    accum = loader.dataset.plan.fixed_accumulation("Composer")
    if accum != 1:
        raise ValueError(
            f"Composer makes an optimizer step of each batch, and the dataset has grad_accum_steps={accum}: write 1, a"
            f" batch {accum} times as large, and device_train_microbatch_size, by which Composer splits it"
        )
    return {
        "dataloader": loader,
        "split_batch": split_batch,
        "get_num_samples_in_batch": get_num_samples_in_batch,
        "get_num_tokens_in_batch": get_num_tokens_in_batch,
    }


def get_num_samples_in_batch(batch: Mapping[str, Any]) -> int:
    """Rows of the batch of **this rank**. Composer adds up the ranks' for its ``time/sample``."""
    return int(batch["input_ids"].shape[0])


def get_num_tokens_in_batch(batch: Mapping[str, Any]) -> int:
    """Tokens of the batch of **this rank**, without padding (a flat row of "cu_seq_lens" counts as it is, filled up).
    Composer adds up the ranks' for its ``time/token``, which so agrees with ``loader.tokens_seen``."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def split_batch(batch: Mapping[str, Any], microbatch_size: int | float) -> list[Mapping[str, Any]]:
    """Micro-batches of ``microbatch_size`` rows, the last perhaps of fewer: views of every tensor along dim 0.

    >>> batch = {"input_ids": torch.arange(6).reshape(3, 2)}
    >>> [part["input_ids"].tolist() for part in split_batch(batch, 2)]
    [[[0, 1], [2, 3]], [[4, 5]]]

    ValueError for a size that is not a whole number of rows. A batch of one row (such as a flat one) stays whole.
    """
    size = int(microbatch_size)
    if size != microbatch_size or size < 1:
        raise ValueError(f"device_train_microbatch_size must be a whole number of rows, at least 1, got {microbatch_size!r}")
    rows = get_num_samples_in_batch(batch)
    if size >= rows:
        return [batch]
    parts = {name: torch.split(value, size) for name, value in batch.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(-(-rows // size))]
