"""Public reports about labels, positions, documents and padding: what stands at the borders, and in which shape."""

import itertools

import numpy as np
import pytest
import torch
from cases import ids, joined, numbered

from slw_data import ConstantSchedule, LinearSchedule, SLWDataset, SLWLoader, StagedSchedule
from slw_data.batch.building import EXTRAS

DOCUMENTS = ("position_ids", "document_ids")


def delivered(source, schedule, batch_size=1, **options):
    return list(SLWDataset(source, schedule, batch_size=batch_size, **options))


def test_B006_labels_are_shifted_only_when_asked_for_by_name():
    source = np.arange(5, 14)
    first, second = delivered(source, ConstantSchedule(4))
    assert first["input_ids"].tolist() == first["labels"].tolist() == [[5, 6, 7, 8]]
    assert "labels" not in delivered(source, ConstantSchedule(4), labels="none")[0]
    first, second = delivered(source, ConstantSchedule(4), labels="shifted")
    assert first["labels"].tolist() == [[6, 7, 8, 9]] and second["labels"].tolist() == [[10, 11, 12, 13]]
    first, second = delivered(source, ConstantSchedule(4), labels="both")
    assert first["labels"].tolist() == [[5, 6, 7, 8]] and first["shift_labels"].tolist() == [[6, 7, 8, 9]]


@pytest.mark.parametrize("source", [np.arange(33), numbered([4, 9, 20])], ids=["store", "stream"])
def test_B068_shifted_rows_keep_their_width_and_lose_no_target(source):
    batches = delivered(source, ConstantSchedule(8), labels="shifted")
    assert joined(ids(batches)) == [list(range(start, start + 8)) for start in (0, 8, 16, 24)]
    assert [batch["labels"][0].tolist() for batch in batches] == [list(range(i + 1, i + 9)) for i in (0, 8, 16, 24)]
    assert batches[0]["labels"][0, -1] == batches[1]["input_ids"][0, 0] == 8


@pytest.mark.parametrize("labels", ["unshifted", "shifted"])
@pytest.mark.parametrize("mode", ["stream", "segment"])
def test_B054_an_eos_that_is_also_the_pad_keeps_its_label(mode, labels):
    docs = [[5, 6, 0], [7, 8, 9, 0], [4, 0]]
    padding = {} if mode == "stream" else {"pad_id": 0}
    rows = delivered(docs, ConstantSchedule(4), mode=mode, labels=labels, **padding)
    found = [(row["input_ids"][0].tolist(), row["labels"][0].tolist()) for row in rows]
    expected = {
        ("stream", "unshifted"): [[5, 6, 0, 7], [8, 9, 0, 4]],
        ("stream", "shifted"): [[6, 0, 7, 8], [9, 0, 4, 0]],
        ("segment", "unshifted"): [[5, 6, 0, -100], [7, 8, 9, 0], [4, 0, -100, -100]],
        ("segment", "shifted"): [[6, 0, -100, -100], [8, 9, 0, -100], [0, -100, -100, -100]],
    }
    assert [label for _, label in found] == expected[mode, labels]
    if mode == "segment":
        assert [row for row, _ in found] == [[5, 6, 0, 0], [7, 8, 9, 0], [4, 0, 0, 0]]


def test_B122_no_document_predicts_the_next_one_where_rows_are_of_one_document():
    docs = [[1, 2, 3, 4, 5], [6, 7, 8]]
    [batch] = delivered(docs, ConstantSchedule(4), 3, mode="segment", pad_id=0, labels="shifted")
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 0, 0, 0], [6, 7, 8, 0]]
    assert batch["labels"].tolist() == [[2, 3, 4, 5], [-100] * 4, [7, 8, -100, -100]]
    [batch] = delivered(docs, ConstantSchedule(4), 2, labels="shifted")  # off by default
    assert batch["labels"].tolist() == [[2, 3, 4, 5], [6, 7, 8, -100]]


def test_B051_documents_and_positions_come_of_the_same_boundaries():
    [batch] = delivered(numbered([5, 3, 8]), ConstantSchedule(8), 2, extras=DOCUMENTS)
    assert batch["document_ids"].tolist() == [[0] * 5 + [1] * 3, [0] * 8]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], list(range(8))]
    sizes = [1, 13, 6, 2, 9, 4, 21]
    for batch in delivered(numbered(sizes), StagedSchedule([5, 7], [3]), 2, extras=DOCUMENTS):
        begins = {0, *itertools.accumulate(sizes)}
        for row, positions, numbers in zip(*(batch[name].tolist() for name in ("input_ids", *DOCUMENTS)), strict=True):
            starts = [i for i, token in enumerate(row) if i == 0 or token in begins]
            assert [i for i, position in enumerate(positions) if position == 0] == starts
            assert numbers[0] == 0
            assert [i for i in range(len(row)) if i == 0 or numbers[i] == numbers[i - 1] + 1] == starts


def test_B101_no_mask_of_ones_hides_the_positions_from_a_model():
    for source in (numbered([5, 3, 8]), np.arange(16)):
        [batch] = delivered(source, ConstantSchedule(8), 2, extras=DOCUMENTS, eos_id=4)
        assert list(batch) == ["input_ids", "labels", *DOCUMENTS]


def test_B147_an_eos_belongs_to_the_document_that_it_ends():
    for source in (np.array([1, 2, 9, 3, 4, 9]), [[1, 2, 9], [3, 4, 9]]):
        [batch] = delivered(source, ConstantSchedule(6), extras=DOCUMENTS, eos_id=9)
        assert batch["document_ids"].tolist() == [[0, 0, 0, 1, 1, 1]]
        assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2]]


def test_B146_padding_is_no_document_of_its_own():
    [batch] = delivered([[5, 6, 7]], ConstantSchedule(8), mode="segment", pad_id=0, extras=DOCUMENTS)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert batch["document_ids"].tolist() == [[0] * 8] and batch["position_ids"].tolist() == [list(range(8))]


def test_B076_padding_is_not_counted_and_always_masked():
    docs = [[1, 2, 3], [4] * 8, [5, 6], [7] * 6]  # 19 tokens and, in four rows of 10, 21 pads
    loader = SLWLoader(SLWDataset(docs, ConstantSchedule(10), batch_size=2, mode="segment", pad_id=0))
    seen, masked = [], []
    for batch in loader:
        seen.append(loader.tokens_seen)
        masked.append(int(batch["attention_mask"].sum()))
        assert torch.equal(batch["attention_mask"] == 0, batch["labels"] == -100)
    assert seen == [11, 19] and masked == [11, 8]
    assert loader.state_dict()["tokens"] == loader.metrics()["slw/tokens_seen"] == 19
    dropping = SLWLoader(SLWDataset(docs, ConstantSchedule(4), batch_size=2))
    batches = list(dropping)
    assert dropping.tokens_seen == 16 and not any("attention_mask" in batch for batch in batches)


def test_B053_a_plain_batch_holds_only_names_that_models_take():
    accepted = {"input_ids", "labels", "attention_mask", "position_ids"}
    assert set(delivered(np.arange(64), ConstantSchedule(8))[0]) == {"input_ids", "labels"}
    padded = delivered([[1, 2]], ConstantSchedule(8), mode="segment", pad_id=0, extras=("position_ids",))
    assert set(padded[0]) == accepted


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("mode", ["stream", "segment"])
def test_B126_every_column_is_as_wide_as_the_ids(mode, num_workers):
    docs = [{"input_ids": doc, "loss_mask": [1] * len(doc)} for doc in numbered([4, 30, 11, 17] * 12)]
    padding = {} if mode == "stream" else {"pad_id": 0}
    schedule = LinearSchedule(4, 16, warmup_steps=6, multiple_of=4)
    dataset = SLWDataset(
        docs, schedule, batch_size=3, total_steps=8, mode=mode, labels="both", extras=DOCUMENTS,
        columns=("input_ids", "loss_mask"), **padding,
    )  # fmt: skip
    for step, batch in enumerate(SLWLoader(dataset, num_workers=num_workers)):
        width = [4, 4, 8, 8, 12, 12, 16, 16][step]
        assert {tuple(value.shape) for value in batch.values()} == {(3, width)} and len(batch) >= 6


def test_B140_the_first_dimension_of_every_value_is_the_rows():
    options = {"tokens_per_batch": 48, "labels": "both", "extras": EXTRAS[:3]}
    for source in (numbered([9] * 60), {"input_ids": np.arange(540), "loss_mask": np.arange(540) % 2}):
        columns = ("input_ids", "loss_mask") if isinstance(source, dict) else ("input_ids",)
        batches = SLWDataset(source, StagedSchedule([4, 16], [3]), columns=columns, eos_id=8, **options)
        for step, batch in enumerate(batches):
            assert {len(value) for value in batch.values()} == {12 if step < 3 else 3}
            assert next(iter(batch)) == "input_ids"
