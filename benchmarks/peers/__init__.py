"""The peers: other ways to get batches out of a corpus, each driven as its authors drive it, and the two limits.

Each is a short module with two functions, and a third where resuming needs what a run has saved:

    prepare(corpus, length)                             what has to be done once before the first batch of that length
    batches(corpus, rows, length, step=0, workers=0)    int64 tensors of shape (rows, length), epoch after epoch
    snapshot(corpus, rows, length, step)                save the state of that step

``step`` resumes in the peer's own best way: by arithmetic, from a state, or by a replay where it has neither. Peers that
shuffle by default read in order here, which is never slower; nanoGPT has no order, and draws its windows.

Nothing is imported before a peer is asked for. Read :mod:`benchmarks.peers.limit` next, the shortest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["LIMIT", "PEERS", "READY", "Peer"]


@dataclass(frozen=True)
class Peer:
    """A module here, the distribution that it needs, and further arguments of its ``batches``.

    ``delivers``: whether its batches hold the corpus. ``resumes``: whether there is a place in the data to resume at.
    ``forks``: whether it can have worker processes.
    """

    module: str
    needs: str = "slw_data"
    options: Mapping[str, Any] = field(default_factory=dict)
    delivers: bool = True
    resumes: bool = True
    forks: bool = True

    @property
    def version(self) -> str | None:
        """Of the distribution that it needs; None if that is not installed."""
        try:
            return version(self.needs)
        except PackageNotFoundError:
            return None

    @cached_property
    def imported(self) -> Any:
        return import_module(f"benchmarks.peers.{self.module}")

    def batches(self, *shape: Any, **resumed: int) -> Iterator[Any]:
        return self.imported.batches(*shape, **resumed, **self.options)


LIMIT, READY = "memory limit", "DataLoader, ready tensors"

PEERS = {
    LIMIT: Peer("limit", forks=False),
    "slw_data, in order": Peer("ours", options={"shuffle": False}),
    "slw_data, in order, no thread": Peer("ours", options={"shuffle": False, "prefetch": 0}, forks=False),
    "slw_data, shuffled": Peer("ours", options={"shuffle": True}),
    READY: Peer("ready", delivers=False),
    "nanoGPT, get_batch": Peer("nanogpt", resumes=False),
    "Composer, cut after the loader": Peer("composer", "mosaicml"),
    "Hugging Face, group_texts, map": Peer("group_texts", "datasets"),
    "Hugging Face, group_texts, streaming": Peer("group_texts_streaming", "datasets"),
    "TRL, pack_dataset": Peer("trl", "trl"),
    "mosaicml-streaming": Peer("mosaic", "mosaicml-streaming"),
    "litdata": Peer("litdata", "litdata"),
    "OLMo-core": Peer("olmo", "ai2-olmo-core"),
    "grain, concatenate and split": Peer("grain", "grain"),
}
