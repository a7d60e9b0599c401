"""Plans of whole runs: ends, cost, tables, reprs, and cases that have gone wrong elsewhere."""

import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from strategies import Table, batch_shapes, runs, schedules

from slw_data.plan import Cost, SequenceLengthPlan, Stage
from slw_data.plan.schedules import (
    ConstantSchedule,
    CyclicSchedule,
    DoublingSchedule,
    ExponentialSchedule,
    LinearSchedule,
    StagedSchedule,
)

# -- whole runs -------------------------------------------------------------------------------------------------------


def test_an_endless_run_has_no_end():
    plan = SequenceLengthPlan(StagedSchedule([8, 16], [3]), batch_size=2)
    assert plan.total_steps is None and plan.total_tokens is None
    assert plan.stages == (Stage(0, 3, 8, 2, 1, 0, 0), Stage(3, None, 16, 2, 1, 6, 48))
    assert plan.lengths == (8, 16) and plan.largest_batch() == (2, 16)
    refused(lambda: plan.cost(num_params=1, num_layers=1, hidden_size=1), "endless", "total_steps", "total_tokens")


@pytest.mark.parametrize("what", ["stages", "lengths"])
def test_the_stages_of_an_endless_callable_are_refused(what):
    refused(lambda: getattr(SequenceLengthPlan(Table((8, 9)), batch_size=2), what), "endless", "Table(", "total_steps")


def test_stages_beyond_the_end_are_left_out():
    plan = SequenceLengthPlan(StagedSchedule([8, 16, 24], [3, 6]), batch_size=2, total_steps=3)
    assert plan.stages == (Stage(0, 3, 8, 2, 1, 0, 0),) and plan.lengths == (8,)
    assert plan.length(6) == 24, "look-ups are defined past the end"


def test_the_cost_is_the_formula_worked_out_by_hand():
    plan = SequenceLengthPlan(StagedSchedule([8, 16], [3]), batch_size=2, total_steps=5)
    # stage 0: 3 steps x 16 tokens, 6 * 1000 + 12 * 2 * 10 * 8 = 7,920 FLOPs each
    # stage 1: 2 steps x 32 tokens, 6 * 1000 + 12 * 2 * 10 * 16 = 9,840 FLOPs each
    cost = plan.cost(num_params=1000, num_layers=2, hidden_size=10)
    assert cost == Cost(stages=(48 * 7920, 64 * 9840), total=48 * 7920 + 64 * 9840, full_length=112 * 9840)
    assert cost.saving == pytest.approx(1 - 1_009_920 / 1_102_080)
    for name in ("num_params", "num_layers", "hidden_size"):
        sizes = {"num_params": 1, "num_layers": 1, "hidden_size": 1, name: 0}
        refused(lambda: plan.cost(**sizes), name, "got 0")  # noqa: B023


def test_a_constant_length_saves_nothing():
    plan = SequenceLengthPlan(ConstantSchedule(8), batch_size=2, total_steps=5)
    assert plan.cost(num_params=7, num_layers=2, hidden_size=3).saving == 0


def test_describe_is_a_table_of_stages():
    plan = SequenceLengthPlan(
        StagedSchedule([8, 1024], [3000]), tokens_per_batch=2048, grad_accum_steps=2, world_size=2, total_steps=10_000
    )
    assert plan.describe().splitlines() == [
        "        step   length     rows    tokens/step      tokens before",
        "           0        8      256          8,192                  0",
        "       3,000    1,024        2          8,192         24,576,000",
        "10,000 steps, 81,920,000 tokens; 2 lengths; largest batch 2 x 1,024",
    ]


def test_describe_shows_the_first_and_last_ten_of_many_stages():
    lines = SequenceLengthPlan(LinearSchedule(8, 1024, warmup_steps=1016), batch_size=1).describe().splitlines()
    assert len(lines) == 23
    assert [int(line.split()[1].replace(",", "")) for line in lines[1:11]] == list(range(8, 88, 8))
    assert lines[11].split() == ["...", "(108", "more", "stages)"]
    assert [int(line.split()[1].replace(",", "")) for line in lines[12:22]] == list(range(952, 1032, 8))
    assert lines[22] == "endless; 128 lengths; largest batch 1 x 1,024"
    short = SequenceLengthPlan(LinearSchedule(8, 168, warmup_steps=1016), batch_size=1).describe().splitlines()
    assert len(short) == 23 and "more" not in "".join(short), "21 stages are shown in full"


def test_a_repr_is_the_expression_that_makes_the_plan():
    schedule = LinearSchedule(8, 64, warmup_steps=10)
    text = "SequenceLengthPlan(LinearSchedule(min_length=8, max_length=64, warmup_steps=10), "
    assert repr(SequenceLengthPlan(schedule, batch_size=16)) == text + "batch_size=16)"
    shape = {"tokens_per_batch": 512, "grad_accum_steps": 2, "world_size": 8, "total_tokens": 10**9}
    full = "tokens_per_batch=512, grad_accum_steps=2, world_size=8, total_tokens=1000000000)"
    assert repr(SequenceLengthPlan(schedule, **shape)) == text + full


@given(schedules(("warmup_steps", "warmup_tokens")), st.data())
def test_a_repr_can_be_pasted_back(schedule, data):
    end = data.draw(st.sampled_from([{}, {"total_steps": 40}, {"total_tokens": 900}]))
    plan = SequenceLengthPlan(schedule, **data.draw(batch_shapes(schedule)), **end)
    names = {**vars(sys.modules["slw_data.plan.schedules"]), "SequenceLengthPlan": SequenceLengthPlan, "Table": Table}
    again = eval(repr(plan), names)
    assert repr(again) == repr(plan) and again.total_steps == plan.total_steps
    assert [again.tokens_before(s) for s in range(60)] == [plan.tokens_before(s) for s in range(60)]


# -- cases that have gone wrong elsewhere -----------------------------------------------------------------------------


def test_B057_tokens_after_k_steps_are_known_in_closed_form():
    grow = StagedSchedule([4, 8, 16], [2, 4])
    plan = SequenceLengthPlan(grow, batch_size=3)
    assert [plan.tokens_before(k) for k in range(7)] == [0, 12, 24, 48, 72, 120, 168]
    constant = SequenceLengthPlan(grow, tokens_per_batch=16)
    assert [constant.tokens_before(k) for k in range(7)] == [16 * k for k in range(7)]


@given(runs(("warmup_steps", "warmup_tokens")), st.integers(0, 10_000))
def test_B106_steps_and_tokens_are_exact_inverses_under_a_ramp(run, token):
    schedule, shape, _ = run
    plan = SequenceLengthPlan(schedule, **shape)
    step = plan.step_at(token)
    assert plan.tokens_before(step) <= token < plan.tokens_before(step + 1)
    assert plan.step_at(plan.tokens_before(step)) == step
    assert plan.step_at(plan.tokens_before(step + 1) - 1) == step


def test_B107_the_multiple_holds_for_every_length_of_a_doubling_schedule():
    schedule = DoublingSchedule(12, 144, warmup_steps=500, multiple_of=12)
    lengths = SequenceLengthPlan(schedule, batch_size=1).lengths
    assert lengths == (12, 24, 48, 96, 144)
    refused(
        lambda: DoublingSchedule(8, 144, warmup_steps=500, multiple_of=12), "min_length", "8", "multiple_of=12", "12"
    )
    refused(lambda: DoublingSchedule(12, 128, warmup_steps=500, multiple_of=12), "max_length", "120 or 132")


def test_B124_a_warmup_of_thirty_percent_of_the_tokens_needs_no_length_of_the_data():
    plans = [
        SequenceLengthPlan(LinearSchedule(8, 64, warmup_tokens=300_000), batch_size=4, total_tokens=10**6),
        SequenceLengthPlan(LinearSchedule(8, 64, warmup_tokens=300_000), batch_size=4),
    ]
    ends = [next(s for s in itertools.count() if plan.length(s) == 64) for plan in plans]
    for plan, end in zip(plans, ends, strict=True):
        assert plan.tokens_before(end) >= 300_000 > plan.tokens_before(end - 1)
    assert len(set(ends)) == 1 and len({plan.fingerprint for plan in plans}) == 1


def test_B127_a_fraction_of_an_endless_run_is_refused_with_the_remedy():
    schedule = LinearSchedule(8, 64, warmup_fraction=0.3)
    refused(
        lambda: SequenceLengthPlan(schedule, batch_size=4),
        *("warmup_fraction=0.3", "total_steps", "total_tokens", "epochs", "warmup_steps"),
    )


def test_B137_a_tenth_at_256_and_doubling_to_2048_is_one_line():
    total = 10_000
    plan = SequenceLengthPlan(
        StagedSchedule([256, 512, 1024, 2048], [1000, 2000, 3000]), batch_size=8, total_steps=total
    )
    found = [plan.length(s) for s in (0, 999, 1000, 1999, 2000, 2999, 3000, 9999)]
    assert found == [256, 256, 512, 512, 1024, 1024, 2048, 2048]
    doubling = SequenceLengthPlan(DoublingSchedule(256, 2048, warmup_fraction=0.8), batch_size=8, total_steps=total)
    assert doubling.lengths == (256, 512, 1024, 2048)


def test_B138_rows_need_not_be_divisible_by_the_accumulation_steps():
    plan = SequenceLengthPlan(ConstantSchedule(8), batch_size=5, grad_accum_steps=2, total_steps=3)
    assert (plan.rows(0), plan.global_rows(0), plan.total_tokens) == (5, 10, 240)
    budget = SequenceLengthPlan(ConstantSchedule(8), tokens_per_batch=43, grad_accum_steps=3)
    assert (budget.rows(0), budget.tokens(0)) == (5, 120), "a budget need not be divisible by the length"


def test_B141_the_length_of_a_step_is_known_without_data():
    schedule = ExponentialSchedule(8, 1024, warmup_steps=700)
    plan = SequenceLengthPlan(schedule, batch_size=4)
    assert [plan.length(s) for s in range(701)] == [schedule(s) for s in range(701)]


@given(runs())
def test_B142_all_micro_batches_of_a_step_have_one_shape(run):
    schedule, shape, total = run
    plan = SequenceLengthPlan(schedule, **{**shape, "grad_accum_steps": 4}, total_steps=total)
    for stage in plan.stages:  # a stage begins and ends with a step, and its rows are of every micro-batch
        assert plan.tokens(stage.start) == 4 * shape["world_size"] * stage.rows * stage.length
        held = stage.stop - stage.start
        assert plan.tokens_before(stage.stop) - stage.tokens_before == held * plan.tokens(stage.start)


def test_B148_a_schedule_may_go_up_and_down_again():
    plan = SequenceLengthPlan(StagedSchedule([4, 8, 16, 4, 8, 16], [1, 2, 3, 4, 5]), tokens_per_batch=16, total_steps=6)
    assert [s.length for s in plan.stages] == [4, 8, 16, 4, 8, 16]
    assert [s.rows for s in plan.stages] == [4, 2, 1, 4, 2, 1]
    assert plan.lengths == (4, 8, 16) and plan.total_tokens == 96
    cyclic_plan = SequenceLengthPlan(
        CyclicSchedule(DoublingSchedule(4, 16, warmup_steps=12, multiple_of=4), 2), tokens_per_batch=16
    )
    assert [s.length for s in cyclic_plan.stages] == [4, 8, 4, 8, 16]


def test_B150_rows_or_a_budget_of_tokens_but_not_both():
    both = {"batch_size": 8, "tokens_per_batch": 4096}
    refused(
        lambda: SequenceLengthPlan(ConstantSchedule(8), **both), "exactly one", "batch_size=8", "tokens_per_batch=4096"
    )
    refused(lambda: SequenceLengthPlan(ConstantSchedule(8)), "exactly one", "batch_size", "tokens_per_batch", "None")


def test_B073_the_number_of_distinct_lengths_is_known_up_front_and_can_be_bounded():
    line = LinearSchedule(8, 1024, warmup_steps=3000)
    assert len(SequenceLengthPlan(line, batch_size=4).lengths) == 128
    assert SequenceLengthPlan(DoublingSchedule(8, 1024, warmup_steps=3000), batch_size=4).lengths == tuple(
        8 << k for k in range(8)
    )
    thin = LinearSchedule(8, 1024, warmup_steps=3000, max_distinct=8)
    assert len(SequenceLengthPlan(thin, batch_size=4).lengths) == 8
