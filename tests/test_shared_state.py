"""Plans, datasets and sources that several loaders, threads and processes use at once: none disturbs another."""

import copy
import multiprocessing
import pickle
import threading
import time
import warnings
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from refusals import refused
from torch.utils.data import DataLoader

from slw_data import (
    ConstantSchedule,
    LinearSchedule,
    SequenceLengthPlan,
    SLWDataset,
    SLWLoader,
    StagedSchedule,
    StateError,
)
from slw_data.order.lanes import Lanes, open_lanes

TOKENS = np.arange(20_000)


def sawtooth(step):
    return 8 * (1 + (step // 10) % 4)


def tokens_of(batches):
    return [token for batch in batches for token in batch["input_ids"].flatten().tolist()]


# -- plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_of_a_callable_that_is_used_twice_stays_what_it_is():
    plan = SequenceLengthPlan(sawtooth, batch_size=2)
    train = SLWDataset(TOKENS, plan)
    plan.length(50)
    other = SLWDataset(TOKENS[:9_000], plan)
    plan.tokens_before(700)
    for dataset, size in ((train, 20_000), (other, 9_000)):
        found = tokens_of(SLWLoader(dataset))
        assert found == list(range(len(found))) and 0 <= size - len(found) == dataset.tokens_left < 2 * 32


def test_a_callable_is_asked_by_several_threads_and_gives_one_plan():
    """The callable lets other threads run between its question and its answer."""

    def slow(step):
        time.sleep(1e-5)
        return sawtooth(step)

    lengths = [sawtooth(step) for step in range(400)]
    before = np.concatenate([[0], np.cumsum([3 * length for length in lengths])]).tolist()
    for _ in range(5):
        plan, found = SequenceLengthPlan(slow, batch_size=3), {}

        def ask(number, plan=plan, found=found):
            order = np.random.default_rng(number).permutation(400).tolist()
            found[number] = all((plan.length(s), plan.tokens_before(s)) == (lengths[s], before[s]) for s in order)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert list(found.values()) == [True] * 4


def test_a_plan_of_a_callable_over_very_many_tokens_is_made_at_once():
    asked = []

    def counted(step):
        asked.append(step)
        return 64

    plan = SequenceLengthPlan(counted, batch_size=16, total_steps=10**8)
    assert plan.length(5) == 64 and len(asked) < 1_000


def test_a_callable_may_have_attributes_of_any_name():
    class Odd:
        changes = 7

        def max_length(self):
            raise AssertionError

        def __call__(self, step):
            return 8

    dataset = SLWDataset(TOKENS, Odd(), batch_size=4, total_steps=5)
    assert len(list(SLWLoader(dataset))) == 5 and dataset.plan.describe()


def test_a_table_that_was_made_longer_goes_on_from_a_state():
    class Table:
        def __init__(self, lengths):
            self.lengths = lengths

        def __call__(self, step):
            return self.lengths[step]

    def loader_of(*lengths):
        return SLWLoader(SLWDataset(TOKENS, Table(lengths), batch_size=4, total_steps=len(lengths)))

    loader = loader_of(8, 8, 16, 16)
    first = list(loader)
    longer = loader_of(8, 8, 16, 16, 32, 32)
    longer.load_state_dict(loader.state_dict())
    assert tokens_of([*first, *longer]) == list(range(4 * (8 + 8 + 16 + 16 + 32 + 32)))


# -- loaders and threads -----------------------------------------------------------------------------------------------


def test_loaders_of_one_shuffled_dataset_in_threads_deliver_what_each_would_alone():
    dataset = SLWDataset(np.arange(300_000), LinearSchedule(8, 64, warmup_steps=60), batch_size=8, shuffle=True)
    expected = tokens_of(SLWLoader(dataset))
    found = {}

    def read(number):
        loader = SLWLoader(dataset, prefetch=number % 3)
        if number % 2:
            list(islice(loader, 10 * number))
            loader.seek(0)
        found[number] = tokens_of(loader) == expected

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == dict.fromkeys(range(6), True)


def test_seeking_a_shuffled_loader_again_and_again_finds_the_same_batches():
    dataset = SLWDataset(np.arange(100_000), LinearSchedule(8, 64, warmup_steps=60), batch_size=8, shuffle=True)
    whole = [batch["input_ids"] for batch in SLWLoader(dataset)]
    loader, generator = SLWLoader(dataset), np.random.default_rng(0)
    for step in generator.integers(0, len(whole) - 3, 300).tolist():
        loader.seek(step)
        for number, batch in enumerate(islice(loader, 3), step):
            assert torch.equal(batch["input_ids"], whole[number])


class Documents:
    """A source with a state of its own, each of whose items takes a while; two who read at once are noticed."""

    def __init__(self, count=60):
        self.count, self.at, self.reading, self.overlaps = count, 0, threading.Lock(), 0

    def __iter__(self):
        return self

    def __next__(self):
        if not self.reading.acquire(blocking=False):
            self.overlaps += 1
            self.reading.acquire()
        try:
            time.sleep(0.002)
            if self.at == self.count:
                self.at = 0
                raise StopIteration
            self.at += 1
            return [self.at - 1] * 4
        finally:
            self.reading.release()

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Restarting(Documents):
    def __iter__(self):
        if not getattr(self, "_loaded", False):
            self.at = 0
        self._loaded = False
        return self

    def load_state_dict(self, state):
        self.at, self._loaded = state["at"], True


@pytest.mark.parametrize("move", ["reset", "seek", "load"])
def test_the_former_thread_has_ended_before_a_source_is_read_anew(move):
    source, others = Restarting(), set(threading.enumerate())  # loaders of other tests may not be collected yet
    loader = SLWLoader(SLWDataset(source, ConstantSchedule(4), batch_size=1), prefetch=4)
    list(islice(loader, 5))
    state = loader.state_dict()
    list(islice(loader, 10))
    if move == "reset":
        loader.reset()
    elif move == "seek":
        loader.seek(5)
    else:
        loader.load_state_dict(state)
    assert not any(thread.name == "slw_data" for thread in set(threading.enumerate()) - others)
    begin = 0 if move == "reset" else 5
    assert tokens_of(loader) == [n for n in range(begin, 60) for _ in range(4)] and source.overlaps == 0


def test_a_state_that_the_dataset_loads_reaches_a_loader_that_was_made_before():
    def dataset_of():
        return SLWDataset(TOKENS, LinearSchedule(8, 64, warmup_steps=20), batch_size=4)

    other = SLWLoader(dataset_of())
    list(islice(other, 7))
    dataset = dataset_of()
    loader = SLWLoader(dataset)
    dataset.load_state_dict(other.state_dict())
    assert loader.step == 7 and loader.state_dict() == other.state_dict()
    assert torch.equal(next(iter(loader))["input_ids"], next(iter(other))["input_ids"])
    refused(lambda: dataset.load_state_dict(other.state_dict()), "load it into the loader", error=StateError)


class Slow:
    """A callable that tells when it is asked, and takes its time."""

    def __init__(self):
        self.asked = threading.Event()

    def __call__(self, step):
        if step > 150:
            self.asked.set()
            time.sleep(0.002)
        return 8


def _ask(plan, lanes, sender):
    sender.send((plan.tokens_before(400), lanes.share))


def test_a_child_that_is_forked_while_a_thread_looks_things_up_can_look_them_up_too():
    """Locks that the thread holds are never released in the child."""
    slow, stop = Slow(), threading.Event()
    plan = SequenceLengthPlan(slow, batch_size=2)

    def compute():
        while not stop.is_set():
            _ = (open_lanes(1_000, 7).share, SLWDataset(TOKENS, ConstantSchedule(8), batch_size=2).num_batches)

    threads = [threading.Thread(target=plan.length, args=(300,)), threading.Thread(target=compute)]
    for thread in threads:
        thread.start()
    assert slow.asked.wait(60)
    context = multiprocessing.get_context("fork")
    try:
        for _ in range(20):
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_ask, args=(plan, open_lanes(900, 9), sender))
            child.start()
            answered = receiver.poll(60)
            assert answered and receiver.recv() == (400 * 16, 100)
            child.join(60)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert plan.tokens_before(400) == 400 * 16


@pytest.mark.parametrize("name", ["share", "extra", "block_size"])
def test_what_is_computed_once_holds_no_lock_over_a_fork(monkeypatch, name):
    inside, go_on = threading.Event(), threading.Event()
    function = vars(Lanes)[name].function

    def waiting(lanes):
        if threading.current_thread().name == "waits":
            inside.set()
            go_on.wait(60)
        return function(lanes)

    monkeypatch.setattr(vars(Lanes)[name], "function", waiting)
    thread = threading.Thread(target=lambda: getattr(open_lanes(1_000, 7), name), name="waits")
    thread.start()
    assert inside.wait(60)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(getattr(open_lanes(900, 9), name)))
    child.start()
    try:
        assert receiver.poll(30), "the child waits for a lock that no thread there will release"
    finally:
        child.kill()
        go_on.set()
        thread.join(60)


# -- processes ---------------------------------------------------------------------------------------------------------


def _deliver(loader, sender):
    sender.send((tokens_of(islice(loader, 20)), loader.step))


@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"num_workers": 2}], ids=["thread", "none", "workers"])
def test_a_child_that_is_forked_in_the_middle_goes_on_and_so_does_its_parent(options):
    def dataset_of():
        return SLWDataset(TOKENS, LinearSchedule(8, 64, warmup_steps=20), batch_size=4, shuffle=True)

    whole = list(SLWLoader(dataset_of()))
    loader = SLWLoader(dataset_of(), **options)
    iterator = iter(loader)
    list(islice(iterator, 5))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_deliver, args=(loader, sender), daemon=False)
    child.start()
    assert receiver.poll(60), "the child waits for a thread that does not exist there"
    assert receiver.recv() == (tokens_of(whole[5:25]), 25)
    child.join(60)
    assert child.exitcode == 0 and tokens_of(iterator) == tokens_of(whole[5:])


@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"num_workers": 2}], ids=["thread", "none", "workers"])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_a_copy_of_a_begun_loader_stands_where_it_stood_and_reads_for_itself(options, copied):
    dataset = SLWDataset(TOKENS, LinearSchedule(8, 64, warmup_steps=20), batch_size=4, shuffle=True)
    whole = tokens_of(SLWLoader(dataset))
    loader = SLWLoader(dataset, **options)
    begun = iter(loader)
    begin = tokens_of(islice(begun, 5))
    again = copied(loader)
    assert again.step == 5
    following = tokens_of(islice(again, 3))
    assert following == whole[len(begin) :][: len(following)] and len(following) > 0
    assert tokens_of(begun) == whole[len(begin) :]


@pytest.mark.parametrize("phase", [0, 1])
def test_the_state_of_one_dataloader_worker_is_refused_by_the_main_process(phase):
    dataset = SLWDataset(TOKENS, ConstantSchedule(8), batch_size=4)
    state = {**dataset.state_dict(), "worker_phase": phase}
    refused(lambda: dataset.load_state_dict(state), f"worker_phase={phase}", "as many workers", error=StateError)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_loop_over_a_dataloader_says_why_there_is_nothing_or_reads_anew(workers):
    dataset = SLWDataset(TOKENS[:2_000], ConstantSchedule(8), batch_size=4)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    whole = tokens_of(loader)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        second = tokens_of(loader)
    if workers:
        assert second == whole
    else:
        assert second == [] and any("iterated to its end" in str(warning.message) for warning in caught)


# -- counters and documents --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"num_lanes": 5}, {"shuffle": True, "num_lanes": 4}, {"shuffle": True}])
def test_the_epoch_is_the_pass_that_the_next_row_begins_in(options):
    """A second column tells how often a token has come before."""
    size = 600
    dataset = SLWDataset(np.arange(size), StagedSchedule([4, 8], [60]), batch_size=3, total_steps=120, **options)
    loader, seen = SLWLoader(dataset, prefetch=0), np.zeros(size, int)
    epoch = 0
    for batch in loader:
        first = batch["input_ids"][0, 0].item()
        assert epoch == seen[first]
        np.add.at(seen, batch["input_ids"].flatten().numpy(), 1)
        epoch = loader.epoch
    assert seen.max() > 2


def test_a_document_goes_on_where_two_blocks_of_a_lane_touch_by_chance():
    """With blocks in the store's order and one lane, every block is followed by its neighbour: no document begins there."""
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [list(range(100)), list(range(60))] * 20})
    dataset = SLWDataset(rows, ConstantSchedule(16), batch_size=4, shuffle=True, seed=2, num_lanes=1, extras=("position_ids",))
    lanes = dataset.run.batches.order.lanes
    store = np.array(rows["input_ids"][0] * 0 + [t for row in rows["input_ids"] for t in row])
    pieces = [int(lanes.piece_starts(np.array([0]), np.array([turn]))[0]) for turn in range(lanes.blocks)]
    order = np.concatenate([np.arange(start, start + lanes.block_size) for start in pieces])
    assert any(b == a + lanes.block_size for a, b in pairwise(pieces)), "two blocks touch"
    begins = set(np.cumsum([0] + [len(row) for row in rows["input_ids"]]).tolist())
    ids = np.concatenate([batch["input_ids"].numpy().ravel() for batch in SLWLoader(dataset)])
    positions = np.concatenate([batch["position_ids"].numpy().ravel() for batch in SLWLoader(dataset)])
    count = min(len(order), len(ids))
    assert (ids[:count] == store[order[:count]]).all()
    expected = 0
    for number in range(count):
        jumped = number > 0 and order[number] != order[number - 1] + 1
        restarts = number % 16 == 0 or jumped or int(order[number]) in begins
        expected = 0 if restarts else expected + 1
        assert positions[number] == expected
