"""A progress bar over the batches of a run.

Read next: :mod:`slw_data.loader`.
"""

from __future__ import annotations

from typing import Any

from slw_data.order.position import Position
from slw_data.run import Run

__all__ = ["Progress"]


class Progress:
    """A bar of the batches of ``run`` that stands where ``at`` is; on ranks but the first it is not shown. ImportError without
    tqdm."""

    def __init__(self, run: Run, at: Position) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            raise ImportError("progress=True needs tqdm: pip install 'slw_data[progress]', or leave it out") from None
        done, hidden = run.plan.batches_before(at.step) + at.batch, run.ranks.rank != 0
        self._bar: Any = tqdm(total=run.num_batches, initial=done, unit="batch", dynamic_ncols=True, disable=hidden)

    def show(self, length: int, tokens: int) -> None:
        """One batch more, of that length; ``tokens`` are delivered so far."""
        self._bar.set_postfix(length=length, tokens=f"{tokens:,}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()
