"""Divided streams: each document is read by one rank and one of its workers, and the run is what the lists say."""

import itertools
import json

import pytest
from delivery import EOS, as_lists, built, some_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import batches_of, naive_dealing, naive_plan, naive_tensors, rows_of
from refusals import refused

from slw_data import ConstantSchedule, DataError, ScheduleError, SLWDataset, SLWLoader, StagedSchedule, StateError
from slw_data.batch.building import LABELS

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def part(docs, shard, num_shards):
    return docs[shard::num_shards]


class Counted:
    """A function of a shard, and which shards were read."""

    def __init__(self, docs):
        self.docs, self.read = docs, []

    def __call__(self, shard, num_shards):
        self.read.append((shard, num_shards))
        return iter(part(self.docs, shard, num_shards))


def naive_divided(docs, shapes, num_shards, *, accumulation, world, **dealt):
    """``[step][micro-batch][rank][row]``: each shard is dealt alone, and a step has the rows of shard 0, then shard 1 ..."""
    alone = [(length, rows * accumulation * world // num_shards) for length, rows, *_ in shapes]
    needed = sum(length * rows for length, rows in alone) + 100
    steps = [[] for _ in shapes]
    for shard in range(num_shards):
        mine = [doc for doc in part(docs, shard, num_shards) if doc]
        run, _ = naive_dealing(mine * needed, alone, **dealt)
        assert len(run) == len(shapes)
        for step, rows in zip(steps, run, strict=True):
            step += rows_of([rows])
    run = []
    for (_, rows, *_), step in zip(shapes, steps, strict=True):
        micro = [[[] for _ in range(world)] for _ in range(accumulation)]
        for rank, batch in itertools.product(range(world), range(accumulation)):
            first = (rank * accumulation + batch) * rows
            micro[batch][rank] = step[first : first + rows]
        run.append(micro)
    return run


@st.composite
def divided_runs(draw):
    num_shards = draw(st.sampled_from([2, 3, 4, 6]))
    worlds = [world for world in (1, 2, 3, 4) if num_shards % world == 0]
    times = draw(st.integers(1, 2))  # rows that a step takes of a shard
    docs = draw(some_documents)
    docs = docs + [[700 + i] for i in range(num_shards)]  # no shard is empty
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    schedule = StagedSchedule(lengths, [2 * (i + 1) for i in range(len(lengths) - 1)])
    mode = draw(st.sampled_from(["stream", "segment", "truncate"]))
    options = {"mode": mode, "num_lanes": draw(st.sampled_from([None, 1, 2, 3])), "num_shards": num_shards, "total_steps": 7}
    if mode != "stream":
        options["pad_id"] = EOS
    return docs, schedule, options, num_shards * times, worlds


def shape_of(rows, world, accumulation):
    return {"batch_size": rows // world // accumulation, "grad_accum_steps": accumulation, "world_size": world}


def expected_of(docs, schedule, options, rows, world, accumulation, labels):
    shapes = naive_plan(schedule, **shape_of(rows, world, accumulation), total_steps=7)
    dealt = {"mode": options["mode"], "num_lanes": options["num_lanes"] or 1}
    run = naive_divided(docs, shapes, options["num_shards"], accumulation=accumulation, world=world, **dealt)
    tensors = [
        [
            naive_tensors(
                batch, shapes[i // accumulation][0], columns={"input_ids": lambda p: p}, labels=labels,
                pad_id=options.get("pad_id"),
            )
            for i, batch in enumerate(batches_of(run, rank))
        ]
        for rank in range(world)
    ]  # fmt: skip
    return tensors


@settings(max_examples=60)
@given(divided_runs(), st.sampled_from(LABELS), st.booleans(), st.integers(0, 5))
def test_every_batch_of_every_rank_equals_the_lists_and_resumes_on_any_number_of_ranks(case, labels, as_list, cut):
    docs, schedule, options, rows, worlds = case
    saved = []
    for world, accumulation in itertools.product(worlds, (1, 2)):
        if rows % (world * accumulation):
            continue
        shape = shape_of(rows, world, accumulation)
        expected = expected_of(docs, schedule, options, rows, world, accumulation, labels)

        def loader(rank, shape=shape):
            source = docs if as_list else Counted(docs)
            return SLWLoader(built(source, schedule, shape, rank, labels=labels, **options), prefetch=0)

        states = []
        for rank in range(world):
            one = loader(rank)
            states.append([])
            for batch, wanted in zip(one, expected[rank], strict=True):
                assert as_lists(batch) == wanted
                states[-1].append(json.loads(json.dumps(one.state_dict())))
            assert list(states[-1][-1]["shards"]) == [str(n) for n in range(options["num_shards"])
                                                      if n * world // options["num_shards"] == rank]  # fmt: skip
        if not saved:
            saved = [states[rank][(cut + 1) * accumulation - 1] for rank in range(world)]
        for rank in range(world):
            again = loader(rank)
            again.load_state_dict(saved)  # of another number of ranks
            assert [as_lists(batch) for batch in again] == expected[rank][(cut + 1) * accumulation :]
            middle = cut * accumulation  # within a step, with two micro-batches
            again = loader(rank)
            again.load_state_dict(states[rank][middle])
            assert [as_lists(batch) for batch in again] == expected[rank][middle + 1 :]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("mode", ["stream", "segment"])
def test_workers_take_whole_shards_and_make_one_run(num_workers, mode):
    docs = [[100 * i + k for k in range(1 + i * 7 % 13)] for i in range(60)]
    schedule = StagedSchedule([3, 8], [20])
    options = {"mode": mode, "num_lanes": 2, "num_shards": 6, "total_steps": 40, **({"pad_id": 0} if mode == "segment" else {})}
    for world in (1, 2):
        shape = shape_of(12, world, 2)
        for rank in range(world):
            alone = SLWLoader(built(docs, schedule, shape, rank, labels="both", **options), prefetch=0)
            expected = [(as_lists(batch), alone.state_dict()) for batch in alone]
            loader = SLWLoader(built(docs, schedule, shape, rank, labels="both", **options), num_workers=num_workers)
            assert [(as_lists(batch), loader.state_dict()) for batch in loader] == expected
            loader.load_state_dict(expected[30][1])
            assert [as_lists(batch) for batch in loader] == [batch for batch, _ in expected[31:]]


def test_each_shard_is_read_by_one_rank():
    docs = [[i] * 8 for i in range(40)]
    read = []
    for rank in range(2):
        source = Counted(docs)
        shape = {"batch_size": 4, "grad_accum_steps": 1, "world_size": 2}
        assert len(list(SLWLoader(built(source, ConstantSchedule(8), shape, rank, num_shards=4, total_steps=5)))) == 5
        read.append(sorted(set(source.read)))
    assert read == [[(0, 4), (1, 4)], [(2, 4), (3, 4)]]


def test_what_cannot_be_divided_is_refused_with_what_to_write():
    docs = [[1, 2, 3]] * 12
    shape = {"batch_size": 4, "grad_accum_steps": 1, "world_size": 1}

    def make(source=docs, shape=shape, **options):
        return built(source, ConstantSchedule(2), shape, **{"num_shards": 2, "total_steps": 4, **options})

    refused(lambda: make(num_shards=3), "must divide the 4 rows", "num_shards=2", error=ScheduleError)
    refused(lambda: make(shape={**shape, "world_size": 3, "batch_size": 2}), "multiple of the 3 ranks", "num_shards=3",
            error=ValueError)  # fmt: skip
    of_four = {"batch_size": 3, "grad_accum_steps": 1, "world_size": 4}  # 6 would divide the rows, and not fit the ranks
    refused(lambda: make(shape=of_four, num_shards=8), "must divide the 12 rows", "num_shards=4", error=ScheduleError)
    growing = {"batch_size": StagedSchedule([8, 12], [2]), "grad_accum_steps": 1, "world_size": 1}
    refused(lambda: make(shape=growing, num_shards=8), "12 rows of step 2", "num_shards=4", error=ScheduleError)
    make(shape=growing, num_shards=4)
    odd = {"batch_size": StagedSchedule([3, 4], [2]), "grad_accum_steps": 1, "world_size": 1}
    refused(lambda: make(shape=odd, num_shards=3), "4 rows of step 2", "other batch sizes", error=ScheduleError)
    refused(lambda: make(total_steps=None, epochs=2), "total_steps or total_tokens", error=ValueError)
    refused(lambda: make(sharded=True), "sharded=True", error=ValueError)
    refused(lambda: make(iter(docs)), "one part", "source(shard, num_shards)", error=DataError)
    refused(lambda: make(lambda: iter(docs)), "one part", error=DataError)
    refused(lambda: SLWLoader(make(), num_workers=3), "num_workers=3", "this rank has 2", error=DataError)


@pytest.mark.parametrize("source", [[[1, 2, 3]] * 2, Counted([[1, 2, 3]] * 2)])
def test_a_shard_without_documents_is_named(source):
    dataset = SLWDataset(source, ConstantSchedule(2), batch_size=4, total_steps=4, num_shards=4, shuffle_buffer=2)
    refused(lambda: list(dataset), "shard 2 of 4 of", "no tokens in pass 0", error=DataError)


def test_states_that_do_not_belong_together_are_refused():
    docs = [[10 * i + k for k in range(6)] for i in range(24)]

    def loader(rank, world=2, **options):
        shape = {"batch_size": 8 // world, "grad_accum_steps": 1, "world_size": world}
        return SLWLoader(built(docs, ConstantSchedule(4), shape, rank, num_shards=4, total_steps=9, **options), prefetch=0)

    states = []
    for rank in range(2):
        one = loader(rank)
        states.append([one.state_dict() for _ in one])
    whole = loader(0, 1)
    refused(lambda: whole.load_state_dict(states[0][3]), "shards 0, 1, 2, 3", "none of 2, 3", error=StateError)
    refused(lambda: whole.load_state_dict([states[0][3], states[1][4]]), "not of one step", error=StateError)
    mixed = {**states[0][3], "shards": {**states[0][3]["shards"], **states[1][4]["shards"]}}
    refused(lambda: whole.load_state_dict(mixed), "shard 2", "another state", error=StateError)
    whole.load_state_dict([states[0][3], states[1][3]])
    assert whole.step == 4 and len(list(whole)) == 5


@pytest.mark.parametrize(
    ("source", "world", "num_workers", "write"),
    [
        ([[1, 2, 3]] * 50, 2, 0, "write num_shards=2, and total_steps"),
        ([[1, 2, 3]] * 50, 2, 3, "write num_shards=6, and total_steps"),
        (Counted([[1, 2, 3]] * 50), 1, 4, "write num_shards=4, and total_steps"),
        ([[1, 2, 3]] * 50, 1, 5, "a multiple of 5 that divides the 12 rows of a step"),
    ],
)
@pytest.mark.filterwarnings("default:.* would each read the whole of")
def test_readers_that_each_read_everything_are_told_what_to_write(source, world, num_workers, write):
    shape = shape_of(12, world, 1)
    dataset = built(source, ConstantSchedule(2), shape, epochs=1)
    with pytest.warns(UserWarning, match="would each read the whole of") as told:
        SLWLoader(dataset, num_workers=num_workers)
    assert len(told) == 1 and write in str(told[0].message)


@pytest.mark.filterwarnings("error:.* would each read the whole of")
def test_one_reader_and_sources_that_cannot_be_divided_are_told_nothing():
    docs = [[1, 2, 3]] * 50
    SLWLoader(built(docs, ConstantSchedule(2), shape_of(12, 1, 1)), num_workers=1)
    SLWLoader(built(lambda: iter(docs), ConstantSchedule(2), shape_of(12, 2, 1)), num_workers=2)
    SLWLoader(built(docs, ConstantSchedule(2), shape_of(12, 2, 1), num_shards=4, total_steps=9), num_workers=2)


@pytest.mark.parametrize("mode", ["truncate", "segment"])
def test_padding_and_discards_are_counted_for_the_shards_of_each_rank(mode):
    docs = [[100 * i + k for k in range(1 + i % 9)] for i in range(64)]
    padded = discarded = 0
    for rank in range(2):
        dataset = built(docs, ConstantSchedule(4), shape_of(8, 2, 1), rank, mode=mode, pad_id=0, num_shards=4, total_steps=6)
        loader = SLWLoader(dataset, prefetch=0)
        batches = [batch["attention_mask"] for batch in loader]
        assert loader.tokens_padded == sum(int((1 - mask).sum()) for mask in batches)
        padded, discarded = padded + loader.tokens_padded, discarded + loader.tokens_discarded
        again = SLWLoader(built(docs, ConstantSchedule(4), shape_of(8, 2, 1), rank, mode=mode, pad_id=0, num_shards=4,
                                total_steps=6), prefetch=0)  # fmt: skip
        again.load_state_dict(loader.state_dict())
        assert (again.tokens_padded, again.tokens_discarded) == (loader.tokens_padded, loader.tokens_discarded)
    if mode == "truncate":  # a row for each of 48 documents, the first 12 of each shard
        mine = [doc for shard in range(4) for doc in docs[shard::4][:12]]
        assert discarded == sum(max(0, len(doc) - 4) for doc in mine) and padded == sum(max(0, 4 - len(doc)) for doc in mine)
    else:
        assert discarded == 0


def test_a_list_of_states_for_a_stream_that_is_not_divided_is_told_to_be_one_of_them():
    shape = {"batch_size": 4, "grad_accum_steps": 1, "world_size": 1}
    loader = SLWLoader(built([[1, 2, 3]] * 12, ConstantSchedule(4), shape, total_steps=3))
    state = loader.state_dict()
    refused(lambda: loader.load_state_dict([state, state]), "list of states", "pass one of them", error=TypeError)
