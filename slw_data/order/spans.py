"""Spans: where the tokens of some batches lie, before any of them is read.

The tokens form runs of one width; a run is put together from spans, each a range of neighbouring tokens of a source::

    runs of 6     run 0              run 1
    spans         [ 40 .. 45 ]       [ 46 47 ][ 12 .. 15 ]       a lane jumps within run 1
    starts        40                 46       12
    sizes         6                  2        4
    run           0                  1        1

Where each run is one span of the whole width, which is the usual case, ``sizes`` and ``run`` are None. An order makes
spans; :mod:`slw_data.batch.reading` reads them, marks documents in them and checks their ids.

Read next: :mod:`slw_data.order.lanes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slw_data.cached import cached
from slw_data.order.permutation import Ints

__all__ = ["Spans", "joined"]


@dataclass(frozen=True, eq=False)
class Spans:
    """``runs`` runs of ``width`` tokens, of which the last ``look`` are only looked at, for labels.

    Args:
        starts: int64 (spans,), the source's position of each span's first token.
        sizes: int64 (spans,), tokens in each span; None: all have ``width``.
        run: int64 (spans,), ascending: the run that each span is part of; None: span i is run i. What a run's spans do not
            fill has no token: padding, or the end of the data.
        by_lane: how runs make batches; see :class:`slw_data.batch.chunk.Chunk`.
        window: what of a stream the spans are of (:class:`slw_data.order.dealing.Window`); None: they are a store's.
        at: int64 (spans,), where in its run each span begins, if each is a document of its own; None: one after the other.
        after: where the token after each lies, if spans are documents of their own; None: where the run goes on.
    """

    runs: int
    width: int
    look: int
    starts: Ints
    sizes: Ints | None = None
    run: Ints | None = None
    by_lane: bool = False
    window: Any = None
    at: Ints | None = None
    after: Spans | None = None

    @cached
    def within(self) -> Ints:
        """Where in its run each span begins."""
        if self.at is not None:
            return self.at
        if self.sizes is None or self.run is None:
            return np.zeros(len(self.starts), np.int64)
        before: Ints = np.cumsum(self.sizes) - self.sizes
        firsts = np.searchsorted(self.run, self.run)  # for each span the first one of its run
        return before - before[firsts]

    @cached
    def filled(self) -> Ints | None:
        """How far spans reach in each run; None: they are all of it."""
        if self.sizes is None or self.run is None:
            return None
        filled = np.zeros(self.runs, np.int64)
        np.maximum.at(filled, self.run, self.within + self.sizes)
        return None if self.at is None and (filled == self.width).all() else filled

    @property
    def covered(self) -> npt.NDArray[np.bool_]:
        """Which places of the runs have a token, bool (runs, width), where spans leave gaps."""
        assert self.run is not None and self.sizes is not None
        edges = np.zeros((self.runs, self.width + 1), np.int8)
        edges[self.run, self.within] += 1
        edges[self.run, self.within + self.sizes] -= 1
        return np.cumsum(edges[:, :-1], axis=1, dtype=np.int8).astype(np.bool_)

    def position(self, run: int, at: int) -> tuple[int, int]:
        """The span that holds token ``at`` of ``run``, and that token's position in the source."""
        span = run
        if self.run is not None:
            first, last = np.searchsorted(self.run, [run, run + 1]).tolist()
            span = first + int(np.searchsorted(self.within[first:last], at, side="right")) - 1
        return span, int(self.starts[span]) + at - int(self.within[span])


def joined(run: Ints, starts: Ints, sizes: Ints) -> tuple[Ints, Ints, Ints]:
    """The same spans, those that go on where the one before them in their run ends made one with it."""
    goes_on = np.zeros(len(run), np.bool_)
    goes_on[1:] = (run[1:] == run[:-1]) & (starts[1:] == starts[:-1] + sizes[:-1])
    if not goes_on.any():
        return run, starts, sizes
    kept = np.flatnonzero(~goes_on)
    total: Ints = np.add.reduceat(sizes, kept)
    return run[kept], starts[kept], total
