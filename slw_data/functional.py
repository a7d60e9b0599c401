"""Cut a batch that somebody else has made: Composer's function, by its own names, for a loader of one's own.

It throws tokens away, the ends of rows or what is left over of each; :class:`slw_data.SLWDataset` loses none.

Read next: :mod:`slw_data.dataset`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from slw_data.arguments import flag, integer

__all__ = ["set_batch_sequence_length"]


def set_batch_sequence_length(
    batch: Mapping[str, Any], curr_seq_len: int, truncate: bool = True, preserve_end_of_sequence: bool = False
) -> dict[str, Any]:
    """A new batch with rows of ``curr_seq_len`` tokens; ``batch`` and what it holds stay as they are.

    Args:
        batch: ``input_ids`` of shape (B, L), and whatever goes with them. Tensors and NumPy arrays of shape
            (B, L, ...), or (1, L, ...) for all rows alike, are cut together. Other tensors, arrays, lists and tuples
            of B items hold an item per row, which is repeated for each of the row's segments. Anything else is passed
            on as it is.
        curr_seq_len: tokens in a row of the new batch. L or more: the batch is copied, and nothing is cut.
        truncate: keep the first ``curr_seq_len`` tokens of each row. Otherwise cut each row into ``L // curr_seq_len``
            rows, those of the first row first; no segment holds tokens of two rows, and ``L % curr_seq_len`` tokens at
            the end of each row are lost.
        preserve_end_of_sequence: with ``truncate``, keep each row's last token as its last: the last one that
            ``attention_mask`` (B, L) does not hide, or the last of all without a mask. A row that ends within the first
            ``curr_seq_len`` tokens is only truncated.

    Returns:
        A dict with the same keys in the same order; every cut or repeated value has its dtype, device and contiguous
        memory of its own.

    Raises:
        TypeError: ``batch`` is no mapping.
        KeyError: it has no ``input_ids``.
        ValueError: ``curr_seq_len`` is no int >= 1; ``input_ids`` or ``attention_mask`` is not of shape (B, L); a value
            of another (N, L) would have to be told apart by row; or the end is to be preserved where rows are not
            truncated.

    >>> import torch
    >>> batch = {"input_ids": torch.arange(12).reshape(2, 6)}
    >>> set_batch_sequence_length(batch, 3)["input_ids"].tolist()
    [[0, 1, 2], [6, 7, 8]]
    >>> set_batch_sequence_length(batch, 3, preserve_end_of_sequence=True)["input_ids"].tolist()
    [[0, 1, 5], [6, 7, 11]]
    >>> set_batch_sequence_length(batch, 4, truncate=False)["input_ids"].tolist()
    [[0, 1, 2, 3], [6, 7, 8, 9]]
    """
    rows, length = _shape(batch)
    keep = min(integer("curr_seq_len", curr_seq_len, at_least=1), length)
    truncate, preserve_end_of_sequence = flag("truncate", truncate), flag("preserve_end_of_sequence", preserve_end_of_sequence)
    if preserve_end_of_sequence and not truncate:
        raise ValueError(
            "preserve_end_of_sequence=True needs truncate=True: a row that is cut into segments has no one end to keep"
        )
    segments = 1 if truncate or keep == length else length // keep
    ends = _ends(batch, rows, length) if preserve_end_of_sequence and keep < length else None
    return {name: _resized(name, value, (rows, length), keep, segments, ends) for name, value in batch.items()}


def _shape(batch: Any) -> tuple[int, int]:
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch must be a mapping with 'input_ids', got {type(batch).__name__}")
    if "input_ids" not in batch:
        raise KeyError(f"batch must have 'input_ids', it has {', '.join(map(repr, batch)) or 'no keys'}")
    ids = batch["input_ids"]
    if not isinstance(ids, (torch.Tensor, np.ndarray)) or ids.ndim != 2:
        got = getattr(ids, "shape", None)
        shape = type(ids).__name__ if got is None else f"shape {tuple(got)}"
        raise ValueError(f"input_ids must be a tensor or array of shape (rows, tokens), got {shape}")
    return ids.shape[0], ids.shape[1]


def _ends(batch: Mapping[str, Any], rows: int, length: int) -> Any:
    """The column of each row's last token."""
    mask = batch.get("attention_mask")
    if mask is None:
        return np.full(rows, length - 1)
    if not isinstance(mask, (torch.Tensor, np.ndarray)) or tuple(mask.shape) != (rows, length):
        shape = tuple(getattr(mask, "shape", ())) or type(mask).__name__
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {(rows, length)}, to say where rows end, got {shape}"
        )
    real = torch.as_tensor(mask != 0, device="cpu").numpy()
    return (real * np.arange(length)).max(axis=1)


def _resized(name: str, value: Any, shape: tuple[int, int], keep: int, segments: int, ends: Any) -> Any:
    rows, length = shape
    if isinstance(value, torch.Tensor) and value.layout != torch.strided:
        raise ValueError(f"{name} must be dense to be cut, got a tensor of layout {value.layout}: call to_dense()")
    if isinstance(value, (torch.Tensor, np.ndarray)):
        if value.ndim >= 2 and value.shape[1] == length:
            if value.shape[0] != rows and (segments > 1 or ends is not None):
                value = _for_each_row(name, value, rows)
            return _cut(value, keep, segments, ends)
        if value.ndim >= 1 and value.shape[0] == rows:
            return _copy(value[np.repeat(np.arange(rows), segments)])
    elif isinstance(value, (list, tuple)) and len(value) == rows:
        repeated = [item for item in value for _ in range(segments)]
        return repeated if isinstance(value, list) else tuple(repeated)
    return value


def _for_each_row(name: str, value: Any, rows: int) -> Any:
    if value.shape[0] != 1:
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} cannot be cut along with {rows} rows: make its first dimension"
            f" {rows}, or 1 for all rows alike"
        )
    return value[np.zeros(rows, int)]


def _cut(value: Any, keep: int, segments: int, ends: Any) -> Any:
    rows, rest = value.shape[0], value.shape[2:]
    part = _copy(value[:, : segments * keep].reshape(rows * segments, keep, *rest))
    if ends is not None:  # a row that ends before the cut has its end already
        part[:, -1] = value[np.arange(rows), np.where(ends < keep, keep - 1, ends)]
    return part


def _copy(value: Any) -> Any:
    return value.clone(memory_format=torch.contiguous_format) if isinstance(value, torch.Tensor) else value.copy("C")
