"""Lightning: ``Trainer.fit(model, loader)`` works as it is, and its checkpoints hold the loader's state.

::

    Trainer.fit  ->  SLWLoader  ->  training_step
                         |
                         +--------> SequenceLengthLogger: what to log, and what would go wrong unseen

With several processes, make the loader in ``train_dataloader()`` of the module or of a ``LightningDataModule``: the
Trainer calls it once it has made the process group, so the dataset knows its rank. Lightning's ``len()`` warning about
iterable datasets does not apply: the loader's length is exact, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from slw_data.delivery.agreement import gather_state
from slw_data.loader import SLWLoader

__all__ = ["SequenceLengthLogger"]

_LOGGED = ("slw/sequence_length", "slw/rows", "slw/tokens_seen")


class SequenceLengthLogger(Callback):
    """Logs ``slw/sequence_length``, ``slw/rows`` and ``slw/tokens_seen`` (all ranks) of each batch, next to the loss.

    ``Trainer(callbacks=[SequenceLengthLogger()])``. It also refuses what would train at wrong lengths, or go on at a
    wrong batch, without a word:

    Raises:
        TypeError: the train dataloader has no :class:`slw_data.SLWLoader` in it, or several.
        ValueError: ``accumulate_grad_batches`` is not the dataset's ``grad_accum_steps``, or batches are limited to what is
            not whole steps: a step would mix lengths. Neither the loader nor the Trainer knows how many batches there are:
            Lightning then reads one ahead, and its checkpoints are one ahead too. The Trainer wants more steps than there
            are: it would begin epochs without a batch for ever.
    """

    def __init__(self) -> None:
        self._any = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check_end(trainer, _loader(trainer).dataset.plan.total_steps)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._any = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._any = True
        loader = _loader(trainer)
        if pl_module.automatic_optimization:
            _check_accumulation(trainer, loader.dataset.plan.fixed_accumulation("the Trainer"))
        metrics = loader.metrics()  # as float64: a float32, Lightning's choice, counts 16.8 million tokens exactly
        values = {name: torch.tensor(metrics[name], dtype=torch.float64) for name in _LOGGED}
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=metrics["slw/rows"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning writes what rank 0 has: of a divided stream, let that be the shards of all ranks."""
        loaders = [leaf for leaf in _leaves(trainer.train_dataloader) if isinstance(leaf, SLWLoader)]
        if len(loaders) == 1 and loaders[0].dataset.run.divided:
            shards = gather_state(loaders[0])["shards"]
            for state in _states(checkpoint.get("loops")):
                state["shards"] = shards

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._any and trainer.max_epochs == -1:
            raise _endless(trainer, _loader(trainer).step)


def _loader(trainer: Trainer) -> SLWLoader:
    """The one SLWLoader among what the Trainer reads."""
    found = list(_leaves(trainer.train_dataloader))
    loaders = [leaf for leaf in found if isinstance(leaf, SLWLoader)]
    if len(loaders) != 1:
        raise TypeError(
            "SequenceLengthLogger logs the one SLWLoader that the Trainer reads, and found"
            f" {', '.join(type(leaf).__name__ for leaf in found)}: give SLWLoader(dataset) to fit, not a DataLoader, whose"
            " state is not saved"
        )
    return loaders[0]


def _leaves(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, (list, tuple, Mapping)):
        for inner in loaders.values() if isinstance(loaders, Mapping) else loaders:
            yield from _leaves(inner)
    else:
        yield loaders


def _states(saved: Any) -> Iterator[dict[str, Any]]:
    """The states of divided streams within what Lightning saves."""
    if isinstance(saved, dict) and {"shards", "past", "checksum"} <= set(saved):
        yield saved
    elif isinstance(saved, (dict, list, tuple)):
        for inner in saved.values() if isinstance(saved, dict) else saved:
            yield from _states(inner)


def _check_end(trainer: Trainer, total_steps: int | None) -> None:
    if trainer.num_training_batches == float("inf"):
        raise ValueError(
            "nobody knows how many batches there are, so Lightning reads one ahead, and going on from its checkpoints would"
            " skip a batch: give the dataset total_steps, or Trainer(limit_train_batches=...) an int"
        )
    if total_steps is not None and trainer.max_epochs == -1 and not 0 <= trainer.max_steps <= total_steps:
        raise _endless(trainer, total_steps)


def _endless(trainer: Trainer, steps: int) -> ValueError:
    return ValueError(
        f"the data ends after {steps} steps, and with Trainer(max_steps={trainer.max_steps}) Lightning would begin epochs"
        " without a batch for ever: give it as many steps as the dataset, by total_steps or epochs of the dataset"
    )


def _check_accumulation(trainer: Trainer, micro_batches: int) -> None:
    if trainer.accumulate_grad_batches != micro_batches:
        raise ValueError(
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}), and the dataset's plan has"
            f" grad_accum_steps={micro_batches}: a step would have batches of several lengths. Give both the same number"
        )
    if trainer.num_training_batches % micro_batches:
        raise ValueError(
            f"the Trainer reads {trainer.num_training_batches} batches in a row, and a step has grad_accum_steps="
            f"{micro_batches}: Lightning would end a step early. Set limit_train_batches to a multiple of {micro_batches}"
        )
