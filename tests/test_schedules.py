"""Schedules: golden tables by hand, the formulas in exact arithmetic, every refusal."""

import itertools
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import naive_lengths
from refusals import refused
from strategies import KINDS, WARMUPS, Table, cyclic, degrees, staged, values, warmups

from slw_data.plan import SequenceLengthPlan
from slw_data.plan import schedules as module
from slw_data.plan.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    DoublingSchedule,
    ExponentialSchedule,
    LinearSchedule,
    RootSchedule,
    SineSchedule,
    StagedSchedule,
)

FAR = 10**18


def table(schedule: Callable[[int], int], steps) -> dict[int, int]:
    return {step: schedule(step) for step in steps}


def kind_of(schedule) -> str:
    return next(kind for kind, cls in KINDS.items() if type(schedule) is cls)


# -- golden tables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ConstantSchedule(1024), {0: 1024, 1: 1024, FAR: 1024}),
        (ConstantSchedule(1), {0: 1, FAR: 1}),
        # 8 + 16 p with T = 10: rungs 8, 16, 24 are met at t = 0, 5, 10
        (LinearSchedule(8, 24, warmup_steps=10), {0: 8, 4: 8, 5: 16, 9: 16, 10: 24, 11: 24, FAR: 24}),
        # T = 3 does not divide: 16 at t >= 1.5
        (LinearSchedule(8, 24, warmup_steps=3), {0: 8, 1: 8, 2: 16, 3: 24, FAR: 24}),
        (LinearSchedule(1, 4, warmup_steps=3, multiple_of=1), {0: 1, 1: 2, 2: 3, 3: 4, FAR: 4}),
        # 64 + 960 p^(1/2), T = 1000: 88 at p = (24/960)^2 = 1/1600, 544 at p = 1/4
        (
            RootSchedule(64, 1024, warmup_steps=1000),
            {0: 64, 1: 88, 249: 536, 250: 544, 999: 1016, 1000: 1024, FAR: 1024},
        ),
        # degree 3: 8 + 64 p^(1/3), T = 512: rung 8 + 8k at t = k^3
        (
            RootSchedule(8, 72, warmup_steps=512, degree=3),
            {0: 8, 1: 16, 7: 16, 8: 24, 26: 24, 27: 32, 63: 32, 64: 40, 342: 56, 343: 64, 511: 64, 512: 72, FAR: 72},
        ),
        # degree 1/2: 8 + 64 p^2, T = 8: rung 8 + k^2
        (
            RootSchedule(8, 72, warmup_steps=8, degree=0.5, multiple_of=1),
            {0: 8, 1: 9, 2: 12, 3: 17, 4: 24, 5: 33, 6: 44, 7: 57, 8: 72, FAR: 72},
        ),
        # 8 + 1016 sin(pi p / 2), T = 900: sin 30 deg = 1/2 at t = 300
        (
            SineSchedule(8, 1024, warmup_steps=900),
            {0: 8, 299: 512, 300: 512, 301: 512, 899: 1016, 900: 1024, FAR: 1024},
        ),
        (SineSchedule(8, 24, warmup_steps=3), {0: 8, 1: 16, 2: 16, 3: 24}),  # 8 + 16 sin 30 deg = 16 exactly
        # 8 + 16 (1 - cos(pi p)) / 2, T = 6: quarter way (12) at t = 2, half way (16) at 3, three quarters (20) at 4
        (
            CosineSchedule(8, 24, warmup_steps=6, multiple_of=4),
            {0: 8, 1: 8, 2: 12, 3: 16, 4: 20, 5: 20, 6: 24, FAR: 24},
        ),
        # 8 128^p, T = 7: doubles every step
        (ExponentialSchedule(8, 1024, warmup_steps=7), {t: 8 << t for t in range(8)} | {FAR: 1024}),
        # 3 27^p, T = 6: 3 sqrt(3)^t, odd powers 5.19.., 15.58.., 46.76..
        (
            ExponentialSchedule(3, 81, warmup_steps=6, multiple_of=1),
            {0: 3, 1: 5, 2: 9, 3: 15, 4: 27, 5: 46, 6: 81, FAR: 81},
        ),
        # linear value 8 + t: 16 at 8, 32 at 24
        (
            DoublingSchedule(8, 64, warmup_steps=56),
            {0: 8, 7: 8, 8: 16, 23: 16, 24: 32, 55: 32, 56: 64, 57: 64, FAR: 64},
        ),
        # max is no doubling of min: 12, 24, 48, then 60
        (
            DoublingSchedule(12, 60, warmup_steps=48, multiple_of=12),
            {0: 12, 11: 12, 12: 24, 35: 24, 36: 48, 47: 48, 48: 60, FAR: 60},
        ),
        (
            StagedSchedule([256, 512, 2048, 64], [100, 200, 201]),
            {0: 256, 99: 256, 100: 512, 199: 512, 200: 2048, 201: 64, FAR: 64},
        ),
        (StagedSchedule([7], []), {0: 7, FAR: 7}),
        (
            CyclicSchedule(LinearSchedule(8, 24, warmup_steps=2), 2),
            {0: 8, 1: 16, 2: 8, 3: 16, 4: 24, 5: 24, FAR: 24},
        ),
        (
            CyclicSchedule(ExponentialSchedule(4, 32, warmup_steps=3, multiple_of=4), 3),
            {0: 4, 1: 8, 2: 16, 3: 4, 4: 8, 5: 16, 6: 4, 7: 8, 8: 16, 9: 32, 10: 32, FAR: 32},
        ),
    ],
    ids=repr,
)
def test_each_class_at_its_boundary_steps_and_past_the_end(schedule, expected):
    assert table(schedule, expected) == expected


# The formula of Li et al., floored to a multiple of 8, as numbers.
@pytest.mark.parametrize(
    ("low", "high", "duration", "expected"),
    [
        (
            8,
            1024,
            20_000,
            {0: 8, 1: 8, 157: 8, 158: 16, 1000: 56, 10_000: 512, 19_999: 1016, 20_000: 1024, 50_000: 1024},
        ),
        (64, 1024, 45_000, {0: 64, 374: 64, 375: 72, 22_500: 544, 45_000: 1024}),
        (
            8,
            1024,
            15_000,
            {
                **{0: 8, 1: 8, 2: 8, 117: 8, 118: 8, 119: 16, 236: 16, 237: 24, 1000: 72, 7500: 512},
                **{14_999: 1016, 15_000: 1024, 15_001: 1024, 20_000: 1024},
            },
        ),
        (64, 1024, 45_000, {376: 72, 750: 80, 3000: 128, 22_500: 544, 44_999: 1016}),
    ],
)
def test_the_linear_schedule_of_the_paper_gives_the_published_numbers(low, high, duration, expected):
    schedule = LinearSchedule(low, high, warmup_steps=duration)
    assert table(schedule, expected) == expected


def test_a_linear_schedule_gives_the_ground_truth_of_a_peers_unit_test():
    schedule = LinearSchedule(2, 10, warmup_steps=8, multiple_of=2)
    assert [schedule(step) for step in range(11)] == [2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 10]


# -- the formulas, exactly --------------------------------------------------------------------------------------------


@given(warmups(), st.data())
def test_a_warmup_is_its_formula_rounded_down(schedule, data):
    if schedule.max_distinct is not None:
        schedule = type(schedule)(**{**vars(schedule), "max_distinct": None})
    kind, degree = kind_of(schedule), getattr(schedule, "degree", 2)
    for step in range(schedule.warmup_steps + 2):
        allowed = naive_lengths(
            kind, schedule.min_length, schedule.max_length, step, schedule.warmup_steps, schedule.multiple_of, degree
        )
        assert schedule(step) in allowed, f"step {step}: {allowed}"


@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 16),
    st.integers(1, 512),
    st.integers(1, 10**12),
    st.floats(0, 1, exclude_max=True),
    degrees,
)
def test_a_long_warmup_is_its_formula_too(kind, low, climbs, duration, where, degree):
    low, high, step = 8 * low, 8 * (low + climbs), int(where * duration)
    extra = {"degree": degree} if kind == "root" else {}
    schedule = KINDS[kind](low, high, warmup_steps=duration, **extra)
    assert schedule(step) in naive_lengths(kind, low, high, step, duration, 8, degree)


@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 8),
    st.integers(1, 64),
    st.integers(1, 6),
    st.integers(1, 10**9),
)
def test_a_rung_that_is_met_exactly_begins_at_that_step(kind, low, climbs, part, unit):
    """Where the formula gives a rung at a whole step, the rung holds from it on, and not a step before."""
    low, high, duration = 8 * low, 8 * (low + climbs), 12 * unit
    exact = {  # step -> value in closed form
        "linear": lambda: (duration // 2, low + (high - low) // 2),
        "root": lambda: (duration // 4, low + (high - low) // 2),
        "sine": lambda: (duration // 3, low + (high - low) // 2),
        "cosine": lambda: (duration // 3, low + (high - low) // 4),
    }
    if kind not in exact:
        return
    step, value = exact[kind]()
    share = {"cosine": 4}.get(kind, 2)
    if (high - low) % share:
        return
    schedule = KINDS[kind](low, high, warmup_steps=duration, multiple_of=1)
    assert schedule(step) == value
    assert schedule(step - 1) < value


@given(values())
def test_schedules_keep_their_promises_at_every_step(schedule):
    changes = {start for start, _ in schedule.changes()[1]}
    for step in range(70):
        length = schedule(step)
        assert type(length) is int and length >= 1
        assert step in changes or step == 0 or length == schedule(step - 1), "changes only where changes() says"
        assert length <= schedule.max_length


@given(warmups())
def test_a_warmup_climbs_from_min_to_max_in_multiples(schedule):
    lengths = [schedule(step) for step in range(schedule.warmup_steps + 3)]
    assert lengths == sorted(lengths)
    assert all(length % schedule.multiple_of == 0 for length in lengths)
    assert lengths[0] == (schedule.min_length if schedule.warmup_steps else schedule.max_length)
    assert lengths[schedule.warmup_steps :] == [schedule.max_length] * 3
    assert schedule(FAR) == schedule.max_length


@given(values(), st.integers(0, 80))
def test_a_call_agrees_with_the_list_of_changes(schedule, step):
    unit, changes = schedule.changes()
    assert unit == "steps" and changes[0][0] == 0
    assert [start for start, _ in changes] == sorted({start for start, _ in changes})
    assert schedule(step) == [length for start, length in changes if start <= step][-1]


@given(cyclic())
def test_a_cycle_is_its_warmup_again_and_again(schedule):
    inner, expected = schedule.schedule, []
    for _ in range(schedule.num_cycles):
        expected += [inner(step) for step in range(inner.warmup_steps)]
    expected += [inner.max_length] * 3
    assert [schedule(step) for step in range(len(expected))] == expected


@given(staged(), st.integers(0, 60))
def test_a_staged_schedule_is_its_table(schedule, step):
    length = schedule.lengths[0]
    for boundary, later in zip(schedule.boundaries, schedule.lengths[1:], strict=True):
        if step >= boundary:
            length = later
    assert schedule(step) == length


# -- max_distinct -----------------------------------------------------------------------------------------------------


def test_max_distinct_keeps_the_first_and_last_and_spreads_the_rest():
    schedule = LinearSchedule(8, 1024, warmup_steps=10_000, max_distinct=5)
    lengths = sorted({schedule(step) for step in range(10_001)})
    # 127 rungs of 8 in four parts: 31.75, 63.5 and 95.25 rungs above the first, to the nearest
    assert lengths == [8, 264, 520, 768, 1024]
    # a rung of the thinned ladder is met when the line meets it: 264 at 10000 * 256 / 1016 = 2519.7
    assert [schedule(step) for step in (2519, 2520, 5039, 5040, 9999, 10_000)] == [8, 264, 264, 520, 768, 1024]


def test_max_distinct_thins_a_doubling_ladder_to_doublings():
    schedule = DoublingSchedule(8, 1024, warmup_steps=10_000, max_distinct=4)
    # 7 doublings below the last in three parts: 2.33 and 4.67 doublings above the first, to the nearest
    assert sorted({schedule(step) for step in range(10_001)}) == [8, 32, 256, 1024]


@given(st.sampled_from(WARMUPS), st.integers(1, 9), st.integers(1, 60), st.integers(2, 20))
def test_max_distinct_bounds_the_lengths_and_spreads_them_evenly(cls, low, climbs, most):
    full = cls(low, low + climbs, warmup_steps=10**9, multiple_of=1)
    thin = cls(low, low + climbs, warmup_steps=10**9, multiple_of=1, max_distinct=most)
    ladder, kept = ([length for _, length in s.changes()[1]] for s in (full, thin))
    assert len(kept) == min(most, len(ladder))
    assert kept[0] == ladder[0] and kept[-1] == ladder[-1]
    places = [ladder.index(length) for length in kept]
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert max(gaps) - min(gaps) <= 1
    begins = {length: start for start, length in full.changes()[1]}
    assert all(begins[length] == start for start, length in thin.changes()[1]), "a kept rung begins when it always did"


# -- degenerate and legal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", WARMUPS)
def test_no_warmup_is_the_maximum_from_the_first_step(cls):
    assert [cls(8, 64, warmup_steps=0)(step) for step in (0, 1, FAR)] == [64, 64, 64]


@pytest.mark.parametrize("cls", WARMUPS)
def test_equal_bounds_are_constant(cls):
    schedule = cls(64, 64, warmup_steps=10)
    assert [schedule(step) for step in (0, 5, 9, 10, FAR)] == [64] * 5
    assert schedule.changes() == ("steps", [(0, 64)])
    assert cls(64, 64, warmup_steps=10, max_distinct=1)(3) == 64


@pytest.mark.parametrize("cls", WARMUPS)
@pytest.mark.parametrize("duration", [1, 2, 3])
def test_a_warmup_shorter_than_its_ladder_skips_rungs(cls, duration):
    schedule = cls(8, 1024, warmup_steps=duration)
    lengths = [schedule(step) for step in range(duration + 1)]
    assert lengths[0] == 8 and lengths[-1] == 1024 and lengths[duration - 1] < 1024
    assert lengths == sorted(lengths)


def test_a_float_degree_that_is_whole_equals_the_int_degree():
    whole, real = (RootSchedule(64, 1024, warmup_steps=1000, degree=degree) for degree in (2, 2.0))
    assert whole == real
    assert [whole(step) for step in range(1001)] == [real(step) for step in range(1001)]


def test_degree_one_is_linear():
    root, line = RootSchedule(8, 1024, warmup_steps=777, degree=1), LinearSchedule(8, 1024, warmup_steps=777)
    assert [root(step) for step in range(779)] == [line(step) for step in range(779)]


def test_a_cycle_without_a_warmup_or_a_climb_is_constant():
    assert CyclicSchedule(LinearSchedule(8, 64, warmup_steps=0), 3)(0) == 64
    assert CyclicSchedule(LinearSchedule(64, 64, warmup_steps=5), 3).changes() == ("steps", [(0, 64)])


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_integers_of_numpy_and_torch_are_taken_as_plain_ints(kind):
    schedule = LinearSchedule(kind(8), kind(64), warmup_steps=kind(56), multiple_of=kind(8), max_distinct=kind(3))
    plain = LinearSchedule(8, 64, warmup_steps=56, multiple_of=8, max_distinct=3)
    assert schedule == plain and repr(schedule) == repr(plain) and hash(schedule) == hash(plain)
    assert schedule(kind(56)) == 64 and type(schedule(kind(56))) is int
    assert repr(ConstantSchedule(kind(8))) == "ConstantSchedule(length=8)"
    assert StagedSchedule([kind(8), kind(9)], [kind(3)]) == StagedSchedule((8, 9), (3,))
    assert repr(StagedSchedule([kind(8), kind(9)], [kind(3)])) == "StagedSchedule(lengths=(8, 9), boundaries=(3,))"


@pytest.mark.parametrize("kind", [np.int64, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_the_number_of_cycles_becomes_a_plain_int(kind):
    inner = LinearSchedule(8, 24, warmup_steps=2)
    schedule = CyclicSchedule(inner, kind(2))
    assert type(schedule.num_cycles) is int and repr(schedule) == repr(CyclicSchedule(inner, 2))
    assert hash(schedule) == hash(CyclicSchedule(inner, 2))


def test_floats_of_numpy_become_plain_floats():
    schedule = RootSchedule(8, 64, warmup_fraction=np.float64(0.5), degree=np.float64(1.5))
    assert repr(schedule) == repr(RootSchedule(8, 64, warmup_fraction=0.5, degree=1.5))


# -- values -----------------------------------------------------------------------------------------------------------

ANY_UNIT = values(("warmup_steps", "warmup_tokens", "warmup_fraction"))


@given(ANY_UNIT)
def test_a_repr_can_be_pasted_back(schedule):
    again = eval(repr(schedule), dict(vars(module)))
    assert again == schedule and type(again) is type(schedule) and hash(again) == hash(schedule)
    assert repr(again) == repr(schedule)


@given(ANY_UNIT)
def test_a_pickled_schedule_is_equal(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule and repr(again) == repr(schedule) and hash(again) == hash(schedule)


def test_a_repr_names_only_what_differs_from_the_defaults():
    plain = "LinearSchedule(min_length=8, max_length=64, warmup_steps=10)"
    assert repr(LinearSchedule(8, 64, warmup_steps=10)) == plain
    schedule = RootSchedule(8, 64, warmup_tokens=10**9, degree=3, multiple_of=4, max_distinct=5)
    assert repr(schedule) == (
        "RootSchedule(min_length=8, max_length=64, warmup_tokens=1000000000, multiple_of=4, max_distinct=5, degree=3)"
    )
    assert repr(CyclicSchedule(LinearSchedule(8, 64, warmup_fraction=0.1), 3)) == (
        "CyclicSchedule(schedule=LinearSchedule(min_length=8, max_length=64, warmup_fraction=0.1), num_cycles=3)"
    )


def test_schedules_that_differ_in_anything_are_unequal():
    some = [
        LinearSchedule(8, 64, warmup_steps=10),
        LinearSchedule(8, 64, warmup_tokens=10),
        LinearSchedule(8, 64, warmup_steps=11),
        LinearSchedule(16, 64, warmup_steps=10),
        LinearSchedule(8, 72, warmup_steps=10),
        LinearSchedule(8, 64, warmup_steps=10, multiple_of=4),
        LinearSchedule(8, 64, warmup_steps=10, max_distinct=2),
        DoublingSchedule(8, 64, warmup_steps=10),
        RootSchedule(8, 64, warmup_steps=10),
        RootSchedule(8, 64, warmup_steps=10, degree=3),
        CyclicSchedule(LinearSchedule(8, 64, warmup_steps=10), 1),
        ConstantSchedule(8),
        StagedSchedule([8], []),
        StagedSchedule([8, 9], [1]),
    ]
    assert len(set(some)) == len(some)
    assert StagedSchedule([8, 9], [1]) == StagedSchedule((8, 9), np.array([1]))


def test_schedules_are_frozen():
    with pytest.raises(FrozenInstanceError):
        ConstantSchedule(8).length = 9  # type: ignore[misc]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", WARMUPS)
@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ((12, 1024), ("min_length", "multiple_of=8", "12", "8 or 16")),
        ((8, 1004), ("max_length", "multiple_of=8", "1004", "1000 or 1008")),
        ((4, 1024), ("min_length", "multiple_of=8", "4", "write 8")),
        ((1024, 64), ("1024 > 64", "StagedSchedule")),
        ((0, 64), ("min_length", ">= 1", "got 0")),
        ((-8, 64), ("min_length", ">= 1", "got -8")),
        ((8, -64), ("max_length", ">= 1", "got -64")),
        ((8.0, 64), ("min_length", "8.0", "float")),
        ((8, 64.5), ("max_length", "64.5", "float")),
        ((True, 64), ("min_length", "True", "bool")),
        (("8", 64), ("min_length", "'8'", "str")),
        ((8, None), ("max_length", "None")),
        ((np.bool_(True), 64), ("min_length", "True", "bool")),
        ((torch.tensor(True), 64), ("min_length", "True", "Tensor")),
        ((torch.tensor(8.0), 64), ("min_length", "8.", "Tensor")),
        ((float("nan"), 64), ("min_length", "nan", "float")),
    ],
)
def test_impossible_bounds_are_refused(cls, arguments, facts):
    refused(lambda: cls(*arguments, warmup_steps=10), *facts)


def test_a_length_below_the_multiple_is_never_rounded_to_nothing():
    message = refused(lambda: LinearSchedule(64, 1024, warmup_steps=2000, multiple_of=128), "64", "write 128")
    assert "0 or" not in message


@pytest.mark.parametrize("cls", WARMUPS)
@pytest.mark.parametrize(
    ("warmup", "facts"),
    [
        ({}, ("exactly one", "warmup_steps", "warmup_fraction", "warmup_tokens", "none")),
        ({"warmup_steps": 3, "warmup_tokens": 4}, ("exactly one", "warmup_steps=3", "warmup_tokens=4")),
        ({"warmup_steps": 0, "warmup_fraction": 0.0}, ("exactly one", "warmup_steps=0", "warmup_fraction=0.0")),
        ({"warmup_steps": -1}, ("warmup_steps", ">= 0", "got -1")),
        ({"warmup_steps": 10.0}, ("warmup_steps", "10.0", "float")),
        ({"warmup_steps": True}, ("warmup_steps", "True", "bool")),
        ({"warmup_steps": float("nan")}, ("warmup_steps", "nan")),
        ({"warmup_tokens": -5}, ("warmup_tokens", ">= 0", "got -5")),
        ({"warmup_tokens": 1e9}, ("warmup_tokens", "1000000000.0", "float")),
        ({"warmup_tokens": "9"}, ("warmup_tokens", "'9'")),
        ({"warmup_fraction": 1.1}, ("warmup_fraction", "[0, 1]", "1.1")),
        ({"warmup_fraction": -0.1}, ("warmup_fraction", "[0, 1]", "-0.1")),
        ({"warmup_fraction": float("nan")}, ("warmup_fraction", "nan")),
        ({"warmup_fraction": True}, ("warmup_fraction", "True")),
        ({"warmup_fraction": "0.1"}, ("warmup_fraction", "'0.1'")),
        ({"warmup_steps": 9, "multiple_of": 0}, ("multiple_of", ">= 1", "got 0")),
        ({"warmup_steps": 9, "multiple_of": 2.0}, ("multiple_of", "2.0")),
        ({"warmup_steps": 9, "multiple_of": True}, ("multiple_of", "True")),
        ({"warmup_steps": 9, "max_distinct": 1}, ("max_distinct", ">= 2", "got 1")),
        ({"warmup_steps": 9, "max_distinct": 0}, ("max_distinct", "got 0")),
        ({"warmup_steps": 9, "max_distinct": 2.5}, ("max_distinct", "2.5")),
    ],
    ids=str,
)
def test_impossible_warmups_are_refused(cls, warmup, facts):
    refused(lambda: cls(8, 64, **warmup), *facts)


@pytest.mark.parametrize("degree", [0, -1, float("nan"), float("inf"), True, "2", None])
def test_a_degree_that_is_no_positive_number_is_refused(degree):
    refused(lambda: RootSchedule(8, 64, warmup_steps=9, degree=degree), "degree", "positive", repr(degree))


@pytest.mark.parametrize(
    ("lengths", "boundaries", "facts"),
    [
        ([8, 16, 24], [20, 10], ("boundaries[1]", "10", "20")),
        ([8, 16, 24], [10, 10], ("boundaries[1]", "10")),
        ([8, 16, 24, 32], [10, 20, 15], ("boundaries[2]", "15", "20")),
        ([], [], ("0 lengths", "at least one")),
        ([8, 16], [], ("2 lengths", "1 boundar", "got 0")),
        ([8], [5], ("1 lengths", "0 boundar", "got 1")),
        ([8, 16], [0], ("boundaries[0]", ">= 1", "got 0")),
        ([8, 16], [-3], ("boundaries[0]", "-3")),
        ([8, 16], [2.0], ("boundaries[0]", "2.0")),
        ([8, 16], [True], ("boundaries[0]", "True")),
        ([8, 0], [3], ("lengths[1]", ">= 1", "got 0")),
        ([-8, 8], [3], ("lengths[0]", "-8")),
        ([8, 2.5], [3], ("lengths[1]", "2.5")),
        ([8, True], [3], ("lengths[1]", "True")),
        ([8, None], [3], ("lengths[1]", "None")),
        ([8, "8"], [3], ("lengths[1]", "'8'")),
        ([8, float("nan")], [3], ("lengths[1]", "nan")),
    ],
    ids=str,
)
def test_an_impossible_table_is_refused_with_the_index(lengths, boundaries, facts):
    refused(lambda: StagedSchedule(lengths, boundaries), *facts)


@pytest.mark.parametrize("length", [0, -8, True, 2.5, "8", None, float("nan"), 2.0])
def test_an_impossible_constant_is_refused(length):
    refused(lambda: ConstantSchedule(length), "length", repr(length))


def test_only_warmups_can_be_cycled():
    refused(lambda: CyclicSchedule(StagedSchedule([8, 16], [3]), 2), "StagedSchedule(lengths=(8, 16), boundaries=(3,))")
    refused(lambda: CyclicSchedule(Table((8,)), 2), "Table(")
    refused(lambda: CyclicSchedule(LinearSchedule(8, 16, warmup_steps=3), 0), "num_cycles", "0")
    refused(lambda: CyclicSchedule(LinearSchedule(8, 16, warmup_steps=3), 1.0), "num_cycles", "1.0")


@pytest.mark.parametrize("step", [-1, 2.0, True, None, "3", float("nan")])
@pytest.mark.parametrize(
    "schedule",
    [
        ConstantSchedule(8),
        StagedSchedule([8, 16], [3]),
        LinearSchedule(8, 16, warmup_steps=3),
        CyclicSchedule(LinearSchedule(8, 16, warmup_steps=3), 2),
    ],
    ids=repr,
)
def test_a_step_that_is_no_step_is_refused(schedule, step):
    refused(lambda: schedule(step), "step", ">= 0", repr(step))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: CyclicSchedule(s, 2)])
def test_a_schedule_of_tokens_or_of_a_fraction_says_what_it_needs(wrap):
    refused(lambda: wrap(LinearSchedule(8, 64, warmup_tokens=1000))(5), "tokens", "step 5", "SequenceLengthPlan")
    facts = ("warmup_fraction=0.25", "total_steps", "total_tokens", "warmup_steps")
    refused(lambda: wrap(LinearSchedule(8, 64, warmup_fraction=0.25))(5), *facts)
    refused(lambda: SequenceLengthPlan(wrap(LinearSchedule(8, 64, warmup_fraction=0.25)), batch_size=1), *facts)


@pytest.mark.parametrize("options", [{"warmup_steps": 0}, {"warmup_fraction": 0}, {"warmup_tokens": 0}], ids=repr)
def test_cycles_of_an_empty_warmup_are_constant_however_many_there_are(options):
    schedule = CyclicSchedule(LinearSchedule(8, 1024, **options), 10**12)
    assert schedule.changes(100)[1] == [(0, 1024)]
    assert CyclicSchedule(LinearSchedule(8, 8, warmup_steps=5), 10**12).changes()[1] == [(0, 8)]
