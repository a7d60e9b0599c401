"""A shuffle buffer over a stream: ``size`` documents wait, and a random one of them is next, whose place the one that is read
then takes.

::

    read      0 1 2 | 3 4 5 ...          a buffer of 3
    waiting   0 1 2    0 3 2    4 3 2    the draws 1, 0, ...
    next          1        0

Draws are a function of seed, shard, pass and number, so the order is the same everywhere. A position has the numbers of the
documents that wait, and where the source is read again from the oldest of them; no token is kept. Each pass is shuffled by
itself, and empties the buffer. Read :mod:`slw_data.sources.streams.opening` next.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from slw_data.errors import DataError, StateError
from slw_data.sources.streams.blocks import joined, offsets_of
from slw_data.sources.streams.documents import Arrays
from slw_data.sources.streams.items import item_number, saved_fields
from slw_data.sources.streams.protocol import Block, Divisible, DocumentStream

_ITEMS = 256  # documents of a block at most
_TOKENS = 1 << 17  # with which a block is closed
_FIELDS = ("source", "first", "read", "dealt", "waiting")


@dataclass(frozen=True)
class ShuffledStream:
    """``stream`` behind a buffer of ``size`` documents. ``part`` is its number among others of the same seed."""

    stream: DocumentStream
    size: int
    seed: int
    part: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        return self.stream.columns

    @property
    def name(self) -> str:
        return self.stream.name

    @property
    def fingerprint(self) -> str:
        return f"{self.stream.fingerprint}, shuffle_buffer={self.size} with seed {self.seed}"

    @property
    def passes(self) -> int | None:
        return self.stream.passes

    @property
    def not_exact(self) -> str | None:
        return self.stream.not_exact

    @property
    def sharded(self) -> tuple[int, int] | None:
        return self.stream.sharded

    @property
    def shards(self) -> int | None:
        return self.stream.shards if isinstance(self.stream, Divisible) else 1

    def shard(self, index: int, num_shards: int) -> "ShuffledStream":
        """A part of the stream, with a buffer of its own."""
        if not isinstance(self.stream, Divisible):
            raise DataError(f"{self.name} has one part, not {num_shards}")
        return replace(self, stream=self.stream.shard(index, num_shards), part=index)

    def blocks(self, epoch: int, position: Any = None) -> Iterator[Block]:
        """The blocks of pass ``epoch``. StateError for a position that is not one of a buffer of this size."""
        if position is None:
            return self._blocks(epoch, None, 0, 0, 0, [])
        source, first, read, dealt, waiting = saved_fields(position, _FIELDS, self.name)
        for number in (first, read, dealt):
            item_number(number, self.name)
        if not isinstance(waiting, list) or len(waiting) > self.size or len(set(map(str, waiting))) < len(waiting):
            raise StateError(f"{self.size} documents wait at most, each once, and the saved position has {waiting!r:.200}")
        for number in waiting:
            if item_number(number, self.name) >= read or number < first:
                raise StateError(f"documents {first} to {read} are read again, and the saved position has {number} waiting")
        return self._blocks(epoch, source, first, read, dealt, waiting)

    def _blocks(
        self, epoch: int, source: Any, first: int, read: int, dealt: int, waiting: list[int]
    ) -> Iterator[Block]:
        documents = _Documents(self.stream, epoch, source, first)
        numbers, arrays = list(waiting), documents.again(waiting, read)
        draws = _Draws((self.seed, self.part, epoch))
        while True:
            position = documents.position(numbers)
            taken, size, failure = list[Arrays](), 0, None
            while len(taken) < _ITEMS and size < _TOKENS:
                try:
                    while len(arrays) < self.size and (document := documents.next()) is not None:
                        numbers.append(documents.read - 1)
                        arrays.append(document)
                except Exception as error:  # what was dealt before it is handed out first
                    failure = error
                    break
                if not arrays:
                    break
                slot = draws.below(len(arrays), dealt + len(taken))
                taken.append(arrays[slot])
                size += len(taken[-1][0])
                numbers[slot], arrays[slot] = numbers[-1], arrays[-1]
                del numbers[-1], arrays[-1]
            if taken:
                lengths, columns = joined(taken, self.columns)
                yield Block(position | {"dealt": dealt}, offsets_of(lengths), columns)
                dealt += len(taken)
            if failure is not None:
                raise failure
            if not taken:
                return


class _Documents:
    """The documents of a pass one by one, from number ``first`` on, and the positions that read them again."""

    def __init__(self, stream: DocumentStream, epoch: int, source: Any, first: int) -> None:
        self.columns, self.read = stream.columns, first
        self._blocks = stream.blocks(epoch, source)
        self._block: Block | None = None
        self._at = 0  # of the next one in it
        self._begins = [(first, source)]  # of blocks, with their positions

    def next(self) -> Arrays | None:
        """The next document, in memory of its own; None at the end of the pass."""
        if self._block is None or self._at == len(self._block):
            self._block = next(self._blocks, None)
            if self._block is None:
                return None
            self._at = 0
            if self.read != self._begins[-1][0] or len(self._begins) > 1:
                self._begins.append((self.read, self._block.position))
        start, stop = self._block.offsets[self._at : self._at + 2].tolist()
        self._at, self.read = self._at + 1, self.read + 1
        return tuple(np.array(self._block.read(column, start, stop)) for column in self.columns)

    def again(self, waiting: list[int], read: int) -> list[Arrays]:
        """The documents that waited when ``read`` were read, in the order of their places."""
        found, wanted = dict[int, Arrays](), set(waiting)
        while self.read < read:
            number, document = self.read, self.next()
            if document is None:
                raise StateError(f"the saved position is after {read} documents of the pass, and it ended after {number}")
            if number in wanted:
                found[number] = document
        return [found[number] for number in waiting]

    def position(self, waiting: list[int]) -> dict[str, Any]:
        """What reads on from here, with these documents waiting."""
        oldest = min([self.read, *waiting])
        while len(self._begins) > 1 and self._begins[1][0] <= oldest:
            del self._begins[0]
        first, source = self._begins[0]
        return {"source": source, "first": first, "read": self.read, "waiting": list(waiting)}


class _Draws:
    """Numbers that are the same for the same key and place, by SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""

    def __init__(self, key: tuple[int, ...]) -> None:
        self._key = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
        self._first, self._drawn = 0, np.empty(0, np.uint64)

    def below(self, count: int, at: int) -> int:
        """The draw at place ``at``, from 0 to ``count - 1``."""
        if not 0 <= at - self._first < len(self._drawn):
            self._first, self._drawn = at, _mixed(self._key, np.arange(at + 1, at + 1 + _ITEMS, dtype=np.uint64))
        return int(self._drawn[at - self._first]) * count >> 64


def _mixed(key: int, places: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = np.uint64(key) + places * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed
