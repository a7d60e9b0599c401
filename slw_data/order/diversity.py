"""Diversity: of how many documents some steps hold tokens, known before anything is read.

What lanes have delivered after some steps are pieces of the store; where these lie is arithmetic. Of a store that knows
where its documents begin, those in the pieces are counted; of one that only has so many, the expected number is given.

Read next: :mod:`slw_data.batch.chunk`.
"""

from __future__ import annotations

import numpy as np

from slw_data.order.buckets import BucketRows
from slw_data.order.circle import DocumentRows
from slw_data.order.packed import PackedRows
from slw_data.order.permutation import Ints
from slw_data.order.store import StoreOrder

__all__ = [
    "describe_buckets",
    "describe_documents",
    "describe_order",
    "describe_packed",
    "documents_in",
    "neighbours",
    "pieces_of",
]

_STEPS = 100


def pieces_of(order: StoreOrder, steps: int) -> tuple[Ints, Ints]:
    """``(starts, sizes)`` of the pieces of the store that the run's first ``steps`` steps hold, int64 (pieces,), ascending."""
    lanes, reader = order.lanes, order.reader()
    steps = steps if order.plan.total_steps is None else min(steps, order.plan.total_steps)
    numbers = np.arange(lanes.num_lanes)
    held = reader.delivered(steps)
    if lanes.in_order:
        return np.zeros(1, np.int64), np.minimum(held, lanes.num_tokens)
    if (order.rest is not None and steps > order.rest.step) or (held > lanes.epoch_tokens(numbers)).any():
        return _looked_up(order, steps)
    in_blocks = np.minimum(held, lanes.blocks * lanes.block_size)
    counts = -(-in_blocks // lanes.block_size) + (held > in_blocks)  # of each lane: its blocks, and maybe its tail
    lane = np.repeat(numbers, counts)
    turn = np.arange(len(lane)) - np.repeat(np.cumsum(counts) - counts, counts)
    left = held[lane] - turn * lanes.block_size
    sizes = np.where(turn < lanes.blocks, np.minimum(left, lanes.block_size), left)
    starts = lanes.piece_starts(lane, turn)
    ascending = np.argsort(starts)
    return _united(starts[ascending], sizes[ascending])


def _looked_up(order: StoreOrder, steps: int) -> tuple[Ints, Ints]:
    """The same by looking up every row: of a run so short, or a store so small, that it comes to the rest, or to one token
    again."""
    found, step = [], 0
    readers = [order.reader() for _ in range(order.plan.world_size)]
    while step < steps:
        stage = order.plan.stage_at(step, steps - step)
        stop = min(steps, step + _STEPS) if stage.stop is None else min(steps, stage.stop)
        first, last = ((at - stage.start) * stage.grad_accum_steps for at in (step, stop))
        last = min(last, order.limit(stage, first) or last)
        for rank, reader in enumerate(readers):
            spans = order.spans(stage, range(first, last), rank, 0, reader)
            found.append((spans.starts, np.full(len(spans.starts), spans.width) if spans.sizes is None else spans.sizes))
        step = stage.start + last // stage.grad_accum_steps
    starts, sizes = (np.concatenate(part) for part in zip(*found, strict=True))
    ascending = np.argsort(starts)
    return _united(starts[ascending], sizes[ascending])


def _united(starts: Ints, sizes: Ints) -> tuple[Ints, Ints]:
    """The same pieces, those that touch or overlap made one."""
    ends = np.maximum.accumulate(starts + sizes)
    begins = np.ones(len(starts), np.bool_)
    begins[1:] = starts[1:] > ends[:-1]
    last = np.append(np.flatnonzero(begins)[1:], len(starts)) - 1 if len(starts) else np.empty(0, np.int64)
    return starts[begins], ends[last] - starts[begins]


def documents_in(starts: Ints, sizes: Ints, documents: Ints | int, num_tokens: int) -> float:
    """Distinct documents in these pieces, ascending, of a store of ``num_tokens`` tokens. ``documents``: where they begin, and
    the end, and they are counted; or how many there are, and it is the number to expect.

    If documents begin anywhere alike, once in m tokens (a Poisson process), another begins in a piece of n tokens (n - 1) / m
    times, and none between two pieces that are g tokens apart with the probability exp(-g / m): they share one then.
    """
    if isinstance(documents, int):
        size = num_tokens / documents
        shared = np.exp(-(starts[1:] - starts[:-1] - sizes[:-1] + 1) / size).sum()
        return float(min(len(starts) + (sizes - 1).sum() / size - shared, documents))
    begins = np.unique(documents)  # without documents that have no token
    first = np.searchsorted(begins, starts, side="right") - 1
    last = np.searchsorted(begins, starts + sizes, side="left") - 1
    seen = np.maximum.accumulate(np.concatenate([[-1], last[:-1]]))  # the last document of the pieces before
    return float(np.maximum(last - np.maximum(first, seen + 1) + 1, 0).sum())


def neighbours(rows: int, length: int, documents: int, remedy: str) -> str:
    """The warning of a first step whose rows are neighbours."""
    return (
        f"in stream order the first step has {rows:,} rows of {length:,} tokens from {documents:,}"
        f" {'document' if documents == 1 else 'documents'}, and the next steps read on there, which is worse to train on than"
        f" rows from {rows:,} documents: write {remedy}"
    )


def describe_order(order: StoreOrder, documents: Ints | int | None) -> str:
    """Where the tokens of a step and of 100 steps come from, in a line."""
    found = [pieces_of(order, steps) for steps in (1, _STEPS)]
    if documents is None:
        one, many = (f"{len(starts):,}" for starts, _ in found)
        where = f"a step is read from {one} {'place' if one == '1' else 'places'} of the store, {_STEPS} steps from {many}"
    else:
        count, about = (documents, "about ") if isinstance(documents, int) else (len(np.unique(documents)) - 1, "")
        one, many = (f"{documents_in(*pieces, documents, order.lanes.num_tokens):,.0f}" for pieces in found)
        where = f"a step has tokens of {about}{one} of {count:,} documents, {_STEPS} steps of {about}{many}"
    return f"{order.fingerprint}: {where}"


def describe_documents(order: DocumentRows) -> str:
    """How many documents a step and 100 steps hold, in a line."""
    count, found = order.documents.count, []
    for steps in (1, _STEPS):
        reader, step = order.reader(order.begin), 0
        total = steps if order.plan.total_steps is None else min(steps, order.plan.total_steps)
        while step < total:
            stage = order.plan.stage_at(step)
            stop = total if stage.stop is None else min(total, stage.stop)
            batches = range((step - stage.start) * stage.grad_accum_steps, (stop - stage.start) * stage.grad_accum_steps)
            there = order.enough(stage, batches, reader)
            order.skip(stage, there, reader)
            step = stop if len(there) == len(batches) else total
        found.append(min(reader.opened.next, count))
    return f"{order.fingerprint}: a step has tokens of {found[0]:,} of {count:,} documents, {_STEPS} steps of {found[1]:,}"


def describe_buckets(order: BucketRows) -> str:
    """How many pieces each bucket has, in a line."""
    buckets = order.buckets
    pieces = ", ".join(f"{count:,} of {length:,}" for length, count in zip(buckets.lengths, buckets.counts, strict=True))
    return f"{order.fingerprint}: pieces: {pieces}; {buckets.left_out:,} tokens are in none"


def describe_packed(order: PackedRows) -> str:
    """How many documents a step and 100 steps hold, and how much of these is padding, in a line."""
    documents, plan, found = order.windows.documents, order.plan, []
    for steps in (1, _STEPS):
        packer, step = order.passed(steps if plan.total_steps is None else min(steps, plan.total_steps))
        found.append(min(packer.begun(), documents.count))
    room = plan.tokens_before(step) - plan.rows_before(step) * order.windows.lead
    padding = f"; {1 - packer.delivered / room:.2%} is padding" if step else ""
    held = f"a step has tokens of {found[0]:,} of {documents.count:,} documents, {_STEPS} steps of {found[1]:,}"
    return f"{order.fingerprint}: {held}{padding}"
