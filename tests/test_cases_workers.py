"""Public reports about worker processes: every token once, in order, and the length of the batch's own step."""

import itertools
import json
import time

import datasets
import numpy as np
import pytest
from cases import SizedTurning, Turning, cut, flat, ids, joined, numbered, take, through_json, widths
from delivery import Documented
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from slw_data import ConstantSchedule, LinearSchedule, SLWDataset, SLWLoader, StagedSchedule

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create . worker processes")  # on two cores


def both_loaders(make, num_workers):
    """The run through the library's loader, and through torch's."""
    ahead = {"prefetch_factor": 3} if num_workers else {}
    return list(SLWLoader(make(), num_workers=num_workers)), list(
        DataLoader(make(), batch_size=None, num_workers=num_workers, **ahead)
    )


@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
def test_B001_every_token_once_for_any_number_of_workers(num_workers):
    docs = numbered([8] * 120)
    for found in both_loaders(lambda: SLWDataset(docs, ConstantSchedule(8), batch_size=2), num_workers):
        assert flat(found) == list(range(960))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_B002_the_length_is_the_steps_own_and_the_main_process_cannot_set_it(num_workers):
    schedule = StagedSchedule([4, 8], [4])
    loader = SLWLoader(SLWDataset(np.arange(200), schedule, batch_size=2), num_workers=num_workers)
    found = []
    for batch in loader:
        found.append(batch)
        for thing, name in ((loader, "sequence_length"), (loader, "step"), (schedule, "lengths")):
            with pytest.raises(AttributeError):
                setattr(thing, name, 8)
    assert widths(found) == [4] * 4 + [8] * 10
    assert flat(found) == list(range(192))


@pytest.mark.parametrize("num_shards", [1, 3])
def test_B012_more_workers_than_shards_read_every_token_once(num_shards):
    docs = numbered([5, 7, 3, 9] * 6)
    source = datasets.Dataset.from_dict({"input_ids": docs}).to_iterable_dataset(num_shards=num_shards)
    shapes = [(2, 4)] * 5 + [(2, 8)] * 6

    def make():
        return SLWDataset(source, StagedSchedule([4, 8], [5]), batch_size=2)

    for found in both_loaders(make, 4):
        assert ids(found) == cut(joined(docs), shapes)


class SplitsItself(IterableDataset):
    """Gives each torch worker its own part, as many datasets do."""

    def __init__(self, documents):
        self.documents = documents

    def __iter__(self):
        info = get_worker_info()
        part = slice(None) if info is None else slice(info.id, None, info.num_workers)
        yield from self.documents[part]


@pytest.mark.parametrize("kind", ["generator function", "torch IterableDataset", "Hugging Face"])
def test_B015_a_source_is_split_once_whether_or_not_it_splits_itself(kind):
    docs = numbered([3, 8, 5, 2] * 8)
    source = {
        "generator function": lambda: iter(docs),
        "torch IterableDataset": SplitsItself(docs),
        "Hugging Face": datasets.Dataset.from_dict({"input_ids": docs}).to_iterable_dataset(num_shards=4),
    }[kind]
    expected = cut(joined(docs), [(2, 6)] * 12)
    for found in both_loaders(lambda: SLWDataset(source, ConstantSchedule(6), batch_size=2), 2):
        assert ids(found) == expected
    if kind == "torch IterableDataset":  # the scenario can fail: alone, it does split itself
        assert len(list(DataLoader(source, batch_size=None, num_workers=2, collate_fn=list))) == len(docs)


def with_worker(batch):
    return get_worker_info().id, batch["input_ids"].tolist()


@pytest.mark.parametrize("source", [np.arange(240), numbered([10] * 24)], ids=["store", "stream"])
def test_B016_workers_find_out_who_they_are_when_they_start(source):
    dataset = SLWDataset(source, ConstantSchedule(4), batch_size=3)  # made before there are workers
    found = list(DataLoader(dataset, batch_size=None, num_workers=2, collate_fn=with_worker))
    seen = [{token for worker, rows in found if worker == w for row in rows for token in row} for w in (0, 1)]
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(240))
    assert min(map(len, seen)) == 120


@pytest.mark.parametrize("persistent_workers", [False, True])
@pytest.mark.parametrize("kind", [Turning, SizedTurning])
def test_B037_the_pass_reaches_workers_that_live_on(kind, persistent_workers):
    docs = numbered([4] * 12)
    expected = [joined(kind(docs).of_pass(epoch)) for epoch in range(2)]
    assert expected[0] != expected[1]

    def loader():
        dataset = SLWDataset(kind(docs), ConstantSchedule(4), batch_size=2, epochs=2)
        return SLWLoader(dataset, num_workers=2, persistent_workers=persistent_workers)

    assert flat(loader()) == expected[0] + expected[1]
    second = loader()
    second.seek(6)
    assert second.epoch == 1 and flat(second) == expected[1]


def test_B037_a_shuffled_store_has_another_order_in_each_pass_of_live_workers():
    dataset = SLWDataset(np.arange(256), ConstantSchedule(4), batch_size=4, epochs=2, shuffle=True)
    found = flat(SLWLoader(dataset, num_workers=2, persistent_workers=True))
    first, second = found[:256], found[256:]
    assert sorted(first) == sorted(second) == list(range(256)) and first != second
    loader = SLWLoader(dataset, num_workers=2)
    loader.seek(16)
    assert flat(loader) == second


def test_B061_a_consumer_one_batch_ahead_trains_at_the_right_length_and_knows_its_state():
    docs = numbered([7] * 40)
    schedule = StagedSchedule([4, 8, 6], [3, 6])
    for source in (np.arange(280), docs):
        plain = SLWLoader(SLWDataset(source, schedule, batch_size=2, total_steps=10), prefetch=0)
        states = [plain.state_dict(), *(plain.state_dict() for _ in plain)]
        loader = SLWLoader(SLWDataset(source, schedule, batch_size=2, total_steps=10, extras=("step",)))
        held = None
        for batch in itertools.chain(loader, [None]):
            if held is not None:
                step = held["step"][0].item()
                assert held["input_ids"].shape[1] == [4, 4, 4, 8, 8, 8, 6, 6, 6, 6][step]
                assert loader.step == min(step + 2, 10), "the loader counts what it has delivered"
                trained = loader.dataset.run.state_at(loader.dataset.run.position_of(step + 1))
                assert trained == states[step + 1]
            held = batch


@pytest.mark.parametrize("source", [np.arange(4000), numbered([40] * 100)], ids=["store", "stream"])
def test_B066_reading_ahead_changes_neither_the_state_nor_the_lengths(source):
    def make():
        return SLWDataset(source, StagedSchedule([4, 8, 12], [1, 5]), batch_size=2)

    loader = SLWLoader(make(), num_workers=4, prefetch_factor=4)
    first = next(iter(loader))
    state = loader.state_dict()
    assert ids([first]) == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert (state["step"], state["batch"], state["rows"], state["tokens"], loader.sequence_length) == (1, 0, 2, 8, 4)
    again = SLWLoader(make())
    again.load_state_dict(through_json(state))
    expected = cut(range(4000), [(2, 4), *[(2, 8)] * 4, *[(2, 12)] * 20])
    assert ids(take(again, 24)) == expected[1:]
    assert ids(take(loader, 24)) == expected[1:]


@pytest.mark.parametrize("kind", [Turning, SizedTurning])
def test_B081_each_pass_has_its_own_order_in_workers_and_after_a_resume(kind):
    docs = numbered([5] * 8)
    expected = cut(joined(joined(kind(docs).of_pass(epoch) for epoch in range(3))), [(2, 4)] * 15)

    def loader(num_workers):
        return SLWLoader(SLWDataset(kind(docs), ConstantSchedule(4), batch_size=2, epochs=3), num_workers=num_workers)

    assert ids(loader(0)) == ids(loader(2)) == expected
    for cut_at in (5, 7, 11):  # where pass 1 begins, in it, and in pass 2
        first = loader(2)
        take(first, cut_at)
        second = loader(2)
        second.load_state_dict(through_json(first.state_dict()))
        assert second.epoch == cut_at // 5 and ids(second) == expected[cut_at:]


def test_B082_later_passes_are_the_same_from_run_to_run():
    shapes = [(2, 4)] * 20 + [(2, 8)] * 10
    expected = cut([*range(160), *range(160)], shapes)
    for run in range(5):
        dataset = SLWDataset(numbered([10] * 16), StagedSchedule([4, 8], [20]), batch_size=2, epochs=2)
        loader = SLWLoader(dataset, num_workers=2 + run % 3, persistent_workers=True)
        assert ids(loader) == expected, f"run {run}"


class SlowInWorker0(Documented):
    def gather(self, starts, length, out):
        info = get_worker_info()
        time.sleep(0.03 if info is not None and info.id == 0 else 0)
        super().gather(starts, length, out)


def slow_in_worker_0(batch):
    time.sleep(0.03 if get_worker_info().id == 0 else 0)
    return batch


def test_B083_a_slow_worker_changes_no_length_and_out_of_order_delivery_is_refused():
    schedule = StagedSchedule([4, 8, 12, 16], [2, 4, 6])
    shapes = [(1, schedule(step)) for step in range(8)]
    dataset = SLWDataset(SlowInWorker0(range(80), [0]), schedule, batch_size=1)
    assert ids(SLWLoader(dataset, num_workers=2)) == cut(range(80), shapes)
    with pytest.raises(TypeError, match="in_order"):
        SLWLoader(dataset, num_workers=2, in_order=False)


def test_B083_out_of_order_in_torchs_loader_each_batch_still_has_the_length_of_its_step():
    schedule = StagedSchedule([4, 8, 12, 16], [2, 4, 6])
    dataset = SLWDataset(np.arange(80), schedule, batch_size=1, extras=("step",))
    loader = DataLoader(dataset, batch_size=None, num_workers=2, in_order=False, collate_fn=slow_in_worker_0)
    found = {batch["step"].item(): batch["input_ids"].tolist() for batch in loader}
    assert [found[step] for step in range(8)] == cut(range(80), [(1, schedule(step)) for step in range(8)])


def test_B084_the_micro_batches_of_a_step_have_one_length_in_workers():
    schedule = LinearSchedule(4, 16, warmup_steps=3, multiple_of=4)
    for source in (np.arange(1000), numbered([25] * 40)):
        dataset = SLWDataset(source, schedule, batch_size=2, grad_accum_steps=2, total_steps=8, extras=("step",))
        for found in (list(SLWLoader(dataset, num_workers=2)), list(DataLoader(dataset, None, num_workers=2))):
            assert [batch["step"].tolist() for batch in found] == [[i // 2] * 2 for i in range(16)]
            assert widths(found) == [4, 4, 8, 8, 12, 12] + [16] * 10
            assert flat(found) == list(range(4 * (4 + 8 + 12 + 16 * 5)))


@pytest.mark.parametrize("buffer_size", [1, 10])
def test_B085_a_shuffled_source_with_another_number_of_shards_is_read_once(buffer_size):
    docs = numbered([4] * 64)
    source = datasets.Dataset.from_dict({"input_ids": docs}).to_iterable_dataset(num_shards=8)
    source = source.shuffle(seed=3, buffer_size=buffer_size)
    expected = joined(row["input_ids"] for row in source)
    assert expected != joined(docs) and sorted(expected) == joined(docs)
    schedule, shapes = StagedSchedule([4, 8], [8]), [(2, 4)] * 8 + [(2, 8)] * 12

    def dataset(**ranks):
        if buffer_size == 1:
            return SLWDataset(source, schedule, **ranks)
        with pytest.warns(UserWarning, match="cannot be resumed exactly.*10 rows"):
            return SLWDataset(source, schedule, **ranks)

    assert ids(SLWLoader(dataset(batch_size=2), num_workers=4)) == cut(expected, shapes)
    ranks = [ids(SLWLoader(dataset(batch_size=1, dp_rank=r, dp_world_size=4))) for r in range(4)]
    by_step = [joined(parts) for parts in zip(*ranks, strict=True)]
    assert by_step == cut(expected, [(4, 4)] * 8 + [(4, 8)] * 4)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_B113_the_order_is_the_sources_for_any_number_of_workers(num_workers):
    for source in (np.arange(210), numbered([7] * 30)):
        found = list(SLWLoader(SLWDataset(source, ConstantSchedule(5), batch_size=3), num_workers=num_workers))
        assert [batch["input_ids"][0, 0].item() for batch in found] == list(range(0, 210, 15))


def test_B115_only_one_layer_splits_files_among_workers(tmp_path):
    docs = numbered([4] * 32)
    for i in range(8):
        lines = [json.dumps({"input_ids": doc}) for doc in docs[4 * i : 4 * i + 4]]
        (tmp_path / f"{i}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files = [str(tmp_path / f"{i}.jsonl") for i in range(8)]
    source = datasets.load_dataset("json", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path))
    assert source.num_shards == 8
    dataset = SLWDataset(source, ConstantSchedule(4), batch_size=2)
    found = list(DataLoader(dataset, batch_size=None, num_workers=2, collate_fn=with_worker))
    assert joined(joined(rows) for _, rows in found) == joined(docs)
    seen = [[token for worker, rows in found if worker == w for token in joined(rows)] for w in (0, 1)]
    assert len(seen[0]) == len(seen[1]) == 64 and not set(seen[0]) & set(seen[1])
