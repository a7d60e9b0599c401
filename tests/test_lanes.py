"""Lanes: the permutation, whose token is whose, and the offset of any row, against lists."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import naive_lane_positions, naive_plan
from strategies import Table, runs

from slw_data.errors import DataError
from slw_data.order.lanes import LaneReader, Lanes, open_lanes
from slw_data.order.permutation import permute
from slw_data.order.store import StoreOrder
from slw_data.plan import SequenceLengthPlan
from slw_data.plan.schedules import ConstantSchedule, StagedSchedule

PLAN = SequenceLengthPlan(ConstantSchedule(1), batch_size=1)  # where none matters
SIZES = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 63, 64, 65, 100, 255, 256, 257, 1000, 4095, 4097, 65_537]


def order(size, seed=0, epoch=0):
    return permute(np.arange(size), size, (seed, epoch)).tolist()


def oracle(lanes, epochs):
    """Every lane's store positions. The order of blocks is the library's own permutation, tested by itself below."""
    total = lanes.blocks * lanes.num_lanes
    orders = [order(total, lanes.seed, e) if lanes.shuffle else list(range(total)) for e in range(epochs)]
    return naive_lane_positions(lanes.num_tokens, lanes.num_lanes, lanes.blocks, orders)


@st.composite
def some_lanes(draw, max_tokens=400, max_lanes=7):
    num_lanes = draw(st.integers(1, max_lanes))
    tokens = draw(st.integers(num_lanes, max_tokens))
    shuffle, seed = draw(st.booleans()), draw(st.integers(0, 2**63))
    blocks = draw(st.integers(1, min(12, tokens // num_lanes)))
    return draw(
        st.sampled_from(
            [
                Lanes(tokens, num_lanes, shuffle, seed, blocks),
                open_lanes(tokens, num_lanes, shuffle=shuffle, seed=seed),
                open_lanes(tokens, shuffle=shuffle, seed=seed),
            ]
        )
    )


def locate(lanes, which, where):
    return LaneReader(lanes, PLAN).locate(which, where)


# -- the permutation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_permute_is_a_permutation(size):
    for seed in range(3):
        assert sorted(order(size, seed)) == list(range(size))


@given(st.integers(1, 3000), st.integers(0, 2**64), st.integers(0, 2**31))
def test_permute_is_a_permutation_for_any_key(size, seed, epoch):
    assert sorted(order(size, seed, epoch)) == list(range(size))


def test_permute_depends_on_the_seed_and_on_the_epoch():
    some = {tuple(order(100, seed, epoch)) for seed in range(20) for epoch in range(20)}
    assert len(some) == 400
    assert tuple(range(100)) not in some


def test_permute_looks_random():
    """Each value comes to each place about equally often, and neighbours do not stay neighbours."""
    size, keys = 16, 2000
    counts = np.zeros((size, size))
    together = 0
    for seed in range(keys):
        found = order(size, seed)
        counts[np.arange(size), found] += 1
        together += sum(b - a == 1 for a, b in itertools.pairwise(found))
    chi_squared = ((counts - keys / size) ** 2 / (keys / size)).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_squared - freedom) < 6 * (2 * freedom) ** 0.5
    pairs = keys * (size - 1)
    assert together / pairs == pytest.approx(1 / size, rel=0.1)


def test_permute_of_some_values_is_part_of_the_permutation():
    whole = order(1000, 7, 3)
    some = np.array([999, 0, 500, 500, 1])
    kept = some.copy()
    assert permute(some, 1000, (7, 3)).tolist() == [whole[i] for i in some]
    assert (some == kept).all(), "the argument is left alone"
    assert permute(np.array([], np.int64), 1000, (7, 3)).tolist() == []


def test_permute_is_fixed_for_ever():
    """Goldens: another order would break every saved run of a shuffled store without a word."""
    assert order(16) == [14, 4, 3, 0, 8, 15, 12, 6, 5, 2, 10, 11, 7, 9, 1, 13]
    assert order(1000, 42, 3)[:8] == [558, 304, 676, 561, 450, 253, 721, 316]
    huge = 10**12
    found = permute(np.array([0, 1, 2, huge - 1]), huge, (123, 5)).tolist()
    assert found == [560055990480, 925573316972, 415226743924, 202358505470]


# -- whose token is whose ---------------------------------------------------------------------------------------------


@given(some_lanes(), st.integers(1, 3))
def test_locate_gives_every_lane_its_tokens_in_order(lanes, epochs):
    for lane, positions in enumerate(oracle(lanes, epochs)):
        offsets = np.arange(len(positions))
        found, room = locate(lanes, np.full(len(positions), lane), offsets)
        assert found.tolist() == positions
        for i, ahead in enumerate(room.tolist()):
            assert ahead >= 1
            run = positions[i : i + ahead]
            assert run == list(range(run[0], run[0] + len(run))), "nothing jumps within room"


@given(some_lanes(), st.data())
def test_locate_of_many_lanes_at_once_is_that_of_each(lanes, data):
    positions = oracle(lanes, 3)
    count = data.draw(st.integers(1, 12))
    which = [data.draw(st.integers(0, lanes.num_lanes - 1)) for _ in range(count)]
    where = [data.draw(st.integers(0, len(positions[lane]) - 1)) for lane in which]
    asked = np.array(which), np.array(where)
    kept = [a.copy() for a in asked]
    found, room = locate(lanes, *asked)
    assert found.tolist() == [positions[lane][i] for lane, i in zip(which, where, strict=True)]
    assert all((a == b).all() for a, b in zip(asked, kept, strict=True)), "the arguments are left alone"
    alone = [locate(lanes, np.array([lane]), np.array([i]))[1][0] for lane, i in zip(which, where, strict=True)]
    assert room.tolist() == alone


@given(some_lanes())
def test_the_lanes_cover_the_store_exactly_once_in_each_epoch(lanes):
    shares = lanes.epoch_tokens(np.arange(lanes.num_lanes)).tolist()
    assert sum(shares) == lanes.num_tokens and max(shares) - min(shares) <= 1
    for epoch in range(3):
        seen = []
        for lane, share in enumerate(shares):
            found, _ = locate(lanes, np.full(share, lane), epoch * share + np.arange(share))
            seen += found.tolist()
        assert sorted(seen) == list(range(lanes.num_tokens))


@given(st.integers(200, 5000), st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_of_a_shuffled_store_is_a_permutation_of_its_blocks(tokens, num_lanes, seed, epoch):
    lanes = open_lanes(tokens, num_lanes, shuffle=True, seed=seed)
    size, total = lanes.block_size, lanes.blocks * num_lanes
    dealt = []
    for block in range(lanes.blocks):
        for lane in range(num_lanes):
            share = int(lanes.epoch_tokens(np.array([lane]))[0])
            offsets = epoch * share + block * size + np.arange(size)
            found, _ = locate(lanes, np.full(size, lane), offsets)
            assert found[0] % size == 0 and (np.diff(found) == 1).all(), "a block stays whole"
            dealt.append(int(found[0]) // size)
    assert sorted(dealt) == list(range(total))
    assert dealt == order(total, seed, epoch)
    assert lanes.blocks >= 8 and tokens - total * size < num_lanes * lanes.blocks + num_lanes, "little is left over"


def test_each_epoch_is_another_order():
    lanes = open_lanes(10_000, 4, shuffle=True, seed=1)
    firsts = {tuple(p[e * 2500 : e * 2500 + 2500 : lanes.block_size]) for p in oracle(lanes, 4) for e in range(4)}
    assert len(firsts) == 16


def test_one_lane_without_shuffle_is_the_store_itself():
    lanes = open_lanes(10)
    position, room = locate(lanes, np.zeros(25, np.int64), np.arange(25))
    assert position.tolist() == [*range(10), *range(10), *range(5)]
    assert room.tolist() == [*range(10, 0, -1), *range(10, 0, -1), *range(10, 5, -1)]
    assert lanes.fingerprint == "in order"


def test_lanes_without_shuffle_keep_the_order_of_blocks():
    lanes = open_lanes(50, 2)  # 25 tokens a lane: 8 blocks of 3 and a tail of 1
    assert (lanes.blocks, lanes.block_size) == (8, 3)
    expected = [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    for lane in (0, 1):
        assert locate(lanes, np.full(6, lane), np.arange(6))[0].tolist() == expected[lane]
        assert locate(lanes, np.array([lane]), np.array([24]))[0].tolist() == [48 + lane]


def test_blocks_are_large_for_large_stores():
    lanes = open_lanes(10**9, 16, shuffle=True)
    assert lanes.blocks >= 8 and lanes.block_size >= 256 * 1024
    assert lanes.blocks * lanes.block_size * 16 <= 10**9


def test_fewer_tokens_than_lanes_are_refused():
    with pytest.raises(DataError, match=r"8 lanes.*7.*num_lanes"):
        open_lanes(7, 8)
    assert locate(open_lanes(8, 8), np.arange(8), np.zeros(8, np.int64))[0].tolist() == list(range(8))


def test_fingerprints_differ_with_whatever_fixes_the_order():
    base = {"num_lanes": 4, "shuffle": True, "seed": 3, "blocks": 8}
    changes = [{}, {"seed": 4}, {"num_lanes": 5}, {"shuffle": False}, {"blocks": 9}]
    marks = {Lanes(10**6, **{**base, **change}).fingerprint for change in changes}
    assert len(marks) == len(changes)
    assert "seed 3" in Lanes(10**6, **base).fingerprint and "num_lanes=4" in Lanes(10**6, **base).fingerprint


def test_a_reader_stays_small_however_far_it_reads():
    lanes = open_lanes(10**8, 1000, shuffle=True)
    reader, sizes = LaneReader(lanes, PLAN), []
    for start in range(0, 5_000_000, lanes.block_size):
        reader.locate(np.arange(1000), np.full(1000, start))
        sizes.append(len(pickle.dumps(vars(reader))))
    assert len(sizes) > 50 and max(sizes[20:]) <= 1.01 * max(sizes[:20]) < 100_000


def test_readers_share_nothing():
    """Two threads that read one order in two places see what each alone would."""
    lanes = open_lanes(100_000, 7, shuffle=True)
    first, second = LaneReader(lanes, PLAN), LaneReader(lanes, PLAN)
    which = np.arange(7)
    places = [(np.full(7, 100), np.full(7, 9_000)), (np.full(7, 20_000), np.full(7, 3))]
    mixed = [(first.locate(which, a)[0].tolist(), second.locate(which, b)[0].tolist()) for a, b in places]
    assert mixed == [tuple(locate(lanes, which, at)[0].tolist() for at in pair) for pair in places]


# -- how many by default ----------------------------------------------------------------------------------------------


@given(st.integers(1, 10**13))
def test_the_default_lanes_are_a_power_of_two_and_long(tokens):
    lanes = open_lanes(tokens, shuffle=True)
    assert lanes.num_lanes & (lanes.num_lanes - 1) == 0 and lanes.num_lanes <= 65_536
    assert lanes.num_lanes == 1 or lanes.num_lanes**2 * 16 <= tokens
    assert lanes.num_lanes == 65_536 or (2 * lanes.num_lanes) ** 2 * 16 > tokens - 8 * lanes.num_lanes * 16 - 64
    assert lanes.block_size >= min(lanes.share, 2**20) and lanes.share - lanes.blocks * lanes.block_size < lanes.blocks


def test_a_lane_of_a_huge_store_has_several_blocks_in_an_epoch():
    lanes = open_lanes(10**12, shuffle=True)
    assert (lanes.num_lanes, lanes.blocks) == (65_536, 14) and 1 << 20 <= lanes.block_size < 1 << 21


def test_the_default_lanes_depend_on_the_store_alone():
    assert [open_lanes(n, shuffle=True).num_lanes for n in (1, 16, 600, 100_000, 31_500_000, 10**10)] == [
        1, 1, 4, 64, 1024, 16_384,
    ]  # fmt: skip
    assert open_lanes(31_500_000).num_lanes == 1


def test_locate_is_exact_at_a_trillion_tokens():
    tokens, num_lanes = 10**12 + 7, 24
    lanes = open_lanes(tokens, num_lanes, shuffle=True, seed=5)
    size, blocks = lanes.block_size, lanes.blocks
    for lane in (0, 6, 7, 23):
        share = tokens // num_lanes + (lane < tokens % num_lanes)
        for epoch in (0, 1, 1000):
            for block in (0, 1, blocks // 2, blocks - 1):
                [start] = permute(np.array([block * num_lanes + lane]), blocks * num_lanes, (5, epoch)).tolist()
                for inside in (0, 1, size - 1):
                    position, room = locate(lanes, np.array([lane]), np.array([epoch * share + block * size + inside]))
                    assert (position.tolist(), room.tolist()) == ([start * size + inside], [size - inside])
            position, room = locate(lanes, np.array([lane]), np.array([(epoch + 1) * share - 1]))
            assert room.tolist() == [1] and blocks * num_lanes * size <= position[0] < tokens


# -- the offset of a row ----------------------------------------------------------------------------------------------


def naive_offsets(steps, shape, num_lanes):
    """(step, offset) of every row of the run in its lane, row by row."""
    taken, r, found = [0] * num_lanes, 0, []
    for step, (length, rows, _) in enumerate(steps):
        for _ in range(rows * shape["grad_accum_steps"] * shape["world_size"]):
            found.append((step, taken[r % num_lanes]))
            taken[r % num_lanes] += length
            r += 1
    return found, taken


@given(runs(max_steps=40), st.integers(1, 9), st.randoms(use_true_random=False))
def test_offsets_are_what_the_lane_has_delivered_before(run, num_lanes, random):
    schedule, shape, total = run
    expected, _ = naive_offsets(naive_plan(schedule, **shape, total_steps=total), shape, num_lanes)
    plan = SequenceLengthPlan(schedule, **shape)
    reader = LaneReader(open_lanes(10**6, num_lanes), plan)
    jumps = [random.randrange(total) for _ in range(10)]
    for step in [*range(total), *jumps]:  # in order, as a run goes, and from anywhere, as a resume does
        rows = [r for r, (s, _) in enumerate(expected) if s == step]
        random.shuffle(rows)
        found = reader.offsets(plan.stage_at(step), np.array(rows, np.int64))
        assert found.tolist() == [expected[r][1] for r in rows]


@given(runs(max_steps=30), st.integers(2, 9), st.integers(1, 3), st.integers(9, 1500))
def test_the_rest_begins_at_the_first_step_that_some_lane_cannot_fill(run, num_lanes, epochs, tokens):
    schedule, shape, _ = run
    plan = SequenceLengthPlan(schedule, **shape, total_tokens=epochs * tokens)
    rest = StoreOrder(open_lanes(tokens, num_lanes), plan, epochs).rest
    shares = [epochs * (tokens // num_lanes + (lane < tokens % num_lanes)) for lane in range(num_lanes)]
    before = [0] * num_lanes
    for steps in range(1, plan.total_steps + 1):
        _, taken = naive_offsets(naive_plan(schedule, **shape, total_steps=steps), shape, num_lanes)
        if any(t > share for t, share in zip(taken, shares, strict=True)):
            break
        before = taken
    else:
        steps = plan.total_steps + 1
    assert rest.step == steps - 1 and rest.delivered.tolist() == before
    assert np.diff(rest.bounds).tolist() == [share - t for share, t in zip(shares, before, strict=True)]


def test_lanes_that_end_together_leave_no_rest():
    plan = SequenceLengthPlan(ConstantSchedule(5), batch_size=2, total_tokens=40)
    rest = StoreOrder(open_lanes(40, 2), plan, 1).rest
    assert (rest.step, rest.bounds.tolist()) == (4, [0, 0, 0]) and plan.total_steps == 4


@pytest.mark.parametrize("schedule", [StagedSchedule([8, 1024, 64], [1000, 10**9]), Table((8, 16, 8), hold=7)])
def test_offsets_are_exact_far_out(schedule):
    plan, lanes = SequenceLengthPlan(schedule, batch_size=5, world_size=3), open_lanes(10**12, 7)
    step = 10**10 if isinstance(schedule, StagedSchedule) else 10**4
    stage, first = plan.stage_at(step), plan.rows_before(step)
    rows = np.arange(first, first + 15)
    found = LaneReader(lanes, plan).offsets(stage, rows).tolist()
    for row, offset in zip(rows.tolist(), found, strict=True):  # the lane's rows below, stage by stage
        below = sum(
            s_length * (count_below(min(r_stop, row), row % 7, 7) - count_below(r_start, row % 7, 7))
            for r_start, r_stop, s_length in stages_in_rows(plan, step)
        )
        assert offset == below


def count_below(row, lane, num_lanes):
    return row // num_lanes + (lane < row % num_lanes)


def stages_in_rows(plan, step):
    starts, lengths = plan.history(step)
    return list(zip(starts, [*starts[1:], 10**30], lengths, strict=True))
