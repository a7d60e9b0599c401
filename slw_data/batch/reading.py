"""Reading: from spans to a chunk of tokens. The one place where tokens are read, whatever they come from.

    spans (where)  ->  columns in the source's own dtype, checked ids, where documents begin, the tokens for labels

Read next: :mod:`slw_data.batch.building`, which makes tensors of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slw_data.batch.chunk import Array, Chunk
from slw_data.batch.flat import IGNORE
from slw_data.order.permutation import Ints
from slw_data.order.position import Position
from slw_data.order.spans import Spans
from slw_data.plan import Stage
from slw_data.sources.ids import bad_id, check_ids
from slw_data.sources.stores import TokenStore

__all__ = ["Reading", "StoreTokens", "Tokens", "WindowTokens", "begins_in"]

Marks = npt.NDArray[np.bool_]

_SHORT = 256  # tokens of a span below which reading it costs more than looking each of them up
_APART = 32  # tokens between runs in memory: a distance that is a power of two would put all of them in the same cache sets


class Tokens(Protocol):
    """What spans are read from."""

    def dtype(self, column: str) -> np.dtype[Any]: ...

    def fill(self, column: str, spans: Spans, out: Array) -> None:
        """Put the tokens of each run into its row of ``out``, as far as its spans go."""

    def mark(self, spans: Spans, ids: Array, starts: Marks) -> None:
        """Set ``starts`` where a document begins within a run. ``ids`` are the runs' token ids."""

    def where(self, spans: Spans, run: int, at: int) -> str:
        """The name of a token's place, for messages."""


@dataclass(frozen=True)
class Reading:
    """How spans become chunks.

    Args:
        tokens: what to read from.
        parts: what to read: for each name a column, and how many tokens further on (1 for labels).
        documents: whether to find where documents begin.
        vocab_size: token ids must be below it.
        padded: rows may be padded, so the chunk says which tokens there are; ``pad_id`` fills them up.
        bos_id: the token that each row begins with, and that no span has; None: spans begin where rows do.
    """

    tokens: Tokens
    parts: Mapping[str, tuple[str, int]]
    documents: bool
    vocab_size: int | None
    padded: bool = False
    pad_id: int = 0
    bos_id: int | None = None
    checked: bool = field(init=False)

    def __post_init__(self) -> None:
        dtype = self.tokens.dtype("input_ids")  # of a narrow unsigned dtype no id is too large for int64
        object.__setattr__(self, "checked", self.vocab_size is not None or dtype.kind == "i" or dtype.itemsize == 8)

    @property
    def look(self) -> int:
        """Tokens to read after each run."""
        return max(shift for _, shift in self.parts.values())

    def reserve(self, stage: Stage, numbers: range) -> None:
        """MemoryError at once for batches that no memory holds, before they are looked for piece by piece."""
        np.empty(len(numbers) * stage.rows * stage.length, self.tokens.dtype("input_ids"))

    def read(self, stage: Stage, numbers: range, spans: Spans, after: Sequence[Position] | None = None) -> Chunk:
        """The chunk of ``spans``. DataError naming the first bad token id and its place."""
        chunk = Chunk(stage, numbers, {}, spans.by_lane, after=after)
        width, blocks = spans.width - spans.look, dict[str, Array]()
        for part, (column, shift) in self.parts.items():
            if column not in blocks:  # each column is read once
                blocks[column] = self._column(column, spans)
            if shift and spans.after is not None:
                chunk.columns[part], chunk.valid_next = self._column(column, spans.after), spans.after.covered
            else:
                chunk.columns[part] = blocks[column][:, shift : shift + width]
        if self.bos_id is not None:
            blocks["input_ids"][:, 0] = self.bos_id
        if spans.at is not None:
            assert spans.run is not None
            chunk.starts = np.zeros((spans.runs, width), np.bool_)
            behind = np.flatnonzero(spans.run[1:] == spans.run[:-1]) + 1
            chunk.starts[spans.run[behind], spans.at[behind]] = True
        elif self.documents:
            chunk.starts = np.zeros((spans.runs, width), np.bool_)
            self.tokens.mark(spans, blocks["input_ids"], chunk.starts)
        if spans.filled is not None or self.padded:
            filled = np.full(spans.runs, spans.width) if spans.filled is None else spans.filled
            valid = np.arange(spans.width) < filled[:, None]
            chunk.valid = valid[:, :width] if self.padded else None
            if spans.look:
                chunk.valid_next = valid[:, 1:]
        return chunk

    def _column(self, column: str, spans: Spans) -> Array:
        dtype, nothing = self.tokens.dtype(column), 0
        if spans.filled is not None:
            nothing = self.pad_id if column == "input_ids" else IGNORE if column == "labels" and self.padded else 0
            alone = max(nothing, self.bos_id or 0) if column == "input_ids" else nothing
            if not np.can_cast(np.min_scalar_type(alone), dtype):
                dtype = np.dtype(np.int64)
        out = np.empty((spans.runs, spans.width + _APART), dtype)[:, : spans.width]
        if spans.filled is not None:
            out[:] = nothing
        self.tokens.fill(column, spans, out)
        if self.checked and column == "input_ids":
            found = check_ids(out, self.vocab_size)
            if found is not None:
                run, at = found
                raise bad_id(int(out[found]), self.vocab_size, self.tokens.where(spans, run, at))
        return out


@dataclass(frozen=True)
class StoreTokens:
    """The tokens of parallel stores. Documents begin where the store of ids says, else after each ``eos_id``, and where a
    lane has jumped."""

    stores: Mapping[str, TokenStore]
    eos_id: int | None = None

    def dtype(self, column: str) -> np.dtype[Any]:
        return self.stores[column].dtype

    def fill(self, column: str, spans: Spans, out: Array) -> None:
        _fill(self.stores[column], spans, out)

    def mark(self, spans: Spans, ids: Array, starts: Marks) -> None:
        documents = self.stores["input_ids"].documents
        _set(starts, *begins_in(spans, documents))
        if documents is None and self.eos_id is not None:
            starts[:, 1:] |= ids[:, : starts.shape[1] - 1] == self.eos_id

    def where(self, spans: Spans, run: int, at: int) -> str:
        return f"token {spans.position(run, at)[1]} of {self.stores['input_ids'].name}"


@dataclass(frozen=True)
class WindowTokens:
    """The tokens of a stream, of which each iteration has a window that spans name. They come as int64."""

    def dtype(self, column: str) -> np.dtype[Any]:
        return np.dtype(np.int64)

    def fill(self, column: str, spans: Spans, out: Array) -> None:
        store, begin = spans.window.store(column)
        _fill(store, replace(spans, starts=spans.starts - begin), out)

    def mark(self, spans: Spans, ids: Array, starts: Marks) -> None:
        _set(starts, *begins_in(spans, spans.window.known.bounds))

    def where(self, spans: Spans, run: int, at: int) -> str:
        where: str = spans.window.describe(spans.position(run, at)[1])
        return where


def _fill(store: TokenStore, spans: Spans, out: Array) -> None:
    """Put the tokens of each run into its row of ``out``."""
    if spans.sizes is None or spans.run is None:
        store.gather(spans.starts, spans.width, out)
        return
    whole = spans.sizes == spans.width
    if spans.filled is not None and whole.any():  # what is padded stays so
        some = np.flatnonzero(whole)
        block = np.empty((len(some), spans.width), out.dtype)
        store.gather(spans.starts[some], spans.width, block)
        out[spans.run[some]] = block
    elif 2 * whole.sum() > spans.runs:  # all at once, what is cut after it
        some = np.flatnonzero(whole)
        starts = np.full(spans.runs, spans.starts[some[0]])
        starts[spans.run[some]] = spans.starts[some]
        store.gather(starts, spans.width, out)
    else:
        whole[:] = False
    cut = np.flatnonzero(~whole)
    ranges = (spans.run, spans.within, spans.starts, spans.sizes)
    if spans.sizes[cut].sum() < _SHORT * len(cut):
        _fill_by_tokens(store, out, *(values[cut] for values in ranges))
        return
    for run, at, start, size in zip(*(values[cut].tolist() for values in ranges), strict=True):
        out[run, at : at + size] = store.read(start, start + size)


def _fill_by_tokens(store: TokenStore, out: Array, run: Ints, within: Ints, starts: Ints, sizes: Ints) -> None:
    """Fill in many short spans at once: token k of all of them lies ``k - first`` behind the start of its own span."""
    first = np.cumsum(sizes) - sizes
    offsets = np.arange(int(sizes.sum())) - np.repeat(first, sizes)
    tokens = np.empty((len(offsets), 1), out.dtype)
    store.gather(np.repeat(starts, sizes) + offsets, 1, tokens)
    out[np.repeat(run, sizes), np.repeat(within, sizes) + offsets] = tokens[:, 0]


def begins_in(spans: Spans, documents: Ints | None) -> tuple[Ints, Ints]:
    """``(run, at)``: where in runs a document of a store begins, or a lane has jumped; a place may come twice. ``documents``:
    where they begin in the store, ascending, and its end."""
    run = np.arange(spans.runs) if spans.run is None else spans.run
    jumps = np.flatnonzero(spans.within)
    if spans.sizes is not None:  # a lane may come to the place that follows anyway
        jumps = jumps[spans.starts[jumps] != spans.starts[jumps - 1] + spans.sizes[jumps - 1]]
    if documents is None:
        return run[jumps], spans.within[jumps]
    sizes = np.full(spans.runs, spans.width) if spans.sizes is None else spans.sizes
    low, high = _number(documents, spans.starts), _number(documents, spans.starts + sizes)
    count = high - low
    span = np.repeat(np.arange(len(count)), count)  # of each document that begins within a span
    number = low[span] + np.arange(len(span)) - (np.cumsum(count) - count)[span]
    at = spans.within[span] + documents[number] - spans.starts[span]
    return np.concatenate([run[jumps], run[span]]), np.concatenate([spans.within[jumps], at])


def _number(documents: Ints, places: Ints) -> Ints:
    """The first document that begins at or after each place. In ascending order what is looked up next is in the cache."""
    ascending = np.argsort(places)
    found = np.empty(len(places), np.int64)
    found[ascending] = np.searchsorted(documents, places[ascending])
    return found


def _set(starts: Marks, runs: Ints, at: Ints) -> None:
    """Mark the places ``at`` of ``runs``, but for those that are only looked at."""
    inside = at < starts.shape[1]
    starts[runs[inside], at[inside]] = True
