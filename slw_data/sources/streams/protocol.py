"""What a stream is: documents that can only be read in order, handed out a block at a time.

A :class:`Block` is some consecutive documents, flattened, together with the position that reads it again. Everything
above sees only these two classes; ``documents`` says how one item of a source becomes arrays, ``blocks`` how arrays
become blocks, and the other modules of this package where the items come from. Read ``documents`` next.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

Integers: TypeAlias = npt.NDArray[np.integer[Any]]


class Flat(Protocol):
    """One column of a block: anything whose slices are 1-D integer arrays. It may read only when sliced."""

    def __getitem__(self, span: slice, /) -> Integers: ...


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive non-empty documents, flattened.

    ``position`` is plain JSON data, and ``stream.blocks(epoch, position)`` yields this block first. Document i is the
    flat tokens ``offsets[i]`` to ``offsets[i + 1]`` (int64, from 0) of every column.
    """

    position: Any
    offsets: npt.NDArray[np.int64]
    columns: Mapping[str, Flat]

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.offsets) - 1

    def read(self, column: str, start: int, stop: int) -> Integers:
        """Flat tokens ``start`` to ``stop`` of a column, 1-D; possibly a read-only view of the source's memory."""
        return self.columns[column][start:stop]


@runtime_checkable
class DocumentStream(Protocol):
    """Documents in an order that is the same in every process.

    ``blocks`` is the whole contract: it checks its arguments when called, reads lazily, and never reads more than one
    block ahead of what it has yielded. After an error of the source, the block before it may be shorter than usual;
    the same position then reads a block that begins with it.

    >>> class Countdown:
    ...     columns, name, fingerprint = ("input_ids",), "countdown", "countdown from 3"
    ...     passes = not_exact = sharded = None
    ...     def blocks(self, epoch, position=None):
    ...         for first in range(position or 0, 3):
    ...             ids = np.arange(3 - first, 0, -1)
    ...             yield Block(first, np.array([0, len(ids)]), {"input_ids": ids})
    >>> [block.read("input_ids", 0, 3).tolist() for block in Countdown().blocks(0, position=1)]
    [[2, 1], [1]]
    """

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the per-token columns, the token ids among them."""

    @property
    def name(self) -> str:
        """What error messages call the source."""

    @property
    def fingerprint(self) -> str:
        """What fixes the tokens, readable, the same on every host: kind and size, code, tokenizer, a sample of documents."""

    @property
    def passes(self) -> int | None:
        """1 for a one-shot iterator, None where the source can be read again."""

    @property
    def not_exact(self) -> str | None:
        """None, or why a position does not resume exactly and what to do about it."""

    @property
    def sharded(self) -> tuple[int, int] | None:
        """(rank, world) where the source is already one rank's part."""

    def blocks(self, epoch: int, position: Any = None) -> Iterator[Block]:
        """The blocks of pass ``epoch``, from its start or from a block's position on."""


@runtime_checkable
class Divisible(Protocol):
    """A stream that comes in parts."""

    @property
    def shards(self) -> int | None:
        """How many parts there are; None: as many as are asked for."""

    def shard(self, index: int, num_shards: int) -> DocumentStream:
        """Part ``index`` of ``num_shards``, a divisor of :attr:`shards`. Together they have each document once."""
