"""Documents of a store as a stream: the random access is kept, and a block reads only what it is asked for.

Where the store knows its documents, a position is a document's number, and everything but reading is arithmetic. Else
the tokens are searched for ``eos_id``, and a position is the token a block begins with. Read ``opening`` next.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from slw_data.errors import DataError, StateError
from slw_data.sources.streams.blocks import Draft, sealed
from slw_data.sources.streams.items import item_number
from slw_data.sources.streams.protocol import Block, Flat, Integers

BLOCK_DOCUMENTS = 1024
WINDOW = 2**20


class Store(Protocol):
    """What is needed of a token store."""

    name: str

    def __len__(self) -> int: ...

    @property
    def documents(self) -> npt.NDArray[np.int64] | None: ...

    @property
    def fingerprint(self) -> str: ...

    def read(self, start: int, stop: int, /) -> Any: ...


@dataclass(frozen=True)
class _Tokens:
    """A store's tokens from ``start`` on, read when sliced."""

    store: Store
    start: int

    def __getitem__(self, span: slice) -> Integers:
        tokens: Integers = self.store.read(self.start + span.start, self.start + span.stop)
        return tokens


@dataclass(eq=False)
class StoreDocuments:
    """The documents of parallel stores, one per column. The token ids are in "input_ids", else in the first.

    Documents come from ``documents`` of the token ids; where that is None, each ends with ``eos_id``, and the last one
    with the store. Raises DataError when neither is known, and for stores of different lengths.
    """

    stores: Mapping[str, Any]
    eos_id: int | None = None

    passes: ClassVar[int | None] = None
    not_exact: ClassVar[str | None] = None
    sharded: ClassVar[tuple[int, int] | None] = None

    def __post_init__(self) -> None:
        size = len(self._ids)
        for column in self.columns:
            if len(self.stores[column]) != size:
                raise DataError(
                    f"parallel columns have one length, but {self._ids_column!r} has {size} tokens and {column!r} has "
                    f"{len(self.stores[column])}"
                )
        ends = self._ids.documents
        if ends is None and self.eos_id is None:
            raise DataError(f"{self.name} does not say where its documents end: pass eos_id, or use mode='stream'")
        if ends is not None and (len(ends) == 0 or ends[0] != 0 or ends[-1] != size):
            raise DataError(
                f"the documents of {self.name} go from 0 to its {size} tokens, but their offsets are {ends}"
            )

    @property
    def _ids_column(self) -> str:
        return "input_ids" if "input_ids" in self.stores else next(iter(self.stores))

    @property
    def _ids(self) -> Any:
        return self.stores[self._ids_column]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the per-token columns."""
        return tuple(self.stores)

    @property
    def name(self) -> str:
        """The name of the store of token ids."""
        return str(self._ids.name)

    @property
    def fingerprint(self) -> str:
        """The stores' own fingerprints, those of the ids first, and how documents are found."""
        how = f"cut after id {self.eos_id}" if self._ids.documents is None else "its own"
        columns = sorted(self.stores, key=lambda column: (column != self._ids_column, column))
        return f"documents ({how}) of " + ", ".join(f"{column}: {self.stores[column].fingerprint}" for column in columns)

    def blocks(self, epoch: int, position: Any = None) -> Iterator[Block]:
        """The blocks of a pass; every pass is the same. Raises StateError for a position beyond the end."""
        first = 0 if position is None else item_number(position, self.name)
        ends = self._ids.documents
        size = len(self._ids) if ends is None else len(ends) - 1
        if first > size:
            raise StateError(f"the saved position is {first}, but {self.name} ends at {size}")
        drafts = self._search(first) if ends is None else self._known(ends, first)
        return sealed(drafts, name=self.name)

    def _known(self, offsets: npt.NDArray[np.int64], first: int) -> Iterator[Draft]:
        for start in range(first, len(offsets) - 1, BLOCK_DOCUMENTS):
            bounds = np.asarray(offsets[start : start + BLOCK_DOCUMENTS + 1], dtype=np.int64)
            yield self._draft(start, int(bounds[0]), np.diff(bounds))

    def _search(self, start: int) -> Iterator[Draft]:
        """Where a block ends depends only on where it begins, so the ends found ahead are kept, not used."""
        size, scanned, ends = len(self._ids), start, np.empty(0, np.int64)
        while start < size:
            window = WINDOW
            while True:
                stop = min(start + window, size)
                if len(ends) < BLOCK_DOCUMENTS and scanned < stop:
                    ends = np.concatenate([ends, self._ends(scanned, stop)])
                    scanned = stop
                within = ends[: min(BLOCK_DOCUMENTS, int(np.searchsorted(ends, stop, side="right")))]
                if within.size:
                    break
                window *= 2
            yield self._draft(start, start, np.diff(within, prepend=start))
            start, ends = int(within[-1]), ends[len(within) :]

    def _ends(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The document ends in (start, stop]; the end of the store is always one."""
        found = np.flatnonzero(np.asarray(self._ids.read(start, stop)) == self.eos_id) + start + 1
        if stop == len(self._ids) and (not found.size or found[-1] != stop):
            found = np.append(found, stop)
        return found.astype(np.int64)

    def _draft(self, position: int, start: int, lengths: npt.NDArray[np.int64]) -> Draft:
        columns: dict[str, Flat] = {column: _Tokens(store, start) for column, store in self.stores.items()}
        return Draft(position, position, lengths, columns)
