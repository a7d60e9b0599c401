"""Exact resume: from the state after any batch, any topology delivers the rest of the uninterrupted run, byte for byte.

A step has 8 rows in 2 micro-batches whatever the number of ranks, so the micro-batches of all ranks, put together, are
the same. The uninterrupted runs themselves are compared with lists in ``test_dataset``, and here where that is a line.
"""

import functools
import hashlib
import io
import itertools
import json
import random
import warnings

import numpy as np
import pytest
import torch
from delivery import Documented
from refusals import refused

from slw_data import SLWDataset, SLWLoader, StagedSchedule, StateError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on two cores

SCHEDULE = StagedSchedule([3, 8, 2, 5], [40, 80, 120])
STEPS, ACCUM, MICRO_ROWS = 160, 2, 4
DOCS = [list(range(25 * i, 25 * i + 1 + i * 7 % 24)) for i in range(120)]
NUMBERED = [t for doc in DOCS for t in doc], np.cumsum([0, *map(len, DOCS)])[:-1]
STORES, STREAMS = ("store", "shuffled", "segments", "truncated", "packed"), ("documents", "lanes", "padded", "hugging face")
NAMES = (*STORES, *STREAMS)


@functools.cache
def hugging_face():
    import datasets

    rows = datasets.Dataset.from_dict({"input_ids": DOCS})
    return rows.to_iterable_dataset(num_shards=4).filter(lambda row: row["input_ids"][0] % 3 > 0)


def sources(name):
    return {
        "store": lambda: (np.arange(2000, dtype=np.uint16), {}),
        "shuffled": lambda: (np.arange(2000, dtype=np.uint16), {"shuffle": True, "seed": 5}),
        "segments": lambda: (Documented(*NUMBERED), {"mode": "segment", "pad_id": 0, "shuffle": True}),
        "truncated": lambda: (Documented(*NUMBERED), {"mode": "truncate", "pad_id": 0, "shuffle": True, "seed": 3}),
        "packed": lambda: (Documented(*NUMBERED), {"mode": "pack", "pad_id": 0, "shuffle": True, "seed": 3}),
        "documents": lambda: (DOCS, {}),
        "lanes": lambda: (DOCS, {"num_lanes": 3}),
        "padded": lambda: (DOCS, {"mode": "segment", "pad_id": 0, "num_lanes": 2}),
        "hugging face": lambda: (hugging_face(), {}),
    }[name]()


def loader_of(
    name, rank=0, world=1, *, accum=ACCUM, steps=STEPS, num_workers=0, prefetch=0, micro_rows=None, **options
):
    source, more = sources(name)
    rows = (micro_rows or MICRO_ROWS * ACCUM // accum) // world
    dataset = SLWDataset(
        source, SCHEDULE, batch_size=rows, grad_accum_steps=accum, total_steps=steps, labels="shifted",
        extras=("step", "position_ids"), dp_rank=rank, dp_world_size=world, **more, **options,
    )  # fmt: skip
    return SLWLoader(dataset, num_workers=num_workers, prefetch=prefetch)


def digest(*ranks):
    """Of one micro-batch of all ranks: names, types, shapes and bytes."""
    state = hashlib.sha256()
    for name in ranks[0]:
        whole = torch.cat([batch[name] for batch in ranks])
        state.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode() + whole.numpy().tobytes())
    return state.hexdigest()


def deliver(loaders, count=None):
    """The digests of the next ``count`` micro-batches (None: all) of some ranks, and the state after each."""
    iterators = [iter(loader) for loader in loaders]
    for ranks in itertools.islice(zip(*iterators, strict=True), count):
        states = [loader.state_dict() for loader in loaders]
        assert states.count(states[0]) == len(states), "ranks differ in their state"
        yield digest(*ranks), states[0]


@functools.cache
def uninterrupted(name, steps=STEPS):
    """``(digests, states)``: what the run delivers, and its states, that of the start first."""
    loader = loader_of(name, steps=steps)
    start = loader.state_dict()
    digests, states = zip(*deliver([loader]), strict=True)
    assert len(set(digests)) == len(digests) == steps * ACCUM
    return digests, (start, *states)


def resumed(name, state, world=1, **options):
    loaders = [loader_of(name, rank, world, **options) for rank in range(world)]
    for loader in loaders:
        loader.load_state_dict(json.loads(json.dumps(state)))
        assert loader.state_dict() == state
    return loaders


def test_the_uninterrupted_run_is_the_source_in_order():
    for name, flat in {"store": range(2000), "documents": [t for doc in DOCS for t in doc]}.items():
        found = torch.cat([batch["input_ids"].flatten() for batch in loader_of(name)]).tolist()
        expected = itertools.islice(itertools.cycle(flat), len(found))
        assert found == list(expected)
        assert len(found) > 2 * len(flat), "the run should read its source more than twice"


# -- every batch, every topology --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("world", "num_workers"), [(1, 1), (1, 2), (1, 3), (2, 0), (4, 0), (2, 1)])
def test_the_run_and_all_its_states_are_the_same_in_any_topology(name, world, num_workers):
    """So a state at any batch may be taken from any of them: the tests below take it from one process alone."""
    loaders = [loader_of(name, rank, world, num_workers=num_workers) for rank in range(world)]
    digests, states = zip(*deliver(loaders), strict=True)
    expected, expected_states = uninterrupted(name)
    assert digests == expected
    assert states == expected_states[1:]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_state_at_every_batch_resumes_exactly_with_any_number_of_ranks(name, world):
    digests, states = uninterrupted(name)
    loaders = [loader_of(name, rank, world) for rank in range(world)]
    for cut, state in enumerate(states[:-1]):
        if world > 1 and name in STREAMS and cut % (world // 2 if name == "lanes" else 5):
            continue  # each rank reads the stream
        for loader in loaders:
            loader.load_state_dict(json.loads(json.dumps(state)))
            assert loader.state_dict() == state
        count = None if cut % 160 == 1 else 3 if world == 1 else 2
        tail = list(deliver(loaders, count))
        stop = len(digests) if count is None else min(cut + count, len(digests))
        assert tuple(d for d, _ in tail) == digests[cut:stop], f"resumed after {cut} batches"
        assert tuple(s for _, s in tail) == states[cut + 1 : stop + 1], f"resumed after {cut} batches"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_a_state_resumes_exactly_with_any_number_of_workers(name, num_workers):
    digests, states = uninterrupted(name)
    cuts = random.Random(f"{name} {num_workers}").sample(range(len(digests)), 12)
    for cut in cuts if name in ("shuffled", "lanes") else cuts[:4]:
        tail = list(deliver(resumed(name, states[cut], num_workers=num_workers)))
        assert tuple(d for d, _ in tail) == digests[cut:], f"resumed after {cut} batches"
        assert tuple(s for _, s in tail) == states[cut + 1 :]


def test_ranks_and_workers_may_change_together():
    for name, cut in itertools.product(("shuffled", "lanes"), (1, 117)):
        digests, states = uninterrupted(name)
        tail = list(deliver(resumed(name, states[cut], 2, num_workers=2)))
        assert tuple(d for d, _ in tail) == digests[cut:]


@pytest.mark.parametrize("name", NAMES)
def test_a_chain_of_two_hundred_resumes_delivers_the_run(name):
    steps = 460
    digests, states = uninterrupted(name, steps)
    rng, state, at = random.Random(name), states[0], 0
    for turn in range(200):
        loader = loader_of(name, steps=steps, prefetch=2 if turn % 10 == 0 else 0)
        if turn % 2:
            loader.load_state_dict(json.loads(json.dumps(state)))
        else:
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            loader.load_state_dict(torch.load(file, weights_only=True))
        if rng.random() < 0.1:
            assert loader.state_dict() == state, "saved right after it was loaded"
            state = loader.state_dict()
            continue
        count = rng.randint(1, 7)
        for k, (found, after) in enumerate(deliver([loader], count)):
            assert (found, after) == (digests[at + k], states[at + k + 1]), f"turn {turn}, batch {at + k}"
        state, at = loader.state_dict(), at + count
    assert at > 500


# -- special places ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_state_saved_before_the_first_batch_resumes_at_the_first(name):
    digests, states = uninterrupted(name)
    assert states[0]["step"] == states[0]["batch"] == states[0]["tokens"] == 0
    loader = loader_of(name, prefetch=2)
    iterator = iter(loader)
    assert loader.state_dict() == states[0], "batches are ready, and none is delivered"
    next(iterator)
    assert loader.state_dict() == states[1]
    assert [d for d, _ in deliver(resumed(name, states[0]), 4)] == list(digests[:4])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_state_inside_the_last_step_has_one_batch_to_go(name, num_workers):
    digests, states = uninterrupted(name)
    assert (states[-2]["step"], states[-2]["batch"]) == (STEPS - 1, 1)
    assert [d for d, _ in deliver(resumed(name, states[-2], num_workers=num_workers))] == [digests[-1]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_after_the_end_there_is_nothing_one_warning_and_reset(name, num_workers):
    digests, states = uninterrupted(name)
    [loader] = resumed(name, states[-1], num_workers=num_workers)
    with pytest.warns(UserWarning, match=r"finished \(160 steps\).*reset\(\).*epochs.*total_steps") as caught:
        assert list(loader) == []
    assert len([warning for warning in caught if "use of fork()" not in str(warning.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", r".*use of fork\(\)", DeprecationWarning)  # as in setup.cfg
        assert list(loader) == [] and loader.state_dict() == states[-1]
    loader.reset()
    assert loader.state_dict() == states[0]
    assert [d for d, _ in deliver([loader], 3)] == list(digests[:3])


@pytest.mark.parametrize("name", ["shuffled", "documents", "hugging face"])
def test_a_finished_run_goes_on_where_more_steps_are_given(name):
    digests, states = uninterrupted(name, 460)
    assert uninterrupted(name)[1][-1] == states[2 * STEPS]
    assert [d for d, _ in deliver(resumed(name, states[2 * STEPS], steps=460))] == list(digests[2 * STEPS :])


@pytest.mark.parametrize("kind", ["store", "documents"])
def test_a_state_where_an_epoch_ends_resumes_in_the_next(kind):
    """An epoch of 64 tokens is 4 batches of 2 x 8; nothing of it waits anywhere when it has been delivered."""
    source = np.arange(64) if kind == "store" else [list(range(32)), list(range(32, 64))]

    def loader():
        return SLWLoader(SLWDataset(source, lambda step: 8, batch_size=2, epochs=3), prefetch=0)

    first = loader()
    list(itertools.islice(first, 8))
    state = first.state_dict()
    assert (state["step"], state["tokens"]) == (8, 128) and state["epoch"] in (1, 2)
    again = loader()
    again.load_state_dict(json.loads(json.dumps(state)))
    assert torch.cat([batch["input_ids"].flatten() for batch in again]).tolist() == list(range(64))
    assert again.epoch in (2, 3) and again.state_dict()["tokens"] == 192


@pytest.mark.parametrize("name", NAMES)
def test_inside_a_step_another_accumulation_is_exact_or_refused(name):
    """4 of the 8 rows of step 50 are delivered: two micro-batches of 2 rows, and no whole one of 8."""
    _, states = uninterrupted(name)
    rows = [row for batch in itertools.islice(loader_of(name), 101, 140) for row in batch["input_ids"].tolist()]
    for world in (1, 2):
        ranks = resumed_elsewhere(name, states[101], world, accum=4)
        assert all(loader.step == 50 for loader in ranks)
        found = [row for micro in zip(*ranks, strict=True) for batch in micro for row in batch["input_ids"].tolist()]
        assert found[: len(rows)] == rows
    whole = loader_of(name, accum=1)
    before = whole.state_dict()
    refused(
        lambda: whole.load_state_dict(states[101]),
        "4 rows into step 50",
        "8 rows",
        "grad_accum_steps",
        error=StateError,
    )
    assert whole.state_dict() == before
    whole.load_state_dict(states[100])
    assert next(iter(whole))["input_ids"].tolist() == [
        row for batch in itertools.islice(loader_of(name), 100, 102) for row in batch["input_ids"].tolist()
    ]


def resumed_elsewhere(name, state, world, **options):
    """The same tokens under another accumulation: its states count micro-batches of their own."""
    loaders = [loader_of(name, rank, world, **options) for rank in range(world)]
    for loader in loaders:
        loader.load_state_dict(json.loads(json.dumps(state)))
        same = ("step", "rows", "tokens", "epoch", "past", "source", "order", "stream")
        assert {k: loader.state_dict()[k] for k in same} == {k: state[k] for k in same}
    return loaders


# -- seek -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_seek_goes_to_any_step(name):
    digests, states = uninterrupted(name)
    loader = loader_of(name)
    for step in (0, 1, 39, 40, 41, 97, 3, STEPS - 1):
        loader.seek(step)
        assert loader.state_dict() == states[ACCUM * step] and loader.step == step
        tail = list(deliver([loader], 3))
        assert [d for d, _ in tail] == list(digests[ACCUM * step : ACCUM * step + 3])
    loader.seek(STEPS)
    assert loader.state_dict() == states[-1]
    for wrong in (STEPS + 1, 10**12):
        refused(lambda w=wrong: loader.seek(w), f"total_steps={STEPS}", str(wrong), error=StateError)
    refused(lambda: loader.seek(-1), "step", "-1", error=ValueError)
    refused(lambda: loader.seek(2.0), "step", "2.0", error=ValueError)
    assert loader.state_dict() == states[-1]


def test_a_stream_that_ends_before_the_step_is_named():
    loader = SLWLoader(SLWDataset([[1, 2, 3], [4, 5]], lambda step: 2, batch_size=1), prefetch=0)
    refused(lambda: loader.seek(3), "ends after 2 steps", "step 3", error=StateError)
    assert next(iter(loader))["input_ids"].tolist() == [[1, 2]]


@pytest.mark.parametrize("name", STORES)
def test_a_step_is_state_enough_for_a_store(name):
    digests, states = uninterrupted(name)
    loader = loader_of(name)
    for step in (0, 1, 40, 155):
        loader.load_state_dict({"step": step})
        assert loader.state_dict() == states[ACCUM * step]
        assert [d for d, _ in deliver([loader], 3)] == list(digests[ACCUM * step : ACCUM * step + 3])
    refused(
        lambda: loader.load_state_dict({"step": STEPS + 1}),
        "step",
        f"total_steps={STEPS}",
        f"{STEPS + 1}",
        error=StateError,
    )


@pytest.mark.parametrize("name", STREAMS)
def test_a_step_alone_is_refused_for_a_stream(name):
    refused(lambda: loader_of(name).load_state_dict({"step": 3}), "version", error=StateError)


# -- iterators that are left, and iterators that are old --------------------------------------------------------------


@pytest.mark.parametrize(("prefetch", "num_workers"), [(0, 0), (2, 0), (2, 2)])
@pytest.mark.parametrize("move", ["load", "seek", "reset"])
def test_an_old_iterator_is_refused_once_the_loader_has_moved(move, prefetch, num_workers):
    digests, states = uninterrupted("lanes")
    loader = loader_of("lanes", prefetch=prefetch, num_workers=num_workers)
    old = iter(loader)
    next(old)
    to = {"load": 9, "seek": 14, "reset": 0}[move]
    {"load": lambda: loader.load_state_dict(states[9]), "seek": lambda: loader.seek(7), "reset": loader.reset}[move]()
    refused(lambda: next(old), "iter(loader)", error=StateError)
    assert loader.state_dict() == states[to]
    assert [d for d, _ in deliver([loader], 2)] == list(digests[to : to + 2])


@pytest.mark.parametrize("how", ["prefetch 0", "prefetch 2", "workers", "persistent", "one-shot"])
@pytest.mark.parametrize("name", ["shuffled", "documents", "hugging face"])
def test_leaving_the_loop_and_going_on_loses_nothing(name, how):
    source, more = sources(name)
    if how == "one-shot":
        if name != "documents":
            return
        source = iter(DOCS * 5)
    dataset = SLWDataset(
        source, SCHEDULE, batch_size=MICRO_ROWS, grad_accum_steps=ACCUM, total_steps=STEPS, labels="shifted",
        extras=("step", "position_ids"), **more,
    )  # fmt: skip
    options = {"num_workers": 2} if how in ("workers", "persistent") else {"prefetch": 0 if how == "prefetch 0" else 2}
    loader = SLWLoader(dataset, **options, persistent_workers=how == "persistent")
    digests, states = uninterrupted(name)
    found, sizes = [], itertools.cycle([1, 3, 70, 2] if "num_workers" in options else [1, 2, 5, 1, 9])
    while len(found) < len(digests):
        size = next(sizes)
        for k, batch in enumerate(loader, 1):
            found.append(digest(batch))
            if how != "one-shot":
                assert loader.state_dict() == states[len(found)]
            if k == size:
                break
    assert tuple(found) == digests


@pytest.mark.parametrize(("prefetch", "num_workers"), [(0, 0), (2, 0), (2, 2)])
@pytest.mark.parametrize("name", ["store", "lanes"])
def test_a_second_iterator_goes_on_where_the_first_stands(name, prefetch, num_workers):
    """``it = iter(loader)`` once more, as trainers do: the first one is dropped only then."""
    digests, states = uninterrupted(name)
    loader, found = loader_of(name, prefetch=prefetch, num_workers=num_workers), []
    for size in (1, 2, 100):
        it = iter(loader)
        found += [digest(next(it)) for _ in range(size)]
    assert tuple(found) == digests[:103] and loader.state_dict() == states[103]


@pytest.mark.parametrize(("prefetch", "num_workers"), [(0, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("name", ["store", "lanes"])
def test_two_iterators_in_turns_share_one_run_or_the_first_is_refused(name, prefetch, num_workers):
    digests, states = uninterrupted(name)
    loader = loader_of(name, prefetch=prefetch, num_workers=num_workers)
    turns, found = itertools.cycle([iter(loader), iter(loader)]), []
    try:
        for it in itertools.islice(turns, 300):
            found.append(digest(next(it)))
            assert loader.state_dict() == states[len(found)]
    except StateError as error:
        assert "iter(loader)" in str(error)
    assert tuple(found) == digests[: len(found)]
    rest = [d for d, _ in deliver([loader])]
    assert (*found, *rest) == digests


# -- a source that breaks ---------------------------------------------------------------------------------------------


class Breaking:
    """A list that cannot be read beyond item 60 while the file ``broken`` is there."""

    def __init__(self, broken):
        self.broken = broken

    def __len__(self):
        return len(DOCS)

    def __getitem__(self, index):
        if index >= 60 and self.broken.exists():
            raise OSError(f"disk 7 failed at item {index}")
        return DOCS[index]


@pytest.mark.parametrize("num_lanes", [1, 3])
@pytest.mark.parametrize(("prefetch", "num_workers"), [(0, 0), (2, 0), (2, 1), (2, 2)])
def test_after_an_error_of_the_source_the_run_goes_on_where_it_stood(tmp_path, prefetch, num_workers, num_lanes):
    broken = tmp_path / "broken"
    broken.touch()

    def loader(**options):
        dataset = SLWDataset(
            Breaking(broken), SCHEDULE, batch_size=2, grad_accum_steps=2, total_steps=90, num_lanes=num_lanes
        )
        return SLWLoader(dataset, **options)

    first, found = loader(prefetch=prefetch, num_workers=num_workers), []
    with pytest.raises(OSError, match="disk 7 failed at item 60"):
        for batch in first:
            found.append(digest(batch))
            state = first.state_dict()
    assert first.state_dict() == state
    with pytest.raises(OSError, match="disk 7 failed at item 60"):
        next(iter(first))
    assert first.state_dict() == state, "it is still broken, and nothing has moved"
    whole = sum(map(len, DOCS[:60]))
    assert first.tokens_seen <= whole, "tokens from nowhere"
    step = first.dataset.plan.tokens(first.step)
    held = 0 if num_lanes == 1 else max(map(len, DOCS)) * num_lanes
    assert whole - first.tokens_seen < step + held, "batches before the error were kept back"
    broken.unlink()
    again = loader(prefetch=0)
    clean = [digest(batch) for batch in again]
    assert found == clean[: len(found)]
    assert [digest(batch) for batch in first] == clean[len(found) :], "the same loader, repaired"
    again.load_state_dict(json.loads(json.dumps(state)))
    assert [digest(batch) for batch in again] == clean[len(found) :]


# -- the rest of the process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_global_random_generators_do_not_move(name, num_workers):
    def generators():
        return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()

    before = generators()
    loader = loader_of(name, num_workers=num_workers, prefetch=2)
    for _ in itertools.islice(loader, 5):
        pass
    state = loader.state_dict()
    loader.load_state_dict(state)
    next(iter(loader))
    loader.seek(3)
    loader.reset()
    assert generators() == before
