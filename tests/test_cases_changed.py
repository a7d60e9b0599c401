"""Public reports about resuming a run that has changed: ranks, rows, lengths, what is loaded where, and skipping."""

import datasets
import numpy as np
import pytest
from cases import cut, flat, ids, joined, numbered, take, through_json
from datasets.distributed import split_dataset_by_node
from refusals import refused
from torch.utils.data import DataLoader

from slw_data import ConstantSchedule, SLWDataset, SLWLoader, StagedSchedule, StateError

DOCS = numbered([5, 9, 2, 8] * 40)  # 960 tokens
SOURCES = pytest.mark.parametrize("source", [np.arange(960), DOCS], ids=["store", "stream"])


def loader_of(source, schedule=ConstantSchedule(4), rank=0, world=1, **options):
    options = {"batch_size": 2, **options}
    return SLWLoader(SLWDataset(source, schedule, dp_rank=rank, dp_world_size=world, **options), prefetch=0)


def loaded(loader, state, **options):
    loader.load_state_dict(through_json(state), **options)
    return loader


@SOURCES
def test_B031_one_state_serves_every_rank_and_says_so(source):
    ranks = [loader_of(source, rank=rank, world=2) for rank in (0, 1)]
    for loader in ranks:
        take(loader, 6)
    first, second = (loader.state_dict() for loader in ranks)
    assert first == second and first["dp_rank"] is first["dp_world_size"] is None
    expected = cut(range(960), [(4, 4)] * 60)
    for rank in (0, 1):
        again = loaded(loader_of(source, rank=rank, world=2), second)
        assert ids(again) == [rows[2 * rank : 2 * rank + 2] for rows in expected[6:]]


def test_B031_a_state_of_one_rank_alone_is_refused_on_another():
    options = {"world": 2, "sharded": True, "total_steps": 30}
    saved = loader_of(np.arange(480, 960), rank=1, **options)
    take(saved, 6)
    state = saved.state_dict()
    assert (state["dp_rank"], state["dp_world_size"]) == (1, 2)
    other = loader_of(np.arange(480), rank=0, **options)
    before = other.state_dict()
    refused(lambda: loaded(other, state), "dp_rank: saved 1, current 0", "its own state", error=StateError)
    assert other.state_dict() == before
    again = loaded(loader_of(np.arange(480, 960), rank=1, **options), state)
    assert ids(again) == cut(range(480, 960), [(2, 4)] * 30)[6:]


@SOURCES
def test_B032_another_length_from_now_on_begins_at_the_next_unread_token(source):
    saved = loader_of(source)
    take(saved, 10)
    state, changed = saved.state_dict(), StagedSchedule([4, 8], [10])
    again = loaded(loader_of(source, changed), state)
    assert again.step == 10 and ids(take(again, 5)) == cut(range(80, 960), [(2, 8)] * 5)


@SOURCES
def test_B032_a_larger_maximum_from_now_on_begins_at_the_next_unread_token(source):
    saved = loader_of(source, StagedSchedule([4, 16], [10]))
    take(saved, 10)
    again = loaded(loader_of(source, StagedSchedule([4, 32], [10])), saved.state_dict())
    assert ids(take(again, 5)) == cut(range(80, 960), [(2, 32)] * 5)


@SOURCES
def test_B062_skipping_after_a_restore_is_seen_by_the_trainers_count(source):
    saved = loader_of(source)
    take(saved, 8)
    state = saved.state_dict()
    again = loaded(loader_of(source), state, expected_step=8)
    assert ids(take(again, 1)) == cut(range(64, 960), [(2, 4)])
    skipped_twice = loaded(loader_of(source), state)
    take(skipped_twice, 8)
    twice = skipped_twice.state_dict()
    fresh = loader_of(source)
    refused(lambda: loaded(fresh, twice, expected_step=8), "step 16", "expected_step=8", error=StateError)
    assert fresh.step == 0


@SOURCES
@pytest.mark.parametrize("num_workers", [0, 2])
def test_B091_a_state_where_a_pass_ends_continues_with_the_whole_next_pass(source, num_workers):
    def loader(epochs):
        return SLWLoader(SLWDataset(source, ConstantSchedule(4), batch_size=2, epochs=epochs), num_workers=num_workers)

    first = loader(2)
    assert flat(take(first, 120)) == list(range(960))
    state = first.state_dict()
    assert state["epoch"] == 1
    again = loaded(loader(2), state)
    assert flat(again) == list(range(960))


@SOURCES
def test_B091_a_state_where_the_run_ends_gives_an_empty_pass_that_warns_and_counts_nothing(source):
    first = loader_of(source)
    take(first, 120)
    again = loaded(loader_of(source), first.state_dict())
    with pytest.warns(UserWarning, match=r"finished \(120 steps\).*reset\(\).*epochs"):
        assert list(again) == []
    assert list(again) == [] and again.step == 120
    again.reset()
    assert again.step == 0 and flat(again) == list(range(960))


class Samples:
    """A source with a state of its own, which knows its pass; each pass has other documents."""

    def __init__(self):
        self.epoch, self.at = 0, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]

    def of_pass(self, epoch):
        return [list(range(1000 * epoch + 6 * i, 1000 * epoch + 6 * i + 6)) for i in range(8 - epoch)]

    def __iter__(self):
        for document in self.of_pass(self.epoch)[self.at :]:
            self.at += 1
            yield document
        self.at = 0


def test_B092_a_state_of_a_later_pass_resumes_in_it():
    expected = cut(joined(joined(Samples().of_pass(epoch)) for epoch in range(3)), [(2, 4)] * 15)
    for k in (13, 14):  # both in pass 2
        first, again = loader_of(Samples(), epochs=3), loader_of(Samples(), epochs=3)
        assert ids(take(first, k)) == expected[:k] and first.epoch == 2
        assert ids(loaded(again, first.state_dict())) == expected[k:]


@SOURCES
def test_B093_fewer_ranks_with_more_rows_go_on_with_exactly_the_rest(source):
    schedule = StagedSchedule([4, 8], [12])
    ranks = [loader_of(source, schedule, rank, 2) for rank in (0, 1)]
    consumed = [token for loader in ranks for token in flat(take(loader, 10))]
    assert sorted(consumed) == list(range(160))
    again = loaded(loader_of(source, schedule, batch_size=4), ranks[1].state_dict())
    assert ids(again) == cut(range(160, 960), [(4, 4)] * 2 + [(4, 8)] * 24)


@SOURCES
def test_B094_more_ranks_leave_no_gap_and_no_overlap(source):
    one = loader_of(source, ConstantSchedule(1), batch_size=2)
    assert flat(take(one, 2)) == [0, 1, 2, 3]
    ranks = [loader_of(source, ConstantSchedule(1), rank, 2, batch_size=1) for rank in (0, 1)]
    rest = [flat(take(loaded(loader, one.state_dict()), 50)) for loader in ranks]
    assert rest == [list(range(4, 104, 2)), list(range(5, 105, 2))]
    other = loader_of(source, ConstantSchedule(1), 0, 2, batch_size=2)  # four rows a step are another run
    refused(lambda: loaded(other, one.state_dict()), "2 global rows", "4 global rows", error=StateError)


def test_B096_rows_and_tokens_of_a_state_are_of_all_ranks_and_a_split_source_resumes_exactly():
    rows = datasets.Dataset.from_dict({"input_ids": [[i] for i in range(10)]}).to_iterable_dataset(num_shards=2)
    parts = [split_dataset_by_node(rows, rank, 2) for rank in (0, 1)]
    expected = [list(range(5)), list(range(5, 10))]  # each rank holds five rows
    for rank in (0, 1):
        options = {"rank": rank, "world": 2, "sharded": True, "batch_size": 1, "total_steps": 5}
        first = loader_of(parts[rank], ConstantSchedule(1), **options)
        assert flat(take(first, 4)) == expected[rank][:4]
        state = first.state_dict()
        assert (state["step"], state["rows"], state["tokens"]) == (4, 8, 8)
        assert flat(loaded(loader_of(parts[rank], ConstantSchedule(1), **options), state)) == expected[rank][4:]


@SOURCES
def test_B098_other_rows_go_on_at_the_same_token(source):
    saved = loader_of(source, batch_size=4)
    take(saved, 10)
    state = saved.state_dict()
    wider = loader_of(source, batch_size=8)
    refused(lambda: loaded(wider, state), "past: saved", "4 global rows", "8 global rows", error=StateError)
    with pytest.warns(UserWarning, match="state of another run"):
        refused(lambda: loaded(wider, state, strict=False), "rows must be", "has 40", error=StateError)
    assert wider.step == 0
    wider.seek(wider.dataset.plan.step_at(state["tokens"]))
    assert ids(wider) == cut(range(160, 960), [(8, 4)] * 25)


@SOURCES
@pytest.mark.parametrize("kind", ["dataset", "loader", "workers", "plain DataLoader"])
def test_B119_a_loaded_state_survives_iterators_that_are_not_used(source, kind):
    saved = loader_of(source)
    take(saved, 7)
    dataset = SLWDataset(source, ConstantSchedule(4), batch_size=2)
    workers = 2 if kind == "workers" else 0
    target = SLWLoader(dataset, num_workers=workers) if kind in ("loader", "workers") else dataset
    target.load_state_dict(through_json(saved.state_dict()))
    iterated = DataLoader(dataset, batch_size=None) if kind == "plain DataLoader" else target
    iter(iterated)
    discarded = iter(iterated)
    del discarded
    assert ids(take(iterated, 3)) == cut(range(56, 960), [(2, 4)] * 3)


def test_B088_copies_that_share_a_rank_count_no_token_twice():
    source, expected = np.arange(960), cut(range(960), [(4, 4)] * 60)
    for rank in (0, 1):  # two copies of each of two data-parallel ranks
        copies = [loader_of(source, rank=rank, world=2) for _ in (0, 1)]
        found = [ids(take(loader, 25)) for loader in copies]  # 100 rows over both ranks
        assert found[0] == found[1] == [rows[2 * rank : 2 * rank + 2] for rows in expected[:25]]
        states = [loader.state_dict() for loader in copies]
        assert states[0] == states[1] and (states[0]["step"], states[0]["rows"], states[0]["tokens"]) == (25, 100, 400)
        again = loaded(loader_of(source, rank=rank, world=2), states[0])
        assert ids(take(again, 1)) == [expected[25][2 * rank : 2 * rank + 2]]
