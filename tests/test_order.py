"""The order of a store as numbers: which positions the rows of any batch have, on any of up to 1,024 ranks. No token is read.

The oracle deals rows to lists of positions, one after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import naive_lane_positions, naive_rows
from test_plan_joint import joint

from slw_data import ConstantSchedule, SequenceLengthPlan, StagedSchedule
from slw_data.batch.chunk import place
from slw_data.order.lanes import Lanes, open_lanes
from slw_data.order.permutation import permute
from slw_data.order.store import StoreOrder


def lists_of(lanes, epochs):
    """The positions of each lane, over some epochs."""
    total = lanes.blocks * lanes.num_lanes
    orders = [list(range(total)) for _ in range(epochs)]
    if lanes.shuffle:
        orders = [permute(np.arange(total), total, (lanes.seed, epoch)).tolist() for epoch in range(epochs)]
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
def orders(draw):
    """``(order, steps as the oracle has them, whole passes)`` of a joint plan over lanes, with an end or without."""
    schedule, shape, steps = draw(joint(max_world=4))
    epochs = draw(st.sampled_from([None, 1, 2, 3]))
    tokens = draw(st.integers(60, 900))
    default = draw(st.booleans())
    if default:
        lanes = open_lanes(tokens, shuffle=True, seed=draw(st.integers(0, 9)))
    else:
        num_lanes = draw(st.integers(1, 12))
        blocks = draw(st.integers(1, min(5, tokens // num_lanes)))
        shuffle = draw(st.booleans())
        lanes = Lanes(tokens, num_lanes, shuffle, 3, 1 if num_lanes == 1 and not shuffle else blocks)
    end = {"total_steps": 12} if epochs is None else {"total_tokens": epochs * tokens}
    plan = SequenceLengthPlan(schedule, **shape, **end)
    return StoreOrder(lanes, plan, epochs), steps


@settings(max_examples=150)
@given(orders(), st.sampled_from([0, 1]), st.sampled_from([1, 2, 3, 100]), st.data())
def test_every_row_of_every_rank_lies_where_the_lists_say(run, look, most, data):
    order, steps = run
    plan, world = order.plan, order.plan.world_size
    total = min(plan.total_steps, len(steps))
    if total == 0:
        return
    longest = max(length for length, *_ in steps)
    shapes = [(length, rows * batches * world) for length, rows, batches, *_ in steps[:total]]
    tokens = sum(length * rows for length, rows in shapes)
    passes = order.epochs or tokens // order.lanes.num_tokens + longest * order.lanes.num_lanes // order.lanes.num_tokens + 3
    expected = naive_rows(lists_of(order.lanes, passes), shapes, look=look, rest=order.epochs is not None)
    assert len(expected) == total, "the oracle ends with the plan"
    reader, seen = order.reader(), []
    number = data.draw(st.integers(0, total - 1))  # from any step on
    while number < total:
        stage = plan.stage_at(number)
        stop = min(stage.stop or total, total)
        first = (number - stage.start) * stage.grad_accum_steps
        while first < (stop - stage.start) * stage.grad_accum_steps:
            last = min(first + most, (stop - stage.start) * stage.grad_accum_steps)
            limit = order.limit(stage, first)
            last = last if limit is None else min(last, limit)
            for rank in range(world):
                spans = order.spans(stage, range(first, last), rank, look, reader)
                for b, rows in enumerate(rows_of(spans, stage.rows, stage.length, last - first)):
                    step, micro = place(stage, first + b)
                    begin = (micro * world + rank) * stage.rows
                    wanted = expected[step][begin : begin + stage.rows]
                    assert [row[: stage.length] for row in rows] == [row[: stage.length] for row in wanted]
                    if look:
                        assert [row[-1] for row in rows] == [row[-1] for row in wanted]
                    seen += [position for row in rows for position in row[: stage.length]]
            first = last
        number = stop
    if order.epochs is not None and len(seen) == plan.total_tokens:
        counts = np.bincount(seen, minlength=order.lanes.num_tokens)
        assert counts.max() <= order.epochs and order.epochs * len(counts) - len(seen) < plan.tokens(plan.total_steps)


@pytest.mark.parametrize("num_lanes", [1, 16, 1024, 65_536])
@pytest.mark.parametrize("epochs", [1, 3])
def test_less_than_a_step_is_left_whatever_the_lanes(num_lanes, epochs):
    """All tokens of a store of 2^22 + 12,345, counted: each comes once an epoch but for fewer than a step."""
    size = (1 << 22) + 12_345
    growing = {"batch_size": StagedSchedule([16, 48], [300]), "total_tokens": epochs * size}
    plan = SequenceLengthPlan(StagedSchedule([8, 200, 96, 512], [100, 150, 400]), **growing)
    order = StoreOrder(open_lanes(size, num_lanes, shuffle=True, seed=5), plan, epochs)
    reader, counts, number = order.reader(), np.zeros(size + 1, np.int64), 0
    while number < plan.total_steps:
        stage = plan.stage_at(number)
        first, stop = number - stage.start, min(stage.stop or plan.total_steps, plan.total_steps)
        last = min(first + 64, stop - stage.start)
        limit = order.limit(stage, first)
        last = last if limit is None else min(last, limit)
        spans = order.spans(stage, range(first, last), 0, 0, reader)
        sizes = np.full(len(spans.starts), spans.width) if spans.sizes is None else spans.sizes
        np.add.at(counts, spans.starts, 1)
        np.add.at(counts, spans.starts + sizes, -1)
        number = stage.start + last
    delivered = np.cumsum(counts)[:-1]
    assert delivered.min() >= 0 and delivered.max() <= epochs and delivered.sum() == plan.total_tokens
    assert 0 <= epochs * size - delivered.sum() < plan.tokens(plan.total_steps)


@pytest.mark.parametrize("world", [1, 7, 64, 1024])
@pytest.mark.parametrize("lanes", [None, 3, 1024])
def test_ranks_share_the_rows_of_a_step_and_each_finds_its_own_alone(world, lanes):
    """A single run of all rows, cut by hand, on some of up to 1,024 ranks."""
    schedule = StagedSchedule([4, 16], [3])
    plan = SequenceLengthPlan(schedule, batch_size=2 if world == 1024 else 37, world_size=world, total_steps=6)
    one = SequenceLengthPlan(schedule, batch_size=plan.global_rows(0), total_steps=6)
    placed = open_lanes(3_000_000, lanes, shuffle=True, seed=1)
    whole, shared = StoreOrder(placed, one), StoreOrder(placed, plan)
    for step in range(6):
        stage = one.stage_at(step)
        spans = whole.spans(stage, range(step - stage.start, step - stage.start + 1), 0, 1, whole.reader())
        [rows] = rows_of(spans, stage.rows, stage.length, 1)
        own = plan.stage_at(step)
        for rank in {0, 1 % world, world // 2, world - 1}:
            spans = shared.spans(own, range(step - own.start, step - own.start + 1), rank, 1, shared.reader())
            [found] = rows_of(spans, own.rows, own.length, 1)
            assert found == rows[rank * own.rows : (rank + 1) * own.rows]


def test_readers_that_take_turns_find_what_each_would_alone():
    plan = SequenceLengthPlan(StagedSchedule([4, 8, 2], [40, 80]), batch_size=8, total_steps=120)
    order = StoreOrder(open_lanes(5_000, 8, shuffle=True), plan)

    def spans(reader, step):
        stage = plan.stage_at(step)
        return order.spans(stage, range(step - stage.start, step - stage.start + 1), 0, 1, reader)

    expected = [rows_of(spans(order.reader(), step), 8, plan.length(step), 1) for step in range(120)]
    one, other = order.reader(), order.reader()
    for step in range(120):
        for reader, at in ((one, step), (other, 119 - step)):
            assert rows_of(spans(reader, at), 8, plan.length(at), 1) == expected[at]


def test_the_default_order_is_the_same_for_every_plan_over_a_store():
    """So neither lengths nor rows that a later plan changes can move it."""
    assert open_lanes(10**7, shuffle=True) == open_lanes(10**7, None, shuffle=True, seed=0)
    plans = [SequenceLengthPlan(ConstantSchedule(n), batch_size=m) for n in (8, 1024) for m in (1, 512)]
    assert len({StoreOrder(open_lanes(10**7, shuffle=True), plan).fingerprint for plan in plans}) == 1
