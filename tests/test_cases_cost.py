"""Public reports about cost: what is pickled, kept, copied and shared, and how time grows."""

import gc
import json
import os
import pickle
import time

import numpy as np
import pytest
from cases import cut, flat, ids, numbered, take
from refusals import refused
from torch.utils.data import DataLoader

from slw_data import ConstantSchedule, SLWDataset, SLWLoader, StagedSchedule, open_tokens


def batches_of_64(path):
    return SLWDataset(open_tokens(path, dtype="uint16"), StagedSchedule([8, 16], [3]), batch_size=4)


def documents():
    yield from numbered([7, 30, 4] * 12)


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory):
    """A file of a gigabyte with nothing on the disk but its first tokens."""
    path = tmp_path_factory.mktemp("big") / "train.bin"
    with path.open("wb") as file:
        file.write(np.arange(1, 5001, dtype=np.uint16).tobytes())
        file.truncate(1 << 30)
    return path


@pytest.mark.parametrize(("context", "source"), [("fork", "file"), ("forkserver", "file"), ("spawn", "generator function")])
def test_B064_every_start_method_reads_files_and_generator_functions(gigabyte, context, source):
    stream = SLWDataset(documents, StagedSchedule([8, 16], [3]), batch_size=4)
    dataset, first = (batches_of_64(gigabyte), 1) if source == "file" else (stream, 0)
    loader = SLWLoader(dataset, num_workers=2, multiprocessing_context=context)
    assert ids(take(loader, 9)) == cut(range(first, 5001), [(4, 8)] * 3 + [(4, 16)] * 6)


def test_B064_a_pickled_dataset_is_its_path_and_what_cannot_be_pickled_is_named(gigabyte):
    dataset = batches_of_64(gigabyte)
    list(take(dataset, 3))
    copied = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 8192 and len(copied.source.columns["input_ids"]) == 1 << 29
    store = open_tokens(gigabyte, dtype="uint16")
    with_lambda = SLWDataset(store, lambda step: 8, batch_size=4, total_steps=3)
    of_lambda = SLWDataset(lambda: iter([[1] * 99]), ConstantSchedule(8), batch_size=4)
    for named, made in (("the schedule", with_lambda), ("the source", of_lambda)):
        refused(
            lambda m=made: SLWLoader(m, num_workers=2, multiprocessing_context="spawn"),
            named, "lambda", "module-level", "num_workers=0", error=TypeError,
        )  # fmt: skip
    live = SLWDataset((doc for doc in [[1] * 99]), ConstantSchedule(8), batch_size=4)
    refused(lambda: SLWLoader(live, num_workers=2), "one-shot", "2 workers", "callable", error=ValueError)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["store", "shuffled", "stream"])
def test_B065_a_batch_owns_its_own_size_and_a_state_is_small(kind, num_workers):
    tokens = np.arange(1 << 20, dtype=np.uint32)
    source = [tokens] if kind == "stream" else tokens
    dataset = SLWDataset(source, ConstantSchedule(8), batch_size=1, shuffle=kind == "shuffled", labels="both")
    loader = SLWLoader(dataset, num_workers=num_workers)
    for batch in take(loader, 20):
        for tensor in batch.values():
            assert tensor.untyped_storage().nbytes() == 64 == tensor.numel() * 8
        assert len(pickle.dumps(batch["input_ids"].numpy())) < 300
    assert len(pickle.dumps(loader.state_dict())) < 1000


def with_memory(batch):
    """The worker's process and its private memory in bytes, now and then."""
    if batch["step"][0].item() % 200 > 1:
        return None
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        private = sum(int(line.split()[1]) for line in file if line.startswith(("Private_Dirty", "Private_Clean")))
    return os.getpid(), private << 10


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory of a process is read from Linux's /proc")
def test_B116_the_memory_of_workers_is_flat_over_passes():
    gc.freeze()  # a collection in a worker would copy the pages of every object that this process has
    try:
        docs = numbered([8] * 500)
        dataset = SLWDataset(docs, ConstantSchedule(4), batch_size=2, epochs=8, extras=("step",))
        batches = DataLoader(dataset, batch_size=None, num_workers=2, collate_fn=with_memory)
        measured = [pair for pair in batches if pair is not None]
    finally:
        gc.unfreeze()
    for worker in {pid for pid, _ in measured}:
        memory = [private for pid, private in measured if pid == worker]
        assert len(memory) == 20 and memory[-1] - memory[5] < 1 << 20, f"{memory}, every 200 batches"


def test_B135_a_state_within_a_long_document_is_small_and_quick():
    document = np.arange(1_000_000)
    loader = SLWLoader(SLWDataset([document, [1, 2]], ConstantSchedule(8), batch_size=2))
    took = []
    for _ in take(loader, 50):
        began = time.perf_counter()
        state = loader.state_dict()
        took.append(time.perf_counter() - began)
        assert len(json.dumps(state)) < 1000
    assert np.median(took) < 1e-3
    again = SLWLoader(SLWDataset([document, [1, 2]], ConstantSchedule(8), batch_size=2))
    again.load_state_dict(state)
    assert flat(take(again, 1)) == list(range(800, 816))


@pytest.mark.parametrize("kind", ["one document", "many documents"])
def test_B136_time_is_linear_in_tokens(kind):
    def seconds(size):
        docs = [np.arange(size)] if kind == "one document" else [[1, 2, 3]] * (size // 3)
        dataset = SLWDataset(docs, ConstantSchedule(8), batch_size=64)
        began = time.process_time()
        for batch in dataset:
            assert batch["input_ids"].shape == (64, 8)
        return time.process_time() - began

    small = 250_000 if kind == "one document" else 15_000
    fastest = [min(seconds(size) for _ in range(2)) for size in (small, 8 * small)]
    assert fastest[1] < 16 * fastest[0], f"eight times the tokens took {fastest[1] / fastest[0]:.1f} times as long"
