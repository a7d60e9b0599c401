"""Flat rows of fixed shapes: as many bounds in every batch, and sequences padded to a multiple, beside loops over rows."""

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from delivery import Documented
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused
from torch._dynamo.testing import CompileCounter

from slw_data import ConstantSchedule, DataError, LinearSchedule, SequenceLengthPlan, SLWDataset, SLWLoader, StagedSchedule

FLAT = {"extras": ("cu_seq_lens",)}
END = 5  # of a document


def lists(batch):
    return {name: value.flatten().tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def sequences_of(batch):
    """The sequences of a rectangle, in the order of its rows: lists of ``(row begins, {name: value})``, a token each."""
    names, found = [name for name in batch if name != "position_ids"], []
    for r, positions in enumerate(batch["position_ids"].tolist()):
        for i, position in enumerate(positions):
            if position == 0:
                found.append([])
            found[-1].append((i == 0, {name: int(batch[name][r, i]) for name in names}))
    return found


def flat_by_hand(sequences, budget, labels, *, multiple=1, most=None, longest=None, pad_id=0):
    """The flat row of some sequences, as lists."""
    names = list(sequences[0][0][1])
    fill = {name: -100 if "labels" in name else pad_id if name == "input_ids" else 0 for name in names}
    flat, bounds, positions, padded = {name: [] for name in names}, [], [], False
    for sequence in sequences:
        bounds.append(len(positions))
        for i, (row_begins, token) in enumerate(sequence):
            for name, value in token.items():
                hidden = name == "labels" and labels != "shifted" and (row_begins or (i == 0 and padded))
                flat[name].append(-100 if hidden else value)
            positions.append(i)
        padded = False
        while len(positions) % multiple:
            positions.append(positions[-1] + 1)
            for name in names:
                flat[name].append(fill[name])
            padded = True
    tokens = budget
    if most is not None and multiple > 1:
        tokens = budget + most * (multiple - 1)
        while tokens % multiple:
            tokens += 1
    assert len(positions) <= tokens
    if len(positions) < tokens:
        bounds.append(len(positions))
        while len(positions) < tokens:
            positions.append(len(positions) - bounds[-1])
            for name in names:
                flat[name].append(fill[name])
    bounds.append(tokens)
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    while most is not None and len(bounds) < most + 1:
        bounds.append(tokens)
    flat |= {"position_ids": positions, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    flat["max_length_q"] = flat["max_length_k"] = max(sizes) if longest is None else longest
    assert flat["max_length_q"] >= max(sizes)
    return flat


@st.composite
def flat_runs(draw):
    """``(source, schedule, options)`` of a run that can be flat."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    kind = draw(st.sampled_from(["stream", "array", "eos", "documented"]))
    sizes = draw(st.lists(st.integers(0, 9), max_size=40))
    bounds = sorted({0, *(bound for bound in itertools.accumulate(sizes) if bound < 120)})
    docs = [list(range(a + 10, b + 10)) for a, b in itertools.pairwise([*bounds, 120])]
    tokens = [token for doc in docs for token in doc]
    source = docs if kind == "stream" else np.array(tokens) if kind == "array" else Documented(tokens, bounds)
    options = {"tokens_per_batch": max(lengths) + draw(st.integers(0, 20)), "num_lanes": draw(st.sampled_from([None, 1, 3]))}
    if kind == "eos":
        options["eos_id"] = END
        source = np.array([token for doc in docs for token in [*doc[:-1], END]])
    if kind != "stream":
        options |= {"shuffle": draw(st.booleans()), "seed": draw(st.integers(0, 9))}
    if draw(st.booleans()):
        options["mode"] = "window"
    end = draw(st.sampled_from(["total_steps", "epochs"]))
    options |= {end: draw(st.integers(1, 3)) * (3 if end == "total_steps" else 1), "grad_accum_steps": draw(st.integers(1, 2))}
    return source, StagedSchedule(lengths, range(2, 2 * len(lengths), 2)), options


def rectangles(source, schedule, options, **more):
    try:
        return list(SLWDataset(source, schedule, extras=("position_ids",), **options, **more))
    except DataError as error:
        assert "too few" in str(error)
        return []


def most_rows(schedule, options):
    """The most rows or windows in a batch of any stage, and one for the rest: no bound below that is taken."""
    budget, longest = options["tokens_per_batch"], max(schedule.lengths)
    if "mode" in options:
        return max(budget // longest * -(-longest // window) for window in schedule.lengths) + 1
    return max(budget // length for length in schedule.lengths) + 1


labels_of_all_kinds = st.sampled_from(["unshifted", "shifted", "both", "none"])
pytestmark = pytest.mark.filterwarnings("ignore:.*(too few tokens|in stream order)")


@given(flat_runs(), labels_of_all_kinds, st.integers(1, 3))
def test_bounds_repeat_the_total_up_to_max_documents(run, labels, spare):
    source, schedule, options = run
    budget = options["tokens_per_batch"]
    found = rectangles(source, schedule, options, labels=labels)
    if not found:
        return
    rest = [int(budget > batch["input_ids"].numel()) for batch in found]
    most = max(len(sequences_of(batch)) + more for batch, more in zip(found, rest, strict=True)) + spare - 1
    most = max(most, most_rows(schedule, options))
    flat = list(SLWDataset(source, schedule, labels=labels, max_documents=most, **FLAT, **options))
    assert len(flat) == len(found)
    for number, (batch, rows) in enumerate(zip(flat, found, strict=True)):
        scheduled = schedule(number // options["grad_accum_steps"])
        longest = max(scheduled, budget - rows["input_ids"].numel())
        assert lists(batch) == flat_by_hand(sequences_of(rows), budget, labels, most=most, longest=longest)
        assert batch["cu_seq_lens_q"].dtype == torch.int32 and batch["cu_seq_lens_q"].shape == (most + 1,)
        assert "mode" in options or longest == scheduled  # the rest is shorter than a row


@given(flat_runs())
def test_one_sequence_more_than_max_documents_is_refused_where_it_comes(run):
    source, schedule, options = run
    rectangle = rectangles(source, schedule, options)
    budget = options["tokens_per_batch"]
    counts = [int((batch["position_ids"] == 0).sum()) + (budget > batch["input_ids"].numel()) for batch in rectangle]
    if max(counts, default=0) <= most_rows(schedule, options):  # of fewer the plan says so already
        return
    dataset = SLWDataset(source, schedule, max_documents=max(counts) - 1, **FLAT, **options)
    step, batch = divmod(counts.index(max(counts)), options["grad_accum_steps"])
    facts = (f"max_documents={max(counts) - 1} ", f"batch {batch} of step {step} has {max(counts)}")
    refused(lambda: list(dataset), *facts, error=DataError)
    assert dataset.position[:2] == (step, batch)


@pytest.mark.parametrize(
    ("num_lanes", "rows", "world"),  # runs of the spans: one for each lane, for each row, for each batch
    [(3, 6, 1), (6, 3, 2), (64, 6, 1), (64, 3, 2), (1, 6, 1), (1, 3, 2)],
)
def test_the_planned_bound_of_many_batches(num_lanes, rows, world):
    rng = np.random.default_rng(num_lanes)
    source = Documented(np.arange(9000), np.unique([0, *rng.integers(0, 9000, 300), *range(5000, 5020)]))
    options = {"tokens_per_batch": 8 * rows, "shuffle": True, "num_lanes": num_lanes, "dp_world_size": world}
    counts = []
    for rank in range(world):
        for batch in SLWDataset(source, ConstantSchedule(8), extras=("position_ids",), dp_rank=rank, **options):
            counts.append(int((batch["position_ids"] == 0).sum()))
    planned = SLWDataset(source, ConstantSchedule(8), max_documents="plan", dp_rank=0, **FLAT, **options)
    assert next(iter(planned))["cu_seq_lens_q"].numel() == max(counts) + 1
    assert len(set(counts)) > 3


@given(flat_runs(), st.integers(1, 3))
def test_the_planned_bound_is_the_least_that_suffices_on_all_ranks(run, world):
    source, schedule, options = run
    if isinstance(source, list):
        refused(lambda: SLWDataset(source, schedule, max_documents="plan", **FLAT, **options), "stream", error=ValueError)
        return
    counts = []
    for rank in range(world):
        for batch in rectangles(source, schedule, options, dp_rank=rank, dp_world_size=world):
            rest = options["tokens_per_batch"] > batch["input_ids"].numel()
            counts.append(int((batch["position_ids"] == 0).sum()) + rest)
    if not counts:
        return
    for rank in range(world):
        dataset = SLWDataset(source, schedule, max_documents="plan", dp_rank=rank, dp_world_size=world, **FLAT, **options)
        assert {batch["cu_seq_lens_q"].numel() for batch in dataset} == {max(counts) + 1}


@given(flat_runs(), labels_of_all_kinds, st.integers(1, 6), st.sampled_from([None, 3]))
def test_sequences_are_padded_to_a_multiple_in_a_row_that_has_room_for_it(run, labels, multiple, pad_id):
    source, schedule, options = run
    found = rectangles(source, schedule, options, labels=labels)
    if not found:
        return
    most = max(most_rows(schedule, options), *(len(sequences_of(batch)) + 1 for batch in found))
    fixed = {"max_documents": most, "flat_multiple_of": multiple, "pad_id": pad_id, "labels": labels}
    flat = list(SLWDataset(source, schedule, **fixed, **FLAT, **options))
    sizes = {batch["input_ids"].numel() for batch in flat}
    assert len(sizes) == 1 and len(flat) == len(found)
    padded = sizes != {options["tokens_per_batch"]}
    for number, (batch, rows) in enumerate(zip(flat, found, strict=True)):
        scheduled = schedule(number // options["grad_accum_steps"])
        longest = max(-(-scheduled // multiple) * multiple, min(sizes) - rows["input_ids"].numel())
        by_hand = {"most": most, "longest": longest, "pad_id": pad_id or 0, "multiple": multiple if padded else 1}
        assert lists(batch) == flat_by_hand(sequences_of(rows), options["tokens_per_batch"], labels, **by_hand)
        assert all(bound % multiple == 0 for bound in batch["cu_seq_lens_q"].tolist())


def test_fixed_shapes_by_hand():
    """Documents of 5, 3 and 8 tokens, in two rows of 8."""
    source = [[1, 2, 3, 4, 5], [6, 7, 8], [9] * 8]
    options = {"tokens_per_batch": 18, "total_steps": 1, **FLAT}
    [batch] = SLWDataset(source, ConstantSchedule(8), max_documents=6, **options)
    assert batch["cu_seq_lens_q"].tolist() == [0, 5, 8, 16, 18, 18, 18] and batch["max_length_q"] == 8
    fixed = {"max_documents": 5, "flat_multiple_of": 4, "pad_id": 99}
    [batch] = SLWDataset(source, ConstantSchedule(8), **fixed, **options)
    assert batch["input_ids"].shape == (1, 36)  # 18 + 5 x 3, and up to a multiple of 4
    assert batch["input_ids"][0].tolist() == [1, 2, 3, 4, 5, 99, 99, 99, 6, 7, 8, 99] + [9] * 8 + [99] * 16
    # 6 would be predicted from padding, and the first 9 from another row
    assert batch["labels"][0].tolist() == [-100, 2, 3, 4, 5] + [-100] * 4 + [7, 8] + [-100] * 2 + [9] * 7 + [-100] * 16
    assert batch["position_ids"][0].tolist() == [*range(8), *range(4), *range(8), *range(16)]
    assert batch["cu_seq_lens_k"].tolist() == [0, 8, 12, 20, 36, 36] and batch["max_length_k"] == 36 - 16


def test_lengths_that_are_multiples_are_not_padded():
    options = {"tokens_per_batch": 64, "flat_multiple_of": 8, **FLAT}
    for schedule in (ConstantSchedule(24), LinearSchedule(8, 32, warmup_steps=3)):
        for batch in SLWDataset(np.arange(1000), schedule, **options):
            assert batch["input_ids"].shape == (1, 64)
            assert all(bound % 8 == 0 for bound in batch["cu_seq_lens_q"].tolist())
    pieces = Documented(range(256), [0, 64, 128, 192])
    for batch in SLWDataset(pieces, ConstantSchedule(16), mode="buckets", **options):
        assert batch["cu_seq_lens_q"].tolist() == [0, 16, 32, 48, 64]  # no document begins within rows


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stored", [True, False])
def test_a_batch_with_too_many_documents_is_refused_after_those_before_it(num_workers, stored):
    docs = [[1] * 40, [2] * 40, *[[3]] * 20, [4] * 60]
    source = Documented(np.concatenate(docs), np.cumsum([0, *map(len, docs[:-1])])) if stored else docs
    options = {"tokens_per_batch": 20, "grad_accum_steps": 2, **FLAT}
    dataset = SLWDataset(source, ConstantSchedule(10), max_documents=3, **options)
    loader, delivered = SLWLoader(dataset, num_workers=num_workers), []

    def read():
        for batch in loader:
            delivered.append(batch)

    said = refused(read, "max_documents=3", "batch 0 of step 2", "has 20", "max_documents=20", error=DataError)
    assert ("'plan'" in said) is stored  # of a stream it would be refused
    assert len(delivered) == 4 and (loader.step, loader.state_dict()["batch"]) == (2, 0)
    whole = list(SLWDataset(source, ConstantSchedule(10), max_documents=20, **options))
    assert len(whole) == 8
    assert [batch["input_ids"].tolist() for batch in delivered] == [batch["input_ids"].tolist() for batch in whole[:4]]
    if stored:
        planned = SLWDataset(source, ConstantSchedule(10), max_documents="plan", **options)
        assert {len(batch["cu_seq_lens_q"]) for batch in planned} == {21}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_of_fixed_shapes_goes_on_where_it_was_saved_on_other_ranks(num_workers):
    rng = np.random.default_rng(3)
    source = Documented(rng.integers(1, 97, 6000), np.unique([0, *rng.integers(0, 6000, 300)]))
    schedule = LinearSchedule(8, 24, warmup_steps=10)
    options = {"total_steps": 20, "shuffle": True, "max_documents": "plan", "flat_multiple_of": 4, **FLAT}

    def loader(rank, world, accumulation):
        options["grad_accum_steps"] = accumulation
        dataset = SLWDataset(source, schedule, tokens_per_batch=48, dp_rank=rank, dp_world_size=world, **options)
        return SLWLoader(dataset, num_workers=num_workers)

    one = loader(0, 1, 2)
    begun = [lists(batch) for batch in itertools.islice(one, 14)]
    state = json.loads(json.dumps(one.state_dict()))
    rest = [lists(batch) for batch in one]
    assert begun + rest == [lists(batch) for batch in loader(0, 1, 2)]
    for rank in range(2):
        other = loader(rank, 2, 1)
        other.load_state_dict(state)
        assert [lists(batch) for batch in other] == rest[rank::2]


def test_bounds_that_cannot_be_are_refused():
    tokens, known = np.arange(200), Documented(np.arange(200), [0, 50])
    options = {"tokens_per_batch": 18, **FLAT}

    def make(source=tokens, schedule=ConstantSchedule(4), **more):
        return lambda: SLWDataset(source, schedule, **{**options, **more})

    def value_error(function, *facts):
        refused(function, *facts, error=ValueError)

    value_error(make(max_documents=4), "max_documents=4", "5 rows", "max_documents=5")  # 4 rows and the rest
    windowed = {"mode": "window", "schedule": StagedSchedule([2, 4], [3])}
    value_error(make(max_documents=8, **windowed), "max_documents=8", "9 rows", "windows")
    assert "max_documents='plan'" in refused(make(max_documents=4), error=ValueError)
    pairs = Documented(range(1, 101), range(0, 100, 2))
    for why in ({"source": [[1, 2]] * 50}, {"source": pairs, "mode": "pack", "pad_id": 0}):
        assert "'plan'" not in refused(make(max_documents=4, **why), "max_documents=5", error=ValueError)
        full = make(max_documents=5, **why)()
        assert "'plan'" not in refused(partial(list, full), "write max_documents=", error=DataError)
    value_error(make(max_documents=2**31, flat_multiple_of=3), "2^31 - 1", "max_documents=2147483648", "flat_multiple_of=3")
    value_error(make(max_documents=2**31), "2^31 - 1", "max_documents=2147483648")
    refused(make(max_documents=0), "max_documents (or 'plan')", "0")
    refused(make(max_documents="most"), "max_documents (or 'plan')", "'most'")
    refused(make(flat_multiple_of=0), "flat_multiple_of", "0")
    for wrong in ({"max_documents": 9}, {"max_documents": "plan"}, {"flat_multiple_of": 8}):
        value_error(make(extras=(), **wrong), "extras=('cu_seq_lens',)", *(f"{k}={v}" for k, v in wrong.items()))
    value_error(make(known, max_documents="plan", sharded=True, total_steps=2), "sharded=True", "write a number")
    endless = SequenceLengthPlan(lambda step: 4, tokens_per_batch=16)
    value_error(make([[1, 2]], endless, max_documents="plan", tokens_per_batch=None), "stream", "write a number")
    value_error(make(known, flat_multiple_of=4), "documents", "max_documents=K", "18 + K * 3", "multiples of 4")
    value_error(make(flat_multiple_of=4), "tokens_per_batch=18", "max_documents=K")
    value_error(make(flat_multiple_of=6), "rows or windows of 4 tokens", "max_documents=K")
    windowed["schedule"] = StagedSchedule([3, 8], [3])
    value_error(make(flat_multiple_of=8, tokens_per_batch=16, **windowed), "windows of 3 tokens", "max_documents=K")


@pytest.fixture(scope="module")
def documented():
    rng = np.random.default_rng(0)
    return Documented(rng.integers(1, 97, 5000), np.unique([0, *rng.integers(0, 5000, 400)]))


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # what torch says of Python 3.13.0
@pytest.mark.parametrize(("bounds", "graphs"), [(False, 1), (True, 3)])
@pytest.mark.parametrize("mode", ["stream", "window"])
def test_one_graph_for_all_of_what_is_of_one_shape_and_one_for_each_longest_sequence(documented, bounds, graphs, mode):
    """With max_documents the bounds may be compiled too: one graph for the warmup, and with max_length_q one for each stage."""
    counter = CompileCounter()

    def step(input_ids, cu_seq_lens, longest):
        marks = torch.zeros(input_ids.shape[1] + 1, dtype=torch.int64).index_fill(0, cu_seq_lens.long(), 1)
        mixed = input_ids * marks[:-1].cumsum(0)
        return mixed.sum() if longest is None else mixed[:, :longest].sum()

    options = {"tokens_per_batch": 50, "total_steps": 12, "mode": mode, **FLAT}
    schedule = LinearSchedule(8, 24, warmup_steps=6)

    def compiled(**more):
        torch._dynamo.reset()
        counter.clear()
        run = torch.compile(step, backend=counter, dynamic=False)
        for batch in SLWDataset(documented, schedule, **options, **more):
            run(batch["input_ids"], batch["cu_seq_lens_q"], batch["max_length_q"] if bounds else None)
        return counter.frame_count

    assert compiled(max_documents="plan") == graphs
    assert compiled(max_documents="plan", flat_multiple_of=4) == 1  # the rest may be longer than any row, in all stages alike
    with torch._dynamo.config.patch(recompile_limit=64):
        assert compiled() > 3, "batches differ in their number of documents"
    torch._dynamo.reset()


def test_a_lane_that_jumps_within_a_row_begins_a_sequence_that_is_counted():
    options = {"tokens_per_batch": 10, "shuffle": True, "num_lanes": 3}
    rectangle = SLWDataset(np.arange(120), ConstantSchedule(9), extras=("position_ids",), **options)
    most = max(int((batch["position_ids"] == 0).sum()) for batch in rectangle)
    planned = SLWDataset(np.arange(120), ConstantSchedule(9), max_documents="plan", **FLAT, **options)
    assert {batch["cu_seq_lens_q"].numel() for batch in planned} == {most + 2} and most > 1  # and the rest
