"""From one item of a source to arrays: every rule about what a document may be is here.

An item is a list, an array or a tensor of token ids, or a mapping that holds one such value per column, which may lie in
a mapping within it (``paths``). What comes out is one 1-D integer array per column, all of one length, in memory that
nobody else can change. Text goes one step further, in ``text``. Read ``blocks`` next.
"""

import operator
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from slw_data.cached import cached
from slw_data.errors import DataError
from slw_data.sources.paths import value_at
from slw_data.sources.streams.protocol import Integers

Arrays: TypeAlias = tuple[Integers, ...]

_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class TokenDocuments:
    """Reads items that hold token ids. ``ids`` is the column of them: it alone may not be negative. They are found at
    ``path`` in an item, and every other column under its own name."""

    columns: tuple[str, ...]
    ids: str
    path: str

    @cached
    def paths(self) -> tuple[str, ...]:
        """Where each column is found in an item."""
        return tuple(self.path if column == self.ids else column for column in self.columns)

    def rows(self, items: Iterable[Any], first: int) -> Iterator[Arrays]:
        """The arrays of consecutive items, the first of which has number ``first``."""
        return (self.tokens(self.pick(item, index), index) for index, item in enumerate(items, first))

    def pick(self, item: Any, index: int) -> Any:
        """What the item says, before any costly step: enough for a digest."""
        found, paths = self._values(item, index), self.paths
        if len(found) == 1:
            return (token_array(found[0], f"column {paths[0]!r} of item {index}", signed=self.columns[0] != self.ids),)
        values = [token_array(value, f"column {path!r} of item {index}", signed=column != self.ids)
                  for column, path, value in zip(self.columns, paths, found, strict=True)]  # fmt: skip
        for path, value in zip(paths, values, strict=True):
            if len(value) != len(values[0]):
                raise DataError(
                    f"all columns of a document have one length, but item {index} has {len(values[0])} tokens in "
                    f"{paths[0]!r} and {len(value)} in {path!r}"
                )
        return tuple(values)

    def tokens(self, picked: Any, index: int) -> Arrays:
        """One array per column, from what :meth:`pick` gave."""
        arrays: Arrays = picked
        return arrays

    def _values(self, item: Any, index: int) -> list[Any]:
        if len(self.columns) == 1 and isinstance(item, np.ndarray | list):
            return [item]
        if item is None:
            raise DataError(f"item {index} is None, not a document: drop it, or yield an empty list")
        if isinstance(item, Mapping):
            return [value_at(item, path, f"item {index}") for path in self.paths]
        if isinstance(item, str | bytes):
            raise TypeError(f"item {index} is {type(item).__name__}, not token ids: pass tokenizer= for text")
        if isinstance(item, int | np.integer):
            raise TypeError(
                f"item {index} is the single integer {item}, but an item is a whole document: "
                "for one long sequence of ids pass numpy.array(ids)"
            )
        if len(self.columns) > 1:
            raise TypeError(
                f"item {index} is a {type(item).__name__}, but columns={self.columns} need a mapping that holds each"
            )
        return [item]


def token_array(value: Any, where: str, *, signed: bool = False) -> Integers:
    """A 1-D integer array in memory of its own; ``signed`` allows negative values (labels, not ids).

    Raises TypeError for what is not a flat sequence of integers, DataError for None and for values out of range.
    """
    if value is None:
        raise DataError(f"{where} is None: drop the document, or give its tokens")
    if isinstance(value, list | tuple | range):
        tokens = _from_sequence(value, where)
    elif isinstance(value, torch.Tensor):
        tokens = _from_array(_from_tensor(value, where), where)
    elif hasattr(value, "__array__"):
        tokens = _from_array(np.asarray(value), where)
    else:
        raise TypeError(f"{where} is a {type(value).__name__}; token ids are a list, an array or a tensor of integers")
    if not signed and tokens.dtype.kind == "i":
        check_not_negative(tokens, lambda at: f"position {at} of {where}")
    return tokens


def check_not_negative(tokens: Integers, where: Any) -> None:
    """Refuse a negative token id; ``where(position)`` names the place."""
    if tokens.size and tokens.min() < 0:
        at = int(np.argmax(tokens < 0))
        raise DataError(
            f"token ids are at least 0, but {where(at)} is {tokens[at]}; values such as -100 belong in another column"
        )


def digest(picked: Any, seed: int) -> int:
    """A 32-bit checksum of an item, chained to that of the items before it."""
    parts = [picked.encode("utf-8", "surrogatepass")] if isinstance(picked, str) else picked
    for part in parts:
        seed = zlib.crc32(part, zlib.crc32(len(part).to_bytes(8, "little"), seed))
    return seed


def _from_tensor(tensor: torch.Tensor, where: str) -> np.ndarray[Any, Any]:
    if tensor.device.type != "cpu":
        raise TypeError(f"{where} is a tensor on {tensor.device}; documents are read on the CPU: pass tensor.cpu()")
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        if tensor.shape == (0,):
            return np.empty(0, np.int64)
        raise TypeError(f"{where} is a tensor of dtype {tensor.dtype}; token ids are integers")
    return tensor.numpy()


def _from_array(values: np.ndarray[Any, Any], where: str) -> Integers:
    if values.ndim != 1:
        raise TypeError(f"{where} has shape {values.shape}; a document has one dimension")
    if values.size == 0:  # an empty list is a float array to NumPy and to torch
        return np.empty(0, np.int64)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{where} is an array of dtype {values.dtype}; token ids are integers")
    if values.dtype == np.uint64:
        return signed_64(values, lambda at: f"position {at} of {where}")
    return values.copy() if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def signed_64(values: Integers, where: Any) -> Integers:
    """uint64 as int64: the two together would become floats."""
    if values.size and values.max() > _LARGEST:
        at = int(np.argmax(values > _LARGEST))
        raise DataError(f"token ids are below 2**63, but {where(at)} is {values[at]}")
    return values.astype(np.int64)


def _from_sequence(values: list[Any] | tuple[Any, ...] | range, where: str) -> Integers:
    if not len(values):
        return np.empty(0, np.int64)
    try:
        # NumPy would turn [1, 2.5] and [-1, 2**63] into floats; array refuses both, and is faster
        tokens = np.frombuffer(array("q", values), dtype=np.int64)
    except (TypeError, OverflowError):
        tokens = None
    # a bool is an int to Python, and only ever 0 or 1: other lists need no second look
    if tokens is None or (tokens.min() < 2 and set(map(type, values)) != {int}):
        for at, value in enumerate(values):
            _check_integer(value, f"position {at} of {where}")
    if tokens is None:
        raise TypeError(f"{where} is not a sequence of integers")
    return tokens


def _check_integer(value: Any, where: str) -> None:
    if value is None:
        raise DataError(f"{where} is None, not a token id: drop the document, or give the token")
    if isinstance(value, bool) or getattr(value, "dtype", None) in (np.bool_, torch.bool):
        raise TypeError(f"{where} is {value!r}: a bool is not a token id")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{where} is {value!r} of type {type(value).__name__}; token ids are integers") from None
    if not -_LARGEST - 1 <= number <= _LARGEST:
        raise DataError(f"token ids are from 0 to 2**63 - 1, but {where} is {number}")
