"""Building: from a chunk of tokens to the tensors that a training loop gets, with labels and extras.

Every tensor is fresh memory of exactly its own size, so it may be changed, saved or sent on its own.

Read next: :mod:`slw_data.dataset`, which decides who makes which chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slw_data.batch.chunk import CHUNK_TOKENS, Array, Chunk
from slw_data.batch.flat import IGNORE, flatten, sequences

__all__ = ["EXTRAS", "IGNORE", "LABELS", "Batch", "BatchBuilder"]

Batch = dict[str, Any]  # tensors; with "cu_seq_lens" two ints too

LABELS = ("unshifted", "shifted", "both", "none")
EXTRAS = ("position_ids", "document_ids", "step", "cu_seq_lens")


@dataclass(frozen=True)
class BatchBuilder:
    """Makes the batches of a chunk. ``masked``: rows may be padded, so an ``attention_mask`` goes with them. ``flat``:
    tokens of a batch that is one row. ``apart``: no document of a row is a context for the next."""

    labels: str
    columns: tuple[str, ...]
    extras: tuple[str, ...]
    masked: bool
    flat: int | None
    apart: bool = False

    @property
    def parts(self) -> dict[str, tuple[str, int]]:
        """What has to be read: for each name a column, and how many tokens further on."""
        parts = {name: (name, 0) for name in self.columns}
        if self.labels in ("unshifted", "both"):
            parts["labels"] = (self._target_column, 0)
        if self.labels in ("shifted", "both"):
            parts["next"] = (self._target_column, 1)
        return parts

    @property
    def _target_column(self) -> str:
        return "labels" if "labels" in self.columns else "input_ids"

    def build(self, chunk: Chunk) -> Iterator[Batch]:
        """The chunk's batches: dicts of contiguous int64 tensors ``(rows, length)``. What has to be cast is cast some
        batches at a time, into memory that is allocated at once: malloc then keeps it, and no page is faulted in anew."""
        parts = self._values(chunk)
        steps, shape = parts.pop("step", None), (chunk.rows, chunk.length)
        if self.flat is not None:
            parts = flatten(parts, (len(chunk.numbers), *shape), self.flat, shifted=self.labels == "shifted")
        unfit = _unfit(list(parts.values()))
        some = max(1, CHUNK_TOKENS // (chunk.rows * chunk.length * len(parts)))
        for start in range(0, len(chunk.numbers), some):
            block = [part[start : start + some] for part in parts.values()]
            for i, cast in zip(unfit, np.empty((len(unfit), len(block[0]), *shape), np.int64), strict=True):
                np.copyto(cast.reshape(block[i].shape), block[i])
                block[i] = cast
            tensors = zip(*(map(torch.from_numpy, part) for part in block), strict=True)
            for number, values in enumerate(tensors, start):  # one by one: a thousand at once would call the garbage collector
                batch: Batch = dict(zip(parts, values, strict=True))
                if steps is not None:
                    batch["step"] = torch.from_numpy(np.full(batch["input_ids"].shape[0], steps[number], np.int64))
                if self.flat is not None:
                    batch.update(sequences(batch["position_ids"]))
                yield batch

    def _values(self, chunk: Chunk) -> dict[str, Array]:
        """What each tensor is made of: arrays whose i-th item has the values of batch i."""
        values = {"input_ids": chunk.view(chunk.columns["input_ids"])}
        if self.labels in ("unshifted", "both"):
            values["labels"] = self._target(chunk, "labels", self._valid(chunk))
        if self.labels in ("shifted", "both"):
            values["labels" if self.labels == "shifted" else "shift_labels"] = self._target(chunk, "next", chunk.valid_next)
        if self.masked and chunk.valid is not None:
            values["attention_mask"] = chunk.view(chunk.valid)
        for name in self.columns:
            if name not in ("input_ids", "labels"):
                values[name] = chunk.view(chunk.columns[name])
        values.update(self._extra(chunk))
        return values

    def _valid(self, chunk: Chunk) -> npt.NDArray[np.bool_] | None:
        """Which tokens are targets of a model that shifts its labels; None: all."""
        if not self.apart or chunk.valid is None or chunk.starts is None:
            return chunk.valid
        return chunk.valid & ~chunk.starts

    @staticmethod
    def _target(chunk: Chunk, part: str, valid: npt.NDArray[np.bool_] | None) -> Array:
        target = chunk.view(chunk.columns[part])
        if valid is not None:
            return np.where(chunk.view(valid), target.astype(np.int64), IGNORE)
        return target

    def _extra(self, chunk: Chunk) -> dict[str, Array]:
        extra: dict[str, Array] = {}
        shape = (len(chunk.numbers), chunk.rows, chunk.length)
        wanted = [name for name in self.extras if name != "cu_seq_lens"]
        if self.flat is not None and "position_ids" not in wanted:
            wanted.append("position_ids")
        if "position_ids" in wanted or "document_ids" in wanted:
            starts = np.zeros(shape, np.bool_) if chunk.starts is None else chunk.final(chunk.starts).copy()
            starts[:, :, 0] = True
            if "position_ids" in wanted:
                column = np.arange(chunk.length, dtype=np.int64)
                begins = starts if self.flat is None or chunk.valid is None else starts | _padding_begins(chunk)
                extra["position_ids"] = column - np.maximum.accumulate(np.where(begins, column, 0), axis=2)
            if "document_ids" in wanted:
                extra["document_ids"] = np.cumsum(starts, axis=2, dtype=np.int64) - 1
        if "step" in wanted:
            extra["step"] = chunk.stage.start + np.array(chunk.numbers, dtype=np.int64) // chunk.stage.grad_accum_steps
        return {name: extra[name] for name in wanted}


def _padding_begins(chunk: Chunk) -> npt.NDArray[np.bool_]:
    """True where the padding of each row begins, (batches, rows, length)."""
    assert chunk.valid is not None
    valid = chunk.final(chunk.valid)
    begins = np.zeros_like(valid)
    begins[:, :, 1:] = valid[:, :, :-1] & ~valid[:, :, 1:]
    return begins


def _unfit(parts: list[Array]) -> list[int]:
    """Which arrays cannot be handed out as they are: those that do not fit, or lie in the memory of one before."""
    unfit: list[int] = []
    handed_out: list[Array] = []
    for i, part in enumerate(parts):
        if _fit(part) and not any(np.may_share_memory(part, other) for other in handed_out):
            handed_out.append(part)
        else:
            unfit.append(i)
    return unfit


def _fit(values: Array) -> bool:
    """Whether tensors may share the memory of ``values``."""
    return values.dtype == np.int64 and values.ndim == 3 and values.flags.c_contiguous and values.flags.writeable
