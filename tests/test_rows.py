"""Rows of a store: every batch of every rank against lanes that are lists."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import batches_of, naive_batches, naive_lane_positions, naive_plan
from strategies import runs

from slw_data.batch.reading import Reading, StoreTokens
from slw_data.batch.stored import StoreBatches
from slw_data.errors import DataError
from slw_data.order.lanes import Lanes, open_lanes
from slw_data.order.permutation import permute
from slw_data.order.position import Position
from slw_data.order.store import StoreOrder
from slw_data.plan import SequenceLengthPlan
from slw_data.plan.schedules import ConstantSchedule, StagedSchedule


class ListStore:
    """A store that is a list, written out by the protocol."""

    fingerprint = name = "a list"

    def __init__(self, tokens, dtype="int64", documents=None):
        self.tokens, self.dtype = list(tokens), np.dtype(dtype)
        self.documents = None if documents is None else np.array(documents, np.int64)

    def __len__(self):
        return len(self.tokens)

    def read(self, start, stop):
        return np.array(self.tokens[start:stop], self.dtype)

    def gather(self, starts, length, out):
        for i, start in enumerate(starts.tolist()):
            assert 0 <= start <= start + length <= len(self.tokens)
            out[i] = self.tokens[start : start + length]


def orders(lanes, epochs):
    total = lanes.blocks * lanes.num_lanes
    if not lanes.shuffle:
        return [list(range(total))] * epochs
    return [permute(np.arange(total), total, (lanes.seed, epoch)).tolist() for epoch in range(epochs)]


@st.composite
def cuts(draw, max_tokens=600):
    """A run over a small store: ``(tokens, plan, shape, lanes, epochs, look, total steps)``."""
    schedule, shape, total = draw(runs(max_length=16, max_steps=10, max_rows=4, max_accum=2))
    plan = SequenceLengthPlan(schedule, **shape, total_steps=total)
    rows = plan.global_rows(0)
    num_lanes = draw(st.sampled_from([1, 1, 2, 3, 4, 5, rows, rows + 1, max(1, rows // 2), shape["world_size"]]))
    tokens = draw(st.integers(max(num_lanes, 2), max_tokens))
    shuffle, seed = draw(st.booleans()), draw(st.integers(0, 99))
    blocks = draw(st.integers(1, min(9, tokens // num_lanes)))
    lanes = Lanes(tokens, num_lanes, shuffle, seed, 1 if num_lanes == 1 and not shuffle else blocks)
    return [3 * i + 1 for i in range(tokens)], plan, shape, lanes, draw(st.sampled_from([0, 1])), total


def passes(plan, lanes, total):
    """How many epochs of its shortest lane a run may take, and one more for the labels."""
    return plan.tokens_before(total) // (lanes.num_tokens // lanes.num_lanes) + 2


class Cut:
    """What :class:`StoreBatches` delivers, by numbers: batch i is the i-th of the run on one rank."""

    def __init__(self, stores, plan, lanes, rank, epochs, look, documents, eos_id, vocab_size):
        self.plan, self.lanes, self.rank, self.epochs = plan, lanes, rank, epochs
        parts = {name: (name, 0) for name in stores} | ({"next": ("input_ids", 1)} if look else {})
        self.reading = Reading(StoreTokens(stores, eos_id), parts, documents, vocab_size)

    def chunks(self, start, stop, worker, num_workers, size):
        """The chunks; ``stop`` ends a step."""
        plan = self.plan
        if stop is not None and plan.total_steps is None:
            shape = {"batch_size": plan.batch_size, "tokens_per_batch": plan.tokens_per_batch}
            plan = SequenceLengthPlan(
                plan.schedule,
                **shape,
                grad_accum_steps=plan.grad_accum_steps,
                world_size=plan.world_size,
                total_steps=stop // plan.grad_accum_steps,
            )
        batches = StoreBatches(StoreOrder(self.lanes, plan, self.epochs), self.reading, self.rank, str)
        at = Position(*divmod(start, plan.grad_accum_steps))
        return batches.chunks(at, worker, num_workers, size)


def numbers_of(chunk):
    """The run's numbers of a chunk's batches."""
    first = chunk.stage.start * chunk.stage.grad_accum_steps
    return range(first + chunk.numbers.start, first + chunk.numbers.stop)


def rows_for(store, plan, lanes, rank=0, *, epochs=None, look=0, documents=False, eos_id=None, vocab_size=None):
    stores = store if isinstance(store, dict) else {"input_ids": store}
    return Cut(stores, plan, lanes, rank, epochs, look, documents, eos_id, vocab_size)


def tokens_in(chunk):
    """``(batches, rows, length)`` tokens as lists; one more in each row, or None, if the chunk has the next ones."""
    ids = chunk.final(chunk.columns["input_ids"])
    assert ids.shape == (len(chunk.numbers), chunk.rows, chunk.length) and chunk.valid is None
    if "next" not in chunk.columns:
        return ids.tolist()
    after = chunk.final(chunk.columns["next"])
    assert (after[:, :, :-1] == ids[:, :, 1:]).all()
    last = after[:, :, -1].tolist()
    if chunk.valid_next is not None:
        valid = chunk.final(chunk.valid_next)
        assert valid[:, :, :-1].all()
        last = [
            [t if ok else None for t, ok in zip(*row, strict=True)] for row in zip(last, valid[:, :, -1], strict=True)
        ]
    return [[[*row, more] for row, more in zip(*batch, strict=True)] for batch in zip(ids.tolist(), last, strict=True)]


def shapes_of(plan, shape, total):
    return naive_plan(plan.schedule, **shape, total_steps=total)


def dealing(shape):
    return {"grad_accum_steps": shape["grad_accum_steps"], "world_size": shape["world_size"]}


@given(cuts(), st.sampled_from([None, 1, 2, 3, 7, 1000]), st.data())
def test_every_batch_of_every_rank_is_cut_from_the_lanes(cut, size, data):
    tokens, plan, shape, lanes, look, total = cut
    epochs = passes(plan, lanes, total)
    positions = naive_lane_positions(lanes.num_tokens, lanes.num_lanes, lanes.blocks, orders(lanes, epochs))
    shapes = shapes_of(plan, shape, total)
    run = naive_batches([[tokens[p] for p in lane] for lane in positions], shapes, **dealing(shape), look=look)
    assert len(run) == total
    batches = total * shape["grad_accum_steps"]
    start, num_workers = data.draw(st.integers(0, batches - 1)), data.draw(st.integers(1, 3))
    for rank in range(shape["world_size"]):
        rows, found = rows_for(ListStore(tokens), plan, lanes, rank, look=look), {}
        for worker in range(num_workers):
            for chunk in rows.chunks(start, batches, worker, num_workers, size):
                assert size is None or len(chunk.numbers) <= size
                assert chunk.starts is None and chunk.valid_next is None
                length, many, _ = shapes[numbers_of(chunk)[0] // shape["grad_accum_steps"]]
                assert (chunk.length, chunk.rows) == (length, many)
                for number, batch in zip(numbers_of(chunk), tokens_in(chunk), strict=True):
                    assert number not in found, "two workers made one batch"
                    found[number] = batch
        assert sorted(found) == list(range(start, batches))
        assert [found[number] for number in sorted(found)] == batches_of(run, rank)[start:]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_lanes", [1, 2, 3, 4, 6, 12])
def test_every_way_of_dealing_rows_to_lanes(num_lanes, world_size, shuffle):
    """All of them, as each way of reading serves few: whole turns of the lanes, parts of turns, single rows."""
    tokens, lanes = list(range(301)), open_lanes(301, num_lanes, shuffle=shuffle)
    positions = naive_lane_positions(301, num_lanes, lanes.blocks, orders(lanes, 12))
    for batch_size, grad_accum_steps in itertools.product((1, 2, 3, 4, 6), (1, 2)):
        shape = {"batch_size": batch_size, "grad_accum_steps": grad_accum_steps, "world_size": world_size}
        plan = SequenceLengthPlan(StagedSchedule([2, 4, 1], [3, 5]), **shape)
        run = naive_batches(positions, shapes_of(plan, shape, 8), **dealing(shape), look=1)
        assert len(run) == 8
        for rank, size in itertools.product(range(world_size), (2, None)):
            chunks = rows_for(ListStore(tokens), plan, lanes, rank, look=1).chunks(0, 8 * grad_accum_steps, 0, 1, size)
            assert [batch for chunk in chunks for batch in tokens_in(chunk)] == batches_of(run, rank), shape


@given(cuts(), st.integers(1, 2))
def test_the_run_ends_with_the_data_and_only_the_very_last_label_is_missing(cut, epochs):
    """What the lanes leave over is delivered too: less than a step remains, however many lanes there are."""
    tokens, endless, shape, lanes, _, _ = cut
    plan = SequenceLengthPlan(endless.schedule, **shape, total_tokens=epochs * len(tokens))
    if plan.total_steps == 0:
        return
    positions = naive_lane_positions(lanes.num_tokens, lanes.num_lanes, lanes.blocks, orders(lanes, epochs))
    lists = [[tokens[p] for p in lane] for lane in positions]
    run = naive_batches(lists, shapes_of(plan, shape, plan.total_steps + 1), **dealing(shape), look=1, rest=True)
    assert len(run) == plan.total_steps
    delivered = [token for step in run for micro in step for rank in micro for row in rank for token in row[:-1]]
    left = epochs * len(tokens) - len(delivered)
    assert 0 <= left < plan.tokens(plan.total_steps) and max(map(delivered.count, delivered[:20])) <= epochs
    for rank in range(shape["world_size"]):
        rows = rows_for(ListStore(tokens), plan, lanes, rank, epochs=epochs, look=1)
        for size in (None, 1, 2):
            chunks = rows.chunks(0, None, 0, 1, size)
            assert [batch for chunk in chunks for batch in tokens_in(chunk)] == batches_of(run, rank)


def test_the_missing_label_is_marked():
    """The property above with numbers: 2 lanes of 12 tokens in order, rows of 4, one epoch."""
    lanes = open_lanes(24, 2)
    assert (lanes.blocks, lanes.block_size) == (8, 1)
    plan = SequenceLengthPlan(ConstantSchedule(4), batch_size=2)
    rows = rows_for(ListStore(range(24)), plan, lanes, epochs=1, look=1)
    chunks = list(rows.chunks(0, 3, 0, 1, 1))
    assert [chunk.valid_next is None for chunk in chunks] == [True, True, False]
    assert tokens_in(chunks[0]) == [[[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]]
    # 8 blocks of one token each, then tails of 4 neighbours
    assert tokens_in(chunks[2]) == [[[16, 17, 18, 19, None], [20, 21, 22, 23, None]]]
    endless = rows_for(ListStore(range(24)), plan, lanes, look=1)
    assert tokens_in(next(endless.chunks(2, 3, 0, 1, 1))) == [[[16, 17, 18, 19, 0], [20, 21, 22, 23, 1]]]


def test_only_the_lanes_that_have_ended_miss_a_label():
    lanes = open_lanes(25, 2)  # lane 0 has a token more
    rows = rows_for(
        ListStore(range(25)), SequenceLengthPlan(ConstantSchedule(4), batch_size=2), lanes, epochs=1, look=1
    )
    [chunk] = rows.chunks(0, 3, 0, 1, None)
    assert tokens_in(chunk)[2] == [[16, 17, 18, 19, 20], [21, 22, 23, 24, None]]
    assert tokens_in(chunk)[1] == [[8, 10, 12, 14, 16], [9, 11, 13, 15, 21]]


def test_stream_order_over_two_ranks_by_hand():
    plan = SequenceLengthPlan(StagedSchedule([2, 3, 1], [1, 2]), batch_size=2, grad_accum_steps=2, world_size=2)
    rows = [rows_for(ListStore(range(100)), plan, open_lanes(100), rank) for rank in (0, 1)]
    found = [[batch for c in r.chunks(0, 6, 0, 1, None) for batch in tokens_in(c)] for r in rows]
    assert found[0] == [
        [[0, 1], [2, 3]],
        [[8, 9], [10, 11]],
        [[16, 17, 18], [19, 20, 21]],
        [[28, 29, 30], [31, 32, 33]],
        [[40], [41]],
        [[44], [45]],
    ]
    assert found[1] == [
        [[4, 5], [6, 7]],
        [[12, 13], [14, 15]],
        [[22, 23, 24], [25, 26, 27]],
        [[34, 35, 36], [37, 38, 39]],
        [[42], [43]],
        [[46], [47]],
    ]


def test_chunks_go_on_for_ever_without_a_stop():
    rows = rows_for(
        ListStore(range(10)), SequenceLengthPlan(ConstantSchedule(4), batch_size=1), open_lanes(10)
    )
    chunks = itertools.islice(rows.chunks(0, None, 0, 1, 1), 6)
    found = [batch for chunk in chunks for batch in tokens_in(chunk)]
    assert found == [[[(4 * i + k) % 10 for k in range(4)]] for i in range(6)]


@given(cuts())
def test_columns_are_cut_at_the_same_places_in_their_own_dtypes(cut):
    tokens, plan, shape, lanes, look, total = cut
    stores = {"input_ids": ListStore(tokens, "uint16"), "loss_mask": ListStore([t % 5 for t in tokens], "int8")}
    rows = rows_for(stores, plan, lanes, look=look)
    for chunk in rows.chunks(0, total * shape["grad_accum_steps"], 0, 1, None):
        dtypes = {name: str(array.dtype) for name, array in chunk.columns.items() if name != "next"}
        assert dtypes == {"input_ids": "uint16", "loss_mask": "int8"}
        assert (chunk.columns["loss_mask"] == chunk.columns["input_ids"] % 5).all()


# -- documents --------------------------------------------------------------------------------------------------------


def naive_starts(positions, lane_pieces, begins):
    """Where a row's tokens begin a document, and where they may: (row of positions) -> two lists."""
    must = [p in begins or (i > 0 and p != positions[i - 1] + 1) for i, p in enumerate(positions)]
    may = [m or p in lane_pieces for m, p in zip(must, positions, strict=True)]
    return must, may


@given(cuts(), st.booleans(), st.sampled_from([None, 1, 2, 5]), st.data())
def test_documents_begin_where_the_source_says_and_after_jumps_in_every_chunking(cut, by_offsets, size, data):
    """A row's first token begins a document anyway (the batch builder says so), so it is left out here."""
    _, plan, shape, lanes, look, total = cut
    n = lanes.num_tokens
    begins = {0, *data.draw(st.lists(st.integers(0, n - 1), max_size=n // 3))}
    eos = 9
    tokens = [eos if (p + 1) % n in begins else p % 8 for p in range(n)]
    store = ListStore(tokens, documents=[*sorted(begins), n] if by_offsets else None)
    epochs = passes(plan, lanes, total)
    numbered = naive_lane_positions(n, lanes.num_lanes, lanes.blocks, orders(lanes, epochs))
    run = naive_batches(numbered, shapes_of(plan, shape, total), **dealing(shape))
    pieces = {block * lanes.block_size for block in range(lanes.blocks * lanes.num_lanes + 1)}
    if lanes.blocks * lanes.num_lanes == 1:
        pieces = {0}
    for rank in range(shape["world_size"]):
        rows = rows_for(store, plan, lanes, rank, look=look, documents=True, eos_id=None if by_offsets else eos)
        expected = batches_of(run, rank)
        for chunk in rows.chunks(0, len(expected), 0, 1, size):
            for number, batch in zip(numbers_of(chunk), chunk.final(chunk.starts).tolist(), strict=True):
                for row, positions in zip(batch, expected[number], strict=True):
                    must, may = naive_starts(positions, pieces, begins)
                    assert all(s or not m for s, m in zip(row[1:], must[1:], strict=True)), (number, row, must)
                    assert all(m or not s for s, m in zip(row[1:], may[1:], strict=True)), (number, row, may)


def test_document_starts_do_not_depend_on_the_other_rows_of_a_chunk():
    """3 rows over 2 lanes: their offsets differ, so one row meets the end of its block where the others do not."""
    lanes = open_lanes(96, 2)
    assert (lanes.blocks, lanes.block_size) == (8, 6)
    plan = SequenceLengthPlan(ConstantSchedule(4), batch_size=3)
    store = ListStore(range(96), documents=[0, 96])
    rows = rows_for(store, plan, lanes, documents=True)
    for size in (1, 2, 4, None):
        for chunk in rows.chunks(0, 7, 0, 1, size):
            ids, starts = chunk.final(chunk.columns["input_ids"]), chunk.final(chunk.starts)
            jumps = np.diff(ids, axis=2) != 1
            assert (starts[:, :, 1:] == jumps).all(), f"size {size}, batches {chunk.numbers}"


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "dtype"), [(100, "uint16"), (65_535, "uint16"), (-1, "int32"), (-100, "int64")])
@pytest.mark.parametrize("size", [None, 1, 4])
def test_the_sound_batches_come_before_the_error_that_names_the_token(bad, dtype, size):
    tokens = [i % 100 for i in range(200)]
    tokens[77] = bad
    plan = SequenceLengthPlan(ConstantSchedule(4), batch_size=2, total_steps=25)
    rows = rows_for(ListStore(tokens, dtype), plan, open_lanes(200), vocab_size=100)
    found = []
    with pytest.raises(DataError) as caught:
        for chunk in rows.chunks(0, 25, 0, 1, size):
            found += [[t for row in batch for t in row] for batch in tokens_in(chunk)]
    assert found == [tokens[8 * i : 8 * i + 8] for i in range(9)], "batch 9 holds token 77"
    for fact in (str(bad), "vocab_size=100", "token 77 of a list"):
        assert fact in str(caught.value)


def test_a_negative_id_is_refused_without_a_vocabulary():
    rows = rows_for(
        ListStore([1, 2, -100, 4], "int16"),
        SequenceLengthPlan(ConstantSchedule(2), batch_size=1),
        open_lanes(4),
    )
    with pytest.raises(DataError, match=r"-100 at token 2 of a list"):
        list(rows.chunks(0, 2, 0, 1, None))


@given(st.integers(0, 599), st.integers(1, 6), st.booleans())
def test_the_position_of_a_bad_id_is_named_in_any_order_of_lanes(at, num_lanes, shuffle):
    tokens = [5] * 600
    tokens[at] = 50
    lanes = open_lanes(600, num_lanes, shuffle=shuffle, seed=1)
    plan = SequenceLengthPlan(ConstantSchedule(5), batch_size=num_lanes)
    rows = rows_for(ListStore(tokens), plan, lanes, vocab_size=50)
    with pytest.raises(DataError, match=rf"found 50 at token {at} of a list"):
        list(rows.chunks(0, 600, 0, 1, None))
