"""Composer's function: its published results, a reference made of lists, and what it leaves alone."""

import collections
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from refusals import refused

from slw_data import ScheduleError, set_batch_sequence_length

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("schedules.json").read_text())
CASES = GOLDEN["set_batch_sequence_length"]


def numbered(rows, length, first=0):
    return torch.arange(first, first + rows * length).reshape(rows, length)


def naive(table, curr, truncate, mask=None):
    """Rows of lists; with ``mask`` (rows of 0 and 1), the last token that it shows is kept."""
    length = len(table[0])
    if curr >= length:
        return [list(row) for row in table]
    if not truncate:
        return [row[i * curr : (i + 1) * curr] for row in table for i in range(length // curr)]
    kept = [row[:curr] for row in table]
    for row, whole, shown in zip(kept, table, mask or [], strict=False):
        ends = [column for column in range(length) if shown[column]]
        if ends and ends[-1] >= curr:
            row[-1] = whole[ends[-1]]
    return kept


# -- Composer's results -----------------------------------------------------------------------------------------------


def crosses_rows(case):
    return not case["truncate"] and case["curr"] < case["L"] and case["L"] % case["curr"] != 0


@pytest.mark.parametrize("case", [case for case in CASES if not crosses_rows(case)], ids=str)
def test_composers_results_are_met(case):
    options = {name: case[name] for name in ("truncate", "preserve_end_of_sequence") if name in case}
    ids = set_batch_sequence_length({"input_ids": numbered(case["B"], case["L"])}, case["curr"], **options)["input_ids"]
    if "out" in case:
        assert ids.tolist() == case["out"]
    else:
        assert ids.shape == tuple(case["shape"]) and ids.numel() == case["B"] * case["L"] - case["dropped"]


@pytest.mark.parametrize("case", [case for case in CASES if crosses_rows(case)], ids=str)
def test_where_composers_segments_cross_rows_ours_do_not(case):
    # Composer flattens the batch and cuts that: a segment may begin in one row and end in the next. Here each row is
    # cut by itself, so there can be fewer segments, and what is left over of each row is dropped.
    rows, length, curr = case["B"], case["L"], case["curr"]
    ids = set_batch_sequence_length({"input_ids": numbered(rows, length)}, curr, truncate=False)["input_ids"].tolist()
    assert all(segment[0] // length == segment[-1] // length for segment in ids)
    assert len(ids) == rows * (length // curr) <= rows * length // curr
    if "out" in case:
        whole = [segment for segment in case["out"] if segment[0] // length == segment[-1] // length]
        assert ids[: length // curr] == whole[: length // curr]  # the first row is cut as it is there


def test_the_cut_of_a_4_by_16_batch_at_6_is_stated_exactly():
    ids = set_batch_sequence_length({"input_ids": numbered(4, 16)}, 6, truncate=False)["input_ids"]
    assert ids.shape == (8, 6)
    lost = sorted(set(range(64)) - set(ids.flatten().tolist()))
    assert lost == [16 * row + column for row in range(4) for column in range(12, 16)]


# -- against lists ----------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 5), length=st.integers(1, 12), curr=st.integers(1, 15), truncate=st.booleans())
def test_every_value_of_a_batch_is_cut_as_lists_would_be(rows, length, curr, truncate):
    batch = {
        "input_ids": numbered(rows, length),
        "labels": numbered(rows, length, first=-100),
        "mask": np.arange(rows * length).reshape(rows, length) % 2 == 0,
        "embeddings": torch.arange(rows * length * 3, dtype=torch.float16).reshape(rows, length, 3),
    }
    cut = set_batch_sequence_length(batch, curr, truncate=truncate)
    for name, value in batch.items():
        assert cut[name].tolist() == naive(value.tolist(), curr, truncate)
        assert cut[name].dtype == value.dtype and type(cut[name]) is type(value)


def masks(length):
    row = st.lists(st.sampled_from([0, 1]), min_size=length, max_size=length)
    return st.lists(row, min_size=1, max_size=4)


@given(
    mask=st.integers(1, 9).flatmap(masks),
    curr=st.integers(1, 10),
    kind=st.sampled_from(["tensor", "array", "bool", "bfloat16"]),
)
@example(mask=[[0, 0, 0, 1, 1, 1]], curr=4, kind="tensor")  # padded on the left: the sum of the mask says 3, wrongly
@example(mask=[[0, 0, 0]], curr=1, kind="tensor")
@example(mask=[[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], curr=2, kind="array")
def test_the_last_token_that_the_mask_shows_is_kept_in_every_value(mask, curr, kind):
    rows, length = len(mask), len(mask[0])
    kinds = {
        "tensor": torch.tensor(mask),
        "array": np.array(mask),
        "bool": torch.tensor(mask, dtype=torch.bool),
        "bfloat16": torch.tensor(mask, dtype=torch.bfloat16),
    }
    batch = {
        "input_ids": numbered(rows, length),
        "attention_mask": kinds[kind],
        "labels": np.arange(rows * length).reshape(rows, length) - 7,
        "embeddings": torch.arange(rows * length * 2).reshape(rows, length, 2),
    }
    cut = set_batch_sequence_length(batch, curr, preserve_end_of_sequence=True)
    for name, value in batch.items():
        assert cut[name].tolist() == naive(value.tolist(), curr, True, mask)
        assert cut[name].dtype == value.dtype


def test_a_row_that_ends_within_the_cut_keeps_its_padding():
    batch = {"input_ids": torch.tensor([[5, 6, 2, 0, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0]])}
    cut = set_batch_sequence_length(batch, 4, preserve_end_of_sequence=True)
    assert (cut["input_ids"].tolist(), cut["attention_mask"].tolist()) == ([[5, 6, 2, 0]], [[1, 1, 1, 0]])
    cut = set_batch_sequence_length(batch, 2, preserve_end_of_sequence=True)
    assert (cut["input_ids"].tolist(), cut["attention_mask"].tolist()) == ([[5, 2]], [[1, 1]])


def test_a_mask_may_number_documents():
    batch = {"input_ids": numbered(1, 6), "attention_mask": torch.tensor([[1, 1, 2, 2, 3, 0]])}
    cut = set_batch_sequence_length(batch, 2, preserve_end_of_sequence=True)
    assert (cut["input_ids"].tolist(), cut["attention_mask"].tolist()) == ([[0, 4]], [[1, 3]])


def test_numpy_ids_are_cut_too():
    cut = set_batch_sequence_length({"input_ids": np.arange(8, dtype=np.uint16).reshape(2, 4)}, 2, truncate=False)
    assert cut["input_ids"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]] and cut["input_ids"].dtype == np.uint16


def test_labels_keep_their_type_and_their_holes():
    labels = torch.tensor([[-100, 2**40, -100, 7]])
    cut = set_batch_sequence_length({"input_ids": numbered(1, 4), "labels": labels}, 3)
    assert cut["labels"].tolist() == [[-100, 2**40, -100]] and cut["labels"].dtype == torch.int64


# -- what goes with rows, and what does not ---------------------------------------------------------------------------


def test_what_belongs_to_a_row_is_repeated_for_its_segments():
    batch = {
        "input_ids": numbered(2, 6),
        "index": torch.tensor([70, 71]),
        "weight": np.array([0.5, 0.25], dtype=np.float32),
        "scores": torch.tensor([[1, 2], [3, 4]]),
        "names": ["a", "b"],
        "pair": ("c", "d"),
    }
    cut = set_batch_sequence_length(batch, 2, truncate=False)
    assert cut["index"].tolist() == [70, 70, 70, 71, 71, 71]
    assert cut["weight"].tolist() == [0.5] * 3 + [0.25] * 3 and cut["weight"].dtype == np.float32
    assert cut["scores"].tolist() == [[1, 2]] * 3 + [[3, 4]] * 3
    assert cut["names"] == ["a"] * 3 + ["b"] * 3
    assert cut["pair"] == ("c",) * 3 + ("d",) * 3
    for curr in (2, 6):
        whole = set_batch_sequence_length(batch, curr)
        assert (whole["index"].tolist(), whole["names"], whole["pair"]) == ([70, 71], ["a", "b"], ("c", "d"))


def test_a_row_for_all_rows_is_cut_along():
    batch = {"input_ids": numbered(3, 4), "position_ids": torch.arange(4)[None], "attention_mask": torch.ones(3, 4)}
    batch["attention_mask"][1, 3] = 0
    assert set_batch_sequence_length(batch, 2)["position_ids"].tolist() == [[0, 1]]
    assert set_batch_sequence_length(batch, 4)["position_ids"].tolist() == [[0, 1, 2, 3]]
    segments = set_batch_sequence_length(batch, 2, truncate=False)["position_ids"]
    assert segments.tolist() == [[0, 1], [2, 3]] * 3
    ends = set_batch_sequence_length(batch, 2, preserve_end_of_sequence=True)["position_ids"]
    assert ends.tolist() == [[0, 3], [0, 2], [0, 3]]


def test_values_for_another_number_of_rows_are_truncated_or_refused_by_name():
    batch = {"input_ids": numbered(3, 4), "table": numbered(2, 4)}
    assert set_batch_sequence_length(batch, 3)["table"].tolist() == [[0, 1, 2], [4, 5, 6]]
    facts = "table", "(2, 4)", "3 rows"
    refused(lambda: set_batch_sequence_length(batch, 2, truncate=False), *facts, error=ValueError)
    refused(lambda: set_batch_sequence_length(batch, 2, preserve_end_of_sequence=True), *facts, error=ValueError)


def test_anything_else_is_passed_on():
    others = {"name": "abc", "step": 7, "none": None, "scalar": torch.tensor(3), "far": torch.ones(5), "long": [1] * 9}
    cut = set_batch_sequence_length({"input_ids": numbered(2, 6), **others}, 3, truncate=False)
    assert all(cut[name] is value for name, value in others.items())


def test_the_keys_keep_their_order():
    batch = {"labels": numbered(2, 4), "input_ids": numbered(2, 4), "index": [1, 2]}
    assert list(set_batch_sequence_length(batch, 2)) == ["labels", "input_ids", "index"]


@pytest.mark.parametrize("wrap", [types.MappingProxyType, collections.UserDict, collections.OrderedDict])
def test_any_mapping_will_do_and_a_dict_comes_back(wrap):
    cut = set_batch_sequence_length(wrap({"input_ids": numbered(2, 4)}), 2)
    assert type(cut) is dict and cut["input_ids"].tolist() == [[0, 1], [4, 5]]


# -- the argument is left alone ---------------------------------------------------------------------------------------


def memory(value):
    return value.data_ptr() if isinstance(value, torch.Tensor) else value.__array_interface__["data"][0]


@pytest.mark.parametrize("curr", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("options", [{}, {"preserve_end_of_sequence": True}, {"truncate": False}], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns", "slice"])
def test_the_batch_stays_as_it_was_and_shares_no_memory_with_the_new_one(curr, options, layout):
    def laid(value):
        if layout == "columns":
            return value.T.contiguous().T if isinstance(value, torch.Tensor) else np.asfortranarray(value)
        return value[:, :6] if value.ndim == 2 else value

    wide = numbered(2, 6) if layout != "slice" else numbered(2, 9)
    batch = {
        "input_ids": laid(wide),
        "attention_mask": laid(torch.ones_like(wide)),
        "labels": laid(wide.numpy().copy()),
        "scores": torch.arange(8).reshape(4, 2).T,
        "grid": np.asfortranarray(np.arange(8).reshape(2, 4)),
        "cube": torch.arange(40).reshape(5, 4, 2).permute(2, 1, 0),  # indexing its rows keeps that layout
        "index": torch.tensor([3, 4]),
        "names": ["a", "b"],
    }
    before = {name: value.tolist() if name != "names" else list(value) for name, value in batch.items()}
    kept = dict(batch)
    cut = set_batch_sequence_length(batch, curr, **options)
    assert cut is not batch and all(batch[name] is kept[name] for name in kept) and list(batch) == list(kept)
    for name, value in cut.items():
        if name == "names":
            value[0] = "changed"
            continue
        assert value.is_contiguous() if isinstance(value, torch.Tensor) else value.flags.c_contiguous, name
        assert memory(value) != memory(batch[name])
        if isinstance(value, torch.Tensor):  # exactly its storage: a view would be sent between processes whole
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
        value[...] = 99
    assert before == {name: value.tolist() if name != "names" else value for name, value in batch.items()}


def test_gradients_flow_through_the_cut():
    embeddings = torch.ones(1, 4, 2, requires_grad=True)
    batch = {"input_ids": numbered(1, 4), "embeddings": embeddings}
    set_batch_sequence_length(batch, 2, preserve_end_of_sequence=True)["embeddings"].sum().backward()
    assert embeddings.grad[0, :, 0].tolist() == [1, 0, 0, 1]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "4", None, float("nan"), [4]], ids=repr)
def test_a_length_is_a_positive_int(value):
    batch = {"input_ids": numbered(2, 4)}
    refused(lambda: set_batch_sequence_length(batch, value), "curr_seq_len", ">= 1", repr(value))


@pytest.mark.parametrize("value", [np.int64(2), torch.tensor(2)], ids=["numpy", "torch"])
def test_a_length_of_numpy_or_torch_is_taken(value):
    assert set_batch_sequence_length({"input_ids": numbered(2, 4)}, value)["input_ids"].shape == (2, 2)


def test_a_batch_without_ids_is_refused_with_its_keys():
    batch = {"labels": numbered(2, 4), "mask": numbered(2, 4)}
    refused(lambda: set_batch_sequence_length(batch, 2), "input_ids", "labels", "mask", error=KeyError)
    refused(lambda: set_batch_sequence_length({}, 2), "input_ids", "no keys", error=KeyError)


@pytest.mark.parametrize("batch", [None, [1, 2], numbered(2, 4), "input_ids"], ids=lambda batch: type(batch).__name__)
def test_a_batch_is_a_mapping(batch):
    refused(lambda: set_batch_sequence_length(batch, 2), "mapping", type(batch).__name__, error=TypeError)


@pytest.mark.parametrize("shape", [(), (4,), (2, 4, 3)])
def test_ids_must_have_two_dimensions(shape):
    for ids in (torch.zeros(shape), np.zeros(shape)):
        batch = {"input_ids": ids}
        refused(lambda: set_batch_sequence_length(batch, 2), "input_ids", str(shape), error=ValueError)  # noqa: B023 - called at once


@pytest.mark.parametrize("ids", [[[1, 2], [3, 4]], None, "abc"], ids=repr)
def test_ids_must_be_a_tensor_or_an_array(ids):
    message = "input_ids", "tensor", type(ids).__name__
    refused(lambda: set_batch_sequence_length({"input_ids": ids}, 1), *message, error=ValueError)


@pytest.mark.parametrize(
    ("mask", "found"),
    [(torch.ones(2, 3), "(2, 3)"), (np.ones(2), "(2,)"), ([[1, 1], [1, 1]], "list")],
    ids=["shorter", "per row", "lists"],
)
def test_a_mask_that_cannot_say_where_rows_end_is_refused(mask, found):
    batch = {"input_ids": numbered(2, 4), "attention_mask": mask}

    def cut():
        return set_batch_sequence_length(batch, 2, preserve_end_of_sequence=True)

    refused(cut, "attention_mask", "(2, 4)", f"got {found}", error=ValueError)
    batch["attention_mask"] = None  # the same as none at all
    assert cut()["input_ids"].tolist() == [[0, 3], [4, 7]]


@pytest.mark.parametrize("curr", [2, 4, 9])
def test_there_is_no_end_to_preserve_in_segments(curr):
    batch = {"input_ids": numbered(2, 4)}
    options = {"truncate": False, "preserve_end_of_sequence": True}
    message = "preserve_end_of_sequence", "truncate=True"
    refused(lambda: set_batch_sequence_length(batch, curr, **options), *message, error=ValueError)


def test_the_error_of_a_length_is_the_librarys_own():
    with pytest.raises(ScheduleError):
        set_batch_sequence_length({"input_ids": numbered(2, 4)}, 0)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
@pytest.mark.parametrize("options", [{}, {"preserve_end_of_sequence": True}, {"truncate": False}], ids=str)
def test_an_empty_batch_stays_empty(shape, options):
    cut = set_batch_sequence_length({"input_ids": torch.zeros(shape, dtype=torch.int64)}, 2, **options)["input_ids"]
    assert cut.shape == (shape[0] if shape[1] == 0 else 0, min(2, shape[1]))
