"""The search for a warmup, beside a scan of every candidate; the runs are stand-ins whose stability is a table."""

import math
from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refused

from slw_data import LinearSchedule
from slw_data.tuning import Probe, Tuning, tune_warmup

LONGEST = 4096
CALM = [5.0, 4.0, 3.5]
SCHEDULE = LinearSchedule(8, 64, warmup_steps=100)


class Runs:
    """A ``train`` that is calm where ``calm(min_length, warmup_steps)`` says so, and remembers what it was asked."""

    def __init__(self, calm, wild=(5.0, 4.0, 4.0 + math.log(1.31))):
        self.calm, self.wild, self.asked = calm, wild, []

    def __call__(self, schedule):
        self.asked.append((schedule.min_length, schedule.warmup_steps))
        return iter(CALM if self.calm(*self.asked[-1]) else self.wild)


def scan(calm, lengths, steps):
    """The recipe without any cleverness: try all, keep the shortest start and then the longest warmup before a bad one."""
    for length in lengths:
        if calm(length, steps[0]):
            longest = steps[0]
            for duration in steps:
                if not calm(length, duration):
                    break
                longest = duration
            return length, longest
    return None


ladders = st.lists(st.integers(1, LONGEST // 8 - 1), min_size=1, max_size=40, unique=True).map(
    lambda numbers: [8 * n for n in sorted(numbers)]
)
durations = st.lists(st.integers(1, 10**6), min_size=1, max_size=60, unique=True).map(sorted)


@st.composite
def monotone(draw):
    """Candidates, and for each duration the shortest start that is calm, which does not shrink as durations grow."""
    lengths, steps = draw(ladders), draw(durations)
    needed = sorted(draw(st.lists(st.integers(1, LONGEST), min_size=len(steps), max_size=len(steps))))
    needed[0] = min(needed[0], draw(st.sampled_from(lengths)))
    table = dict(zip(steps, needed, strict=True))
    return lengths, steps, lambda length, duration: length >= table[duration]


# -- the search --------------------------------------------------------------------------------------------------------


@given(monotone(), st.sampled_from([(5.0, 4.0, 4.3), (math.nan,), (5.0, math.inf), (5.0, 4.0, math.nan), (9.0, 900.0)]))
def test_the_search_finds_what_a_scan_of_all_candidates_does(case, wild):
    lengths, steps, calm = case
    runs = Runs(calm, wild)
    tuning = tune_warmup(runs, max_length=LONGEST, min_lengths=lengths, warmup_steps=steps)
    length, duration = scan(calm, lengths, steps)
    assert tuning.schedule == LinearSchedule(length, LONGEST, warmup_steps=duration)
    assert [(p.schedule.min_length, p.schedule.warmup_steps) for p in tuning.probes] == runs.asked


@given(monotone())
def test_probes_are_few_and_none_is_made_twice(case):
    lengths, steps, calm = case
    runs = Runs(calm)
    tune_warmup(runs, max_length=LONGEST, min_lengths=lengths, warmup_steps=steps)
    assert len(runs.asked) <= 1 + math.ceil(math.log2(len(lengths))) + math.ceil(math.log2(len(steps)))
    assert len(set(runs.asked)) == len(runs.asked)


@given(ladders, durations, st.randoms(use_true_random=False))
def test_where_nothing_is_monotone_the_answer_was_still_probed_and_the_next_longer_warmup_was_too(lengths, steps, random):
    verdicts = {(length, duration): random.random() < 0.7 for length in lengths for duration in steps}
    runs = Runs(lambda *asked: verdicts[asked])
    try:
        found = tune_warmup(runs, max_length=LONGEST, min_lengths=lengths, warmup_steps=steps).schedule
    except ValueError:
        assert not any(verdicts[asked] for asked in runs.asked) and runs.asked[-1] == (lengths[-1], steps[0])
        return
    assert (found.min_length, found.warmup_steps) in runs.asked and verdicts[found.min_length, found.warmup_steps]
    longer = [(found.min_length, duration) for duration in steps if duration > found.warmup_steps][:1]
    assert all(asked in runs.asked and not verdicts[asked] for asked in longer)


def test_the_search_goes_as_the_picture_in_the_docstring():
    runs = Runs(lambda length, steps: length >= 16 and steps <= 400)
    tuning = tune_warmup(runs, max_length=64, min_lengths=[8, 16], warmup_steps=range(100, 501, 100))
    assert runs.asked == [(8, 100), (16, 100), (16, 400), (16, 500)]
    assert tuning.schedule == LinearSchedule(16, 64, warmup_steps=400)


def test_starts_double_from_the_multiple_unless_they_are_given():
    for multiple, longest, last in ((8, 1024, 512), (8, 1000, 512), (16, 64, 32), (1, 2, 1)):
        runs = Runs(lambda length, steps, last=last: length == last)
        tuning = tune_warmup(runs, max_length=longest, warmup_steps=[100], multiple_of=multiple)
        assert tuning.schedule == LinearSchedule(last, longest, warmup_steps=100, multiple_of=multiple)
        assert runs.asked[0] == (multiple, 100)
        assert all(length % multiple == 0 and length.bit_count() == 1 for length, _ in runs.asked)


def test_one_candidate_of_each_is_one_probe():
    runs = Runs(lambda *asked: True)
    assert tune_warmup(runs, max_length=64, min_lengths=[8], warmup_steps=[100]).schedule == SCHEDULE
    assert runs.asked == [(8, 100)]


def test_a_long_range_costs_no_more_than_its_logarithm():
    runs = Runs(lambda length, steps: steps <= 54_321)
    assert tune_warmup(runs, max_length=64, warmup_steps=range(1000, 100_001)).schedule.warmup_steps == 54_321
    assert len(runs.asked) == 1 + 17


# -- what fluctuates ---------------------------------------------------------------------------------------------------

perplexities = st.lists(st.floats(1.001, 1e6), min_size=2, max_size=20)


@given(perplexities)
def test_the_fluctuation_equals_the_quadratic_definition(values):
    expected = max(values[i] / min(values[:i]) for i in range(1, len(values)))
    probe = Probe(SCHEDULE, tuple(map(math.log, values)))
    assert probe.fluctuation == pytest.approx(expected)
    assert probe.best_perplexity == pytest.approx(min(values))


@pytest.mark.parametrize("limit", [1.01, 1.3, 4.0])
def test_the_limit_is_on_perplexities_and_not_on_losses(limit):
    """A perplexity a little within the limit is calm, a little beyond is not; 1.3 times the loss would be far beyond."""
    for factor, calm in ((0.999, True), (1.001, False)):
        losses = [math.log(p) for p in (100, 20, 20 * limit * factor, 10)]
        runs = Runs(lambda length, steps: steps == 1, losses)
        tuning = tune_warmup(runs, max_length=64, warmup_steps=[1, 2], max_fluctuation=limit)
        assert (tuning.schedule.warmup_steps == 2) == calm, (limit, factor)
    assert 1.3 * math.log(20) > math.log(20 * 1.3)


def test_the_best_before_is_the_best_of_all_before_and_none_after():
    assert Probe(SCHEDULE, (math.log(10), math.log(12), math.log(14), math.log(1.01))).fluctuation == pytest.approx(1.4)
    assert Probe(SCHEDULE, (3.0, 2.0, 1.0)).fluctuation == pytest.approx(math.exp(-1))


@pytest.mark.parametrize("losses", [(math.nan,), (math.inf,), (3.0, math.nan, 2.0), (3.0, math.inf), (1.0, 2000.0)])
def test_a_run_that_diverged_has_an_infinite_fluctuation(losses):
    assert Probe(SCHEDULE, losses).fluctuation == math.inf


def test_the_best_perplexity_of_a_run_that_diverged_is_that_before():
    assert Probe(SCHEDULE, (math.nan, math.log(7), math.inf)).best_perplexity == pytest.approx(7)
    assert Probe(SCHEDULE, (math.nan,)).best_perplexity == math.inf


def test_losses_may_be_tensors_and_come_one_by_one():
    tuning = tune_warmup(
        lambda schedule: (torch.tensor(loss) for loss in (3.0, 2.0)), max_length=64, min_lengths=[8], warmup_steps=[100]
    )
    assert tuning == Tuning(SCHEDULE, (Probe(SCHEDULE, (3.0, 2.0)),), 1.3)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_shows_every_probe_and_the_schedule_found():
    answers = iter([(math.log(200), math.log(100), math.log(150)), (math.log(90), math.log(81)), (math.nan,)])
    tuning = tune_warmup(lambda schedule: next(answers), max_length=48, min_lengths=[8, 24, 40], warmup_steps=[1000])
    assert tuning.describe().splitlines() == [
        "probe  min_length  warmup_steps  validations  best perplexity  fluctuation",
        "    1           8         1,000            3              100        1.500  above 1.3",
        "    2          40         1,000            2               81        0.900",
        "    3          24         1,000            1              inf          inf  above 1.3",
        "LinearSchedule(min_length=40, max_length=48, warmup_steps=1000)",
    ]


def test_the_last_line_of_the_table_can_be_pasted():
    tuning = tune_warmup(lambda schedule: CALM, max_length=60, warmup_steps=[10, 30], multiple_of=4)
    assert tuning.schedule == LinearSchedule(4, 60, warmup_steps=30, multiple_of=4)
    assert eval(tuning.describe().splitlines()[-1]) == tuning.schedule


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_if_every_start_fluctuates_the_probes_are_shown():
    runs = Runs(lambda *asked: False)
    message = refused(
        lambda: tune_warmup(runs, max_length=64, warmup_steps=[100, 200]), "up to 32", "warmup_steps=100", "learning rate"
    )
    assert runs.asked == [(8, 100), (32, 100)]
    assert len(message.splitlines()) == 4 and message.count("above 1.3") == 2


@pytest.mark.parametrize(
    "wrong, facts",
    [
        ({"warmup_steps": []}, ["warmup_steps", "one candidate"]),
        ({"warmup_steps": [100, 100]}, ["warmup_steps", "ascend", "100 after 100"]),
        ({"warmup_steps": [200, 100]}, ["warmup_steps", "ascend", "100 after 200"]),
        ({"warmup_steps": [0, 100]}, ["warmup_steps[0]", ">= 1"]),
        ({"warmup_steps": [100, 150.0]}, ["warmup_steps[1]", "150.0"]),
        ({"min_lengths": [16, 8]}, ["min_lengths", "ascend"]),
        ({"min_lengths": [8, 20]}, ["min_length", "multiple_of=8", "20", "16 or 24"]),
        ({"min_lengths": [8, 64]}, ["min_lengths", "below max_length=64", "64"]),
        ({"max_length": 8}, ["min_lengths", "one candidate"]),
        ({"max_length": 60}, ["max_length", "multiple_of=8", "60"]),
        ({"multiple_of": 0}, ["multiple_of", ">= 1"]),
        ({"max_fluctuation": 1.0}, ["max_fluctuation", "above 1", "1.0"]),
        ({"max_fluctuation": math.nan}, ["max_fluctuation", "nan", "1.3"]),
        ({"max_fluctuation": math.inf}, ["max_fluctuation", "inf"]),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_trained(wrong, facts):
    runs = Runs(lambda *asked: True)
    refused(lambda: tune_warmup(runs, **{"max_length": 64, "warmup_steps": [100, 200], **wrong}), *facts)
    assert runs.asked == []


@pytest.mark.parametrize("losses, fact", [([], "[]"), ([2.5], "[2.5]"), ([3.0, 0.0], "0.0"), ([-1.0, math.nan], "-1.0")])
def test_losses_that_show_nothing_are_refused(losses, fact):
    facts = (fact, "validation loss", "LinearSchedule(min_length=8, max_length=64, warmup_steps=100)")
    refused(lambda: tune_warmup(lambda schedule: losses, max_length=64, warmup_steps=[100]), *facts, error=ValueError)


@pytest.mark.parametrize("wrong", [None, 3.0, "3.0", ["3.0", "2.0"], [[1.0, 2.0], [3.0]], torch.tensor(3.0), torch.ones(2, 2)])
def test_train_must_return_numbers(wrong):
    refused(lambda: tune_warmup(lambda s: wrong, max_length=64, warmup_steps=[1]), "train", "numbers", error=TypeError)


def test_arguments_of_another_kind_are_refused():
    def tune(train=Runs(lambda *asked: True), **wrong):
        return tune_warmup(train, **{"max_length": 64, "warmup_steps": [100], **wrong})

    refused(lambda: tune(train=[3.0, 2.0]), "train", "function", "list", error=TypeError)
    refused(lambda: tune(warmup_steps=100), "warmup_steps", "sequence of ints", "100", error=TypeError)
    refused(lambda: tune(min_lengths="8"), "min_lengths", "sequence of ints", "'8'", error=TypeError)
    refused(lambda: tune(max_fluctuation="1.3"), "max_fluctuation", "'1.3'")


def test_an_error_of_the_training_itself_is_left_as_it_is():
    calls = count()

    def train(schedule):
        if next(calls) == 1:
            raise MemoryError("out of it")
        return CALM

    with pytest.raises(MemoryError, match="out of it"):
        tune_warmup(train, max_length=64, warmup_steps=[1, 2])
