"""Rows of buckets: no padding, no document crossed, each piece once a pass; against lists of pieces."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from delivery import Documented, as_lists
from hypothesis import given
from hypothesis import strategies as st
from oracle import naive_permutation, naive_pieces
from refusals import refused
from strategies import documents

from slw_data import BucketSchedule, ConstantSchedule, DataError, LinearSchedule, SLWDataset, SLWLoader, StagedSchedule
from slw_data.plan.drawn import _with_odds

pytestmark = pytest.mark.filterwarnings("ignore:this run is finished")

some_documents = documents(max_documents=70, max_tokens=40).filter(any)


def stored(docs):
    return Documented([t for doc in docs for t in doc], np.cumsum([0, *map(len, docs)])[:-1])


def naive_rows(buckets, lengths, seed):
    """For each length its pieces for ever, pass after pass."""
    ordered = sorted(lengths)

    def rows(length):
        pieces = buckets[length]
        for epoch in itertools.count():
            count = len(pieces)
            key = epoch * len(ordered) + ordered.index(length)
            yield from (pieces[i] for i in (range(count) if seed is None else naive_permutation(count, seed, key)))

    return {length: rows(length) for length in lengths}


@st.composite
def runs(draw):
    """``(docs, lengths that have pieces, schedule, rows of a batch, accumulation, ranks)``."""
    docs = draw(some_documents)
    lengths = draw(st.sampled_from([(2, 4, 8), (1, 2), (3, 6), (4,), (2, 8)]))
    buckets = naive_pieces(docs, lengths)
    there = [length for length in lengths if buckets[length]]
    order = draw(st.lists(st.sampled_from(there or [lengths[0]]), min_size=1, max_size=5, unique=False))
    order = [length for length, _ in itertools.groupby(order)]
    starts = sorted(draw(st.lists(st.integers(1, 20), min_size=len(order) - 1, max_size=len(order) - 1, unique=True)))
    return docs, there, StagedSchedule(order, starts), *(draw(st.integers(1, 3)) for _ in range(3))


def loader_of(source, schedule, rank=0, world=1, *, num_workers=0, **options):
    dataset = SLWDataset(source, schedule, mode="buckets", dp_rank=rank, dp_world_size=world, **options)
    return SLWLoader(dataset, num_workers=num_workers, prefetch=0)


@given(runs(), st.booleans(), st.integers(0, 9), st.booleans(), st.data())
def test_every_batch_of_every_rank_has_the_next_pieces_of_its_length(run, shuffle, seed, endless, data):
    docs, there, schedule, rows, accum, world = run
    lengths = sorted(set(schedule.lengths))
    if not there or not all(naive_pieces(docs, lengths)[length] for length in lengths):
        return
    buckets = naive_pieces(docs, lengths)
    queues, used = naive_rows(buckets, lengths, seed if shuffle else None), Counter()
    expected = []  # per micro-batch, per rank, rows
    end = {"total_steps": 25} if endless else {"epochs": data.draw(st.integers(1, 2))}
    for step in range(25 if endless else 10**6):
        length = schedule(step)
        used[length] += rows * accum * world
        if not endless and used[length] > end["epochs"] * len(buckets[length]):
            break
        for _ in range(accum):
            expected.append([[next(queues[length]) for _ in range(rows)] for _ in range(world)])
    options = {"batch_size": rows, "grad_accum_steps": accum, "shuffle": shuffle, "seed": seed, **end}
    for rank in range(world):
        found = [as_lists(b) for b in loader_of(stored(docs), schedule, rank, world, labels="both", **options)]
        assert [b["input_ids"] for b in found] == [[row[:-1] for row in micro[rank]] for micro in expected]
        shifted = [[[*row[1:-1], -100 if row[-1] is None else row[-1]] for row in micro[rank]] for micro in expected]
        assert [b["shift_labels"] for b in found] == shifted
        assert all("attention_mask" not in b for b in found)
    cut = data.draw(st.integers(0, len(expected)))
    loader = loader_of(stored(docs), schedule, 0, world, **options)
    list(itertools.islice(loader, cut))
    state = json.loads(json.dumps(loader.state_dict()))
    again = loader_of(stored(docs), schedule, 0, world, **options)
    again.load_state_dict(state)
    assert [b["input_ids"].tolist() for b in again] == [[row[:-1] for row in micro[0]] for micro in expected[cut:]]
    assert again.tokens_seen == sum(len(row) - 1 for micro in expected for rank in micro for row in rank)
    if not endless:
        delivered = sum(len(row) - 1 for micro in expected for rank in micro for row in rank)
        assert again.tokens_left == end["epochs"] * sum(map(len, docs)) - delivered


@pytest.mark.parametrize("weights", [None, (32, 16, 8, 4)])
@pytest.mark.parametrize("num_cycles", [1, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_a_drawn_run_delivers_every_piece_once_and_what_is_left_is_less_than_a_step_of_each_length(weights, num_cycles, world):
    rng = np.random.default_rng(3)
    docs = np.split(np.arange(60_000), np.sort(rng.choice(np.arange(1, 60_000), 400, replace=False)))
    docs = [doc.tolist() for doc in docs]
    lengths = (8, 16, 32, 64)
    schedule = BucketSchedule(lengths, weights=weights, num_cycles=num_cycles)
    ranks = [
        loader_of(stored(docs), schedule, rank, world, tokens_per_batch=256 // world, shuffle=True) for rank in range(world)
    ]
    seen, steps = Counter(), Counter()
    for parts in zip(*ranks, strict=True):
        rows = [row for part in parts for row in part["input_ids"].tolist()]
        steps[len(rows[0])] += 1
        seen.update(t for row in rows for t in row)
        assert len({len(row) for row in rows}) == 1
    assert max(seen.values()) == 1
    buckets = naive_pieces(docs, lengths)
    assert steps == {length: len(buckets[length]) // (256 // length) for length in lengths}
    assert len(ranks[0]) == sum(steps.values()) == ranks[0].dataset.plan.total_steps
    for loader in ranks:
        assert "tokens are in none" in loader.dataset.describe()


def naive_odds(weights, counts, chances):
    left, found = list(counts), []
    for chance in chances:
        odds = [w if n else 0.0 for w, n in zip(weights, left, strict=True)]
        at, number = chance * sum(odds), 0
        while at >= odds[number] and any(left[number + 1 :]):
            at, number = at - odds[number], number + 1
        while not left[number]:
            number += 1
        left[number] -= 1
        found.append(number)
    return found


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 30)), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_odds_are_those_of_a_draw_that_looks_at_what_is_left_each_time(pairs, random):
    weights, counts = [float(w) for w, _ in pairs], [n for _, n in pairs]
    chances = [random.randrange(1 << 20) / (1 << 20) for _ in range(sum(counts))]  # exact sums with small weights
    found = _with_odds(np.array(weights), np.array(counts), np.array(chances))
    assert found.tolist() == naive_odds(weights, counts, chances)


def test_each_pass_and_cycle_has_its_share_and_large_weights_for_short_lengths_grow():
    schedule = BucketSchedule([8, 16, 32], weights=(100, 10, 1), num_cycles=2, steps=(400, 200, 100))
    for number in (0, 1, 5):
        drawn = [schedule(700 * number + step) for step in range(700)]
        assert Counter(drawn) == {8: 400, 16: 200, 32: 100}
        for half in (drawn[:350], drawn[350:]):
            assert Counter(half) == {8: 200, 16: 100, 32: 50}
            assert np.mean(half[:175]) < 10 < 16 < np.mean(half[175:])
    assert [schedule(s) for s in range(700)] != [schedule(700 + s) for s in range(700)]
    natural = BucketSchedule([8, 16], steps=(500, 500))
    first = [natural(step) for step in range(500)]
    assert 200 < first.count(8) < 300


@pytest.mark.parametrize("num_workers", [0, 2, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_any_number_of_workers_gives_the_same_batches(num_workers):
    docs = [list(range(100 * i, 100 * i + 1 + i * 37 % 90)) for i in range(120)]
    options = {"tokens_per_batch": 64, "shuffle": True, "epochs": 2, "labels": "shifted"}
    schedule = BucketSchedule([4, 8, 32])
    expected = [as_lists(batch) for batch in loader_of(stored(docs), schedule, **options)]
    found = [as_lists(batch) for batch in loader_of(stored(docs), schedule, num_workers=num_workers, **options)]
    assert found == expected and len(found) > 20


def test_what_makes_no_sense_is_refused_in_words():
    docs = [list(range(10)), list(range(20, 27))]
    source = stored(docs)
    uneven = StagedSchedule([4, 6], [3])
    refused(lambda: loader_of(source, uneven, batch_size=1, total_steps=9), "6 is none of 4", "powers of two")
    refused(lambda: loader_of(docs, ConstantSchedule(4), batch_size=1), "stream", "store", error=ValueError)
    refused(lambda: loader_of(source, ConstantSchedule(4), batch_size=1, pad_id=0), "pads nothing", error=ValueError)
    refused(lambda: list(loader_of(source, ConstantSchedule(16), batch_size=1)), "length 16 is empty", error=DataError)
    refused(lambda: SLWDataset(source, BucketSchedule([4, 8]), batch_size=1), "mode='buckets'", error=ValueError)
    refused(lambda: BucketSchedule([4, 8])(0), "mode='buckets'", "steps=")
    refused(lambda: BucketSchedule([4, 6]), "multiple", "(4, 6)")
    refused(lambda: BucketSchedule([4, 8], weights=[1]), "2 lengths", "[1]")
    refused(lambda: BucketSchedule([4, 8], weights=[1, 0]), "above 0", "[1, 0]")
    for steps in ((2,), (2, -3), (0, 0), (2, 1.5), (2, True)):
        refused(lambda steps=steps: BucketSchedule([4, 8], steps=steps), "steps", "2 lengths", repr(steps))
    refused(lambda: BucketSchedule([4, 8], steps="ab"), "steps", "'ab'", error=TypeError)
    refused(lambda: loader_of(source, BucketSchedule([64]), batch_size=1), "too few documents", error=DataError)
    loader = loader_of(source, LinearSchedule(2, 4, warmup_steps=2, multiple_of=2), batch_size=1, total_steps=4)
    assert [len(batch["input_ids"][0]) for batch in loader] == [2, 2, 4, 4]
