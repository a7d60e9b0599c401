"""Hugging Face's Trainer: :class:`SLWTrainer` in place of ``Trainer``, or a mixin in front of a Trainer class of your own.

A Trainer would wrap a dataset in a ``DataLoader``, batch its batches and deal them to ranks. Here it gets the loader::

    SLWLoader --get_train_dataloader--> training loop        as it is, never prepared, with every rank's own rows
        |  state_dict                                        when a checkpoint is saved, into its folder
        |  load_state_dict                                   when one is resumed from, checked against the Trainer's step
        |  metrics                                           into what the Trainer logs

Accelerate by itself needs nothing of this module: it passes an :class:`slw_data.SLWLoader` through.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slw_data.dataset import SLWDataset
from slw_data.delivery.agreement import gather_state
from slw_data.errors import StateError
from slw_data.loader import SLWLoader

try:
    from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(f"slw_data.integrations.huggingface: pip install 'slw_data[huggingface]' ({error})") from error

__all__ = ["SLWTrainer", "SLWTrainerMixin"]

_LOGGED = ("slw/sequence_length", "slw/rows", "slw/tokens_seen")

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # the mixin stands before any Trainer class


class SLWTrainerMixin(_Trainer):
    """Before a Trainer class: ``class MyTrainer(SLWTrainerMixin, SFTTrainer)``. It then trains at the scheduled lengths.

    One step of the Trainer is one step of the plan, with ``grad_accum_steps`` batches of each rank. Everything that is
    not named here, evaluation too, stays as the Trainer does it.

    Args:
        model: as for the Trainer.
        args: as for the Trainer, which gets a copy. ``max_steps`` may end training before the plan does; left out, it
            becomes the plan's ``total_steps``. An epoch of the Trainer is the whole run, so passes over the data are the
            dataset's ``epochs``, not ``num_train_epochs``. ``ignore_data_skip`` becomes True: the state alone positions
            the data. ``per_device_train_batch_size`` becomes the plan's ``batch_size``, where it has one: it only counts.
        train_dataset: an :class:`SLWLoader`; or an :class:`SLWDataset`, which is then read with the ``dataloader_*``
            options of ``args``: num_workers, prefetch_factor, pin_memory and persistent_workers. Make it after ``args``,
            which set up the process group.
        others: as for the Trainer, by name.

    Checkpoints hold the data's state in ``slw_data.json`` (with ``sharded=True`` in ``slw_data_RANK.json``), and
    ``train(resume_from_checkpoint=...)`` continues exactly, with any number of workers. Each log of a loss also has
    ``slw/sequence_length`` (tokens), ``slw/rows`` (of a batch) and ``slw/tokens_seen`` (by all ranks since the run began).

    Raises:
        ValueError: arguments that contradict the dataset: steps, epochs, accumulation, ranks, labels that would be shifted
            twice.
        StateError: a stream that cannot be saved exactly, unless ``save_strategy`` is "no"; and from ``train``, for a
            checkpoint without a state that fits.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        train_dataset: SLWLoader | SLWDataset,
        **others: Any,
    ) -> None:
        args = TrainingArguments("tmp_trainer") if args is None else copy.copy(args)
        loader = _loader(train_dataset, args)
        plan = loader.dataset.plan
        args.ignore_data_skip, args.max_steps = True, _steps(args, loader.dataset)
        args.per_device_train_batch_size = plan.batch_size or args.per_device_train_batch_size
        if args.save_strategy != "no":
            loader.state_dict()  # raises now, not at the first checkpoint
        super().__init__(model=model, args=args, train_dataset=_one_row(), **others)
        self.train_dataset: Any = loader
        self.add_callback(_EpochOfRun)
        self._check_shape()
        self._check_labels()

    def _check_shape(self) -> None:
        """ValueError unless this process trains on the batches that the dataset makes for it."""
        args, dataset = self.args, self.train_dataset.dataset
        accum, planned = args.gradient_accumulation_steps, dataset.plan.fixed_accumulation("the Trainer")
        if accum != planned:
            raise ValueError(
                f"gradient_accumulation_steps={accum} of the Trainer, but the dataset's plan has grad_accum_steps={planned},"
                f" so lengths would change within a step: write SLWDataset(..., grad_accum_steps={accum})"
            )
        world = self.get_total_train_batch_size(args) // (args.train_batch_size * accum)  # without model-parallel peers
        if dataset.dp_world_size != world or (world == args.world_size and dataset.dp_rank != args.process_index):
            raise ValueError(
                f"the dataset is of rank {dataset.dp_rank} of {dataset.dp_world_size}, the Trainer trains on {world}"
                f" data-parallel ranks, and this is process {args.process_index} of {args.world_size}: make the dataset"
                " after the TrainingArguments, without dp_rank and dp_world_size, or with those of this process"
            )

    def _check_labels(self) -> None:
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model  # of a PEFT model
        shifts = isinstance(model, PreTrainedModel) and self.compute_loss_func is None
        if shifts and self.train_dataset.dataset.labels == "shifted":
            raise ValueError(
                f"labels='shifted', and {type(model).__name__} shifts labels itself, so they would be shifted twice: write"
                " labels='both' (it then takes shift_labels as they are) or labels='unshifted'; or pass a compute_loss_func"
            )

    # -- what the Trainer calls ---------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The loader, as it is."""
        return self.train_dataset

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's. StateError, before anything is loaded, if the data cannot begin at the checkpoint's step."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if folder:
            self._load_data(Path(folder))
        elif self.train_dataset.position[:2] != (0, 0):
            raise StateError(
                f"training begins at step 0, and the loader stands at step {self.train_dataset.step}: call its reset(), or"
                " train(resume_from_checkpoint=...)"
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; and into a checkpoint, the state of the data."""
        super().save_model(output_dir, _internal_call)
        if output_dir is None or not _internal_call:
            return
        dataset, writes = self.train_dataset.dataset, self.args.should_save or self.train_dataset.dataset.sharded
        state = gather_state(self.train_dataset) if writes or dataset.run.divided else None  # together with the other ranks
        if writes:
            path = Path(output_dir) / self._file
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}")
            unfinished.write_text(json.dumps(state), encoding="utf-8")
            unfinished.replace(path)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; and beside a loss, where the data stands."""
        if "loss" in logs:
            metrics = self.train_dataset.metrics()
            logs.update({name: metrics[name] for name in _LOGGED})
        super().log(logs, *args, **kwargs)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @property
    def _file(self) -> str:
        dataset: SLWDataset = self.train_dataset.dataset
        return f"slw_data_{dataset.dp_rank}.json" if dataset.sharded else "slw_data.json"

    def _load_data(self, folder: Path) -> None:
        step = TrainerState.load_from_json(str(folder / "trainer_state.json")).global_step
        try:
            state = json.loads((folder / self._file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StateError(
                f"{folder} has no {self._file}, so where its data stood is not known: it was saved without SLWTrainerMixin, or"
                f' by other ranks. Over a store, where each step is known, write {{"step": {step}}} into that file'
            ) from None
        except ValueError as error:
            raise StateError(f"{folder / self._file} is damaged, {error}: resume from another checkpoint") from error
        self.train_dataset.load_state_dict(state, expected_step=step)


class SLWTrainer(SLWTrainerMixin, Trainer):
    """``Trainer`` at the scheduled lengths; :class:`SLWTrainerMixin` says how.

    ::

        args = TrainingArguments("out", gradient_accumulation_steps=2)
        dataset = SLWDataset(tokens, LinearSchedule(8, 1024, warmup_steps=300), batch_size=16, grad_accum_steps=2, shuffle=True)
        SLWTrainer(model, args, train_dataset=dataset).train()
    """


class _EpochOfRun(TrainerCallback):
    """Counts an epoch, the whole run, from its beginning: with ignore_data_skip, the Trainer would from where it resumed."""

    def on_step_end(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        state.epoch = state.global_step / (train_dataloader.dataset.plan.total_steps or state.max_steps)


def _loader(given: Any, args: Any) -> SLWLoader:
    if isinstance(given, SLWLoader):
        return given
    if not isinstance(given, SLWDataset):
        raise TypeError(f"train_dataset must be an SLWLoader or an SLWDataset, got {type(given).__name__}")
    return SLWLoader(
        given,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        prefetch_factor=args.dataloader_prefetch_factor,
        persistent_workers=args.dataloader_persistent_workers,
    )


def _steps(args: Any, dataset: SLWDataset) -> int:
    """Optimizer steps to train for; ValueError where arguments and dataset disagree."""
    given, planned, passes = args.max_steps, dataset.plan.total_steps, dataset.run.epochs or 1
    if planned is None and given <= 0:
        raise ValueError("nobody can know how many steps a stream holds: give the dataset total_steps, or args max_steps")
    if planned is not None and given > planned:
        raise ValueError(
            f"max_steps={given} of the Trainer, but the dataset ends after {planned} steps: leave it out to train for these,"
            f" or give the dataset total_steps={given}, to read its source again"
        )
    if given <= 0 and args.num_train_epochs not in (passes, type(args).__dataclass_fields__["num_train_epochs"].default):
        raise ValueError(
            f"num_train_epochs={args.num_train_epochs} of the Trainer, but the dataset makes {passes} over its source: leave it"
            f" out, and write SLWDataset(..., epochs={args.num_train_epochs})"
        )
    return given if planned is None or given > 0 else planned


def _one_row() -> Any:
    """What a Trainer class may look at while it is made, as TRL's do: a Hugging Face dataset of one row, without length."""
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}).to_iterable_dataset()
