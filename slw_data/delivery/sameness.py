"""Sameness: a source that is read in several processes must be the same in all of them.

A generator that shuffles by a global generator, or a pipeline that shuffles itself, gives each process an order of its own:
some rows would come twice, and others never. So each block that is read is summed up in a few bytes, and these are compared::

    workers of a loader     each block, as their messages come in
    ranks                   the first block of each pass, through the process group's store: nobody waits for anybody

A saved position has the checksum of the block that is read again from there, which is compared on resuming.
This module comes after :mod:`slw_data.delivery.workers`; read :mod:`slw_data.delivery.reading` next.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any, ClassVar

import torch.distributed as dist

from slw_data.batch.chunk import Chunk, Mark
from slw_data.errors import DataError
from slw_data.run import Run

__all__ = ["watched"]

_KEPT = 1 << 12  # blocks whose marks are remembered


def watched(run: Run, chunks: Iterator[Chunk]) -> Generator[Chunk, None, int | None]:
    """``chunks``, whose blocks are compared with what other workers and ranks have read. DataError where they differ."""
    seen, store = dict[tuple[int, int], tuple[int, int]](), _Store.of(run)
    chunks = iter(chunks)
    while True:
        try:
            chunk = next(chunks)
        except StopIteration as end:
            left: int | None = end.value
            return left
        for mark in chunk.marks:
            where = mark.epoch, mark.first
            digest, worker = seen.setdefault(where, (mark.digest, chunk.worker))
            if digest != mark.digest:
                raise _differs(run, mark, f"worker {worker}", f"worker {chunk.worker}")
            if store is not None and mark.begins and worker == chunk.worker:
                store.compare(run, mark)
        while len(seen) > _KEPT:
            del seen[next(iter(seen))]
        yield chunk


class _Store:
    """What ranks have seen, in the process group's store, of the ``number``-th reading of a run in each process: another one
    may be of other data, although it looks the same."""

    readings: ClassVar[Counter[str]] = Counter()

    def __init__(self, store: Any, name: str) -> None:
        self._store, self._name = store, f"slw_data/{name}/{self.readings[name]}"
        self.readings[name] += 1

    @classmethod
    def of(cls, run: Run) -> _Store | None:
        """None unless all ranks of a process group read the same stream."""
        ranks = run.ranks
        if ranks.explicit or ranks.sharded or run.divided or not (dist.is_available() and dist.is_initialized()):
            return None
        if ranks.world == 1 or run.identity.order.found_by_step:
            return None
        name = hashlib.sha256(f"{run.identity.source} {run.identity.order.fingerprint}".encode()).hexdigest()[:12]
        return cls(dist.distributed_c10d._get_default_store(), name)

    def compare(self, run: Run, mark: Mark) -> None:
        """With the rank that has come to this pass first."""
        key, own = f"{self._name}/{mark.epoch}/{mark.first}", f"{mark.digest} {run.ranks.rank}"
        digest, rank = self._store.compare_set(key, "", own).decode().split()
        if int(digest) != mark.digest:
            raise _differs(run, mark, f"rank {rank}", f"rank {run.ranks.rank}")


def _differs(run: Run, mark: Mark, one: str, other: str) -> DataError:
    return DataError(
        f"{run.source.name} must be the same everywhere, and the documents from number {mark.first} on, in pass {mark.epoch},"
        f" are others on {other} than on {one}: let its order follow from (seed, epoch, shard) alone and not from a global"
        " generator, or leave it in order and write shuffle_buffer=n"
    )
