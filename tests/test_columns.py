"""What is found in a column is found in the one that is named, whatever the order of ``columns``."""

from itertools import permutations

import numpy as np
import pytest
from datasets import Dataset
from refusals import refused

from slw_data import ConstantSchedule, DataError, SLWDataset, open_stream, open_tokens

NAMES = ("input_ids", "labels", "mask")
IDS = [3, 4, 0, 5, 6, 7, 0, 8, 0]
LABELS = [-100, 0, 4, 0, 0, 6, 7, 9, 9]  # a 0 where no document ends, none where one does
SOURCE = {"input_ids": np.array(IDS), "labels": np.array(LABELS), "mask": np.ones(9, np.int64)}
ROWS = [[3, 4, 0], [5, 6, 7, 0], [8, 0]]


@pytest.mark.parametrize("columns", [*permutations(NAMES[:2]), *permutations(NAMES)])
@pytest.mark.parametrize("mode", ["segment", "truncate"])
def test_documents_end_where_input_ids_say_whatever_the_order_of_columns(columns, mode):
    dataset = SLWDataset(SOURCE, ConstantSchedule(4), batch_size=1, columns=columns, mode=mode, eos_id=0, pad_id=1)
    batches = list(dataset)
    assert [batch["input_ids"][0, : len(row)].tolist() for batch, row in zip(batches, ROWS, strict=True)] == ROWS
    assert [int(batch["attention_mask"].sum()) for batch in batches] == [3, 4, 2]
    assert [batch["labels"][0, :3].tolist() for batch in batches] == [[-100, 0, 4], [0, 0, 6], [9, 9, -100]]


@pytest.mark.parametrize("columns", [*permutations(NAMES)])
def test_a_dataset_whose_first_column_knows_no_documents_is_cut_by_those_of_input_ids(columns):
    rows = Dataset.from_dict({"input_ids": ROWS})
    source = {**SOURCE, "input_ids": rows}
    batches = list(SLWDataset(source, ConstantSchedule(4), batch_size=1, columns=columns, mode="segment", pad_id=1))
    assert [int(batch["attention_mask"].sum()) for batch in batches] == [3, 4, 2]


@pytest.mark.parametrize("mode", ["stream", "segment"])
def test_the_order_of_columns_is_no_part_of_a_run(mode):
    def sources(columns):
        options = {"mode": mode, "eos_id": 0, "pad_id": 1} if mode == "segment" else {}
        state = SLWDataset(SOURCE, ConstantSchedule(4), batch_size=1, columns=columns, **options).state_dict()
        return state["source"]

    assert len({sources(columns) for columns in permutations(NAMES)}) == 1
    assert sources(("input_ids", "labels")) != sources(("input_ids", "mask"))


@pytest.mark.parametrize("labels", ["shifted", "both"])
def test_a_column_may_be_called_next(labels):
    source = {"input_ids": np.arange(9), "next": np.full(9, 7)}
    batch = next(iter(SLWDataset(source, ConstantSchedule(4), batch_size=2, columns=("input_ids", "next"), labels=labels)))
    assert batch["next"].tolist() == [[7] * 4] * 2
    assert batch["labels" if labels == "shifted" else "shift_labels"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("shift_labels", {"labels": "both"}),
        *((extra, {"extras": (extra,)}) for extra in ("position_ids", "document_ids", "step")),
        ("window_ids", {"extras": ("window_ids",), "mode": "window"}),
        ("attention_mask", {"mode": "segment", "pad_id": 0}),
        *((name, {"extras": ("cu_seq_lens",)}) for name in ("position_ids", "cu_seq_lens_q", "max_length_k")),
    ],
)
def test_a_column_that_the_batch_would_have_twice_is_refused(name, options):
    source = {"input_ids": np.arange(9), name: np.full(9, 7)}

    def make(columns=("input_ids", name), **options):
        return SLWDataset(source, ConstantSchedule(4), tokens_per_batch=8, columns=columns, eos_id=3, **options)

    refused(lambda: make(**options), repr(name), "columns", "leave it out", error=ValueError)
    make(**{**options, "columns": ("input_ids",)})
    assert next(iter(make()))[name].tolist() == [[7] * 4] * 2


def test_two_columns_that_know_other_documents_are_refused_behind_one_that_knows_none():
    masks = Dataset.from_dict({"mask": [[1, 1], [1] * 7]})
    ids = Dataset.from_dict({"input_ids": ROWS})
    source = {"labels": SOURCE["labels"], "input_ids": ids, "mask": open_tokens(masks, column="mask")}
    refused(
        lambda: SLWDataset(source, ConstantSchedule(4), batch_size=1, columns=("labels", "input_ids", "mask")),
        "'mask'",
        "'input_ids'",
        "row 0",
        error=DataError,
    )


@pytest.mark.parametrize("columns", [("labels", "input_ids"), ("input_ids", "labels")])
def test_a_stream_checks_the_ids_of_the_column_that_is_named(columns):
    rows = [{"input_ids": [1, 2], "labels": [-100, 2]}]
    (block,) = open_stream(rows, columns=columns).blocks(0)
    assert block.read("labels", 0, 2).tolist() == [-100, 2]
    (block,) = open_stream(Dataset.from_list(rows).to_iterable_dataset(), columns=columns).blocks(0)
    assert block.read("labels", 0, 2).tolist() == [-100, 2]
    swapped = [{"input_ids": [-1, 2], "labels": [1, 2]}]
    for source in (swapped, Dataset.from_list(swapped).to_iterable_dataset()):

        def read(source=source):
            return list(open_stream(source, columns=columns).blocks(0))

        refused(read, "'input_ids'", "-1", error=DataError)


def test_the_column_of_token_ids_must_be_named_among_several():
    rows = [{"tokens": [1, 2], "weight": [-3, 4]}]
    for columns in (("weight", "tokens"), ("tokens", "weight")):
        refused(lambda columns=columns: open_stream(rows, columns=columns), "column=", *map(repr, columns), error=DataError)
        (block,) = open_stream(rows, column="tokens", columns=columns).blocks(0)
        assert block.read("weight", 0, 2).tolist() == [-3, 4]
    assert open_stream([{"tokens": [1]}], columns=("tokens",)).columns == ("tokens",), "a single column holds the ids"
