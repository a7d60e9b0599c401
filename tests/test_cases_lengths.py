"""Public reports about lengths and counts: what a step is, how long it is, and how many tokens have been delivered."""

import numpy as np
import pytest
import torch
from cases import cut, flat, ids, joined, numbered, take, through_json, widths
from refusals import refused
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from slw_data import (
    ConstantSchedule,
    CyclicSchedule,
    DataError,
    DoublingSchedule,
    LinearSchedule,
    SequenceLengthPlan,
    SLWDataset,
    SLWLoader,
    StagedSchedule,
    StateError,
)

STEPWISE = StagedSchedule([4, 8, 16], [3, 6])


def loader_of(source, schedule, num_workers=0, **options):
    return SLWLoader(SLWDataset(source, schedule, **{"batch_size": 2, **options}), num_workers=num_workers)


def test_B057_and_B106_the_tokens_of_a_step_are_known_and_so_is_the_step_of_a_token():
    loader = loader_of(np.arange(1000), STEPWISE)
    plan, before = loader.dataset.plan, 0
    for step, batch in enumerate(loader):
        assert plan.tokens_before(step) == before
        for token in batch["input_ids"].flatten().tolist():  # in stream order a token's value is its number
            assert plan.step_at(token) == step
        before += batch["input_ids"].numel()
        assert loader.tokens_seen == before
    assert before == 2 * (4 * 3 + 8 * 3 + 16 * 29)
    budget = SequenceLengthPlan(STEPWISE, tokens_per_batch=16)
    assert [budget.tokens_before(step) for step in range(12)] == [16 * step for step in range(12)]


def test_B073_the_lengths_of_a_run_are_known_before_it_and_can_be_made_few():
    linear = LinearSchedule(8, 1024, warmup_steps=200)
    doubling, thinned = DoublingSchedule(8, 1024, warmup_steps=200), LinearSchedule(8, 1024, warmup_steps=200, max_distinct=5)
    for schedule, many in ((linear, 128), (doubling, 8), (thinned, 5)):
        loader = loader_of(np.zeros(10**6, np.uint16), schedule, batch_size=1, total_steps=210)
        assert len(loader.dataset.plan.lengths) == many
        assert tuple(sorted(set(widths(loader)))) == loader.dataset.plan.lengths


def test_B074_the_largest_shape_is_known_beforehand_and_asking_moves_nothing():
    loader = loader_of(np.zeros(200_000, np.uint16), DoublingSchedule(256, 4096, warmup_steps=8), total_steps=12)
    before = loader.state_dict()
    rows, length = loader.dataset.plan.largest_batch()
    assert torch.ones(rows, length).shape == (2, 4096) and loader.state_dict() == before
    shapes = [tuple(batch["input_ids"].shape) for batch in loader]
    assert shapes[0] == (2, 256) and max(shapes, key=lambda shape: shape[0] * shape[1]) == (rows, length)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("source", [np.arange(4000), numbered([50] * 80)], ids=["store", "stream"])
def test_B108_and_B142_a_step_has_one_length_however_many_batches_it_has(source, num_workers):
    loader = loader_of(source, LinearSchedule(4, 16, warmup_steps=3, multiple_of=4), num_workers, grad_accum_steps=4)
    found = widths(take(loader, 20))
    assert found == [4] * 4 + [8] * 4 + [12] * 4 + [16] * 8
    assert loader.step == 5 and loader.tokens_seen == 2 * sum(found)


@pytest.mark.parametrize("source", [np.arange(72), numbered([9] * 8)], ids=["store", "stream"])
def test_B109_the_ramp_goes_on_over_passes(source):
    schedule = StagedSchedule([4, 8, 12, 16], [3, 6, 9])  # the maximum is reached in the second pass
    loader = loader_of(source, schedule, epochs=3)
    batches, epochs = [], []
    for batch in loader:
        batches.append(batch)
        epochs.append(loader.epoch)
    assert widths(batches) == [4] * 3 + [8] * 3 + [12] * 3 + [16] * 2  # six batches are a pass
    assert flat(batches) == (list(range(72)) * 3)[: 2 * (12 + 24 + 36 + 32)]
    assert epochs[4:9] == [0, 1, 1, 1, 2]


def test_B124_a_warmup_in_tokens_needs_no_length_of_the_source_and_resumes():
    docs = numbered([50] * 80)
    schedule = LinearSchedule(4, 16, warmup_tokens=1200, multiple_of=4)

    def loader():
        return loader_of(lambda: iter(docs), schedule)

    expected, tokens = [], 0
    while tokens < 3000:
        expected.append(16 if tokens >= 1200 else 4 + 12 * tokens // 1200 // 4 * 4)
        tokens += 2 * expected[-1]
    first = loader()
    assert widths(take(first, len(expected))) == expected and set(expected) == {4, 8, 12, 16}
    for k in (10, 70, len(expected) - 1):
        first, second = loader(), loader()
        take(first, k)
        state = through_json(first.state_dict())
        assert state["tokens"] == 2 * sum(expected[:k])
        second.load_state_dict(state)
        assert widths(take(second, len(expected) - k)) == expected[k:]


def test_B127_a_fraction_of_a_run_needs_to_know_the_run():
    fraction = LinearSchedule(4, 16, warmup_fraction=0.5, multiple_of=4)
    for epochs in (None, 3):
        refused(lambda e=epochs: loader_of(lambda: iter([[1] * 99]), fraction, epochs=e), "warmup_fraction", "total_steps")
    assert widths(loader_of(lambda: iter([[1] * 99]), fraction, total_steps=8)) == [4, 4, 8, 12, 16, 16, 16, 16]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_B125_shapes_change_where_the_schedule_does_and_nowhere_else(num_workers):
    docs = numbered([33] * 20)  # no pass and no document ends where a batch does
    batches = list(loader_of(docs, STEPWISE, num_workers, batch_size=3, epochs=3))
    shapes = [tuple(batch["input_ids"].shape) for batch in batches]
    assert shapes == [(3, 4)] * 3 + [(3, 8)] * 3 + [(3, 16)] * 39


def test_B129_rows_are_of_one_process_and_the_plan_counts_all_of_them():
    plan = SequenceLengthPlan(STEPWISE, batch_size=2, grad_accum_steps=3, world_size=4)
    assert (plan.rows(0), plan.global_rows(0), plan.tokens(0), plan.tokens(6)) == (2, 24, 96, 384)
    dataset = SLWDataset(np.arange(2000), plan, dp_rank=1, dp_world_size=4)
    batch = next(iter(dataset))
    assert batch["input_ids"].shape == (2, 4)
    assert [len(half) for half in batch["input_ids"].chunk(2)] == [1, 1]


def test_B137_an_eighth_of_the_maximum_for_a_tenth_of_the_run_then_doubling():
    schedule = DoublingSchedule(256, 2048, warmup_fraction=0.7)
    batches = list(loader_of(np.arange(150_000), schedule, batch_size=1, total_steps=100))
    assert widths(batches) == [256] * 10 + [512] * 20 + [1024] * 40 + [2048] * 30
    assert flat(batches) == list(range(256 * 10 + 512 * 20 + 1024 * 40 + 2048 * 30))[:150_000]


def test_B138_rows_need_not_divide_by_the_accumulation():
    loader = loader_of(np.arange(400), ConstantSchedule(8), batch_size=5, grad_accum_steps=2)
    assert ids(loader) == cut(range(400), [(5, 8)] * 10) and loader.step == 5
    refused(lambda: loader_of(np.arange(400), ConstantSchedule(8), batch_size=None, tokens_per_batch=7), "=7", "8 tokens")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shape", [{"batch_size": 3}, {"batch_size": None, "tokens_per_batch": 50}])
def test_B139_consumed_tokens_are_those_of_the_batches_at_each_step(shape, num_workers):
    for source in (np.arange(2000), numbered([71] * 28)):
        loader, consumed = loader_of(source, STEPWISE, num_workers, **shape), 0
        for batch in loader:
            consumed += batch["input_ids"].numel()
            assert loader.tokens_seen == loader.metrics()["slw/tokens_seen"] == loader.state_dict()["tokens"] == consumed
        assert consumed > 1900


def test_B141_the_length_can_be_asked_where_no_data_is_read():
    plan = SequenceLengthPlan(LinearSchedule(4, 16, warmup_steps=9, multiple_of=4), batch_size=2, total_steps=14)
    found = widths(SLWDataset(numbered([100] * 10), plan))
    assert found == [plan.length(step) for step in range(14)] == [4, 4, 4, 8, 8, 8, 12, 12, 12] + [16] * 5


@pytest.mark.parametrize("source", [np.arange(300), numbered([17, 40, 3] * 5)], ids=["store", "stream"])
def test_B148_what_longer_rows_left_over_comes_in_the_shorter_ones(source):
    sawtooth = StagedSchedule([4, 8, 16] * 2, range(1, 6))
    shapes = [(2, length) for length in (4, 8, 16, 4, 8, 16, 16, 16, 16)]
    assert ids(take(loader_of(source, sawtooth), 9)) == cut(range(300), shapes)
    cycles = CyclicSchedule(LinearSchedule(4, 16, warmup_steps=4, multiple_of=4), 2)
    shapes = [(2, length) for length in (4, 4, 8, 12, 4, 4, 8, 12, 16)]
    assert ids(take(loader_of(source, cycles), 9)) == cut(range(300), shapes)


def test_B150_rows_or_tokens_are_given_and_never_both():
    for shape in ({"batch_size": 2, "tokens_per_batch": 64}, {"batch_size": None}):
        refused(lambda s=shape: loader_of(np.arange(99), STEPWISE, **s), "exactly one", "batch_size", "tokens_per_batch")


# -- the contract of a loader ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_B063_a_length_that_nobody_knows_is_not_guessed(num_workers):
    docs = numbered([3, 50, 8, 1, 22] * 8)
    loader = loader_of(docs, ConstantSchedule(8), num_workers)
    plain = DataLoader(loader.dataset, batch_size=None, num_workers=num_workers)
    for sized in (loader, plain, loader.dataset):
        with pytest.raises(TypeError, match="total_steps" if sized is loader else "len"):
            len(sized)
    assert flat(plain) == flat(loader) == list(range(672))  # and no warning: here they are errors


@pytest.mark.parametrize("num_workers", [0, 2])
def test_B114_and_B134_a_length_that_is_known_counts_batches(num_workers):
    for source, options in (
        (np.arange(500), {}),
        (np.arange(500), {"epochs": 3, "grad_accum_steps": 3}),
        (np.arange(500), {"total_tokens": 777}),
        (numbered([50] * 10), {"total_steps": 31, "grad_accum_steps": 2}),
    ):
        loader = loader_of(source, STEPWISE, num_workers, **options)
        assert len(loader) == sum(1 for _ in loader) > 0


@pytest.mark.parametrize("make", [iter, lambda docs: (doc for doc in docs)], ids=["iterator", "generator"])
def test_B112_a_one_shot_source_is_recognised_and_not_read_for_ever(make):
    docs = numbered([8] * 10)
    loader = loader_of(make(docs), ConstantSchedule(8))
    assert flat(loader) == list(range(80))
    for _ in range(2):
        refused(lambda: list(loader), "one-shot", "callable", error=DataError)
        loader.reset()
    longer = loader_of(make(docs), ConstantSchedule(8), total_steps=20)
    found = []
    refused(lambda: found.extend(ids([batch])[0] for batch in longer), "one-shot", "callable", error=DataError)
    assert len(found) >= 4 and joined(found) == docs[: 2 * len(found)]


def test_B130_it_is_an_iterable_dataset_and_torch_refuses_to_shuffle_it():
    dataset = SLWDataset(np.arange(80), ConstantSchedule(8), batch_size=2)
    assert isinstance(dataset, IterableDataset)
    for wrong in ({"shuffle": True}, {"sampler": RandomSampler(range(9))}, {"batch_sampler": [[1]], "batch_size": 1}):
        with pytest.raises(ValueError, match="IterableDataset"):
            DataLoader(dataset, **{"batch_size": None, **wrong})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_B131_a_loader_that_is_built_anew_of_its_arguments_delivers_the_same(num_workers):
    dataset = SLWDataset(np.arange(300), STEPWISE, batch_size=2)
    expected = cut(range(300), [(2, 4)] * 3 + [(2, 8)] * 3 + [(2, 16)] * 7)
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers)
    names = ("dataset", "batch_size", "num_workers", "collate_fn", "pin_memory", "drop_last", "timeout")
    rebuilt = type(loader)(**{name: getattr(loader, name) for name in names})
    assert ids(rebuilt) == expected
    assert not isinstance(SLWLoader(dataset), DataLoader)
    if num_workers:
        refused(dataset.state_dict, "loader.state_dict()", error=StateError)


@pytest.mark.parametrize("face", [SLWLoader])
@pytest.mark.parametrize("source", [np.arange(80), numbered([8] * 10)], ids=["store", "stream"])
def test_B112_a_finished_run_is_no_silent_empty_pass(source, face):
    iterated = face(SLWDataset(source, ConstantSchedule(8), batch_size=2))
    assert len(list(iterated)) == 5
    with pytest.warns(UserWarning, match="finished"):
        assert list(iterated) == []
