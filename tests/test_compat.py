"""Other libraries' schedules: their own published values, their formulas stepped through naively, every refusal.

The values of ``golden/schedules.json`` were obtained by running those libraries. The naive engines below keep their
state and go step by step, as the originals do; nothing of ``slw_data.compat`` is in them.
"""

import json
import math
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from refusals import refused

from slw_data import (
    ConstantSchedule,
    LinearSchedule,
    SequenceLengthPlan,
    StagedSchedule,
    from_composer,
    from_deepspeed,
    from_olmo_core,
    from_skyladder,
)

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("schedules.json").read_text())


def golden(library, key):
    cases = [case for case in GOLDEN[library] if key in case]
    assert cases
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def compare(schedule, lengths, first_step=0):
    """``lengths`` maps the library's step, counted from ``first_step``, to its length."""
    expected = {int(step): length for step, length in lengths.items() if int(step) >= first_step}
    assert expected and {step: schedule(step - first_step) for step in expected} == expected


def compare_each(schedule, lengths):
    lengths = list(lengths)
    assert [schedule(step) for step in range(len(lengths))] == lengths
    changes = [step for step in range(1, len(lengths)) if lengths[step] != lengths[step - 1]]
    assert [start for start in schedule.boundaries if start < len(lengths)] == changes  # no stage is empty


# -- the libraries' engines, naively ----------------------------------------------------------------------------------


def composer(steps, total_steps, duration=0.3, min_seq_length=8, max_seq_length=1024, step_size=8):
    for batch in range(steps):
        num_warmup = int(total_steps * duration)
        num_updates = (max_seq_length - min_seq_length) // step_size
        every = num_warmup // num_updates
        yield min(max(step_size * (batch // every) + min_seq_length, min_seq_length), max_seq_length)


def deepspeed(steps, config):
    low, high, details = config["min_difficulty"], config["max_difficulty"], config["schedule_config"]

    def difficulty(global_step):
        if config["schedule_type"] == "fixed_discrete":
            for length, last in zip(details["difficulty"], details["max_step"], strict=False):
                if global_step <= last:
                    return length
            return details["difficulty"][-1]
        degree = details["root_degree"] if config["schedule_type"] == "fixed_root" else 1
        share = (float(global_step) / details["total_curriculum_step"]) ** (1.0 / degree)
        value = math.floor(share * (high - low) + low)
        return min(value - value % details["difficulty_step"], high)

    current = low
    for step in range(steps):
        if current < high:
            current = difficulty(step + 1)
        yield current


def olmo_core(steps, low, high, warmup, truncate=False, multiple=128):
    for global_step in range(1, steps + 1):
        length = high
        if global_step <= warmup:
            value = low + (high - low) * min(global_step, warmup) / warmup
            length = int(multiple * (value // multiple)) if truncate else low * 2 ** math.floor(math.log(value // low, 2))
        yield length


def curriculum(low, high, total, multiple, degree=None):
    details = {"total_curriculum_step": total, "difficulty_step": multiple}
    if degree is not None:
        details["root_degree"] = degree
    kind = "fixed_linear" if degree is None else "fixed_root"
    return {"min_difficulty": low, "max_difficulty": high, "schedule_type": kind, "schedule_config": details}


def table(lengths, ends, low=None, high=None):
    bounds = {"min_difficulty": low or lengths[0], "max_difficulty": high or lengths[-1]}
    details = {"difficulty": lengths, "max_step": ends}
    return {**bounds, "schedule_type": "fixed_discrete", "schedule_config": details}


def without(config, key):
    inner = {name: value for name, value in config["schedule_config"].items() if name != key}
    return {name: inner if name == "schedule_config" else value for name, value in config.items() if name != key}


# -- Composer ---------------------------------------------------------------------------------------------------------


@golden("composer", "lengths")
def test_composer_golden_lengths(case):
    compare(from_composer(**case["arguments"]), case["lengths"])


@golden("composer", "error")
def test_what_fails_in_composer_is_refused(case):
    arguments = case["arguments"]
    facts = {
        "ZeroDivisionError": ("divides by zero", f"total_steps={arguments['total_steps']}", "write LinearSchedule("),
        "NotImplementedError": ("total_steps", "'1000000000tok'"),
        "RuntimeError": ("total_steps", "'1ep'"),
        "ValueError": ("duration", "[0, 1]") if "duration" in arguments else ("max_seq_length", "min_seq_length=16"),
    }
    refused(lambda: from_composer(**arguments), *facts[case["error"]])


@pytest.mark.parametrize("case", [c for c in GOLDEN["composer"] if "lengths" in c], ids=lambda case: case["name"])
def test_composer_at_every_step(case):
    arguments = case["arguments"]
    steps = arguments["total_steps"] + 50
    compare_each(from_composer(**arguments), composer(steps, **arguments))


@given(
    total=st.integers(1, 400),
    duration=st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]), st.floats(0, 1)),
    low=st.integers(1, 40),
    more=st.integers(0, 60),
    increment=st.integers(1, 20),
)
@example(total=1000, duration=0.29, low=8, more=80, increment=8)  # 1000 * 0.29 is 290, 100 * 0.29 is 28.999...
@example(total=100, duration=0.29, low=8, more=8, increment=8)
def test_composer_is_met_or_its_crash_refused(total, duration, low, more, increment):
    arguments = {"total_steps": total, "duration": duration, "min_seq_length": low, "max_seq_length": low + more}
    arguments["step_size"] = increment
    try:
        lengths = list(composer(2 * total + 50, **arguments))
    except ZeroDivisionError:
        refused(lambda: from_composer(**arguments), "divides by zero", f"{int(total * duration)} warmup steps")
    else:
        compare_each(from_composer(**arguments), lengths)


@pytest.mark.parametrize("name", ["total_steps", "min_seq_length", "max_seq_length", "step_size"])
@pytest.mark.parametrize("value", [0, -8, True, 8.0, "8", None, float("nan")], ids=repr)
def test_composer_arguments_must_be_positive_ints(name, value):
    arguments = {"total_steps": 10_000, name: value}
    refused(lambda: from_composer(**arguments), f"{name} must be an integer >= 1", repr(value))


@pytest.mark.parametrize("value", [-0.1, 1.1, True, "0.3", None, float("nan"), float("inf")], ids=repr)
def test_a_composer_duration_is_a_fraction(value):
    refused(lambda: from_composer(total_steps=1000, duration=value), "duration", "[0, 1]", repr(value))


def test_a_composer_maximum_below_the_minimum_names_both():
    arguments = {"total_steps": 100, "min_seq_length": 16, "max_seq_length": 8}
    message = refused(lambda: from_composer(**arguments), "max_seq_length", "min_seq_length=16", "got 8")
    assert eval(message.partition("write ")[2]) == StagedSchedule([16, 8], [30])


# -- DeepSpeed --------------------------------------------------------------------------------------------------------


@golden("deepspeed", "lengths")
def test_deepspeed_golden_lengths(case):
    compare(from_deepspeed(case["config"]), case["lengths"])


@golden("deepspeed", "lengths_by_step_from_1")
def test_deepspeed_golden_lengths_of_steps_from_1(case):
    compare(from_deepspeed(case["config"]), case["lengths_by_step_from_1"], first_step=1)


@golden("deepspeed", "error")
def test_what_fails_in_deepspeed_is_refused(case):
    facts = {
        "ZeroDivisionError": ("divides by zero", "total_curriculum_step", "ConstantSchedule(1024)"),
        "length 0": ("length 0", "min_difficulty=4", "difficulty_step=8", "write min_difficulty=8, or LinearSchedule"),
        "custom": ("schedule_type", "'custom'", "pass that function itself", "LinearSchedule"),
    }
    refused(lambda: from_deepspeed(case["config"]), *facts[case["error"]])


@pytest.mark.parametrize("case", [c for c in GOLDEN["deepspeed"] if "error" not in c], ids=lambda case: case["name"])
def test_deepspeed_at_every_step(case):
    details = case["config"]["schedule_config"]
    steps = details.get("total_curriculum_step", 0) or details["max_step"][-1]
    compare_each(from_deepspeed(case["config"]), deepspeed(min(steps, 120_000) + 50, case["config"]))


@given(
    low=st.integers(1, 60),
    high=st.integers(1, 200),
    total=st.integers(1, 300),
    multiple=st.integers(1, 24),
    degree=st.one_of(st.none(), st.integers(1, 6), st.floats(0.2, 8)),
)
@example(low=8, high=1004, total=1000, multiple=8, degree=None)
@example(low=64, high=64, total=10, multiple=8, degree=None)
@example(low=5, high=4, total=10, multiple=8, degree=2)
@example(low=3, high=5, total=10, multiple=8, degree=None)
def test_deepspeed_is_met_or_its_length_0_refused(low, high, total, multiple, degree):
    config = curriculum(low, high, total, multiple, degree)
    lengths = list(deepspeed(2 * total + 50, config))
    if 0 in lengths:
        refused(lambda: from_deepspeed(config), "length 0", f"min_difficulty={low}", f"difficulty_step={multiple}")
    else:
        compare_each(from_deepspeed(config), lengths)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    gaps=st.lists(st.integers(1, 9), min_size=7, max_size=7),
    low=st.integers(1, 40),
    high=st.integers(1, 40),
)
@example(lengths=[8, 64, 32, 16], gaps=[2] * 7, low=8, high=64)  # the latch holds what a table takes back
def test_deepspeed_tables_are_met(lengths, gaps, low, high):
    ends = [sum(gaps[: i + 1]) for i in range(len(lengths) - 1)]
    config = table(lengths, ends, low, high)
    schedule = from_deepspeed(config)
    expected = list(deepspeed(ends[-1] + 50, config))
    assert [schedule(step) for step in range(len(expected))] == expected


def test_a_deepspeed_minimum_above_the_maximum_stays():
    assert from_deepspeed(curriculum(1024, 64, 1000, 8)) == StagedSchedule([1024], [])
    assert from_deepspeed(table([8, 16], [4], low=32, high=32)) == StagedSchedule([32], [])


def test_a_deepspeed_maximum_that_the_root_never_reaches_is_never_reached():
    schedule = from_deepspeed(curriculum(8, 1004, 1000, 8, degree=10**6))
    assert schedule(0) == schedule(10**15) == 1000


@pytest.mark.parametrize("degree", [1e-310, 1e-5, 10**400], ids=["tiny", "small", "huge"])
def test_a_root_degree_that_overflows_in_deepspeed_is_refused(degree):
    config = curriculum(8, 1004, 1, 8, degree)
    with pytest.raises(OverflowError):
        list(deepspeed(3, config))
    refused(lambda: from_deepspeed(config), "overflow", "root_degree", "LinearSchedule(8, 1004, warmup_steps=1")


def test_a_steep_root_that_ends_before_it_overflows_is_met():
    config = curriculum(8, 1004, 1000, 8, degree=1 / 2000)  # 2 ** 2000 is too much, (1 + 1/1000) ** 2000 is not
    compare_each(from_deepspeed(config), deepspeed(1100, config))
    config = curriculum(8, 1000, 1, 8, degree=1e-5)
    compare_each(from_deepspeed(config), deepspeed(9, config))  # 2 ** 100_000 would come next, but 1000 is kept


def test_the_switches_around_a_deepspeed_curriculum_may_be_given():
    config = curriculum(8, 64, 100, 8)
    assert from_deepspeed({**config, "enabled": True, "curriculum_type": "seqlen"}) == from_deepspeed(config)
    refused(lambda: from_deepspeed({**config, "curriculum_type": "voc"}), "curriculum_type", "'seqlen'", "'voc'")
    refused(lambda: from_deepspeed({**config, "enabled": False}), "enabled", "False", "ConstantSchedule(64)")


@pytest.mark.parametrize("key", ["min_difficulty", "max_difficulty", "schedule_type", "schedule_config"])
def test_a_missing_key_is_named_beside_those_that_are_there(key):
    config = without(curriculum(8, 64, 100, 8), key)
    refused(lambda: from_deepspeed(config), f"must have '{key}'", *map(repr, config))


@pytest.mark.parametrize("key", ["total_curriculum_step", "difficulty_step", "root_degree"])
def test_a_missing_key_of_the_root_is_named(key):
    refused(lambda: from_deepspeed(without(curriculum(8, 64, 100, 8, 2), key)), f"must have '{key}'")


@pytest.mark.parametrize("key", ["difficulty", "max_step"])
def test_a_missing_key_of_the_table_is_named(key):
    refused(lambda: from_deepspeed(without(table([8, 16], [5]), key)), f"must have '{key}'")


@pytest.mark.parametrize("config", [None, "fixed_linear", [("min_difficulty", 8)], 8], ids=repr)
def test_a_deepspeed_configuration_is_a_mapping(config):
    refused(lambda: from_deepspeed(config), "config", "mapping", type(config).__name__, error=TypeError)


@pytest.mark.parametrize("kind", ["linear", "FIXED_LINEAR", None, 3, ["fixed_root"]], ids=repr)
def test_an_unknown_schedule_type_is_refused_with_those_there_are(kind):
    config = {**curriculum(8, 64, 100, 8), "schedule_type": kind}
    refused(lambda: from_deepspeed(config), "schedule_type", repr(kind), "fixed_linear", "fixed_root", "fixed_discrete")


@pytest.mark.parametrize("value", [-8, True, 8.0, "8", None, [8]], ids=repr)
@pytest.mark.parametrize("name", ["min_difficulty", "max_difficulty", "total_curriculum_step", "difficulty_step"])
def test_deepspeed_sizes_must_be_ints(name, value):
    config = curriculum(8, 64, 100, 8)
    (config if name in config else config["schedule_config"])[name] = value
    refused(lambda: from_deepspeed(config), name, repr(value))


@pytest.mark.parametrize("name", ["min_difficulty", "max_difficulty", "difficulty_step"])
def test_deepspeed_sizes_must_not_be_0(name):
    config = curriculum(8, 64, 100, 8)
    (config if name in config else config["schedule_config"])[name] = 0
    refused(lambda: from_deepspeed(config), name, ">= 1", "got 0")


@pytest.mark.parametrize("degree", [0, -1, 0.0, True, "2", None, float("nan"), float("inf")], ids=repr)
def test_a_root_degree_is_a_positive_number(degree):
    config = curriculum(8, 64, 100, 8, 2)
    config["schedule_config"]["root_degree"] = degree
    refused(lambda: from_deepspeed(config), "root_degree", repr(degree))


@pytest.mark.parametrize(("lengths", "ends"), [([8], []), ([], []), ([8, 16], []), ([8, 16], [4, 8]), ([8], [4])])
def test_a_table_needs_an_end_for_each_length_but_the_last(lengths, ends):
    config = table(lengths, ends, low=8, high=16)
    refused(lambda: from_deepspeed(config), "max_step", f"{len(ends)} for {len(lengths)}", "StagedSchedule")


@pytest.mark.parametrize(("ends", "facts"), [([4, 4], "max_step[1] = 4 after 4"), ([9, 2], "max_step[1] = 2 after 9")])
def test_a_table_that_skips_a_stage_is_refused_with_its_index(ends, facts):
    refused(lambda: from_deepspeed(table([8, 16, 24], ends)), facts, "StagedSchedule")


@pytest.mark.parametrize("value", [0, -4, True, 2.0, "4", None], ids=repr)
def test_the_entries_of_a_table_must_be_positive_ints(value):
    refused(lambda: from_deepspeed(table([8, value, 24], [4, 8])), "difficulty[1]", repr(value))
    refused(lambda: from_deepspeed(table([8, 16, 24], [4, value])), "max_step[1]", repr(value))


@pytest.mark.parametrize("value", ["8", 8, None, {"8": 1}], ids=repr)
def test_a_table_is_made_of_lists(value):
    refused(lambda: from_deepspeed(table(value, [4], low=8, high=16)), "difficulty", "list", repr(value))
    refused(lambda: from_deepspeed(table([8, 16], value)), "max_step", "list", repr(value))


# -- OLMo-core --------------------------------------------------------------------------------------------------------


def naive_olmo(steps, arguments):
    low, high, warmup = (arguments[key] for key in ("min_sequence_length", "max_sequence_length", "warmup_steps"))
    return olmo_core(steps, low, high, warmup, arguments["truncate"], arguments.get("keep_multiple_of", 128))


@golden("olmo_core", "lengths_by_step_from_1")
def test_olmo_core_golden_lengths(case):
    compare(from_olmo_core(**case["arguments"]), case["lengths_by_step_from_1"], first_step=1)


@golden("olmo_core", "changes_by_step_from_1")
def test_olmo_core_golden_changes(case):
    steps, lengths = zip(*case["changes_by_step_from_1"], strict=True)
    assert from_olmo_core(**case["arguments"]) == StagedSchedule(lengths, [step - 1 for step in steps[1:]])


@golden("olmo_core", "error")
def test_what_fails_in_olmo_core_is_refused(case):
    low, high = case["arguments"]["min_sequence_length"], case["arguments"]["max_sequence_length"]
    facts = {
        "length 0": ("length 0", f"min_sequence_length={low}", "keep_multiple_of=128"),
        "not a power of two": ("power of two", f"min_sequence_length={low}", f"got {high}", "truncate=True"),
    }
    refused(lambda: from_olmo_core(**case["arguments"]), *facts[case["error"]], f"LinearSchedule({low}, {high}, ")


@pytest.mark.parametrize("case", [c for c in GOLDEN["olmo_core"] if "error" not in c], ids=lambda case: case["name"])
def test_olmo_core_at_every_step(case):
    arguments = case["arguments"]
    compare_each(from_olmo_core(**arguments), naive_olmo(arguments["warmup_steps"] + 50, arguments))


@given(low=st.integers(1, 200), doublings=st.integers(1, 20), warmup=st.integers(1, 400))
def test_olmo_core_splits_are_met(low, doublings, warmup):
    schedule = from_olmo_core(min_sequence_length=low, max_sequence_length=low << doublings, warmup_steps=warmup)
    compare_each(schedule, olmo_core(warmup + 50, low, low << doublings, warmup))


@given(low=st.integers(1, 90), more=st.integers(1, 200), warmup=st.integers(1, 400), multiple=st.integers(1, 99))
@example(low=5, more=10, warmup=10, multiple=6)  # begins at 6.0 exactly
def test_olmo_core_truncation_is_met_or_its_length_0_refused(low, more, warmup, multiple):
    arguments = {"min_sequence_length": low, "max_sequence_length": low + more, "warmup_steps": warmup}
    arguments |= {"truncate": True, "keep_multiple_of": multiple}
    lengths = list(naive_olmo(warmup + 50, arguments))
    if 0 in lengths:
        refused(lambda: from_olmo_core(**arguments), "length 0", f"keep_multiple_of={multiple}")
    else:
        compare_each(from_olmo_core(**arguments), lengths)


@given(low=st.integers(1, 100), high=st.integers(2, 4000))
def test_olmo_core_splits_only_in_halves(low, high):
    assume(high > low)
    ratio = high / low
    arguments = {"min_sequence_length": low, "max_sequence_length": high}
    if ratio in [2.0**k for k in range(1, 13)]:
        assert from_olmo_core(**arguments)(2000) == high
    else:
        refused(lambda: from_olmo_core(**arguments), "power of two", str(low), str(high))


@pytest.mark.parametrize("high", [128, 64])
@pytest.mark.parametrize("truncate", [True, False])
def test_an_olmo_core_maximum_must_be_above_the_minimum(high, truncate):
    make = lambda: from_olmo_core(max_sequence_length=high, truncate=truncate)  # noqa: E731 - named to be used twice
    refused(make, "max_sequence_length", "min_sequence_length=128", f"got {high}", "ConstantSchedule(128)")
    refused(make, f"StagedSchedule([128, {high}], [2000])")


def test_an_olmo_core_warmup_of_0_steps_divides_by_zero():
    refused(lambda: from_olmo_core(max_sequence_length=4096, warmup_steps=0), "warmup_steps", "ConstantSchedule(4096)")


@pytest.mark.parametrize("value", [-8, True, 8.0, "8", None], ids=repr)
@pytest.mark.parametrize("name", ["min_sequence_length", "max_sequence_length", "warmup_steps", "keep_multiple_of"])
def test_olmo_core_arguments_must_be_ints(name, value):
    refused(lambda: from_olmo_core(**{"max_sequence_length": 4096, name: value}), name, repr(value))


@pytest.mark.parametrize("name", ["min_sequence_length", "max_sequence_length", "keep_multiple_of"])
def test_olmo_core_sizes_must_not_be_0(name):
    refused(lambda: from_olmo_core(**{"max_sequence_length": 4096, name: 0}), name, ">= 1", "got 0")


@pytest.mark.parametrize("value", [0, 1, "yes", None, np.True_], ids=repr)
def test_truncate_is_a_bool(value):
    refused(lambda: from_olmo_core(max_sequence_length=4096, truncate=value), "truncate", repr(value))


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "low", "high", "warmup"),
    [
        (lambda: from_composer(total_steps=300), 8, 1024, 90),
        (lambda: from_composer(total_steps=30, min_seq_length=7, max_seq_length=7), 7, 7, 9),
        (lambda: from_composer(total_steps=9, duration=1, min_seq_length=20, max_seq_length=25), 20, 25, 9),
        (lambda: from_deepspeed(curriculum(4, 1024, 1000, 8)), 4, 1024, 1000),
        (lambda: from_deepspeed(curriculum(3, 5, 1000, 8)), 3, 5, 1000),
        (lambda: from_deepspeed(curriculum(3, 50, 0, 8)), 50, 50, 0),
        (lambda: from_olmo_core(min_sequence_length=64, max_sequence_length=4096, truncate=True), 64, 4096, 2000),
        (lambda: from_olmo_core(min_sequence_length=100, max_sequence_length=300), 100, 300, 2000),
        (lambda: from_olmo_core(max_sequence_length=4096, warmup_steps=0), 4096, 4096, 0),
    ],
)
def test_the_remedy_of_a_refusal_can_be_pasted(make, low, high, warmup):
    remedy = eval(re.search(r"(Linear|Constant)Schedule\(.*\)$", refused(make))[0])
    linear = LinearSchedule(low, high, warmup_steps=warmup, multiple_of=math.gcd(low, high))
    assert remedy in (linear, ConstantSchedule(high))
    assert (remedy(0), remedy(warmup)) == (low, high)


def test_deepspeeds_nearest_minimum_is_offered_only_if_it_is_below_the_maximum():
    config = curriculum(4, 64, 1000, 8)
    refused(lambda: from_deepspeed(config), "write min_difficulty=8, or ")
    config["min_difficulty"] = 8
    assert from_deepspeed(config)(0) == 8
    for high in (8, 6):
        assert "difficulty=8," not in refused(lambda high=high: from_deepspeed(curriculum(4, high, 1000, 8)))


@pytest.mark.parametrize(
    ("make", "reached"),
    [
        (lambda n: from_composer(total_steps=n, duration=1.0), lambda n: n // 127 * 127),
        (lambda n: from_deepspeed(curriculum(8, 1024, n, 8)), lambda n: n - 1),
        (lambda n: from_deepspeed(curriculum(64, 4096, n, 8, degree=2)), lambda n: n - 1),
        (lambda n: from_olmo_core(max_sequence_length=4096, warmup_steps=n), lambda n: n - 1),
        (lambda n: from_olmo_core(max_sequence_length=4096, warmup_steps=n, truncate=True), lambda n: n - 1),
    ],
    ids=["composer", "linear", "root", "split", "truncate"],
)
def test_a_warmup_of_a_billion_steps_is_found_at_once(make, reached):
    start = time.perf_counter()
    schedule = make(10**9)
    assert time.perf_counter() - start < 5  # stepping through it would take minutes
    last = reached(10**9)
    assert schedule.boundaries[-1] == last
    assert schedule(last - 1) < schedule(last) == schedule(10**12) == schedule.max_length
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_a_warmup_longer_than_any_run_is_staged_as_far_as_runs_go():
    for steps, halfway in ((2**63, 2**62), (2**62, 2**61)):
        schedule = from_deepspeed(curriculum(8, 1024, steps, 8))
        assert (schedule(0), schedule(halfway // 2), schedule(halfway)) == (8, 256, 512)
        schedule = from_olmo_core(max_sequence_length=4096, warmup_steps=steps)
        assert (schedule(0), schedule(halfway // 2), schedule(halfway)) == (128, 1024, 2048)
    assert from_deepspeed(curriculum(8, 1024, 10**300, 8)) == StagedSchedule([8], [])


def test_stages_are_what_a_plan_reads():
    schedule = from_composer(total_steps=1000)
    plan = SequenceLengthPlan(schedule, batch_size=4, total_steps=1000)
    assert len(plan.stages) == len(schedule.lengths) == 128
    assert [plan.length(step) for step in range(1000)] == list(composer(1000, 1000))


@pytest.mark.parametrize("kind", [np.int64, np.uint16], ids=["int64", "uint16"])
def test_integers_of_numpy_are_taken(kind):
    arguments = {"total_steps": 1000, "min_seq_length": 8, "max_seq_length": 1024, "step_size": 8}
    taken = from_composer(**{name: kind(value) for name, value in arguments.items()})
    assert taken == from_composer(total_steps=1000)
    sizes = (8, 64, 100, 8)
    assert from_deepspeed(curriculum(*map(kind, sizes))) == from_deepspeed(curriculum(*sizes))
    assert from_olmo_core(max_sequence_length=kind(4096)) == from_olmo_core(max_sequence_length=4096)


# -- SkyLadder --------------------------------------------------------------------------------------------------------


def skyladder(steps, max_length, every=8, first=32, multiple=-1, samples=16):
    """The windows of its iterator, which counts samples, at the first and the last sample of each step; the largest one is a
    token longer than a row."""
    for sample in range(steps * samples):
        window = first + sample // (samples * every)
        if multiple > 0:
            window = window // multiple * multiple
            if window == 0:
                window = first
        if sample % samples in (0, samples - 1):
            yield min(window, max_length + 1)


@pytest.mark.parametrize(
    ("arguments", "engine"),  # dm8, dm1, dm2st64, dm8inc1024, and a maximum that is no multiple
    [
        ({"max_length": 512}, {"max_length": 512}),
        ({"max_length": 512, "steps_per_increase": 1}, {"max_length": 512, "every": 1}),
        (
            {"max_length": 512, "steps_per_increase": 2, "initial_length": 64},
            {"max_length": 512, "every": 2, "first": 64},
        ),
        ({"max_length": 1024, "round_to": 256}, {"max_length": 1024, "multiple": 256}),
        (
            {"max_length": 300, "round_to": 128, "initial_length": 200, "steps_per_increase": 1},
            {"max_length": 300, "multiple": 128, "first": 200, "every": 1},
        ),
    ],
)
def test_skyladder_step_for_step(arguments, engine):
    found = list(skyladder(9000, **engine))
    assert found[::2] == found[1::2]  # a step has one window
    compare_each(from_skyladder(**arguments), [min(window, engine["max_length"]) for window in found[::2]])


def test_skyladder_of_the_paper():
    """Windows of 32 to 8,192 tokens, a token more every 8 steps: as long as a row after about 64,000 steps."""
    schedule = from_skyladder()
    assert [schedule(step) for step in (0, 8, 800, 65_279, 65_280, 100_000)] == [32, 33, 132, 8191, 8192, 8192]
    assert from_skyladder(max_length=32, initial_length=32) == StagedSchedule([32], [])


def test_skyladder_refuses_what_is_out_of_range():
    refused(lambda: from_skyladder(max_length=16), "initial_length", "max_length=16", "32")
    refused(lambda: from_skyladder(steps_per_increase=0), "steps_per_increase", "0")
    refused(lambda: from_skyladder(round_to=0.5), "round_to", "0.5")
    refused(lambda: from_skyladder(max_length=1 << 30), "larger round_to")
