"""The dataset over a store: every batch of every rank against nested lists of what it should hold."""


import itertools

import numpy as np
import pytest
import torch
from delivery import EOS, Documented, as_lists, assert_delivers, built, real_tokens, small_runs, some_extras, store_runs
from hypothesis import given
from hypothesis import strategies as st
from oracle import naive_plan
from refusals import refused

from slw_data import ConstantSchedule, DataError, LinearSchedule, ScheduleError, SLWDataset, SLWLoader, StagedSchedule
from slw_data.batch.building import EXTRAS, LABELS


@given(store_runs(), st.sampled_from(LABELS), st.booleans())
def test_every_batch_of_every_rank_over_a_store_equals_the_lists(case, labels, step):
    run, shapes, schedule, shape, options, size = case
    tokens = np.arange(3, 3 + size, dtype=np.uint16)
    extras = ["step"] if step else []

    def make(rank):
        return built(tokens, schedule, shape, rank, labels=labels, extras=extras, **options)

    if not run:
        first = f"{shapes[0][1] * shape['grad_accum_steps'] * shape['world_size']} rows x {shapes[0][0]}"
        refused(lambda: make(0), f"{size} tokens", first, "total_steps", error=DataError)
        return
    assert_delivers(make, run, shapes, shape, columns={"input_ids": lambda p: p + 3}, labels=labels, extras=extras)
    left = options["epochs"] * size - len(real_tokens(run, shapes)) if "epochs" in options else None
    assert make(0).tokens_left == left and make(0).num_batches == len(run) * shape["grad_accum_steps"]


@given(store_runs())
def test_ranks_zipped_and_flattened_are_the_source(case):
    """In stream order, whatever the lists of the oracle say: counted here by itself."""
    _, _, schedule, shape, _, size = case
    steps = 5
    ranks = [list(built(np.arange(size), schedule, shape, r, total_steps=steps)) for r in range(shape["world_size"])]
    flat = [int(t) for micro in zip(*ranks, strict=True) for batch in micro for t in batch["input_ids"].flatten()]
    assert flat == [i % size for i in range(len(flat))]
    assert len(flat) == SLWDataset(np.arange(size), schedule, batch_size=1, total_steps=1).plan.tokens_before(0) + sum(
        int(np.prod(batch["input_ids"].shape)) for rank in ranks for batch in rank
    )
    for micro in zip(*ranks, strict=True):
        assert len({batch["input_ids"].shape for batch in micro}) == 1


@given(st.integers(1, 200), small_runs, st.integers(1, 3))
def test_what_a_store_delivers_and_what_is_left_is_the_source(size, case, epochs):
    schedule, shape, _ = case
    source = list(range(size)) * epochs
    try:
        datasets = [built(np.arange(size), schedule, shape, r, epochs=epochs) for r in range(shape["world_size"])]
    except DataError:
        assert schedule(0) * shape["world_size"] > 0 and datasets_too_small(schedule, shape, len(source))
        return
    flat = [t for micro in zip(*datasets, strict=True) for b in micro for t in b["input_ids"].flatten().tolist()]
    assert flat + source[len(flat) :] == source
    plan = datasets[0].plan
    assert datasets[0].tokens_left == len(source) - len(flat) < plan.tokens(plan.total_steps)


def datasets_too_small(schedule, shape, size):
    [(length, rows, _)] = naive_plan(schedule, **shape, total_steps=1)
    return length * rows * shape["grad_accum_steps"] * shape["world_size"] > size


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 9), st.integers(1, 4))
def test_each_shuffled_epoch_is_a_permutation_of_the_store(num_lanes, share, seed, rows):
    """Lane by lane, from the rule that row r is cut from lane r mod num_lanes."""
    share, epochs = share * 7, 3
    size, length = share * num_lanes, 7
    dataset = SLWDataset(
        np.arange(size), ConstantSchedule(length), batch_size=num_lanes * rows, num_lanes=num_lanes, shuffle=True,
        seed=seed, total_steps=-(-epochs * share // (length * rows)),
    )  # fmt: skip
    cut = [row for batch in dataset for row in batch["input_ids"].tolist()]
    lanes = [[t for row in cut[lane::num_lanes] for t in row] for lane in range(num_lanes)]
    seen = [tuple(t for lane in lanes for t in lane[e * share : (e + 1) * share]) for e in range(epochs)]
    assert all(sorted(epoch) == list(range(size)) for epoch in seen)
    assert size < 28 or len(set(seen)) > 1, "every epoch has the same order"


def test_the_default_lanes_depend_on_the_store_alone():
    """So no later change of lengths, rows or ranks moves the order."""
    tokens, orders = np.arange(90_000), set()
    for schedule in (ConstantSchedule(8), StagedSchedule([8, 64], [2])):
        for shape in ({"batch_size": 5}, {"tokens_per_batch": 259}, {"batch_size": 1, "grad_accum_steps": 2}):
            ranks = {"dp_rank": 0, "dp_world_size": 3}
            orders.add(SLWDataset(tokens, schedule, shuffle=True, total_steps=4, **shape, **ranks).state_dict()["order"])
    assert orders == {"shuffled with seed 0, num_lanes=64, 1 blocks of 1406 tokens in each"}


@given(store_runs(), some_extras, st.booleans(), st.data())
def test_documents_of_a_store_are_numbered_in_each_row(case, extras, by_eos, data):
    run, shapes, schedule, shape, options, size = case
    if not run:
        return
    begins = {0, *data.draw(st.lists(st.integers(0, size - 1), max_size=20))}
    ids = [EOS if (p + 1) % size in begins else p % 8 for p in range(size)]
    if by_eos:
        source, options = np.array(ids), {**options, "eos_id": EOS}
    else:
        source = Documented(ids, sorted(begins))

    def starts(before, place):
        return place in begins or place != before + 1

    assert_delivers(
        lambda rank: built(source, schedule, shape, rank, extras=extras, **options),
        run, shapes, shape, columns={"input_ids": ids.__getitem__}, extras=extras, begins=starts,
    )  # fmt: skip


def test_a_lane_that_comes_to_the_place_that_follows_anyway_begins_no_document():
    """The last row of this run is put together from three lanes, which have left over three neighbours."""
    schedule = StagedSchedule([1, 3, 1, 3], [4, 12, 16])
    tokens = Documented(list(range(35)), [0])
    options = {"shuffle": True, "num_lanes": 4, "epochs": 2, "extras": ("position_ids",)}
    *_, last = SLWDataset(tokens, schedule, tokens_per_batch=4, **options)
    assert last["input_ids"].tolist() == [[32, 33, 34]] and last["position_ids"].tolist() == [[0, 1, 2]]


@given(store_runs(), st.sampled_from(LABELS), st.booleans())
def test_parallel_columns_are_cut_at_the_same_places(case, labels, own_labels):
    run, shapes, schedule, shape, options, size = case
    if not run:
        return
    values = {"input_ids": lambda p: p, "loss_mask": lambda p: p % 3}
    dtypes = {"input_ids": "uint16", "loss_mask": "int8", "labels": "int32"}
    if own_labels:
        values["labels"] = lambda p: -100 if p % 5 == 0 else p + 7
    names = sorted(values, reverse=True)
    source = {name: np.array([values[name](p) for p in range(size)], dtypes[name]) for name in names}
    assert_delivers(
        lambda rank: built(source, schedule, shape, rank, labels=labels, columns=names, **options),
        run, shapes, shape, columns=values, labels=labels,
    )  # fmt: skip


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_shifted_labels_cross_the_cut_and_end_with_the_data():
    dataset = SLWDataset(
        np.arange(10, 19), StagedSchedule([2, 3], [1]), batch_size=1, labels="shifted", grad_accum_steps=1
    )
    assert [(b["input_ids"].tolist(), b["labels"].tolist()) for b in dataset] == [
        ([[10, 11]], [[11, 12]]),
        ([[12, 13, 14]], [[13, 14, 15]]),
        ([[15, 16, 17]], [[16, 17, 18]]),
    ]
    exact = SLWDataset(np.arange(10, 18), StagedSchedule([2, 3], [1]), batch_size=1, labels="both")
    assert list(exact)[-1]["labels"].tolist() == [[15, 16, 17]]
    assert exact.tokens_left == 0 and exact.num_batches == 3
    again = SLWDataset(np.arange(10, 18), StagedSchedule([2, 3], [1]), batch_size=1, labels="both")
    assert list(again)[-1]["shift_labels"].tolist() == [[16, 17, -100]]


@pytest.mark.parametrize("make", [np.array, lambda flat: [flat], lambda flat: [flat[:4], flat[4:]]])
def test_passes_join_without_a_seam(make):
    dataset = SLWDataset(make(list(range(10))), ConstantSchedule(4), batch_size=1, epochs=3, labels="shifted")
    flat = list(range(10)) * 3
    found = list(dataset)
    assert [b["input_ids"].tolist() for b in found] == [[flat[4 * i : 4 * i + 4]] for i in range(7)]
    assert [b["labels"].tolist() for b in found] == [[flat[4 * i + 1 : 4 * i + 5]] for i in range(7)]
    assert dataset.tokens_left == 2


def test_modes_by_hand():
    docs = [[1, 2, 3, 4, 5], [6], [7, 8]]
    options = {"batch_size": 1, "pad_id": 0, "labels": "both"}
    segment = [as_lists(b) for b in SLWDataset(docs, ConstantSchedule(3), mode="segment", **options)]
    assert [b["input_ids"] for b in segment] == [[[1, 2, 3]], [[4, 5, 0]], [[6, 0, 0]], [[7, 8, 0]]]
    assert [b["attention_mask"] for b in segment] == [[[1, 1, 1]], [[1, 1, 0]], [[1, 0, 0]], [[1, 1, 0]]]
    assert [b["labels"] for b in segment] == [[[1, 2, 3]], [[4, 5, -100]], [[6, -100, -100]], [[7, 8, -100]]]
    assert [b["shift_labels"] for b in segment] == [[[2, 3, 4]], [[5, -100, -100]], [[-100] * 3], [[8, -100, -100]]]
    cut = SLWDataset(docs, ConstantSchedule(3), mode="truncate", preserve_eos=True, **options)
    assert [b["input_ids"].tolist() for b in cut] == [[[1, 2, 5]], [[6, 0, 0]], [[7, 8, 0]]]
    assert cut.tokens_discarded == 2


@pytest.mark.parametrize("end", [{"epochs": 3}, {"total_steps": 12}, {"total_tokens": 250}])
def test_a_fraction_of_the_run_is_warmed_up(end):
    """Half of its steps. How many the data has depends on the warmup: the least number is taken that holds them all."""
    size, lengths = 100, [2, 4, 6, 8]
    dataset = SLWDataset(np.arange(size), LinearSchedule(2, 8, warmup_fraction=0.5, multiple_of=2), batch_size=2, **end)
    most = end.get("total_tokens") or end.get("epochs", 10) * size

    def run_of(steps):
        def schedule(step):
            return next(length for length in reversed(lengths) if step >= round(steps / 2) * (length - 2) / 6)

        shapes = naive_plan(schedule, total_steps=99, batch_size=2)
        return [length for length, rows, before in shapes if before + rows * length <= most]

    steps = end.get("total_steps") or next(steps for steps in itertools.count() if len(run_of(steps)) <= steps)
    found = [b["input_ids"].shape[1] for b in dataset]
    assert found == run_of(steps)[:steps] and {2, 8} <= set(found)


def test_a_run_shorter_than_its_first_step_is_refused_where_it_is_made():
    """total_tokens=3 holds no step of 8 rows x 2: a run without a batch helps nobody."""
    facts = "3 tokens", "8 rows x 2", "total_tokens"
    refused(
        lambda: SLWDataset(np.arange(99), ConstantSchedule(2), batch_size=8, total_tokens=3),
        *facts,
        error=ScheduleError,
    )


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", ["int64", "uint16", "shuffled", "documents", "padded"])
def test_changing_a_batch_changes_no_other_and_not_the_source(kind, num_workers):
    tokens = np.arange(2000, dtype="uint16" if kind == "uint16" else "int64")
    options = {"batch_size": 3, "total_steps": 40, "labels": "both", "extras": EXTRAS[:3], "eos_id": 7}
    if kind in ("documents", "padded"):
        tokens = [torch.arange(i, i + 17) for i in range(60)]
        options |= {"num_lanes": 2} if kind == "documents" else {"mode": "segment", "pad_id": 0}
    options |= {"shuffle": True} if kind == "shuffled" else {}
    schedule = StagedSchedule([4, 9, 3], [10, 20])
    before = [t.tolist() for t in tokens]
    clean = [as_lists(batch) for batch in SLWDataset(tokens, schedule, **options)]
    for name in clean[0]:
        spoiled = []
        for batch in SLWLoader(SLWDataset(tokens, schedule, **options), num_workers=num_workers):
            batch[name].fill_(-5)
            spoiled.append(batch)
        rest = [{k: t.tolist() for k, t in batch.items() if k != name} for batch in spoiled]
        assert rest == [{k: t for k, t in batch.items() if k != name} for batch in clean], f"{name} shares memory"
        assert all((batch[name] == -5).all() for batch in spoiled)
        if num_workers:
            break
    assert [t.tolist() for t in tokens] == before
