"""Flat rows: a batch as one row of a constant number of tokens, for variable-length attention and graphs of one shape.

::

    rows of a batch    [a a a a]  [b b b b]  [c c c c]          12 tokens, and a budget of 14
    flat               [a a a a b b b b c c c c . .]            labels: -100 where a row begins, and in the rest
    position_ids       [0 1 2 3 0 1 2 3 0 1 2 3 0 1]
    cu_seq_lens_q/k    [0 4 8 12 14],  max_length_q/k  4

The names are those of Hugging Face's flash attention. What the budget leaves over is filled with token 0 as a sequence of
its own, so every batch of a run has the same shape. Where documents are known, each is a sequence too, and so is the padding
of each row of mode "pack".

With ``most`` = 6 sequences the bounds are [0 4 8 12 14 14 14], as many in every batch. With ``multiple_of`` = 3 each sequence
is padded at its end to a multiple of 3 tokens, in a row that has room for it::

    flat               [a a a a . . b b b b . . c c c c . . ...]
    position_ids       [0 1 2 3 4 5 0 1 2 3 4 5 0 1 2 3 4 5 ...]

Read next: :mod:`slw_data.batch.building`, which makes the rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["IGNORE", "FlatRow"]

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]

IGNORE = -100  # the target that torch's and Hugging Face's cross entropy leave out


@dataclass(frozen=True)
class FlatRow:
    """What all flat rows of a run share.

    Args:
        tokens: of the row, a multiple of ``multiple_of``.
        most: sequences of a row at most, the rest among them; None: as many as there are.
        multiple_of: each sequence is padded to a multiple of so many tokens.
        pad_id: the token of padding, and of the rest.
        countable: whether ``max_documents="plan"`` could find ``most``.
    """

    tokens: int
    most: int | None = None
    multiple_of: int = 1
    pad_id: int = 0
    countable: bool = True

    def counts(self, begins: Marks) -> Ints:
        """Sequences of each batch, int64 (batches,). ``begins``, (batches, rows, length), is True where one begins."""
        rest = self._used(begins, self._sequences(begins)[2]) < self.tokens
        counts: Ints = np.count_nonzero(begins, axis=(1, 2)) + rest
        return counts

    def sound(self, begins: Marks) -> int:
        """How many batches, from the first on, have no more than ``most`` sequences."""
        if self.most is None:
            return len(begins)
        too_many = np.flatnonzero(self.counts(begins) > self.most)
        return int(too_many[0]) if too_many.size else len(begins)

    def join(self, parts: Mapping[str, Array], begins: Marks, *, shifted: bool) -> dict[str, Array]:
        """Arrays that hold (batches, rows, length) values as int64 (batches, 1, tokens), and ``position_ids`` of the sequences
        that ``begins`` is True at. No batch has more than ``most`` of them.

        Unless ``labels`` are ``shifted`` already, none is a target where a row begins, or behind padding: a model that shifts
        them would predict it from the row before, or from padding.
        """
        first, sizes, rooms = self._sequences(begins)
        places, flat = self._places(begins, first, sizes, rooms), dict[str, Array]()
        for name, part in parts.items():
            fill = IGNORE if name in ("labels", "shift_labels") else self.pad_id if name == "input_ids" else 0
            if name == "labels" and not shifted:
                part = part.reshape(begins.shape).astype(np.int64, order="C")
                part[:, :, 0] = IGNORE
                part.reshape(-1)[first[1:][rooms[:-1] > sizes[:-1]]] = IGNORE
            flat[name] = self._put(part, places, fill)
        marks = self._put(begins, places, 0)[:, 0]
        used = self._used(begins, rooms)
        some = np.flatnonzero(used < self.tokens)  # batches with a rest
        marks[some, used[some]] = 1
        column = np.arange(self.tokens)
        flat["position_ids"] = (column - np.maximum.accumulate(column * marks, axis=1))[:, None]
        return flat

    def bounds(self, position_ids: torch.Tensor, longest: int | None) -> dict[str, Any]:
        """Where the sequences of a flat row begin and end, int32 (sequences + 1,) or (most + 1,), and an int: ``longest``, or
        the tokens of the longest one."""
        starts = np.flatnonzero(position_ids[0].numpy() == 0)  # of NumPy: torch's default device may be another
        bounds = np.full(len(starts) + 1 if self.most is None else self.most + 1, self.tokens, np.int32)
        bounds[: len(starts)] = starts
        if longest is None:
            longest = int(np.diff(bounds).max())
        tensors = {name: torch.from_numpy(bounds.copy()) for name in ("cu_seq_lens_q", "cu_seq_lens_k")}
        return {**tensors, "max_length_q": longest, "max_length_k": longest}

    def longest(self, sequence: int, used: int) -> int | None:
        """The most tokens that any sequence of a shape may have, where those in rows have up to ``sequence`` without padding,
        and rows have ``used`` together; None: what the longest of a batch has.

        The rest has at most ``tokens - used``: without padding less than a row, with it more where little was padded.
        """
        return None if self.most is None else max(-(-sequence // self.multiple_of) * self.multiple_of, self.tokens - used)

    def _sequences(self, begins: Marks) -> tuple[Ints, Ints, Ints]:
        """``(first, size, room)`` of the sequences of all batches: the first token's place in all rows joined, tokens without
        and with padding. Each is int64 (sequences,)."""
        first = np.flatnonzero(begins)
        sizes = np.diff(first, append=begins.size)
        return first, sizes, -(-sizes // self.multiple_of) * self.multiple_of

    def _used(self, begins: Marks, rooms: Ints) -> Ints:
        """Tokens of each flat row before the rest, int64 (batches,)."""
        ends = np.cumsum(np.count_nonzero(begins, axis=(1, 2)))  # of each batch, counted in sequences
        used: Ints = np.diff(np.cumsum(rooms)[ends - 1], prepend=0)
        return used

    def _places(self, begins: Marks, first: Ints, sizes: Ints, rooms: Ints) -> Ints | None:
        """Where in all flat rows joined each token of all rows joined comes to; None where rows lie there as they are.

        A sequence has before it the room of those before it in its batch, and the flat rows of the batches before.
        """
        if self.multiple_of == 1:
            return None
        batch = first // math.prod(begins.shape[1:])
        before = np.cumsum(rooms) - rooms
        before -= before[np.searchsorted(batch, batch)]
        places: Ints = np.arange(begins.size) + np.repeat(batch * self.tokens + before - first, sizes)
        return places

    def _put(self, part: Array, places: Ints | None, fill: int) -> Array:
        """``part`` in flat rows, int64 (batches, 1, tokens), with ``fill`` beside it."""
        flat = np.full((len(part), 1, self.tokens), fill, np.int64)
        if places is None:
            used = math.prod(part.shape[1:])
            flat[:, 0, :used] = part.reshape(len(part), used)
        else:
            flat.reshape(-1)[places] = part.reshape(-1)
        return flat
