"""Plans that several threads ask while they are being read, and callables that a signal interrupts."""

import os
import signal
import sys
import threading

import numpy as np
import pytest

from slw_data import SequenceLengthPlan, SLWDataset, SLWLoader, open_tokens


@pytest.fixture
def often():
    """Threads take turns after every few bytecodes, so that what is not one step is seen half done."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def sawtooth(step):
    return 8 * (1 + step // 3 % 4)


def read_in_a_thread(plan, steps):
    """The thread, and a list of the steps that it has read."""
    read = [0]

    def each():
        for step in range(steps):
            plan.length(step)
            read.append(step)

    thread = threading.Thread(target=each)
    thread.start()
    return thread, read


def test_a_stage_ends_where_its_length_does_while_another_thread_reads_on(often):
    for _ in range(30):
        plan = SequenceLengthPlan(sawtooth, batch_size=1)
        thread, read = read_in_a_thread(plan, 3_000)
        while thread.is_alive():
            stage = plan.stage_at(read[-1])
            assert {sawtooth(step) for step in range(stage.start, stage.stop)} == {stage.length}
        thread.join()


def test_the_step_of_a_token_is_found_while_another_thread_reads_on(often):
    before = np.concatenate([[0], np.cumsum([sawtooth(step) for step in range(2_000)])]).tolist()
    for _ in range(10):
        plan = SequenceLengthPlan(sawtooth, batch_size=1)
        thread, _ = read_in_a_thread(plan, 2_000)
        for step in range(0, 2_000, 3):
            assert plan.step_at(before[step]) == step == plan.step_at(before[step + 1] - 1)
            assert plan.tokens_before(step) == before[step]
        thread.join()


class Interrupted:
    """A callable in which a signal arrives once, at ``step``."""

    def __init__(self):
        self.step = None

    def __call__(self, step):
        if step == self.step:
            self.step = None
            os.kill(os.getpid(), signal.SIGUSR1)
        return 8


class TimeIsOver(Exception):
    pass


@pytest.mark.parametrize("step", [1, 200, 1 << 20])
def test_an_exception_of_a_signal_handler_shortens_no_fingerprint(step):
    def handler(*_):
        raise TimeIsOver

    former = signal.signal(signal.SIGUSR1, handler)
    try:
        function = Interrupted()
        plan = SequenceLengthPlan(function, batch_size=4)
        function.step = step
        with pytest.raises(Exception, match="TimeIsOver"):
            _ = plan.fingerprint
        assert plan.fingerprint == SequenceLengthPlan(lambda step: 8, batch_size=4).fingerprint
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_a_callable_over_a_large_store_is_asked_once_for_each_step(tmp_path):
    path, asked = tmp_path / "tokens.bin", []
    with open(path, "wb") as file:
        file.truncate(2 * 10**9)  # without blocks on the disk

    def schedule(step):
        asked.append(step)
        return 1024

    dataset = SLWDataset(open_tokens(path, dtype="uint16"), schedule, batch_size=64)
    loader = SLWLoader(dataset)
    steps = 10**9 // (64 * 1024)
    assert len(loader) == steps and next(iter(loader))["input_ids"].shape == (64, 1024)
    loader.close()
    assert len(asked) <= steps + 20, "a few are asked twice, to see that they answer alike"
