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

from slw_data.batch.chunk import CHUNK_TOKENS, NEXT, Array, Chunk, place
from slw_data.batch.flat import IGNORE, FlatRow, Ints, Marks
from slw_data.errors import DataError
from slw_data.plan.windows import Windows

__all__ = ["EXTRAS", "IGNORE", "LABELS", "Batch", "BatchBuilder"]

Batch = dict[str, Any]  # tensors; with "cu_seq_lens" two ints too

LABELS = ("unshifted", "shifted", "both", "none")
EXTRAS = ("position_ids", "document_ids", "step", "window_ids", "cu_seq_lens")


@dataclass(frozen=True)
class BatchBuilder:
    """Makes the batches of a chunk. ``masked``: rows may be padded, so an ``attention_mask`` goes with them. ``flat``: a
    batch is one row of this shape. ``windows``: what rows are cut into for masks. ``apart``: no document of a
    row is a context for the next."""

    labels: str
    columns: tuple[str, ...]
    extras: tuple[str, ...]
    masked: bool
    flat: FlatRow | None = None
    windows: Windows | None = None
    apart: bool = False

    def build(self, chunk: Chunk) -> Iterator[Batch]:
        """The chunk's batches: dicts of contiguous int64 tensors ``(rows, length)``. What has to be cast is cast some
        batches at a time, into memory that is allocated at once: malloc then keeps it, and no page is faulted in anew.

        DataError for a batch with too many sequences for its flat row, after those before it."""
        parts = self._values(chunk)
        steps = parts.pop("step") if "step" in self.extras else None  # else it is a column
        shape, sound = (chunk.rows, chunk.length), len(chunk.numbers)
        if self.flat is not None:
            begins = self._begins(chunk)
            sound = self.flat.sound(begins)
            parts = {name: part[:sound] for name, part in parts.items()}
            parts = self.flat.join(parts, begins[:sound], shifted=self.labels == "shifted")
        unfit = _unfit(list(parts.values()))
        some = max(1, CHUNK_TOKENS // (chunk.rows * chunk.length * len(parts)))
        for start in range(0, sound, some):
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
                    batch.update(self.flat.bounds(batch["position_ids"], self._longest(chunk, number)))
                yield batch
        if sound < len(chunk.numbers):
            raise self._too_many(chunk, sound, begins)

    def _values(self, chunk: Chunk) -> dict[str, Array]:
        """What each tensor is made of: arrays whose i-th item has the values of batch i."""
        values = {"input_ids": chunk.view(chunk.columns["input_ids"])}
        if self.labels in ("unshifted", "both"):
            values["labels"] = self._target(chunk, "labels", self._valid(chunk))
        if self.labels in ("shifted", "both"):
            values["labels" if self.labels == "shifted" else "shift_labels"] = self._target(chunk, NEXT, chunk.valid_next)
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
        column = np.arange(chunk.length, dtype=np.int64)
        for name in self.extras:
            if name == "position_ids" and self.flat is None:  # those of a flat row are its own
                extra[name] = column - np.maximum.accumulate(np.where(self._begins(chunk), column, 0), axis=2)
            elif name == "document_ids":
                extra[name] = np.cumsum(self._documents(chunk), axis=2, dtype=np.int64) - 1
            elif name == "window_ids":
                extra[name] = np.broadcast_to(column // self._windows(chunk), shape)
            elif name == "step":
                extra[name] = self._steps(chunk)
        return extra

    def _begins(self, chunk: Chunk) -> Marks:
        """Where a sequence begins, (batches, rows, length): a row, a window or a document; in a flat row padding too."""
        begins = self._documents(chunk)
        if self.windows is not None:
            begins |= np.arange(chunk.length) % self._windows(chunk) == 0
        if self.flat is not None and chunk.valid is not None:
            begins |= _padding_begins(chunk)
        return begins

    @staticmethod
    def _documents(chunk: Chunk) -> Marks:
        """Where a row or a document begins, (batches, rows, length)."""
        shape = (len(chunk.numbers), chunk.rows, chunk.length)
        starts: Marks = np.zeros(shape, np.bool_) if chunk.starts is None else chunk.final(chunk.starts).copy()
        starts[:, :, 0] = True
        return starts

    def _windows(self, chunk: Chunk) -> Ints:
        """The tokens of a window in each batch, int64 (batches, 1, 1)."""
        assert self.windows is not None  # the form has window_ids of windows alone
        return np.array([self.windows.at(step) for step in self._steps(chunk).tolist()])[:, None, None]

    @staticmethod
    def _steps(chunk: Chunk) -> Ints:
        """The step of each batch, int64 (batches,)."""
        return chunk.stage.start + np.array(chunk.numbers, dtype=np.int64) // chunk.stage.grad_accum_steps

    def _longest(self, chunk: Chunk, number: int) -> int | None:
        """Tokens of the longest sequence that a batch of this shape may have; None: it is counted in each batch."""
        assert self.flat is not None
        step, _ = place(chunk.stage, chunk.numbers[number])
        sequence = chunk.length if self.windows is None else self.windows.at(step)
        return self.flat.longest(sequence, chunk.rows * chunk.length)

    def _too_many(self, chunk: Chunk, number: int, begins: Marks) -> DataError:
        assert self.flat is not None
        step, batch = place(chunk.stage, chunk.numbers[number])
        count = int(self.flat.counts(begins[number : number + 1])[0])
        return DataError(
            f"a flat row has at most max_documents={self.flat.most} sequences, documents and the rest among them, and batch"
            f" {batch} of step {step} has {count}: write max_documents={count} or more"
            + (", or max_documents='plan', which counts those of the whole run" if self.flat.countable else "")
        )


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
