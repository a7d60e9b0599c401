"""Plans whose length, rows and accumulation all change, by steps and by tokens: against a loop over the steps."""

import functools
import itertools
import pickle
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import naive_joint, naive_lengths
from refusals import refused
from strategies import Table

from slw_data import ConstantSchedule, LinearSchedule, ScheduleError, SequenceLengthPlan, StagedSchedule

STEPS = 40
KINDS = ("number", "steps", "tokens", "callable", "warmup_steps", "warmup_tokens")


def looked_up(values, boundaries):
    return lambda at: values[sum(boundary <= at for boundary in boundaries)]


def climbed(low, high, duration, multiple):
    return lambda at: naive_lengths("linear", low, high, at, duration, multiple).pop()


@st.composite
def functions(draw, low, high, kinds=KINDS):
    """``(the library's, the oracle's)``: a number, stages by steps or tokens, a plain callable, or a warmup. The oracle's is
    one of steps or of tokens, and of a fraction it is what gives that for the steps of the run."""
    kind = draw(st.sampled_from(kinds))
    if kind == "number":
        value = draw(st.integers(low, high))
        return value, ("steps", lambda at: value)
    if kind.startswith("warmup"):
        multiple = draw(st.sampled_from([m for m in (1, 1, 2, 5) if m <= high]))
        first = draw(st.integers(-(-low // multiple), high // multiple)) * multiple
        last = draw(st.integers(first // multiple, high // multiple)) * multiple
        most = {"warmup_steps": STEPS, "warmup_tokens": 4_000, "warmup_fraction": 8}[kind]
        amount = draw(st.integers(0, most))
        if kind == "warmup_fraction":
            warmup = LinearSchedule(first, last, warmup_fraction=amount / 8, multiple_of=multiple)
            return warmup, ("fraction", lambda total: climbed(first, last, round(Fraction(amount * total, 8)), multiple))
        unit = kind.removeprefix("warmup_")
        warmup = LinearSchedule(first, last, multiple_of=multiple, **{kind: amount})
        return warmup, (unit, climbed(first, last, amount, multiple))
    values = draw(st.lists(st.integers(low, high), min_size=1, max_size=4))
    if kind == "callable":
        hold = draw(st.integers(1, 6))
        return Table(tuple(values), hold), ("steps", lambda at: values[at // hold % len(values)])
    most = STEPS if kind == "steps" else 4_000
    bounds = draw(st.lists(st.integers(1, most), min_size=len(values) - 1, max_size=len(values) - 1, unique=True).map(sorted))
    return StagedSchedule(values, bounds, unit=kind), (kind, looked_up(values, bounds))


@st.composite
def shaped(draw, max_world=8, kinds=KINDS):
    """``(schedule, batch shape, what the oracle is asked with)``."""
    budget, world = draw(st.booleans()), draw(st.integers(1, max_world))
    lengths, length = draw(functions(1, 20, kinds))
    sizes, size = draw(functions(20, 90, kinds) if budget else functions(1, 5, kinds))
    batches, accumulation = draw(functions(1, 3, kinds))
    if isinstance(lengths, int):
        lengths = ConstantSchedule(lengths)
    shape = {"tokens_per_batch" if budget else "batch_size": sizes, "grad_accum_steps": batches, "world_size": world}
    return lengths, shape, (length, size, accumulation)


def naive_run(shape, asked, steps, total=None):
    """The steps of a run, with fractions of ``total`` steps."""
    known = [(unit, f) if unit != "fraction" else ("steps", f(total)) for unit, f in asked]
    return naive_joint(*known, steps=steps, world_size=shape["world_size"], budget="tokens_per_batch" in shape)


@st.composite
def joint(draw, max_world=8):
    """``(schedule, batch shape, steps of the oracle)``, endless."""
    schedule, shape, asked = draw(shaped(max_world))
    return schedule, shape, naive_run(shape, asked, STEPS)


def tokens_of(step, world):
    length, rows, batches, *_ = step
    return length * rows * batches * world


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
    one = plan.of_one_rank()
    for step, (length, rows, batches, rows_before, before) in enumerate(steps):
        assert (one.length(step), one.global_rows(step), one.tokens(step)) == (length, rows * batches, rows * batches * length)
        assert (one.rows_before(step) * world, one.tokens_before(step) * world) == (rows_before, before)
        assert one.step_at(before // world) == step == one.step_at(before // world + rows * batches * length - 1)
        assert one.batches_before(step) == plan.batches_before(step)


def assert_ends(plan, steps, world):
    """It has the stages and totals of ``steps``."""
    assert plan.total_steps == len(steps) and plan.total_tokens == sum(tokens_of(step, world) for step in steps)
    found = [stage[2:5] for stage in plan.stages for _ in range(stage.start, stage.stop)]
    assert found == [step[:3] for step in steps]
    assert all(a[2:5] != b[2:5] and a.stop == b.start for a, b in itertools.pairwise(plan.stages))
    assert plan.lengths == tuple(sorted({length for length, *_ in steps}))
    if steps:
        largest = max(((rows, length) for length, rows, *_ in steps), key=lambda shape: (shape[0] * shape[1], shape[1]))
        assert plan.largest_batch() == largest
    else:
        refused(plan.largest_batch, "less than a step")
    again = pickle.loads(pickle.dumps(plan))
    assert [again.tokens_before(step) for step in range(len(steps))] == [before for *_, before in steps]


@given(joint(), st.integers(1, STEPS))
def test_a_run_of_steps_has_the_stages_and_totals_of_its_steps(run, count):
    schedule, shape, steps = run
    assert_ends(SequenceLengthPlan(schedule, **shape, total_steps=count), steps[:count], shape["world_size"])


@given(joint(), st.data())
def test_a_run_of_tokens_has_the_steps_that_fit_whole(run, data):
    schedule, shape, steps = run
    world = shape["world_size"]
    ends = [before + tokens_of((length, rows, batches), world) for length, rows, batches, _, before in steps]
    total = max(data.draw(st.sampled_from(ends[:-1])) + data.draw(st.sampled_from([-1, 0, 1])), 1)
    fit = [step for step, end in zip(steps, ends, strict=True) if end <= total]
    assert_ends(SequenceLengthPlan(schedule, **shape, total_tokens=total), fit, world)
    ended = SequenceLengthPlan(schedule, **shape, total_steps=3).ending_at(total)
    assert_ends(ended, fit, world)


@given(shaped(kinds=(*KINDS, "warmup_fraction", "warmup_fraction", "warmup_fraction")), st.integers(1, STEPS))
def test_fractions_are_of_the_steps_of_the_run(run, count):
    schedule, shape, asked = run
    plan = SequenceLengthPlan(schedule, **shape, total_steps=count)
    assert_ends(plan, naive_run(shape, asked, count, total=count), shape["world_size"])


@settings(max_examples=50)
@given(
    shaped(kinds=("number", "steps", "tokens", "warmup_tokens", "warmup_fraction", "warmup_fraction")), st.integers(1, 1000)
)
def test_fractions_of_a_run_of_tokens_are_of_a_number_of_steps_that_it_does_not_exceed(run, total):
    """And that a run with fractions of one step less would exceed."""
    schedule, shape, asked = run
    world = shape["world_size"]
    assume(any(unit == "fraction" for unit, _ in asked))

    @functools.cache
    def fit(steps):
        found = []
        for count in itertools.count(16, 16):
            run = naive_run(shape, asked, count, total=steps)
            found = [step for step in run if step[4] + tokens_of(step, world) <= total]
            if len(found) < count:
                return found

    plan = SequenceLengthPlan(schedule, **shape, total_tokens=total)
    found = [stage[2:5] for stage in plan.stages for _ in range(stage.start, stage.stop)]
    numbers = range(plan.total_steps, plan.total_steps + 40)
    numbers = [n for n in numbers if len(fit(n)) <= n and (n == 0 or len(fit(n - 1)) >= n)]
    assert any(found == [step[:3] for step in fit(n)] for n in numbers)


@given(joint(max_world=2), joint(max_world=2), st.integers(0, STEPS - 1), st.booleans())
def test_pasts_are_equal_where_lengths_and_global_rows_are(one, other, step, begun):
    """Also where rows are dealt to ranks and micro-batches in another way, and whatever comes after."""

    def shapes(run):
        world = run[1]["world_size"]
        return [(length, rows * batches * world) for length, rows, batches, *_ in run[2][: step + begun]]

    first, second = (SequenceLengthPlan(schedule, **shape).past(step, int(begun)) for schedule, shape, _ in (one, other))
    assert (first == second) == (shapes(one) == shapes(other))


@given(joint(), st.integers(0, STEPS), st.sampled_from(["length", "rows"]), st.sampled_from([1, None]), st.randoms())
def test_pasts_agree_up_to_the_step_that_differs_and_no_further(run, differs, what, world, random):
    """One step has another length, or other global rows; every step deals its rows to ranks and micro-batches anew."""
    schedule, shape, steps = run
    world = world or shape["world_size"]
    lengths, rows, batches = [], [], []
    for step, (length, many, accumulation, *_) in enumerate(steps):
        own = many * accumulation * shape["world_size"] // world + (step == differs and what == "rows")
        lengths.append(length + (step == differs and what == "length"))
        batches.append(random.choice([n for n in range(1, own + 1) if own % n == 0]))
        rows.append(own // batches[-1])
    at = [lambda step, values=values: values[min(step, STEPS - 1)] for values in (lengths, rows, batches)]
    other = SequenceLengthPlan(at[0], batch_size=at[1], grad_accum_steps=at[2], world_size=world)
    plan = SequenceLengthPlan(schedule, **shape)
    for step in random.sample(range(STEPS), STEPS):
        for batch in range(3):
            assert (plan.past(step, batch) == other.past(step, batch)) == (step + (batch > 0) <= differs)


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


LLAMA_3 = [252_000_000, 2_870_000_000_000]


@pytest.mark.parametrize(
    "batch",
    [
        {"batch_size": StagedSchedule([1024, 2048], LLAMA_3[1:], unit="tokens")},
        {"tokens_per_batch": StagedSchedule([2**22, 2**23, 2**24], LLAMA_3, unit="tokens")},
        {"tokens_per_batch": StagedSchedule([2**15, 2**16], LLAMA_3[:1], unit="tokens"), "world_size": 128,
         "grad_accum_steps": StagedSchedule([1, 2], LLAMA_3[1:], unit="tokens")},
    ],
    ids=["rows", "tokens", "128 ranks"],
)  # fmt: skip
def test_llama_3_405b_has_three_stages(batch):
    """arXiv 2407.21783, section 3.4.1: 4M tokens in rows of 4,096, 8M in rows of 8,192 after 252M tokens, 16M after 2.87T."""
    lengths = StagedSchedule([4096, 8192], LLAMA_3[:1], unit="tokens")
    plan = SequenceLengthPlan(lengths, **batch, total_tokens=15_600_000_000_000)
    first = -(-252_000_000 // 2**22)  # steps of 4M: 61
    second = first + -(-(2_870_000_000_000 - first * 2**22) // 2**23)
    assert (first, second) == (61, 342_162)
    total = second + (15_600_000_000_000 - first * 2**22 - (second - first) * 2**23) // 2**24
    assert [stage[:3] for stage in plan.stages] == [(0, first, 4096), (first, second, 8192), (second, total, 8192)]
    assert [plan.global_rows(stage.start) for stage in plan.stages] == [1024, 1024, 2048]
    assert [plan.tokens(stage.start) for stage in plan.stages] == [2**22, 2**23, 2**24]
    far = first * 2**22 + (second - first) * 2**23 + (10**9 - second) * 2**24
    assert plan.tokens_before(10**9) == far and plan.rows_before(10**9) == (second + 2 * (10**9 - second)) * 1024
    assert plan.step_at(far) == 10**9 and plan.step_at(far - 1) == 10**9 - 1


huge = st.lists(st.integers(1, 10**15), max_size=4, unique=True).map(sorted)


@given(st.tuples(huge, huge, huge), st.tuples(*[st.sampled_from(["steps", "tokens"])] * 3), st.integers(1, 1024), st.data())
def test_stages_stay_few_and_exact_far_out(bounds, units, world, data):
    """From the first step to the last of a stage no boundary is met, and tokens and rows add up: by induction, for ever."""
    values = [data.draw(st.lists(st.integers(1, 9), min_size=len(b) + 1, max_size=len(b) + 1)) for b in bounds]
    staged = [StagedSchedule(v, b, unit=unit) for v, b, unit in zip(values, bounds, units, strict=True)]
    plan = SequenceLengthPlan(staged[0], batch_size=staged[1], grad_accum_steps=staged[2], world_size=world)
    rows_before = before = batches_before = 0
    assert len(plan.stages) <= 1 + sum(map(len, bounds))
    for stage in plan.stages:
        shape = stage[2:5]
        length, rows, batches = shape
        held = (stage.stop or stage.start + 10**9) - stage.start
        global_rows = rows * batches * world
        counts = (plan.rows_before(stage.start), plan.tokens_before(stage.start), plan.batches_before(stage.start))
        assert counts == (rows_before, before, batches_before)
        first, last = (stage.start, before), (stage.start + held - 1, before + (held - 1) * global_rows * length)
        for step, tokens in (first, last):
            at = [step if unit == "steps" else tokens for unit in units]
            assert shape == tuple(looked_up(v, b)(now) for v, b, now in zip(values, bounds, at, strict=True))
            assert (plan.length(step), plan.rows(step), plan.micro_batches(step)) == shape
            assert plan.tokens_before(step) == tokens and plan.step_at(tokens) == step
            assert plan.step_at(tokens + global_rows * length - 1) == step
        rows_before, before = rows_before + held * global_rows, before + held * global_rows * length
        batches_before += held * batches


def test_a_warmup_beside_rows_by_tokens_has_a_stage_for_each_change():
    warmup = LinearSchedule(8, 1024, warmup_tokens=10**12)
    rows = StagedSchedule([16, 32, 64], [10**11, 10**13], unit="tokens")
    plan = SequenceLengthPlan(warmup, batch_size=rows, grad_accum_steps=StagedSchedule([1, 2], [10**6]), world_size=64)
    assert len(plan.stages) == 128 + 3
    assert plan.tokens(10**9) == 1024 * 64 * 2 * 64


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


@pytest.mark.parametrize("total_tokens", range(500_000, 1_500_000, 31_991))
def test_a_fraction_beside_a_budget_that_grows_is_refused_only_where_a_step_of_the_run_is_over_it(total_tokens):
    """A run that is tried with too few steps comes to long rows while the budget is small yet; the run itself may not."""
    schedule, budget = LinearSchedule(8, 1024, warmup_fraction=0.5), StagedSchedule([512, 1024], [200])

    def of_steps(steps):
        """The plan and its tokens with a step more; None where a length is above the budget."""
        try:
            plan = SequenceLengthPlan(schedule, tokens_per_batch=budget, total_steps=steps)
            return plan, plan.tokens_before(steps + 1)
        except ScheduleError:
            return None

    fitting = [
        found[0]
        for steps in range(total_tokens // 1024, total_tokens // 496)
        if (found := of_steps(steps)) and found[0].total_tokens <= total_tokens < found[1]
    ]
    if fitting:
        assert SequenceLengthPlan(schedule, tokens_per_batch=budget, total_tokens=total_tokens).stages == fitting[0].stages
        return
    try:  # no number of steps fits exactly: the next is near
        plan = SequenceLengthPlan(schedule, tokens_per_batch=budget, total_tokens=total_tokens)
    except ScheduleError as error:
        assert "512" in str(error) and "520" in str(error)
    else:
        assert plan.total_tokens <= total_tokens < plan.total_tokens + plan.tokens(plan.total_steps - 1)
        assert of_steps(plan.total_steps + 1) is not None


def test_a_fraction_beside_a_budget_that_is_too_small_is_refused_by_name():
    schedule = LinearSchedule(8, 1024, warmup_fraction=0.5)
    refused(lambda: SequenceLengthPlan(schedule, tokens_per_batch=512, total_tokens=10**6), "tokens_per_batch=512", "520")
