"""Options: the dataset's arguments, checked before anything is opened.

Read next: :mod:`slw_data.dataset`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from slw_data.arguments import integer

__all__ = ["check_mode", "check_token", "coordinates", "given"]


def check_mode(mode: str, *, shuffle: bool, pad_id: int | None, preserve_eos: bool) -> None:
    """ValueError for options that ``mode`` has no use for, or that it lacks."""
    if mode == "stream" and (pad_id is not None or preserve_eos):
        raise ValueError("pad_id and preserve_eos are of modes 'segment' and 'truncate': mode 'stream' pads nothing")
    if mode != "stream" and pad_id is None:
        raise ValueError(f"mode={mode!r} pads rows, and needs pad_id: the id to pad with (such as eos_id)")
    if mode != "stream" and shuffle:
        raise ValueError(f"shuffle=True permutes blocks of tokens; in mode={mode!r} shuffle the documents instead")
    if preserve_eos and mode != "truncate":
        raise ValueError(f"preserve_eos is of mode 'truncate', where tokens are discarded; mode is {mode!r}")


def check_token(name: str, value: Any, vocab_size: int | None) -> int | None:
    if value is None:
        return None
    token = integer(name, value, at_least=0)
    if vocab_size is not None and token >= vocab_size:
        raise ValueError(f"{name} must be below vocab_size={vocab_size}, got {token}")
    return token


def given(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.80}" for name, value in arguments.items() if value is not None)


def coordinates(rank: int | None, world: int | None, mesh: Any = None) -> tuple[int, int]:
    """Data-parallel rank and world size: as given, of the device mesh, of the process group, or 0 of 1."""
    if mesh is not None:
        if rank is not None or world is not None:
            beside = given({"dp_rank": rank, "dp_world_size": world})
            raise ValueError(f"mesh has its own dp_rank and dp_world_size: leave out {beside}, or the mesh")
        return _coordinates_in(mesh)
    if (rank is None) != (world is None):
        raise ValueError(f"give both dp_rank and dp_world_size, or neither: got {rank} and {world}")
    if rank is not None:
        world, rank = integer("dp_world_size", world, at_least=1), integer("dp_rank", rank, at_least=0)
        if rank >= world:
            raise ValueError(f"dp_rank must be below dp_world_size={world}, got {rank}")
        return rank, world
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    environment = os.environ.get("WORLD_SIZE", "1")
    if environment.strip() not in ("", "1"):
        raise ValueError(
            f"WORLD_SIZE={environment}, but no process group is initialised, so every process would deliver the same batches:"
            " call torch.distributed.init_process_group first, or pass dp_rank and dp_world_size"
        )
    return 0, 1


def _coordinates_in(mesh: Any) -> tuple[int, int]:
    from torch.distributed.device_mesh import DeviceMesh

    if not isinstance(mesh, DeviceMesh):
        raise TypeError(
            f"mesh must be a torch.distributed DeviceMesh of one dimension, got {type(mesh).__name__}:"
            " write mesh=device_mesh['dp'], or pass dp_rank and dp_world_size"
        )
    if mesh.ndim != 1:
        names = mesh.mesh_dim_names
        dp = "dp" if not names or "dp" in names else names[0]
        raise ValueError(
            f"mesh must have one dimension, the data-parallel one, and has {mesh.ndim}"
            + (f", {names}: write" if names else " without names: give it mesh_dim_names, and write")
            + f" mesh=mesh[{dp!r}]; or, where several are data-parallel, pass dp_rank and dp_world_size"
        )
    if mesh.get_coordinate() is None:
        raise ValueError(f"this process, rank {torch.distributed.get_rank()}, is not in the mesh of {mesh.size()} ranks")
    return mesh.get_local_rank(), mesh.size()
