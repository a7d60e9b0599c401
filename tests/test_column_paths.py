"""Paths to columns: ``meta.ids`` is the field ``ids`` of the column ``meta``, in every source that has columns."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from slw_data import open_stream, open_tokens
from slw_data.errors import DataError
from slw_data.sources.paths import value_at
from slw_data.sources.streams import huggingface
from tests.refusals import refused

ROWS = [
    {
        "meta": {"ids": [10 * i + k for k in range(i % 4)], "mask": [k % 2 for k in range(i % 4)], "url": "u"},
        "page": {"body": {"text": "ab" * (i % 3)}},
        "a.b": [i],
        "a": {"b": [-1]},
        "text": "x",
    }
    for i in range(23)
]
IDS = [row["meta"]["ids"] for row in ROWS if row["meta"]["ids"]]


def letters(text):
    return [ord(letter) - 97 for letter in text]


def documents_in(block, column="input_ids"):
    flat = block.read(column, 0, int(block.offsets[-1])).tolist()
    return [flat[a:b] for a, b in itertools.pairwise(block.offsets.tolist())]


def read(stream, column="input_ids", position=None):
    return [document for block in stream.blocks(0, position) for document in documents_in(block, column)]


def in_parquet(folder):
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=5)
    return load_dataset(
        "parquet", data_files=str(folder / "rows.parquet"), split="train", streaming=True, cache_dir=str(folder)
    )


SOURCES = {
    "a list": lambda folder: ROWS,
    "a generator function": lambda folder: lambda: iter(ROWS),
    "an IterableDataset": lambda folder: Dataset.from_list(ROWS).to_iterable_dataset(),
    "a map": lambda folder: Dataset.from_list(ROWS).to_iterable_dataset().map(lambda row: row),
    "a typed map": lambda folder: Dataset.from_list(ROWS).to_iterable_dataset().filter(lambda row: True),
    "a Parquet file": in_parquet,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_path_leads_into_a_struct(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(huggingface, "BATCH_ROWS", 4)

    def stream():
        return open_stream(SOURCES[kind](tmp_path), column="meta.ids", columns=("input_ids", "meta.mask"))

    assert stream().columns == ("input_ids", "meta.mask")
    assert read(stream()) == IDS
    assert read(stream(), "meta.mask") == [[k % 2 for k in range(len(ids))] for ids in IDS]
    blocks = list(stream().blocks(0))
    rest = read(stream(), position=json.loads(json.dumps(blocks[-1].position)))
    assert rest == documents_in(blocks[-1])


@pytest.mark.parametrize("kind", SOURCES)
def test_a_text_may_lie_in_structs_too(tmp_path, kind):
    stream = open_stream(SOURCES[kind](tmp_path), text_column="page.body.text", tokenizer=letters)
    assert read(stream) == [[0, 1] * (i % 3) for i in range(23) if i % 3]


def test_a_dataset_of_text_is_read_by_its_path():
    stream = open_stream(Dataset.from_list(ROWS), text_column="page.body.text", tokenizer=letters)
    assert read(stream) == [[0, 1] * (i % 3) for i in range(23) if i % 3]


@pytest.mark.parametrize("kind", SOURCES)
def test_a_column_whose_own_name_has_the_dot_wins(tmp_path, kind):
    assert read(open_stream(SOURCES[kind](tmp_path), column="a.b"), "a.b") == [[i] for i in range(23)]


def test_a_store_is_a_field_of_a_dataset(tmp_path):
    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "rows")
    for source in (dataset, tmp_path / "rows", dataset.select(range(23))):
        store = open_tokens(source, column="meta.ids")
        assert store.read(0, len(store)).tolist() == [token for ids in IDS for token in ids]
        assert np.diff(store.documents).tolist() == [len(ids) for ids in IDS]
    chosen = open_tokens(dataset.select([7, 2, 5]), column="meta.ids")
    assert chosen.read(0, len(chosen)).tolist() == [*ROWS[7]["meta"]["ids"], *ROWS[2]["meta"]["ids"], *ROWS[5]["meta"]["ids"]]
    dotted = open_tokens(dataset, column="a.b")
    assert dotted.read(0, len(dotted)).tolist() == list(range(23))


def test_a_path_that_leads_nowhere_lists_what_there_is(tmp_path):
    known = ["'a'", "'a.b'", "'meta.ids'", "'meta.mask'", "'meta.url'", "'page.body.text'", "'text'"]
    for path in ("meta.idz", "meta", "meta.ids.x", "page.body", "page", "ids", "meta.", ".ids", "."):
        for kind, make in SOURCES.items():
            error = TypeError if path in ("meta", "page.body", "page") else KeyError
            facts = [repr(path)] if error is TypeError else [repr(path), *known[1:]]
            refused(lambda make=make, path=path: read(open_stream(make(tmp_path), column=path), path), *facts, error=error)
            del kind
        refused(lambda path=path: open_tokens(Dataset.from_list(ROWS), column=path), repr(path), error=(KeyError, TypeError))
    message = refused(lambda: open_tokens(Dataset.from_list(ROWS), column="meta.idz"), *known[1:], error=KeyError)
    assert "column=" in message


@pytest.mark.parametrize("kind", ["a list", "an IterableDataset", "a map"])
@pytest.mark.parametrize("outer", [False, True])
def test_a_none_on_the_way_is_a_none_document(kind, outer):
    rows = [{"meta": {"ids": [1, 2]}}, {"meta": None if outer else {"ids": None}}, {"meta": {"ids": [3]}}]
    source = rows if kind == "a list" else Dataset.from_list(rows).to_iterable_dataset()
    source = source.map(lambda row: row) if kind == "a map" else source
    refused(lambda: read(open_stream(source, column="meta.ids"), "meta.ids"), "'meta.ids' of item 1 is None", error=DataError)


def test_a_none_struct_in_a_store_is_named():
    rows = [{"meta": {"ids": [1, 2]}}, {"meta": None}, {"meta": {"ids": [3]}}]
    refused(lambda: open_tokens(Dataset.from_list(rows), column="meta.ids"), "row 1 is None", "'meta.ids'", error=DataError)


def test_a_slice_of_structs_shows_its_own_rows_only():
    structs = pa.array([{"ids": [1]}, None, {"ids": [2, 3]}, {"ids": [4]}], pa.struct({"ids": pa.list_(pa.int32())}))
    dataset = Dataset(pa.table({"meta": pa.chunked_array([structs.slice(2, 1), structs.slice(3)])}))
    store = open_tokens(dataset, column="meta.ids")
    assert store.read(0, 3).tolist() == [2, 3, 4]
    assert read(open_stream(dataset.to_iterable_dataset(), column="meta.ids"), "meta.ids") == [[2, 3], [4]]


NAMES = st.sampled_from(["a", "b", "a.b", "b.a", "a.b.a", "c"])
MAPPINGS = st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=8)


def all_paths(mapping, before=""):
    """The naive reference: every way to write the path to a value that is not a mapping."""
    for name, value in mapping.items():
        yield before + name, value
        if isinstance(value, dict):
            yield from all_paths(value, before + name + ".")


@given(st.dictionaries(NAMES, MAPPINGS, max_size=4), NAMES, NAMES)
def test_a_path_finds_a_value_where_there_is_one(mapping, first, second):
    for path in (first, f"{first}.{second}"):
        values = [value for written, value in all_paths(mapping) if written == path]
        if not values:
            refused(lambda path=path: value_at(mapping, path, "here"), "here has no column", repr(path), error=KeyError)
        else:
            found = value_at(mapping, path, "here")
            assert any(found is value or found == value for value in values)
            if path in mapping:
                assert found == mapping[path]


def test_the_longer_of_two_names_goes_before_the_shorter():
    item = {"a": {"b.c": 1, "b": {"c": 2}}, "a.b": {"c": 3}}
    assert value_at(item, "a.b.c", "here") == 3
    assert value_at({"a": item["a"]}, "a.b.c", "here") == 1
