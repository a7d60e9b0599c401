"""A progress bar over the batches of a run.

Read next: :mod:`slw_data.loader`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Progress"]


class Progress:
    """A bar of ``total`` batches (None: nobody knows how many), of which ``done`` are delivered; ImportError without tqdm."""

    def __init__(self, total: int | None, done: int) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            raise ImportError("progress=True needs tqdm: pip install 'slw_data[progress]', or leave it out") from None
        self._bar: Any = tqdm(total=total, initial=done, unit="batch", dynamic_ncols=True)

    def show(self, length: int, tokens: int) -> None:
        """One batch more, of that length; ``tokens`` are delivered so far."""
        self._bar.set_postfix(length=length, tokens=f"{tokens:,}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()
