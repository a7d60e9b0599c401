"""Rows of one document each, over a store: the circle of open documents against a queue of lists."""

import itertools
import json

import numpy as np
import pytest
from delivery import Documented, as_lists, drawn_end, rows_in, small_runs, some_documents, some_extras
from hypothesis import given
from hypothesis import strategies as st
from oracle import batches_of, naive_circle, naive_permutation, naive_tensors
from refusals import refused

from slw_data import ConstantSchedule, DataError, SLWDataset, SLWLoader, StagedSchedule, StateError
from slw_data.batch.building import LABELS
from slw_data.sources.stores import documents

pytestmark = pytest.mark.filterwarnings("ignore:this run is finished")


def opened(docs, passes, seed):
    """Documents in the order in which they are opened; ``seed`` None: the store's own."""
    kept = [doc for doc in docs if doc]
    orders = [range(len(kept)) if seed is None else naive_permutation(len(kept), seed, epoch) for epoch in range(passes)]
    return [kept[i] for order in orders for i in order]


def stored(docs, dtype=np.int64):
    source = Documented([t for doc in docs for t in doc], np.cumsum([0, *map(len, docs)])[:-1])
    source.tokens, source.dtype = source.tokens.astype(dtype), np.dtype(dtype)
    return source


@st.composite
def circle_runs(draw):
    """``(docs, options, shape, schedule, run, shapes, left, discarded)``: a run of whole documents, as lists of tokens."""
    schedule, shape, total = draw(small_runs)
    docs, mode = draw(some_documents), draw(st.sampled_from(["segment", "truncate"]))
    shuffle, seed = draw(st.booleans()), draw(st.integers(0, 9))
    count = sum(map(bool, docs))
    wanted = draw(st.sampled_from([None, 1, 2, 3, 7]) if not shuffle else st.sampled_from([1, 2, 3, 7]))
    options = {"mode": mode, "pad_id": 99, "shuffle": shuffle, "seed": seed, "num_lanes": wanted}
    if mode == "truncate":
        options["preserve_eos"] = draw(st.booleans())
    end, shapes, passes = drawn_end(draw, schedule, shape, total, sum(map(len, docs)))
    options |= end
    if passes is None:
        passes = sum(rows_in(shapes, shape)) // count + (wanted or 1) // count + 2
    world = {"grad_accum_steps": shape["grad_accum_steps"], "world_size": shape["world_size"]}
    run, left, discarded = naive_circle(
        opened(docs, passes, seed if shuffle else None), shapes, num_lanes=wanted or 1, mode=mode, **world,
        preserve_eos=options.get("preserve_eos", False),
    )  # fmt: skip
    return docs, options, shape, schedule, run, shapes, left, discarded


def loader_of(source, schedule, shape, rank=0, world=None, *, num_workers=0, **options):
    shape = dict(shape)
    world = world or shape["world_size"]
    shape.pop("world_size")
    dataset = SLWDataset(source, schedule, dp_rank=rank, dp_world_size=world, **shape, **options)
    return SLWLoader(dataset, num_workers=num_workers, prefetch=0)


@given(circle_runs(), st.sampled_from(LABELS), some_extras, st.sampled_from([np.int64, np.uint8]))
def test_every_batch_of_every_rank_is_what_the_queue_gives_and_so_are_the_counts(case, labels, extras, dtype):
    docs, options, shape, schedule, run, shapes, left, discarded = case
    accum, done = shape["grad_accum_steps"], 0
    for rank in range(shape["world_size"]):
        loader = loader_of(stored(docs, dtype), schedule, shape, rank, labels=labels, extras=extras, **options)
        expected = [
            naive_tensors(
                rows, shapes[i // accum][0], step=i // accum, columns={"input_ids": lambda t: t}, labels=labels,
                extras=extras, pad_id=99,
            )
            for i, rows in enumerate(batches_of(run, rank))
        ]
        found = [as_lists(batch) for batch in loader]
        assert found == expected
        done = sum(t is not None for step, (length, *_) in zip(run, shapes, strict=False) for micro in step
                   for rows in micro for row in rows for t in row[:length])  # fmt: skip
        assert loader.tokens_seen == done
        room = sum(length * len(rows) for step, (length, *_) in zip(run, shapes, strict=False)
                   for micro in step for rows in micro)  # fmt: skip
        assert loader.tokens_padded == room - done
        assert loader.tokens_discarded == discarded
        if "epochs" in options:
            assert loader.tokens_left == left
            assert done + discarded + left == options["epochs"] * sum(map(len, docs))


@given(circle_runs(), st.data())
def test_a_state_of_any_batch_and_a_sought_step_go_on_as_the_queue_does(case, data):
    docs, options, shape, schedule, run, shapes, *_ = case
    accum = shape["grad_accum_steps"]
    batches = [micro for step in run for micro in step]
    cut = data.draw(st.integers(0, len(batches)))
    loader = loader_of(stored(docs), schedule, shape, **options)
    list(itertools.islice(loader, cut))
    state = json.loads(json.dumps(loader.state_dict()))
    worlds = [w for w in range(1, 6) if shapes and all(many * shape["world_size"] % w == 0 for _, many, _ in shapes)]
    worlds = worlds if "batch_size" in shape and isinstance(shape["batch_size"], int) else [shape["world_size"]]
    world = data.draw(st.sampled_from(worlds))
    other = dict(shape)
    if isinstance(shape.get("batch_size"), int):
        other["batch_size"] = shape["batch_size"] * shape["world_size"] // world
    ranks = [loader_of(stored(docs), schedule, other, rank, world, **options) for rank in range(world)]
    for loader in ranks:
        loader.load_state_dict(state)
        assert loader.state_dict() == state

    def rows(ranks):
        """Real tokens of each micro-batch, all ranks together."""
        for parts in zip(*ranks, strict=True):
            yield [row for part in parts for row in masked(part)]

    expected = [
        [[t for t in row[:length] if t is not None] for rank in micro for row in rank]
        for step, (length, *_) in zip(run, shapes, strict=False)
        for micro in step
    ]
    assert list(rows(ranks)) == expected[cut:]
    step = data.draw(st.integers(0, len(run)))
    for loader in ranks:
        loader.seek(step)
    assert list(rows(ranks)) == expected[step * accum :]


@given(circle_runs())
def test_states_do_not_depend_on_how_many_batches_were_looked_up_together(case):
    docs, options, shape, schedule, *_ = case
    loader = loader_of(stored(docs), schedule, shape, **options)
    states = [loader.state_dict()] + [loader.state_dict() for _ in loader]
    again = loader_of(stored(docs), schedule, shape, **options)
    for before, after in itertools.pairwise(states):
        again.load_state_dict(before)
        next(iter(again))
        assert again.state_dict() == after


def masked(batch):
    pairs = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    return [[t for t, kept in zip(row, mask, strict=True) if kept] for row, mask in pairs]


@pytest.mark.parametrize("mode", ["segment", "truncate"])
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_any_number_of_workers_gives_the_same_batches_to_the_end_of_the_data(mode, num_workers):
    docs = [[100 * i + k for k in range(1 + i * 7 % 24)] for i in range(90)]
    schedule, shape = StagedSchedule([3, 8, 2], [9, 18]), {"batch_size": 3, "grad_accum_steps": 2, "world_size": 1}
    options = {"mode": mode, "pad_id": 0, "shuffle": True, "epochs": 2}
    expected = [masked(batch) for batch in loader_of(stored(docs), schedule, shape, **options)]
    loader = loader_of(stored(docs), schedule, shape, num_workers=num_workers, **options)
    assert [masked(batch) for batch in loader] == expected
    found = [t for batch in expected for row in batch for t in row]
    assert loader.tokens_seen == len(found)
    assert loader.tokens_seen + loader.tokens_discarded + loader.tokens_left == 2 * sum(map(len, docs))


def test_by_default_documents_of_a_shuffled_store_are_spread_as_widely_as_its_tokens():
    """100 batches of 16 x 8 over 1,800 documents of 17,500 tokens, as for mode "stream": at least 800 documents."""
    ends = np.arange(1801) * 17_500

    class Counting:
        name = fingerprint = "counting"
        dtype, documents = np.dtype(np.int64), ends

        def __len__(self):
            return int(ends[-1])

        def read(self, start, stop):
            return np.arange(start, stop)

        def gather(self, starts, length, out):
            out[:] = starts[:, None] + np.arange(length)

    options = {"batch_size": 16, "total_steps": 100, "mode": "segment", "pad_id": 0}
    dataset = SLWDataset(Counting(), ConstantSchedule(8), shuffle=True, **options)
    found = {t // 17_500 for batch in dataset for t in batch["input_ids"][:, 0].tolist()}
    assert len(found) == 1024
    assert "a step has tokens of 16 of 1,800 documents, 100 steps of 1,024" in dataset.describe()
    in_order = SLWDataset(Counting(), ConstantSchedule(8), **options)
    assert "100 steps of 1" in in_order.describe()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"next": -1}, "JSON"),
        ({"lanes": [1.5, 2]}, "JSON"),
        ({"lanes": [0]}, "has 1 lanes"),
        ({"lanes": [0, 10**6]}, "below"),
        ({"next": 10**6}, "1000000 documents"),
        ({"more": 1}, "JSON"),
    ],
)
def test_a_damaged_cursor_is_refused_in_words(change, words):
    docs = [list(range(10 * i, 10 * i + 7)) for i in range(9)]
    shape = {"batch_size": 2, "world_size": 1}
    options = {"mode": "segment", "pad_id": 0, "num_lanes": 2}
    loader = loader_of(stored(docs), ConstantSchedule(4), shape, **options)
    next(iter(loader))
    state = loader.state_dict()
    state["stream"] = json.dumps({**json.loads(state["stream"]), **change})
    refused(lambda: loader.load_state_dict(state), words, error=StateError)


def test_seeking_beyond_the_end_of_the_documents_is_refused():
    docs = [list(range(10 * i, 10 * i + 7)) for i in range(9)]
    loader = loader_of(stored(docs), ConstantSchedule(4), {"batch_size": 2, "world_size": 1}, mode="segment", pad_id=0)
    loader.seek(9)
    assert list(loader) == []
    refused(lambda: loader.seek(10), "after 9 steps", "step 10", error=StateError)


@pytest.mark.parametrize("num_lanes", [1, 3])
@pytest.mark.parametrize("mode", ["segment", "truncate"])
def test_every_batch_before_a_bad_token_is_delivered_and_the_run_goes_on_over_the_repaired_store(mode, num_lanes):
    docs = [[10 * i + k for k in range(9)] for i in range(40)]
    shape, options = {"batch_size": 2, "world_size": 1}, {"mode": mode, "pad_id": 0, "num_lanes": num_lanes, "shuffle": True}
    source = stored(docs)
    expected = [masked(batch) for batch in loader_of(source, ConstantSchedule(4), shape, **options)]
    bad = expected[11][0][0]
    broken = stored(docs)
    loader, found = loader_of(broken, ConstantSchedule(4), shape, vocab_size=500, **options), []
    broken.tokens[broken.tokens == bad] = 1000  # the ends were looked at when the store was opened
    with pytest.raises(DataError, match="found 1000 at token"):
        for batch in loader:
            found.append(masked(batch))
    assert found == expected[:11]
    state = loader.state_dict()
    repaired = loader_of(source, ConstantSchedule(4), shape, vocab_size=500, **options)
    repaired.load_state_dict(state)
    assert [masked(batch) for batch in repaired] == expected[11:]


# -- where documents begin --------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(1, 9))
def test_documents_end_with_each_eos_and_the_last_one_with_the_store_and_each_token_is_read_once(tokens, window):
    store = Documented(tokens, [0])
    store.documents, reads = None, []
    store.read = lambda start, stop: reads.append((start, stop)) or store.tokens[start:stop].copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_WINDOW", window)
        found = documents.find_documents(store, 0)
    cuts = [i + 1 for i, token in enumerate(tokens) if token == 0 and i + 1 < len(tokens)]
    assert found.tolist() == [0, *cuts, len(tokens)]
    assert [place for start, stop in reads for place in range(start, stop)] == list(range(len(tokens)))


def test_known_documents_cost_no_reading():
    store = Documented([1, 2, 3], [0, 2])
    store.read = None
    assert documents.find_documents(store, 0).tolist() == [0, 2, 3]


@pytest.mark.parametrize("offsets", [[], [0, 2], [1, 3], [0, 2, 1, 3]])
def test_offsets_of_other_tokens_are_refused(offsets):
    store = Documented([1, 2, 3], [0])
    store.documents = np.array(offsets, np.int64)
    refused(lambda: documents.find_documents(store, None), "documented", "0 to its 3 tokens", error=DataError)


def test_a_store_without_documents_needs_the_token_that_ends_them():
    store = Documented([1, 2, 3], [0])
    store.documents = None
    refused(lambda: documents.find_documents(store, None), "eos_id", "mode='stream'", error=DataError)


def test_labels_and_ids_that_the_dtype_of_the_store_does_not_hold_pad_nonetheless():
    ids, labels = stored([[1, 2, 3], [4]], np.uint8), stored([[5, 6, 7], [8]], np.uint16)
    dataset = SLWDataset(
        {"input_ids": ids, "labels": labels}, ConstantSchedule(2), batch_size=3, columns=("input_ids", "labels"),
        mode="segment", pad_id=256,
    )  # fmt: skip
    [batch] = dataset
    assert batch["input_ids"].tolist() == [[1, 2], [3, 256], [4, 256]]
    assert batch["labels"].tolist() == [[5, 6], [7, -100], [8, -100]]
