"""The batch of one step, as training would get it: its tensors, its ids, and where in the store each row lies.

The places are found by giving the dataset a second column, in which each token is its own position in the store. So
they are right by construction, whatever the order and the mode.

Read next: :mod:`slw_data.cli.inspect`, which shows it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from slw_data.batch.building import Batch
from slw_data.cli.arguments import RUN, SHAPE, Arguments
from slw_data.cli.tokenizers import Decode
from slw_data.dataset import SLWDataset
from slw_data.loader import SLWLoader
from slw_data.sources.stores import TokenStore

__all__ = ["Places", "Rows", "dataset_of", "show_step"]

PLACE = "place"


@dataclass(frozen=True)
class Rows:
    """How rows are shown: ``count`` of them and ``ids`` of each (None: all), with text below where ``decode`` is given."""

    count: int | None
    ids: int | None
    decode: Decode | None

    def show(self, heading: str, ids: Sequence[int], size: int) -> None:
        """A row of ``size`` tokens that begins with ``ids``."""
        shown = ids[: self.ids]
        more = f" ... ({size - len(shown):,} more)" if len(shown) < size else ""
        print(f"  {heading}: {' '.join(map(str, shown))}{more}")
        if self.decode is not None:
            print(f"    {self.decode(shown)!r}{' ...' if more else ''}")


class Places:
    """A store of ``size`` tokens, each of which is its own position."""

    name, documents, dtype = "positions", None, np.dtype(np.int64)

    def __init__(self, size: int) -> None:
        self.size, self.fingerprint = size, f"positions x {size}"

    def __len__(self) -> int:
        return self.size

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        return np.arange(start, stop)

    def gather(self, starts: npt.NDArray[np.int64], length: int, out: npt.NDArray[Any]) -> None:
        out[:] = starts[:, None] + np.arange(length)


def show_step(store: TokenStore, step: int, arguments: Arguments, options: dict[str, Any], rows: Rows) -> None:
    """Print the batches of ``step`` of one rank. ``options`` are further arguments of the dataset."""
    stores = {"input_ids": store, PLACE: Places(len(store))}
    dataset = dataset_of(stores, arguments, RUN, columns=tuple(stores), **options)
    total, plan = dataset.plan.total_steps, dataset.plan
    if total is not None and step >= total:
        raise ValueError(f"--step must be below {total:,}, the steps of this run, got {step:,}")
    loader = SLWLoader(dataset, prefetch=0)
    loader.seek(step)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this run is finished|.* has too few tokens")  # said below, of this step
        batches = list(islice(loader, plan.micro_batches(step)))
    if len(batches) < plan.micro_batches(step):
        raise ValueError(f"--step {step:,} is past the end of the data: give --total-steps or --epochs to read it again")
    print(f"step {step:,}{'' if total is None else f' of {total:,}'}: length {plan.length(step):,}")
    for number, batch in enumerate(batches):
        micro = f", micro-batch {number} of {len(batches)}" if len(batches) > 1 else ""
        rank = f"rank {dataset.dp_rank} of {dataset.dp_world_size}"
        print(f"batch of {rank}{micro}")
        _show_batch(batch, rows)


def dataset_of(stores: dict[str, TokenStore], arguments: Arguments, names: Sequence[str], **options: Any) -> SLWDataset:
    """The dataset of some stores, and of those of the arguments' ``names`` and ``options`` that are given."""
    schedule, steps = arguments.schedule()
    wanted = {**arguments.pick(SHAPE), **arguments.pick(names), **options}
    if steps is not None and "total_tokens" not in wanted and "epochs" not in wanted:
        wanted["total_steps"] = steps
    world = wanted.pop("world_size", 1)
    rank = wanted.pop("dp_rank", 0)
    return SLWDataset(stores, schedule, dp_rank=rank, dp_world_size=world, **wanted)


def _show_batch(batch: Batch, rows: Rows) -> None:
    places, mask = batch.pop(PLACE).numpy(), batch.get("attention_mask")
    for name, tensor in batch.items():
        print(f"  {name:<16}{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}")
    shown = len(places) if rows.count is None else min(rows.count, len(places))
    for number in range(shown):
        real = places[number] if mask is None else places[number][mask[number].numpy() != 0]
        ids = batch["input_ids"][number].tolist()
        rows.show(f"row {number}, {_spans(real)}", ids, len(ids))
    if shown < len(places):
        print(f"  ({len(places) - shown:,} more rows)")


def _spans(places: npt.NDArray[np.int64]) -> str:
    """Runs of neighbouring positions: ``tokens 16 to 23 and 96 to 103``."""
    if len(places) == 0:
        return "padding"
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    runs = [(int(run[0]), int(run[-1])) for run in np.split(places, cuts)]
    return "tokens " + " and ".join(f"{first:,} to {last:,}" if first < last else f"{first:,}" for first, last in runs)
