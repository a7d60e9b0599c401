"""What the tests of the dataset share: runs over stores and streams, what the oracle says of them, and comparing."""

import itertools

import numpy as np
import torch
from hypothesis import strategies as st
from oracle import batches_of, naive_batches, naive_lane_positions, naive_plan, naive_tensors, rows_of
from strategies import documents, runs

from slw_data import SLWDataset
from slw_data.batch.building import EXTRAS
from slw_data.order.permutation import permute

EOS = 9
some_documents = documents(max_documents=12, max_tokens=14).filter(any)
ended_documents = some_documents.map(lambda docs: [[*doc, 1000 + i] for i, doc in enumerate(docs)])  # 1000s: the eos
small_runs = runs(max_length=10, max_steps=8, max_rows=3, max_world=4)
some_extras = st.lists(st.sampled_from(EXTRAS[:3]), unique=True)  # the others: test_window, test_flat


def built(source, schedule, shape, rank=0, **options):
    shape = dict(shape)
    return SLWDataset(source, schedule, dp_rank=rank, dp_world_size=shape.pop("world_size"), **shape, **options)


def dealing(shape):
    return {"grad_accum_steps": shape["grad_accum_steps"], "world_size": shape["world_size"]}


def as_lists(batch):
    """The batch as lists, once it is known to be fresh int64 memory of exactly its own size."""
    assert len({len(tensor) for tensor in batch.values()}) == 1, "dim 0 differs"
    for tensor in batch.values():
        assert tensor.dtype == torch.int64 and tensor.is_contiguous() and tensor.device.type == "cpu"
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 8, "a view of something larger"
    assert len({tensor.data_ptr() for tensor in batch.values()}) == len(batch), "two names share memory"
    return {name: tensor.tolist() for name, tensor in batch.items()}


def assert_delivers(make, run, shapes, shape, **described):
    """Each rank delivers its batches of the run, nothing more, and the plan says the same of them."""
    accum = shape["grad_accum_steps"]
    for rank in range(shape["world_size"]):
        dataset = make(rank)
        expected = [
            naive_tensors(rows, shapes[i // accum][0], step=i // accum, **described)
            for i, rows in enumerate(batches_of(run, rank))
        ]
        assert [as_lists(batch) for batch in dataset] == expected
        for step, (length, rows, before) in enumerate(shapes[: len(run)]):
            assert (dataset.plan.length(step), dataset.plan.rows(step)) == (length, rows)
            assert dataset.plan.tokens_before(step) == before
        assert dataset.num_batches in (None, len(expected))


def real_tokens(run, shapes):
    """What a run delivers, in its order: places without padding and without the look-ahead."""
    return [
        p
        for step, (length, *_) in zip(run, shapes, strict=False)
        for row in rows_of([step])
        for p in row[:length]
        if p is not None
    ]


class Documented:
    """A store that knows its documents, written out by the protocol."""

    name = fingerprint = "documented"
    dtype = np.dtype(np.int64)

    def __init__(self, tokens, begins):
        self.tokens, self.documents = np.array(tokens), np.array([*begins, len(tokens)], np.int64)

    def __len__(self):
        return len(self.tokens)

    def read(self, start, stop):
        return self.tokens[start:stop].copy()

    def gather(self, starts, length, out):
        out[:] = self.tokens[starts[:, None] + np.arange(length)]


@st.composite
def store_runs(draw, max_tokens=250):
    """``(run, shapes, schedule, shape, options, tokens)``: a run over a store, as lists of positions."""
    schedule, shape, total = draw(small_runs)
    size = draw(st.integers(1, max_tokens))
    shuffle = draw(st.booleans())
    wanted = draw(st.sampled_from([None, 1, 2, 3, 4, 7]) if not shuffle else st.sampled_from([1, 2, 3, 4, 7]))
    num_lanes = min(wanted or 1, size)
    options = {"shuffle": shuffle, "seed": draw(st.integers(0, 99)), "num_lanes": wanted and num_lanes}
    end = draw(st.sampled_from(["total_steps", "total_tokens", "epochs"]))
    passes = draw(st.integers(1, 3))
    steps = total if end != "epochs" else passes * size + 1
    shapes = naive_plan(schedule, **shape, total_steps=steps)
    step_tokens = [length * rows * shape["grad_accum_steps"] * shape["world_size"] for length, rows, _ in shapes]
    if end == "total_tokens":
        options[end] = sum(step_tokens) + draw(st.integers(0, step_tokens[-1] - 1))
        shapes = naive_plan(schedule, **shape, total_steps=options[end] + 1)
        shapes = [s for s, after in itertools.pairwise(shapes) if after[2] <= options[end]]
    else:
        options[end] = passes if end == "epochs" else total
    if end != "epochs":
        passes = sum(step_tokens) * 2 // (size // num_lanes) + 2
    blocks = 1 if num_lanes == 1 and not shuffle else min(8, size // num_lanes)
    count = blocks * num_lanes
    orders = [list(range(count))] * passes
    if shuffle:
        orders = [permute(np.arange(count), count, (options["seed"], epoch)).tolist() for epoch in range(passes)]
    lanes = naive_lane_positions(size, num_lanes, blocks, orders)
    run = naive_batches(lanes, shapes, **dealing(shape), look=1, rest=end == "epochs")
    return run, shapes, schedule, shape, options, size


def drawn_end(draw, schedule, shape, total, tokens):
    """``(option, shapes, passes)``: a run over ``tokens`` tokens ends by its epochs, or by its steps; passes is then None."""
    if draw(st.booleans()):
        passes = draw(st.integers(1, 3))
        return {"epochs": passes}, naive_plan(schedule, **shape, total_steps=passes * tokens + 1), passes
    return {"total_steps": total}, naive_plan(schedule, **shape, total_steps=total), None


def rows_in(shapes, shape):
    """Rows of each step, over all ranks."""
    return [many * shape["grad_accum_steps"] * shape["world_size"] for _, many, _ in shapes]


@st.composite
def stream_runs(draw, modes=("stream", "segment", "truncate"), documents=some_documents):
    """``(docs, dataset options, naive_dealing options, schedule, shape, shapes, passes)`` of a run over documents."""
    schedule, shape, total = draw(small_runs)
    docs = draw(documents)
    mode = draw(st.sampled_from(modes))
    num_lanes = draw(st.sampled_from([None, 1, 2, 3]))
    options, dealt = {"num_lanes": num_lanes, "mode": mode}, {"num_lanes": num_lanes or 1, "mode": mode}
    if mode != "stream":
        options["pad_id"] = EOS
    if mode == "truncate":
        options["preserve_eos"] = dealt["preserve_eos"] = draw(st.booleans())
    size = sum(map(len, docs))
    end, shapes, passes = drawn_end(draw, schedule, shape, total, size)
    options |= end
    if passes is None:
        rows = rows_in(shapes, shape)
        needed = sum(rows) if mode == "truncate" else sum(n * s[0] for n, s in zip(rows, shapes, strict=True))
        filled = sum(map(bool, docs))
        passes = needed // (filled if mode == "truncate" else size) + (num_lanes or 1) + 40 // filled + 2
    return docs, options, {**dealt, **dealing(shape)}, schedule, shape, shapes, passes
