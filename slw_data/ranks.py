"""Ranks: which data-parallel rank of how many this process is.

Read next: :mod:`slw_data.plan`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from slw_data.arguments import flag, given, integer

__all__ = ["Ranks", "coordinates"]


@dataclass(frozen=True)
class Ranks:
    """Data-parallel ``rank`` of ``world``. ``explicit``: as the user gave them, not as the process group had them.
    ``sharded``: each rank's source is its own part of the data."""

    rank: int
    world: int
    explicit: bool
    sharded: bool

    @staticmethod
    def of(rank: int | None, world: int | None, mesh: Any, sharded: Any) -> Ranks:
        """As the arguments say, which are those of :class:`slw_data.SLWDataset`."""
        sharded, explicit = flag("sharded", sharded), any(x is not None for x in (rank, world, mesh))
        return Ranks(*coordinates(rank, world, mesh), explicit, sharded)  # without the mesh, which cannot be pickled

    def check(self) -> None:
        """ValueError if the process group has changed since."""
        if not self.explicit and coordinates(None, None) != (self.rank, self.world):
            now = coordinates(None, None)
            raise ValueError(
                f"the dataset was made on rank {self.rank} of {self.world}, this process is now {now[0]} of"
                f" {now[1]}: make it after torch.distributed.init_process_group, or pass dp_rank and dp_world_size"
            )


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
