"""The state: plain, small, the same everywhere, and refused by name where it does not belong."""

import itertools
import json
import time
import warnings

import numpy as np
import pytest
import torch
from refusals import refused
from torch.utils.data import DataLoader

from slw_data import ConstantSchedule, LinearSchedule, SLWDataset, SLWLoader, StagedSchedule, StateError

SCHEDULE = StagedSchedule([4, 8, 2], [10, 20])
DOCS = [list(range(20 * i, 20 * i + 1 + i * 5 % 20)) for i in range(60)]
KEYS = [
    "version",
    "step",
    "batch",
    "rows",
    "tokens",
    "epoch",
    "past",
    "source",
    "order",
    "rest",
    "dp_rank",
    "dp_world_size",
    "stream",
]
COUNTERS = ("step", "batch", "rows", "tokens", "epoch")
KINDS = ("store", "shuffled", "documents", "lanes", "padded")


def loader_of(kind, schedule=SCHEDULE, source=None, **options):
    docs = kind in ("documents", "lanes", "padded")
    source = source if source is not None else DOCS if docs else np.arange(600)
    given = {
        "store": {},
        "shuffled": {"shuffle": True, "num_lanes": 3},
        "documents": {},
        "lanes": {"num_lanes": 2},
        "padded": {"mode": "segment", "pad_id": 0},
    }[kind]
    shape = {"batch_size": 2, "grad_accum_steps": 2, "total_steps": 40}
    return SLWLoader(SLWDataset(source, schedule, **{**shape, **given, **options}), prefetch=0)


def advanced(loader, count):
    for _ in itertools.islice(loader, count):
        pass
    return loader


def assert_refused_and_unchanged(loader, state, *facts, **options):
    """In the middle of an iteration: the state stays, and so does the batch that comes next."""
    iterator, twin = iter(loader), iter(advanced(loader_of_same(loader), 2 * loader.position.step + loader.position.batch))
    before = loader.state_dict()
    message = refused(lambda: loader.load_state_dict(state, **options), *facts, error=StateError)
    assert loader.state_dict() == before
    assert next(iterator)["input_ids"].tolist() == next(twin)["input_ids"].tolist()
    return message


def loader_of_same(loader):
    return SLWLoader(loader.made(), prefetch=0)


@pytest.fixture(params=KINDS)
def saved(request):
    """A loader 23 batches into its run (inside a step), with how to make another one, and its state."""
    loader = advanced(loader_of(request.param), 23)
    loader.made = lambda: loader_of(request.param).dataset
    return request.param, loader, loader.state_dict()


# -- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_has_the_same_plain_keys_all_along_the_run(kind, num_workers):
    loader = SLWLoader(loader_of(kind).dataset, num_workers=num_workers)
    states = [loader.state_dict(), *(loader.state_dict() for _ in loader)]
    assert len(states) == 81
    for state in states:
        assert list(state) == list(states[0]) and set(KEYS) <= set(state) and type(state) is dict
        assert {type(value) for value in state.values()} <= {int, str, type(None)}
        assert {type(state[name]) for name in ("version", *COUNTERS)} == {int}
        assert {type(state[name]) for name in ("past", "source", "order", "stream")} == {str}
        assert state["dp_rank"] is None and state["dp_world_size"] is None
        assert json.loads(json.dumps(state)) == state
    assert [(state["step"], state["batch"]) for state in states] == [divmod(i, 2) for i in range(81)]
    assert [state["rows"] for state in states] == [2 * i for i in range(81)]
    if kind != "padded":
        lengths = [SCHEDULE(i // 2) for i in range(80)]
        assert [state["tokens"] for state in states] == [0, *itertools.accumulate(2 * length for length in lengths)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_the_same_on_both_ranks(kind):
    ranks = [loader_of(kind, dp_rank=rank, dp_world_size=2) for rank in (0, 1)]
    count = 0
    for _ in zip(*ranks, strict=True):
        assert ranks[0].state_dict() == ranks[1].state_dict()
        assert ranks[0].tokens_seen == ranks[0].state_dict()["tokens"]
        count += 1
    assert count == 80 and ranks[0].state_dict() == ranks[1].state_dict()


def test_the_state_does_not_grow_with_what_has_been_read():
    """A million tokens of a document are in progress, in 64 lanes: offsets are saved, no tokens."""
    big = [np.arange(1_000_000) for _ in range(3)] + [np.arange(5000)] * 80
    loaders = {
        "store": loader_of("store", source=np.arange(2_000_000)),
        "shuffled": loader_of("shuffled", source=np.arange(2_000_000), num_lanes=4096, batch_size=4096),
        "documents": loader_of("documents", source=big),
        "64 lanes": loader_of("lanes", source=big, num_lanes=64),
    }
    for name, loader in loaders.items():
        advanced(loader, 21)
        assert len(json.dumps(loader.state_dict())) < 4096, name
        times = []
        for _ in range(20):
            start = time.perf_counter()
            loader.state_dict()
            times.append(time.perf_counter() - start)
        assert min(times) < 0.002, name


# -- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(saved, key):
    _, loader, state = saved
    del state[key]
    facts = ("version", "None") if key == "version" else ("missing", key)
    assert_refused_and_unchanged(loader, state, *facts)


def test_an_unknown_key_is_named(saved):
    _, loader, state = saved
    assert_refused_and_unchanged(loader, {**state, "cursor": 3}, "unknown: cursor")
    assert_refused_and_unchanged(loader, {**state, 7: 3}, "unknown: 7")


@pytest.mark.parametrize("version", [0, 3, "2", True, 2.0, None])
def test_another_version_is_named_with_the_one_that_is_read(saved, version):
    _, loader, state = saved
    message = assert_refused_and_unchanged(loader, {**state, "version": version}, "version must be 2 or 1", repr(version))
    assert "version" in message
    assert_refused_and_unchanged(loader, {**state, "version": version}, "version", strict=False)


BAD_COUNTS = [-1, True, False, 2.0, float("nan"), "3", None, [], {}, 1 << 63, 10**30, np.int64(3)]


@pytest.mark.parametrize("field", COUNTERS)
@pytest.mark.parametrize("value", BAD_COUNTS, ids=repr)
def test_a_count_that_is_none_is_refused_by_name(saved, field, value):
    _, loader, state = saved
    assert_refused_and_unchanged(loader, {**state, field: value}, field, "[0, 2^63)", repr(value))


@pytest.mark.parametrize("field", COUNTERS)
@pytest.mark.parametrize("change", [1, -1, 2, 1000, 1 << 62])
def test_a_count_that_contradicts_the_others_is_refused(saved, field, change):
    """Another accumulation counts other batches, so there only the impossible is refused: more batches than rows."""
    kind, loader, state = saved
    value = state[field] + change
    if (
        value < 0
        or (field == "batch" and 0 < value <= 4)
        or (field == "tokens" and kind == "padded" and change != 1 << 62)
    ):
        return
    named = "rows" if field == "step" and value <= 40 else field  # a step is wrong only beside its rows
    if (field, change) == ("batch", -1):
        named = "past"  # of which the step is no part then
    assert_refused_and_unchanged(loader, {**state, field: value}, named)


def test_a_step_beyond_the_run_is_refused_with_both_numbers(saved):
    _, loader, state = saved
    assert_refused_and_unchanged(loader, {**state, "step": 41}, "total_steps=40", "41")
    if loader.state_dict()["stream"] == "":
        assert_refused_and_unchanged(loader, {"step": 41}, "total_steps=40", "41")
        assert_refused_and_unchanged(loader, {"step": -1}, "step", "-1")
        assert_refused_and_unchanged(loader, {"step": 2.0}, "step", "2.0")


@pytest.mark.parametrize("field", ["past", "source", "order"])
@pytest.mark.parametrize("value", ["", "other", None, 3, float("nan")], ids=repr)
def test_a_fingerprint_that_differs_is_refused_with_both_values(saved, field, value):
    _, loader, state = saved
    facts = f"{field}: saved {value!r}, current {state[field]!r}", "strict=False"
    assert_refused_and_unchanged(loader, {**state, field: value}, *facts)


@pytest.mark.parametrize("field", ["dp_rank", "dp_world_size"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_of_one_rank_is_refused_where_ranks_share(saved, field, strict):
    _, loader, state = saved
    facts = f"{field}: saved 1, current None", "own state"
    assert_refused_and_unchanged(loader, {**state, field: 1}, *facts, strict=strict)


FIELDS = ["epoch", "position", "first", "next", "lanes", "dealt", "delivered", "discarded"]
STREAM = dict(zip(FIELDS, (0, None, 0, 0, [], 0, 0, 0), strict=True))
WRONG_FIELDS = [{"discarded": "0"}, {"lanes": [1]}, {"first": -1}, {"next": True}, {"lanes": 3}, {"more": 0}]
WRONG_STREAMS = [json.dumps(STREAM | wrong) for wrong in WRONG_FIELDS]
WRONG_STREAMS += ["", "x", "[]", "[0]", "{}", "null", "3", None, 3, []]


@pytest.mark.parametrize("stream", WRONG_STREAMS, ids=repr)
def test_a_stream_field_that_is_none_is_refused(saved, stream):
    kind, loader, state = saved
    if kind in ("store", "shuffled") and stream == "":
        return
    message = assert_refused_and_unchanged(loader, {**state, "stream": stream}, "stream must be")
    assert repr(stream)[:20] in message


@pytest.mark.parametrize("stop", range(1, 60, 7))
def test_a_cut_off_stream_field_is_refused(stop):
    loader = advanced(loader_of("lanes"), 23)
    loader.made = lambda: loader_of("lanes").dataset
    state = loader.state_dict()
    assert len(state["stream"]) > 20
    assert_refused_and_unchanged(loader, {**state, "stream": state["stream"][:-stop]}, "stream")


@pytest.mark.parametrize("state", [None, 3, "state", [1], [("step", 1)]])
def test_what_is_no_mapping_is_refused(saved, state):
    _, loader, _ = saved
    before = loader.state_dict()
    refused(lambda: loader.load_state_dict(state), "state_dict()", type(state).__name__, error=TypeError)
    assert loader.state_dict() == before


def test_a_state_with_any_one_digit_changed_is_refused(saved):
    """A flipped bit must not become another order of tokens: every digit of every field counts."""
    kind, loader, state = saved
    text, accepted = json.dumps(state), []
    for at, letter in enumerate(text):
        if not letter.isdigit():
            continue
        changed = text[:at] + str((int(letter) + 1) % 10) + text[at + 1 :]
        try:
            other = json.loads(changed)
        except ValueError:
            continue  # a leading zero
        if other == state:
            continue
        try:
            loader.load_state_dict(other)
        except StateError:
            continue
        accepted.append([f"{k}: {other[k]} for {state[k]}" for k in KEYS if other[k] != state[k]])
        loader.load_state_dict(state)
    assert accepted == [], kind


# -- other runs -------------------------------------------------------------------------------------------------------

OTHERS = {
    "schedule": ("store", {"schedule": StagedSchedule([4, 8, 2], [3, 21])}, "past"),
    "schedule of documents": ("lanes", {"schedule": LinearSchedule(2, 8, warmup_steps=9, multiple_of=2)}, "past"),
    "batch size": ("store", {"batch_size": 3}, "past"),
    "batch size of documents": ("documents", {"batch_size": 3}, "past"),
    "tokens per batch": ("store", {"batch_size": None, "tokens_per_batch": 12}, "past"),
    "accumulation": ("store", {"grad_accum_steps": 3}, "past"),
    "ranks": ("store", {"dp_rank": 1, "dp_world_size": 3}, "past"),
    "seed": ("shuffled", {"seed": 1}, "order"),
    "shuffle": ("shuffled", {"shuffle": False}, "order"),
    "lanes": ("shuffled", {"num_lanes": 2}, "order"),
    "lanes of documents": ("lanes", {"num_lanes": 3}, "order"),
    "mode": ("padded", {"mode": "truncate"}, "order"),
    "preserve_eos": ("truncated", {"mode": "truncate", "pad_id": 0, "preserve_eos": True}, "order"),
    "a longer store": ("store", {"source": np.arange(601)}, "source"),
    "other tokens": ("store", {"source": np.arange(600)[::-1].copy()}, "source"),
    "another dtype": ("store", {"source": np.arange(600, dtype=np.uint16)}, "source"),
    "fewer documents": ("documents", {"source": DOCS[:-1]}, "source"),
    "documents for a store": ("store", {"source": DOCS}, "source"),
    "a store for documents": ("documents", {"source": np.arange(600)}, "source"),
    "vocabulary": ("store", {"vocab_size": 1000}, "source"),
    "vocabulary of documents": ("documents", {"vocab_size": 5000}, "source"),
}


@pytest.mark.parametrize("case", list(OTHERS))
def test_the_state_of_another_run_is_refused_by_name_with_both_values(case):
    kind, change, field = OTHERS[case]
    if kind == "truncated":
        kind, first = "documents", loader_of("documents", mode="truncate", pad_id=0)
    else:
        first = loader_of(kind)
    state = advanced(first, 8).state_dict()
    other = loader_of(kind, **change)
    before = other.state_dict()
    assert state[field] != before[field]
    current = other.dataset.plan.past(state["step"], state["batch"]) if field == "past" else before[field]
    facts = f"{field}: saved {state[field]!r}", f"current {current!r}", "another run", "strict=False"
    refused(lambda: other.load_state_dict(state), *facts, error=StateError)
    refused(lambda: other.dataset.load_state_dict(state), *facts, error=StateError)
    assert other.state_dict() == before and other.step == 0


def test_every_field_that_differs_is_named_at_once():
    state = advanced(loader_of("shuffled"), 8).state_dict()
    other = loader_of("shuffled", batch_size=3, seed=9, source=np.arange(500))
    refused(lambda: other.load_state_dict(state), "past: saved", "order: saved", "source: saved", error=StateError)


SAME = {
    "labels": {"labels": "shifted"},
    "extras": {"extras": ["step", "position_ids"]},
    "a longer run": {"total_steps": 90},
    "a run by tokens": {"total_steps": None, "total_tokens": 5000},
}


@pytest.mark.parametrize("case", list(SAME))
@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_change_the_tokens_may_change(kind, case):
    first = advanced(loader_of(kind), 23)
    other = loader_of(kind, **SAME[case])
    other.load_state_dict(first.state_dict())
    assert [b["input_ids"].tolist() for b in itertools.islice(other, 9)] == [
        b["input_ids"].tolist() for b in itertools.islice(first, 9)
    ]


def test_not_strict_warns_with_both_values_and_goes_on_at_the_same_token():
    first = advanced(loader_of("store"), 24)
    other = loader_of("store", source=np.arange(1000, 1600))
    with pytest.warns(UserWarning, match=r"strict=False.*source: saved .*, current "):
        other.load_state_dict(first.state_dict(), strict=False)
    assert next(iter(other))["input_ids"].tolist() == [
        [t + 1000 for t in row] for row in next(iter(first))["input_ids"].tolist()
    ]
    reseeded = loader_of("shuffled", seed=4)
    with pytest.warns(UserWarning, match="order: saved .*seed 0.*, current .*seed 4"):
        reseeded.load_state_dict(advanced(loader_of("shuffled"), 24).state_dict(), strict=False)
    assert reseeded.step == 12


@pytest.mark.parametrize("lanes", [1, 3])
def test_not_strict_with_another_number_of_lanes_is_refused_when_loading_or_goes_on(lanes):
    """A stream's state holds the document that each lane has begun: it fits no other number of lanes."""
    state = advanced(loader_of("lanes"), 24).state_dict()
    other = loader_of("lanes", num_lanes=lanes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            other.load_state_dict(state, strict=False)
        except StateError as error:
            assert "num_lanes" in str(error)
            assert other.step == 0
            return
    assert other.step == 12
    assert len(list(itertools.islice(other, 5))) == 5


def test_not_strict_says_nothing_where_nothing_differs(saved):
    _, loader, state = saved
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader.load_state_dict(state, strict=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainers_own_step_is_compared(kind):
    state = advanced(loader_of(kind), 24).state_dict()
    other = loader_of(kind)
    other.load_state_dict(state, expected_step=12)
    other.reset()
    for wrong in (11, 13, 0):
        refused(
            lambda w=wrong: other.load_state_dict(state, expected_step=w),
            "step 12",
            f"expected_step={wrong}",
            error=StateError,
        )
        assert other.step == 0


# -- who knows it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["store", "lanes"])
def test_a_dataset_that_workers_read_does_not_say_where_it_stands(kind):
    dataset = loader_of(kind).dataset
    for i, _ in enumerate(DataLoader(dataset, batch_size=None, num_workers=1)):
        if i == 4:
            break
    refused(dataset.state_dict, "workers", "loader.state_dict()", error=StateError)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", ["store", "lanes"])
def test_a_dataset_that_a_loader_reads_does_not_say_where_it_stands(kind, num_workers):
    loader = SLWLoader(loader_of(kind).dataset, num_workers=num_workers)
    advanced(loader, 3)
    refused(loader.dataset.state_dict, "SLWLoader", "loader.state_dict()", error=StateError)
    assert loader.state_dict()["batch"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_read_directly_says_where_it_stands(kind):
    dataset, loader = loader_of(kind).dataset, loader_of(kind)
    for batch, other in itertools.islice(zip(dataset, loader, strict=True), 23):
        assert torch.equal(batch["input_ids"], other["input_ids"])
        assert dataset.state_dict() == loader.state_dict()
    again = loader_of(kind).dataset
    again.load_state_dict(dataset.state_dict())
    assert next(iter(again))["input_ids"].tolist() == next(iter(loader))["input_ids"].tolist()


def test_the_state_of_one_worker_is_refused_elsewhere():
    dataset = loader_of("store").dataset
    state = {**dataset.state_dict(), "worker_phase": 1}
    refused(lambda: dataset.load_state_dict(state), "worker_phase=1", "StatefulDataLoader", error=StateError)
    refused(lambda: loader_of("store").load_state_dict(state), "worker_phase", error=StateError)


def test_a_source_that_cannot_be_read_again_exactly_says_so_and_is_read_all_the_same():
    import datasets

    rows = datasets.Dataset.from_dict({"input_ids": DOCS}).to_iterable_dataset().shuffle(seed=1, buffer_size=10)
    with pytest.warns(UserWarning, match="cannot be resumed exactly.*buffer of 10 rows"):
        loader = SLWLoader(SLWDataset(rows, ConstantSchedule(4), batch_size=2), prefetch=0)
    advanced(loader, 3)
    refused(loader.state_dict, "cannot be resumed exactly", "10 rows", "store", error=StateError)
    state = loader_of("documents").state_dict()
    refused(lambda: loader.load_state_dict(state), "cannot be resumed exactly", error=StateError)
    assert loader.metrics()["slw/tokens_seen"] == 24


@pytest.mark.parametrize("saved_steps", range(15, 50))
def test_a_run_that_has_ended_goes_on_in_a_longer_one_whatever_pass_its_next_row_is_of(saved_steps):
    """At the end of a run nobody asks for the next row, and the epoch is counted by tokens; a longer run asks its lane."""

    def loader(steps):
        options = {"batch_size": 1, "total_steps": steps, "shuffle": True}
        return SLWLoader(SLWDataset(np.arange(1000), ConstantSchedule(48), **options))

    done = loader(saved_steps)
    list(done)
    longer, whole = loader(60), [batch["input_ids"].tolist() for batch in loader(60)]
    longer.load_state_dict(done.state_dict())
    assert [batch["input_ids"].tolist() for batch in longer] == whole[saved_steps:]


def test_lengths_may_change_where_that_moves_the_end_of_an_epoch():
    def loader(schedule):
        return SLWLoader(SLWDataset(np.arange(64), schedule, batch_size=1, epochs=2, shuffle=True))

    before = loader(ConstantSchedule(8))
    before.seek(7)
    after = loader(StagedSchedule([8, 64], [7]))
    after.load_state_dict(before.state_dict())
    assert after.step == 7 and next(iter(after))["input_ids"].shape == (1, 64)


@pytest.mark.parametrize("field", KEYS)
def test_an_int_of_thousands_of_digits_is_refused_in_words(saved, field):
    _, loader, state = saved
    assert_refused_and_unchanged(loader, {**state, field: 10**5000}, "16610 bits")


def test_a_cursor_that_is_nested_without_end_is_refused_in_words():
    for kind in ("lanes", "padded", "documents"):
        loader = advanced(loader_of(kind), 3)
        loader.made = lambda kind=kind: loader_of(kind).dataset
        assert_refused_and_unchanged(loader, {**loader.state_dict(), "stream": "[" * 100_000}, "stream must be")
