"""Bad files, one by one: each is refused when it is opened, with the type and the facts that help."""

import io
import os
import pickle
import stat
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from store_oracle import write_megatron, write_raw

from slw_data.errors import DataError
from slw_data.sources.stores import open_tokens


def refused(error, path, *facts, **options):
    with pytest.raises(error) as caught:
        open_tokens(path, **options)
    missing = [fact for fact in facts if fact not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
    return caught.value


def test_a_size_that_is_no_multiple_names_path_size_and_spare_bytes(tmp_path):
    (tmp_path / "odd.bin").write_bytes(bytes(4003))
    facts = (str(tmp_path / "odd.bin"), "4003 bytes", "item size 4", "3 spare bytes")
    refused(DataError, tmp_path / "odd.bin", *facts, dtype="uint32")


@pytest.mark.parametrize("name", ["empty.bin", "empty.npy"])
def test_an_empty_file_names_path(tmp_path, name):
    (tmp_path / name).touch()
    refused(DataError, tmp_path / name, str(tmp_path / name), "empty", dtype="uint16")
    write_raw(tmp_path / "full.bin", [1])
    refused(DataError, [tmp_path / "full.bin", tmp_path / name], str(tmp_path / name), "empty", dtype="uint16")


def test_a_headerless_file_without_dtype_says_what_to_write(tmp_path):
    path = write_raw(tmp_path / "raw.bin", [1, 2])
    refused(DataError, path, str(path), "dtype='uint16'", str(tmp_path / "raw.idx"))


@pytest.mark.parametrize("name", ["none.bin", "none.npy", "none.idx", "none", "none.parquet"])
def test_a_missing_file_keeps_the_error_of_the_system(tmp_path, name):
    for options in ({}, {"dtype": "uint16"}):
        assert refused(FileNotFoundError, tmp_path / name, **options).filename.startswith(str(tmp_path / "none"))


def test_a_folder_that_is_no_dataset_keeps_the_error_of_the_system(tmp_path):
    assert refused(IsADirectoryError, tmp_path, "save_to_disk").filename == str(tmp_path)
    (tmp_path / "folder.npy").mkdir()
    path = write_raw(tmp_path / "a.bin", [1])
    assert refused(IsADirectoryError, [path, tmp_path / "folder.npy"], dtype="uint16").filename.endswith("folder.npy")


def test_a_loop_of_links_keeps_the_error_of_the_system(tmp_path):
    (tmp_path / "loop.bin").symlink_to(tmp_path / "loop.bin")
    assert "loop.bin" in refused(OSError, tmp_path / "loop.bin", dtype="uint16").filename


def test_a_file_without_permission_keeps_the_error_of_the_system(tmp_path):
    path = write_raw(tmp_path / "secret.bin", [1])
    path.chmod(0)
    user = os.geteuid()
    os.seteuid(65_534 if user == 0 else user)  # root may read everything
    try:
        assert refused(PermissionError, path, dtype="uint16").filename == str(path)
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["pipe.bin", "pipe.npy", "pipe.idx"])
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / "pipe.bin").exists() or write_raw(tmp_path / "pipe.bin", [1])
    options = {} if name == "pipe.idx" else {"dtype": "uint16"}
    refused(ValueError, tmp_path / name, str(tmp_path / name), "not a regular file", **options)


def test_a_device_is_refused():
    assert stat.S_ISCHR(os.stat("/dev/zero").st_mode)
    refused(ValueError, "/dev/zero", "/dev/zero", "not a regular file", dtype="uint16")


def test_the_same_file_twice_names_both_paths(tmp_path):
    path = write_raw(tmp_path / "a.bin", [1, 2])
    (tmp_path / "b.bin").symlink_to(path)
    os.link(path, tmp_path / "c.bin")
    for other in ("b.bin", "c.bin", "a.bin"):
        refused(DataError, [path, tmp_path / other], str(path), str(tmp_path / other), "twice", dtype="uint16")


def test_files_of_several_dtypes_name_both(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3, dtype=np.uint16))
    np.save(tmp_path / "b.npy", np.arange(3, dtype=np.int32))
    facts = (str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), "uint16", "int32")
    refused(DataError, [tmp_path / "a.npy", tmp_path / "b.npy"], *facts)


def test_an_id_beyond_the_vocabulary_names_the_file_of_the_list_and_the_position_in_it(tmp_path):
    paths = [write_raw(tmp_path / "a.bin", [1, 2]), write_raw(tmp_path / "b.bin", [3, 60_000])]
    error = refused(
        DataError, paths, str(paths[1]), "token 1 is 60000", "vocab_size 50257", dtype="uint16", vocab_size=50_257
    )
    assert str(paths[0]) not in str(error)


TOKENS = np.random.default_rng(0).integers(300, 50_000, 5000)


@pytest.mark.parametrize(
    ("written", "read", "fact"),
    [
        (">u2", "uint16", "dtype='>u2'"),
        ("uint16", ">u2", "dtype='uint16'"),
        (">u4", "uint32", "dtype='>u4'"),
        ("uint16", "uint32", "dtype='uint16'"),
        ("uint32", "int64", "dtype='uint32'"),
    ],
)
def test_ids_read_with_a_wrong_dtype_name_the_one_that_fits(tmp_path, written, read, fact):
    path = write_raw(tmp_path / "wrong.bin", TOKENS, written)
    refused(DataError, path, str(path), "vocab_size 50257", fact, dtype=read, vocab_size=50_257)
    assert open_tokens(path, dtype=written, vocab_size=50_257).read(0, 5000).tolist() == TOKENS.tolist()


def test_wide_ids_read_as_narrow_ones_name_the_wider_dtype(tmp_path):
    path = write_raw(tmp_path / "wide.bin", TOKENS + 70_000 * (TOKENS % 2), "uint32")
    refused(DataError, path, "dtype='uint32'", dtype="uint16", vocab_size=50_257)


@pytest.mark.parametrize(("written", "read"), [("uint32", "uint16"), (">u4", ">u2"), ("int64", "uint32")])
def test_wide_ids_read_as_narrow_ones_are_warned_of_without_a_vocabulary(tmp_path, written, read):
    path = write_raw(tmp_path / "zeros.bin", TOKENS, written)
    with pytest.warns(RuntimeWarning, match=r"zeros\.bin read as .* zeros at every other position.*dtype="):
        open_tokens(path, dtype=read)


def test_zeros_everywhere_are_not_warned_of(tmp_path):
    open_tokens(write_raw(tmp_path / "padding.bin", [0] * 5000), dtype="uint16")
    open_tokens(write_raw(tmp_path / "ids.bin", TOKENS), dtype="uint16")


def test_a_vocabulary_that_the_dtype_cannot_hold_is_refused(tmp_path):
    path = write_raw(tmp_path / "small.bin", [4464])
    refused(DataError, path, str(path), "vocab_size 128000", "uint16", "65535", dtype="uint16", vocab_size=128_000)


def test_a_numpy_header_in_a_bin_file_is_not_read_as_tokens(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(8))
    os.rename(tmp_path / "a.npy", tmp_path / "a.bin")
    refused(DataError, tmp_path / "a.bin", str(tmp_path / "a.bin"), ".npy", dtype="uint16")


def test_the_header_of_llm_c_is_named_and_its_remedy_works(tmp_path):
    path = tmp_path / "llmc.bin"
    path.write_bytes(struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + struct.pack("<3H", 5, 6, 7))
    refused(DataError, path, str(path), "llm.c", "3 tokens", "offset=1024", dtype="uint16")
    store = open_tokens(np.memmap(path, dtype="uint16", mode="r", offset=1024))
    assert store.read(0, 3).tolist() == [5, 6, 7]


def test_a_float_npy_names_its_dtype(tmp_path):
    for dtype in ("float32", "complex64", "U3", [("a", "i4")], "datetime64[s]"):
        np.save(tmp_path / "a.npy", np.zeros(3, dtype))
        refused(TypeError, tmp_path / "a.npy", str(tmp_path / "a.npy"), str(np.dtype(dtype)))
    np.save(tmp_path / "a.npy", np.zeros(3, bool))
    refused(TypeError, tmp_path / "a.npy", str(tmp_path / "a.npy"), "bool", "input_ids")
    assert open_tokens(tmp_path / "a.npy", column="loss_mask").dtype == np.bool_


def test_pickled_objects_in_a_npy_are_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1, None]), allow_pickle=True)
    error = refused(DataError, tmp_path / "a.npy", str(tmp_path / "a.npy"), "pickled objects are not read")
    assert "allow_pickle" not in str(error)


def test_a_raw_pickle_is_no_npy_and_is_not_loaded(tmp_path):
    (tmp_path / "a.npy").write_bytes(pickle.dumps(list(range(100))))
    error = refused(DataError, tmp_path / "a.npy", str(tmp_path / "a.npy"), "dtype='uint16'")
    assert "allow_pickle" not in str(error) and error.__cause__ is None


@pytest.mark.parametrize("shape", [(2, 3), (), (1, 1, 4)])
def test_a_npy_of_other_dimensions_names_its_shape_and_the_remedy(tmp_path, shape):
    for order in "CF":
        np.save(tmp_path / "a.npy", np.zeros(shape, np.uint16, order=order))
        refused(DataError, tmp_path / "a.npy", str(tmp_path / "a.npy"), str(shape), "reshape(-1)")


def _npy(header):
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def test_a_truncated_npy_names_path_and_sizes(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(1000, dtype=np.uint16))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-3])
    refused(DataError, tmp_path / "a.npy", str(tmp_path / "a.npy"), "truncated", "2125 bytes", "expected 2128")
    (tmp_path / "a.npy").write_bytes(content + b"more")
    refused(DataError, tmp_path / "a.npy", str(tmp_path / "a.npy"), "longer", "2132 bytes", "expected 2128")
    for size in range(6, 128):
        (tmp_path / "a.npy").write_bytes(content[:size])
        refused(DataError, tmp_path / "a.npy", str(tmp_path / "a.npy"))


@pytest.mark.parametrize("shape", ["(-5,)", "(10**3,)", f"({2**70},)", "(True,)", "(1.5,)", "(0,)", "5"])
def test_a_npy_whose_header_lies_about_its_shape_is_refused(tmp_path, shape):
    (tmp_path / "a.npy").write_bytes(
        _npy(f"{{'descr': '<u2', 'fortran_order': False, 'shape': {shape}, }}") + bytes(20)
    )
    error = refused(DataError, tmp_path / "a.npy", str(tmp_path / "a.npy"))
    assert "one dimension" in str(error) or shape != "(-5,)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@given(place=st.integers(0, 151), byte=st.integers(0, 255))
@example(place=6, byte=3)
def test_a_damaged_npy_never_gives_another_error_and_never_more_tokens(folder, place, byte):
    buffer = io.BytesIO()
    np.save(buffer, np.arange(1, 13, dtype=np.uint16))
    content = bytearray(buffer.getvalue())
    content[place] = byte
    (folder / "a.npy").write_bytes(content)
    try:
        store = open_tokens(folder / "a.npy")
    except (DataError, TypeError) as error:
        assert str(folder / "a.npy") in str(error)
    else:
        assert len(store) * store.dtype.itemsize == 24


GOOD = [[1, 2, 3], [], [4, 5]]


@pytest.mark.parametrize(
    ("changes", "error", "facts"),
    [
        ({"magic": b"MMIDIDX\x00\x01"}, DataError, ("magic", "MMIDIDX")),
        ({"version": 2}, DataError, ("version is 2", "expected 1")),
        ({"code": 9}, DataError, ("dtype code is 9", "[1, 2, 3, 4, 5, 6, 7, 8]")),
        ({"code": 0}, DataError, ("dtype code is 0",)),
        ({"code": 6}, TypeError, ("dtype code 6", "float64")),
        ({"code": 7}, TypeError, ("dtype code 7", "float32")),
        ({"counts": (300, 4)}, DataError, ("102 bytes", "expected 3666", "300 sequences", "4 documents")),
        ({"counts": (2**63, 2**63)}, DataError, (str(2**63),)),
        ({"counts": (3, 3)}, DataError, ("expected 94", "3 documents")),
        ({"modes": b"\0"}, DataError, ("103 bytes",)),
        ({"lengths": [3, -1, 3]}, DataError, ("sequence 1", "-1")),
        ({"lengths": [3, 0, 3]}, DataError, ("sequence 2 ends at byte 12", "10 bytes")),
        ({"pointers": [0, 6, 8]}, DataError, ("sequence 2 ends at byte 12", "10 bytes")),
        ({"pointers": [0, 6, 2**63 - 2]}, DataError, ("sequence 2", "10 bytes")),
        ({"pointers": [0, 6, -4]}, DataError, ("sequence 2", "pointer -4")),
        ({"pointers": [0, 6, 4]}, DataError, ("pointer of sequence 2 is 4", "expected 6")),
        ({"pointers": [0, 2, 6]}, DataError, ("pointer of sequence 1 is 2", "expected 6")),
        ({"lengths": [2, 0, 2], "pointers": [0, 4, 4]}, DataError, ("10 bytes", "sum to 4 tokens", "8 bytes")),
        ({"documents": []}, DataError, ("document index is empty",)),
        ({"documents": [1, 2, 3]}, DataError, ("entry 0 is 1", "expected 0")),
        ({"documents": [-1, 2, 3]}, DataError, ("entry 0 is -1", "expected 0")),
        ({"documents": [-(2**63), 2, 3]}, DataError, (f"entry 0 is {-(2**63)}", "expected 0")),
        ({"documents": [0, 2**63 - 1, -2, 3]}, DataError, ("entry 2 is -2", f"at least {2**63 - 1}")),
        ({"documents": [0, 2, 1, 3]}, DataError, ("entry 2 is 1", "at least 2")),
        ({"documents": [0, 1, 2]}, DataError, ("entry, 2, is 2", "sequences, 3")),
        ({"documents": [0, 1, 4]}, DataError, ("entry, 2, is 4", "sequences, 3")),
        ({"documents": [0]}, DataError, ("entry, 0, is 0", "sequences, 3")),
    ],
)
def test_a_megatron_index_that_does_not_fit_is_refused_when_opened(tmp_path, changes, error, facts):
    path = write_megatron(tmp_path / "pair", GOOD, **changes)
    refused(error, path, str(tmp_path / "pair.idx"), *facts)


def test_lengths_that_do_not_count_end_tokens_are_refused(tmp_path):
    write_megatron(tmp_path / "pair", [[1, 2], [3]])
    write_raw(tmp_path / "pair.bin", [1, 2, 0, 3, 0])
    refused(DataError, tmp_path / "pair.bin", str(tmp_path / "pair.bin"), "10 bytes", "sum to 3 tokens", "6 bytes")


def test_a_bin_that_was_cut_is_refused(tmp_path):
    path = write_megatron(tmp_path / "pair", GOOD)
    os.truncate(path, 7)
    refused(DataError, path, str(path), "sequence 2 ends at byte 10", "7 bytes")
    os.truncate(path, 0)
    refused(DataError, path, str(path), "0 bytes")


@pytest.mark.parametrize("size", [0, 1, 33])
def test_a_truncated_megatron_header_is_refused(tmp_path, size):
    path = write_megatron(tmp_path / "pair", GOOD)
    os.truncate(tmp_path / "pair.idx", size)
    refused(DataError, path, str(tmp_path / "pair.idx"), "header truncated", f"{size} bytes", "34 expected")


def test_a_megatron_pair_without_tokens_is_refused(tmp_path):
    for sequences in ([], [[]]):
        refused(DataError, write_megatron(tmp_path / "pair", sequences), str(tmp_path / "pair.bin"), "0 bytes")


def test_an_idx_without_its_bin_names_the_bin(tmp_path):
    write_megatron(tmp_path / "pair", GOOD).unlink()
    for name in ("pair", "pair.idx"):
        assert refused(FileNotFoundError, tmp_path / name).filename == str(tmp_path / "pair.bin")


def test_an_index_that_is_replaced_later_does_not_move_documents(tmp_path):
    store = open_tokens(write_megatron(tmp_path / "pair", GOOD))
    write_megatron(tmp_path / "other", [[1, 2], [3]])
    os.replace(tmp_path / "other.idx", tmp_path / "pair.idx")
    with pytest.raises(DataError, match=r"pair\.bin now end at token 3, not at 5"):
        _ = store.documents


@given(place=st.integers(0, 101), byte=st.integers(0, 255))
def test_a_damaged_megatron_index_never_gives_another_error_or_other_tokens(folder, place, byte):
    path = write_megatron(folder / "pair", GOOD)
    content = bytearray((folder / "pair.idx").read_bytes())
    assert len(content) == 102
    content[place] = byte
    (folder / "pair.idx").write_bytes(content)
    try:
        store = open_tokens(path)
    except (DataError, TypeError) as error:
        assert str(folder / "pair") in str(error)
    else:
        assert store.read(0, 5).tolist() == [1, 2, 3, 4, 5]
        assert store.documents[[0, -1]].tolist() == [0, 5] and (np.diff(store.documents) > 0).all()
