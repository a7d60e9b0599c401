"""Files that are replaced between opening and mapping, descriptors of all stores, and more tokens than int64 counts."""

import os
import pickle
import resource
import shutil
import warnings

import numpy as np
import pytest
from refusals import refused

from slw_data import DataError, open_tokens
from slw_data.sources.stores.files import OPEN_FILES
from slw_data.sources.stores.pieces import PiecedStore, Pieces, whole


def written(path, tokens, dtype="uint16"):
    np.array(tokens, dtype).tofile(path)
    return path


def saved(path, tokens):
    """As a .npy file, of which nothing is mapped before it is read."""
    np.save(path, np.array(tokens, np.uint16))
    return path


OLD, NEW = list(range(5000)), list(range(1, 5001))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("kept_time", [False, True])
def test_a_file_that_is_replaced_before_it_is_mapped_is_refused(tmp_path, count, pickled, kept_time):
    paths = [saved(tmp_path / f"{n}.npy", OLD) for n in range(count)]
    store = open_tokens(paths)
    times = os.stat(paths[-1]).st_mtime_ns
    os.replace(saved(tmp_path / "new.npy", NEW), paths[-1])
    if kept_time:
        os.utime(paths[-1], ns=(times, times))
    store = pickle.loads(pickle.dumps(store)) if pickled else store
    at = 5000 * (count - 1)
    refused(lambda: store.read(at, at + 2), str(paths[-1]), "replaced", "open it again", error=DataError)
    if count > 1:
        assert store.read(0, 3).tolist() == [0, 1, 2]


def test_a_file_that_is_written_over_before_it_is_mapped_is_refused(tmp_path):
    path = saved(tmp_path / "a.npy", OLD)
    store = open_tokens(path)
    saved(path, NEW)
    os.utime(path, ns=(1, 1))
    refused(lambda: store.read(0, 2), str(path), "other tokens", error=DataError)


def test_a_copy_of_the_same_tokens_is_read_without_a_word(tmp_path):
    """As on another host, where the path leads to another file of the same content."""
    path = saved(tmp_path / "a.npy", OLD)
    store = open_tokens(path)
    shutil.copy(path, tmp_path / "copy")
    os.replace(tmp_path / "copy", path)
    os.utime(path, ns=(1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.read(4990, 5000).tolist() == OLD[4990:]


def test_documents_of_a_megatron_pair_count_too_when_it_is_compared(tmp_path):
    from store_oracle import write_megatron

    first = write_megatron(tmp_path / "a", [[1, 2], [3]])
    store = open_tokens(first)
    bin_path = tmp_path / "a.bin"
    shutil.copy(bin_path, tmp_path / "copy")
    os.replace(tmp_path / "copy", bin_path)
    assert store.read(0, 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize("write", [lambda p, t: np.save(p, np.array(t)), lambda p, t: np.array(t).tofile(p)])
def test_a_memory_map_whose_path_was_replaced_keeps_the_tokens_that_it_shows(tmp_path, write):
    path, other = tmp_path / "a.npy", tmp_path / "b.npy"
    write(path, OLD)
    mapped = np.load(path, mmap_mode="r") if path.read_bytes()[:6] == b"\x93NUMPY" else np.memmap(path, np.int64, "r")
    write(other, [*OLD[:2000], 7, *OLD[2001:]])
    os.replace(other, path)
    store = open_tokens(mapped)
    assert store.read(1999, 2002).tolist() == mapped[1999:2002].tolist() == [1999, 2000, 2001]
    assert store.fingerprint == open_tokens(np.array(OLD)).fingerprint


def test_a_large_memory_map_whose_path_was_replaced_by_one_of_equal_samples_keeps_its_tokens(tmp_path):
    path = written(tmp_path / "a.bin", np.zeros(10**6))
    mapped = np.memmap(path, np.uint16, "r")
    tokens = np.zeros(10**6, np.uint16)
    tokens[100_000] = 1  # where no sample is taken
    os.replace(written(tmp_path / "b.bin", tokens), path)
    assert open_tokens(mapped).read(100_000, 100_001).tolist() == [0]


def test_the_files_of_all_stores_together_are_few(tmp_path):
    columns, files = 9, 70
    paths = [[written(tmp_path / f"{c}_{n}.bin", [c, n, c + n]) for n in range(files)] for c in range(columns)]
    opened = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 2 * OPEN_FILES + 40, limits[1]))
    try:
        stores = [open_tokens(one, dtype="uint16", vocab_size=1000) for one in paths]
        for c, store in enumerate(stores):
            assert store.read(0, 3 * files).tolist() == [t for n in range(files) for t in (c, n, c + n)]
        assert len(os.listdir("/proc/self/fd")) <= opened + 2 * OPEN_FILES + 1
        for c, store in enumerate(stores):
            assert store.read(3, 6).tolist() == [c, 1, c + 1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    del store, stores
    assert len(os.listdir("/proc/self/fd")) <= opened + 1


class Nothing:
    def __getitem__(self, number):
        return np.zeros(5, np.uint8)


@pytest.mark.parametrize("lengths", [[2**62, 2**62], [2**63 - 1, 1], [2**62] * 5, [2**63 - 1] * 3])
def test_more_tokens_than_an_int64_counts_are_refused(lengths):
    make = lambda: PiecedStore(Nothing(), whole(*lengths), np.dtype(np.uint8), "huge")  # noqa: E731
    refused(make, "huge", "2^63", str(sum(lengths)), error=DataError)


def test_as_many_tokens_as_an_int64_counts_are_read_at_the_far_end():
    ends = Pieces(np.array([0, 1]), np.array([0, 0]), np.array([2**63 - 6, 5]))
    store = PiecedStore(Nothing(), ends, np.dtype(np.uint8), "huge", mark="huge")
    assert len(store) == 2**63 - 1 and store.read(2**63 - 3, 2**63 - 1).tolist() == [0, 0]
