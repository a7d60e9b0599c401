"""Public reports about tokens: none lost where rows are cut, none invented between documents, none turned into others."""

import datasets
import numpy as np
import pytest
import torch
from cases import cut, flat, ids, joined, numbered
from refusals import refused

from slw_data import (
    ConstantSchedule,
    DataError,
    SLWDataset,
    SLWLoader,
    StagedSchedule,
    StateError,
    open_stream,
)


def delivered(source, schedule, batch_size=2, num_workers=0, **options):
    return list(SLWLoader(SLWDataset(source, schedule, batch_size=batch_size, **options), num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_B048_what_is_too_short_for_the_new_length_waits_for_more(num_workers):
    docs = numbered([100, 7])  # the second document is shorter than a row once the length has doubled
    batches = delivered(docs, StagedSchedule([8, 16], [6]), num_workers=num_workers, epochs=2)
    assert ids(batches) == cut(joined(docs) * 2, [(2, 8)] * 6 + [(2, 16)] * 3)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("lengths", [[8], [16], [64], [8, 16, 64]])
def test_B049_less_than_a_step_is_lost_at_any_length_and_it_is_counted(num_workers, lengths):
    docs = numbered([37, 5, 120, 64, 1] * 9)  # 2043 tokens
    schedule = StagedSchedule(lengths, [5, 10][: len(lengths) - 1])
    for source in (docs, np.arange(2043)):
        loader = SLWLoader(SLWDataset(source, schedule, batch_size=4), num_workers=num_workers)
        found = flat(loader)
        assert found == list(range(len(found)))
        assert loader.tokens_left == 2043 - len(found) < 4 * lengths[-1]


def test_B050_one_separator_between_documents_added_where_it_is_missing():
    bare, ended = [[1, 2], [3], [4, 5]], [[1, 2, 0], [3, 0], [4, 5, 0]]
    for docs in (bare, ended, [[1, 2, 0], [3], [4, 5, 0]]):
        stream = open_stream(docs, append_eos=0)
        assert ids(delivered(stream, ConstantSchedule(4))) == [[[1, 2, 0, 3], [0, 4, 5, 0]]]
    assert flat(delivered(bare, ConstantSchedule(5), batch_size=1)) == [1, 2, 3, 4, 5]
    assert flat(delivered(ended, ConstantSchedule(8), batch_size=1)) == joined(ended)


def test_B121_no_second_separator_and_none_for_an_empty_document():
    rows = [[5, 6, 2], [], [7, 2], [], [8]]
    hugging_face = datasets.Dataset.from_dict({"input_ids": rows}).to_iterable_dataset()
    for source in (rows, hugging_face):
        stream = open_stream(source, append_eos=2)
        assert flat(delivered(stream, ConstantSchedule(7), batch_size=1)) == [5, 6, 2, 7, 2, 8, 2]


def test_B052_empty_documents_of_any_dtype_leave_int64_and_floats_are_refused():
    empties = [torch.tensor([]), np.array([]), [], torch.tensor([], dtype=torch.int32)]
    docs = [token for pair in zip(empties, [[1, 2], [3], [4, 5, 6], [7, 8]], strict=True) for token in pair]
    [batch] = delivered(docs, ConstantSchedule(4))
    assert batch["input_ids"].dtype == torch.int64 and batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    for floats in ([1.0, 2.0], np.array([1.0]), torch.tensor([1.0])):
        bad = [[1, 2], [3], floats]
        refused(lambda b=bad: delivered(b, ConstantSchedule(8)), "item 2", "integers", error=TypeError)


def test_B055_a_length_that_does_not_divide_the_rows_of_the_source_drops_nothing():
    docs = numbered([16] * 64)
    constant_rows = delivered(docs, StagedSchedule([6, 16], [20]), batch_size=4)
    assert ids(constant_rows) == cut(range(1024), [(4, 6)] * 20 + [(4, 16)] * 8)
    budget = delivered(docs, StagedSchedule([6, 16], [8]), batch_size=None, tokens_per_batch=64)
    assert ids(budget) == cut(range(1024), [(10, 6)] * 8 + [(4, 16)] * 8)


@pytest.mark.parametrize("kind", ["list", "Hugging Face"])
def test_B069_empty_documents_give_no_row_and_a_source_of_them_ends_with_a_message(kind):
    def source(docs):
        if kind == "list":
            return docs
        features = datasets.Features({"input_ids": [datasets.Value("int64")]})
        return datasets.Dataset.from_dict({"input_ids": docs}, features=features).to_iterable_dataset()

    for docs in ([[1, 2], [], [3, 4]], [[1, 2], *[[]] * 1000, [3, 4]]):
        assert ids(delivered(source(docs), ConstantSchedule(2))) == [[[1, 2], [3, 4]]]
    with pytest.warns(UserWarning, match="too few tokens for the first step"):
        assert delivered(source([[]] * 1000), ConstantSchedule(2)) == []


class Documented:
    """A store that knows its documents, by the protocol."""

    name = fingerprint = "documented"
    dtype = np.dtype(np.int64)

    def __init__(self, documents):
        self.tokens = np.array(joined(documents))
        self.documents = np.cumsum([0, *map(len, documents)])

    def __len__(self):
        return len(self.tokens)

    def read(self, start, stop):
        return self.tokens[start:stop].copy()

    def gather(self, starts, length, out):
        out[:] = self.tokens[starts[:, None] + np.arange(length)]


def test_B100_the_sources_own_boundaries_go_before_a_search_for_eos():
    docs = [[1, 2, 9], [3, 4], [5, 6, 7, 9]]  # the second one has lost its end
    known = (Documented(docs), datasets.Dataset.from_dict({"input_ids": docs}))
    whole = {"schedule": ConstantSchedule(9), "batch_size": 1, "extras": ("document_ids",), "eos_id": 9}
    for source in known:
        [batch] = delivered(source, **whole)
        assert batch["document_ids"].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2, 2]]
        [segments] = delivered(source, ConstantSchedule(4), batch_size=3, mode="segment", pad_id=0, eos_id=9)
        assert segments["input_ids"].tolist() == [[1, 2, 9, 0], [3, 4, 0, 0], [5, 6, 7, 9]]
        [truncated] = delivered(source, ConstantSchedule(2), batch_size=3, mode="truncate", pad_id=0, eos_id=9)
        assert truncated["input_ids"].tolist() == [[1, 2], [3, 4], [5, 6]]
    [inferred] = delivered(np.array(joined(docs)), **whole)
    assert inferred["document_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 1]]


COLUMNS = ("input_ids", "loss_mask", "token_type_ids")


@pytest.mark.parametrize("kind", ["stream", "store", "Hugging Face"])
def test_B105_parallel_columns_are_cut_at_the_same_places(kind):
    docs = numbered([7, 12, 3, 10] * 3)
    items = [{"input_ids": d, "loss_mask": [t % 2 for t in d], "token_type_ids": [t // 10 for t in d]} for d in docs]
    source = {
        "stream": lambda: items,
        "store": lambda: {name: np.array(joined(item[name] for item in items)) for name in COLUMNS},
        "Hugging Face": lambda: datasets.Dataset.from_list(items).to_iterable_dataset(),
    }[kind]()
    batches = delivered(source, StagedSchedule([4, 8], [3]), columns=COLUMNS)
    assert ids(batches) == cut(range(96), [(2, 4)] * 3 + [(2, 8)] * 4)
    for batch in batches:
        assert list(batch) == ["input_ids", "labels", "loss_mask", "token_type_ids"]
        assert torch.equal(batch["loss_mask"], batch["input_ids"] % 2)
        assert torch.equal(batch["token_type_ids"], batch["input_ids"] // 10)


def test_B105_a_column_of_another_length_is_named_with_its_document():
    items = [{"input_ids": [1, 2, 3], "loss_mask": [1, 1, 1]}] * 5 + [{"input_ids": [1, 2, 3], "loss_mask": [1, 1]}]
    facts = "item 5", "3 tokens in 'input_ids'", "2 in 'loss_mask'"
    for source in (items, datasets.Dataset.from_list(items).to_iterable_dataset()):
        run = SLWDataset(source, ConstantSchedule(6), batch_size=1, columns=("input_ids", "loss_mask"))
        refused(lambda r=run: list(r), *facts, error=DataError)
    unequal = {"input_ids": np.arange(9), "loss_mask": np.arange(8)}
    refused(
        lambda: delivered(unequal, ConstantSchedule(3), columns=("input_ids", "loss_mask")),
        "input_ids", "9", "loss_mask", "8", error=DataError,
    )  # fmt: skip


def test_B123_a_column_that_one_of_two_sources_lacks_is_refused_by_name_and_document():
    with_labels = datasets.Dataset.from_dict({"input_ids": [[1, 2]] * 3, "labels": [[1, 2]] * 3})
    without = datasets.Dataset.from_dict({"input_ids": [[3, 4]] * 3})
    both = datasets.concatenate_datasets([with_labels.to_iterable_dataset(), without.to_iterable_dataset()])
    listed = [*with_labels, *({**row, "labels": None} for row in without)]
    for source in (both, listed):
        run = SLWDataset(source, ConstantSchedule(2), batch_size=1, columns=("input_ids", "labels"))
        refused(lambda r=run: list(r), "'labels'", "item 3", "None", error=DataError)
    missing = SLWDataset([*with_labels, *without], ConstantSchedule(2), batch_size=1, columns=("input_ids", "labels"))
    refused(lambda: list(missing), "'labels'", "item 3", error=KeyError)


def test_B143_padding_needs_an_id_to_pad_with_and_without_it_the_rest_is_dropped():
    for mode in ("segment", "truncate"):
        make = [lambda m=mode: SLWDataset([[1, 2, 3]], ConstantSchedule(8), batch_size=1, mode=m)]
        refused(make[0], "pad_id", f"mode={mode!r}", error=ValueError)
        [batch] = delivered([[1, 2, 3]], ConstantSchedule(8), batch_size=1, mode=mode, pad_id=0)
        assert batch["input_ids"].tolist() == [[1, 2, 3, 0, 0, 0, 0, 0]]
    refused(
        lambda: SLWDataset([[1]], ConstantSchedule(8), batch_size=1, mode="segment", pad_id=50, vocab_size=50),
        "pad_id", "vocab_size=50", "50", error=ValueError,
    )  # fmt: skip
    dropped = SLWLoader(SLWDataset([[1, 2, 3], [4] * 8], ConstantSchedule(8), batch_size=1))
    assert len(list(dropped)) == 1 and dropped.tokens_left == 3


def test_B144_what_becomes_of_a_long_document_is_chosen_and_recorded():
    docs = [[1, 2, 3, 4, 5, 6], [7, 8]]
    loaders, found = {}, {}
    for mode in ("stream", "segment", "truncate"):
        padding = {} if mode == "stream" else {"pad_id": 0}
        options = {"batch_size": 1, "mode": mode, **padding}
        loaders[mode] = SLWLoader(SLWDataset(docs, ConstantSchedule(4), **options))
        found[mode] = joined(ids(loaders[mode]))
    assert found == {
        "stream": [[1, 2, 3, 4], [5, 6, 7, 8]],
        "segment": [[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 0, 0]],
        "truncate": [[1, 2, 3, 4], [7, 8, 0, 0]],
    }
    assert joined(ids(SLWLoader(SLWDataset(docs, ConstantSchedule(4), batch_size=1)))) == found["stream"]
    assert loaders["truncate"].dataset.mode == "truncate"
    state = loaders["segment"].state_dict()
    refused(
        lambda: loaders["truncate"].load_state_dict(state),
        "order: saved", "mode='segment'", "mode='truncate'", error=StateError,
    )  # fmt: skip
