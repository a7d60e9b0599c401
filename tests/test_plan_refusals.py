"""What a plan refuses: callables that misbehave, impossible sizes, questions about no step."""

import itertools

import numpy as np
import pytest
import torch
from refusals import refused, shown
from strategies import Table

from slw_data.errors import ScheduleError
from slw_data.plan import SequenceLengthPlan, Stage
from slw_data.plan.schedules import (
    ConstantSchedule,
    CyclicSchedule,
    LinearSchedule,
    StagedSchedule,
)

# -- callables that misbehave -----------------------------------------------------------------------------------------


class At:
    """8, but ``value`` at ``step``."""

    def __init__(self, step, value):
        self.step, self.value = step, value

    def __call__(self, step):
        return self.value if step == self.step else 8

    def __repr__(self):
        return "At(...)"


BAD = [True, False, 2.5, "8", None, float("nan"), float("inf"), 0, -8, 2.0, np.float64(8), np.bool_(True), [8]]


@pytest.mark.parametrize("value", [*BAD, torch.tensor(8.0), torch.tensor(True), torch.tensor([8, 9]), 1j], ids=repr)
@pytest.mark.parametrize("step", [0, 2, 10])
def test_a_length_that_is_no_positive_int_is_refused_at_construction(step, value):
    refused(
        lambda: SequenceLengthPlan(At(step, value), batch_size=2), f"step {step}", "length", "At(...)", shown(value)
    )


@pytest.mark.parametrize("value", [*BAD, torch.tensor(8.0), torch.tensor(True)], ids=repr)
def test_a_length_that_is_no_positive_int_is_refused_when_it_comes(value):
    plan = SequenceLengthPlan(At(37, value), batch_size=2, total_steps=60)
    assert plan.tokens_before(37) == 37 * 16
    for _ in range(2):  # and again: nothing is remembered of it
        refused(lambda: plan.length(37), "step 37", shown(value), ">= 1", "At(...)")
        refused(lambda: plan.tokens_before(50), "step 37", shown(value))
    assert plan.length(36) == 8 and plan.step_at(36 * 16) == 36


@pytest.mark.parametrize("kind", [np.int64, np.uint16, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_a_length_of_numpy_or_torch_becomes_an_int(kind):
    plan = SequenceLengthPlan(lambda step: kind(8 + step // 4), batch_size=2, total_steps=8)
    assert plan.stages == (Stage(0, 4, 8, 2, 1, 0, 0), Stage(4, 8, 9, 2, 1, 8, 64))
    assert type(plan.length(3)) is type(plan.length(7)) is type(plan.tokens(7)) is int


@pytest.mark.parametrize("step", [0, 3, 55])
def test_a_schedule_that_raises_is_refused_with_the_step(step):
    def schedule(s):
        if s == step:
            raise KeyError("no such stage")
        return 8

    def ask():
        SequenceLengthPlan(schedule, batch_size=2, total_steps=100).tokens_before(100)

    refused(ask, f"step {step}", "KeyError", "no such stage", "schedule")
    with pytest.raises(ScheduleError) as caught:
        ask()
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_schedule_that_raises_late_keeps_what_was_read():
    def schedule(step):
        if step >= 50:
            raise IndexError("table ends")
        return 4 + step % 2

    plan = SequenceLengthPlan(schedule, batch_size=2, total_steps=50)
    assert plan.total_tokens == 50 * 9
    assert plan.stages[-1].stop == 50
    refused(lambda: plan.length(50), "step 50", "IndexError", "table ends")
    assert plan.length(49) == 5


def test_a_table_that_ends_with_the_run_is_enough_when_the_run_is_given_in_tokens():
    lengths = [4] * 120
    plan = SequenceLengthPlan(lengths.__getitem__, batch_size=1, total_tokens=480)
    assert plan.total_steps == 120 and plan.total_tokens == 480


def test_the_fingerprint_of_a_callable_asks_nothing_beyond_a_run_of_tokens():
    lengths = [4] * 121
    plan = SequenceLengthPlan(lengths.__getitem__, batch_size=1, total_tokens=480)
    assert plan.fingerprint.startswith("4..4 tokens")


def test_a_schedule_that_changes_its_mind_is_refused():
    calls = itertools.count()
    refused(lambda: SequenceLengthPlan(lambda step: 8 + next(calls), batch_size=2), "pure function", "8", "step 0")
    later = itertools.count(8)
    refused(
        lambda: SequenceLengthPlan(lambda step: next(later) if step == 10 else 8, batch_size=2),
        *("pure function", "8 and then 9", "step 10"),
    )


def test_an_object_that_is_no_schedule_is_a_type_error():
    refused(lambda: SequenceLengthPlan(16, batch_size=2), "callable", "16", error=TypeError)
    refused(lambda: SequenceLengthPlan([8, 16], batch_size=2), "callable", "[8, 16]", error=TypeError)


def test_a_schedule_class_in_place_of_a_schedule_is_refused():
    with pytest.raises((TypeError, ScheduleError), match="ConstantSchedule"):
        SequenceLengthPlan(ConstantSchedule, batch_size=2)


# -- sizes that are impossible ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batch_size", "tokens_per_batch", "grad_accum_steps", "world_size"])
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2", float("nan")])
def test_a_size_that_is_no_positive_int_is_refused(name, value):
    sizes = {name: value} if name.endswith("batch") or name == "batch_size" else {"batch_size": 2, name: value}
    refused(lambda: SequenceLengthPlan(ConstantSchedule(8), **sizes), name, ">= 1", f"got {shown(value)}")


@pytest.mark.parametrize("name", ["total_steps", "total_tokens"])
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2"])
def test_an_end_that_is_no_positive_int_is_refused(name, value):
    refused(lambda: SequenceLengthPlan(ConstantSchedule(8), batch_size=2, **{name: value}), name, f"got {shown(value)}")


def test_two_ends_are_refused():
    ends = {"total_steps": 3, "total_tokens": 77}
    refused(
        lambda: SequenceLengthPlan(ConstantSchedule(8), batch_size=2, **ends), "total_steps", "total_tokens", "3", "77"
    )


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantSchedule(64),
        LinearSchedule(8, 64, warmup_steps=1000),
        LinearSchedule(8, 64, warmup_tokens=1000),
        StagedSchedule([8, 64, 8], [10**9, 2 * 10**9]),
        CyclicSchedule(LinearSchedule(8, 64, warmup_steps=4), 2),
        At(3, 64),
    ],
    ids=repr,
)
def test_a_budget_below_the_longest_row_is_refused_at_once(schedule):
    refused(lambda: SequenceLengthPlan(schedule, tokens_per_batch=63), "tokens_per_batch=63", "64")
    assert SequenceLengthPlan(schedule, tokens_per_batch=64).rows(0) >= 1


def test_a_budget_below_a_late_row_of_a_callable_is_refused_when_it_comes():
    plan = SequenceLengthPlan(At(37, 64), tokens_per_batch=63)
    assert plan.length(36) == 8
    refused(lambda: plan.length(37), "tokens_per_batch=63", "64", "step 37")


@pytest.mark.parametrize("value", [-1, 2.0, True, None, "3"])
@pytest.mark.parametrize("name", ["length", "rows", "global_rows", "tokens", "tokens_before", "rows_before", "step_at"])
def test_a_question_about_no_step_is_refused(name, value):
    for schedule in (LinearSchedule(8, 64, warmup_steps=10), Table((8, 9))):
        plan = SequenceLengthPlan(schedule, batch_size=2)
        refused(lambda: getattr(plan, name)(value), ">= 0", shown(value))  # noqa: B023


def test_a_run_of_fewer_tokens_than_one_step_says_so():
    def describe():
        plan = SequenceLengthPlan(ConstantSchedule(8), batch_size=2, total_tokens=15)
        assert plan.total_steps == 0
        plan.describe()
        plan.largest_batch()
        plan.cost(num_params=1, num_layers=1, hidden_size=1)

    try:
        describe()
    except ValueError as error:
        assert isinstance(error, ScheduleError) and "15" in str(error) and "16" in str(error), error
