"""Plans: every look-up against the naive loop, exactness far out, refusals, and the named cases."""

import copy
import itertools
import pickle
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import naive_lengths, naive_plan
from strategies import KINDS, Table, batch_shapes, cyclic, runs, values, warmups

from slw_data.plan import SequenceLengthPlan, Stage
from slw_data.plan.schedules import (
    ConstantSchedule,
    CyclicSchedule,
    DoublingSchedule,
    LinearSchedule,
    StagedSchedule,
)


def global_rows(shape, rows):
    return rows * shape["grad_accum_steps"] * shape["world_size"]


# -- the naive loop ---------------------------------------------------------------------------------------------------


@given(runs())
def test_every_look_up_is_the_naive_loop(run):
    schedule, shape, total = run
    plan = SequenceLengthPlan(schedule, **shape, total_steps=total)
    rows_before = 0
    for step, (length, rows, before) in enumerate(naive_plan(schedule, **shape, total_steps=total)):
        many = global_rows(shape, rows)
        assert (plan.length(step), plan.rows(step), plan.global_rows(step)) == (length, rows, many)
        assert plan.tokens(step) == many * length
        assert (plan.tokens_before(step), plan.rows_before(step)) == (before, rows_before)
        rows_before += many
    assert plan.total_steps == total
    assert plan.total_tokens == before + many * length == plan.tokens_before(total)
    assert plan.rows_before(total) == rows_before


@given(runs(max_steps=25, max_length=12), st.randoms(use_true_random=False))
def test_step_at_is_the_step_that_delivers_the_token(run, random):
    schedule, shape, total = run
    plan = SequenceLengthPlan(schedule, **shape, total_steps=total)
    delivered_by = []
    for step, (length, rows, before) in enumerate(naive_plan(schedule, **shape, total_steps=total)):
        assert len(delivered_by) == before
        delivered_by += [step] * (global_rows(shape, rows) * length)
    order = list(range(len(delivered_by)))
    random.shuffle(order)  # a callable is read as it is asked, in whatever order
    fresh = SequenceLengthPlan(schedule, **shape)
    assert [fresh.step_at(token) for token in order] == [delivered_by[token] for token in order]
    for step in range(total):
        assert plan.step_at(plan.tokens_before(step)) == step


@given(runs(), st.randoms(use_true_random=False))
def test_the_order_of_questions_does_not_matter(run, random):
    schedule, shape, total = run
    expected, rows_before = naive_plan(schedule, **shape, total_steps=total), [0]
    for _, rows, _ in expected:
        rows_before.append(rows_before[-1] + global_rows(shape, rows))
    plan, order = SequenceLengthPlan(schedule, **shape), list(range(total))
    random.shuffle(order)
    for step in order:
        ask = random.choice(["length", "rows", "tokens_before", "rows_before"])
        answers = dict(zip(("length", "rows", "tokens_before"), expected[step], strict=True))
        answers["rows_before"] = rows_before[step]
        assert getattr(plan, ask)(step) == answers[ask]


@given(runs())
def test_stages_tile_the_run(run):
    schedule, shape, total = run
    plan = SequenceLengthPlan(schedule, **shape, total_steps=total)
    expected = naive_plan(schedule, **shape, total_steps=total)
    stages = plan.stages
    assert [s.start for s in stages] == [0, *(s.stop for s in stages[:-1])] and stages[-1].stop == total
    assert all(s.start < s.stop for s in stages)
    assert all(a.length != b.length for a, b in itertools.pairwise(stages)), "neighbours of one length are one stage"
    for stage in stages:
        assert stage.tokens_before == expected[stage.start][2]
        assert {e[:2] for e in expected[stage.start : stage.stop]} == {(stage.length, stage.rows)}
    assert plan.lengths == tuple(sorted({length for length, _, _ in expected}))
    most = max(rows * length for length, rows, _ in expected)
    length = max(length for length, rows, _ in expected if rows * length == most)
    assert plan.largest_batch() == (most // length, length)


@given(runs(), st.integers(1, 20_000))
def test_a_run_of_tokens_has_the_whole_steps_that_fit(run, total_tokens):
    schedule, shape, _ = run
    plan = SequenceLengthPlan(schedule, **shape, total_tokens=total_tokens)
    steps = tokens = 0
    while True:
        [*_, (length, rows, before)] = naive_plan(schedule, **shape, total_steps=steps + 1)
        if before + global_rows(shape, rows) * length > total_tokens or steps > 60:
            break
        steps, tokens = steps + 1, before + global_rows(shape, rows) * length
    if steps <= 60:
        assert (plan.total_steps, plan.total_tokens) == (steps, tokens)
        assert [s.stop for s in plan.stages][-1:] == [steps][: len(plan.stages)]


@given(warmups(("warmup_tokens",)), st.data())
def test_a_warmup_of_tokens_follows_the_tokens_before_each_step(schedule, data):
    """Token by token: the length is the curve at the tokens that have been delivered."""
    shape = data.draw(batch_shapes(schedule))
    by_token = type(schedule)(**{**vars(schedule), "warmup_steps": schedule.warmup_tokens, "warmup_tokens": None})
    expected = naive_plan(by_token, **shape, total_steps=60, by_tokens=True)
    plan = SequenceLengthPlan(schedule, **shape, total_steps=60)
    assert [(plan.length(s), plan.rows(s), plan.tokens_before(s)) for s in range(60)] == expected
    stages = plan.stages
    assert [s.start for s in stages] == [0, *(s.stop for s in stages[:-1])] and stages[-1].stop == 60
    assert all(s.start < s.stop for s in stages) and all(a.length != b.length for a, b in itertools.pairwise(stages))


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 5), st.integers(0, 12), st.integers(0, 5000), st.integers(1, 4))
def test_a_warmup_of_tokens_is_the_formula_at_these_tokens(kind, low, climbs, duration, batch_size):
    low, high = 4 * low, 4 * (low + climbs)
    plan = SequenceLengthPlan(KINDS[kind](low, high, warmup_tokens=duration, multiple_of=4), batch_size=batch_size)
    before = 0
    for step in range(50):
        assert plan.length(step) in naive_lengths(kind, low, high, before, duration, 4)
        before += batch_size * plan.length(step)


@given(cyclic(("warmup_tokens",)), st.data())
def test_a_cycle_of_tokens_follows_the_tokens(schedule, data):
    shape = data.draw(batch_shapes(schedule))
    duration, inner = schedule.schedule.warmup_tokens, vars(schedule.schedule)
    by_token = type(schedule.schedule)(**{**inner, "warmup_steps": duration, "warmup_tokens": None})

    def length(tokens):
        return by_token(tokens % duration) if tokens < schedule.num_cycles * duration else schedule.max_length

    expected = naive_plan(length, **shape, total_steps=60, by_tokens=True)
    plan = SequenceLengthPlan(schedule, **shape, total_steps=60)
    assert [(plan.length(s), plan.rows(s), plan.tokens_before(s)) for s in range(60)] == expected


@given(warmups(("warmup_fraction",)), st.data(), st.integers(1, 80))
def test_a_fraction_of_steps_is_that_many_steps(schedule, data, total):
    shape = data.draw(batch_shapes(schedule))
    warmup = round(schedule.warmup_fraction * total)
    same = type(schedule)(**{**vars(schedule), "warmup_fraction": None, "warmup_steps": warmup})
    plan = SequenceLengthPlan(schedule, **shape, total_steps=total)
    assert [(plan.length(s), plan.rows(s), plan.tokens_before(s)) for s in range(total)] == naive_plan(
        same, **shape, total_steps=total
    )


@given(warmups(("warmup_fraction",)), st.data(), st.integers(200, 4000))
def test_a_fraction_of_a_run_of_tokens_is_one_of_its_steps(schedule, data, total):
    """The least number of steps is taken that is not exceeded by a run whose warmup is the fraction of it."""
    shape = data.draw(batch_shapes(schedule))

    def warmed_up(steps):
        warmup = round(schedule.warmup_fraction * steps)
        return type(schedule)(**{**vars(schedule), "warmup_fraction": None, "warmup_steps": warmup})

    def in_all(steps):
        """The whole steps of a run of ``total`` tokens whose warmup is the fraction of ``steps``."""
        table = naive_plan(warmed_up(steps), **shape, total_steps=total + 2)
        return sum(before <= total for _, _, before in table) - 1

    steps = next(steps for steps in itertools.count() if steps >= in_all(steps))
    plan = SequenceLengthPlan(schedule, **shape, total_tokens=total)
    expected = naive_plan(warmed_up(steps), **shape, total_steps=40)
    assert [(plan.length(s), plan.rows(s), plan.tokens_before(s)) for s in range(40)] == expected
    assert plan.total_steps == in_all(steps) and steps - plan.total_steps in (0, 1)


# -- what the parts above are built on --------------------------------------------------------------------------------


@given(runs(), st.integers(1, 70))
def test_stage_at_holds_the_step_and_history_is_what_came_before(run, ahead):
    schedule, shape, total = run
    expected = naive_plan(schedule, **shape, total_steps=total)
    first_row, starts, rows_before, lengths = 0, [], [], []
    plan = SequenceLengthPlan(schedule, **shape)
    for step, (length, rows, _) in enumerate(expected):
        if step == 0 or length != expected[step - 1][0]:
            starts.append(step)
            rows_before.append(first_row)
            lengths.append(length)
        first_row += global_rows(shape, rows)
        stage = plan.stage_at(step, ahead)
        assert (stage.start, stage.length, stage.rows) == (starts[-1], length, rows)
        assert stage.tokens_before == expected[stage.start][2]
        assert stage.stop is None or stage.stop > step
        assert all(e[0] == length for e in expected[step : stage.stop])
        assert plan.history(step) == (rows_before, lengths)
    if plan._layout.known_to(0) is None and stage.stop is not None and stage.stop < total:
        assert expected[stage.stop][0] != length


def test_a_callable_is_read_no_further_than_asked():
    asked = []

    def schedule(step):
        asked.append(step)
        return 8

    plan = SequenceLengthPlan(schedule, batch_size=2)
    asked.clear()
    assert plan.stage_at(5, ahead=4) == Stage(0, 9, 8, 2, 1, 0, 0)
    assert max(asked) == 8
    plan.length(9)
    assert max(asked) == 9
    assert plan.stage_at(5, ahead=4).stop == 10
    assert len(asked) == 9, "and each step once"


@given(runs(), st.integers(0, 5000))
def test_ending_at_keeps_the_stages_and_moves_the_end(run, tokens):
    schedule, shape, total = run
    plan = SequenceLengthPlan(schedule, **shape, total_steps=total)
    ended = plan.ending_at(tokens)
    assert ended.total_steps == SequenceLengthPlan(schedule, **shape).step_at(tokens)
    assert [ended.length(s) for s in range(total)] == [plan.length(s) for s in range(total)]
    assert f"total_tokens={tokens})" in repr(ended) and "total_steps" not in repr(ended)
    assert plan.total_steps == total, "the plan itself is as before"


def test_ending_at_does_not_stretch_a_warmup_of_a_fraction():
    plan = SequenceLengthPlan(LinearSchedule(8, 64, warmup_fraction=0.5), batch_size=2, total_steps=100)
    ended = plan.ending_at(plan.tokens_before(20))
    assert ended.total_steps == 20 and ended.total_tokens == plan.tokens_before(20)
    assert [ended.length(s) for s in range(120)] == [plan.length(s) for s in range(120)]


@given(runs())
def test_of_one_rank_counts_one_rank(run):
    schedule, shape, total = run
    plan = SequenceLengthPlan(schedule, **shape, total_steps=total)
    plan.length(total // 2)  # a callable may have been read in part
    one = plan.of_one_rank()
    expected = naive_plan(schedule, **{**shape, "world_size": 1}, total_steps=total)
    assert [(one.length(s), one.rows(s), one.tokens_before(s)) for s in range(total)] == expected
    assert one.total_steps == total and one.world_size == 1
    for step, (_, _, before) in enumerate(naive_plan(schedule, **shape, total_steps=total)):
        assert one.rows_before(step) * shape["world_size"] == plan.rows_before(step)
        assert plan.tokens_before(step) == before, "the plan itself is as before"


def test_of_one_rank_has_as_many_steps_when_the_run_is_given_in_tokens():
    plan = SequenceLengthPlan(ConstantSchedule(8), batch_size=2, world_size=2, total_tokens=100)
    assert plan.total_steps == 3
    assert plan.of_one_rank().total_steps == 3
    assert plan.of_one_rank().total_tokens == 48


# -- fingerprints -----------------------------------------------------------------------------------------------------

STEPS = 50


def shapes_of(schedule, shape):
    return [(length, global_rows(shape, rows)) for length, rows, _ in naive_plan(schedule, **shape, total_steps=STEPS)]


@given(st.data())
def test_fingerprints_are_equal_exactly_where_every_step_has_one_shape(data):
    some = values(max_length=6)
    first, second = data.draw(some), data.draw(some)
    a, b = (data.draw(batch_shapes(s, max_rows=2, max_accum=2, max_world=2)) for s in (first, second))
    marks = [SequenceLengthPlan(s, **shape).fingerprint for s, shape in ((first, a), (second, b))]
    same = shapes_of(first, a) == shapes_of(second, b)
    assert (marks[0] == marks[1]) == same  # all of them have settled by step 48


@given(tables=st.tuples(*[st.builds(Table, st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple))] * 2))
def test_fingerprints_of_callables_are_equal_exactly_where_every_step_has_one_shape(tables):
    a, b = (SequenceLengthPlan(table, batch_size=2).fingerprint for table in tables)
    assert (a == b) == all(tables[0](s) == tables[1](s) for s in range(100))


def test_a_fingerprint_leaves_out_how_rows_are_dealt_and_how_long_the_run_is():
    schedule = LinearSchedule(8, 64, warmup_steps=100)
    marks = {
        SequenceLengthPlan(schedule, batch_size=rows, grad_accum_steps=accum, world_size=world, **end).fingerprint
        for rows, accum, world in [(24, 1, 1), (12, 2, 1), (12, 1, 2), (4, 3, 2), (1, 4, 6), (1, 1, 24)]
        for end in [{}, {"total_steps": 3}, {"total_steps": 10**9}, {"total_tokens": 10**6}]
    }
    assert len(marks) == 1


@pytest.mark.parametrize("ends", [({"total_steps": 100}, {"total_steps": 200}), ({}, {"total_steps": 50})], ids=str)
def test_the_fingerprint_of_a_callable_leaves_out_how_long_the_run_is(ends):
    a, b = (SequenceLengthPlan(Table((4, 5)), batch_size=2, **end) for end in ends)
    assert a.fingerprint == b.fingerprint


def test_a_fingerprint_differs_for_another_schedule_or_batch():
    base = {"schedule": LinearSchedule(8, 64, warmup_steps=100), "batch_size": 4}
    others = [
        {"batch_size": 5},
        {"grad_accum_steps": 2},
        {"world_size": 3},
        {"batch_size": None, "tokens_per_batch": 256},
        {"schedule": LinearSchedule(8, 64, warmup_steps=101)},
        {"schedule": LinearSchedule(16, 64, warmup_steps=100)},
        {"schedule": LinearSchedule(8, 72, warmup_steps=100)},
        {"schedule": LinearSchedule(8, 64, warmup_tokens=100)},
        {"schedule": DoublingSchedule(8, 64, warmup_steps=100)},
        {"schedule": ConstantSchedule(8)},
        {"schedule": CyclicSchedule(LinearSchedule(8, 64, warmup_steps=100), 2)},
        {"schedule": Table((8, 16))},
    ]
    marks = [SequenceLengthPlan(**{**base, **change}).fingerprint for change in [{}, *others]]
    assert len(set(marks)) == len(marks)
    assert all(isinstance(mark, str) and len(mark) < 80 for mark in marks)


def test_a_fingerprint_is_the_same_in_every_release():
    """A golden, so that no saved state is refused after an upgrade without anybody noticing."""
    plan = SequenceLengthPlan(StagedSchedule([8, 16, 24], [3, 6]), batch_size=4, world_size=2)
    assert plan.fingerprint == "8..24 tokens, 8 global rows #c51542664c26"
    callable_plan = SequenceLengthPlan(Table((8, 16)), tokens_per_batch=32)
    assert callable_plan.fingerprint == "8..16 tokens, 2 global rows #ec7d0a09c23d"


# -- far out, and many ------------------------------------------------------------------------------------------------


def test_look_ups_are_exact_at_a_billion_steps():
    plan = SequenceLengthPlan(LinearSchedule(8, 1024, warmup_steps=3000), batch_size=16, world_size=8)
    before = sum(128 * (8 + (1016 * step // 3000) // 8 * 8) for step in range(3000))
    assert plan.tokens_before(3000) == before
    far = 10**9
    assert plan.tokens_before(far) == before + (far - 3000) * 128 * 1024
    assert plan.rows_before(far) == far * 128
    assert plan.step_at(plan.tokens_before(far)) == far
    assert plan.step_at(plan.tokens_before(far) - 1) == far - 1
    assert plan.step_at(10**15) == 3000 + (10**15 - before) // (128 * 1024)
    huge = 10**30
    assert plan.step_at(plan.tokens_before(huge)) == huge and type(plan.tokens_before(huge)) is int


def test_a_hundred_thousand_stages_answer_at_once():
    count, rng = 100_000, np.random.default_rng(0)
    lengths = rng.integers(1, 1000, count).tolist()
    starts = np.cumsum(rng.integers(1, 9, count)).tolist()
    plan = SequenceLengthPlan(StagedSchedule(lengths, starts[:-1]), batch_size=3, total_steps=starts[-1])
    before = rows = last = 0
    for i, (start, length) in enumerate(zip([0, *starts[:-1]], lengths, strict=True)):
        if i:
            held = start - last
            before, rows = before + 3 * held * lengths[i - 1], rows + 3 * held
        if i % 100 == 0 or i > count - 100:
            assert (plan.tokens_before(start), plan.rows_before(start), plan.length(start)) == (before, rows, length)
            assert plan.step_at(before) == start
        last = start
    begin = time.process_time()
    for step in range(0, starts[-1], starts[-1] // 10_000):
        plan.step_at(plan.tokens_before(step))
    assert time.process_time() - begin < 2, "20,000 look-ups"
    assert len(plan.describe().splitlines()) == 23 and "more stages" in plan.describe()


def test_a_callable_of_a_million_steps_is_read_once():
    asked = 0

    def schedule(step):
        nonlocal asked
        asked += 1
        return 8 + step // 250_000

    plan = SequenceLengthPlan(schedule, batch_size=1, total_steps=10**6)
    built = asked
    assert plan.total_tokens == 250_000 * (8 + 9 + 10 + 11)
    assert [s[:3] for s in plan.stages] == [(k * 250_000, (k + 1) * 250_000, 8 + k) for k in range(4)]
    assert plan.step_at(250_000 * 8 + 9 * 5 + 3) == 250_005
    assert asked - built == 10**6 - 1, "step 0 was read at once"
    assert built < 50


def test_a_plan_is_small_whatever_the_run():
    plan = SequenceLengthPlan(LinearSchedule(8, 1024, warmup_steps=10**12), batch_size=16, total_steps=10**13)
    assert len(plan.stages) == 128 and len(pickle.dumps(plan)) < 20_000


def test_plans_are_pickled_and_copied_with_what_they_have_read():
    for schedule in (LinearSchedule(8, 64, warmup_steps=20), Table((3, 4, 5))):
        plan = SequenceLengthPlan(schedule, batch_size=2, total_steps=30)
        plan.length(7)
        for again in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
            assert again.stages == plan.stages and repr(again) == repr(plan) and again.fingerprint == plan.fingerprint


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_steps_and_tokens_may_be_integers_of_numpy_and_torch(kind):
    plan = SequenceLengthPlan(StagedSchedule([8, 16], [3]), batch_size=kind(2), world_size=kind(2), total_steps=kind(9))
    plain = SequenceLengthPlan(StagedSchedule([8, 16], [3]), batch_size=2, world_size=2, total_steps=9)
    assert repr(plan) == repr(plain) and plan.fingerprint == plain.fingerprint
    for name in ("length", "rows", "global_rows", "tokens", "tokens_before", "rows_before", "step_at"):
        found, expected = getattr(plan, name)(kind(5)), getattr(plain, name)(5)
        assert found == expected and type(found) is int, name


@pytest.mark.parametrize("name", ["tokens_before", "rows_before"])
def test_a_step_of_a_narrow_dtype_does_not_overflow(name):
    plan = SequenceLengthPlan(ConstantSchedule(1024), batch_size=1024)
    assert getattr(plan, name)(np.int32(2**25)) == getattr(plan, name)(2**25)
