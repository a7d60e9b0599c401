"""Files of tokens: headerless, .npy, Megatron pairs, lists of them; huge ones, changing ones, many at once."""

import os
import pickle
import resource
import time
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_oracle import (
    DTYPES,
    MEGATRON_CODES,
    assert_reads_like,
    document_lists,
    joined,
    offsets_of,
    seeds,
    token_lists,
    write_megatron,
    write_raw,
)

from slw_data.errors import DataError
from slw_data.sources.stores import open_tokens
from slw_data.sources.stores.files import OPEN_FILES

INTEGER_CODES = tuple(dtype for dtype in MEGATRON_CODES if "float" not in dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@given(tokens=token_lists, dtype=st.sampled_from(DTYPES), seed=seeds)
def test_a_headerless_file_reads_like_a_list(folder, tokens, dtype, seed):
    path = write_raw(folder / "tokens.bin", tokens, dtype)
    assert_reads_like(open_tokens(path, dtype=dtype), tokens, seed)


@given(tokens=token_lists, dtype=st.sampled_from(DTYPES), seed=seeds, version=st.sampled_from([(1, 0), (2, 0)]))
def test_a_npy_file_reads_like_a_list(folder, tokens, dtype, seed, version):
    with open(folder / "tokens.npy", "wb") as file:
        np.lib.format.write_array(file, np.array(tokens, dtype), version=version)
    assert_reads_like(open_tokens(str(folder / "tokens.npy")), tokens, seed)


@given(sequences=document_lists, dtype=st.sampled_from(INTEGER_CODES), seed=seeds, data=st.data())
def test_a_megatron_pair_reads_like_a_list_and_knows_its_documents(folder, sequences, dtype, seed, data):
    inner = sorted(data.draw(st.lists(st.integers(0, len(sequences)), max_size=5)))
    bounds = data.draw(st.sampled_from([list(range(len(sequences) + 1)), [0, *inner, len(sequences)]]))
    write_megatron(folder / "pair", sequences, dtype, documents=bounds)
    store = open_tokens(folder / f"pair{data.draw(st.sampled_from(['', '.bin', '.idx']))}")
    assert_reads_like(store, joined(sequences), seed)
    documents = [joined(sequences[a:b]) for a, b in pairwise(bounds)]
    assert store.documents.tolist() == offsets_of(documents)
    assert store.documents.dtype == np.int64


@given(parts=st.lists(token_lists, min_size=1, max_size=6), dtype=st.sampled_from(DTYPES), seed=seeds)
def test_a_list_of_files_reads_like_one_list(folder, parts, dtype, seed):
    paths = [write_raw(folder / f"part{n}.bin", tokens, dtype) for n, tokens in enumerate(parts)]
    store = open_tokens(paths, dtype=dtype)
    assert_reads_like(store, joined(parts), seed)
    assert store.documents is None


def test_a_list_may_mix_kinds_of_files(folder):
    np.save(folder / "mixed.npy", np.array([4, 5], np.uint16))
    paths = (write_raw(folder / "mixed.bin", [1, 2, 3]), folder / "mixed.npy")
    assert_reads_like(open_tokens(paths, dtype="uint16"), [1, 2, 3, 4, 5])


def test_a_list_of_megatron_pairs_knows_all_documents(folder):
    pairs = [[[1, 2], [3]], [[4], [], [5, 6]]]
    paths = [write_megatron(folder / f"m{number}", pair) for number, pair in enumerate(pairs)]
    store = open_tokens(paths)
    assert_reads_like(store, [1, 2, 3, 4, 5, 6])
    assert store.documents.tolist() == [0, 2, 3, 4, 6]
    assert pickle.loads(pickle.dumps(store)).documents.tolist() == [0, 2, 3, 4, 6]


def test_a_bin_beside_an_idx_is_headerless_if_its_dtype_is_given(folder):
    path = write_megatron(folder / "both", [[1, 2], [3]])
    assert open_tokens(path, dtype="uint16").documents is None
    assert open_tokens(path).documents.tolist() == [0, 2, 3]


def test_a_multimodal_index_is_read_without_its_modes(folder):
    path = write_megatron(folder / "modes", [[1, 2], [3]], modes=b"\0\1")
    assert open_tokens(path).documents.tolist() == [0, 2, 3]


def test_a_headerless_npy_is_read_if_its_dtype_is_given(folder):
    path = write_raw(folder / "olmo.npy", [1, 2, 3], "uint32")
    assert_reads_like(open_tokens(path, dtype="uint32"), [1, 2, 3])


def test_the_header_of_a_npy_file_wins_and_a_dtype_that_differs_is_refused(folder):
    np.save(folder / "wins.npy", np.array([4, 5], np.uint16))
    assert_reads_like(open_tokens(folder / "wins.npy", dtype="uint16"), [4, 5])
    with pytest.raises(DataError, match=r"wins\.npy.*uint16.*uint32"):
        open_tokens(folder / "wins.npy", dtype="uint32")


@given(tokens=token_lists, skip=st.integers(0, 5), mode=st.sampled_from(["r", "r+"]), seed=seeds)
def test_a_memmap_is_opened_by_its_path(folder, tokens, skip, mode, seed):
    path = write_raw(folder / "map.bin", [9, *tokens], "uint16")
    mapped = np.memmap(path, dtype=np.uint16, mode=mode, offset=2)[min(skip, len(tokens) - 1) :]
    store = open_tokens(mapped)
    assert store.name == str(path)
    assert_reads_like(pickle.loads(pickle.dumps(store)), mapped.tolist(), seed)


def test_a_private_memmap_is_an_array_because_its_file_does_not_have_its_tokens(folder):
    mapped = np.memmap(write_raw(folder / "private.bin", [1, 2, 3]), dtype=np.uint16, mode="c")
    mapped[0] = 9
    assert_reads_like(open_tokens(mapped), [9, 2, 3])


def test_a_two_dimensional_npy_is_read_the_way_its_error_says(folder):
    np.save(folder / "rows.npy", np.arange(6, dtype=np.uint16).reshape(2, 3))
    store = open_tokens(np.load(folder / "rows.npy", mmap_mode="r").reshape(-1))
    assert_reads_like(store, [0, 1, 2, 3, 4, 5])
    assert store.name.endswith("rows.npy")


def test_a_file_is_pickled_by_its_path_and_opened_when_it_is_read(folder):
    path = write_raw(folder / "big.bin", np.arange(2**22), "uint32")
    store = open_tokens(path, dtype="uint32")
    pickled = pickle.dumps(store)
    assert len(pickled) < 4096
    before = len(os.listdir("/proc/self/fd"))
    copy = pickle.loads(pickled)
    assert len(os.listdir("/proc/self/fd")) == before
    assert copy.read(2**22 - 2, 2**22).tolist() == [2**22 - 2, 2**22 - 1]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    assert copy.fingerprint == store.fingerprint and copy.name == store.name


def test_a_megatron_pair_is_pickled_by_its_path_even_when_its_documents_were_read(folder):
    store = open_tokens(write_megatron(folder / "many", [[1]] * 5000))
    assert len(store.documents) == 5001 and not store.documents.flags.writeable
    assert len(pickle.dumps(store)) < 4096
    assert pickle.loads(pickle.dumps(store)).documents.tolist() == list(range(5001))


def test_a_relative_path_still_works_after_the_working_directory_changed(folder, monkeypatch):
    write_raw(folder / "here.bin", [1, 2, 3])
    monkeypatch.chdir(folder)
    pickled = pickle.dumps(open_tokens("here.bin", dtype="uint16"))
    monkeypatch.chdir("/")
    assert_reads_like(pickle.loads(pickled), [1, 2, 3])


def test_fingerprints_do_not_depend_on_path_or_kind_of_file_but_on_order(folder):
    tokens = np.arange(50_000, dtype=np.uint16)
    one, two = (write_raw(folder / name, tokens) for name in ("one.bin", "two.bin"))
    np.save(folder / "three.npy", tokens)
    first = open_tokens(one, dtype="uint16").fingerprint
    assert first == open_tokens(two, dtype="uint16").fingerprint == open_tokens(folder / "three.npy").fingerprint
    assert first == open_tokens(tokens).fingerprint
    write_raw(two, tokens[::-1])
    pair = open_tokens([one, two], dtype="uint16").fingerprint
    assert pair.startswith("uint16 x 100000 in 2 files #")
    assert pair != open_tokens([two, one], dtype="uint16").fingerprint
    assert open_tokens(one, dtype=">u2").fingerprint.startswith(">u2 x 50000 #")


def test_fingerprints_of_megatron_pairs_differ_with_their_documents(folder):
    cuts = [[[1, 2], [3]], [[1], [2, 3]], [[1], [2], [3]]]
    marks = [open_tokens(write_megatron(folder / f"cut{n}", cut)).fingerprint for n, cut in enumerate(cuts)]
    assert len(set(marks)) == 3
    assert marks[0].startswith("uint16 x 3 in 2 documents #")


ISLANDS = {2**31 - 1: 11, 2**31: 12, 2**32 - 1: 13, 2**32: 14, 2**33: 15, 2**40 // 2 + 1: 16, 10**12 - 1: 17}


def test_a_trillion_tokens_open_and_read_at_the_far_end_at_once(folder):
    path, total = folder / "trillion.bin", 10**12
    path.touch()
    os.truncate(path, 2 * total)
    with open(path, "r+b") as file:
        for position, token in ISLANDS.items():
            file.seek(2 * position)
            file.write(token.to_bytes(2, "little"))
    before = time.perf_counter(), _anonymous_kilobytes()
    store = open_tokens(path, dtype="uint16", vocab_size=50_257)
    out = np.zeros((len(ISLANDS), 4), np.int64)
    starts = np.array([min(position, total - 4) for position in ISLANDS])
    store.gather(starts, 4, out)
    tail = store.read(total - 3, total).tolist()
    seconds, kilobytes = time.perf_counter() - before[0], _anonymous_kilobytes() - before[1]
    assert len(store) == total and tail == [0, 0, 17]
    for start, row in zip(starts.tolist(), out.tolist(), strict=True):
        assert row == [ISLANDS.get(position, 0) for position in range(start, start + 4)]
    assert seconds < 1 and kilobytes < 16_384, (seconds, kilobytes)
    assert len(pickle.dumps(store)) < 4096
    path.unlink()


def test_a_list_of_files_beyond_32_bits_reads_across_the_border(folder):
    paths = [folder / f"large{n}.bin" for n in range(3)]
    for path in paths:
        path.touch()
        os.truncate(path, 3 * 2**31)
    with open(paths[1], "r+b") as file:
        file.write(b"\7")
        file.seek(-1, os.SEEK_END)
        file.write(b"\x08")
    store = open_tokens(paths, dtype="uint8")
    assert len(store) == 9 * 2**31
    assert store.read(3 * 2**31 - 2, 3 * 2**31 + 2).tolist() == [0, 0, 7, 0]
    assert store.read(6 * 2**31 - 2, 6 * 2**31 + 1).tolist() == [0, 8, 0]
    for path in paths:
        path.unlink()


def _anonymous_kilobytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))


def test_more_files_than_descriptors_can_be_read(folder):
    count = 400
    paths = [write_raw(folder / f"many{n}.bin", [n, n + 1, n + 2]) for n in range(count)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 2 * OPEN_FILES + 40, limits[1]))
    try:
        store = open_tokens(paths, dtype="uint16", vocab_size=1000)
        assert store.read(0, 3 * count).tolist() == [n + k for n in range(count) for k in range(3)]
        out = np.zeros((count, 3), np.int64)
        store.gather(np.arange(count)[::-1] * 3, 3, out)
        assert out.tolist() == [[n, n + 1, n + 2] for n in reversed(range(count))]
        assert len(os.listdir("/proc/self/fd")) <= opened + 2 * OPEN_FILES + 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    del store
    assert len(os.listdir("/proc/self/fd")) <= opened + 1


def test_a_file_that_shrank_is_refused_before_it_is_touched(folder):
    path = write_raw(folder / "shrinks.bin", range(100_000), "uint32")
    store = open_tokens(path, dtype="uint32")
    assert store.read(0, 2).tolist() == [0, 1]
    os.truncate(path, 8)
    readings = [lambda: store.read(90_000, 90_002), lambda: store.gather(np.arange(3), 2, np.zeros((3, 2), np.int64))]
    for reading in [*readings, lambda: pickle.loads(pickle.dumps(store)).read(0, 1)]:
        with pytest.raises(DataError) as caught:
            reading()
        assert all(fact in str(caught.value) for fact in (str(path), "shrank from 400000 to 8 bytes"))


def test_a_file_that_is_written_to_is_warned_of_once(folder):
    path = write_raw(folder / "grows.bin", [1, 2, 3])
    store = open_tokens(path, dtype="uint16")
    store.read(0, 1)
    with open(path, "ab") as file:
        file.write(b"\4\0")
    os.utime(path, ns=(1, 1))
    with pytest.warns(RuntimeWarning, match=r"grows\.bin was modified while it was open"):
        assert_reads_like(store, [1, 2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_reads_like(store, [1, 2, 3])


def test_a_file_that_is_replaced_by_another_keeps_its_old_tokens(folder):
    path = write_raw(folder / "replaced.bin", [1, 2, 3])
    store = open_tokens(path, dtype="uint16")
    store.read(0, 1)
    os.replace(write_raw(folder / "new.bin", [7, 8, 9]), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_reads_like(store, [1, 2, 3])
        path.unlink()
        assert_reads_like(store, [1, 2, 3])
