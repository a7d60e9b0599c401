"""Agreement: before the first step all ranks know that they run the same run, or raise the same error.

A rank that reads another file, stands at another step, or could not load its state would otherwise be noticed late: the
others wait for it in a collective, or train on other rows. One gather of a few short texts tells::

    rank 0   made   {"plan": ..., "source": "uint16 x 400 #3fa2", "step": 120}     all ranks must have the same source: ...
    rank 1   made   {"plan": ..., "source": "uint16 x 300 #01ab", "step": 120}     the same StateError, here too
    rank 0   made   {...}                                                          rank 1 failed: FileNotFoundError: ...
    rank 1   failed FileNotFoundError: state.json                                  the same, from its own error

Nothing is read from the source. This module comes after :mod:`slw_data.delivery.checkpoint`, and is the last that a run needs.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from slw_data.dataset import SLWDataset
from slw_data.errors import StateError
from slw_data.loader import SLWLoader
from slw_data.state import dump_state

__all__ = ["check_ranks_agree", "gather_state"]

Loader = TypeVar("Loader", SLWLoader, SLWDataset)

_OWN = ("source", "stream", "tokens", "epoch")  # of each rank, with sharded=True: its own part of the data


def check_ranks_agree(loader: Loader | Callable[[], Loader], group: Any = None) -> Loader:
    """Return ``loader`` if it is of the same run, and at the same position, on all ranks. Call it on all of them.

    Args:
        loader: an :class:`~slw_data.SLWLoader` or :class:`~slw_data.SLWDataset`; or a function that makes one and loads
            its state. Then what fails on one rank is raised on all, and none waits for it.
        group: the process group to compare in; default: all ranks, which must then have all parts of the data.

    Raises:
        StateError: on every rank, with the same message: which ranks differ in what, with their values; or which failed,
            and why.

    Compared are the plan, source and order, whether the source is ``sharded`` (then each rank has its own), the position,
    the data-parallel world, and how many batches a rank delivers. Without a process group nothing is compared.

    >>> import numpy as np
    >>> from slw_data import ConstantSchedule, SLWDataset, SLWLoader
    >>> def make_loader():
    ...     loader = SLWLoader(SLWDataset(np.arange(100), ConstantSchedule(4), batch_size=2))
    ...     loader.load_state_dict({"step": 3})
    ...     return loader
    >>> check_ranks_agree(make_loader).step
    3
    """
    if not (isinstance(loader, (SLWLoader, SLWDataset)) or callable(loader)):
        raise TypeError(f"loader must be an SLWLoader, an SLWDataset or a function, got {type(loader).__name__}")
    if not (dist.is_available() and dist.is_initialized()):
        return loader if isinstance(loader, (SLWLoader, SLWDataset)) else loader()
    failure: Exception | None = None
    try:
        made = loader if isinstance(loader, (SLWLoader, SLWDataset)) else loader()
        own = {"failed": "", "dp_rank": _dataset(made).dp_rank, **_described(made)}
    except Exception as error:  # to be raised once the others know
        failure, own = error, {"failed": f"{type(error).__name__}: {error}"}
    found: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(found, own, group)
    fault = _fault(found, whole=group is None)
    if fault:
        raise StateError(fault) from failure
    return made


def gather_state(loader: SLWLoader | SLWDataset, group: Any = None) -> dict[str, Any]:
    """``loader.state_dict()``; of a divided stream (``num_shards``) with the shards of all ranks of ``group``, so that any
    number of ranks goes on from it. Call it on all of them: all get the same.

    StateError on every rank where one has no state, or another step.

    >>> import numpy as np
    >>> from slw_data import ConstantSchedule, SLWDataset, SLWLoader
    >>> loader = SLWLoader(SLWDataset([[1, 2], [3, 4]], ConstantSchedule(2), batch_size=2, total_steps=3, num_shards=2))
    >>> list(gather_state(loader)["shards"])
    ['0', '1']
    """
    if not (_dataset(loader).run.divided and dist.is_available() and dist.is_initialized()):
        return loader.state_dict()
    failure: Exception | None = None
    try:
        own: tuple[str, dict[str, Any]] = "", loader.state_dict()
    except Exception as error:  # to be raised once the others know
        failure, own = error, (f"{type(error).__name__}: {error}", {})
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, own, group)
    failed = [f"rank {rank} of {len(found)} failed: {text}" for rank, (text, _) in enumerate(found) if text]
    if failed:
        raise StateError("; ".join(failed)) from failure
    steps = [(state["step"], state["batch"]) for _, state in found]
    if len(set(steps)) > 1:
        raise StateError(f"all ranks must stand at the same step and batch to be saved together, they stand at {steps}")
    shards = {number: entry for _, state in found for number, entry in state["shards"].items()}
    return {**own[1], "shards": dict(sorted(shards.items(), key=lambda one: int(one[0])))}


def _dataset(loader: SLWLoader | SLWDataset) -> SLWDataset:
    return loader if isinstance(loader, SLWDataset) else loader.dataset


def _described(loader: SLWLoader | SLWDataset) -> dict[str, Any]:
    """What must be the same on all ranks, in short values."""
    dataset = _dataset(loader)
    state = {"plan": dataset.plan.fingerprint, **dump_state(dataset.run.identity, loader.position)}
    state["stream"] = state["stream"] and hashlib.sha256(state["stream"].encode()).hexdigest()[:12]
    left_out = ("version", "past", "checksum", "dp_rank", "shards", *(_OWN if dataset.sharded else ()))
    shared = {name: value for name, value in state.items() if name not in left_out}
    world, batches = dataset.dp_world_size, dataset.num_batches
    return {**shared, "sharded": dataset.sharded, "dp_world_size": world, "num_batches": batches}


def _fault(found: Sequence[Mapping[str, Any]], *, whole: bool) -> str | None:
    """What is wrong with the ranks together; every rank finds the same."""
    failed = [f"rank {rank} of {len(found)} failed: {one['failed']}" for rank, one in enumerate(found) if one["failed"]]
    if failed:
        return "; ".join(failed)
    names = [name for name in found[0] if name != "dp_rank" and all(name in one for one in found)]
    differing = [text for name in names if (text := _difference(name, [one.get(name) for one in found]))]
    if differing:
        return f"all ranks must deliver the same run: {'; '.join(differing)}. Give each the same files, arguments and state"
    parts, world = sorted({one["dp_rank"] for one in found}), found[0]["dp_world_size"]
    if whole and parts != list(range(world)):
        return (
            f"all {world} parts of the data must have a rank, and dp_rank is {[one['dp_rank'] for one in found]} on ranks 0 to"
            f" {len(found) - 1}: leave out dp_rank and dp_world_size, or pass mesh=device_mesh['dp']"
        )
    return None


def _difference(name: str, values: Sequence[Any]) -> str | None:
    """``step is 3 on rank 0, 2; 4 on rank 1``; None where all are equal."""
    ranks = defaultdict(list)
    for rank, value in enumerate(values):
        ranks[repr(value)].append(str(rank))
    if len(ranks) == 1:
        return None
    return f"{name} is " + " and ".join(f"{value} on rank {', '.join(of)}" for value, of in ranks.items())
