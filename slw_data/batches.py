"""Batches: from tokens as they were read to the tensors that a training loop gets.

A :class:`Chunk` is some consecutive batches of one rank in one shape, still in the source's own dtype: what a worker
sends to the main process in one message. :class:`BatchBuilder` casts it, and adds labels and extras.
Every tensor is fresh memory of exactly its own size, so it may be changed, saved or sent on its own.

Read next: :mod:`slw_data.dataset`, which decides who makes which chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slw_data.errors import DataError
from slw_data.flat import IGNORE, flatten, sequences
from slw_data.plan import SequenceLengthPlan, Stage

__all__ = ["EXTRAS", "IGNORE", "LABELS", "Batch", "BatchBuilder", "Chunk", "bad_id", "check_ids", "chunks_from"]

Batch = dict[str, Any]  # tensors; with "cu_seq_lens" two ints too
Array = npt.NDArray[Any]

LABELS = ("unshifted", "shifted", "both", "none")
EXTRAS = ("position_ids", "document_ids", "step", "cu_seq_lens")

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


@dataclass(frozen=True)
class BatchBuilder:
    """Makes the batches of a chunk. ``masked``: rows may be padded, so an ``attention_mask`` goes with them. ``flat``:
    tokens of a batch that is one row."""

    labels: str
    columns: tuple[str, ...]
    extras: tuple[str, ...]
    grad_accum_steps: int
    masked: bool
    flat: int | None

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
        some = max(1, CHUNK_TOKENS // (chunk.rows * chunk.length * len(parts)))
        for start in range(0, len(chunk.numbers), some):
            block = [part[start : start + some] for part in parts.values()]
            unfit = [i for i, part in enumerate(block) if not _fit(part)]
            for i, cast in zip(unfit, np.empty((len(unfit), len(block[0]), *shape), np.int64), strict=True):
                np.copyto(cast.reshape(block[i].shape), block[i])
                block[i] = cast
            tensors = zip(*(map(torch.from_numpy, part) for part in block), strict=True)
            for number, values in enumerate(tensors, start):  # one by one: a thousand at once would call the garbage collector
                batch: Batch = dict(zip(parts, values, strict=True))
                if steps is not None:
                    batch["step"] = torch.full(batch["input_ids"].shape[:1], int(steps[number]))
                if self.flat is not None:
                    batch.update(sequences(batch["position_ids"]))
                yield batch

    def _values(self, chunk: Chunk) -> dict[str, Array]:
        """What each tensor is made of: arrays whose i-th item has the values of batch i."""
        values = {"input_ids": chunk.view(chunk.columns["input_ids"])}
        if self.labels in ("unshifted", "both"):
            values["labels"] = self._target(chunk, "labels", chunk.valid)
        if self.labels in ("shifted", "both"):
            values["labels" if self.labels == "shifted" else "shift_labels"] = self._target(chunk, "next", chunk.valid_next)
        if self.masked and chunk.valid is not None:
            values["attention_mask"] = chunk.view(chunk.valid)
        for name in self.columns:
            if name not in ("input_ids", "labels"):
                values[name] = chunk.view(chunk.columns[name])
        values.update(self._extra(chunk))
        return values

    @staticmethod
    def _target(chunk: Chunk, part: str, valid: npt.NDArray[np.bool_] | None) -> Array:
        target = chunk.view(chunk.columns[part])
        if valid is not None:
            return np.where(chunk.view(valid), target.astype(np.int64), IGNORE)
        shared = target.dtype == np.int64 and np.may_share_memory(target, chunk.columns["input_ids"])
        return target.copy() if shared else target  # what is not int64 is cast to a copy

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
                extra["position_ids"] = column - np.maximum.accumulate(np.where(starts, column, 0), axis=2)
            if "document_ids" in wanted:
                extra["document_ids"] = np.cumsum(starts, axis=2, dtype=np.int64) - 1
        if "step" in wanted:
            extra["step"] = np.array(chunk.numbers, dtype=np.int64) // self.grad_accum_steps
        return {name: extra[name] for name in wanted}


def _fit(values: Array) -> bool:
    """Whether tensors may share the memory of ``values``."""
    return values.dtype == np.int64 and values.ndim == 3 and values.flags.c_contiguous and values.flags.writeable


def check_ids(ids: Array, vocab_size: int | None) -> tuple[int, ...] | None:
    """The index of the first token id that is negative or not below ``vocab_size``; None if there is none.

    One pass: read as unsigned, a negative id is larger than any limit.
    """
    signed = ids.dtype.kind == "i"
    if ids.size == 0 or (vocab_size is None and not signed and ids.dtype.itemsize < 8):
        return None
    limit = min(vocab_size or 1 << 63, 1 << (8 * ids.dtype.itemsize - signed))
    unsigned = ids.view(ids.dtype.str.replace("i", "u")) if signed else ids
    if int(unsigned.max()) < limit:
        return None
    return tuple(int(i) for i in np.argwhere(unsigned >= limit)[0])


def bad_id(token: int, vocab_size: int | None, where: str) -> DataError:
    """The error for a token id that :func:`check_ids` found."""
    bound = f"below vocab_size={vocab_size}" if vocab_size is not None else "below 2^63"
    return DataError(
        f"token ids must be at least 0 and {bound}, found {token} at {where}: check the dtype, the byte order and the"
        " tokenizer of the source (targets to be ignored, such as -100, belong in a labels column)"
    )
