"""Streams over a Hugging Face ``IterableDataset``, read in Arrow batches where it has them.

Read by rows, such a dataset splits itself among torch workers; ``iter(batch_size)`` does not. A batch is some rows,
and is cut between rows into blocks of bounded tokens::

    batch    [ a a a a | b b b | c c c c c c c c c c c c c c | d d ]       4 rows, bound of 8 tokens
    blocks   [ a a a a | b b b ] [ c c c c c c c c c c c c c c ] [ d d ]

A position is the dataset's own state before the batch, the block's part of it in rows, and a checksum of the block: where
a version of ``datasets`` resumes at another row, the checksum tells, and the rows are counted from the start instead.
Read ``opening`` next.
"""

import copy
import zlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from torch.utils.data import get_worker_info

from slw_data.cached import cached
from slw_data.errors import DataError, StateError, warn
from slw_data.sources.paths import arrow_column, arrow_type, head, schema_names
from slw_data.sources.streams.blocks import Draft, joined, sealed
from slw_data.sources.streams.documents import Arrays, TokenDocuments, check_not_negative, signed_64
from slw_data.sources.streams.items import check_block, item_number, saved_fields
from slw_data.sources.streams.iterables import plain, undivided
from slw_data.sources.streams.marks import code_mark, options_mark, short
from slw_data.sources.streams.protocol import Block, Integers
from slw_data.sources.streams.text import TextDocuments

BATCH_ROWS = 256
BLOCK_TOKENS = 1 << 22  # of a block of more than one row


class Saved(NamedTuple):
    """The fields of a position, of which ``rows`` is the number of the block's first row, and ``part`` how many rows its
    batch has before it and how many it has."""

    rows: int
    state: Any
    check: int
    part: list[int]


Flattened: TypeAlias = tuple[npt.NDArray[np.int64], dict[str, Integers]]  # lengths of rows, and the tokens of each column


@dataclass(eq=False)
class HuggingFaceStream:
    """Documents are rows: a list of token ids per column, or a text. The dataset itself is never changed."""

    source: Any
    documents: TokenDocuments
    append_eos: int | None
    name: str = "the Hugging Face IterableDataset"

    passes: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        features = self.source.features
        for path in self._paths() if features is not None else ():
            kind = arrow_type(features.arrow_schema, path, self.name)
            if not isinstance(self.documents, TextDocuments):
                check_list_type(kind, f"column {path!r} of {self.name}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the per-token columns."""
        return self.documents.columns

    @cached
    def fingerprint(self) -> str:
        """Features and shards of the whole dataset, what is done with its rows, and the order where that is random."""
        chain = self.source._ex_iterable
        features = "unknown" if self.source.features is None else dict(sorted(self.source.features.items()))
        steps, generators = [_described(part) for part in _parts(chain)], _generators(chain)
        text = f"Hugging Face IterableDataset, {chain.num_shards} shards, features {features}, steps {short(*steps)}"
        order = f", order {short(*generators)}" if generators else ""
        return f"{text}{order}{options_mark(self.documents, self.append_eos)}"

    @property
    def sharded(self) -> tuple[int, int] | None:
        """(rank, world) of ``split_dataset_by_node``."""
        split = self.source._distributed
        return None if split is None else (split.rank, split.world_size)

    @property
    def shards(self) -> int:
        """Those of the dataset: mostly its files."""
        return int(self.source._ex_iterable.num_shards)

    def shard(self, index: int, num_shards: int) -> "HuggingFaceStream":
        """Some of the dataset's own shards."""
        part = self.source.shard(num_shards=num_shards, index=index)
        return replace(self, source=part, name=f"shard {index} of {num_shards} of {self.name}")

    @property
    def not_exact(self) -> str | None:
        """Why a shuffle buffer, or an order that was drawn without a seed, does not resume exactly; else None."""
        chain, reasons = list(_parts(self.source._ex_iterable)), []
        if sizes := [part.buffer_size for part in chain if _loses_rows(part)]:
            reasons.append(
                f"{self.name} has a shuffle buffer of {max(sizes)} rows, which its state_dict does not hold: up to that "
                "many rows would be lost on resuming. Shuffle before saving to disk, use a store with shuffle=True, or "
                "shuffle only the shards with buffer_size=1"
            )
        if any(map(_is_unseeded, chain)):
            reasons.append(
                f"{self.name} was shuffled or interleaved without a seed, so no other process has its order, neither another "
                "rank nor a resumed run: write shuffle(seed=...) or interleave_datasets(..., seed=...)"
            )
        return ". ".join(reasons) or None

    def blocks(self, epoch: int, position: Any = None) -> Iterator[Block]:
        """The blocks of pass ``epoch``. Raises StateError for a position of another source or another pass."""
        if position is None:
            return sealed(self._read(epoch), name=self.name, append_eos=self.append_eos)
        saved = self._saved(position)
        if saved.state is not None and saved.state["epoch"] != epoch:
            raise StateError(f"the saved position of {self.name} is in pass {saved.state['epoch']}, but pass {epoch} was asked")
        return sealed(self._resume(epoch, saved), name=self.name, append_eos=self.append_eos, first=saved.rows)

    def _saved(self, position: Any) -> Saved:
        """A position without ``part`` is from when a block was a whole batch."""
        before = isinstance(position, dict) and "part" not in position
        given = {**position, "part": [0, BATCH_ROWS]} if before else position
        saved = Saved(*saved_fields(given, Saved._fields, self.name))
        check_block(saved.part, self.name)
        if item_number(saved.rows, self.name) < saved.part[0] or saved.part[1] == 0:
            raise StateError(f"a saved position of {self.name} is that of some rows of a batch, but this is {position!r}")
        return saved

    def _resume(self, epoch: int, saved: Saved) -> Iterator[Draft]:
        rows, (skipped, count), check = saved.rows, saved.part, saved.check
        drafts = self._read(epoch, rows, count, saved.state, rows - skipped)
        try:
            head = next(drafts, None)
        except (LookupError, TypeError, SystemError):  # what datasets does with a state that does not fit
            head = None
        if head is None or head.position["check"] != check:
            warn(
                f"{self.name} does not resume at the row where its state was taken (some versions of datasets "
                f"do not, after a map); reading {rows} rows again from the start of the pass",
            )
            drafts = self._read(epoch, rows, count)
            head = next(drafts, None)
        if head is None or head.position["check"] != check:
            raise StateError(
                f"{self.name} does not repeat: row {rows} of pass {epoch} and those after it are not the ones that "
                "followed when the position was saved; resuming needs the same rows in the same order (a seed)"
            )
        yield head
        yield from drafts

    def _read(self, epoch: int, begin: int = 0, count: int | None = None, state: Any = None, first: int = 0) -> Iterator[Draft]:
        """The blocks from row ``begin`` on, the first one of ``count`` rows. ``state`` is that before row ``first``."""
        source = self._private(epoch)
        if state is not None:
            source.load_state_dict(plain(state, self.name))
        if get_worker_info() is not None:
            import fsspec.asyn

            fsspec.asyn.reset_lock()  # held by a thread that a fork left behind
        for batch in _batches(source):
            part = max(begin - first, 0), count if first <= begin else None
            first += yield from self._cut(batch, first, state, *part)
            state = plain(source.state_dict(), self.name)

    def _cut(self, batch: Any, first: int, state: Any, skip: int, count: int | None) -> Generator[Draft, None, int]:
        """The blocks of a batch after ``skip`` rows, the first one of ``count`` rows; returns how many rows the batch has."""
        if isinstance(batch, Iterator):
            start = sum(1 for _ in islice(batch, skip))
            parts = self._cut_rows(batch, first + start, count)
        else:
            start = min(skip, batch.num_rows)
            parts = self._cut_table(batch.slice(start), first + start, count)
        for lengths, columns in parts:
            here = Saved(first + start, state, _checksum(lengths, columns), [start, len(lengths)])
            yield Draft(here._asdict(), first + start, lengths, columns)
            start += len(lengths)
        return start

    def _cut_table(self, table: Any, first: int, count: int | None) -> Iterator[Flattened]:
        values = [arrow_column(table, path, self.name) for path in self._paths()]
        if isinstance(self.documents, TextDocuments):
            yield from self._cut_rows(iter(values[0].to_pylist()), first, count)
            return
        for start, stop in _cuts(list_lengths(values[0]), count):
            yield self._flatten([value.slice(start, stop - start) for value in values], first + start)

    def _cut_rows(self, items: Iterator[Any], first: int, count: int | None) -> Iterator[Flattened]:
        """The same of single rows, which are read one at a time."""
        rows, tokens = list[Arrays](), 0
        for row in self.documents.rows(items, first):
            if rows and (tokens + len(row[0]) > BLOCK_TOKENS if count is None else len(rows) == count):
                yield joined(rows, self.columns)
                rows, tokens, count = [], 0, None
            rows.append(row)
            tokens += len(row[0])
        if rows:
            yield joined(rows, self.columns)

    def _private(self, epoch: int) -> Any:
        """The dataset with counters of its own, so that two iterators, or the user's and ours, do not meet."""
        source = copy.copy(self.source)
        source.__dict__ = dict(vars(self.source))  # the copy shares it, so what is set here would be set there too
        source._ex_iterable = _copied(source._ex_iterable)
        if source.features is not None:
            source._ex_iterable = _typed(source._ex_iterable, source.features)
            names = schema_names(source.features.arrow_schema)
            source = source.select_columns(list(dict.fromkeys(head(names, path, self.name) for path in self._paths())))
        # without Arrow batches below, rows become tables one by one: slow, and an empty list has no type to join by
        source = source.with_format("arrow" if source._ex_iterable.iter_arrow else None)
        source.set_epoch(epoch)
        return source

    def _paths(self) -> tuple[str, ...]:
        return (self.documents.text_column,) if isinstance(self.documents, TextDocuments) else self.documents.paths

    def _flatten(self, values: list[Any], first: int) -> Flattened:
        paths = self.documents.paths
        lists = [flat_lists(value, path, first, signed=column != self.documents.ids)
                 for value, path, column in zip(values, paths, self.columns, strict=True)]  # fmt: skip
        lengths = lists[0][0]
        for path, (others, _) in zip(paths, lists, strict=True):
            differ = np.flatnonzero(others != lengths)
            if differ.size:
                raise DataError(
                    f"all columns of a document have one length, but item {first + differ[0]} has {lengths[differ[0]]} "
                    f"tokens in {paths[0]!r} and {others[differ[0]]} in {path!r}"
                )
        return lengths, {column: tokens for column, (_, tokens) in zip(self.columns, lists, strict=True)}


def _batches(source: Any) -> Iterator[Any]:
    """Tables of some rows; or, where a Python function makes the rows, iterators of so many, each of which is to be used up."""
    if source._ex_iterable.iter_arrow:
        yield from undivided(lambda: source.iter(BATCH_ROWS))
        return
    rows = ({name: value for name, (value,) in row.items()} for row in undivided(lambda: source.iter(1)))
    for row in rows:
        yield chain([row], islice(rows, BATCH_ROWS - 1))


def _cuts(lengths: npt.NDArray[np.int64], count: int | None) -> Iterator[tuple[int, int]]:
    """Rows from where to where are a block: the first one has ``count`` of them, the others as many as the bound allows."""
    ends, start = np.cumsum(lengths), 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        most = start + count if count is not None else int(np.searchsorted(ends, before + BLOCK_TOKENS, side="right"))
        stop = min(max(most, start + 1), len(ends))
        yield start, stop
        start, count = stop, None


def list_lengths(column: Any) -> npt.NDArray[np.int64]:
    """Of each row of an Arrow column of lists; 0 of what is none."""
    import pyarrow.compute as compute

    return np.asarray(compute.list_value_length(column).fill_null(0), np.int64)


def check_list_type(kind: Any, where: str) -> None:
    """Refuse an Arrow type that is not a list of integers; lists without any value have the type null."""
    import pyarrow.types as types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if types.is_null(kind) or (is_list and (types.is_integer(kind.value_type) or types.is_null(kind.value_type))):
        return
    raise TypeError(f"{where} has the type {kind}; documents are lists of integers (for text, pass tokenizer=)")


def flat_lists(column: Any, name: str, first: int, *, signed: bool) -> tuple[npt.NDArray[np.int64], Integers]:
    """Lengths and flat values of an Arrow list column whose first row is item ``first``; no copy of a single chunk."""
    import pyarrow.compute as compute

    lists = column.combine_chunks()
    check_list_type(lists.type, f"column {name!r}, from item {first} on,")
    if lists.null_count:
        row = int(np.argmax(lists.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"column {name!r} of item {first + row} is None: drop the document, or give its tokens")
    lengths = compute.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = lists.flatten()  # unlike `values`, it knows of slices

    def place(at: int) -> str:
        ends = np.cumsum(lengths)
        row = int(np.searchsorted(ends, at, side="right"))
        return f"position {at - ends[row] + lengths[row]} of column {name!r} of item {first + row}"

    if flat.null_count:
        at = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"{place(at)} is None, not a token id: drop the document, or give the token")
    tokens = flat.to_numpy() if len(flat) else np.empty(0, np.int64)
    if tokens.dtype == np.uint64:
        tokens = signed_64(tokens, place)
    if not signed:
        check_not_negative(tokens, place)
    return lengths, tokens


def _checksum(lengths: npt.NDArray[np.int64], columns: Mapping[str, Integers]) -> int:
    found = zlib.crc32(lengths.tobytes())
    for column in sorted(columns):
        found = zlib.crc32(np.ascontiguousarray(columns[column]).data, found)
    return found


def _parts(examples: Any) -> Iterator[Any]:
    """A dataset's chain of transformations, outermost first."""
    yield examples
    for child in (getattr(examples, "ex_iterable", None), *(getattr(examples, "ex_iterables", None) or ())):
        if child is not None:
            yield from _parts(child)


def _typed(examples: Any, features: Any) -> Any:
    """Give rows of mixed sources one type before they are batched: else a column that one lacks ends the reading."""
    if all(getattr(part, "ex_iterables", None) is None for part in _parts(examples)):
        return examples
    from datasets.iterable_dataset import FormattedExamplesIterable

    return FormattedExamplesIterable(examples, formatting=None, features=features, token_per_repo_id={})


_NUMBERS = ("n", "num_times", "step", "offset", "buffer_size", "probabilities", "stopping_strategy")
_OF_FUNCTIONS = ("batched", "batch_size", "drop_last_batch")


def _described(part: Any) -> str:
    """A step of the chain: its kind, its numbers, and the code that it runs."""
    values = {name: value for name, value in sorted(vars(part).items()) if not name.startswith("_")}
    names = (*_NUMBERS, *(_OF_FUNCTIONS if "function" in values else ()))
    numbers = [f"{name}={values[name]}" for name in names if name in values]
    functions = [value for value in values.values() if callable(value) and not isinstance(value, type)]
    given = [getattr(getattr(getattr(function, "__self__", None), "config", None), "generator", None) for function in functions]
    code = [code_mark(function) for function in (*functions, *filter(None, given))]  # given: to from_generator
    return " ".join([type(part).__name__, *numbers, *code])


def _generators(examples: Any) -> list[str]:
    """The states of the random generators of a chain, from which its orders follow."""
    return [str(part.generator.bit_generator.state) for part in _parts(examples) if hasattr(part, "generator")]


def _is_unseeded(part: Any) -> bool:
    """Whether a part has a generator that the system seeded: with 128 random bits, which nobody writes as a seed."""
    sequence = getattr(getattr(getattr(part, "generator", None), "bit_generator", None), "seed_seq", None)
    entropy = getattr(sequence, "entropy", None)
    return isinstance(entropy, int) and entropy.bit_length() > 64


def _loses_rows(part: Any) -> bool:
    """Whether this is a shuffle buffer whose rows are not in its state (a later ``datasets`` may save them)."""
    if type(part).__name__ != "BufferShuffledExamplesIterable" or part.buffer_size <= 1:
        return False
    return not any("buffer" in key for key in _copied(part)._init_state_dict())


def _copied(examples: Any) -> Any:
    """The chain with objects of its own: they hold the reading position."""
    twin = copy.copy(examples)
    if getattr(twin, "ex_iterable", None) is not None:
        twin.ex_iterable = _copied(twin.ex_iterable)
    if getattr(twin, "ex_iterables", None) is not None:
        twin.ex_iterables = [_copied(child) for child in twin.ex_iterables]
    return twin
