"""Second and third passes of Hugging Face streams: the order of ``set_epoch``, every document once, exact after a resume."""

import itertools
import json

import numpy as np
import pytest
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets
from datasets.distributed import split_dataset_by_node

from slw_data import SLWDataset, SLWLoader, StagedSchedule, open_stream
from slw_data.sources.streams import huggingface

DOCUMENTS = [[100 * i + k for k in range(i % 5)] for i in range(45)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(huggingface, "BATCH_ROWS", 7)


def table(shards=4):
    return Dataset.from_dict({"input_ids": DOCUMENTS}).to_iterable_dataset(num_shards=shards)


def generated(shards):
    for shard in shards:
        for document in DOCUMENTS[shard::4]:
            yield {"input_ids": document}


def generator():
    return IterableDataset.from_generator(generated, gen_kwargs={"shards": [0, 1, 2, 3]})


def plus_one(row):
    return {"input_ids": [token + 1 for token in row["input_ids"]]}


WHOLE = {  # whose passes each have every document once
    "plain": table,
    "one shard": lambda: table(1),
    "more shards than documents in a batch": lambda: table(9),
    "a generator": generator,
    "shuffled shards": lambda: table().shuffle(seed=3, buffer_size=1),
    "a shuffled generator": lambda: generator().shuffle(seed=3, buffer_size=1),
}
CHAINS = WHOLE | {
    "map": lambda: table().map(plus_one),
    "filter": lambda: table().filter(lambda row: len(row["input_ids"]) > 2),
    "take": lambda: table().take(30),
    "skip": lambda: table().skip(11),
    "shuffled and taken": lambda: table().shuffle(seed=3, buffer_size=1).take(20),
    "concatenated": lambda: concatenate_datasets([table(), table(2)]),
    "interleaved": lambda: interleave_datasets([table(), table(2)]),
    "interleaved at random": lambda: interleave_datasets([table(), table(2)], probabilities=[0.3, 0.7], seed=5),
    "repeated": lambda: table().repeat(2),
}


def naive(dataset, epoch):
    """What the dataset's own iteration gives in a pass."""
    dataset.set_epoch(epoch)
    return [row["input_ids"] for row in dataset if row["input_ids"]]


def documents_in(block):
    flat = block.read("input_ids", 0, int(block.offsets[-1])).tolist()
    return [flat[a:b] for a, b in itertools.pairwise(block.offsets.tolist())]


def read(stream, epoch, position=None):
    return [document for block in stream.blocks(epoch, position) for document in documents_in(block)]


def shard_order(epoch, shards=4):
    """The shards of a table in a pass: runs of documents, from the second pass on permuted by the pass's number."""
    runs = np.array_split(np.arange(len(DOCUMENTS)), shards)
    return runs if epoch == 0 else [runs[i] for i in np.random.default_rng(epoch).permutation(shards)]


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_a_pass_has_the_shards_in_the_order_of_its_number(epoch):
    expected = [DOCUMENTS[i] for run in shard_order(epoch) for i in run if DOCUMENTS[i]]
    assert read(open_stream(table()), epoch) == expected


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("chain", CHAINS)
def test_every_block_of_every_pass_resumes_with_the_rest_of_the_datasets_own_order(chain, epoch):
    expected = naive(CHAINS[chain](), epoch)
    stream = open_stream(CHAINS[chain]())
    blocks = list(stream.blocks(epoch))
    assert [document for block in blocks for document in documents_in(block)] == expected
    if chain in WHOLE:
        assert sorted(expected) == sorted(filter(None, DOCUMENTS))
    done = 0
    for block in blocks:
        position = json.loads(json.dumps(block.position))
        assert read(open_stream(CHAINS[chain]()), epoch, position) == expected[done:]
        assert read(stream, epoch, position) == expected[done:]
        done += len(block)


@pytest.mark.parametrize("chain", CHAINS)
def test_two_passes_may_be_read_at_once_and_the_dataset_stays_in_its_own(chain):
    dataset = CHAINS[chain]()
    dataset.set_epoch(5)
    stream, found = open_stream(dataset), ([], [])
    for pair in itertools.zip_longest(stream.blocks(0), stream.blocks(1)):
        for of_pass, block in zip(found, pair, strict=True):
            of_pass += [] if block is None else documents_in(block)
    assert list(found) == [naive(CHAINS[chain](), epoch) for epoch in (0, 1)]
    assert int(dataset.epoch) == 5


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("chain", WHOLE)
def test_the_parts_of_a_split_dataset_are_the_whole_in_every_pass(chain, world, epoch):
    parts = []
    for rank in range(world):
        stream = open_stream(split_dataset_by_node(WHOLE[chain](), rank, world))
        assert stream.sharded == (rank, world)
        part = read(stream, epoch)
        assert part == naive(split_dataset_by_node(WHOLE[chain](), rank, world), epoch)
        for block in stream.blocks(epoch):
            rest = read(open_stream(split_dataset_by_node(WHOLE[chain](), rank, world)), epoch, block.position)
            assert rest == part[len(part) - len(rest) :]
        parts += part
    assert sorted(parts) == sorted(filter(None, DOCUMENTS))


SCHEDULE = StagedSchedule([3, 5, 4], [9, 25])


def expected_rows(chain, steps):
    """Rows of two from joined passes, by lists."""
    tokens = itertools.chain.from_iterable(
        token for epoch in itertools.count() for token in [itertools.chain.from_iterable(naive(CHAINS[chain](), epoch))]
    )
    return [[list(itertools.islice(tokens, SCHEDULE(step))) for _ in range(2)] for step in range(steps)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("chain", ["plain", "shuffled shards", "interleaved at random", "a generator"])
def test_a_run_of_several_passes_is_cut_as_the_lists_are_and_resumes_in_the_second_and_third(chain, num_workers):
    def loader():
        dataset = SLWDataset(CHAINS[chain](), SCHEDULE, batch_size=2, total_steps=60)
        return SLWLoader(dataset, num_workers=num_workers)

    expected, running, states = expected_rows(chain, 60), loader(), {}
    for step, batch in enumerate(running):
        assert batch["input_ids"].tolist() == expected[step]
        states[step + 1] = json.loads(json.dumps(running.state_dict()))
    assert len(states) == 60 and states[60]["epoch"] >= 2
    for step in (1, 12, 13, 24, 37, 59) if num_workers == 0 else (13, 37):
        again = loader()
        again.load_state_dict(states[step])
        assert [batch["input_ids"].tolist() for batch in again] == expected[step:]
        again.close()


def test_each_ranks_own_part_goes_on_in_its_second_pass():
    for rank in range(2):

        def loader(rank=rank):
            source = split_dataset_by_node(table(), rank, 2)
            options = {"sharded": True, "dp_rank": rank, "dp_world_size": 2, "total_steps": 30}
            return SLWLoader(SLWDataset(source, StagedSchedule([4], []), batch_size=1, **options), prefetch=0)

        parts = [naive(split_dataset_by_node(table(), rank, 2), epoch) for epoch in range(8)]
        tokens = [token for part in parts for document in part for token in document]
        expected = [tokens[4 * step : 4 * step + 4] for step in range(30)]
        running = loader()
        for step, batch in enumerate(running):
            assert batch["input_ids"].tolist() == [expected[step]]
            if step in (5, 12, 20, 28):
                again = loader()
                again.load_state_dict(running.state_dict())
                assert [batch["input_ids"][0].tolist() for batch in again] == expected[step + 1 :]
