"""Streams over sources that hand out one item at a time: what they share, and those with ``len`` and an index.

A list, a tuple or a map-style torch ``Dataset`` is read by index, so a position is an item's number and skipping to it
costs nothing. Sources without an index are in ``iterables``, which is the module to read next.
"""

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from slw_data.cached import cached
from slw_data.errors import DataError, StateError
from slw_data.sources.streams.blocks import Entry, marked, pack, sealed
from slw_data.sources.streams.documents import TokenDocuments
from slw_data.sources.streams.marks import code_mark, documents_mark, options_mark
from slw_data.sources.streams.protocol import Block

_OTHER_THREAD = re.compile(r"\b(same|another|different|other|wrong) thread\b")


@dataclass(eq=False)
class ItemStream(ABC):
    """A source, how its items are read, and the id that ends every document (or None)."""

    source: Any
    documents: TokenDocuments
    append_eos: int | None
    name: str
    sharded: tuple[int, int] | None = None
    opened_in: int = field(default_factory=threading.get_ident)

    passes: ClassVar[int | None] = None
    not_exact: ClassVar[str | None] = None
    shards: ClassVar[int | None] = 1
    block_items: ClassVar[int]
    block_tokens: ClassVar[int]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the per-token columns."""
        return self.documents.columns

    @cached
    def fingerprint(self) -> str:
        """What is read, and what is done with it. Where there is an index, this reads some documents."""
        return self._mark() + options_mark(self.documents, self.append_eos)

    def _mark(self) -> str:
        """What a fingerprint says of the source alone."""
        return code_mark(self.source)

    def blocks(self, epoch: int, position: Any = None) -> Iterator[Block]:
        """The blocks of pass ``epoch``. Raises StateError for a position that is not one of this kind of source."""
        first = 0 if position is None else self._first(position)
        drafts = pack(self._readable(epoch, position), self.columns, items=self.block_items, tokens=self.block_tokens)
        if self.block_items > 1:  # else the item is checked where it is read
            drafts = marked(drafts, None if position is None else position["block"], self.name)
        return sealed(drafts, name=self.name, append_eos=self.append_eos, first=first)

    def _readable(self, epoch: int, position: Any) -> Iterator[Entry]:
        """The documents; where the source is for the thread only in which it was opened, an error that says so."""
        try:
            yield from self._entries(epoch, position)
        except Exception as error:
            if threading.get_ident() == self.opened_in or not _OTHER_THREAD.search(str(error)):
                raise
            raise DataError(
                f"{self.name} cannot be read in another thread than it was opened in ({error}): write "
                "SLWLoader(..., prefetch=0), or open it where it is read, in a function that returns the iterator"
            ) from error

    def shard(self, index: int, num_shards: int) -> "ItemStream":
        """A part of the source. It has one only, unless a kind of source says otherwise."""
        raise DataError(f"{self.name} has one part, not {num_shards}")

    @abstractmethod
    def _first(self, position: Any) -> int:
        """The number of the item a position stands before, or StateError."""

    @abstractmethod
    def _entries(self, epoch: int, position: Any) -> Iterator[Entry]:
        """The documents of a pass from a position on."""


class SequenceStream(ItemStream):
    """Documents by index. A position is the number of the block's first item, and what the block holds."""

    shards = None
    block_items = 256
    block_tokens = 16 * 1024

    def shard(self, index: int, num_shards: int) -> "SequenceStream":
        """Items ``index``, ``index + num_shards``, ..."""
        name = f"shard {index} of {num_shards} of {self.name}"
        return replace(self, source=_EachOf(self.source, index, num_shards), name=name)

    def _mark(self) -> str:
        return documents_mark(self.source, self.documents, self.source.__getitem__)

    def _first(self, position: Any) -> int:
        number, block = saved_fields(position, ("items", "block"), self.name)
        number = item_number(number, self.name)
        check_block(block, self.name)
        if number > len(self.source):
            raise StateError(f"the saved position is item {number}, but {self.name} has {len(self.source)} items")
        return number

    def _entries(self, epoch: int, position: Any) -> Iterator[Entry]:
        set_epoch(self.source, epoch)
        for index in range(position["items"] if position else 0, len(self.source)):
            picked = self.documents.pick(self.source[index], index)
            yield Entry({"items": index}, index, self.documents.tokens(picked, index))


@dataclass(frozen=True)
class _EachOf:
    """Every ``step``-th item of a source, from ``first`` on."""

    source: Any
    first: int
    step: int

    def __len__(self) -> int:
        return len(range(self.first, len(self.source), self.step))

    def __getitem__(self, index: int) -> Any:
        return self.source[self.first + index * self.step]

    def set_epoch(self, epoch: int) -> None:
        set_epoch(self.source, epoch)


def set_epoch(source: Any, epoch: int) -> None:
    """Tell a source which pass begins, if it wants to know."""
    hook = getattr(source, "set_epoch", None)
    if callable(hook):
        hook(epoch)


def item_number(value: Any, name: str) -> int:
    """A saved item number, or StateError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise StateError(f"a saved position of {name} holds the number of an item, an int >= 0, but this is {value!r}")
    return value


def check_block(value: Any, name: str) -> None:
    """StateError for what :func:`~slw_data.sources.streams.blocks.marked` did not write."""
    if not isinstance(value, list) or len(value) != 2:
        raise StateError(f"a saved position of {name} holds the items of a block and their checksum, but this is {value!r}")
    for number in value:
        item_number(number, name)


def saved_fields(position: Any, fields: tuple[str, ...], name: str) -> list[Any]:
    """The fields of a saved position, in this order, or StateError."""
    if not isinstance(position, dict) or set(position) != set(fields):
        raise StateError(f"a saved position of {name} is a dict with the keys {sorted(fields)}, but this is {position!r}")
    return [position[field] for field in fields]
