"""Loops that begin again: over sources that have one position only, in workers that live on, and after a state was loaded."""

import multiprocessing
import subprocess
import sys
import time
import warnings
from itertools import islice

import numpy as np
import pytest
from delivery import built, dealing, small_runs
from hypothesis import given
from hypothesis import strategies as st
from oracle import batches_of, naive_batches, naive_lane_positions, naive_plan
from refusals import refused
from torch.utils.data import DataLoader, IterableDataset

from slw_data import ConstantSchedule, DataError, ScheduleError, SLWDataset, SLWLoader, StateError
from slw_data.order.permutation import permute

TOKENS = np.arange(4_000)


def tokens_of(batches):
    return [token for batch in batches for token in batch["input_ids"].flatten().tolist()]


def dataset_of(source=TOKENS, **options):
    return SLWDataset(source, ConstantSchedule(8), batch_size=4, **options)


# -- sources with one position -----------------------------------------------------------------------------------------


class Cursor:
    """A source that keeps its own position, and takes a while for each item."""

    def __init__(self, count=300):
        self.count, self.at, self.loaded = count, 0, False

    def __iter__(self):
        self.at, self.loaded = self.at if self.loaded else 0, False
        return self

    def __next__(self):
        time.sleep(0.001)
        if self.at == self.count:
            raise StopIteration
        self.at += 1
        return [self.at - 1] * 4

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at, self.loaded = state["at"], True


def documents_of(source):
    return SLWDataset(source, ConstantSchedule(4), batch_size=1)


def numbers_of(batches):
    return [batch["input_ids"][0, 0].item() for batch in batches]


@pytest.mark.parametrize("prefetch", [0, 4])
@pytest.mark.parametrize("anew", [False, True], ids=["one dataset", "a dataset each"])
def test_a_loader_begins_at_the_beginning_though_a_former_one_still_reads_the_source(prefetch, anew):
    source = Cursor()
    dataset, former = documents_of(source), []
    for _ in range(8):
        former.append(SLWLoader(documents_of(source) if anew else dataset, prefetch=prefetch))
        assert numbers_of(islice(former[-1], 10)) == list(range(10))
    del former[:-1]
    assert numbers_of(former[-1]) == list(range(10, 300))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_two_loaders_that_take_turns_with_one_position_are_refused(prefetch):
    dataset = documents_of(Cursor())
    one, other = iter(SLWLoader(dataset, prefetch=prefetch)), iter(SLWLoader(dataset, prefetch=prefetch))
    first = numbers_of(islice(one, 3))
    assert first == [0, 1, 2] and numbers_of(islice(other, 20)) == list(range(20))
    refused(lambda: list(one), "Cursor", "one iteration reads it at a time", error=DataError)
    assert numbers_of(other) == list(range(20, 300))


def _go_on(loader, sender):
    sender.send(numbers_of(islice(loader, 10)))


def test_a_child_that_is_forked_while_a_thread_reads_the_source_reads_it_too():
    loader = SLWLoader(documents_of(Cursor()), prefetch=4)
    iterator = iter(loader)
    context = multiprocessing.get_context("fork")
    for number in range(10):
        assert next(iterator)["input_ids"][0, 0] == number
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_go_on, args=(loader, sender))
        child.start()
        answered = receiver.poll(60)
        assert answered and receiver.recv() == list(range(number + 1, number + 11))
        child.join(60)
    assert numbers_of(iterator) == list(range(10, 300))


# -- a DataLoader above ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:this run has been read to its end by DataLoader workers")
@pytest.mark.parametrize("left", [None, 5])
def test_workers_that_live_on_begin_each_loop_where_others_do(left):
    """They have made more batches than were delivered, so their own places are of no use."""
    loader = DataLoader(dataset_of(), batch_size=None, num_workers=2, persistent_workers=True)
    loops = [tokens_of(islice(loader, left)) for _ in range(3)]
    assert loops == [list(range(len(TOKENS) if left is None else 5 * 32))] * 3


class Loading(IterableDataset):
    """In a worker: loads a state, and delivers the error."""

    def __init__(self, dataset, phase):
        self.dataset, self.phase = dataset, phase

    def __iter__(self):
        state = {**self.dataset.state_dict(), "worker_phase": self.phase}
        yield refused(lambda: self.dataset.load_state_dict(state), "worker", error=StateError)


@pytest.mark.parametrize("phase", [2, -1, True, 0.0, "0"])
def test_a_worker_refuses_the_state_of_a_worker_that_there_is_not(phase):
    loader = DataLoader(Loading(dataset_of(), phase), batch_size=None, num_workers=2)
    for message in loader:
        assert f"worker_phase={phase} marks the state of one DataLoader worker, and there are 2 here" in message


# -- states that the dataset loads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", ["reset", "seek", "load_state_dict"])
def test_a_state_is_not_loaded_into_the_dataset_of_a_loader_that_has_moved(move):
    dataset = dataset_of()
    state, loader = dataset_of().state_dict(), SLWLoader(dataset)
    getattr(loader, move)(*{"reset": (), "seek": (3,), "load_state_dict": ({"step": 3},)}[move])
    refused(lambda: dataset.load_state_dict(state), "load it into the loader", error=StateError)
    assert loader.step == (0 if move == "reset" else 3)


def test_a_loader_that_has_moved_says_that_it_does_not_see_a_state():
    dataset = dataset_of()
    loader, state = SLWLoader(dataset), {"step": 9}
    list(islice(loader, 3))
    list(islice(dataset, 2))  # the dataset itself is iterated meanwhile, so it may load
    dataset.load_state_dict(state)
    refused(lambda: next(iter(loader)), "load it into the loader", error=StateError)
    loader.load_state_dict(state)
    assert next(iter(loader))["input_ids"][0, 0] == 9 * 32


# -- counters ----------------------------------------------------------------------------------------------------------


@given(small_runs, st.integers(5, 90), st.integers(2, 5), st.booleans(), st.sampled_from([None, 1, 2, 3]))
def test_the_epoch_is_the_pass_that_the_next_row_of_all_ranks_begins_in(run, size, num_lanes, shuffle, epochs):
    schedule, shape, total = run
    blocks = min(8, size // num_lanes)
    *_, (length, rows, before) = naive_plan(schedule, **shape, total_steps=total)
    tokens = before + length * rows * shape["grad_accum_steps"] * shape["world_size"]
    passes = epochs or tokens // (size // num_lanes) + 2
    lanes = [[] for _ in range(num_lanes)]
    for epoch in range(passes):
        order = np.arange(blocks * num_lanes)
        order = permute(order, len(order), (0, epoch)) if shuffle else order
        for lane, places in zip(lanes, naive_lane_positions(size, num_lanes, blocks, [order.tolist()]), strict=True):
            lane += [epoch * size + place for place in places]
    shapes = naive_plan(schedule, **shape, total_steps=total if epochs is None else epochs * size + 1)
    steps = naive_batches(lanes, shapes, **dealing(shape), rest=epochs is not None)
    firsts = [rows[0][0] // size for rows in batches_of(steps, 0)]
    end = {"epochs": epochs} if epochs else {"total_steps": total}
    for rank in range(shape["world_size"] if firsts else 0):
        dataset = built(np.arange(size), schedule, shape, rank, shuffle=shuffle, num_lanes=num_lanes, **end)
        loader, found = SLWLoader(dataset, prefetch=0), []
        found.append(loader.epoch)
        for _ in loader:
            assert loader.state_dict()["epoch"] == loader.epoch
            found.append(loader.epoch)
        assert found[:-1] == firsts


@pytest.mark.parametrize("options", [{}, {"num_lanes": 4}, {"shuffle": True}])
def test_a_step_whose_tokens_no_int64_counts_is_refused(options):
    def loader_at(step):
        dataset = SLWDataset(TOKENS, ConstantSchedule(1 << 10), batch_size=1 << 10, total_steps=1 << 50, **options)
        loader = SLWLoader(dataset, prefetch=0)
        loader.seek(step)
        return loader

    last = loader_at((1 << 43) - 2)  # of 2^20 tokens each
    batch = next(iter(last))["input_ids"]
    assert ((batch >= 0) & (batch < len(TOKENS))).all() and last.tokens_seen == 2**63 - 2**20
    if not options:
        assert batch[0, 0] == ((1 << 43) - 2) * (1 << 20) % len(TOKENS)
    for step in ((1 << 43) - 1, 1 << 43, 1 << 47):
        refused(lambda step=step: next(iter(loader_at(step))), "2^63", str(step + 1), error=ScheduleError)


# -- loops that find nothing, or the same again, say so ------------------------------------------------------------------


def warned(loop):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop()
    return [str(warning.message) for warning in caught]


def test_a_dataset_at_its_end_and_a_run_without_a_batch_warn_once_a_loop():
    dataset = dataset_of()
    assert warned(lambda: list(dataset)) == []
    [message] = warned(lambda: list(dataset))
    assert "iterated to its end" in message and "reset()" in message
    again = dataset_of()
    again.load_state_dict(dataset.state_dict())
    [message] = warned(lambda: list(again))
    assert "this run is finished (125 steps)" in message
    for source in (lambda: iter([]), TOKENS[:31].tolist()):
        [message] = warned(lambda source=source: list(dataset_of([source] if isinstance(source, list) else source)))
        assert "too few tokens for the first step" in message


LOOPS = """
import sys
from itertools import islice
import numpy as np
from torch.utils.data import DataLoader
from slw_data import ConstantSchedule, SLWDataset

persistent, left = sys.argv[1] == "True", int(sys.argv[2])
dataset = SLWDataset(np.arange(4_000), ConstantSchedule(8), batch_size=4)
loader = DataLoader(dataset, batch_size=None, num_workers=2, prefetch_factor=1, persistent_workers=persistent)
print([len(list(islice(loader, left))) for _ in range(2)])
"""


@pytest.mark.parametrize(("persistent", "left", "warnings"), [(False, 200, 1), (True, 200, 1), (False, 5, 0)])
def test_a_run_that_workers_begin_again_is_warned_of_unless_the_loop_was_left(persistent, left, warnings):
    """In a process of its own: what a worker says goes to the standard error."""
    command = [sys.executable, "-c", LOOPS, str(persistent), str(left)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{[min(left, 125)] * 2}\n"
    assert done.stderr.count("read to its end by DataLoader workers") == warnings
    assert done.stderr.count("short rows first") == warnings


def test_a_pass_without_tokens_is_warned_of_by_its_number():
    class Every:
        """Documents in every other pass."""

        def __init__(self):
            self.epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            yield from ([[1] * 64] if self.epoch % 2 == 0 else [[]])

    found = warned(lambda: list(dataset_of(Every(), epochs=3)))
    assert len(found) == 1 and "no tokens in pass 1 of 3" in found[0]
