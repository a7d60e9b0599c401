"""Streams over any iterable: re-iterables, callables, one-shot iterators, torch ``DataLoader``s.

These have no index, so a position counts the items read and carries a checksum of them: resuming reads them again, and
refuses where they differ. A source with ``state_dict`` and ``load_state_dict`` is asked instead, and checked by its
next item. Every reader sees the whole source: the torch worker is hidden from it. Read ``huggingface`` next.
"""

import copy
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils import worker as torch_worker

from slw_data.errors import DataError, StateError, warn
from slw_data.sources.streams.blocks import Entry
from slw_data.sources.streams.documents import digest
from slw_data.sources.streams.items import ItemStream, check_block, item_number, saved_fields, set_epoch
from slw_data.sources.streams.marks import code_mark, documents_mark
from slw_data.sources.streams.protocol import Block
from slw_data.sources.streams.turns import turns_of


def undivided(start: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """All items of a source, also inside a worker process.

    Many datasets look at ``get_worker_info()`` and keep only their worker's part. Here every worker reads everything
    and builds only its own rows, so such a dataset must not know that it is in a worker.
    """
    items = _hidden(start)
    while True:
        try:
            item = _hidden(items.__next__)
        except StopIteration:
            return
        yield item


def _hidden(call: Callable[[], Any]) -> Any:
    info, torch_worker._worker_info = torch_worker._worker_info, None
    try:
        return call()
    finally:
        torch_worker._worker_info = info


@dataclass(eq=False)
class IterableStream(ItemStream):
    """Items in the order the source gives them. A position is how many were read, and checksums of them and of the block."""

    block_items: ClassVar[int] = 64
    block_tokens: ClassVar[int] = 4 * 1024

    @property
    def shards(self) -> int | None:  # type: ignore[override]
        """Any number, of a function that takes the number of a part and how many there are."""
        return None if takes_parts(self.source) else 1

    def shard(self, index: int, num_shards: int) -> "IterableStream":
        """What the function returns for part ``index`` of ``num_shards``."""
        name = f"shard {index} of {num_shards} of {self.name}"
        return replace(self, source=partial(self.source, index, num_shards), name=name)

    def _first(self, position: Any) -> int:
        items, _, block = saved_fields(position, ("items", "digest", "block"), self.name)
        check_block(block, self.name)
        return item_number(items, self.name)

    def _start(self, epoch: int) -> Iterator[Any]:
        """An iterator over all items of a pass."""
        items = self.source if isinstance(self.source, Iterable) else self.source(*self._whole)
        if not isinstance(items, Iterable):
            raise TypeError(f"{self.name} must return an iterator over documents, it returned {items!r:.200}")
        return iter(items)

    def _entries(self, epoch: int, position: Any) -> Iterator[Entry]:
        skip, expected = (0, 0) if position is None else (position["items"], position["digest"])
        set_epoch(self.source, epoch)
        count, checksum = 0, 0
        for index, item in enumerate(undivided(partial(self._start, epoch))):
            if index == skip:
                self._check_skipped(skip, checksum, expected)
            picked = self.documents.pick(item, index)
            if index >= skip:
                here = {"items": index, "digest": checksum}
                yield Entry(here, index, self.documents.tokens(picked, index))
            count, checksum = index + 1, digest(picked, checksum)
        if count < skip:
            raise StateError(f"the saved position is after {skip} items, but {self.name} ended after {count}")
        if count == skip:
            self._check_skipped(skip, checksum, expected)
        self._check_not_used_up(epoch, count)

    def _check_skipped(self, skip: int, checksum: int, expected: int) -> None:
        if checksum != expected:
            raise StateError(
                f"{self.name} does not repeat: the checksum of its first {skip} items was {expected!r} when saved and "
                f"is {checksum!r} now; resuming needs the same items in the same order"
            )

    def _check_not_used_up(self, epoch: int, count: int) -> None:
        if epoch > 0 and count == 0:
            raise DataError(
                f"pass {epoch} of {self.name} has no items: it is one-shot, used up by an earlier pass; "
                "pass a callable that returns a fresh iterator each time, or a list"
            )


    @property
    def _whole(self) -> tuple[int, ...]:
        """The arguments of a function that returns all documents."""
        return () if not takes_parts(self.source) or _binds(self.source) else (0, 1)


def takes_parts(source: Any) -> bool:
    """Whether ``source`` is a function of two arguments, the number of a part and how many there are."""
    return callable(source) and not isinstance(source, Iterable) and _binds(source, 0, 1)


def _binds(function: Any, *arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):  # it takes others, or it is not written in Python
        return False
    return True


@dataclass(eq=False)
class OneShotStream(IterableStream):
    """An iterator: it can be read once, in this process."""

    passes: ClassVar[int | None] = 1
    _started: bool = False

    def _mark(self) -> str:
        return f"one-shot {self.name}"

    def blocks(self, epoch: int, position: Any = None) -> Iterator[Any]:
        """The blocks of the only pass. Raises DataError when it is asked for a second time."""
        if epoch > 0 or self._started:
            raise DataError(
                f"{self.name} is a one-shot iterator and cannot be read again (pass {epoch}): "
                "pass a callable that returns a fresh iterator each time, or a list"
            )
        blocks = super().blocks(epoch, position)
        self._started = True
        return blocks


@dataclass(eq=False)
class StatefulStream(IterableStream):
    """A source that saves its own position. Its ``state_dict`` must describe the last item handed out.

    It is asked for nothing before it is read, since some sources begin to read then, and load no state any more. A
    position has the state before the source's first item too, from which the next pass begins. Where a state is not plain
    data, items are counted instead.
    """

    block_items: ClassVar[int] = 1
    _initial: tuple[Any] | None = None  # in a tuple because it may be None
    _counts: bool = False

    def __post_init__(self) -> None:
        self._turns = turns_of(self.source)

    def blocks(self, epoch: int, position: Any = None) -> Iterator[Block]:
        """The blocks of pass ``epoch``. Raises StateError for a position that is not one of this kind of source."""
        if isinstance(position, dict) and "digest" in position:
            return self._turns.take(self._counted().blocks(epoch, position), self.name)
        if position is not None:
            self._first(position)
        return self._turns.take(self._blocks(epoch, position), self.name)

    def _blocks(self, epoch: int, position: Any) -> Iterator[Block]:
        """In a generator: between the question for a state and the first item nothing else happens."""
        fresh = position is None and self._initial is None and not self._counts
        if fresh:
            self._initial = self._state_at_the_beginning()
            self._counts = self._initial is None
        if self._counts and position is None:
            yield from self._counted().blocks(epoch)
            return
        if position is not None:
            self._initial = (position["initial"],)
            self.source.load_state_dict(plain(position["state"], self.name))
        elif not fresh and self._initial is not None:
            self.source.load_state_dict(plain(self._initial[0], self.name))
        yield from super().blocks(epoch, position)

    def _counted(self) -> IterableStream:
        return IterableStream(self.source, self.documents, self.append_eos, self.name)

    def _state_at_the_beginning(self) -> tuple[Any] | None:
        try:
            return (plain(self.source.state_dict(), self.name),)
        except StateError as error:
            warn(f"{error}. Items are counted and skipped on resuming instead, which is slow")
            return None

    def _first(self, position: Any) -> int:
        return item_number(saved_fields(position, ("items", "state", "check", "initial"), self.name)[0], self.name)

    def _entries(self, epoch: int, position: Any) -> Iterator[Entry]:
        assert self._initial is not None
        (initial,) = self._initial
        first, state, check = (0, initial, None) if position is None else (
            position["items"], position["state"], position["check"])  # fmt: skip
        set_epoch(self.source, epoch)
        index, expected = first - 1, check
        for index, item in enumerate(undivided(partial(self._start, epoch)), start=first):
            picked = self.documents.pick(item, index)
            here = {"items": index, "state": state, "check": digest(picked, 0), "initial": initial}
            if expected is not None and here["check"] != expected:
                break
            expected = None
            yield Entry(here, index, self.documents.tokens(picked, index))
            state = plain(self.source.state_dict(), self.name)
        if expected is not None:
            raise StateError(
                f"{self.name} did not resume at item {first}: after load_state_dict its next item is not the one that "
                "followed state_dict; a state must describe the last item handed out"
            )
        self._check_not_used_up(epoch, index + 1)


@dataclass(eq=False)
class LoaderStream(IterableStream):
    """A torch ``DataLoader`` with ``batch_size=None``, whose workers prepare documents below this library.

    A pass iterates a copy of it with a generator of its own: torch draws the seed of the workers from the loader's
    generator, by default the global one, which other threads use meanwhile. The seed follows from the pass and from the
    seed of the loader's own generator, if it has one: what workers draw is the same in every process, and on resuming.
    """

    def _start(self, epoch: int) -> Iterator[Any]:
        loader, given = copy.copy(self.source), self.source.generator
        seed = 0 if given is None or given is torch.default_generator else given.initial_seed()
        loader.generator = torch.Generator().manual_seed((seed + epoch) % 2**63)
        loader._iterator = None  # that of persistent workers
        with torch.device("cpu"):  # where that generator is, whatever the default device
            return iter(loader)

    def _mark(self) -> str:
        rows = self.source.dataset
        if isinstance(rows, IterableDataset) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            return f"{code_mark(self.source)} over {code_mark(rows)}"
        return f"{code_mark(self.source)} over {documents_mark(rows, self.documents, self._collated)}"

    def _collated(self, index: int) -> Any:
        return self.source.collate_fn(self.source.dataset[index])

    def blocks(self, epoch: int, position: Any = None) -> Iterator[Any]:
        """The blocks of a pass. Raises TypeError inside a worker process."""
        if get_worker_info() is not None:
            raise TypeError(
                f"{self.name} is a DataLoader and cannot be read inside another one's worker: use num_workers=0 above"
            )
        for part in (self.source.dataset, self.source.sampler):
            set_epoch(part, epoch)
        return super().blocks(epoch, position)


def plain(state: Any, name: str) -> Any:
    """A deep copy of a state as plain JSON data, or StateError."""
    try:
        copied = json.loads(json.dumps(state))
    except (TypeError, ValueError) as error:
        raise StateError(f"the state_dict of {name} is not plain JSON data ({error}): give ints, str, lists") from error
    if copied != state:
        raise StateError(f"the state_dict of {name} changes on its way through JSON: use str keys, and lists for tuples")
    return copied
