"""A shuffle buffer of documents: the order of a naive buffer, and exact on resume wherever it was saved."""

import json

import numpy as np
import pytest
from delivery import some_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import naive_buffer, naive_dealing
from refusals import refused

from slw_data import ConstantSchedule, SLWDataset, SLWLoader, StateError
from slw_data.sources.streams import ShuffledStream, open_stream


def documents_of(blocks):
    return [
        block.read("input_ids", start, stop).tolist()
        for block in blocks
        for start, stop in zip(block.offsets[:-1], block.offsets[1:], strict=True)
    ]


@given(some_documents, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_the_order_is_that_of_a_naive_buffer(docs, size, seed, epoch):
    stream = ShuffledStream(open_stream(docs), size, seed)
    assert documents_of(stream.blocks(epoch)) == naive_buffer(docs, size, (seed, 0, epoch))


@pytest.mark.parametrize("kind", [list, lambda docs: lambda: iter(docs)])
@pytest.mark.parametrize("size", [1, 3, 700, 5000])
def test_every_block_can_be_read_again(kind, size):
    docs = [[i % 1000, i // 1000] for i in range(2000)]
    stream = ShuffledStream(open_stream(kind(docs)), size, 7)
    blocks = list(stream.blocks(2))
    assert len(blocks) > 5
    whole = documents_of(blocks)
    assert sorted(whole) == sorted(docs) and (size == 1) == (whole == docs)
    done = 0
    for block in blocks:
        position = json.loads(json.dumps(block.position))
        assert documents_of(stream.blocks(2, position)) == whole[done:]
        done += len(block)


@settings(max_examples=30)
@given(some_documents, st.integers(1, 9), st.sampled_from([None, 3]), st.integers(0, 40), st.booleans())
def test_a_run_goes_on_from_every_state(docs, size, num_lanes, cut, shift):
    def loader():
        options = {"shuffle_buffer": size, "seed": 3, "num_lanes": num_lanes, "labels": "shifted" if shift else "none"}
        return SLWLoader(SLWDataset(docs, ConstantSchedule(3), batch_size=2, epochs=4, **options), prefetch=0)

    order = [doc for epoch in range(4) for doc in naive_buffer(docs, size, (3, 0, epoch))]
    run, _ = naive_dealing(order, [(3, 2)] * 1000, num_lanes=num_lanes or 1)
    expected = [[row[:3] for row in micro[0]] for step in run for micro in step]
    one, states = loader(), []
    for batch, rows in zip(one, expected, strict=True):
        assert batch["input_ids"].tolist() == rows
        states.append(one.state_dict())
    if len(states) > 1:
        cut %= len(states) - 1  # a run that is at its end has no batch, and says so
        again = loader()
        again.load_state_dict(json.loads(json.dumps(states[cut])))
        assert [batch["input_ids"].tolist() for batch in again] == expected[cut + 1 :]


def test_what_is_saved_is_numbers_and_no_tokens():
    docs = [np.full(3000, 12345 + i) for i in range(600)]
    loader = SLWLoader(SLWDataset(docs, ConstantSchedule(1000), batch_size=8, epochs=1, shuffle_buffer=100), prefetch=0)
    sizes = []
    for _ in loader:
        sizes.append(len(loader.state_dict()["stream"]))
    assert 300 < max(sizes) < 100 * 8 + 600


def test_shards_have_buffers_of_their_own():
    docs = [[10 * i + k for k in range(5)] for i in range(40)]
    options = {"batch_size": 4, "total_steps": 10, "num_shards": 2, "shuffle_buffer": 6, "seed": 1}
    rows = [row for batch in SLWDataset(docs, ConstantSchedule(5), **options) for row in batch["input_ids"].tolist()]
    shards = [naive_buffer(docs[k::2], 6, (1, k, 0)) for k in range(2)]
    assert rows == [row for i in range(0, 20, 2) for shard in shards for row in shard[i : i + 2]]


def test_a_damaged_position_and_a_store_are_refused():
    stream = ShuffledStream(open_stream([[i, i] for i in range(50)]), 4, 0)
    position = {"source": None, "first": 0, "read": 9, "dealt": 5, "waiting": [1, 5, 7, 8]}
    assert len(documents_of(stream.blocks(0, position))) == 45
    for wrong, fact in (
        ({"waiting": [1, 1]}, "each once"),
        ({"waiting": [1, 2, 3, 4, 5]}, "4 documents"),
        ({"waiting": [9]}, "9 waiting"),
        ({"waiting": "1"}, "4 documents"),
        ({"read": -1}, "-1"),
    ):
        refused(lambda wrong=wrong: stream.blocks(0, {**position, **wrong}), fact, error=StateError)
    refused(lambda: list(stream.blocks(0, {**position, "read": 60})), "ended after 50", error=StateError)
    refused(
        lambda: SLWDataset(np.arange(50), ConstantSchedule(2), batch_size=2, shuffle_buffer=4), "shuffle=True", error=ValueError
    )
