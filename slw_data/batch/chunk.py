"""Chunks: some consecutive batches of one rank in one shape, still in the source's own dtype.

It is what is read at once, and what a worker sends to the main process in one message.

Read next: :mod:`slw_data.batch.building`, which makes tensors of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slw_data.plan import SequenceLengthPlan, Stage

__all__ = ["CHUNK_TOKENS", "Array", "Chunk", "chunks_from"]

Array = npt.NDArray[Any]

CHUNK_TOKENS = 1 << 18  # of all tensors together; enough to spread the cost of a call, and in the cache: 2 MiB of int64
_SPAN_BATCHES = 1024  # as far as a schedule that is only a callable is asked ahead


@dataclass
class Chunk:
    """Batches ``numbers`` (counted over the run, on one rank), each of ``rows`` x ``length`` tokens.

    ``columns`` are arrays of that many tokens: the parallel columns, and as "next" the tokens one further on, for labels.
    An array holds the tokens in the order of the batches, in whatever shape; or, ``by_lane``, it has shape (runs, width),
    and run i has the i-th row of each cycle of runs. ``valid`` (of the tokens) and ``valid_next`` are False where there
    is no token (padding, the end of the data), ``starts`` is True where a document begins; None means all, all and none.
    ``after[i]`` is the source's position once batch i is delivered.
    """

    numbers: range
    rows: int
    length: int
    columns: dict[str, Array]
    by_lane: bool = False
    valid: npt.NDArray[np.bool_] | None = None
    valid_next: npt.NDArray[np.bool_] | None = None
    starts: npt.NDArray[np.bool_] | None = None
    after: Sequence[Any] | None = None

    def view(self, array: Array) -> Array:
        """``array`` by batch: ``view[i]`` has the tokens of batch i in their order, in two or more dimensions."""
        batches, runs = len(self.numbers), array.shape[0]
        if not self.by_lane:
            return array.reshape(batches, self.rows, self.length)
        return array.reshape(runs, batches, self.rows // runs, self.length).transpose(1, 2, 0, 3)

    def final(self, array: Array) -> Array:
        """``array`` as ``(batches, rows, length)``."""
        return self.view(array).reshape(len(self.numbers), self.rows, self.length)


def chunks_from(
    plan: SequenceLengthPlan, start: int, stop: int | None, size: int | None, tokens: int = CHUNK_TOKENS
) -> tuple[Stage, Iterator[range]]:
    """The stage of batch ``start``, and the next chunks from there on, as far as they lie in the stage: of ``size``
    batches each, or of so many tokens. It depends on the arguments alone, so all workers agree without talking."""
    accum = plan.grad_accum_steps
    step = start // accum
    ahead = 1 if size == 1 else _SPAN_BATCHES // accum + 2
    if stop is not None:
        ahead = min(ahead, -(-stop // accum) - step)
    stage = plan.stage_at(step, ahead)
    most = size or max(1, min(tokens // (stage.rows * stage.length), _SPAN_BATCHES))
    ends = (start + max(most, _SPAN_BATCHES), stop, None if stage.stop is None else stage.stop * accum)
    end = min(end for end in ends if end is not None)
    return stage, (range(first, min(first + most, end)) for first in range(start, end, most))
