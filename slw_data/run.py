"""A run: a plan, a source, an order and a form, joined once and never changed.

This is the one place that chooses who delivers: arithmetic over a store, or documents of a stream that are dealt.
A :class:`Run` is a value: threads, workers and loaders share it, and what they remember is their own.

Read next: :mod:`slw_data.dataset`, its face for torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from slw_data.arguments import flag, given, integer
from slw_data.batch.building import Batch, BatchBuilder
from slw_data.batch.chunk import Batches, Chunk
from slw_data.batch.divided import DividedBatches
from slw_data.batch.flat import FlatRow
from slw_data.batch.form import Form
from slw_data.batch.reading import Reading, StoreTokens, Tokens, WindowTokens
from slw_data.batch.shapes import Rest, flat_row, most_sequences
from slw_data.batch.stored import StoreBatches
from slw_data.batch.streamed import StreamBatches
from slw_data.cached import cached
from slw_data.errors import DataError, ScheduleError, StateError, warn
from slw_data.order.buckets import BucketRows, Buckets
from slw_data.order.circle import DocumentRows, Documents
from slw_data.order.diversity import (
    describe_buckets,
    describe_documents,
    describe_order,
    describe_packed,
    documents_in,
    neighbours,
    pieces_of,
)
from slw_data.order.divided import DividedOrder
from slw_data.order.documents import DocumentOrder
from slw_data.order.lanes import open_lanes
from slw_data.order.packed import DocumentWindows, PackedRows
from slw_data.order.packed_stream import PackedStream
from slw_data.order.position import Order, Position
from slw_data.order.store import StoreOrder
from slw_data.plan import SequenceLengthPlan
from slw_data.plan.drawn import BucketSchedule
from slw_data.plan.schedules import ConstantSchedule
from slw_data.plan.sharded import ShardPlan, nearest_divisor
from slw_data.plan.windows import Windows
from slw_data.ranks import Ranks
from slw_data.sources import Stores
from slw_data.sources.streams import Divisible, DocumentStream, ShuffledStream
from slw_data.state import Identity, dump_state, parse_state

__all__ = ["Run", "Shuffle", "drawn", "finished", "open_run", "plan_of"]

_LOOKED_AT = 1 << 20  # tokens of a step at most in which ends of documents are counted


@dataclass(frozen=True)
class Shuffle:
    """How the order is chosen: the arguments of :class:`slw_data.SLWDataset` of these names."""

    shuffle: bool = False
    seed: int = 0
    num_lanes: int | None = None
    num_shards: int = 1
    shuffle_buffer: int | None = None

    def __post_init__(self) -> None:
        buffer = None if self.shuffle_buffer is None else integer("shuffle_buffer", self.shuffle_buffer, at_least=1)
        checked = {
            "shuffle": flag("shuffle", self.shuffle),
            "seed": integer("seed", self.seed, at_least=0),
            "num_lanes": None if self.num_lanes is None else integer("num_lanes", self.num_lanes, at_least=1),
            "num_shards": integer("num_shards", self.num_shards, at_least=1),
            "shuffle_buffer": buffer,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def over(self, source: Stores | DocumentStream) -> Stores | DocumentStream:
        """``source`` behind the buffer, if one is asked for. ValueError for a store."""
        if self.shuffle_buffer is None:
            return source
        if isinstance(source, Stores):
            raise ValueError(
                f"shuffle_buffer={self.shuffle_buffer} shuffles a stream, {source.name} is a store: write shuffle=True"
            )
        return ShuffledStream(source, self.shuffle_buffer, self.seed)


@dataclass(frozen=True)
class Run:
    """``epochs``: passes over the source after which its end ends the run; None: the plan does. ``windows``: what rows are cut
    into for masks, in mode "window"."""

    plan: SequenceLengthPlan
    source: Stores | DocumentStream
    ranks: Ranks
    epochs: int | None
    batches: Batches
    builder: BatchBuilder
    identity: Identity
    windows: Windows | None = None

    def sequence_length(self, step: int) -> int:
        """What the schedule wants at ``step``: tokens in a row, or in a window of it."""
        return self.plan.length(step) if self.windows is None else self.windows.at(step)

    @cached
    def num_batches(self) -> int | None:
        """Batches that this rank delivers in the whole run; None where nobody can know it."""
        steps = self.plan.total_steps
        return None if steps is None else self.plan.batches_before(steps)

    def chunks(self, at: Position, worker: int = 0, num_workers: int = 1, size: int | None = None) -> Iterator[Chunk]:
        """What ``worker`` of ``num_workers`` makes from ``at`` on: each ``num_workers``-th chunk of ``size`` batches."""
        return self.batches.chunks(at, worker, num_workers, size)

    def build(self, chunk: Chunk) -> Iterator[Batch]:
        """The batches of a chunk."""
        return self.builder.build(chunk)

    @property
    def divided(self) -> bool:
        """Whether this rank reads shards of the source that others do not."""
        return isinstance(self.batches, DividedBatches)

    def read_again(self, num_workers: int) -> str | None:
        """What to say of a stream that several ranks or workers would each read whole; None if there is nothing to say."""
        source, readers = self.source, self.ranks.world * max(1, num_workers)
        if isinstance(source, Stores) or not isinstance(source, Divisible) or source.shards == 1 or readers == 1:
            return None
        if self.divided or self.ranks.sharded:
            return None
        rows, parts = self.plan.global_rows(0), source.shards
        fitting = [n for n in range(readers, rows + 1, readers) if rows % n == 0 and (parts is None or parts % n == 0)]
        write = f"write num_shards={fitting[0]}" if fitting else (
            f"write num_shards, a multiple of {readers} that divides the {rows} rows of a step"
            + ("" if parts is None else f" and the {parts} shards of the source")
        )  # fmt: skip
        end = "" if self.epochs is None else ", and total_steps"
        who = [f"{count} {name}" for count, name in ((self.ranks.world, "ranks"), (num_workers, "workers")) if count > 1]
        return (
            f"{' x '.join(who)} would each read the whole of {source.name}: {write}{end}, and each of them reads a part of its"
            " own"
        )

    def received(self, at: Position, messages: Any) -> Iterator[Chunk]:
        """The chunks from ``at`` on, from what workers send (:class:`slw_data.delivery.workers.Messages`)."""
        if isinstance(self.batches, DividedBatches):
            return self.batches.joined(at, messages.parts())
        chunks: Iterator[Chunk] = messages
        return chunks

    def leftover(self, end: Position) -> int | None:
        """Tokens of all ranks that the end of the data leaves over where the run ends at ``end``."""
        return self.batches.order.leftover(end)

    def padding(self, at: Position) -> int:
        """Padding in all rows that all ranks have delivered at a position; of a divided stream, in the rows of whole steps that
        are this rank's."""
        if isinstance(self.batches, DividedBatches):
            share = len(at.cursor) * self.identity.room(Position(at.step)) // self.batches.order.num_shards
            return share - sum(int(cursor.delivered) for cursor in at.cursor.values())
        return self.identity.room(at) - self.identity.tokens(at)

    def discarded(self, at: Position) -> int:
        """Tokens that are thrown away in whole steps, over all ranks; of a divided stream, of this rank's shards."""
        cursors = at.cursor.values() if isinstance(self.batches, DividedBatches) else [at.cursor]
        return sum(0 if cursor is None else cursor.discarded for cursor in cursors)

    def check_workers(self, num_workers: int) -> None:
        """DataError if the source cannot be read by worker processes."""
        if num_workers and self.source.passes is not None:
            raise DataError(
                f"{self.source.name} is one-shot and serves one process, not {num_workers} workers:"
                " pass a callable that returns a fresh iterator, or use num_workers=0"
            )

    def state_at(self, at: Position) -> dict[str, Any]:
        """The state at a position."""
        self._check_exact()
        return dump_state(self.identity, at)

    def parse(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, strict: bool = True) -> Position:
        """The position that a state describes, or the states of several ranks, checked against this run."""
        self._check_exact()
        return parse_state(self.identity, state, strict=strict)

    def position_of(self, step: int) -> Position:
        """The position where ``step`` begins. A store's is arithmetic; a stream is read up to it."""
        step = integer("step", step, at_least=0)
        total = self.plan.total_steps
        if total is not None and step > total:
            raise StateError(f"step must be at most total_steps={total}, got {step}")
        return self.batches.order.seek(step)

    def _check_exact(self) -> None:
        if self.source.not_exact is not None:
            raise StateError(f"this run cannot be resumed exactly: {self.source.not_exact}")


def finished(step: int, name: str) -> str:
    """Why a run that stands at ``step`` has no batch more."""
    if step == 0:
        return f"{name} has too few tokens for the first step, so there is no batch"
    return (
        f"this run is finished ({step} steps), so iterating yields nothing: reset() starts over, and epochs=... or"
        " total_steps=... of the dataset make a run longer"
    )


# -- the plan of a run -------------------------------------------------------------------------------------------------


def plan_of(
    wanted: Any,
    shape: Mapping[str, Any],
    ends: Mapping[str, int | None],
    source: Stores | DocumentStream,
    ranks: Ranks,
    counted: bool,
) -> tuple[SequenceLengthPlan, int | None]:
    """The plan, and the passes over the source after which its end ends the run (None: the plan ends it).

    ``wanted`` is a schedule or a plan; ``shape`` and ``ends`` are what was given beside it; ``counted``: every token is in a
    row, so a store tells how many steps there are. ScheduleError where these contradict each other, or the data does not
    suffice for a step.
    """
    if sum(value is not None for value in ends.values()) > 1:
        raise ScheduleError(f"give at most one of total_steps, total_tokens and epochs, got {given(ends)}")
    epochs = None if ends["epochs"] is None else integer("epochs", ends["epochs"], at_least=1)
    open_end = ends["total_steps"] is None and ends["total_tokens"] is None
    tokens = None  # of all epochs, where a store can tell
    if open_end and isinstance(source, Stores) and counted:
        tokens = (epochs or 1) * source.num_tokens * (ranks.world if ranks.sharded else 1)
    if isinstance(wanted, SequenceLengthPlan):
        _check_plan(wanted, shape, ends, ranks)
        if wanted.total_steps is not None:
            return _checked(wanted), None
        return (wanted if tokens is None else _covered(wanted.ending_at(tokens), source)), epochs or 1
    total_tokens = ends["total_tokens"] if tokens is None else tokens
    plan = SequenceLengthPlan(
        wanted, **shape, world_size=ranks.world, total_steps=ends["total_steps"], total_tokens=total_tokens
    )
    if not open_end:
        return _checked(plan), None
    return (plan if tokens is None else _covered(plan, source)), epochs or 1


def _check_plan(
    plan: SequenceLengthPlan, shape: Mapping[str, Any], ends: Mapping[str, int | None], ranks: Ranks
) -> None:
    beside = {**shape, "total_steps": ends["total_steps"], "total_tokens": ends["total_tokens"]}
    if beside["grad_accum_steps"] == 1:
        del beside["grad_accum_steps"]
    if given(beside):
        raise ScheduleError(f"a plan has its own batch shape and end: leave out {given(beside)}")
    if plan.world_size != ranks.world:
        raise ScheduleError(
            f"the plan is of world_size={plan.world_size}, this run has {ranks.world} data-parallel ranks:"
            f" write SequenceLengthPlan(..., world_size={ranks.world})"
        )
    if plan.total_steps is not None and ends["epochs"] is not None:
        raise ScheduleError(f"the plan ends after {plan.total_steps} steps: leave out epochs={ends['epochs']}")


def _checked(plan: SequenceLengthPlan) -> SequenceLengthPlan:
    """``plan``, if it has a step."""
    if plan.total_steps == 0:
        raise ScheduleError(
            f"total_tokens={plan._total_tokens}: {plan._total_tokens} tokens are fewer than the {plan.tokens(0)} of the"
            f" first step, {plan.global_rows(0)} rows x {plan.length(0)}: give more, or a smaller batch"
        )
    return plan


def _covered(plan: SequenceLengthPlan, source: Stores | DocumentStream) -> SequenceLengthPlan:
    """``plan``, if it has a step, as far as a store can tell."""
    if isinstance(source, Stores) and plan.total_steps == 0:
        raise DataError(
            f"{source.name} has {source.num_tokens} tokens, too few for the first step of {plan.global_rows(0)} rows x"
            f" {plan.length(0)}: use a smaller batch, or total_steps to read it again and again"
        )
    return plan


def drawn(
    wanted: Any,
    shape: Mapping[str, Any],
    ends: dict[str, int | None],
    source: Stores | DocumentStream,
    ranks: Ranks,
    mode: str,
) -> tuple[Any, dict[str, int | None]]:
    """``wanted`` and ``ends``; of a :class:`BucketSchedule` with the steps that the documents suffice for."""
    if not isinstance(wanted, BucketSchedule):
        return wanted, ends
    if mode != "buckets" or not isinstance(source, Stores):
        raise ValueError(f"BucketSchedule draws from the documents of a store: write mode='buckets', got mode={mode!r}")
    pieces = Buckets(source.bounds, tuple(wanted.lengths))
    rows = {length: _rows_of_step(length, shape, ranks) for length in wanted.lengths}
    steps = {n: count // rows[n] for n, count in zip(pieces.lengths, pieces.counts, strict=True)}
    if not any(steps.values()):
        raise DataError(
            f"{source.name} has too few documents for a step of any length: {pieces.counts} pieces of {pieces.lengths} tokens"
        )
    schedule = wanted.over(steps)
    if ends["total_steps"] is None and ends["total_tokens"] is None:
        epochs = 1 if ends["epochs"] is None else integer("epochs", ends["epochs"], at_least=1)
        ends = {"total_steps": epochs * schedule.pass_steps, "total_tokens": None, "epochs": None}
    return schedule, ends


def _rows_of_step(length: int, shape: Mapping[str, Any], ranks: Ranks) -> int:
    """Rows of a step of this length, of all that read one source."""
    plan = SequenceLengthPlan(ConstantSchedule(length), **shape, world_size=1 if ranks.sharded else ranks.world, total_steps=1)
    return plan.global_rows(0)


# -- the choice --------------------------------------------------------------------------------------------------------


def open_run(
    source: Stores | DocumentStream,
    plan: SequenceLengthPlan,
    epochs: int | None,
    form: Form,
    shuffle: Shuffle,
    ranks: Ranks,
    windows: Windows | None = None,
) -> Run:
    """Join them: rows by arithmetic from a store, or cut from the documents of a stream."""
    if ranks.sharded and epochs is not None:
        raise ValueError("sharded=True needs total_steps: no rank can know where the others' data ends")
    if shuffle.num_lanes is not None and form.mode in ("pack", "buckets"):
        raise ValueError(f"num_lanes={shuffle.num_lanes}: mode={form.mode!r} takes documents one after the other, leave it out")
    local, rank = (plan.of_one_rank(), 0) if ranks.sharded else (plan, ranks.rank)
    if not isinstance(source, Stores):
        _check_stream(source, form.mode, shuffle, ranks)
    batches: Batches
    if shuffle.num_shards > 1:
        batches = _divided(source, plan, epochs, form, shuffle, ranks)
    elif isinstance(source, Stores):
        batches = _store_batches(source, local, epochs, form, shuffle, rank)
    else:
        batches = _stream_batches(source, local, epochs, form, shuffle, rank)
    flat = _flat(form, plan, windows, source, batches.order, ranks) if form.flat else None
    masked, apart = form.padded and not form.flat, form.mode == "pack"
    builder = BatchBuilder(form.labels, tuple(form.columns), tuple(form.extras), masked, flat, windows, apart)
    vocabulary = "" if form.vocab_size is None else f", vocabulary of {form.vocab_size}"
    shard = (ranks.rank, ranks.world) if ranks.sharded else None
    padded = form.padded and not isinstance(batches, DividedBatches)
    identity = Identity(plan, batches.order, source.fingerprint + vocabulary, shard, padded, form.lead > 0)
    return Run(plan, source, ranks, epochs, batches, builder, identity, windows)


def _divided(
    source: Stores | DocumentStream,
    plan: SequenceLengthPlan,
    epochs: int | None,
    form: Form,
    shuffle: Shuffle,
    ranks: Ranks,
) -> DividedBatches:
    """Of a divided run, the shards that this rank reads."""
    if isinstance(source, Stores):
        _check_divided(source, form.mode, shuffle.num_shards)
    count, of_each = shuffle.num_shards, ShardPlan(plan, shuffle.num_shards)
    if ranks.sharded:
        raise ValueError(f"sharded=True: each rank brings its own part, and num_shards={count} divides one: give one of them")
    if count % ranks.world:
        raise ValueError(
            f"each shard is read by one rank, so num_shards must be a multiple of the {ranks.world} ranks, got {count}: write"
            f" num_shards={-(-count // ranks.world) * ranks.world}"
        )
    if epochs is not None:
        raise ValueError(
            f"no rank knows where the shards of others end, so num_shards={count} needs total_steps or total_tokens"
        )
    of_each.check()
    mine = range(ranks.rank * count // ranks.world, (ranks.rank + 1) * count // ranks.world)
    shards: dict[int, StoreBatches]
    if isinstance(source, Stores):
        documents = _documents(source, None, form, shuffle)
        shards = {n: _packed_batches(source, documents.shard(n, count), of_each, form, 0) for n in mine}
    else:
        parts = _divisible(source, count, ranks.world)
        shards = {n: _stream_batches(parts.shard(n, count), of_each, None, form, shuffle, 0) for n in mine}
    orders = {number: batches.order for number, batches in shards.items()}
    return DividedBatches(shards, DividedOrder(orders, count, ranks.world), plan)


def _check_divided(source: Stores, mode: str, count: int) -> None:
    """A store is divided where rows of other ranks cost something, and no part of it may be empty."""
    if mode != "pack":
        raise ValueError(
            f"num_shards={count} divides a stream, or the windows of mode 'pack'; of {source.name}, a store, each rank reads"
            f" its own rows alone in mode {mode!r}: leave it out"
        )
    documents = int(np.count_nonzero(np.diff(source.bounds)))
    if documents < count:
        raise DataError(f"num_shards={count} needs as many documents, and {source.name} has {documents}: write fewer")


def _divisible(source: DocumentStream, count: int, world: int) -> Divisible:
    """The source; DataError if it has no such parts."""
    if not isinstance(source, Divisible) or source.shards == 1:
        raise DataError(
            f"num_shards={count}: {source.name} comes in one part only. Pass a function source(shard, num_shards) that returns"
            " a fresh iterator over a part; or a Hugging Face IterableDataset of several files, or a list"
        )
    if source.shards is not None and source.shards % count:
        fitting = nearest_divisor(source.shards, count, world)
        write = "make" if fitting is None else f"write num_shards={fitting}, or make"
        raise DataError(
            f"num_shards must divide the {source.shards} shards that {source.name} has, got {count}: {write} a multiple of"
            f" {count} files of it"
        )
    return source


def _stream_batches(
    source: DocumentStream,
    plan: SequenceLengthPlan | ShardPlan,
    epochs: int | None,
    form: Form,
    shuffle: Shuffle,
    rank: int,
) -> StreamBatches:
    reading = _reading(WindowTokens(), form, form.documents and not form.padded)
    order: DocumentOrder | PackedStream
    if form.mode == "pack":
        order = PackedStream(source, plan, form.lead, epochs)
    else:
        order = DocumentOrder(source, plan, shuffle.num_lanes or 1, form.order, form.preserve_eos, epochs)
    return StreamBatches(order, reading, rank, order.describe)


def _packed_batches(
    source: Stores, documents: Documents, plan: SequenceLengthPlan | ShardPlan, form: Form, rank: int
) -> StoreBatches:
    packed = PackedRows(DocumentWindows(documents, form.lead), plan)
    reading = _reading(StoreTokens(source.columns, form.eos_id), form, False)
    return StoreBatches(packed, reading, rank, partial(describe_packed, packed))


def _documents(source: Stores, epochs: int | None, form: Form, shuffle: Shuffle) -> Documents:
    eos_id = form.eos_id if source.documents is None else None
    return Documents(source.bounds, shuffle.shuffle, shuffle.seed, epochs, eos_id)


def _reading(tokens: Tokens, form: Form, documents: bool) -> Reading:
    return Reading(tokens, form.parts, documents, form.vocab_size, form.padded, form.pad_id or 0, form.bos_id)


def _store_batches(
    source: Stores,
    plan: SequenceLengthPlan,
    epochs: int | None,
    form: Form,
    shuffle: Shuffle,
    rank: int,
) -> StoreBatches:
    tokens = StoreTokens(source.columns, form.eos_id)
    if form.mode == "buckets":
        schedule = plan.schedule  # may draw fewer lengths than it has
        pieces = Buckets(source.bounds, tuple(schedule.lengths) if isinstance(schedule, BucketSchedule) else plan.lengths)
        of_buckets = BucketRows(pieces, plan, shuffle.shuffle, shuffle.seed, epochs)
        return StoreBatches(of_buckets, _reading(tokens, form, False), rank, partial(describe_buckets, of_buckets))
    if form.mode == "pack":
        return _packed_batches(source, _documents(source, epochs, form, shuffle), plan, form, rank)
    if form.padded:  # a row holds one document, so none begins within it
        documents = _documents(source, epochs, form, shuffle)
        rows = DocumentRows(documents, plan, shuffle.num_lanes or documents.lanes, form.mode, form.preserve_eos)
        return StoreBatches(rows, _reading(tokens, form, False), rank, partial(describe_documents, rows))
    lanes = open_lanes(source.num_tokens, shuffle.num_lanes, shuffle=shuffle.shuffle, seed=shuffle.seed)
    order = StoreOrder(lanes, plan, epochs)
    if "document_ids" in form.extras and form.eos_id is None and source.documents is None:
        raise ValueError(f"document_ids need documents, and {source.name} knows none: pass eos_id")
    _warn_of_neighbours(order, source, form.eos_id)
    reading = _reading(tokens, form, form.documents)
    return StoreBatches(order, reading, rank, partial(describe_order, order, source.documents))


def _warn_of_neighbours(order: StoreOrder, source: Stores, eos_id: int | None) -> None:
    """Warn of a warmup in stream order whose first step has tokens of fewer documents than rows, where that is known."""
    plan = order.plan
    if not order.lanes.in_order or isinstance(plan.schedule, ConstantSchedule):
        return
    tokens, documents = min(plan.tokens(0), source.num_tokens), None
    if source.documents is not None:
        documents = int(documents_in(*pieces_of(order, 1), source.documents, source.num_tokens))
    elif eos_id is not None and tokens <= _LOOKED_AT:
        documents = 1 + int(np.count_nonzero(source.columns["input_ids"].read(0, tokens - 1) == eos_id))
    if documents is not None and documents < plan.global_rows(0):
        warn(neighbours(plan.global_rows(0), plan.length(0), documents, "shuffle=True"))


def _check_stream(source: DocumentStream, mode: str, shuffle: Shuffle, ranks: Ranks) -> None:
    if mode == "buckets":
        raise ValueError(f"mode={mode!r} chooses among all documents, and {source.name} is a stream: save it as a store first")
    if shuffle.shuffle:
        raise ValueError("shuffle=True permutes a store: write shuffle_buffer=n for a stream, or save it as a store first")
    if source.sharded is not None and not ranks.sharded:
        raise ValueError(
            f"{source.name} is already split (rank {source.sharded[0]} of {source.sharded[1]}), and ranks"
            " share one stream here: pass the whole dataset, or sharded=True with total_steps"
        )
    if source.passes is not None and ranks.world > 1 and not ranks.sharded:
        raise DataError(f"{source.name} is one-shot, and each rank must read it all: pass a callable or a list")
    if source.not_exact is not None:
        warn(f"this run cannot be resumed exactly: {source.not_exact}")
    str(source.fingerprint)  # may read some documents: now, and not beside a thread that reads


def _flat(
    form: Form,
    plan: SequenceLengthPlan,
    windows: Windows | None,
    source: Stores | DocumentStream,
    order: Order,
    ranks: Ranks,
) -> FlatRow:
    """The shape of the flat rows. Within rows documents begin where they are known, and where a lane jumps."""
    known = not isinstance(source, Stores) or source.documents is not None or form.eos_id is not None
    jumps = isinstance(order, StoreOrder) and order.may_jump

    inside = jumps or (known and form.mode != "buckets")  # documents begin within rows
    countable = not inside or (isinstance(source, Stores) and isinstance(order, StoreOrder) and not ranks.sharded)

    def count(rest: Rest) -> int:
        if not isinstance(source, Stores):
            raise _uncounted(f"{source.name} is a stream")
        if not isinstance(order, StoreOrder):
            raise _uncounted(f"mode={form.mode!r} puts them together as it goes")
        if ranks.sharded:
            raise _uncounted("with sharded=True no rank has the documents of the others")
        return most_sequences(order, source.bounds if known else None, windows, rest)

    return flat_row(form, plan, windows, inside, count, countable)


def _uncounted(why: str) -> ValueError:
    return ValueError(f"max_documents='plan' counts the documents of all batches beforehand, and {why}: write a number")
