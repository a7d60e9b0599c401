"""Hugging Face datasets as stores: chunks, slices, indices, every kind of list, folders on disk."""

import pickle

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_oracle import assert_reads_like, document_lists, joined, offsets_of, seeds

from slw_data.errors import DataError
from slw_data.sources.stores import check_parallel, open_tokens

ITEM_TYPES = (pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64())
LIST_TYPES = (pa.list_, pa.large_list)


def dataset_of(*chunks, list_type=pa.list_, item=None, column="input_ids"):
    """A dataset whose column has exactly these chunks."""
    arrays = [pa.array(rows, list_type(item or pa.int32())) for rows in chunks]
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table({column: pa.chunked_array(arrays)})))


@st.composite
def any_dataset(draw):
    """(dataset, its rows as lists): chunked anyhow, perhaps sliced, selected, shuffled, concatenated."""
    chunks = draw(st.lists(document_lists, min_size=1, max_size=3))
    dataset = dataset_of(*chunks, list_type=draw(st.sampled_from(LIST_TYPES)), item=draw(st.sampled_from(ITEM_TYPES)))
    rows = joined(chunks)
    for _ in range(draw(st.integers(0, 2))):
        choice = draw(st.sampled_from(["slice", "select", "repeat"]))
        if choice == "slice" and rows:
            start = draw(st.integers(0, len(rows) - 1))
            stop = draw(st.integers(start, len(rows)))
            dataset, rows = dataset.select(range(start, stop)), rows[start:stop]
        elif choice == "select" and rows:
            picked = draw(st.lists(st.integers(0, len(rows) - 1), max_size=9))
            dataset, rows = dataset.select(picked), [rows[number] for number in picked]
        elif choice == "repeat" and rows:
            dataset, rows = datasets.concatenate_datasets([dataset, dataset]), rows + rows
    return dataset, rows


@given(pair=any_dataset(), seed=seeds)
def test_a_dataset_reads_like_its_rows(pair, seed):
    dataset, rows = pair
    assert list(dataset["input_ids"]) == rows
    if not any(rows):
        with pytest.raises(DataError, match="'input_ids' holds no tokens"):
            open_tokens(dataset)
        return
    store = open_tokens(dataset)
    assert_reads_like(store, joined(rows), seed)
    assert store.documents.tolist() == offsets_of(rows)
    copy = pickle.loads(pickle.dumps(store))
    assert_reads_like(copy, joined(rows), seed)
    assert (copy.name, copy.fingerprint, copy.documents.tolist()) == (store.name, store.fingerprint, offsets_of(rows))


@given(
    width=st.integers(1, 4),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=seeds,
    how=st.integers(0, 2),
)
def test_lists_of_fixed_size_read_like_their_rows(width, counts, seed, how):
    numbers = iter(range(1000))
    chunks = [[[next(numbers) for _ in range(width)] for _ in range(count)] for count in counts]
    dataset = dataset_of(*chunks, list_type=lambda item: pa.list_(item, width))
    rows = joined(chunks)
    if how == 1:
        dataset, rows = dataset.select(range(len(rows) // 2, len(rows))), rows[len(rows) // 2 :]
    elif how == 2:
        dataset, rows = dataset.select(list(range(len(rows)))[::-1]), rows[::-1]
    store = open_tokens(dataset)
    assert_reads_like(store, joined(rows), seed)
    assert store.documents.tolist() == offsets_of(rows)


@pytest.mark.parametrize("rows", [range(7), range(2, 6), [6, 1, 2, 2, 0]])
def test_a_column_of_single_tokens_is_one_stream_without_documents(rows):
    arrays = [pa.array([1, 2, 3, 4], pa.uint16()), pa.array([5, 6, 7], pa.uint16())]
    dataset = datasets.Dataset(datasets.table.InMemoryTable(pa.table({"input_ids": pa.chunked_array(arrays)})))
    store = open_tokens(dataset.select(rows))
    assert_reads_like(store, [[1, 2, 3, 4, 5, 6, 7][row] for row in rows])
    assert store.documents is None


def test_bools_are_read_from_their_bits():
    rows = [[True, False, True], [False], [True, True]]
    dataset = dataset_of(rows[:2], rows[2:], item=pa.bool_(), column="loss_mask").select(range(1, 3))
    assert_reads_like(open_tokens(dataset, column="loss_mask"), [False, True, True])


def test_values_are_not_copied():
    dataset = dataset_of([[1, 2], [3]], [[4, 5]])
    store = open_tokens(dataset)
    address = dataset.data.column("input_ids").chunk(0).values.buffers()[1].address
    assert store._sources[0].__array_interface__["data"][0] == address


def test_neighbouring_rows_of_a_selection_are_one_piece():
    dataset = dataset_of([[row, row] for row in range(100)])
    assert len(open_tokens(dataset.select([*range(10, 40), *range(40, 60), 0]))._begin) == 2


def test_a_shuffled_dataset_has_another_fingerprint_and_the_same_content_has_the_same():
    rows = [[row] * (row % 5 + 1) for row in range(200)]
    dataset = dataset_of(rows)
    mark = open_tokens(dataset).fingerprint
    assert mark.startswith(f"int32 x {len(joined(rows))} in 200 documents #")
    assert mark == open_tokens(dataset_of(rows[:50], rows[50:])).fingerprint
    assert mark == open_tokens(dataset.select([*range(200)])).fingerprint
    assert mark != open_tokens(dataset.shuffle(seed=1)).fingerprint
    assert mark != open_tokens(dataset_of(rows, item=pa.int64())).fingerprint
    assert mark != open_tokens(dataset_of([joined(rows)])).fingerprint


def test_a_saved_dataset_is_opened_by_its_folder_and_pickled_by_its_path(tmp_path):
    rows = [[row % 100] * 50 for row in range(2000)]
    dataset_of(rows).save_to_disk(tmp_path / "saved", num_shards=3)
    store = open_tokens(tmp_path / "saved")
    assert str(tmp_path / "saved") in store.name and "'input_ids'" in store.name
    assert_reads_like(store, joined(rows))
    pickled = pickle.dumps(store)
    assert len(pickled) < 4096
    assert_reads_like(pickle.loads(pickled), joined(rows))
    assert store.fingerprint == open_tokens(dataset_of(rows)).fingerprint


def test_columns_of_one_dataset_are_checked_row_by_row():
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3, 4, 5], [6]], "loss_mask": [[1, 1], [1, 1], [0, 1]]})
    stores = {column: open_tokens(dataset, column=column) for column in ("input_ids", "loss_mask")}
    with pytest.raises(DataError, match=r"row 1 .*'loss_mask' has 2 .*'input_ids' has 3"):
        check_parallel(stores)


@pytest.mark.parametrize(
    ("rows", "select", "facts"),
    [
        ([[1], None, [2]], None, ("row 1 is None",)),
        ([[1], None, [2]], [2, 2, 1], ("row 2 is None",)),
        ([[1], [], [2, 3, None]], None, ("row 2 holds None at position 2",)),
        ([[1, None], [4], [2, None, 3]], [1, 2, 0], ("row 1 holds None at position 1",)),
        ([[9], [None, 4], [2, None, 3]], range(1, 3), ("row 0 holds None at position 0",)),
    ],
)
def test_nulls_name_column_row_and_position(rows, select, facts):
    for chunks in ([rows], [rows[:1], rows[1:]]):
        dataset = dataset_of(*chunks)
        with pytest.raises(DataError) as caught:
            open_tokens(dataset if select is None else dataset.select(select))
        assert all(fact in str(caught.value) for fact in ("'input_ids'", *facts)), str(caught.value)


@pytest.mark.parametrize("select", [range(2), [1, 0], [0]])
def test_nulls_in_rows_that_were_left_out_do_not_matter(select):
    rows = [[1, 2], [3], None, [4, None]]
    assert_reads_like(open_tokens(dataset_of(rows).select(select)), joined(rows[row] for row in select))


def test_a_null_among_single_tokens_names_its_row():
    dataset = datasets.Dataset.from_dict({"input_ids": [1, 2, None, 4]})
    with pytest.raises(DataError, match="'input_ids': row 2 is None"):
        open_tokens(dataset)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([[1.5]], "list<item: double>"),
        ([["a"]], "list<item: string>"),
        ([[[1]]], "list<item: list<item: int64>>"),
        (["text"], "string"),
        ([{"a": 1}], "struct<a: int64>"),
        ([None, None], "null"),
        ([[], []], "list<item: null>"),
    ],
)
def test_columns_of_another_type_name_it(values, kind):
    dataset = datasets.Dataset(datasets.table.InMemoryTable(pa.table({"input_ids": values})))
    with pytest.raises(TypeError) as caught:
        open_tokens(dataset)
    assert "'input_ids'" in str(caught.value) and kind.replace("item", "") in str(caught.value).replace(
        "element", "item"
    ).replace("item", "")


def test_bools_are_no_token_ids():
    with pytest.raises(TypeError, match=r"dtype bool.*'input_ids'"):
        open_tokens(dataset_of([[True]], item=pa.bool_()))


def test_a_missing_column_names_those_that_exist():
    dataset = datasets.Dataset.from_dict({"tokens": [[1]], "mask": [[1]]})
    with pytest.raises(KeyError) as caught:
        open_tokens(dataset)
    assert all(fact in str(caught.value) for fact in ("input_ids", "['mask', 'tokens']", "column="))


def test_an_id_beyond_the_vocabulary_names_the_column():
    with pytest.raises(DataError, match=r"'input_ids': token 2 is 50257.*vocab_size 50257"):
        open_tokens(dataset_of([[1, 2], [50_257]]), vocab_size=50_257)


def test_a_large_uint64_is_refused_where_it_is_read():
    tokens = [7] * 70_000
    tokens[66_000] = 2**63
    store = open_tokens(dataset_of([tokens, [1] * 70_000], item=pa.uint64()))
    for reading in (
        lambda: store.read(65_990, 66_010),
        lambda: store.gather(np.array([0, 65_990]), 20, np.zeros((2, 20), np.int64)),
    ):
        with pytest.raises(DataError, match=rf"token 66000 is {2**63}"):
            reading()


def test_a_dictionary_of_splits_is_refused_naming_them(tmp_path):
    splits = datasets.DatasetDict(train=dataset_of([[1]]), test=dataset_of([[2]]))
    with pytest.raises(TypeError, match=r"\['test', 'train'\]"):
        open_tokens(splits)
    splits.save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError) as caught:
        open_tokens(tmp_path / "splits")
    assert all(fact in str(caught.value) for fact in (str(tmp_path / "splits"), "['test', 'train']"))
    assert_reads_like(open_tokens(tmp_path / "splits" / "train"), [1])


def test_a_stream_is_no_store():
    with pytest.raises(TypeError, match="IterableDataset"):
        open_tokens(dataset_of([[1]]).to_iterable_dataset())


def test_a_truncated_shard_is_refused_by_name(tmp_path):
    dataset_of([[row] * 100 for row in range(300)]).save_to_disk(tmp_path / "cut", num_shards=2)
    shard = sorted((tmp_path / "cut").glob("*.arrow"))[1]
    content = shard.read_bytes()
    for size in (len(content) - 8, len(content) - 1, len(content) // 2, 10, 0):
        shard.write_bytes(content[:size])
        with pytest.raises(DataError) as caught:
            open_tokens(tmp_path / "cut")
        assert str(shard) in str(caught.value) and f"{size} bytes" in str(caught.value)
