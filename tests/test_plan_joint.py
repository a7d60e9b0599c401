"""Plans whose length, rows and accumulation all change, by steps and by tokens: against a loop over the steps."""

import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import naive_joint
from refusals import refused
from strategies import Table

from slw_data import ConstantSchedule, LinearSchedule, ScheduleError, SequenceLengthPlan, StagedSchedule

STEPS = 40


def looked_up(values, boundaries):
    return lambda at: values[sum(boundary <= at for boundary in boundaries)]


@st.composite
def functions(draw, low, high):
    """``(the library's, the oracle's)``: a number, stages by steps or tokens, or a plain callable."""
    kind = draw(st.sampled_from(["number", "steps", "tokens", "callable"]))
    if kind == "number":
        value = draw(st.integers(low, high))
        return value, ("steps", lambda at: value)
    values = draw(st.lists(st.integers(low, high), min_size=1, max_size=4))
    if kind == "callable":
        hold = draw(st.integers(1, 6))
        return Table(tuple(values), hold), ("steps", lambda at: values[at // hold % len(values)])
    most = STEPS if kind == "steps" else 4_000
    bounds = draw(st.lists(st.integers(1, most), min_size=len(values) - 1, max_size=len(values) - 1, unique=True).map(sorted))
    return StagedSchedule(values, bounds, unit=kind), (kind, looked_up(values, bounds))


@st.composite
def joint(draw, max_world=8):
    """``(plan, steps of the oracle)``, endless."""
    budget, world = draw(st.booleans()), draw(st.integers(1, max_world))
    lengths, length = draw(functions(1, 20))
    sizes, size = draw(functions(20, 90) if budget else functions(1, 5))
    batches, accumulation = draw(functions(1, 3))
    if isinstance(lengths, int):
        lengths = ConstantSchedule(lengths)
    shape = {"tokens_per_batch" if budget else "batch_size": sizes, "grad_accum_steps": batches, "world_size": world}
    steps = naive_joint(length, size, accumulation, steps=STEPS, world_size=world, budget=budget)
    return lengths, shape, steps


@given(joint(), st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=8))
def test_every_look_up_is_what_a_loop_over_the_steps_finds(run, asked):
    schedule, shape, steps = run
    plan, world = SequenceLengthPlan(schedule, **shape), shape["world_size"]
    for step in [*asked, *range(STEPS)]:  # from anywhere at first
        length, rows, batches, rows_before, before = steps[step]
        assert (plan.length(step), plan.rows(step), plan.micro_batches(step)) == (length, rows, batches)
        assert plan.global_rows(step) == rows * batches * world
        assert plan.tokens(step) == rows * batches * world * length
        assert (plan.rows_before(step), plan.tokens_before(step)) == (rows_before, before)
        assert plan.batches_before(step) == sum(b for _, _, b, _, _ in steps[:step])
        assert plan.step_at(before) == step == plan.step_at(before + plan.tokens(step) - 1)
        stage = plan.stage_at(step)
        assert stage.start <= step and (stage.stop is None or step < stage.stop)
        assert stage[2:5] == (length, rows, batches) and stage[5:] == (steps[stage.start][3], steps[stage.start][4])


@given(joint(), st.integers(1, STEPS), st.booleans())
def test_a_run_that_ends_has_the_stages_and_totals_of_its_steps(run, count, by_tokens):
    schedule, shape, steps = run
    total = steps[count][4] if count < STEPS else steps[count - 1][4]
    end = {"total_tokens": total} if by_tokens and total else {"total_steps": count}
    plan = SequenceLengthPlan(schedule, **shape, **end)
    if "total_tokens" in end:
        count = next(step for step in range(STEPS) if steps[step][4] >= total)
    assert plan.total_steps == count and plan.total_tokens == (steps[count][4] if count < STEPS else plan.tokens_before(count))
    found = [stage[2:5] for stage in plan.stages for _ in range(stage.start, stage.stop)]
    assert found == [step[:3] for step in steps[:count]]
    assert all(a[2:5] != b[2:5] and a.stop == b.start for a, b in zip(plan.stages, plan.stages[1:], strict=False))
    assert plan.lengths == tuple(sorted({length for length, *_ in steps[:count]}))
    largest = max(((rows, length) for length, rows, *_ in steps[:count]), key=lambda shape: (shape[0] * shape[1], shape[1]))
    assert plan.largest_batch() == largest
    again = pickle.loads(pickle.dumps(plan))
    assert [again.tokens_before(step) for step in range(count)] == [before for *_, before in steps[:count]]


@given(joint(max_world=2), joint(max_world=2), st.integers(0, STEPS - 1), st.booleans())
def test_pasts_are_equal_where_lengths_and_global_rows_are(one, other, step, begun):
    """Also where rows are dealt to ranks and micro-batches in another way, and whatever comes after."""

    def shapes(run):
        world = run[1]["world_size"]
        return [(length, rows * batches * world) for length, rows, batches, *_ in run[2][: step + begun]]

    first, second = (SequenceLengthPlan(schedule, **shape).past(step, int(begun)) for schedule, shape, _ in (one, other))
    assert (first == second) == (shapes(one) == shapes(other))


@given(joint(), st.integers(1, STEPS - 1))
def test_another_future_has_the_same_past(run, step):
    schedule, shape, steps = run
    world = shape["world_size"]
    lengths = StagedSchedule([s[0] for s in steps[:step]] + [7], range(1, step + 1))
    accumulated = [s[1] * s[2] for s in steps[:step]]
    changed = SequenceLengthPlan(
        lengths, batch_size=StagedSchedule([*accumulated, 9], range(1, step + 1)), world_size=world, total_steps=step + 5
    )
    plan = SequenceLengthPlan(schedule, **shape)
    for before in range(step + 1):
        assert plan.past(before) == changed.past(before)
    same_step = (steps[step][0], steps[step][1] * steps[step][2]) == (7, 9)
    assert (plan.past(step, 1) == changed.past(step, 1)) == same_step


NEAR_MISSES = {
    "a length changes a step later": ([4, 8], [3], [4, 8], [4]),
    "a stage is longer": ([4, 8, 2], [4, 6], [4, 8, 2], [5, 6]),
    "another length in the middle": ([4, 8, 2], [3, 6], [4, 7, 2], [3, 6]),
    "two lengths change places": ([4, 8, 2], [3, 6], [8, 4, 2], [3, 6]),
}


@pytest.mark.parametrize("case", list(NEAR_MISSES))
@pytest.mark.parametrize("what", ["lengths", "rows"])
def test_pasts_differ_in_the_smallest_difference(case, what):
    first, at, second, then = NEAR_MISSES[case]

    def past(values, boundaries):
        changing = StagedSchedule(values, boundaries)
        plan = (changing, 5) if what == "lengths" else (ConstantSchedule(5), changing)
        return SequenceLengthPlan(plan[0], batch_size=plan[1]).past(10)

    assert past(first, at) != past(second, then) and past(first, at) == past(list(first), tuple(at))


# -- published plans ---------------------------------------------------------------------------------------------------


def test_llama_3_405b_has_three_stages():
    """arXiv 2407.21783, section 3.4.1: 4M tokens in rows of 4,096, 8M in rows of 8,192 after 252M tokens, 16M after 2.87T."""
    lengths = StagedSchedule([4096, 8192], [252_000_000], unit="tokens")
    rows = StagedSchedule([1024, 2048], [2_870_000_000_000], unit="tokens")
    plan = SequenceLengthPlan(lengths, batch_size=rows, total_tokens=15_600_000_000_000)
    first = -(-252_000_000 // 2**22)  # steps of 4M: 61
    second = first + -(-(2_870_000_000_000 - first * 2**22) // 2**23)
    assert (first, second) == (61, 342_162)
    total = second + (15_600_000_000_000 - first * 2**22 - (second - first) * 2**23) // 2**24
    expected = [(0, first, 4096, 1024), (first, second, 8192, 1024), (second, total, 8192, 2048)]
    assert [stage[:4] for stage in plan.stages] == expected
    assert [plan.tokens(stage.start) for stage in plan.stages] == [2**22, 2**23, 2**24]
    assert plan.tokens_before(10**9) == first * 2**22 + (second - first) * 2**23 + (10**9 - second) * 2**24


def test_stages_stay_few_and_look_ups_exact_far_out():
    warmup = LinearSchedule(8, 1024, warmup_tokens=10**12)
    rows = StagedSchedule([16, 32, 64], [10**11, 10**13], unit="tokens")
    plan = SequenceLengthPlan(warmup, batch_size=rows, grad_accum_steps=StagedSchedule([1, 2], [10**6]), world_size=64)
    assert len(plan.stages) <= 128 + 3
    for step in (10**6, 10**9, 10**15):
        assert plan.step_at(plan.tokens_before(step)) == step and plan.step_at(plan.tokens_before(step) - 1) == step - 1
        assert plan.tokens_before(step + 1) - plan.tokens_before(step) == plan.tokens(step)


def test_changes_in_tokens_take_effect_at_the_next_step():
    plan = SequenceLengthPlan(ConstantSchedule(10), batch_size=StagedSchedule([1, 3], [25], unit="tokens"), total_steps=5)
    assert [plan.rows(step) for step in range(5)] == [1, 1, 1, 3, 3]  # 0, 10, 20 tokens before, then 30
    exact = SequenceLengthPlan(ConstantSchedule(10), batch_size=StagedSchedule([1, 3], [20], unit="tokens"), total_steps=5)
    assert [exact.rows(step) for step in range(5)] == [1, 1, 3, 3, 3]


# -- refusals ----------------------------------------------------------------------------------------------------------

BAD = {
    "a budget below a later length": ({"tokens_per_batch": StagedSchedule([64, 16], [20])}, ["tokens_per_batch=16", "32"]),
    "rows that are no number": ({"batch_size": "4"}, ["batch_size", "'4'"]),
    "a class": ({"batch_size": Counter}, ["batch_size"]),
    "no accumulation": ({"batch_size": 4, "grad_accum_steps": 0}, ["grad_accum_steps", ">= 1"]),
    "rows of zero": ({"batch_size": lambda step: 0}, ["batch_size at step 0", ">= 1"]),
    "rows that are a float": ({"batch_size": lambda step: 4.5}, ["batch_size at step 0", "4.5"]),
    "rows that change their mind": ({"batch_size": iter(range(1, 99)).__next__}, ["batch_size"]),
    "accumulation that fails": ({"batch_size": 4, "grad_accum_steps": lambda step: 1 // 0}, ["grad_accum_steps raised"]),
}


@pytest.mark.parametrize("case", list(BAD))
def test_impossible_batches_are_refused_where_the_plan_is_made(case):
    shape, facts = BAD[case]
    refused(lambda: SequenceLengthPlan(StagedSchedule([8, 32], [10]), **shape), *facts, error=ScheduleError)


def test_a_fraction_beside_a_callable_needs_the_steps():
    fraction = LinearSchedule(8, 64, warmup_fraction=0.5)
    refused(
        lambda: SequenceLengthPlan(fraction, batch_size=lambda step: 4, total_tokens=10_000), "warmup_fraction", "total_steps"
    )
    assert SequenceLengthPlan(fraction, batch_size=lambda step: 4, total_steps=100).length(50) == 64
