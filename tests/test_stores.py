"""Stores in memory, and what all stores share: the protocol, fingerprints, pickling, parallel columns."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from store_oracle import DTYPES, assert_reads_like, document_lists, joined, offsets_of, seeds, token_lists

from slw_data.errors import DataError
from slw_data.sources.stores import TokenStore, check_parallel, open_tokens
from slw_data.sources.stores.pieces import PiecedStore, Pieces, whole
from slw_data.sources.stores.windows import copy_windows


class Counting:
    """The example of the protocol's documentation: tokens that are computed."""

    name, documents, dtype = "counting", None, np.dtype("int64")

    def __init__(self, count):
        self.count, self.fingerprint = count, f"counting x {count}"

    def __len__(self):
        return self.count

    def read(self, start, stop):
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"tokens {start} to {stop} of {self.count}")
        return np.arange(start, stop)

    def gather(self, starts, length, out):
        out[:] = starts[:, None] + np.arange(length)


@given(tokens=token_lists, dtype=st.sampled_from(DTYPES), seed=seeds)
def test_an_array_reads_like_a_list(tokens, dtype, seed):
    assert_reads_like(open_tokens(np.array(tokens, dtype)), tokens, seed)


@given(tokens=token_lists, seed=seeds)
def test_an_array_with_gaps_reads_like_a_list(tokens, seed):
    gaps = np.array([tokens, [99] * len(tokens)], np.int32).T.reshape(-1)[::2]
    assert not gaps.flags.c_contiguous or len(tokens) == 1
    assert_reads_like(open_tokens(gaps), tokens, seed)


@given(tokens=token_lists, dtype=st.sampled_from(("uint8", "int16", "int32", "int64", "uint16", "uint32")), seed=seeds)
def test_a_tensor_reads_like_a_list(tokens, dtype, seed):
    assert_reads_like(open_tokens(torch.tensor(tokens, dtype=getattr(torch, dtype))), tokens, seed)


def test_a_store_of_ones_own_without_tokens_is_refused_in_words():
    with pytest.raises(DataError, match="counting holds no tokens"):
        open_tokens(Counting(0))
    with pytest.raises(DataError, match="counting holds no tokens"):
        open_tokens(Counting(0), vocab_size=9)


def test_arrays_and_tensors_are_not_copied():
    array, tensor = np.arange(5), torch.arange(5)
    stores = open_tokens(array), open_tokens(tensor)
    array[1] = tensor[1] = 77
    assert [store.read(0, 3).tolist() for store in stores] == [[0, 77, 2], [0, 77, 2]]


def test_what_is_read_belongs_to_the_caller():
    store = open_tokens(np.arange(5))
    store.read(0, 5)[:] = 9
    assert store.read(0, 5).tolist() == [0, 1, 2, 3, 4]


def test_a_bool_column_beside_input_ids_is_read_as_bool():
    store = open_tokens(np.array([True, False, True]), column="loss_mask")
    assert store.dtype == np.bool_
    assert_reads_like(store, [True, False, True])


def test_other_columns_may_be_negative():
    assert_reads_like(open_tokens(np.array([-100, 5]), column="labels"), [-100, 5])


@given(documents=document_lists, order=st.randoms(use_true_random=False), seed=seeds)
def test_pieces_of_several_sources_in_any_order_read_like_a_list(documents, order, seed):
    sources = [np.array(tokens, np.uint16) for tokens in documents]
    spans = []
    for _ in range(order.randint(1, 12)):
        source = order.randrange(len(sources))
        begin = order.randint(0, len(sources[source]))
        spans.append((source, begin, order.randint(0, len(sources[source]) - begin)))
    tokens = joined(documents[source][begin : begin + length] for source, begin, length in spans)
    pieces = Pieces(*np.array(spans, np.int64).T)
    if tokens:
        assert_reads_like(PiecedStore(sources, pieces, np.dtype("uint16"), "pieces"), tokens, seed)
    else:
        with pytest.raises(DataError, match="pieces holds no tokens"):
            PiecedStore(sources, pieces, np.dtype("uint16"), "pieces")


def test_pieces_that_continue_each_other_are_joined():
    pieces = Pieces(*np.array([(0, 0, 2), (0, 2, 0), (0, 2, 3), (1, 5, 1), (0, 5, 1), (0, 7, 1)], np.int64).T)
    assert list(zip(*(field.tolist() for field in pieces.joined()), strict=True)) == [
        (0, 0, 5),
        (1, 5, 1),
        (0, 5, 1),
        (0, 7, 1),
    ]


def test_long_windows_read_like_a_list():
    tokens = [number % 50_000 for number in range(30_000)]
    for kind in (np.array(tokens, np.uint16), np.array(tokens, ">u2"), np.array(tokens, np.int64)):
        store, starts = open_tokens(kind), [0, 7, 20_000]
        for length in (4095, 4096, 4097, 10_000):
            out = np.zeros((3, length), np.int64)
            store.gather(np.array(starts), length, out)
            assert out.tolist() == [tokens[start : start + length] for start in starts]


def test_windows_too_many_for_a_single_array_description_are_copied_one_by_one():
    class Huge(np.ndarray):
        def __len__(self):
            return 2**62

    tokens = np.arange(20, dtype=np.uint16).view(Huge)
    out = np.zeros((2, 3), np.int64)
    copy_windows(tokens, np.array([4, 9]), 3, out)
    assert out.tolist() == [[4, 5, 6], [9, 10, 11]]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 11), (11, 11)])
def test_reading_outside_names_the_numbers(start, stop):
    with pytest.raises(IndexError) as caught:
        open_tokens(np.arange(10)).read(start, stop)
    assert all(str(number) in str(caught.value) for number in (start, stop, 10))


@pytest.mark.parametrize("starts", [[-1, 0], [0, 7], [8]])
def test_gathering_outside_names_the_numbers_and_writes_nothing(starts):
    out = np.full((len(starts), 4), 5)
    with pytest.raises(IndexError) as caught:
        open_tokens(np.arange(10)).gather(np.array(starts), 4, out)
    assert all(str(number) in str(caught.value) for number in (min(starts), max(starts), 10, "numpy array"))
    assert (out == 5).all()


def test_gathering_into_another_shape_names_both():
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 3\)"):
        open_tokens(np.arange(10)).gather(np.array([0, 1]), 4, np.zeros((2, 3)))


def test_a_store_of_ones_own_is_taken_as_it_is():
    store: TokenStore = Counting(10**12)
    assert open_tokens(store, vocab_size=2**62) is store
    assert_reads_like(Counting(50), list(range(50)))


def test_a_store_of_ones_own_is_checked_too():
    with pytest.raises(DataError, match=r"counting: token 16 is 16.*vocab_size 16"):
        open_tokens(Counting(20), vocab_size=16)


def test_a_fingerprint_is_the_same_for_the_same_content():
    tokens = np.arange(100_000, dtype=np.uint16)
    assert open_tokens(tokens).fingerprint == open_tokens(torch.from_numpy(tokens.copy())).fingerprint
    assert open_tokens(tokens).fingerprint == "uint16 x 100000 #d5cb173dd727"


@pytest.mark.parametrize(
    "other",
    [
        np.arange(100_000, dtype=np.int32),
        np.arange(99_999, dtype=np.uint16),
        np.arange(100_000, dtype=np.uint16)[::-1],
        np.arange(100_000, dtype=">u2"),
        np.append(np.arange(99_999, dtype=np.uint16), np.uint16(7)),
        np.append(np.uint16(7), np.arange(1, 100_000, dtype=np.uint16)),
    ],
    ids=["dtype", "count", "order", "byte order", "last token", "first token"],
)
def test_a_fingerprint_differs_with(other):
    assert open_tokens(other).fingerprint != open_tokens(np.arange(100_000, dtype=np.uint16)).fingerprint


def test_a_fingerprint_names_a_byte_order_that_is_not_the_usual_one():
    assert open_tokens(np.arange(9, dtype=">u2")).fingerprint.startswith(">u2 x 9 #")
    assert open_tokens(np.arange(9, dtype="<u2")).fingerprint.startswith("uint16 x 9 #")


@given(tokens=token_lists, dtype=st.sampled_from(DTYPES))
def test_an_array_store_survives_pickling(tokens, dtype):
    store = open_tokens(np.array(tokens, dtype))
    copy = pickle.loads(pickle.dumps(store))
    assert_reads_like(copy, tokens)
    assert copy.fingerprint == store.fingerprint


def test_importing_stores_imports_neither_datasets_nor_pyarrow():
    code = (
        "import sys, slw_data.sources.stores; print([m for m in ('datasets', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _store(documents, name):
    tokens = np.array(joined(documents), np.int64)
    offsets = np.array(offsets_of(documents))
    return PiecedStore([tokens], whole(len(tokens)), tokens.dtype, name, documents=lambda: offsets)


def test_parallel_columns_pass():
    stores = {name: _store([[1, 2], [], [3]], name) for name in ("input_ids", "loss_mask")}
    check_parallel(stores)
    check_parallel(stores | {"labels": open_tokens(np.arange(3))})
    check_parallel({"input_ids": open_tokens(np.arange(3))})


@pytest.mark.parametrize(
    ("documents", "facts"),
    [
        ([[1, 2], [3, 4], [5]], ("row 1", "'loss_mask' has 2", "'input_ids' has 3")),
        ([[1, 2], [3, 4, 5], [6], [7]], ("'loss_mask' has 4 rows", "'input_ids' has 3", "row 3")),
        ([[1, 2], [3, 4, 5]], ("'loss_mask' has 2 rows", "'input_ids' has 3", "row 2")),
    ],
)
def test_columns_with_other_documents_name_column_row_and_lengths(documents, facts):
    stores = {"input_ids": _store([[1, 2], [3, 4, 5], [6]], "a"), "loss_mask": _store(documents, "b")}
    with pytest.raises(DataError) as caught:
        check_parallel(stores)
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)


def test_columns_of_other_lengths_name_both():
    with pytest.raises(DataError, match=r"'loss_mask' \(numpy array\) has 4 tokens, but 'input_ids' .* has 5"):
        check_parallel({"input_ids": open_tokens(np.arange(5)), "loss_mask": open_tokens(np.arange(4))})


@pytest.mark.parametrize(
    ("make", "error", "facts"),
    [
        (lambda: [1, 2, 3], TypeError, ("item 0", "int", "numpy.array(x)")),
        (lambda: [], DataError, ("empty",)),
        (lambda: {"input_ids": np.arange(3)}, TypeError, ("dict", "input_ids")),
        (lambda: 17, TypeError, ("int", "path", "NumPy array", "Dataset")),
        (lambda: None, TypeError, ("NoneType",)),
        (lambda: (n for n in range(3)), TypeError, ("generator",)),
        (lambda: np.empty(0, np.int64), DataError, ("numpy array", "no tokens")),
        (lambda: np.zeros((2, 3), np.int64), DataError, ("(2, 3)", "reshape(-1)")),
        (lambda: np.array(5), DataError, ("shape ()",)),
        (lambda: np.array([1.5]), TypeError, ("float64",)),
        (lambda: np.ma.array([1, 2], mask=[True, False]), TypeError, ("masked", "filled", "compressed")),
        (lambda: np.array([True]), TypeError, ("bool", "input_ids")),
        (lambda: np.array([1, None]), TypeError, ("object",)),
        (lambda: np.array(["a"]), TypeError, ("<U1",)),
        (lambda: np.array([1j]), TypeError, ("complex128",)),
        (lambda: np.array([3, -7, 1]), DataError, ("token 1 is -7", "0 or more")),
        (lambda: np.array([1, 2**63 + 5], np.uint64), DataError, ("token 1", str(2**63 + 5), "numpy array")),
        (lambda: torch.tensor([1.0]), TypeError, ("torch.float32",)),
        (lambda: torch.tensor([True]), TypeError, ("bool",)),
        (lambda: torch.empty(3, dtype=torch.int64, device="meta"), TypeError, ("meta", "cpu()")),
        (lambda: torch.zeros(2, 3, dtype=torch.int64), DataError, ("torch tensor", "(2, 3)")),
    ],
)
def test_what_is_no_store_is_refused_naming(make, error, facts):
    with pytest.raises(error) as caught:
        open_tokens(make())
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "facts"),
    [
        ({"vocab_size": 0}, DataError, ("vocab_size", "0")),
        ({"vocab_size": True}, TypeError, ("vocab_size", "True")),
        ({"vocab_size": 10.0}, TypeError, ("vocab_size", "10.0")),
        ({"eos_id": -1}, DataError, ("eos_id", "-1")),
        ({"eos_id": "0"}, TypeError, ("eos_id", "'0'")),
        ({"eos_id": 70_000}, DataError, ("eos_id 70000", "uint16", "65535")),
        ({"vocab_size": 65_537}, DataError, ("vocab_size 65537", "uint16", "65535")),
        ({"vocab_size": 9}, DataError, ("token 9 is 9", "vocab_size 9", "0 to 8")),
        ({"dtype": "int32"}, DataError, ("uint16", "int32")),
        ({"dtype": "uint17"}, TypeError, ("uint17",)),
        ({"dtype": "float32"}, TypeError, ("float32", "uint16")),
    ],
)
def test_options_that_cannot_be_are_refused_naming(options, error, facts):
    with pytest.raises(error) as caught:
        open_tokens(np.arange(10, dtype=np.uint16), **options)
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)


def test_options_that_just_fit_are_taken():
    store = open_tokens(np.arange(10, dtype=np.uint16), dtype="uint16", vocab_size=np.int64(65_536), eos_id=65_535)
    assert len(store) == 10
    open_tokens(np.arange(10), vocab_size=10)


def test_an_id_out_of_range_is_found_at_the_far_end_of_a_large_store():
    tokens = np.zeros(300_000, np.int32)
    tokens[299_990] = 50_257
    with pytest.raises(DataError, match=r"token 299990 is 50257.*0 to 50256"):
        open_tokens(tokens, vocab_size=50_257)
