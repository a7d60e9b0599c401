"""Batches that grow: Megatron's text, the learning rate, steps as lists, and who refuses a changing accumulation."""

import json
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from slw_data import (
    ConstantSchedule,
    DoublingSchedule,
    LinearSchedule,
    SequenceLengthPlan,
    SLWDataset,
    SLWLoader,
    StagedSchedule,
    from_megatron,
)
from slw_data.integrations.composer import data_spec
from slw_data.integrations.torchtitan import TorchTitanLoader
from slw_data.training import lr_scale

TOKENS = np.arange(20_000) % 97


# -- Megatron ----------------------------------------------------------------------------------------------------------


def by_megatron(entries, steps, length=None):
    """The rows of each step: Megatron looks up the consumed samples in its list before each."""
    entries = [(threshold if length is None else threshold // length, rows) for threshold, rows in entries]
    found, consumed = [], 0
    for _ in range(steps):
        rows = entries[0][1]
        for threshold, wanted in entries:
            if consumed >= threshold:
                rows = wanted
        found.append(rows)
        consumed += rows
    return found


@st.composite
def entries(draw):
    gaps = draw(st.lists(st.integers(1, 400), max_size=5))
    thresholds = [0, *np.cumsum(gaps).tolist()]
    return [(threshold, 4 * draw(st.integers(1, 9))) for threshold in thresholds]


def text_of(pairs):
    return " ".join(f"{threshold}:{rows}" for threshold, rows in pairs)


@given(entries())
def test_rows_of_each_step_are_those_of_megatrons_calculator(pairs):
    rows = by_megatron(pairs, 80)
    plan = SequenceLengthPlan(ConstantSchedule(8), batch_size=from_megatron(text_of(pairs), world_size=2), world_size=2)
    assert [plan.global_rows(step) for step in range(80)] == rows
    accumulated = from_megatron(text_of(reversed(pairs)), micro_batch_size=2, world_size=2)  # it sorts them
    plan = SequenceLengthPlan(ConstantSchedule(8), batch_size=2, grad_accum_steps=accumulated, world_size=2)
    assert [(plan.global_rows(step), plan.micro_batches(step)) for step in range(80)] == [(n, n // 4) for n in rows]


@given(entries(), st.integers(1, 9))
def test_thresholds_in_tokens_are_whole_rows_of_the_sequence_length(pairs, length):
    if len({threshold // length for threshold, _ in pairs}) < len(pairs):
        refused(lambda: from_megatron(text_of(pairs), sequence_length=length), "thresholds must ascend")
        return
    schedule = from_megatron(text_of(pairs), sequence_length=length)
    plan = SequenceLengthPlan(ConstantSchedule(length), batch_size=schedule)
    assert [plan.rows(step) for step in range(80)] == by_megatron(pairs, 80, length)


def test_megatrons_own_example_with_suffixes():
    text = "0:768 250B:1536 500B:3072 750B:6144"
    rows = from_megatron(text, sequence_length=8192)
    assert rows.lengths == (768, 1536, 3072, 6144) and rows.unit == "tokens"
    assert rows.boundaries == tuple(n * 10**9 // 8192 * 8192 for n in (250, 500, 750))
    plan = SequenceLengthPlan(ConstantSchedule(8192), batch_size=rows)
    step = -(-rows.boundaries[0] // (768 * 8192))  # the first that begins at or after the boundary
    assert [plan.rows(s) for s in (step - 1, step)] == [768, 1536] and len(plan._layout.starts) == 4
    assert from_megatron("0:1K, 1.5k:2k, 0.5M:3k").lengths == (1000, 2000, 3000)


BAD = {
    "empty": (("",), ["first threshold must be 0"]),
    "not from 0": (("5:8",), ["first threshold must be 0", "'5:8'"]),
    "no colon": (("0:8 16",), ["THRESHOLD:ROWS", "'16'"]),
    "no number": (("0:8 x:16",), ["THRESHOLD:ROWS", "'x:16'"]),
    "no rows": (("0:0",), ["THRESHOLD:ROWS", "'0:0'"]),
    "infinite": (("0:8 1e999:16",), ["THRESHOLD:ROWS"]),
    "not a number": (("0:nan",), ["THRESHOLD:ROWS"]),
    "three parts": (("0:8:4",), ["THRESHOLD:ROWS"]),
    "the same twice": (("0:8 5:16 5:32",), ["must ascend", "5"]),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_megatron_refuses_is_refused_in_words(case):
    (text,), facts = BAD[case]
    refused(lambda: from_megatron(text), *facts)


def test_rows_that_ranks_do_not_share_evenly_are_refused_with_what_they_would():
    refused(lambda: from_megatron("0:10", micro_batch_size=2, world_size=4), "10 rows", "8 or 16")
    refused(lambda: from_megatron(7), "text must be a str", error=TypeError)


# -- the learning rate -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.booleans())
def test_the_factor_is_that_of_the_batch_and_not_of_the_length(sizes, accumulations, budget):
    size = StagedSchedule([64 * n if budget else n for n in sizes], [5 * i for i in range(1, len(sizes))])
    accumulation = StagedSchedule(accumulations, [7 * i for i in range(1, len(accumulations))])
    shape = {"tokens_per_batch" if budget else "batch_size": size, "grad_accum_steps": accumulation}
    plan = SequenceLengthPlan(LinearSchedule(8, 64, warmup_steps=30), **shape)
    for step in range(40):
        ratio = size(step) * accumulation(step) / (size(0) * accumulation(0))
        assert lr_scale(plan, rule="linear")(step) == ratio and lr_scale(plan)(step) == ratio**0.5


def test_a_constant_batch_keeps_its_learning_rate_whatever_the_length():
    for shape in ({"batch_size": 4}, {"tokens_per_batch": 1000}):
        scale = lr_scale(SequenceLengthPlan(LinearSchedule(8, 512, warmup_steps=100), **shape, total_steps=200))
        assert {scale(step) for step in range(200)} == {1.0}
    called = lr_scale(SequenceLengthPlan(ConstantSchedule(8), batch_size=lambda step: 4 + 12 * (step > 9)))
    assert [called(9), called(10)] == [1.0, 2.0]
    refused(lambda: lr_scale(SequenceLengthPlan(ConstantSchedule(8), batch_size=4), "cube"), "rule", "'sqrt'", error=ValueError)


def test_a_scheduler_of_torch_takes_it():
    plan = SequenceLengthPlan(ConstantSchedule(8), batch_size=StagedSchedule([4, 16], [2]), total_steps=4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.0)
    scheduler, found = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_scale(plan)), []
    for _ in range(4):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert found == [3.0, 3.0, 6.0, 6.0]


# -- steps -------------------------------------------------------------------------------------------------------------

ACCUMULATION = StagedSchedule([1, 3, 2], [2, 4])


def loader_of(workers=0, **options):
    shape = {"batch_size": 2, "grad_accum_steps": ACCUMULATION, "total_steps": 7, "extras": ("step",), **options}
    return SLWLoader(SLWDataset(TOKENS, LinearSchedule(4, 16, warmup_steps=5, multiple_of=4), **shape), num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_are_lists_of_the_batches_of_each_step(workers):
    expected = [list(batches) for _, batches in groupby(loader_of(), key=lambda batch: int(batch["step"][0]))]
    assert [len(step) for step in expected] == [1, 1, 3, 3, 2, 2, 2]
    loader, found = loader_of(workers), []
    for step in loader.steps():
        found.append(step)
        assert loader.step == len(found) and loader.position.batch == 0
    assert len(found) == 7
    for step, batches in zip(found, expected, strict=True):
        assert len({batch["input_ids"].shape for batch in step}) == 1
        assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(step, batches, strict=True))


@pytest.mark.parametrize("cut", range(1, 14))
def test_steps_go_on_where_a_state_stands_with_the_rest_of_a_begun_step_first(cut):
    whole = list(loader_of())
    loader = loader_of()
    iterator = iter(loader)
    for _ in range(cut):
        next(iterator)
    resumed = loader_of()
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    lists = list(resumed.steps())
    rest = [batch for step in lists for batch in step]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(rest, whole[cut:], strict=True))
    assert all(len({int(batch["step"][0]) for batch in step}) == 1 for step in lists)


def test_describe_shows_the_accumulation_only_where_it_varies():
    headings = loader_of().dataset.plan.describe().splitlines()[0]
    assert headings.split() == ["step", "length", "rows", "batches", "tokens/step", "tokens", "before"]
    constant = SequenceLengthPlan(ConstantSchedule(8), batch_size=2, grad_accum_steps=3, total_steps=4)
    assert "batches" not in constant.describe()


# -- who needs one number ----------------------------------------------------------------------------------------------


def test_trainers_that_fix_the_accumulation_refuse_a_changing_one_by_name():
    refused(lambda: data_spec(loader_of()), "Composer", "loader.steps()")
    shape = {"tokens_per_batch": 64, "batch_size": None, "labels": "shifted", "extras": ("position_ids",)}
    schedule = {"grad_accum_steps": StagedSchedule([1, 2], [3]), "total_steps": 6}
    titan = SLWLoader(SLWDataset(TOKENS, DoublingSchedule(8, 32, warmup_steps=3), **shape, **schedule))
    refused(lambda: TorchTitanLoader(titan), "torchtitan", "loader.steps()")
    refused(lambda: titan.dataset.plan.fixed_accumulation("the Trainer"), "the Trainer", "grad_accum_steps")


def test_a_changing_budget_is_no_flat_batch():
    def make():
        SLWDataset(TOKENS, ConstantSchedule(8), tokens_per_batch=StagedSchedule([32, 64], [3]), extras=("cu_seq_lens",))

    refused(make, "constant number of tokens", "tokens_per_batch=StagedSchedule", error=ValueError)
