"""The order of a store as numbers: which positions the rows of any batch have, on any of up to 1,024 ranks. No token is read.

The oracle deals rows to lists of positions, one after the other."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import naive_lane_positions, naive_permutation, naive_rows
from test_plan_joint import joint

from slw_data import ConstantSchedule, SequenceLengthPlan, StagedSchedule
from slw_data.order.lanes import Lanes, open_lanes
from slw_data.order.permutation import permute
from slw_data.order.store import StoreOrder


def lists_of(lanes, epochs):
    """The positions of each lane, over some epochs."""
    total = lanes.blocks * lanes.num_lanes
    orders = [list(range(total)) for _ in range(epochs)]
    if lanes.shuffle:
        orders = [naive_permutation(total, lanes.seed, epoch) for epoch in range(epochs)]
    return naive_lane_positions(lanes.num_tokens, lanes.num_lanes, lanes.blocks, orders)


def rows_of(spans, rows, length, batches):
    """The positions in each row of each batch, and the looked-at ones after each run: None where there is no token."""
    runs = [[] for _ in range(spans.runs)]
    whole = spans.sizes is None
    for i, start in enumerate(spans.starts.tolist()):
        size = spans.width if whole else int(spans.sizes[i])
        runs[i if whole else int(spans.run[i])] += range(start, start + size)
    assert all(len(run) <= spans.width for run in runs)
    runs = [[*run, *[None] * (spans.width - len(run))] for run in runs]
    each = batches * rows // spans.runs  # rows in a run
    cut = [[run[k * length : (k + 1) * length + spans.look] for k in range(each)] for run in runs]
    if not spans.by_lane:
        flat = [row for run in cut for row in run]
    else:  # run i has the i-th row of each cycle of runs
        flat = [cut[k % spans.runs][k // spans.runs] for k in range(batches * rows)]
    return [flat[b * rows : (b + 1) * rows] for b in range(batches)]


@st.composite
def some_lanes(draw, tokens, most):
    """By default, as the user chooses, and with any blocks."""
    num_lanes, seed = draw(st.integers(1, min(most, tokens))), draw(st.integers(0, 9))
    shuffle, kind = draw(st.booleans()), draw(st.sampled_from(["default", "chosen", "blocks"]))
    if kind == "default":
        return open_lanes(tokens, shuffle=shuffle, seed=seed)
    if kind == "chosen" or (num_lanes == 1 and not shuffle):
        return open_lanes(tokens, num_lanes, shuffle=shuffle, seed=seed)
    return Lanes(tokens, num_lanes, shuffle, seed, draw(st.integers(1, min(5, tokens // num_lanes))))


def passes_of(shapes, lanes):
    """As many as no lane runs dry in."""
    taken, row = [0] * lanes.num_lanes, 0
    for length, rows in shapes:
        for _ in range(rows):
            taken[row % lanes.num_lanes] += length
            row += 1
    return max(taken) // (lanes.num_tokens // lanes.num_lanes) + 2


def run_of(schedule, shape, steps, lanes, epochs, look):
    """The order, and the positions in each row of each step: of 12 steps, or up to the data's end."""
    end = {"total_steps": 12} if epochs is None else {"total_tokens": epochs * lanes.num_tokens}
    order = StoreOrder(lanes, SequenceLengthPlan(schedule, **shape, **end), epochs)
    shapes = [(length, rows * batches * shape["world_size"]) for length, rows, batches, *_ in steps]
    shapes = shapes[:12] if epochs is None else shapes
    positions = lists_of(lanes, epochs or passes_of(shapes, lanes))
    expected = naive_rows(positions, shapes, look=look, rest=epochs is not None)
    assert min(order.plan.total_steps, len(shapes)) == len(expected), "the oracle ends with the plan"
    return order, expected


def chunks_from(order, step, batch, total, most):
    """``(stage, batches)`` from a micro-batch of a step on, up to step ``total``: ``most`` at once."""
    while step < total:
        stage = order.plan.stage_at(step)
        each = stage.grad_accum_steps
        first, stop = (step - stage.start) * each + batch, (min(stage.stop or total, total) - stage.start) * each
        while first < stop:
            limit = order.limit(stage, first)
            last = min(first + most, stop, stop if limit is None else limit)
            yield stage, range(first, last)
            first = last
        step, batch = min(stage.stop or total, total), 0


def assert_batches(order, expected, stage, batches, rank, look, reader):
    """They have the rows that the lists say; returns all positions but the looked-at ones."""
    world, seen = order.plan.world_size, []
    spans = order.spans(stage, batches, rank, look, reader)
    for batch, rows in zip(batches, rows_of(spans, stage.rows, stage.length, len(batches)), strict=True):
        step, micro = divmod(batch, stage.grad_accum_steps)
        begin = (micro * world + rank) * stage.rows
        assert rows == expected[stage.start + step][begin : begin + stage.rows]
        seen += [position for row in rows for position in row[: stage.length]]
    return seen


@settings(max_examples=200)
@given(joint(max_world=4), st.integers(64, 900), st.sampled_from([None, 1, 2, 3]), st.sampled_from([0, 1]), st.data())
def test_every_row_of_every_rank_lies_where_the_lists_say(run, tokens, epochs, look, data):
    """From any micro-batch on, some at once, whether one reader walks on or others read elsewhere meanwhile."""
    order, expected = run_of(*run, data.draw(some_lanes(tokens, 64)), epochs, look)
    if not expected:
        return
    plan, total = order.plan, len(expected)
    step = data.draw(st.integers(0, total - 1))
    batch = data.draw(st.integers(0, plan.micro_batches(step) - 1))
    walker, wanderer, seen = order.reader(), order.reader(), Counter()
    for stage, batches in chunks_from(order, step, batch, total, data.draw(st.sampled_from([1, 2, 3, 100]))):
        for rank in range(plan.world_size):
            seen.update(assert_batches(order, expected, stage, batches, rank, look, walker))
        elsewhere, fresh = data.draw(st.integers(0, total - 1)), data.draw(st.booleans())
        there, some = next(chunks_from(order, elsewhere, 0, total, 2))
        reader = order.reader() if fresh else wanderer
        assert_batches(order, expected, there, some, data.draw(st.integers(0, plan.world_size - 1)), look, reader)
    assert epochs is None or max(seen.values()) <= epochs


@settings(max_examples=30)
@given(
    st.integers(5, 1024), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from([None, 1, 2]), st.sampled_from([0, 1]), st.data(),
)  # fmt: skip
def test_some_of_up_to_1024_ranks_have_their_own_rows(world, lengths, rows, batches, epochs, look, data):
    bounds = list(range(1, len(lengths)))
    sizes, accumulation = StagedSchedule([rows, 2], [2]), StagedSchedule([batches, 1], [3])
    shape = {"batch_size": sizes, "grad_accum_steps": accumulation, "world_size": world}
    steps = [
        (lengths[min(step, len(bounds))], rows if step < 2 else 2, batches if step < 3 else 1) for step in range(12)
    ]  # fmt: skip
    lanes = data.draw(some_lanes(data.draw(st.integers(2_000, 40_000)), 64) | some_lanes(20_000, 2_000))
    order, expected = run_of(StagedSchedule(lengths, bounds), shape, steps, lanes, epochs, look)
    ranks = {0, world - 1, *data.draw(st.lists(st.integers(0, world - 1), min_size=2, max_size=4))}
    readers = {rank: order.reader() for rank in ranks}
    for stage, some in chunks_from(order, 0, 0, len(expected), data.draw(st.sampled_from([1, 4]))):
        for rank in ranks:
            assert_batches(order, expected, stage, some, rank, look, readers[rank])


def lane_table(lanes, epochs):
    """The positions of each lane as a row of an array, and how many it has; arithmetic for what lists would take long for."""
    many, size = lanes.num_lanes, lanes.num_tokens // lanes.num_lanes // lanes.blocks
    share, longer = divmod(lanes.num_tokens, many)
    which, parts = np.arange(many), []
    left = share - lanes.blocks * size
    tail = many * lanes.blocks * size + which * left + np.minimum(which, longer)
    for epoch in range(epochs):
        blocks = permute(np.arange(many * lanes.blocks), many * lanes.blocks, (lanes.seed, epoch)).reshape(lanes.blocks, many)
        whole = (blocks.T[:, :, None] * size + np.arange(size)).reshape(many, -1)
        parts.append(np.concatenate([whole, tail[:, None] + np.arange(left + 1)], axis=1))
    table = np.full((many, epochs * (share + 1)), -1, np.int32)
    table[:longer] = np.concatenate([part[:longer] for part in parts], axis=1)
    table[longer:, : epochs * share] = np.concatenate([part[longer:, :share] for part in parts], axis=1)
    return table, epochs * (share + (which < longer))


def rows_of_table(table, ends, shapes):
    """The positions of each step, rows in their order; ends with the data."""
    taken, row, rest, at = np.zeros(len(ends), np.int64), 0, None, 0
    for length, rows in shapes:
        lanes = (row + np.arange(rows)) % len(ends)
        row += rows
        if rest is None and (taken + np.bincount(lanes, minlength=len(ends)) * length > ends).any():
            rest = np.concatenate([table[lane, taken[lane] : ends[lane]] for lane in range(len(ends))])
        if rest is not None:
            if at + rows * length > len(rest):
                return
            yield rest[at : at + rows * length]
            at += rows * length
            continue
        found = []
        for turn in range(0, rows, len(ends)):
            some = lanes[turn : turn + len(ends)]
            found.append(table[some[:, None], taken[some][:, None] + np.arange(length)].ravel())
            taken[some] += length
        yield np.concatenate(found)


def laid_out(spans, length):
    """The positions of one batch, whose runs are full."""
    sizes = np.full(len(spans.starts), spans.width) if spans.sizes is None else spans.sizes
    flat = np.repeat(spans.starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    if not spans.by_lane:
        return flat
    return flat.reshape(spans.runs, -1, length).transpose(1, 0, 2).ravel()


@pytest.mark.parametrize("num_lanes, lengths, batch", [
    (1, [8, 200, 96, 512], [64, 48]), (16, [8, 200, 96, 512], [16, 48]), (1024, [8, 200, 96, 512], [16, 48]),
    (65_536, [8, 16, 5, 11], [2_048, 12_288]),
])  # fmt: skip
@pytest.mark.parametrize("epochs, world", [(1, 1), (3, 2)])
def test_less_than_a_step_is_left_whatever_the_lanes(num_lanes, lengths, batch, epochs, world):
    """All tokens of a store of 2^22 + 12,345: each comes where arithmetic says, once an epoch but for fewer than a step."""
    size = (1 << 22) + 12_345
    growing = {"batch_size": StagedSchedule(batch, [30]), "world_size": world, "total_tokens": epochs * size}
    plan = SequenceLengthPlan(StagedSchedule(lengths, [10, 25, 40]), **growing)
    lanes = open_lanes(size, num_lanes, shuffle=True, seed=5)
    order = StoreOrder(lanes, plan, epochs)
    shapes = [
        (lengths[sum(bound <= step for bound in (10, 25, 40))], batch[step >= 30] * world) for step in range(5_000)
    ]  # fmt: skip
    counts, readers, done = np.zeros(size, np.int64), [order.reader() for _ in range(world)], 0
    for step, expected in enumerate(rows_of_table(*lane_table(lanes, epochs), shapes)):
        length, rows = shapes[step]
        stage, found = plan.stage_at(step), []
        assert (stage.length, stage.rows * world) == (length, rows)
        for rank, reader in enumerate(readers):
            spans = order.spans(stage, range(step - stage.start, step - stage.start + 1), rank, 0, reader)
            found.append(laid_out(spans, length))
        assert (np.concatenate(found) == expected).all()
        np.add.at(counts, expected, 1)
        done = step + 1
    assert done == plan.total_steps and counts.max() <= epochs
    length, rows = shapes[done]
    assert 0 <= epochs * size - counts.sum() < length * rows


def test_the_default_order_is_the_same_for_every_plan_over_a_store():
    """So neither lengths nor rows that a later plan changes can move it."""
    assert open_lanes(10**7, shuffle=True) == open_lanes(10**7, None, shuffle=True, seed=0)
    plans = [SequenceLengthPlan(ConstantSchedule(n), batch_size=m) for n in (8, 1024) for m in (1, 512)]
    assert len({StoreOrder(open_lanes(10**7, shuffle=True), plan).fingerprint for plan in plans}) == 1
