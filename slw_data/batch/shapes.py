"""Shapes: what all flat rows of a run share, found before anything is read: their tokens, and the sequences of the fullest.

A sequence is a row, or a window or document in one; what the rows of a batch leave over of a flat row, the rest, is one too.

Read next: :mod:`slw_data.run`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np

from slw_data.batch.chunk import batches_from, chunked, place
from slw_data.batch.flat import FlatRow
from slw_data.batch.form import Form
from slw_data.batch.reading import begins_in
from slw_data.errors import ScheduleError
from slw_data.order.permutation import Ints
from slw_data.order.spans import Spans
from slw_data.order.store import StoreOrder
from slw_data.plan import SequenceLengthPlan, Stage
from slw_data.plan.windows import Windows

__all__ = ["Rest", "flat_row", "most_sequences"]

_LARGEST = 2**31 - 1  # of int32
_COUNTED_TOKENS = 1 << 24  # of the batches whose spans are looked up at once

Rest = Callable[[Stage], bool]  # whether the batches of a stage leave a rest


def flat_row(
    form: Form,
    plan: SequenceLengthPlan,
    windows: Windows | None,
    documents: bool,
    count: Callable[[Rest], int],
    countable: bool,
) -> FlatRow:
    """The shape of the flat rows of ``plan``. ``documents``: some may begin within rows; then ``count`` gives the sequences of
    the run's fullest flat row, if they are ``countable``.

    ValueError where no size is constant, and for fewer ``max_documents`` than any batch has.
    """
    budget, multiple, most = _budget(plan, windows), form.flat_multiple_of, form.max_documents
    uneven = _uneven(plan, windows, budget, multiple)
    padded = multiple > 1 and (documents or bool(uneven))
    if padded and most is None:
        raise _unbounded(budget, multiple, uneven or ["documents of any length"])

    def rest(stage: Stage) -> bool:
        return padded or stage.rows * stage.length < budget

    if isinstance(most, str):
        most = count(rest) if documents else _most_pieces(plan, windows, rest)
    elif most is not None:
        with suppress(ScheduleError):  # of a callable without an end nobody knows
            _check_most(most, _most_pieces(plan, windows, rest), countable)
    if most is None or not padded:
        multiple = 1
    tokens = -(-(budget + (most or 0) * (multiple - 1)) // multiple) * multiple
    if max(tokens, most or 0) > _LARGEST:
        raise ValueError(
            f"'cu_seq_lens' are int32, so a flat row has at most 2^31 - 1 tokens and sequences, got {tokens} with"
            f" tokens_per_batch={budget}, max_documents={most} and flat_multiple_of={multiple}: write less"
        )
    return FlatRow(tokens, most, multiple, form.pad_id or 0, countable)


def most_sequences(order: StoreOrder, documents: Ints | None, windows: Windows | None, rest: Rest) -> int:
    """The sequences of the fullest flat row of a run over a store, on any rank. ``documents``: where they begin in it.

    No token is read: the spans of all batches are looked up, some at a time, and the documents in them. It takes memory for
    some batches alone, and about 2 s for each million rows of all ranks and documents in them.
    """
    most, total = 0, order.plan.total_steps
    assert total is not None  # of a store the data ends the run, if nothing else does
    for rank in range(order.plan.world_size):
        reader, now = order.reader(), (0, 0)
        while now[0] < total:
            stage, first, stop, size = batches_from(order.plan, now, None, _COUNTED_TOKENS)
            limit = order.limit(stage, first)
            numbers = next(chunked(first, stop if limit is None else min(stop, limit), size))
            spans = order.spans(stage, numbers, rank, 0, reader)
            most = max(most, _most_in(spans, stage, numbers, documents, windows) + rest(stage))
            now = place(stage, numbers.stop)
    return most


def _most_in(spans: Spans, stage: Stage, numbers: range, documents: Ints | None, windows: Windows | None) -> int:
    """The sequences of the rows of the fullest of these batches."""
    tokens = stage.rows * stage.length
    each = tokens // spans.runs if spans.by_lane else tokens  # tokens of a batch that follow each other
    run, at = begins_in(spans, documents)
    places = np.sort(run * spans.width + at, kind="stable")  # nearly sorted, so a hundred times faster than np.unique
    places = places[np.diff(places, prepend=-1) > 0]
    batch = (places % spans.width if spans.by_lane else places) // each
    steps = [place(stage, number)[0] for number in numbers]
    window = np.array([stage.length if windows is None else windows.at(step) for step in steps])
    within = places % spans.width % stage.length % window[batch] > 0  # those at the beginning of a window are counted with it
    pieces = stage.rows * -(-stage.length // window)
    return int((pieces + np.bincount(batch[within], minlength=len(numbers))).max())


def _most_pieces(plan: SequenceLengthPlan, windows: Windows | None, rest: Rest) -> int:
    """The sequences of the fullest flat row, where no document begins within rows."""

    def pieces(stage: Stage) -> int:
        return stage.rows * (1 if windows is None else -(-stage.length // windows.shortest)) + rest(stage)

    return max(map(pieces, plan.stages))


def _check_most(most: int, least: int, countable: bool) -> None:
    if most < least:
        raise ValueError(
            f"max_documents={most} is fewer than the {least} rows of a batch, the windows in them and the rest of a flat row:"
            f" write max_documents={least} or more" + (", or max_documents='plan'" if countable else "")
        )


def _budget(plan: SequenceLengthPlan, windows: Windows | None) -> int:
    """Tokens of a flat row without padding."""
    if isinstance(plan.tokens_per_batch, int):
        return plan.tokens_per_batch
    if windows is not None and isinstance(plan.batch_size, int):
        return plan.batch_size * windows.length
    got = f"batch_size={plan.batch_size}" if plan.tokens_per_batch is None else f"tokens_per_batch={plan.tokens_per_batch!r}"
    raise ValueError(
        f"'cu_seq_lens' gives flat rows of a constant number of tokens, and {got} lets it"
        " grow with the length: write tokens_per_batch=... instead"
    )


def _uneven(plan: SequenceLengthPlan, windows: Windows | None, budget: int, multiple: int) -> list[str]:
    """What is no multiple of ``multiple``, in words."""
    try:
        lengths = plan.lengths if windows is None else (windows.length, *windows.timeline.lengths)
    except ScheduleError:
        return ["lengths that nobody can know beforehand"]
    uneven = [f"rows or windows of {length} tokens" for length in lengths if length % multiple]
    return uneven + ([f"tokens_per_batch={budget}"] if budget % multiple else [])


def _unbounded(budget: int, multiple: int, uneven: list[str]) -> ValueError:
    what = ", ".join(uneven[:3]) + (", ..." if len(uneven) > 3 else "")
    return ValueError(
        f"flat_multiple_of={multiple} pads sequences, and with {what} a flat row of constant size needs a bound on their"
        f" number: write max_documents=K, and rows have {budget} + K * {multiple - 1} tokens; or, without documents,"
        f" lengths and tokens_per_batch that are multiples of {multiple}"
    )
