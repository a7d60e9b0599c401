"""Public reports about resuming the same run: at every batch, in every pass, whatever was read ahead."""

import itertools
import random

import numpy as np
import pytest
import torch
from cases import SizedTurning, Turning, cut, flat, ids, joined, numbered, take, through_json
from refusals import refused
from torch.utils.data import DataLoader, get_worker_info

from slw_data import ConstantSchedule, SLWDataset, SLWLoader, StateError, open_tokens


@pytest.mark.parametrize("source", [list, lambda docs: lambda: iter(docs)], ids=["list", "callable"])
def test_B026_the_rest_of_a_document_and_the_pass_survive_every_cut(source):
    docs = numbered([7] * 12)
    expected = cut(joined(docs) * 3, [(1, 4)] * 63)

    def loader():
        return SLWLoader(SLWDataset(source(docs), ConstantSchedule(4), batch_size=1, epochs=3), prefetch=0)

    first = loader()
    for k, _ in enumerate(first, 1):
        if k < len(expected):
            second = loader()
            second.load_state_dict(through_json(first.state_dict()))
            assert ids(second) == expected[k:], f"cut {k}"
    assert k == 63


@pytest.mark.parametrize("num_workers", [0, 2])
def test_B028_a_state_loaded_after_iter_is_applied_and_the_old_iterator_says_so(num_workers):
    def loader():
        return SLWLoader(SLWDataset(np.arange(160), ConstantSchedule(4), batch_size=2), num_workers=num_workers)

    saved = loader()
    take(saved, 7)
    second = loader()
    started = iter(second)
    next(started)
    second.load_state_dict(saved.state_dict())
    refused(lambda: next(started), "after this iterator was made", "iter(loader)", error=StateError)
    assert second.state_dict() == saved.state_dict()
    assert ids(take(second, 4)) == cut(range(160), [(2, 4)] * 20)[7:11]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_B043_a_looping_source_resumes_in_its_loop(num_workers):
    docs = numbered([8] * 10)

    def loader():
        dataset = SLWDataset(docs, ConstantSchedule(4), batch_size=2, total_steps=40)
        return SLWLoader(dataset, num_workers=num_workers)

    first, second = loader(), loader()
    take(first, 25)
    state = through_json(first.state_dict())
    assert (state["step"], state["epoch"]) == (25, 2)
    second.load_state_dict(state)
    assert ids(take(second, 5)) == [[doc[:4], doc[4:]] for doc in docs[5:]]


def test_B044_a_second_loader_over_a_used_dataset_goes_where_its_state_says():
    dataset = SLWDataset(np.arange(160), ConstantSchedule(4), batch_size=2)
    expected = cut(range(160), [(2, 4)] * 20)
    assert ids(take(dataset, 2)) == expected[:2]
    first = SLWLoader(dataset)
    assert ids(take(first, 4)) == expected[2:6]
    state = first.state_dict()
    assert state["step"] == 6
    second = SLWLoader(dataset)
    second.load_state_dict(state)
    assert ids(second) == expected[6:]


def batch_and_state(batch):
    info = get_worker_info()
    return info.id, batch["input_ids"].tolist(), info.dataset.state_dict()


@pytest.mark.parametrize("source", [np.arange(320), numbered([5] * 64)], ids=["store", "stream"])
def test_B045_a_state_never_counts_what_was_made_ahead(source):
    expected = cut(range(320), [(2, 4)] * 40)
    first = SLWLoader(SLWDataset(source, ConstantSchedule(4), batch_size=2), num_workers=2, prefetch_factor=4)
    take(first, 3)
    second = SLWLoader(SLWDataset(source, ConstantSchedule(4), batch_size=2), num_workers=2, prefetch_factor=4)
    second.load_state_dict(through_json(first.state_dict()))
    assert second.step == 3 and ids(second) == expected[3:]

    dataset = SLWDataset(source, ConstantSchedule(4), batch_size=2)
    inside = DataLoader(dataset, None, num_workers=2, prefetch_factor=4, collate_fn=batch_and_state)
    for k, (worker, rows, state) in enumerate(itertools.islice(inside, 9)):
        assert (worker, rows, state["step"]) == (k % 2, expected[k], k + 1)
    refused(dataset.state_dict, "DataLoader workers", "loader.state_dict()", error=StateError)


def test_B046_a_source_shorter_than_the_run_is_looped_after_a_resume_too():
    docs = numbered([8] * 10)  # ten batches

    def loader():
        return SLWLoader(SLWDataset(docs, ConstantSchedule(4), batch_size=2, total_steps=20))

    pass_of_ten = [[doc[:4], doc[4:]] for doc in docs]
    by_state, by_skipping = loader(), loader()
    first = loader()
    take(first, 10)
    by_state.load_state_dict(through_json(first.state_dict()))
    skipping = iter(by_skipping)
    for _ in range(10):
        next(skipping)
    assert ids(by_state) == ids(skipping) == pass_of_ten


def test_B080_counters_are_of_the_run_not_of_the_last_resume():
    docs = numbered([9] * 80)
    expected = cut(joined(docs), [(2, 4)] * 90)
    for source in (np.arange(720), docs):
        state, done = None, 0
        for batches in (30, 10, 5):
            loader = SLWLoader(SLWDataset(source, ConstantSchedule(4), batch_size=2))
            if state is not None:
                loader.load_state_dict(state)
            assert ids(take(loader, batches)) == expected[done : done + batches]
            done += batches
            state = through_json(loader.state_dict())
            assert (state["step"], state["rows"], state["tokens"]) == (done, 2 * done, 8 * done)
        assert done == 45


def test_B097_and_B120_a_shuffled_run_goes_on_and_leaves_the_global_generators_alone(tmp_path):
    np.arange(4096, dtype=np.uint16).tofile(tmp_path / "train.bin")
    store = open_tokens(tmp_path / "train.bin", dtype="uint16", vocab_size=5000)

    def loader(seed=7):
        return SLWLoader(SLWDataset(store, ConstantSchedule(8), batch_size=4, shuffle=True, seed=seed))

    def generators():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = generators()
    first = loader()
    early = flat(take(first, 50))
    second = loader()
    second.load_state_dict(through_json(first.state_dict()))
    late = flat(second)
    assert generators() == before
    assert sorted(early + late) == list(range(4096)) and not set(early) & set(late)
    assert early + late == flat(loader()) != list(range(4096))
    assert flat(loader(seed=8)) != early + late


@pytest.mark.parametrize("kind", [Turning, SizedTurning])
def test_B095_the_pass_is_known_before_the_order_of_its_source_is(kind):
    docs = numbered([6] * 8)
    shapes = [(2, 4)] * 18
    expected = cut(joined(joined(kind(docs).of_pass(epoch)) for epoch in range(3)), shapes)

    def loader():
        return SLWLoader(SLWDataset(kind(docs), ConstantSchedule(4), batch_size=2, epochs=3), prefetch=0)

    for k in range(19):
        first, second = loader(), loader()
        assert ids(take(first, k)) == expected[:k]
        state = through_json(first.state_dict())
        if k < 18:
            assert state["epoch"] == 8 * k // 48
            second.load_state_dict(state)
            assert ids(second) == expected[k:]
