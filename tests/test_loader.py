"""The loader: what it says of the run, its processes and threads, and what it refuses."""

import fcntl
import gc
import itertools
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from refusals import refused

import slw_data.batch.building
from slw_data import (
    ConstantSchedule,
    DataError,
    LinearSchedule,
    SequenceLengthPlan,
    SLWDataset,
    SLWLoader,
    StagedSchedule,
    open_tokens,
)

SCHEDULE = StagedSchedule([4, 8, 2], [10, 20])
DOCS = [list(range(20 * i, 20 * i + 1 + i * 5 % 20)) for i in range(60)]


def dataset_of(source=None, schedule=SCHEDULE, **options):
    source = np.arange(600) if source is None else source
    return SLWDataset(source, schedule, **{"batch_size": 2, "grad_accum_steps": 2, **options})


def first(loader, count):
    return [batch["input_ids"].tolist() for batch in itertools.islice(loader, count)]


# -- what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [None, DOCS])
@pytest.mark.parametrize("end", [{"total_steps": 30}, {"total_tokens": 900}, {"epochs": 2}])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_len_is_the_number_of_batches(source, end, num_workers):
    loader = SLWLoader(dataset_of(source, **end), num_workers=num_workers)
    if source is DOCS and "epochs" in end:
        refused(lambda: len(loader), "total_steps", error=TypeError)
        return
    batches = sum(1 for _ in loader)
    assert len(loader) == batches > 20
    assert len(loader) == batches, "len is of the whole run, wherever it stands"


def test_an_endless_run_is_as_long_as_its_source_and_says_so():
    loader = SLWLoader(SLWDataset(np.arange(600), SequenceLengthPlan(SCHEDULE, batch_size=2)))
    assert len(loader) == sum(1 for _ in loader)
    assert loader.tokens_left == 600 - loader.tokens_seen < 4


def test_it_is_no_dataloader_for_trainers_to_take_apart():
    loader = SLWLoader(dataset_of())
    assert not isinstance(loader, torch.utils.data.DataLoader)
    assert {"__iter__", "__len__", "state_dict", "load_state_dict"} <= set(dir(loader))
    assert isinstance(loader.dataset, torch.utils.data.IterableDataset)


def test_metrics_by_hand():
    """Steps of 2 micro-batches x 2 ranks x 2 rows: 32 tokens, from step 10 on 64. An epoch is 120 tokens."""
    loader = SLWLoader(dataset_of(np.arange(120), total_steps=30, dp_rank=1, dp_world_size=2), prefetch=0)
    names = ("step", "sequence_length", "rows", "tokens_seen", "epoch")

    def metrics(*values):
        return dict(zip((f"slw/{name}" for name in names), values, strict=True))

    iterator, found = iter(loader), {0: loader.metrics()}
    for i in range(1, 41):
        next(iterator)
        found[i] = loader.metrics()
        assert (loader.step, loader.sequence_length) == (found[i]["slw/step"], found[i]["slw/sequence_length"])
        assert (loader.tokens_seen, loader.epoch) == (found[i]["slw/tokens_seen"], found[i]["slw/epoch"])
    assert found[0] == metrics(0, 4, 2, 0, 0)
    assert found[1] == metrics(0, 4, 2, 16, 0)
    assert found[2] == metrics(1, 4, 2, 32, 0)
    assert found[7] == metrics(3, 4, 2, 112, 0)
    assert found[8] == metrics(4, 4, 2, 128, 1)
    assert found[20] == metrics(10, 4, 2, 320, 2)
    assert found[21] == metrics(10, 8, 2, 352, 2)
    assert found[40] == metrics(20, 8, 2, 960, 8)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("mode", ["stream", "segment", "truncate"])
def test_what_the_end_of_a_stream_leaves_is_known_with_workers_too(mode, num_workers):
    padding = {} if mode == "stream" else {"pad_id": 0}
    loader = SLWLoader(dataset_of(DOCS, ConstantSchedule(7), mode=mode, **padding), num_workers=num_workers)
    batches = list(loader)
    mask = [b.get("attention_mask", torch.ones_like(b["input_ids"])) for b in batches]
    delivered = sum(int(m.sum()) for m in mask)
    assert loader.tokens_seen == delivered
    discarded = sum(max(0, len(doc) - 7) for doc in DOCS[: 2 * len(batches)]) if mode == "truncate" else 0
    assert loader.tokens_left == sum(map(len, DOCS)) - delivered - discarded
    assert loader.tokens_discarded == discarded


def test_the_bar_shows_batches_length_and_tokens_on_the_first_rank_alone(capsys):
    loader = SLWLoader(dataset_of(total_steps=20), progress=True)
    first(loader, 4)
    loader.load_state_dict(loader.state_dict())
    assert len(list(loader)) == 36
    shown = capsys.readouterr()
    assert shown.out == ""
    last = shown.err.replace("\r", "\n").strip().splitlines()[-1]
    for fact in ("40/40", "length=8", "tokens=480", "100%"):
        assert fact in last, last
    first(SLWLoader(dataset_of(total_steps=20, dp_rank=1, dp_world_size=2), progress=True), 4)
    assert capsys.readouterr() == ("", "")


def test_a_bar_without_a_known_end_counts(capsys):
    assert len(list(SLWLoader(dataset_of(DOCS), progress=True))) > 40
    assert "batch" in capsys.readouterr().err


def test_the_repr_says_where_it_stands():
    loader = SLWLoader(dataset_of(total_steps=20), prefetch=3)
    first(loader, 5)
    for fact in ("StagedSchedule", "total_steps=20", "prefetch=3", "step 2", "numpy array"):
        assert fact in repr(loader)


# -- processes and threads ---------------------------------------------------------------------------------------------


def slw_threads():
    return [thread for thread in threading.enumerate() if thread.name == "slw_data"]


def wait_until(done, seconds=5.0):
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    assert done()


@pytest.mark.parametrize("how", ["dropped", "reset", "finished", "failed"])
def test_the_thread_ends_with_its_loader(how):
    gc.collect()  # what other tests have dropped
    wait_until(lambda: slw_threads() == [])
    steps = 20 if how == "finished" else 1000
    source = [*DOCS, ["x"]] if how == "failed" else np.arange(600)
    loader = SLWLoader(dataset_of(source, total_steps=steps), prefetch=1)
    iterator = iter(loader)
    next(iterator)
    assert how == "finished" or how == "failed" or len(slw_threads()) == 1
    if how == "dropped":
        del loader, iterator
    elif how == "reset":
        loader.reset()
        del iterator
    elif how == "finished":
        assert len(list(iterator)) == 39
    else:
        refused(lambda: list(iterator), "'x'", error=TypeError)
    wait_until(lambda: slw_threads() == [])


@pytest.mark.parametrize("how", ["dropped", "left", "persistent", "reset", "finished", "failed"])
def test_no_process_is_left_behind(how):
    assert multiprocessing.active_children() == []
    gc.disable()  # what only the collector would end is left behind
    try:
        source = [*DOCS, ["x"]] if how == "failed" else DOCS
        loader = SLWLoader(
            dataset_of(source, total_steps=20 if how == "finished" else 5000),
            num_workers=2,
            persistent_workers=how == "persistent",
        )
        iterator = iter(loader)
        next(iterator)
        assert len(multiprocessing.active_children()) == 2
        if how == "left":
            iterator.close()
        elif how == "persistent":
            iterator.close()
            assert len(multiprocessing.active_children()) == 2
            loader.reset()
        elif how == "reset":
            loader.reset()
        elif how == "finished":
            assert len(list(iterator)) == 39
        elif how == "failed":
            with pytest.raises(TypeError, match="'x'"):
                list(iterator)
        else:
            del loader
        del iterator
        wait_until(lambda: multiprocessing.active_children() == [], 2)
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the handler may fire in a __del__
@pytest.mark.parametrize("source", [None, DOCS])
def test_a_killed_worker_ends_the_loop_and_the_run_resumes_exactly(source):
    loader = SLWLoader(dataset_of(source, total_steps=10**7), num_workers=2, timeout=3)
    iterator, found = iter(loader), []
    found += [next(iterator)["input_ids"].tolist() for _ in range(21)]
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
        for batch in iterator:
            found.append(batch["input_ids"].tolist())
    assert time.monotonic() - start < 3 + 5
    state = loader.state_dict()
    count = 2 * state["step"] + state["batch"]
    assert count - len(found) in (0, 1), "torch raises from a signal handler: perhaps before the line that appends"
    clean = first(SLWLoader(dataset_of(source, total_steps=10**7), prefetch=0), count + 30)
    assert found == clean[: len(found)]
    for again in (SLWLoader(dataset_of(source, total_steps=10**7), prefetch=0), loader):
        again.load_state_dict(state)
        assert first(again, 30) == clean[count:]
    loader.reset()


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("strike", [signal.SIGKILL, signal.SIGSTOP])
def test_the_rest_of_a_message_is_not_awaited_for_ever(num_workers, strike):
    """The workers end or stop within a message, as it is larger than a pipe; and torch's signal handler is not heard."""
    dataset = SLWDataset(np.arange(10**6), ConstantSchedule(1024), batch_size=16, epochs=9)
    loader = SLWLoader(dataset, num_workers=num_workers, timeout=2)
    iterator = iter(loader)
    delivered = [next(iterator)]
    handler = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        time.sleep(0.5)  # the next message is begun, and as much of it written as a pipe holds
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, strike)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):
            for batch in iterator:
                delivered.append(batch)
        assert time.monotonic() - start < 2 + 5
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert loader.step == len(delivered) >= 1
    tokens = np.arange(16 * 1024 * (len(delivered) + 1)) % 10**6
    rows = tokens.reshape(-1, 16, 1024)
    assert all((batch["input_ids"].numpy() == rows[i]).all() for i, batch in enumerate(delivered))
    assert (next(iter(loader))["input_ids"].numpy() == rows[-1]).all(), "it goes on with the next batch"
    loader.reset()


def test_an_error_that_a_signal_handler_raises_is_not_taken_for_another():
    """torch raises so that a worker has died, wherever the loop is: in the middle of the library too."""
    loader, raised = SLWLoader(dataset_of(total_steps=10**7), prefetch=0), set()

    def died(*_):
        raise RuntimeError("a worker has died")

    handler = signal.signal(signal.SIGALRM, died)
    try:
        for number in range(1000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + number * 1e-6)
                while True:
                    loader.metrics()
                    loader.state_dict()
                    loader.load_state_dict({"step": 21})
            except Exception as error:
                raised.add(repr(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert raised == {repr(RuntimeError("a worker has died"))}


def test_messages_go_through_a_wide_pipe_and_through_one_that_may_not_be_widened(monkeypatch):
    widths, expected = [], first(SLWLoader(dataset_of(), prefetch=0), 40)

    def widened(descriptor, command, size):
        if len(widths) % 2:
            widths.append(None)
            raise PermissionError("beyond what one user may have")
        widths.append(control(descriptor, command, size))
        return widths[-1]

    control = fcntl.fcntl
    monkeypatch.setattr(fcntl, "fcntl", widened)
    for _ in range(2):
        assert first(SLWLoader(dataset_of(), num_workers=2), 40) == expected
    assert widths == [1 << 20, None] or not hasattr(fcntl, "F_SETPIPE_SZ")


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("bad", [0, 399, 600, 611, 1500])
def test_every_batch_before_a_bad_token_is_delivered_and_none_after_it(num_workers, stored, bad):
    """Chunks are of at most 6 batches here, so the bad one is followed by those of other workers."""
    tokens = np.arange(2000, dtype=np.int32)
    source = tokens if stored else [tokens[i : i + 50] for i in range(0, 2000, 50)]
    dataset = dataset_of(source, StagedSchedule([4, 8] * 20, range(3, 120, 3)), vocab_size=2000)
    clean = first(SLWLoader(dataset, prefetch=0), 10_000)
    tokens[bad] = 7000  # after it was looked at
    loader, found = SLWLoader(dataset, num_workers=num_workers), []
    with pytest.raises(DataError, match="7000"):
        for batch in loader:
            found.append(batch["input_ids"].tolist())
    assert found == list(itertools.takewhile(lambda batch: all(bad not in row for row in batch), clean))
    assert (loader.state_dict()["step"], loader.state_dict()["batch"]) == divmod(len(found), 2)


class Blocking:
    def __iter__(self):
        yield from DOCS[:10]
        time.sleep(2.5)
        yield from DOCS[10:]


def test_a_source_that_blocks_is_timed_out():
    loader = SLWLoader(dataset_of(Blocking()), num_workers=1, timeout=1)
    found = []
    with pytest.raises(RuntimeError, match="timed out after 1 seconds"):
        for batch in loader:
            found.append(batch["input_ids"].tolist())
    assert divmod(len(found), 2) == (loader.step, loader.state_dict()["batch"])


@pytest.mark.parametrize("source", [None, DOCS])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupt_while_batches_are_made_leaves_the_last_delivered_one(monkeypatch, source, prefetch, at):
    """Ctrl-C may come anywhere: here, when the ``at``-th block of batches is cast."""
    loader = SLWLoader(dataset_of(source, StagedSchedule([4, 8, 2], [3, 6]), total_steps=30), prefetch=prefetch)
    clean = [b["input_ids"].tolist() for b in dataset_of(source, StagedSchedule([4, 8, 2], [3, 6]), total_steps=30)]
    original, calls = slw_data.batch.building._fit, itertools.count(1)

    def interrupted(values):
        if next(calls) == 2 * at:
            raise KeyboardInterrupt
        return original(values)

    found = []
    monkeypatch.setattr(slw_data.batch.building, "_fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for batch in loader:
            found.append(batch["input_ids"].tolist())
    monkeypatch.undo()
    state = loader.state_dict()
    assert (state["step"], state["batch"]) == divmod(len(found), 2)
    assert found + first(loader, 99) == clean


# -- start methods -----------------------------------------------------------------------------------------------------


def test_spawned_workers_read_every_kind_of_source(tmp_path):
    """Parallel columns of a raw file, a .npy file and a Hugging Face Dataset; then documents of a list."""
    import datasets

    np.arange(400, dtype=np.uint16).tofile(tmp_path / "a.bin")
    np.save(tmp_path / "b.npy", np.arange(400) % 7)
    rows = datasets.Dataset.from_dict({"c": [list(range(i, i + 4)) for i in range(0, 400, 4)]})
    source = {
        "input_ids": open_tokens(tmp_path / "a.bin", dtype="uint16"),
        "b": tmp_path / "b.npy",
        "c": open_tokens(rows, column="c"),
    }
    schedule = LinearSchedule(2, 8, warmup_steps=10, multiple_of=2)
    options = {"batch_size": 3, "total_steps": 12, "labels": "shifted"}
    for num_workers, make in (
        (2, lambda: SLWDataset(source, schedule, columns=tuple(source), **options)),
        (1, lambda: SLWDataset(DOCS, schedule, num_lanes=2, **options)),
    ):
        loader = SLWLoader(make(), num_workers=num_workers, multiprocessing_context="spawn")
        found = [{name: tensor.tolist() for name, tensor in batch.items()} for batch in loader]
        assert found == [{name: tensor.tolist() for name, tensor in batch.items()} for batch in make()]
        assert len(found) == 12


@pytest.mark.parametrize("context", ["spawn", "forkserver", multiprocessing.get_context("spawn")])
def test_a_lambda_is_refused_by_name_before_any_process_starts(context):
    def loader(*args, **options):
        made = dataset_of(*args, **options)
        return lambda: SLWLoader(made, num_workers=1, multiprocessing_context=context)

    facts = "num_workers=0", "lambda", "spawn" if not isinstance(context, str) else context
    refused(loader(None, lambda step: 4), "the schedule", *facts, error=TypeError)
    refused(loader(lambda: iter(DOCS), ConstantSchedule(4)), "the source", *facts, error=TypeError)
    SLWLoader(dataset_of(None, lambda step: 4), num_workers=1, multiprocessing_context="fork")
    assert multiprocessing.active_children() == []


# -- refusals of the loader --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [{"prefetch_factor": 4}, {"persistent_workers": True}, {"multiprocessing_context": "fork"}, {"timeout": 3}],
)
def test_options_of_worker_processes_need_worker_processes(option):
    [(name, value)] = option.items()
    refused(lambda: SLWLoader(dataset_of(), **option), f"{name}={value!r}", "num_workers is 0", error=ValueError)
    SLWLoader(dataset_of(), num_workers=1, **option)


@pytest.mark.parametrize("name", ["num_workers", "prefetch"])
@pytest.mark.parametrize("value", [-1, 1.0, True, None, "2"])
def test_counts_of_the_loader_are_whole_numbers(name, value):
    refused(lambda: SLWLoader(dataset_of(), **{name: value}), name, repr(value), error=ValueError)


@pytest.mark.parametrize("dataset", [np.arange(9), [[1, 2]], None, SLWDataset])
def test_a_loader_wants_a_dataset(dataset):
    refused(lambda: SLWLoader(dataset), "SLWDataset", type(dataset).__name__, error=TypeError)
