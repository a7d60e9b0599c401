"""torchtitan's dataloader contract, without torchtitan: the values are those of its own tests."""

import itertools
import json
import threading

import numpy as np
import pytest
import torch
from refusals import refused

from slw_data import ConstantSchedule, DoublingSchedule, LinearSchedule, SLWDataset, SLWLoader, StagedSchedule, StateError
from slw_data.integrations.torchtitan import TorchTitanLoader

OPTIONS = {"labels": "shifted", "extras": ("position_ids",)}


def make_loader(source, schedule, tokens, num_workers=0, **options):
    return SLWLoader(SLWDataset(source, schedule, tokens_per_batch=tokens, **{**OPTIONS, **options}), num_workers=num_workers)


def make(*arguments, **options):
    return TorchTitanLoader(make_loader(*arguments, **options))


def listed(batch):
    tokens, labels = batch
    assert list(tokens) == ["input", "positions"] and {t.dtype for t in (*tokens.values(), labels)} == {torch.int64}
    return tokens["input"].tolist(), labels.tolist(), tokens["positions"].tolist()


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_long_document_gives_its_first_row_and_the_tokens_after_each():
    [first] = make(np.arange(10), ConstantSchedule(5), 5, total_tokens=5)
    assert listed(first) == ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4])


def test_a_text_gives_all_but_its_last_token_and_all_but_its_first():
    text = [1, 114, 111, 118, 118, 121, 2]
    [only] = make(np.array(text), ConstantSchedule(6), 6)
    assert listed(only) == (text[:-1], text[1:], [0, 1, 2, 3, 4, 5])


def test_pairs_shifted_within_documents_come_as_columns():
    documents = [[1, 10, 2], [1, 20, 21, 22, 23, 24, 25, 2], [1, 2]]
    pairs = [{"input_ids": document[:-1], "labels": document[1:]} for document in documents]
    [only] = make(pairs, ConstantSchedule(10), 10, labels="unshifted", columns=("input_ids", "labels"))
    ids, labels, positions = listed(only)
    assert ids == [1, 10, 1, 20, 21, 22, 23, 24, 25, 1]
    assert labels == [10, 2, 20, 21, 22, 23, 24, 25, 2, 2], "no document's end is fed, and no beginning is a target"
    assert positions == [0, 1, 0, 1, 2, 3, 4, 5, 6, 0]
    assert [p % 4 for p in positions] == [0, 1, 0, 1, 2, 3, 0, 1, 2, 0], "there, documents are cut at a context of 4"


def test_two_ranks_share_eight_tokens():
    ranks = [make(np.arange(8), ConstantSchedule(4), 4, dp_rank=rank, dp_world_size=2, epochs=1) for rank in (0, 1)]
    assert [listed(*rank)[0] for rank in ranks] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tokens_are_as_many_in_each_micro_batch_while_rows_get_longer(num_workers):
    loader = make(np.arange(5000), DoublingSchedule(8, 32, warmup_steps=6), 64, num_workers, grad_accum_steps=2, total_steps=9)
    batches = [listed(batch) for batch in loader]
    assert [max(positions) + 1 for _, _, positions in batches] == [8] * 4 + [16] * 8 + [32] * 6
    assert [token for ids, _, _ in batches for token in ids] == list(range(9 * 2 * 64))
    assert [label for _, labels, _ in batches for label in labels] == list(range(1, 9 * 2 * 64 + 1))


@pytest.mark.parametrize("labels", ["shifted", "both"])
def test_what_rows_leave_over_is_filled_up_without_targets(labels):
    loader = make(np.arange(1, 200), StagedSchedule([4, 6], [1]), 9, labels=labels, extras=("cu_seq_lens",), total_steps=2)
    first, second = map(listed, loader)
    assert first == ([*range(1, 9), 0], [*range(2, 10), -100], [0, 1, 2, 3, 0, 1, 2, 3, 0])
    assert second == ([*range(9, 15), 0, 0, 0], [*range(10, 16), -100, -100, -100], [0, 1, 2, 3, 4, 5, 0, 1, 2])


# -- state -------------------------------------------------------------------------------------------------------------


def same(batches, others):
    for (tokens, labels), (other_tokens, other_labels) in zip(batches, others, strict=True):
        assert torch.equal(labels, other_labels)
        assert all(torch.equal(tokens[name], other_tokens[name]) for name in ("input", "positions"))
    return len(batches)


def resumes(make, consume, compare):
    """After ``consume`` micro-batches, another process delivers the same ``compare``."""
    loader = make()
    batches = iter(loader)
    for _ in itertools.islice(batches, consume):
        pass
    state = json.loads(json.dumps(loader.state_dict()))
    rest = list(itertools.islice(batches, compare))
    again = make()
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert same(list(itertools.islice(again, compare)), rest) == compare
    return state


@pytest.mark.parametrize("rank", [0, 1])
def test_two_small_sources_on_two_ranks_go_on_exactly_beyond_their_end(rank):
    sources = [np.arange(8 * 128), np.arange(5000, 5000 + 8 * 128)]  # eight rows of each
    schedule = DoublingSchedule(32, 128, warmup_steps=20)
    options = {"total_steps": 100, "dp_rank": rank, "dp_world_size": 2, "shuffle": True, "num_lanes": 2}
    state = resumes(lambda: make(np.concatenate(sources), schedule, 128, **options), 40, 8)
    assert list(state) == ["version", "dp_world_size", f"dp_rank_{rank}"] and state["version"] == 1
    assert state["dp_world_size"] == 2 and state[f"dp_rank_{rank}"]["epoch"] == 5


@pytest.mark.parametrize("world", [2, 4])
def test_a_long_run_of_rows_of_1024_goes_on_exactly(world):
    tokens = np.random.default_rng(0).integers(0, 1000, 1_000_000).astype(np.uint16)
    for rank in range(world):
        options = {"total_steps": 3000, "dp_rank": rank, "dp_world_size": world}
        resumes(lambda o=options: make(tokens, DoublingSchedule(8, 1024, warmup_steps=300), 1024, **o), 2050, 500)


def test_states_of_another_kind_are_refused_and_change_nothing():
    options = {"total_steps": 50, "dp_rank": 1, "dp_world_size": 2}
    loader = make(np.arange(5000), ConstantSchedule(8), 16, **options)
    list(itertools.islice(loader, 3))
    good = loader.state_dict()
    inner = good["dp_rank_1"]
    for bad, *facts in [
        ({**good, "version": 2}, "version must be 1", "2"),
        ({"dp_world_size": 2, "dp_rank_1": inner}, "version must be 1", "None"),
        ({**good, "dp_world_size": 4}, "data-parallel degree was 4 and is 2", "loader.load_state_dict()"),
        ({"version": 1, "dp_world_size": 2, "dp_rank_0": inner}, "missing dataloader state", "dp_rank_0", "rank is dp_rank_1"),
        ({**good, "dp_rank_1": {**inner, "step": 4}}, "in 3 steps", "in 4 steps"),
    ]:
        refused(lambda b=bad: loader.load_state_dict(b), *facts, error=StateError)
        assert loader.state_dict() == good
    loader.load_state_dict({})
    assert loader.state_dict() == good


def test_another_data_parallel_degree_goes_on_by_the_loader_itself():
    two = make(np.arange(5000), ConstantSchedule(8), 16, total_steps=50, dp_rank=1, dp_world_size=2)
    list(itertools.islice(two, 3))
    one = make(np.arange(5000), ConstantSchedule(8), 32, total_steps=50)
    one.loader.load_state_dict(two.state_dict()["dp_rank_1"])
    assert listed(next(iter(one)))[0] == list(range(3 * 32, 4 * 32))


def test_the_shards_of_a_divided_stream_have_keys_that_any_degree_finds():
    """As torch.distributed.checkpoint does it: what both ranks have written is joined, and a rank asks for the keys it has."""
    documents = [[100 * i + k for k in range(1 + i * 5 % 11)] for i in range(64)]

    def of(rank, world):
        options = {"num_shards": 4, "total_steps": 30, "dp_rank": rank, "dp_world_size": world}
        return make(documents, DoublingSchedule(4, 8, warmup_steps=9, multiple_of=4), 64 // world, **options)

    batches = {(rank, world): list(of(rank, world)) for world in (1, 2, 4) for rank in range(world)}
    states = []
    for rank in range(2):
        loader = of(rank, 2)
        assert same(list(itertools.islice(loader, 7)), batches[rank, 2][:7]) == 7
        states.append(json.loads(json.dumps(loader.state_dict())))
        assert list(states[rank]) == ["version", "dp_world_size", "divided"]
        assert list(states[rank]["divided"]["shards"]) == [str(2 * rank), str(2 * rank + 1)]
    shards = {**states[0]["divided"].pop("shards"), **states[1]["divided"].pop("shards")}
    assert states[0] == states[1], "what is written by both"
    joined = {**states[0], "divided": {**states[0]["divided"], "shards": shards}}
    for rank, world in batches:
        loader = of(rank, world)
        wanted = loader.state_dict()
        assert set(wanted) == set(joined) and set(wanted["divided"]) == set(joined["divided"])
        assert set(wanted["divided"]["shards"]) <= set(shards)
        loader.load_state_dict(joined)
        assert same(list(loader), batches[rank, world][7:]) == 23
    one_shard = {**joined, "divided": {**joined["divided"], "shards": {"0": shards["0"]}}}
    refused(lambda: of(1, 2).load_state_dict(one_shard), "shards 2, 3 of 4", "only 0", error=StateError)


def test_a_closed_loader_has_no_thread_and_keeps_its_state():
    loader = make(np.arange(10**6), ConstantSchedule(8), 16)
    before = threading.active_count()
    list(itertools.islice(loader, 3))
    state = loader.state_dict()
    assert threading.active_count() == before + 1
    loader.close()
    for thread in threading.enumerate():
        if thread.name == "slw_data":
            thread.join(10)
    assert threading.active_count() == before and loader.state_dict() == state
    loader.close()


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed, facts",
    [
        ({"labels": "unshifted"}, ("labels='unshifted'", "'shifted'")),
        ({"labels": "none"}, ("labels='none'",)),
        ({"extras": ()}, ("extras=()", "('position_ids',)")),
        ({"tokens_per_batch": None, "batch_size": 4}, ("batch_size=4", "tokens_per_batch=")),
        ({"labels": "unshifted", "columns": ("input_ids", "labels"), "extras": ("cu_seq_lens",)}, ("labels='unshifted'",)),
    ],
)
def test_a_dataset_that_torchtitan_cannot_take_is_refused(changed, facts):
    options = {**OPTIONS, "tokens_per_batch": 64, **changed}
    source = {"input_ids": np.arange(5000), "labels": np.arange(1, 5001)}
    loader = SLWLoader(SLWDataset(source, ConstantSchedule(8), **options))
    refused(lambda: TorchTitanLoader(loader), *facts, error=ValueError)


def test_lengths_that_leave_something_over_are_refused_as_early_as_they_are_known():
    linear = LinearSchedule(8, 32, warmup_steps=10)
    facts = ("rows of 24 tokens", "tokens_per_batch=64", "DoublingSchedule", "cu_seq_lens")
    refused(lambda: make(np.arange(5000), linear, 64), *facts, error=ValueError)
    late = make([list(range(5000))], lambda step: 24 if step == 3 else 8, 64)
    refused(lambda: list(late), *facts, error=ValueError)
    assert late.loader.step == 4
