"""Every tensor of every batch is fresh memory on the CPU: nothing else shares it, whatever the columns and labels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slw_data import ConstantSchedule, SLWDataset, SLWLoader, StagedSchedule, set_batch_sequence_length

TOKENS = 240
EXTRAS = ("position_ids", "document_ids", "step")
MASKED = ("mask", "input_ids")
COLUMNS = [("input_ids",), ("input_ids", "labels"), ("labels", "input_ids"), ("input_ids", "mask", "labels"), MASKED]
DTYPES = ["uint16", "int32", "int64", ">i8"]


def stored(columns, dtypes):
    """A store's columns, each of a dtype of its own."""
    ids = np.arange(TOKENS) % 16
    named = zip(columns, dtypes, strict=False)
    return {name: (ids if name == "input_ids" else 100 * len(name) + ids).astype(dtype) for name, dtype in named}


def documents(columns, dtypes):
    """The same as rows of a stream, 12 tokens each."""
    store = stored(columns, dtypes)
    return [{name: column[at : at + 12] for name, column in store.items()} for at in range(0, TOKENS, 12)]


def copies(batches):
    return [{n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in batch.items()} for batch in batches]


def assert_nothing_is_shared(make):
    """Filling a tensor with a value changes no other one, of its own batch or of any other."""
    expected, batches = copies(make()), list(make())
    assert batches
    places = [(i, name) for i, batch in enumerate(batches) for name in batch if isinstance(batch[name], torch.Tensor)]
    for number, (i, name) in enumerate(places):
        batches[i][name].fill_(-7000 - number)
    for number, (i, name) in enumerate(places):
        assert bool((batches[i][name] == -7000 - number).all()), f"{name} of batch {i} was changed through another tensor"
    taken = []
    for at, batch in enumerate(make()):  # what is read later is not changed either
        assert all(torch.equal(batch[n], v) if isinstance(v, torch.Tensor) else batch[n] == v for n, v in expected[at].items())
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.fill_(-1)
        taken.append(batch)
    assert len(taken) == len(expected)


@given(
    columns=st.sampled_from(COLUMNS),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=3, max_size=3),
    labels=st.sampled_from(["unshifted", "shifted", "both", "none"]),
    extras=st.lists(st.sampled_from(EXTRAS), unique=True),
    kind=st.sampled_from(["store", "stream", "documents"]),
    rows=st.sampled_from([1, 2, 4]),
    lanes=st.sampled_from([1, 2, 4, 3]),
    flat=st.booleans(),
    ended=st.booleans(),
)
def test_a_tensor_that_is_filled_changes_no_other_of_any_batch(columns, dtypes, labels, extras, kind, rows, lanes, flat, ended):
    def make():
        options = {"columns": columns, "labels": labels, "extras": (*extras, *(["cu_seq_lens"] if flat else []))}
        shape = {"tokens_per_batch": 8 * rows} if flat else {"batch_size": rows}
        source = stored(columns, dtypes) if kind != "stream" else documents(columns, dtypes)
        if kind == "documents" and not flat:
            options |= {"mode": "segment", "eos_id": 11, "pad_id": 0}
        elif kind != "stream" or "document_ids" in extras:
            options["eos_id"] = 11
        if not ended:  # the source goes on after the run
            options["total_steps"] = 5
        return SLWDataset(source, StagedSchedule([4, 8], [2]), num_lanes=lanes, **shape, **options)

    assert_nothing_is_shared(make)


@pytest.mark.parametrize("columns", [("input_ids", "labels"), ("labels", "input_ids")])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_both_labels_of_an_int64_column_lie_apart(columns, prefetch):
    def make():
        source = {"input_ids": np.arange(100), "labels": np.arange(100) + 500}
        dataset = SLWDataset(source, ConstantSchedule(5), batch_size=2, labels="both", columns=columns, total_steps=9)
        return SLWLoader(dataset, prefetch=prefetch)

    assert_nothing_is_shared(make)
    first = next(iter(make()))
    assert first["labels"].tolist() == [[500, 501, 502, 503, 504], [505, 506, 507, 508, 509]]
    assert first["shift_labels"].tolist() == [[501, 502, 503, 504, 505], [506, 507, 508, 509, 510]]


def test_a_tensor_has_no_more_memory_than_its_own():
    source = {"input_ids": np.arange(100), "labels": np.arange(100)}
    for batch in SLWDataset(source, ConstantSchedule(5), batch_size=2, labels="both", columns=("input_ids", "labels")):
        assert {value.untyped_storage().nbytes() for value in batch.values()} == {2 * 5 * 8}


@pytest.fixture
def nowhere():
    """The default device is one that holds no values."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("kind, flat", [("store", False), ("store", True), ("stream", False), ("stream", True)])
def test_every_tensor_is_on_the_cpu_whatever_the_default_device(nowhere, kind, flat):
    columns = ("input_ids", "labels", "mask")
    extras = (*EXTRAS[:1], "step", *(["cu_seq_lens"] if flat else ["document_ids"]))
    source = (stored if kind == "store" else documents)(columns, ["int64"] * 3)
    shape = {"tokens_per_batch": 16} if flat else {"batch_size": 2}
    dataset = SLWDataset(source, ConstantSchedule(8), columns=columns, labels="both", extras=extras, eos_id=11, **shape)
    for prefetch in (0, 2):
        for batch in SLWLoader(dataset, prefetch=prefetch):
            assert {value.device.type for value in batch.values() if isinstance(value, torch.Tensor)} == {"cpu"}
            assert batch["step"].tolist() == [batch["step"][0].item()] * len(batch["step"])
    workers = SLWLoader(SLWDataset(np.arange(64), ConstantSchedule(8), batch_size=2, extras=("step",)), num_workers=1)
    assert [batch["step"].tolist() for batch in workers] == [[n, n] for n in range(4)]


@pytest.mark.parametrize("of", [np.asarray, lambda rows: torch.from_numpy(np.array(rows))])
def test_a_batch_is_cut_where_its_rows_end_whatever_the_default_device(nowhere, of):
    batch = {"input_ids": of([[1, 2, 3, 4], [5, 6, 7, 8]]), "attention_mask": of([[1, 1, 1, 0], [1, 1, 1, 1]])}
    cut = set_batch_sequence_length(batch, 2, preserve_end_of_sequence=True)
    assert cut["input_ids"].tolist() == [[1, 3], [5, 8]]
