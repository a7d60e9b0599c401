"""Public reports about ranks: each row on one of them, the same number of batches everywhere, and no waiting."""

import functools
import itertools
import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from cases import cut, flat, ids, joined, numbered, take
from datasets.distributed import split_dataset_by_node
from refusals import refused

from slw_data import (
    ConstantSchedule,
    DataError,
    LinearSchedule,
    SequenceLengthPlan,
    SLWDataset,
    SLWLoader,
    StagedSchedule,
    open_tokens,
)

EIGHT_DOCS = numbered([20, 3, 11, 6, 25, 9, 14, 2] * 4)


def of_ranks(source, world, schedule=ConstantSchedule(4), num_workers=0, **options):
    """What each rank delivers, as nested lists."""
    options = {"batch_size": 2, **options}
    loaders = [
        SLWLoader(SLWDataset(source, schedule, dp_rank=rank, dp_world_size=world, **options), num_workers=num_workers)
        for rank in range(world)
    ]
    return [ids(loader) for loader in loaders]


def steps_of(ranks):
    """The rows of each step over all ranks; an error if their numbers of batches differ."""
    return [joined(batches) for batches in zip(*ranks, strict=True)]


@functools.cache
def rows(sizes, num_shards=1):
    return datasets.Dataset.from_dict({"input_ids": numbered(sizes)}).to_iterable_dataset(num_shards=num_shards)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_workers", [0, 2])
def test_B004_ranks_have_equally_many_batches_whatever_the_documents(seed, num_workers):
    drawn = random.Random(seed)
    docs = numbered([drawn.randrange(1, 60) for _ in range(drawn.randrange(20, 60))])
    whole = sum(map(len, docs)) // 20
    ranks = of_ranks(docs, 2, ConstantSchedule(5), num_workers)
    assert [len(rank) for rank in ranks] == [whole, whole] and whole > 10
    assert steps_of(ranks) == cut(joined(docs), [(4, 5)] * whole)


# -- two real processes ------------------------------------------------------------------------------------------------


def in_group(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {"found": ids(SLWDataset(np.arange(160), ConstantSchedule(4), batch_size=2))}
    peers = SLWDataset(np.arange(160), ConstantSchedule(4), batch_size=2, dp_rank=0, dp_world_size=1)
    found["peers"] = ids(SLWLoader(peers))
    alone = Path(folder, "rank 0 is done")
    while rank == 1 and not alone.exists():
        time.sleep(0.01)
    loader = SLWLoader(SLWDataset(EIGHT_DOCS, ConstantSchedule(4), batch_size=2, total_steps=60), num_workers=2)
    found["first pass"] = ids(take(loader, 7))
    found["second iter"] = ids(loader)
    found["tokens_seen"] = loader.tokens_seen
    if rank == 0:
        alone.touch()
    try:
        SLWDataset(split_dataset_by_node(rows((8,) * 8, 4), rank, 2), ConstantSchedule(4), batch_size=2)
    except ValueError as error:
        found["split"] = str(error)
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """What two processes of a gloo group found, each on its own."""
    folder = tmp_path_factory.mktemp("gloo")
    rows((8,) * 8, 4)
    processes = [multiprocessing.get_context("fork").Process(target=in_group, args=(r, str(folder))) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_B005_the_ranks_of_a_process_group_read_different_rows(group):
    seen = [set(joined(joined(found["found"]))) for found in group]
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(160))
    assert steps_of([found["found"] for found in group]) == cut(range(160), [(4, 4)] * 10)


def test_B079_peers_that_share_a_data_parallel_rank_read_the_same_rows(group, monkeypatch):
    assert group[0]["peers"] == group[1]["peers"] == cut(range(160), [(2, 4)] * 20)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "4")
    parts = of_ranks(np.arange(160), 2)
    assert steps_of(parts) == cut(range(160), [(4, 4)] * 10)
    refused(
        lambda: SLWDataset(np.arange(160), ConstantSchedule(4), batch_size=2),
        "WORLD_SIZE=8", "dp_rank", "dp_world_size", error=ValueError,
    )  # fmt: skip


def test_B087_a_source_that_is_split_already_is_not_split_again(group):
    for rank in (0, 1):
        assert f"already split (rank {rank} of 2)" in group[rank]["split"]
        assert "pass the whole dataset, or sharded=True" in group[rank]["split"]
    part = split_dataset_by_node(rows((8,) * 16, 4), 1, 4)
    ranks = {"dp_rank": 1, "dp_world_size": 4}
    refused(
        lambda: SLWDataset(part, ConstantSchedule(4), batch_size=2, **ranks),
        "already split (rank 1 of 4)", "sharded=True with total_steps", error=ValueError,
    )  # fmt: skip
    taken = SLWDataset(part, ConstantSchedule(4), batch_size=2, sharded=True, total_steps=4, **ranks)
    assert flat(taken) == list(range(32, 64)), "a quarter, not a sixteenth"


def test_B089_no_rank_and_no_second_iterator_waits_for_another(group):
    loops = itertools.cycle(joined(EIGHT_DOCS))
    expected = cut(list(itertools.islice(loops, 960)), [(4, 4)] * 60)
    found = [rank["first pass"] + rank["second iter"] for rank in group]  # rank 0 ended before rank 1 began
    assert steps_of(found) == expected and len(group[0]["first pass"]) == 7


def test_B132_tokens_are_counted_without_communication(group):
    counted = sum(len(joined(batch)) for rank in group for batch in rank["first pass"] + rank["second iter"])
    assert counted == group[0]["tokens_seen"] == group[1]["tokens_seen"] == 960
    plan = SequenceLengthPlan(StagedSchedule([4, 8], [3]), batch_size=2, world_size=2)
    assert [plan.tokens_before(step) for step in (0, 3, 4, 10**9)] == [0, 48, 80, 48 + 32 * (10**9 - 3)]


# -- ranks whose data differs ------------------------------------------------------------------------------------------


def test_B018_ranks_with_parts_of_unknown_size_stop_together_and_repeat_theirs():
    parts = [numbered([6] * many, first=10_000 * r) for r, many in enumerate((100, 90, 110))]

    def dataset(rank, **end):
        docs = parts[rank]
        options = {"batch_size": 2, "sharded": True, "dp_rank": rank, "dp_world_size": 3, **end}
        return SLWDataset(lambda: iter(docs), ConstantSchedule(4), **options)

    refused(lambda: dataset(0), "sharded=True needs total_steps", "no rank can know", error=ValueError)
    for rank, docs in enumerate(parts):
        loader = SLWLoader(dataset(rank, total_steps=80))
        assert len(loader) == 80
        assert flat(loader) == list(itertools.islice(itertools.cycle(joined(docs)), 640))


def test_B020_unequal_shards_split_by_node_are_refused_unless_the_steps_are_given():
    source = rows((5, 20, 3, 30, 8, 1, 9, 2), 4)  # 25, 33, 9 and 11 tokens
    parts = [split_dataset_by_node(source, rank, 2) for rank in (0, 1)]
    held = [[token for row in part for token in row["input_ids"]] for part in parts]
    assert len(held[0]) != len(held[1]) and sorted(held[0] + held[1]) == list(range(78))
    for rank, part in enumerate(parts):
        options = {"batch_size": 2, "dp_rank": rank, "dp_world_size": 2}
        refused(lambda p=part, o=options: SLWDataset(p, ConstantSchedule(4), **o), "already split", error=ValueError)
        taken = SLWDataset(part, ConstantSchedule(4), sharded=True, total_steps=6, **options)
        assert flat(taken) == list(itertools.islice(itertools.cycle(held[rank]), 48))


@pytest.mark.parametrize("num_shards", [7, 8])
def test_B039_no_row_twice_whether_or_not_shards_divide_among_ranks(num_shards):
    source = rows((5, 9, 4, 6, 12, 4) * 8, num_shards)  # 320 tokens
    assert steps_of(of_ranks(source, 4)) == cut(range(320), [(8, 4)] * 10)
    assert steps_of(of_ranks(source, 4, num_workers=2)) == cut(range(320), [(8, 4)] * 10)


def test_B040_six_ranks_have_equally_many_batches_and_it_can_be_asked_before_training():
    docs = numbered([7] * 100)  # 700 tokens: not a multiple of six ranks of eight tokens
    assert steps_of(of_ranks(docs, 6)) == cut(range(700), [(12, 4)] * 14)
    store = np.array(joined(docs))
    counts = [len(SLWLoader(SLWDataset(store, ConstantSchedule(4), batch_size=2, dp_rank=r, dp_world_size=6)))
              for r in range(6)]  # fmt: skip
    assert counts == [14] * 6 == [len(rank) for rank in of_ranks(store, 6)]


def test_B086_shards_of_three_to_eight_examples_give_both_ranks_the_same():
    sizes = [many for many in range(3, 9) for _ in range(many)]  # six shards
    paths = list(range(3, 9))

    def read(shards):
        for many in shards:
            yield from ({"input_ids": [100 * many + i] * 4} for i in range(many))

    source = datasets.IterableDataset.from_generator(read, gen_kwargs={"shards": paths})
    assert source.num_shards == 6 and len(sizes) == 33
    tokens = [100 * many + i for many in paths for i in range(many) for _ in range(4)]
    ranks = of_ranks(source, 2)
    assert steps_of(ranks) == cut(tokens, [(4, 4)] * 8)
    assert not {t for b in ranks[0] for row in b for t in row} & {t for b in ranks[1] for row in b for t in row}


@pytest.mark.parametrize("source", [np.arange(12 * 32 + 20), numbered([101] * 4)], ids=["store", "stream"])
def test_B090_a_tail_of_five_rows_is_dropped_alike_on_four_ranks(source):
    assert sum(map(len, source)) == 404 if isinstance(source, list) else len(source) == 404
    loaders = [SLWLoader(SLWDataset(source, ConstantSchedule(4), batch_size=2, dp_rank=r, dp_world_size=4))
               for r in range(4)]  # fmt: skip
    found = [ids(loader) for loader in loaders]
    assert steps_of(found) == cut(range(404), [(8, 4)] * 12)
    assert [loader.tokens_left for loader in loaders] == [5 * 4] * 4


def test_B110_no_row_of_the_first_step_evens_out_the_last():
    schedule = StagedSchedule([4, 8], [2])
    for source in (np.arange(70), numbered([10] * 7)):
        ranks = of_ranks(source, 2, schedule, batch_size=1)
        assert steps_of(ranks)[:3] == cut(range(70), [(2, 4), (2, 4), (2, 8)])
        assert len({token for rank in ranks for batch in rank for token in joined(batch)}) == 64


def test_B117_documents_sorted_by_length_give_both_ranks_as_many_tokens():
    docs = numbered(range(1, 41))
    for source in (docs, datasets.Dataset.from_dict({"input_ids": docs})):
        ranks = of_ranks(source, 2, LinearSchedule(4, 12, warmup_steps=10, multiple_of=4))
        sizes = [[len(joined(batch)) for batch in rank] for rank in ranks]
        assert sizes[0] == sizes[1] and joined(joined(steps_of(ranks))) == list(range(2 * sum(sizes[0])))


def test_B118_ranks_of_a_shuffled_file_read_different_places_with_one_seed(tmp_path):
    np.arange(2048, dtype=np.uint16).tofile(tmp_path / "train.bin")
    store = open_tokens(tmp_path / "train.bin", dtype="uint16", vocab_size=2048)
    ranks = of_ranks(store, 2, ConstantSchedule(8), shuffle=True, seed=3, batch_size=4)
    seen = [[token for batch in rank for token in joined(batch)] for rank in ranks]
    assert not set(seen[0]) & set(seen[1])
    assert sorted(seen[0] + seen[1]) == list(range(2048)) and seen[0] != sorted(seen[0])


def test_B149_a_source_smaller_than_a_step_is_repeated_or_ends_with_a_message():
    docs = numbered([3] * 4)
    for source in (docs, np.arange(12), lambda: iter(docs)):
        filled = SLWDataset(source, ConstantSchedule(8), batch_size=4, total_steps=3)
        assert flat(filled) == list(range(12)) * 8
    facts = "12 tokens", "first step of 4 rows x 8", "total_steps"
    refused(lambda: SLWDataset(np.arange(12), ConstantSchedule(8), batch_size=4), *facts, error=DataError)
    with pytest.warns(UserWarning, match="too few tokens for the first step"):
        assert list(SLWLoader(SLWDataset(docs, ConstantSchedule(8), batch_size=4))) == []
    nothing = SLWLoader(SLWDataset([[], []], ConstantSchedule(8), batch_size=4, total_steps=3))
    refused(lambda: list(nothing), "no tokens in pass 0", error=DataError)
