"""Plans that hardly are what was meant: one warning each, with the figure."""

import warnings

import numpy as np
import pytest

from slw_data import ConstantSchedule, CyclicSchedule, LinearSchedule, SequenceLengthPlan, SLWDataset, StagedSchedule


def warned(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    return [str(warning.message) for warning in caught]


LINEAR = LinearSchedule(8, 1024, warmup_steps=300)


@pytest.mark.parametrize("end", [{"total_steps": 100}, {"total_tokens": 274_688}])
def test_a_run_that_ends_before_its_warmup_is_warned_of_once_with_both_steps(end):
    [text] = warned(lambda: SequenceLengthPlan(LINEAR, batch_size=16, **end))
    assert text.startswith("this run ends before its warmup does: it has 100 steps of up to 336 tokens")  # 8 + 1016 * 99 / 300
    assert "full length, 1,024, would come at step 300" in text and "warmup_fraction" in text


def test_the_warning_is_of_the_line_that_makes_the_plan():
    with pytest.warns(UserWarning) as caught:
        SequenceLengthPlan(LINEAR, batch_size=16, total_steps=100)
    assert caught[0].filename == __file__


def test_a_dataset_whose_data_ends_before_is_warned_of_at_its_own_line():
    for wanted in (LINEAR, SequenceLengthPlan(LINEAR, batch_size=16)):
        with pytest.warns(UserWarning, match="ends before its warmup") as caught:
            SLWDataset(np.arange(270_000), wanted, **({"batch_size": 16} if wanted is LINEAR else {}))
        assert [warning.filename for warning in caught] == [__file__]


def test_tiny_steps_are_warned_of_with_the_figure():
    [text] = warned(lambda: SequenceLengthPlan(StagedSchedule([8, 1024], [60]), batch_size=4, total_steps=100))
    assert text.startswith("more than half of this run's steps are tiny: full length from step 60 of 100, and 60 steps")
    warmup = LinearSchedule(8, 8192, warmup_tokens=10**9)
    [text] = warned(lambda: SequenceLengthPlan(warmup, batch_size=16, total_tokens=11 * 10**8))
    assert "this run's steps are tiny" in text and "rows below a tenth of 8,192 tokens" in text


QUIET = {
    "the warmup ends with the run": (LINEAR, {"total_steps": 300}),
    "no end": (LINEAR, {}),
    "no warmup": (ConstantSchedule(64), {"total_steps": 3}),
    "half is tiny": (StagedSchedule([8, 1024], [50]), {"total_steps": 100}),
    "stages of another run": (StagedSchedule([512, 1024], [50]), {"total_steps": 10}),
    "all of it is warmup": (LinearSchedule(8, 64, warmup_fraction=1.0), {"total_steps": 101}),
    "all of its tokens are": (LinearSchedule(8, 64, warmup_fraction=1.0), {"total_tokens": 99_999}),
    "a callable": (lambda step: 8, {"total_steps": 3}),
}


@pytest.mark.parametrize("case", list(QUIET))
def test_a_sound_plan_is_not(case):
    schedule, end = QUIET[case]
    assert warned(lambda: SequenceLengthPlan(schedule, batch_size=16, **end)) == []


def test_a_cycle_that_is_cut_short_is_warned_of():
    cycle = CyclicSchedule(LINEAR, 3)
    assert len(warned(lambda: SequenceLengthPlan(cycle, batch_size=16, total_steps=200))) == 1
