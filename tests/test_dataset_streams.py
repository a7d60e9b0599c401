"""The dataset over documents: every batch of every rank against nested lists of what it should hold."""

import itertools

import numpy as np
import pytest
import torch
from delivery import (
    EOS,
    Documented,
    assert_delivers,
    built,
    ended_documents,
    real_tokens,
    some_documents,
    some_extras,
    stream_runs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import naive_circle, naive_dealing, rows_of
from refusals import refused

from slw_data import ConstantSchedule, DataError, SLWDataset, SLWLoader, StagedSchedule, open_stream
from slw_data.batch.building import LABELS


@given(stream_runs(), st.sampled_from(LABELS), some_extras)
def test_every_batch_of_every_rank_over_a_stream_equals_the_lists(case, labels, extras):
    docs, options, dealt, schedule, shape, shapes, passes = case
    run, left = naive_dealing(docs * passes, shapes, **dealt)
    firsts = {doc[0] for doc in docs if doc}

    def make(rank):
        return built(docs, schedule, shape, rank, labels=labels, extras=extras, **options)

    assert_delivers(
        make, run, shapes, shape, columns={"input_ids": lambda p: p}, labels=labels, extras=extras,
        begins=lambda before, place: place in firsts, pad_id=options.get("pad_id"),
    )  # fmt: skip
    dataset = make(0)
    assert dataset.tokens_left is None and list(dataset) is not None
    assert dataset.tokens_left == (left if "epochs" in options else None)


@given(stream_runs(["segment", "truncate"], ended_documents), st.sampled_from(LABELS), st.booleans())
def test_the_documents_of_a_store_are_cut_as_those_of_a_stream(case, labels, own_offsets):
    """But at the end of the data: there a store's lanes that have nothing left are passed over."""
    docs, options, dealt, schedule, shape, shapes, passes = case
    run, _, _ = naive_circle(docs * passes, shapes, **dealt)
    as_a_stream, _ = naive_dealing(docs * passes, shapes, **dealt)
    assert run[: len(as_a_stream)] == as_a_stream
    flat = [place for doc in docs for place in doc]

    def token(place):
        return EOS if place >= 1000 else place % 8

    ids = [token(place) for place in flat]
    source = Documented(ids, np.cumsum([0, *map(len, docs)])[:-1].tolist()) if own_offsets else np.array(ids, np.uint8)
    assert_delivers(
        lambda rank: built(source, schedule, shape, rank, labels=labels, eos_id=EOS, **options),
        run, shapes, shape, columns={"input_ids": token}, labels=labels, pad_id=EOS,
    )  # fmt: skip


@given(stream_runs(), st.sampled_from(LABELS))
def test_columns_of_documents_are_cut_at_the_same_places(case, labels):
    docs, options, dealt, schedule, shape, shapes, passes = case
    values = {"input_ids": lambda p: p, "loss_mask": lambda p: p % 3, "labels": lambda p: -100 if p % 5 == 0 else p + 7}
    run, _ = naive_dealing(docs * passes, shapes, **dealt)
    rows = [{name: [value(p) for p in doc] for name, value in values.items()} for doc in docs]
    assert_delivers(
        lambda rank: built(rows, schedule, shape, rank, labels=labels, columns=tuple(values), **options),
        run, shapes, shape, columns=values, labels=labels, pad_id=options.get("pad_id"),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["Dataset", "IterableDataset"])
@settings(max_examples=15)
@given(case=stream_runs(), labels=st.sampled_from(LABELS), extras=some_extras)
def test_hugging_face_rows_are_cut_as_the_lists_say(kind, case, labels, extras):
    """A Dataset in mode "stream" is a store: stream order, and documents from its rows."""
    import datasets

    docs, options, dealt, schedule, shape, shapes, passes = case
    if kind == "Dataset" and options["mode"] == "stream":
        options, dealt = {**options, "num_lanes": 1}, {**dealt, "num_lanes": 1}
    of_a_store = kind == "Dataset" and options["mode"] != "stream"
    run = (naive_circle if of_a_store else naive_dealing)(docs * passes, shapes, **dealt)[0]
    rows = datasets.Dataset.from_dict({"input_ids": docs, "mask": [[p % 3 for p in doc] for doc in docs]})
    source = rows if kind == "Dataset" else rows.to_iterable_dataset()
    if kind == "Dataset" and options["mode"] == "stream" and not run:
        refused(lambda: built(source, schedule, shape, **options), "too few", error=DataError)
        return
    firsts = {doc[0] for doc in docs if doc}
    options |= {"labels": labels, "extras": extras, "columns": ("input_ids", "mask")}
    assert_delivers(
        lambda rank: built(source, schedule, shape, rank, **options),
        run, shapes, shape, labels=labels, extras=extras, pad_id=options.get("pad_id"),
        columns={"input_ids": lambda p: p, "mask": lambda p: p % 3}, begins=lambda before, place: place in firsts,
    )  # fmt: skip


@given(stream_runs(modes=["stream", "segment"]))
def test_what_a_stream_delivers_and_what_is_left_is_the_source(case):
    """Without an oracle: in stream order the real tokens of all ranks are the first of all passes, as a sequence."""
    docs, options, _, schedule, shape, _, _ = case
    options = {**options, "num_lanes": None}
    options.pop("total_steps", None)
    source = [t for doc in docs for t in doc] * options.setdefault("epochs", 2)
    datasets = [built(docs, schedule, shape, r, **options) for r in range(shape["world_size"])]
    flat = []
    for micro in zip(*datasets, strict=True):
        for batch in micro:
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            flat += batch["input_ids"][real].tolist()
    assert flat == source[: len(flat)]
    assert all(dataset.tokens_left == len(source) - len(flat) for dataset in datasets)


@given(stream_runs(modes=["truncate"]))
def test_truncating_counts_what_it_discards(case):
    docs, options, dealt, schedule, shape, shapes, passes = case
    run, left = naive_dealing(docs * passes, shapes, **dealt)
    dataset = built(docs, schedule, shape, labels="none", **options)
    for _ in dataset:
        pass
    cut = itertools.islice((doc for doc in docs * passes if doc), len(rows_of(run)))
    assert dataset.tokens_discarded == sum(map(len, cut)) - len(real_tokens(run, shapes))
    if "epochs" in options:
        whole = passes * sum(map(len, docs))
        assert len(real_tokens(run, shapes)) + dataset.tokens_discarded + left == whole


@given(stream_runs(modes=["segment", "truncate"]), st.sampled_from([0, 2]))
def test_padding_is_not_a_token_and_discarded_tokens_are_known_to_the_loader(case, prefetch):
    docs, options, dealt, schedule, shape, shapes, passes = case
    run, left = naive_dealing(docs * passes, shapes, **dealt)
    if not run:
        return
    loader = SLWLoader(built(docs, schedule, shape, labels="none", **options), prefetch=prefetch)
    seen = [loader.tokens_seen for _ in loader]
    micros = [(shapes[i][0], micro) for i, step in enumerate(run) for micro in step]
    sizes = [sum(p is not None for rank in micro for row in rank for p in row[:length]) for length, micro in micros]
    assert seen == list(itertools.accumulate(sizes))
    assert loader.state_dict()["tokens"] == loader.metrics()["slw/tokens_seen"] == seen[-1]
    assert loader.tokens_left == (left if "epochs" in options else None)
    cut = itertools.islice((doc for doc in docs * passes if doc), len(rows_of(run)))
    if options["mode"] == "truncate":
        assert loader.tokens_discarded == sum(map(len, cut)) - seen[-1]


@given(some_documents, st.sampled_from([2, 3]))
def test_labels_do_not_change_which_token_comes_where(docs, num_lanes):
    def ids(labels):
        made = SLWDataset(docs, ConstantSchedule(3), batch_size=2, num_lanes=num_lanes, total_steps=8, labels=labels)
        return [batch["input_ids"].tolist() for batch in made]

    assert ids("unshifted") == ids("shifted") == ids("both") == ids("none")


def test_a_hugging_face_stream_end_to_end_with_workers():
    import datasets

    docs = [list(range(10 * i, 10 * i + i % 9)) for i in range(90)]
    stream = (
        datasets.Dataset.from_dict({"input_ids": docs})
        .to_iterable_dataset(num_shards=3)
        .filter(lambda row: len(row["input_ids"]) != 4)
    )
    flat = []
    for epoch in range(2):  # datasets may order shards anew in each pass
        stream.set_epoch(epoch)
        flat += [t for row in stream for t in row["input_ids"]]
    stream.set_epoch(0)
    for workers in (0, 2):
        loader = SLWLoader(SLWDataset(stream, StagedSchedule([8, 16], [5]), batch_size=2, epochs=2), num_workers=workers)
        found = torch.cat([batch["input_ids"].flatten() for batch in loader]).tolist()
        assert found == flat[: len(found)] and len(flat) - len(found) < 32


def test_a_stream_opened_with_text_is_read_through_its_tokenizer():
    stream = open_stream(["ab", "", "cde"], tokenizer=lambda text: [ord(c) for c in text], append_eos=0)
    dataset = SLWDataset(stream, ConstantSchedule(7), batch_size=1, extras=["document_ids"])
    assert [(b["input_ids"].tolist(), b["document_ids"].tolist()) for b in dataset] == [
        ([[97, 98, 0, 99, 100, 101, 0]], [[0, 0, 0, 1, 1, 1, 1]])
    ]


class Reversing:
    """Documents that come in another order in every second pass."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter([[1, 2, 3], [4, 5]][:: -1 if self.epoch % 2 else 1])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_each_pass_is_told_its_number_and_a_resumed_one_too(num_workers):
    def loader():
        dataset = SLWDataset(Reversing(), ConstantSchedule(3), batch_size=1, total_steps=6, labels="none")
        return SLWLoader(dataset, num_workers=num_workers)

    expected = [[1, 2, 3], [4, 5, 4], [5, 1, 2], [3, 1, 2], [3, 4, 5], [4, 5, 1]]
    first, states = loader(), []
    found = []
    for batch in first:
        found += batch["input_ids"].tolist()
        states.append(first.state_dict())
    assert found == expected
    for cut, state in enumerate(states[:-1], 1):
        again = loader()
        again.load_state_dict(state)
        assert [row for batch in again for row in batch["input_ids"].tolist()] == expected[cut:]
