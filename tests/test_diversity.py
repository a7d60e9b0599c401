"""How many documents a step holds, told before anything is read, and the warning of steps that hold few."""

import json
import re
import warnings
from itertools import islice

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from slw_data import ConstantSchedule, LinearSchedule, SequenceLengthPlan, SLWDataset, SLWLoader, StagedSchedule
from slw_data.cli import main
from slw_data.order.diversity import documents_in, pieces_of
from slw_data.order.lanes import open_lanes
from slw_data.order.store import StoreOrder

SHORT = StagedSchedule([2, 4, 3], [2, 5])


def rows_of(documents):
    """A store whose documents have these sizes; each token is the number of its document."""
    return Dataset.from_dict({"input_ids": [[number] * size for number, size in enumerate(documents)]})


def said(dataset):
    """The numbers of the last line: of a step, of all, and of 100 steps."""
    numbers = re.search(r"a step has tokens of (\S+) of (\S+) documents, 100 steps of ([^ ;]+)", dataset.describe())
    return tuple(int(number.replace(",", "")) for number in numbers.groups())


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 30), min_size=3, max_size=60),
    st.integers(1, 6),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from([{"epochs": 1}, {"epochs": 2}, {"total_steps": 3}, {"total_steps": 90}, {"total_steps": 150}]),
)
def test_what_describe_says_is_what_batches_then_hold(sizes, rows, shuffle, num_lanes, end):
    """Also where the first 100 steps come to what the lanes leave over, or to tokens again."""
    if sum(sizes) < 3 * max(rows, num_lanes or 1):
        return
    options = {"shuffle": shuffle, "num_lanes": num_lanes, **end}
    dataset = SLWDataset(rows_of(sizes), SHORT, batch_size=rows, **options)
    of_a_step, of_all, of_100 = said(dataset)
    batches = [batch["input_ids"].numpy() for batch in islice(SLWLoader(dataset, prefetch=0), 100)]
    assert (of_a_step, of_all) == (np.unique(batches[0]).size, len(sizes))
    assert of_100 == np.unique(np.concatenate([batch.ravel() for batch in batches])).size


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 3_000), st.booleans())
def test_pieces_are_the_tokens_that_the_first_steps_hold(num_lanes, steps, num_tokens, shuffle):
    num_tokens = max(num_tokens, num_lanes)
    plan = SequenceLengthPlan(SHORT, batch_size=3, total_steps=1_000)
    order = StoreOrder(open_lanes(num_tokens, num_lanes, shuffle=shuffle), plan)
    starts, sizes = pieces_of(order, steps)
    assert (starts.dtype, sizes.dtype) == (np.int64, np.int64)
    found = [position for start, size in zip(starts, sizes, strict=True) for position in range(start, start + size)]
    dataset = SLWDataset(np.arange(num_tokens), plan, shuffle=shuffle, num_lanes=num_lanes)
    held = [token for batch in islice(SLWLoader(dataset, prefetch=0), steps) for token in batch["input_ids"].flatten().tolist()]
    assert found == sorted(set(held))
    assert all(a + size < b for a, size, b in zip(starts, sizes, starts[1:], strict=False)), "pieces that touch are one"


def test_documents_without_an_index_are_expected_as_random_ones_would_be():
    num_tokens, documents = 1_000_000, 400
    plan = SequenceLengthPlan(StagedSchedule([8, 64], [30]), batch_size=16)
    order = StoreOrder(open_lanes(num_tokens, shuffle=True), plan)
    generator = np.random.default_rng(0)
    for steps in (1, 10, 100):
        pieces = pieces_of(order, steps)
        counted = []
        for _ in range(50):
            begins = np.sort(generator.choice(num_tokens - 1, documents - 1, replace=False) + 1)
            counted.append(documents_in(*pieces, np.array([0, *begins, num_tokens]), num_tokens))
        error = np.std(counted) / 50**0.5
        assert abs(documents_in(*pieces, documents, num_tokens) - np.mean(counted)) < 4 * error + 0.02 * np.mean(counted)


def test_the_readme_measure_by_arithmetic():
    """1,800 documents of 17,500 tokens, batches of 16 x 8: at least 800 in 100 batches is the goal."""
    order = StoreOrder(open_lanes(1_800 * 17_500, shuffle=True), SequenceLengthPlan(ConstantSchedule(8), batch_size=16))
    begins = np.arange(1_801) * 17_500
    assert [documents_in(*pieces_of(order, steps), begins, begins[-1]) for steps in (1, 100)] == [16, 1024]


# -- the command line --------------------------------------------------------------------------------------------------

PLAN = ["plan", "--warmup-steps", "300", "--batch-size", "16", "--shuffle", "--num-tokens", "31500000"]


def test_the_command_line_says_it_from_sizes_alone(capsys):
    assert main([*PLAN, "--num-documents", "1800"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "a step has tokens of about 16 of 1,800 documents, 100 steps of about 861; 1,632 tokens are left over" in last
    assert main(PLAN) == 0
    assert "a step is read from 16 places of the store, 100 steps from 1,024;" in capsys.readouterr().out
    assert main([*PLAN, "--num-lanes", "16", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["of_a_step"] == {"places": 16, "documents": None} == plain["of_100_steps"]
    assert plain["tokens_left"] == 31_500_000 - plain["total_tokens"] < 16 * 1024


@pytest.mark.parametrize("useless", [["--num-documents", "5"], ["--shuffle"], ["--num-lanes", "4"], ["--epochs", "2"]])
def test_an_order_of_no_store_is_refused(capsys, useless):
    with pytest.raises(SystemExit):
        main(["plan", "--warmup-steps", "3", "--batch-size", "1", *useless])
    assert f"{useless[0]} is of a store: give --num-tokens" in capsys.readouterr().err


# -- the warning -------------------------------------------------------------------------------------------------------

WARMUP = LinearSchedule(8, 64, warmup_steps=4)


def neighbours(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    return [warning for warning in caught if "stream order" in str(warning.message)]


def test_rows_of_few_documents_in_stream_order_are_warned_of_once_with_the_numbers():
    [warning] = neighbours(lambda: SLWDataset(rows_of([100] * 40), WARMUP, batch_size=16))
    assert str(warning.message).startswith("in stream order the first step has 16 rows of 8 tokens from 2 documents")
    assert "write shuffle=True" in str(warning.message) and warning.filename == __file__


def test_documents_that_only_an_end_token_tells_are_counted_too():
    tokens = np.tile(np.arange(50), 100)
    [warning] = neighbours(lambda: SLWDataset(tokens, WARMUP, batch_size=16, eos_id=49))
    assert "from 3 documents" in str(warning.message)  # 128 tokens: two ends of 50, and what is begun


def test_a_stream_is_warned_of_when_it_is_read():
    dataset = SLWDataset([[1] * 100] * 40, WARMUP, batch_size=16, total_steps=3)
    [warning] = neighbours(lambda: list(SLWLoader(dataset)))
    assert "16 rows of 8 tokens from 2 documents" in str(warning.message) and "num_lanes=16" in str(warning.message)
    assert neighbours(lambda: list(SLWLoader(dataset, prefetch=0))) != []
    loader = SLWLoader(dataset)
    next(iter(loader))
    loader.seek(1)
    assert neighbours(lambda: list(loader)) == [], "it is of the first step"


DOCUMENTS = rows_of([100] * 40)
QUIET = {
    "shuffled": lambda: SLWDataset(DOCUMENTS, WARMUP, batch_size=16, shuffle=True),
    "lanes": lambda: SLWDataset(DOCUMENTS, WARMUP, batch_size=16, num_lanes=16),
    "evaluation": lambda: SLWDataset(DOCUMENTS, ConstantSchedule(16), batch_size=16),
    "short documents": lambda: SLWDataset(rows_of([5] * 400), WARMUP, batch_size=16),
    "documents nobody knows": lambda: SLWDataset(np.zeros(4000, int), WARMUP, batch_size=16),
    "a stream with lanes": lambda: list(SLWDataset([[1] * 100] * 400, WARMUP, batch_size=16, num_lanes=16, total_steps=2)),
}


@pytest.mark.parametrize("case", list(QUIET))
def test_other_runs_are_not(case):
    assert neighbours(QUIET[case]) == []
