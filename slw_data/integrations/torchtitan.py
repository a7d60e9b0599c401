"""torchtitan: micro-batches of flat tokens, and a state for each rank, by its dataloader contract.

::

    SLWLoader          {"input_ids": (rows, length), "position_ids", "labels"}
    TorchTitanLoader   ({"input": (tokens,), "positions": (tokens,)}, labels: (tokens,))      labels are shifted already

Its ``num_tokens_per_microbatch_per_dp_rank`` is the plan's ``tokens_per_batch``, and its ``max_context_length`` the
longest length: as rows get longer, fewer of them fill a micro-batch. ``positions`` begin again in each row and in each
document, and by them torchtitan keeps rows apart. What is ``repeat=True`` there is ``total_steps`` of the dataset here:
data is read again as often as needed, and the warmup goes on. A run that ends is safe on several ranks, as all of them
have the same number of batches.

Of a divided stream (``num_shards``) the state has a key for each shard, which ``torch.distributed.checkpoint`` joins, so any
number of ranks that divides ``num_shards`` goes on from it where a step ends.

What was run: nothing of torchtitan itself, which is not a released package and changes quickly. Shapes, keys and
refusals follow its source and tests of August 2026 as they were read, and are tested against values of those tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from slw_data.dataset import SLWDataset
from slw_data.errors import ScheduleError, StateError
from slw_data.loader import SLWLoader

__all__ = ["TorchTitanLoader"]

_VERSION = 1
_DIVIDED = "divided"  # the state of a divided stream: the same on all ranks, but for the shards in it


class TorchTitanLoader:
    """An :class:`slw_data.SLWLoader` as torchtitan's trainer reads, saves and closes one.

    Args:
        loader: of a dataset with ``tokens_per_batch`` and ``labels="shifted"``, and ``extras=("position_ids",)`` if every
            length divides ``tokens_per_batch``. If not, ``extras=("cu_seq_lens",)`` fills up what is left over, without
            targets. Pairs that are shifted within each document may come as ``columns=("input_ids", "labels")``.

    Raises:
        ValueError: the dataset gives unshifted labels or none, no positions, or not always as many tokens.
    """

    def __init__(self, loader: SLWLoader) -> None:
        self.loader = loader
        self._tokens = _tokens(loader.dataset)
        self._labels = "shift_labels" if loader.dataset.labels == "both" else "labels"
        self._rank = _DIVIDED if loader.dataset.run.divided else f"dp_rank_{loader.dataset.dp_rank}"

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """Micro-batches from where the state stands."""
        for batch in self.loader:
            flat = {name: batch[name].flatten() for name in ("input_ids", "position_ids", self._labels)}
            if len(flat["input_ids"]) != self._tokens:
                raise _uneven(self._tokens, [self.loader.sequence_length])
            yield {"input": flat["input_ids"], "positions": flat["position_ids"]}, flat[self._labels]

    def state_dict(self) -> dict[str, Any]:
        """The state of the last delivered micro-batch, under the name of this rank; of a divided stream under "divided"."""
        return {
            "version": _VERSION,
            "dp_world_size": self.loader.dataset.dp_world_size,
            self._rank: self.loader.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was saved; an empty one is the beginning. StateError, and no change, if it is of
        another version, has nothing for this rank, or does not fit the loader; or is of another data-parallel degree, unless
        the stream is divided."""
        if not state_dict:
            return
        version, world = state_dict.get("version"), self.loader.dataset.dp_world_size
        if version != _VERSION:
            raise StateError(f"version must be {_VERSION}, which this slw_data reads, the saved state has {version!r}")
        saved = state_dict.get("dp_world_size")
        if saved != world and self._rank != _DIVIDED:
            raise StateError(
                f"the data-parallel degree was {saved!r} and is {world}. Every rank's state is the same, so where a step has"
                " as many rows as before, pass any rank's to loader.load_state_dict() of the SLWLoader"
            )
        if self._rank not in state_dict:
            raise StateError(f"missing dataloader state: the saved one has {', '.join(state_dict)}, this rank is {self._rank}")
        self.loader.load_state_dict(state_dict[self._rank])

    def close(self) -> None:
        """Give up what was read ahead. The state stays."""
        self.loader.close()


def _tokens(dataset: SLWDataset) -> int:
    """Tokens of each micro-batch."""
    flat, column = "cu_seq_lens" in dataset.extras, "labels" in dataset.columns
    if dataset.labels == "none" or (dataset.labels == "unshifted" and (flat or not column)):
        raise ValueError(f"torchtitan takes labels that are shifted already, not labels={dataset.labels!r}: write 'shifted'")
    if not flat and "position_ids" not in dataset.extras:
        raise ValueError(f"torchtitan takes positions, and extras={dataset.extras}: write extras=('position_ids',)")
    dataset.plan.fixed_accumulation("torchtitan")
    if dataset.run.builder.flat is not None:
        return dataset.run.builder.flat.tokens
    tokens = dataset.plan.tokens_per_batch
    if not isinstance(tokens, int):
        given = f"batch_size={dataset.plan.batch_size}" if tokens is None else f"tokens_per_batch={tokens!r}"
        raise ValueError(
            f"torchtitan takes as many tokens in each micro-batch, and with {given} they grow: write tokens_per_batch=..., one"
            " number"
        )
    try:
        lengths = dataset.plan.lengths
    except ScheduleError:  # of an endless run nobody can know them
        return tokens
    if uneven := [length for length in lengths if tokens % length]:
        raise _uneven(tokens, uneven)
    return tokens


def _uneven(tokens: int, lengths: list[int]) -> ValueError:
    return ValueError(
        f"rows of {', '.join(map(str, lengths[:4]))} tokens do not fill tokens_per_batch={tokens}: take lengths that divide"
        " it (DoublingSchedule), or extras=('cu_seq_lens',), which fills up the rest"
    )
