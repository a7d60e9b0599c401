"""Flat rows: a batch as one row of a constant number of tokens, for variable-length attention and graphs of one shape.

::

    rows of a batch    [a a a a]  [b b b b]  [c c c c]          12 tokens, and a budget of 14
    flat               [a a a a b b b b c c c c . .]            labels: -100 where a row begins, and in the rest
    position_ids       [0 1 2 3 0 1 2 3 0 1 2 3 0 1]
    cu_seq_lens_q/k    [0 4 8 12 14],  max_length_q/k  4

The names are those of Hugging Face's flash attention. What the budget leaves over is filled with token 0 as a sequence of
its own, so every batch of a run has the same shape. Where documents are known, each is a sequence too, and so is the padding
of each row of mode "pack".

Read next: :mod:`slw_data.batch.building`, which makes the rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["IGNORE", "flatten", "sequences"]

Array = npt.NDArray[Any]

IGNORE = -100  # the target that torch's and Hugging Face's cross entropy leave out


def flatten(parts: dict[str, Array], shape: tuple[int, int, int], tokens: int, *, shifted: bool) -> dict[str, Array]:
    """Arrays that hold (batches, rows, length) values as int64 (batches, 1, tokens).

    Unless ``labels`` are ``shifted`` already, none is a target where a row begins: a model that shifts them would predict
    it from the row before.
    """
    batches, rows, length = shape
    flat = {}
    for name, part in parts.items():
        flat[name] = np.full((batches, 1, tokens), IGNORE if name in ("labels", "shift_labels") else 0, np.int64)
        filled = flat[name][:, 0, : rows * length]
        filled[:] = part.reshape(batches, rows * length)
        if name == "labels" and not shifted:
            filled[:, ::length] = IGNORE
        if name == "position_ids":
            flat[name][:, 0, rows * length :] = np.arange(tokens - rows * length)
    return flat


def sequences(position_ids: torch.Tensor) -> dict[str, Any]:
    """Where the sequences of a flat row begin and end, int32 (sequences + 1,), and the tokens of the longest, an int."""
    starts = np.flatnonzero(position_ids[0].numpy() == 0)  # of NumPy: torch's default device may be another
    bounds = np.append(starts, position_ids.shape[1]).astype(np.int32)
    longest = int(np.diff(bounds).max())
    tensors = {name: torch.from_numpy(bounds.copy()) for name in ("cu_seq_lens_q", "cu_seq_lens_k")}
    return {**tensors, "max_length_q": longest, "max_length_k": longest}
