"""States of version 1, which an earlier release wrote, and futures that differ from the one a state was saved in."""

import itertools
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from slw_data import ConstantSchedule, LinearSchedule, SLWDataset, SLWLoader, StagedSchedule, StateError

# Literally what was saved in the middle of step 12, of 12 rows in two micro-batches, and the rows that came next.
SAVED = {
    "version": 1, "step": 12, "batch": 1, "rows": 150, "tokens": 3120, "epoch": 0,
    "plan": "8..64 tokens, 12 global rows #64f680865cf2", "source": "int64 x 50000 #49d13aa132fd",
    "dp_rank": None, "dp_world_size": None, "stream": "",
}  # fmt: skip
SHUFFLED = {
    **SAVED, "order": "shuffled with seed 0, num_lanes=12, 8 blocks of 520 tokens in each", "checksum": 1845007669,
}  # fmt: skip
IN_ORDER = {**SAVED, "order": "in order", "checksum": 2499297817}
LANES = {**SAVED, "order": "in order, num_lanes=3, 8 blocks of 2083 tokens in each", "checksum": 894510025}
NEXT = {"shuffled": (47560, 41840), "in order": (3120, 3160), "lanes": (1040, 3123)}
DIGESTS = {"shuffled": 1426611596, "in order": 3248414866, "lanes": 2560784334}  # zlib.crc32 of the next 21 batches, as int64
LATER = {**SHUFFLED, "step": 88, "rows": 1062, "tokens": 60_000, "epoch": 1, "checksum": 1313190155}  # in the second of two


def loader_of(schedule=LinearSchedule(8, 64, warmup_steps=20), **options):
    shape = {"batch_size": 6, "grad_accum_steps": 2}
    return SLWLoader(SLWDataset(np.arange(50_000), schedule, **{**shape, **options}))


@pytest.mark.parametrize(
    "state, options, name",
    [
        (SHUFFLED, {"shuffle": True, "num_lanes": 12}, "shuffled"),
        (IN_ORDER, {}, "in order"),
        (LANES, {"num_lanes": 3}, "lanes"),
        (SHUFFLED, {"shuffle": True, "num_lanes": 12, "batch_size": 3, "grad_accum_steps": 4}, "shuffled"),
    ],
)
def test_a_state_of_version_1_goes_on_at_the_same_tokens(state, options, name):
    loader = loader_of(**options)
    loader.load_state_dict(state)
    assert (loader.step, loader.tokens_seen) == (12, 3120)
    assert next(iter(loader))["input_ids"][:2, 0].tolist() == list(NEXT[name])
    assert loader.state_dict()["version"] == 2


@pytest.mark.parametrize("name, options", [
    ("shuffled", {"shuffle": True, "num_lanes": 12}), ("in order", {}), ("lanes", {"num_lanes": 3}),
    ("shuffled", {"shuffle": True, "num_lanes": 12, "epochs": 5}), ("lanes", {"num_lanes": 3, "labels": "shifted"}),
])  # fmt: skip
def test_the_batches_after_a_state_of_version_1_are_those_that_its_release_gave(name, options):
    loader = loader_of(**options)
    loader.load_state_dict({"shuffled": SHUFFLED, "in order": IN_ORDER, "lanes": LANES}[name])
    batches = [batch["input_ids"].numpy().astype("<i8").tobytes() for batch in itertools.islice(loader, 21)]
    assert len(batches) == 21 and zlib.crc32(b"".join(batches)) == DIGESTS[name]


def test_a_state_of_version_1_goes_on_in_its_second_epoch():
    loader = loader_of(shuffle=True, num_lanes=12, epochs=2)
    loader.load_state_dict(LATER)
    firsts = [batch["input_ids"][:, 0].tolist() for batch in itertools.islice(loader, 2)]
    assert firsts == [[30441, 36681, 8082, 46562, 43962, 12762], [20625, 38825, 45065, 26865, 6065, 6585]]


def test_a_state_of_version_1_goes_on_on_each_of_several_ranks():
    """Its release gave rank 1 these rows; of one rank they are the second half of a batch."""
    loader = loader_of(shuffle=True, num_lanes=12, batch_size=3, dp_rank=1, dp_world_size=2)
    loader.load_state_dict(SHUFFLED)
    firsts = [batch["input_ids"][:, 0].tolist() for batch in itertools.islice(loader, 2)]
    assert firsts == [[49120, 32480, 240], [14840, 15880, 4960]]


def test_the_old_default_order_is_refused_with_the_lanes_to_write():
    loader = loader_of(shuffle=True)
    refused(
        lambda: loader.load_state_dict(SHUFFLED), "order: saved", "Version 1 chose other lanes", "write num_lanes=12",
        error=StateError,
    )  # fmt: skip
    assert loader.step == 0


def test_a_future_that_differs_from_that_of_version_1_needs_nothing_special():
    lengths = [LinearSchedule(8, 64, warmup_steps=20)(step) for step in range(13)]
    changed = StagedSchedule([*lengths, 24], range(1, 14))
    loader = loader_of(changed, shuffle=True, num_lanes=12, total_steps=40)
    loader.load_state_dict(SHUFFLED)
    assert next(iter(loader))["input_ids"][:2, 0].tolist() == list(NEXT["shuffled"])


@pytest.mark.parametrize("end", [{}, {"total_steps": 60}, {"total_tokens": 20_000}, {"epochs": 3}], ids=str)
def test_another_batch_or_end_after_a_state_of_version_1_needs_nothing_special(end):
    """The rows of the step that was begun stay as they were; those of the next steps are the next of their lanes."""
    loader = loader_of(shuffle=True, num_lanes=12, batch_size=StagedSchedule([6, 3], [13]), **end)
    loader.load_state_dict(SHUFFLED)
    firsts = [batch["input_ids"][:, 0].tolist() for batch in itertools.islice(loader, 3)]
    assert firsts == [[47560, 41840, 24680, 49120, 32480, 240], [7040, 10160, 25240], [14840, 15880, 4960]]


DAMAGED = {
    "tokens": (3121, "tokens must be 3120"),
    "rows": (151, "micro-batch now has 6 rows"),
    "step": (13, "rows must be"),
    "epoch": (1, "checksum"),
    "checksum": (7, "checksum"),
    "stream": ("x", "stream must be ''"),
    "source": ("int64 x 50001 #49d13aa132fd", "source: saved"),
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_a_damaged_state_of_version_1_is_refused(name):
    value, fact = DAMAGED[name]
    loader = loader_of(shuffle=True, num_lanes=12)
    refused(lambda: loader.load_state_dict({**SHUFFLED, name: value}), fact, error=StateError)


def test_another_past_than_that_of_version_1_is_told_by_its_rows_and_tokens():
    other = loader_of(LinearSchedule(8, 64, warmup_steps=15), shuffle=True, num_lanes=12)
    refused(lambda: other.load_state_dict(SHUFFLED), "tokens must be", "other lengths", error=StateError)


def test_streams_of_version_1_and_versions_from_later_are_refused():
    stream = SLWLoader(SLWDataset([[1] * 50] * 20, LinearSchedule(8, 16, warmup_steps=2), batch_size=2))
    state = {**stream.state_dict(), "version": 1, "plan": "x"}
    for key in ("past", "rest"):
        del state[key]
    refused(lambda: stream.load_state_dict(state), "version 1 said too little of a stream", error=StateError)
    loader = loader_of()
    later = {**loader.state_dict(), "version": 3}
    refused(lambda: loader.load_state_dict(later), "version must be 2 or 1", "3", error=StateError)


# -- other futures -----------------------------------------------------------------------------------------------------

ORDERS = {"in order": {}, "lanes": {"num_lanes": 5}, "shuffled": {"shuffle": True}, "few": {"shuffle": True, "num_lanes": 4}}


def tokens_of(batches):
    return [batch["input_ids"].flatten() for batch in batches]


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 8), st.integers(1, 12), st.integers(1, 8),
    st.sampled_from(list(ORDERS)),
)  # fmt: skip
def test_lengths_and_rows_may_change_after_the_saved_step_and_no_token_is_lost_or_twice(lengths, step, length, rows, order):
    size = 2_000
    schedule = StagedSchedule(lengths, range(1, len(lengths)))

    def make(schedule, rows, **end):
        return SLWLoader(SLWDataset(np.arange(size), schedule, batch_size=rows, **ORDERS[order], **end), prefetch=0)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "going on with")
        loader = make(schedule, 4)
        iterator = iter(loader)
        first = tokens_of(next(iterator) for _ in range(step))
        past = [schedule(s) for s in range(step)]
        changed = make(StagedSchedule([*past, length], range(1, step + 1)), StagedSchedule([4, rows], [step]))
        changed.load_state_dict(loader.state_dict())
        found = torch.cat([*first, *tokens_of(changed)])
    assert len(found.unique()) == len(found) == size - changed.tokens_left and changed.tokens_left < rows * length


def test_more_epochs_are_taken_up_to_the_rest_and_refused_in_it():
    """The rest is what lanes leave over at the end of all epochs, so another end has another one."""

    def make(epochs):
        dataset = SLWDataset(np.arange(600), ConstantSchedule(7), batch_size=3, shuffle=True, num_lanes=60, epochs=epochs)
        return SLWLoader(dataset, prefetch=0)

    loader = make(1)
    rest = loader.dataset.run.batches.order.rest.step
    assert (rest, loader.dataset.plan.total_steps) == (20, 28)
    states = [loader.state_dict(), *(loader.state_dict() for _ in loader)]
    assert [state["rest"] for state in states] == [None] * (rest + 1) + [rest] * (28 - rest)
    whole = [batch["input_ids"].tolist() for batch in make(2)]
    for state in states[: rest + 1 : 5]:
        longer = make(2)
        longer.load_state_dict(state)
        assert [batch["input_ids"].tolist() for batch in longer] == whole[state["step"] :]
    for strict in (True, False):
        refused(
            lambda strict=strict: make(2).load_state_dict(states[rest + 1], strict=strict),
            "rest: saved 20", "more or fewer epochs", error=StateError,
        )  # fmt: skip


def test_what_lies_before_the_saved_step_is_refused_by_name():
    loader = loader_of(shuffle=True)
    iterator = iter(loader)
    for _ in range(20):
        next(iterator)
    state = loader.state_dict()
    for changed in (
        loader_of(LinearSchedule(8, 64, warmup_steps=10), shuffle=True),
        loader_of(shuffle=True, batch_size=StagedSchedule([5, 6], [4])),
        loader_of(shuffle=True, grad_accum_steps=1),
    ):
        refused(lambda loader=changed: loader.load_state_dict(state), "past: saved '8..32 tokens in 10 steps", error=StateError)
        assert changed.step == 0


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 30), st.sampled_from(list(ORDERS)))
def test_a_seek_to_the_token_of_a_state_under_other_rows_loses_nothing(length, rows, others, step, order):
    """As if the batch had always been so: less than a step of the new plan comes again."""

    def make(rows):
        dataset = SLWDataset(np.arange(3_000), ConstantSchedule(length), batch_size=rows, **ORDERS[order])
        return SLWLoader(dataset, prefetch=0)

    loader = make(rows)
    step = min(step, loader.dataset.plan.total_steps)
    first = tokens_of(itertools.islice(loader, step))
    changed = make(others)
    changed.seek(changed.dataset.plan.step_at(loader.state_dict()["tokens"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this run is finished")
        found = torch.cat([*first, *tokens_of(changed), torch.zeros(0, dtype=torch.int64)])
    seen, counts = found.unique(return_counts=True)
    assert (counts - 1).sum() < others * length and len(seen) >= 3_000 - max(rows, others) * length


@pytest.mark.parametrize("plan", [b"x", None, 3, np.arange(2), {1}], ids=repr)
def test_a_plan_of_version_1_that_is_no_text_is_refused_in_words(plan):
    loader = SLWLoader(SLWDataset(np.arange(20_000), ConstantSchedule(8), batch_size=4))
    state = {name: loader.state_dict().get(name) for name in SHUFFLED}
    refused(lambda: loader.load_state_dict({**state, "version": 1, "plan": plan}), "plan must be a text", error=StateError)
