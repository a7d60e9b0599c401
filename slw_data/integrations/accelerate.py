"""Accelerate: ``accelerator.prepare`` leaves an :class:`slw_data.SLWLoader` as it is, and its checkpoints hold the state.

::

    accelerator.register_for_checkpointing(loader)                  the same on all ranks, and rank 0 writes it
    accelerator.register_for_checkpointing(GatheredState(loader))   of a divided stream, where each rank has shards of its own

``accelerate`` itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slw_data.delivery.agreement import gather_state
from slw_data.loader import SLWLoader

__all__ = ["GatheredState"]


class GatheredState:
    """The state of ``loader`` with the shards of all ranks, for what keeps the state of one. Any number of ranks loads it."""

    def __init__(self, loader: SLWLoader) -> None:
        self.loader = loader

    def state_dict(self) -> dict[str, Any]:
        """:func:`slw_data.gather_state`: to be called on all ranks, as ``Accelerator.save_state`` is."""
        return gather_state(self.loader)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.loader.load_state_dict(state_dict)
