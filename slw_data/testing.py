"""Checks for schedules, stores and streams of your own: call them from your tests.

They raise AssertionError, and say at which step or batch the first difference is. The last of the package's modules;
:mod:`slw_data.sources.stores.protocol` and :mod:`slw_data.sources.streams.protocol` say what to write.
"""

from __future__ import annotations

import itertools
import json
import pickle
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch

from slw_data.batch.building import Batch
from slw_data.dataset import SLWDataset
from slw_data.loader import SLWLoader
from slw_data.plan.schedules import Schedule

__all__ = ["assert_resumes_exactly", "assert_same_for_any_num_workers", "assert_valid_schedule"]


def assert_valid_schedule(
    schedule: Schedule, *, num_steps: int = 1000, max_length: int | None = None, multiple_of: int = 1
) -> None:
    """``schedule`` gives, at each of ``num_steps`` steps, an int that is at least 1, at most ``max_length`` and a multiple
    of ``multiple_of``; the same when asked again, in another order, and after pickling.

    >>> from slw_data import LinearSchedule
    >>> assert_valid_schedule(LinearSchedule(8, 64, warmup_steps=100), max_length=64, multiple_of=8)
    """
    lengths = [schedule(step) for step in range(num_steps)]
    for step, length in enumerate(lengths):
        if type(length) is not int or length < 1:
            raise AssertionError(f"step {step}: the length must be an int >= 1, got {length!r}")
        if length % multiple_of:
            raise AssertionError(f"step {step}: the length must be a multiple of {multiple_of}, got {length}")
        if max_length is not None and length > max_length:
            raise AssertionError(f"step {step}: the length must be at most {max_length}, got {length}")
    copy = pickle.loads(pickle.dumps(schedule))
    for step in reversed(range(num_steps)):
        for what, again in (("asked again", schedule(step)), ("asked after pickling", copy(step))):
            if again != lengths[step]:
                raise AssertionError(f"step {step}: the schedule gave {lengths[step]}, and {again} when {what}")


def assert_same_for_any_num_workers(
    make_dataset: Callable[[], SLWDataset], *, num_workers: Iterable[int] = (0, 1, 2), num_batches: int = 64
) -> None:
    """The first ``num_batches`` batches and the states after them are the same with each of ``num_workers``.

    ``make_dataset`` returns a new dataset each time, as a new process would.
    """
    expected: list[tuple[Batch, str]] | None = None
    for workers in num_workers:
        loader = SLWLoader(make_dataset(), num_workers=workers)
        got = [(batch, json.dumps(loader.state_dict())) for batch in _first(loader, num_batches)]
        if expected is None:
            expected = got
        _compare([batch for batch, _ in expected], [batch for batch, _ in got], f"with num_workers={workers}")
        for i, ((_, state), (_, other)) in enumerate(zip(expected, got, strict=True)):
            if state != other:
                raise AssertionError(f"the state after batch {i} is {state}, and {other} with num_workers={workers}")


def assert_resumes_exactly(
    make_dataset: Callable[[], SLWDataset], *, num_batches: int = 64, num_workers: Sequence[int] = (0,)
) -> None:
    """From the state after each of ``num_batches`` batches, taken through JSON into a new dataset, the rest of them and
    all states are the same as without the stop; with each of ``num_workers`` after the stop.

    ``make_dataset`` returns a new dataset each time, as a new process would.
    """
    loader = SLWLoader(make_dataset(), prefetch=0)
    states = [json.dumps(loader.state_dict())]
    batches = []
    for batch in _first(loader, num_batches):
        batches.append(batch)
        states.append(json.dumps(loader.state_dict()))
    if not batches:
        raise AssertionError("the dataset has no batch, so nothing was checked")
    for cut, state in enumerate(states):
        resumed = SLWLoader(make_dataset(), num_workers=num_workers[cut % len(num_workers)])
        resumed.load_state_dict(json.loads(state))
        if json.dumps(resumed.state_dict()) != state:
            raise AssertionError(f"the state after {cut} batches is {state}, and {resumed.state_dict()} once loaded")
        _compare(batches[cut:], list(_first(resumed, len(batches) - cut)), f"resumed after {cut} batches")
        if json.dumps(resumed.state_dict()) != states[-1]:
            raise AssertionError(f"resumed after {cut} batches, the last state is {resumed.state_dict()}, not {states[-1]}")


def _first(loader: SLWLoader, count: int) -> Iterable[Batch]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this run is finished")
        yield from itertools.islice(loader, count)


def _compare(expected: Sequence[Batch], got: Sequence[Batch], when: str) -> None:
    for i, (one, other) in enumerate(zip(expected, got, strict=False)):
        if list(one) != list(other):
            raise AssertionError(f"batch {i} {when} has {list(other)}, not {list(one)}")
        for name in one:
            if not torch.equal(one[name], other[name]):
                raise AssertionError(f"{name} of batch {i} {when} is {other[name]}, not {one[name]}")
    if len(expected) != len(got):
        raise AssertionError(f"there are {len(got)} batches {when}, not {len(expected)}")
