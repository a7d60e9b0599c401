"""Mode "window": rows as mode "stream" cuts them at the largest length, and windows of the scheduled one, beside loops."""

import itertools
import json

import numpy as np
import pytest
import torch
from delivery import Documented
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from slw_data import (
    BucketSchedule,
    ConstantSchedule,
    LinearSchedule,
    SequenceLengthPlan,
    SLWDataset,
    SLWLoader,
    StagedSchedule,
)


def lists(batch):
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def windows_by_hand(row, window, begins):
    """``(window_ids, position_ids, document_ids)`` of a row of tokens, by a loop; documents begin at the ids in ``begins``."""
    numbers, positions, documents = [], [], []
    for i, token in enumerate(row):
        new = i > 0 and token in begins
        documents.append(documents[-1] + new if documents else 0)
        numbers.append(i // window)
        fresh = i == 0 or new or numbers[-1] != numbers[-2]
        positions.append(0 if fresh else positions[-1] + 1)
    return numbers, positions, documents


def documents_of(sizes, total):
    """Documents of these sizes and a last one, of the tokens 0, 1, ... of which there are ``total``."""
    bounds = [bound for bound in itertools.accumulate([0, *sizes]) if bound < total] + [total]
    return [list(range(a, b)) for a, b in itertools.pairwise(bounds)]


def source_of(kind, docs):
    if kind == "stream":
        return docs
    total = docs[-1][-1] + 1
    return np.arange(total) if kind == "array" else Documented(range(total), [doc[0] for doc in docs])


@st.composite
def windowed(draw):
    """``(schedule, options, lengths of the steps)`` of a run of windows over tokens 0 to 299."""
    windows = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    accumulation, hold = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    longest, steps = max(windows), 8
    shape = draw(st.sampled_from([{"batch_size": 2}, {"batch_size": 3}, {"tokens_per_batch": 2 * longest + 1}]))
    schedule = StagedSchedule(windows, range(hold, hold * len(windows), hold))
    expected = [windows[min(step // hold, len(windows) - 1)] for step in range(steps)]
    lanes = draw(st.sampled_from([None, 1, 3]))
    options = {**shape, "grad_accum_steps": accumulation, "total_steps": steps, "num_lanes": lanes}
    return schedule, options, expected, longest


@given(
    run=windowed(),
    kind=st.sampled_from(["stream", "array", "documented"]),
    shuffle=st.booleans(),
    labels=st.sampled_from(["unshifted", "shifted", "both", "none"]),
    sizes=st.lists(st.integers(1, 20), max_size=12),
    world=st.integers(1, 3),
)
def test_rows_are_those_of_mode_stream_at_the_largest_length_and_windows_are_cut_in_them(
    run, kind, shuffle, labels, sizes, world
):
    schedule, options, expected, longest = run
    options = {**options, "labels": labels, "shuffle": shuffle and kind != "stream", "dp_world_size": world}
    docs = documents_of(sizes, 300)
    for rank in range(world):
        make = {"dp_rank": rank, **options}
        named = () if kind == "array" else ("document_ids",)  # an array knows none
        extras = ("window_ids", "position_ids", "step", *named)
        dataset = SLWDataset(source_of(kind, docs), schedule, mode="window", extras=extras, **make)
        plain = SLWDataset(source_of(kind, docs), ConstantSchedule(longest), extras=("step", *named), **make)
        begins = {row[0] for row in docs}
        accumulation, count = options["grad_accum_steps"], 0
        for number, (batch, rows) in enumerate(zip(dataset, plain, strict=True)):
            found, window = lists(batch), expected[number // accumulation]
            numbers, positions = found.pop("window_ids"), found.pop("position_ids")
            assert found == lists(rows)
            for i, row in enumerate(found["input_ids"]):
                jumps = {b for a, b in itertools.pairwise(row) if b != a + 1}  # a lane goes on elsewhere: a document begins
                hand = windows_by_hand(row, window, jumps if kind == "array" else jumps | begins)
                assert (numbers[i], positions[i]) == hand[:2]
                assert not named or found["document_ids"][i] == hand[2]
            count += 1
        assert count == 8 * accumulation
        assert dataset.plan.fingerprint == plain.plan.fingerprint and dataset.num_batches == plain.num_batches


def test_windows_by_hand():
    options = {"batch_size": 1, "mode": "window", "extras": ("window_ids", "position_ids"), "eos_id": 4}
    first, second = itertools.islice(SLWDataset(np.arange(100), StagedSchedule([3, 8], [1]), **options), 2)
    assert first["input_ids"].tolist() == first["labels"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert first["window_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]]
    assert first["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 1]]  # a document begins behind 4
    assert second["window_ids"].tolist() == [[0] * 8] and second["position_ids"].tolist() == [list(range(8))]
    for tensor in (first["window_ids"], first["position_ids"]):
        assert tensor.dtype == torch.int64 and tensor.is_contiguous()


@given(
    run=windowed(),
    stored=st.booleans(),
    shuffle=st.booleans(),
    labels=st.sampled_from(["unshifted", "shifted", "both", "none"]),
    sizes=st.lists(st.integers(1, 20), max_size=12),
)
def test_each_window_and_document_is_a_sequence_of_a_flat_row(run, stored, shuffle, labels, sizes):
    schedule, options, expected, longest = run
    options = {**options, "labels": labels, "shuffle": shuffle and stored}
    docs = documents_of(sizes, 300)
    source = source_of("documented" if stored else "stream", docs)
    flat = SLWDataset(source, schedule, mode="window", extras=("cu_seq_lens", "window_ids"), **options)
    plain = SLWDataset(source, schedule, mode="window", extras=("position_ids", "window_ids"), **options)
    budget = options.get("tokens_per_batch", options.get("batch_size", 0) * longest)
    for number, (batch, rows) in enumerate(zip(flat, plain, strict=True)):
        window, found = expected[number // options["grad_accum_steps"]], lists(batch)
        joined = {name: [value for row in rows[name].tolist() for value in row] for name in rows}
        used, rest = len(joined["input_ids"]), budget - len(joined["input_ids"])
        bounds = [i for i, position in enumerate(joined["position_ids"]) if position == 0] + [used] * (rest > 0) + [budget]
        assert found["cu_seq_lens_q"] == found["cu_seq_lens_k"] == bounds
        assert found["max_length_q"] == max(b - a for a, b in itertools.pairwise(bounds)) <= max(window, rest)
        assert found["position_ids"] == [joined["position_ids"] + list(range(rest))]
        assert found["window_ids"] == [joined["window_ids"] + [0] * rest]
        for name in {"labels", "shift_labels"} & set(joined):
            target = joined[name]
            if name == "labels" and labels != "shifted":  # one in each row has none, and a window's first token has one
                target = [-100 if i % longest == 0 else token for i, token in enumerate(target)]
            assert found[name] == [target + [-100] * rest]


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_goes_on_with_its_windows_where_it_was_saved(stored, num_workers):
    source = np.arange(5000) if stored else documents_of([7] * 700, 5000)
    schedule = LinearSchedule(2, 16, warmup_steps=20, multiple_of=1)
    options = {"batch_size": 3, "mode": "window", "extras": ("window_ids", "position_ids"), "total_steps": 40}
    options["shuffle"] = stored

    def loader():
        return SLWLoader(SLWDataset(source, schedule, **options), num_workers=num_workers)

    whole = [lists(batch) for batch in loader()]
    for stop in (1, 13, 30):
        first = loader()
        begun = [lists(batch) for batch in itertools.islice(first, stop)]
        again = loader()
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert begun + [lists(batch) for batch in again] == whole


def test_a_state_is_of_the_rows_and_windows_are_form():
    """As labels are: another window schedule of the same rows goes on, also with mode "stream" at their length."""
    options = {"batch_size": 2, "total_steps": 20, "shuffle": True}
    windowed = {**options, "mode": "window", "extras": ("window_ids",)}
    loader = SLWLoader(SLWDataset(np.arange(500), StagedSchedule([2, 8], [5]), **windowed))
    list(itertools.islice(loader, 7))
    state = loader.state_dict()
    others = [
        SLWDataset(np.arange(500), StagedSchedule([4, 8], [9]), **windowed),
        SLWDataset(np.arange(500), ConstantSchedule(8), **options),
    ]
    rest = [batch["input_ids"].tolist() for batch in loader]
    for other in others:
        other.load_state_dict(state)
        assert [batch["input_ids"].tolist() for batch in other] == rest
    shorter = SLWDataset(np.arange(500), StagedSchedule([2, 4], [5]), **windowed)
    refused(lambda: shorter.load_state_dict(state), "past", error=ValueError)


def test_the_plan_counts_the_tokens_of_rows_and_the_loader_says_the_window():
    options = {"batch_size": 4, "mode": "window", "extras": ("window_ids",)}
    dataset = SLWDataset(np.arange(16 * 4 * 10 + 3), LinearSchedule(4, 16, warmup_steps=6, multiple_of=4), **options)
    plan = dataset.plan
    assert (plan.total_steps, plan.total_tokens, dataset.tokens_left) == (10, 640, 3)
    assert [(stage.start, stage.stop, stage.length, stage.rows) for stage in plan.stages] == [(0, 10, 16, 4)]
    loader, seen = SLWLoader(dataset, prefetch=0), []
    assert loader.sequence_length == 4
    for batch in loader:
        assert batch["input_ids"].shape == (4, 16)
        metrics = loader.metrics()
        assert metrics["slw/tokens_seen"] == 64 * loader.step and metrics["slw/rows"] == 4
        assert metrics["slw/sequence_length"] == loader.sequence_length
        seen.append(loader.sequence_length)
    assert seen == [4, 4, 8, 8, 12, 12, 16, 16, 16, 16]
    words = [line.split() for line in dataset.describe().splitlines()]
    rows = [["step", "length", "rows", "tokens/step", "tokens", "before"], ["0", "16", "4", "64", "0"]]
    windows = [["step", "window"], ["0", "4"], ["2", "8"], ["4", "12"], ["6", "16"]]
    assert words[:2] == rows and words[3:8] == windows
    assert words[8] == ["windows", "of", "4", "to", "16", "tokens", "in", "rows", "of", "16"]


@given(windows=st.lists(st.integers(1, 9), min_size=2, max_size=4), each=st.integers(1, 90), rows=st.integers(1, 3))
def test_windows_that_follow_tokens_follow_those_of_rows(windows, each, rows):
    schedule = StagedSchedule(windows, range(each, each * len(windows), each), unit="tokens")
    options = {"batch_size": rows, "mode": "window", "extras": ("window_ids",), "total_steps": 30}
    before = 0
    for batch in SLWDataset(np.arange(500), schedule, **options):
        window = windows[min(before // each, len(windows) - 1)]
        assert batch["window_ids"][0].tolist() == [i // window for i in range(max(windows))]
        before += rows * max(windows)


def test_a_fraction_is_one_of_the_steps_of_rows():
    options = {"batch_size": 2, "mode": "window", "extras": ("window_ids",)}
    schedule = LinearSchedule(2, 8, warmup_fraction=0.5, multiple_of=2)
    loader, seen = SLWLoader(SLWDataset(np.arange(16 * 12), schedule, **options), prefetch=0), []
    for _ in loader:
        seen.append(loader.sequence_length)
    assert seen == [2, 2, 4, 4, 6, 6, 8, 8, 8, 8, 8, 8]


def test_a_callable_says_how_long_its_rows_are():
    def half(step):
        return 3 if step < 2 else 6

    options = {"batch_size": 2, "mode": "window", "extras": ("window_ids",), "total_steps": 4}
    refused(lambda: SLWDataset(np.arange(99), half, **options), "largest length", "schedule.max_length = n", "StagedSchedule")
    half.max_length = 6
    shapes = [batch["window_ids"].tolist() for batch in SLWDataset(np.arange(99), half, **options)]
    assert shapes == [[[0, 0, 0, 1, 1, 1]] * 2] * 2 + [[[0] * 6] * 2] * 2
    half.max_length = 5
    refused(lambda: list(SLWDataset(np.arange(99), half, **options)), "max_length=5", "step 2", "6")


def test_what_has_no_windows_is_refused():
    tokens, windows = np.arange(99), {"mode": "window", "extras": ("window_ids",)}
    plan = SequenceLengthPlan(ConstantSchedule(4), batch_size=2)
    refused(lambda: SLWDataset(tokens, plan, **windows), "SequenceLengthPlan(", "scheduled length", "pass its schedule")
    refused(
        lambda: SLWDataset(tokens, ConstantSchedule(4), batch_size=2, mode="window", extras=("step",)),
        "('step',)", "'window_ids'", "'position_ids'", "'cu_seq_lens'", error=ValueError,
    )  # fmt: skip
    refused(
        lambda: SLWDataset(tokens, ConstantSchedule(4), batch_size=2, extras=("window_ids",)),
        "mode='stream'", "mode='window'", error=ValueError,
    )  # fmt: skip
    drawn = BucketSchedule([2, 4])
    refused(lambda: SLWDataset(tokens, drawn, batch_size=2, **windows), "mode='buckets'", error=ValueError)


def test_a_run_that_ends_before_its_warmup_is_warned_of():
    schedule = LinearSchedule(8, 64, warmup_steps=100)
    options = {"batch_size": 1, "mode": "window", "extras": ("window_ids",), "total_steps": 10}
    with pytest.warns(UserWarning, match="ends before its warmup does: it has 10 steps of up to 8 tokens.*at step 100"):
        SLWDataset(np.arange(999), schedule, **options)
