"""Hugging Face streams of documents of any length: blocks are bounded in tokens, and each of them resumes."""

import itertools
import json
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    LargeList,
    List,
    Value,
    concatenate_datasets,
    interleave_datasets,
    load_dataset,
)
from datasets.info import DatasetInfo
from datasets.iterable_dataset import ArrowExamplesIterable
from hypothesis import given, settings
from hypothesis import strategies as st

from slw_data import ConstantSchedule, SLWDataset, SLWLoader
from slw_data.errors import DataError, StateError
from slw_data.sources.streams import huggingface, open_stream

DOCUMENTS = [list(range(10 * i, 10 * i + (i * 7) % 23)) for i in range(40)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(huggingface, "BATCH_ROWS", 7)
    monkeypatch.setattr(huggingface, "BLOCK_TOKENS", 20)


def documents_in(block):
    flat = block.read("input_ids", 0, int(block.offsets[-1])).tolist()
    return [flat[a:b] for a, b in itertools.pairwise(block.offsets.tolist())]


def naive_blocks(documents, rows=7, tokens=20):
    """Batches of rows, cut before the row with which a block would have too many tokens; empty rows are then dropped."""
    blocks = []
    for at in range(0, len(documents), rows):
        block = []
        for document in documents[at : at + rows]:
            if block and sum(map(len, block)) + len(document) > tokens:
                blocks.append(block)
                block = []
            block.append(document)
        blocks.append(block)
    return [kept for block in blocks if (kept := [document for document in block if document])]


def table(documents=DOCUMENTS):
    return Dataset.from_dict({"input_ids": documents, "text": ["".join(map(letter, d)) for d in documents]})


def letter(token):
    return chr(32 + token)


def ids(text):
    return [ord(character) - 32 for character in text]


def saved_parquet(folder, documents=DOCUMENTS, kind=pa.list_(pa.int32())):
    half = len(documents) // 2
    for number, part in enumerate((documents[:half], documents[half:])):
        columns = {"input_ids": pa.array(part, kind), "text": ["".join(map(letter, d)) for d in part]}
        parquet.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=9)
    return load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train", streaming=True, cache_dir=str(folder))


KINDS = {
    "Arrow batches": (lambda: table().to_iterable_dataset(), {}),
    "rows of a map": (lambda: table().to_iterable_dataset().map(lambda row: row), {}),
    "text of Arrow batches": (lambda: table().to_iterable_dataset(), {"tokenizer": ids}),
    "text of a map": (lambda: table().to_iterable_dataset().map(lambda row: row), {"tokenizer": ids}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_cut_between_rows_and_every_block_resumes(kind):
    make, options = KINDS[kind]
    expected = naive_blocks(DOCUMENTS)
    assert len(expected) > 20
    assert any(len(block) == 1 and len(block[0]) > 10 for block in expected)
    blocks = list(open_stream(make(), **options).blocks(0))
    assert [documents_in(block) for block in blocks] == expected
    for number, block in enumerate(blocks):
        position = json.loads(json.dumps(block.position))
        assert [documents_in(b) for b in open_stream(make(), **options).blocks(0, position)] == expected[number:]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=25), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=8, deadline=None)
def test_any_lengths_and_any_bounds_give_the_naive_blocks(kind, lengths, rows, tokens):
    documents = [[k + 1 for k in range(length)] for length in lengths]
    source = table(documents).to_iterable_dataset()
    source = source.map(lambda row: row) if "map" in kind else source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "BATCH_ROWS", rows)
        patch.setattr(huggingface, "BLOCK_TOKENS", tokens)
        stream = open_stream(source, **KINDS[kind][1])
        found = list(stream.blocks(0))
        expected = naive_blocks(documents, rows, tokens)
        assert [documents_in(block) for block in found] == expected
        if found:
            middle = len(found) // 2
            rest = stream.blocks(0, found[middle].position)
            assert [documents_in(block) for block in rest] == expected[middle:]


def test_a_row_longer_than_the_bound_is_a_block_of_its_own():
    documents = [[1, 2], [7] * 21, [3], [8] * 100, [4, 5]]
    found = [documents_in(block) for block in open_stream(table(documents).to_iterable_dataset()).blocks(0)]
    assert found == [[[1, 2]], [[7] * 21], [[3]], [[8] * 100], [[4, 5]]]


def test_a_position_is_that_of_its_block_whatever_the_bound_is_on_resuming(monkeypatch):
    for make, options in KINDS.values():
        blocks = list(open_stream(make(), **options).blocks(0))
        for bound in (5, 1 << 22):
            monkeypatch.setattr(huggingface, "BLOCK_TOKENS", bound)
            for number, block in enumerate(blocks):
                resumed = [documents_in(b) for b in open_stream(make(), **options).blocks(0, block.position)]
                assert resumed[0] == documents_in(block)
                rest = [document for b in blocks[number:] for document in documents_in(b)]
                assert [document for part in resumed for document in part] == rest
        monkeypatch.setattr(huggingface, "BLOCK_TOKENS", 20)


def old_position(documents, rows, state, dtype):
    """A position as it was saved when a block was a whole batch: the checksum is that of the lengths, then of the ids."""
    batch = documents[rows : rows + 7]
    check = zlib.crc32(np.array([len(d) for d in batch], np.int64).tobytes())
    check = zlib.crc32(np.array([token for d in batch for token in d], dtype).tobytes(), check)
    return {"rows": rows, "state": state, "check": check}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_a_position_from_before_reads_its_whole_batch_first_again(kind):
    make, options = KINDS[kind]
    dtype = np.int32 if kind == "Arrow batches" else np.int64
    documents = table()["input_ids"]
    states = {}
    for block in open_stream(make(), **options).blocks(0):
        states.setdefault(block.position["rows"] - block.position["part"][0], block.position["state"])
    assert list(states) == [0, 7, 14, 21, 28, 35]
    for rows, state in states.items():
        position = old_position(list(documents), rows, state, dtype)
        first, *rest = (documents_in(block) for block in open_stream(make(), **options).blocks(0, position))
        assert first == [d for d in DOCUMENTS[rows : rows + 7] if d]
        assert rest == [block for at in range(rows + 7, 40, 7) for block in naive_blocks(DOCUMENTS[at : at + 7])]
        again = next(open_stream(make(), **options).blocks(0, position))
        assert documents_in(next(open_stream(make(), **options).blocks(0, again.position))) == first


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_state_does_not_fit_the_rows_before_the_block_are_read_again(kind):
    make, options = KINDS[kind]
    blocks = list(open_stream(make(), **options).blocks(0))
    for number in (0, 1, 5, len(blocks) - 1):
        position = blocks[number].position | {"state": {"epoch": 0, "examples_iterable": {"other": 1}}}
        with pytest.warns(UserWarning, match=rf"reading {position['rows']} rows again"):
            rest = [documents_in(block) for block in open_stream(make(), **options).blocks(0, position)]
        assert rest == [documents_in(block) for block in blocks[number:]]


@pytest.mark.filterwarnings("ignore:.*does not resume at the row")
def test_a_row_that_changed_in_a_block_is_refused_and_one_in_another_block_of_the_batch_is_not():
    blocks = list(open_stream(table().to_iterable_dataset()).blocks(0))
    position = blocks[4].position
    row, count = position["rows"], position["part"][1]
    for changed in range(row - position["part"][0], row + count + 1):
        documents = [[*d, 1] if i == changed else d for i, d in enumerate(DOCUMENTS)]
        resumed = open_stream(table(documents).to_iterable_dataset()).blocks(0, position)
        if row <= changed < row + count:
            with pytest.raises(StateError, match=rf"row {row} of pass 0 .* are not the ones"):
                next(resumed)
        else:
            assert documents_in(next(resumed)) == documents_in(blocks[4])


def test_a_position_with_another_part_than_two_numbers_is_refused_at_once():
    position = list(open_stream(table().to_iterable_dataset()).blocks(0))[4].position
    for part in (None, 3, [1], [0, -1], [True, 2], [position["rows"] + 1, 1], [0, 0]):
        with pytest.raises(StateError, match="saved position"):
            open_stream(table().to_iterable_dataset()).blocks(0, position | {"part": part})


def test_a_stop_iteration_after_resuming_is_named_by_its_row():
    def stops(row):
        return row if row["input_ids"] != DOCUMENTS[13] or not armed else next(iter([]))

    armed = []
    stream = open_stream(table().to_iterable_dataset().map(stops))
    position = next(block.position for block in stream.blocks(0) if block.position["rows"] == 13)  # a long row
    armed.append(True)
    resumed = stream.blocks(0, position)
    with pytest.raises(DataError, match="ended by StopIteration at item 13"):
        list(resumed)


# files


@pytest.mark.parametrize("kind", [pa.list_(pa.uint16()), pa.large_list(pa.int64())])
def test_a_parquet_file_is_read_in_blocks_that_resume(tmp_path, kind):
    def source():
        return saved_parquet(tmp_path, kind=kind)

    blocks = list(open_stream(source()).blocks(0))
    assert [documents_in(block) for block in blocks] == naive_blocks(DOCUMENTS)
    for number in (3, 11, len(blocks) - 1):
        position = json.loads(json.dumps(blocks[number].position))
        rest = [documents_in(block) for block in open_stream(source()).blocks(0, position)]
        assert rest == naive_blocks(DOCUMENTS)[number:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_over_a_parquet_file_resumes_at_any_step(tmp_path, num_workers):
    def loader():
        dataset = SLWDataset(saved_parquet(tmp_path), ConstantSchedule(5), batch_size=2)
        return SLWLoader(dataset, num_workers=num_workers)

    tokens = [token for document in DOCUMENTS for token in document]
    expected = [np.reshape(tokens[at : at + 10], (2, 5)).tolist() for at in range(0, len(tokens) - 9, 10)]
    running, states = loader(), []
    for step, batch in enumerate(running):
        assert batch["input_ids"].tolist() == expected[step]
        states.append(json.loads(json.dumps(running.state_dict())))
    assert len(states) == len(expected)
    for step in (0, 7, 15) if num_workers == 0 else (7,):
        again = loader()
        again.load_state_dict(states[step])
        assert [batch["input_ids"].tolist() for batch in again] == expected[step + 1 :]
        again.close()


# more tokens than 32 bits count


def long_row(tokens):
    """One row of so many zeros. Pages that are only read take no memory."""
    return pa.Array.from_buffers(pa.int8(), tokens, [None, pa.py_buffer(np.zeros(tokens, np.int8))])


def tables(rows):
    for row in rows:
        yield 0, pa.table({"input_ids": row})


def streamed(rows, feature):
    info = DatasetInfo(features=Features({"input_ids": feature}))
    return IterableDataset(ArrowExamplesIterable(tables, {"rows": rows}), info=info)


def test_a_batch_of_more_than_two_to_the_31_tokens_is_read_without_a_copy(monkeypatch):
    monkeypatch.setattr(huggingface, "BLOCK_TOKENS", 1 << 22)
    row = pa.ListArray.from_arrays(pa.array([0, 2**29], pa.int32()), long_row(2**29))
    assert pa.chunked_array([row] * 5).num_chunks * 2**29 > 2**31
    blocks = list(open_stream(streamed([row] * 5, List(Value("int8")))).blocks(0))
    assert [block.offsets.tolist() for block in blocks] == [[0, 2**29]] * 5
    assert all(not block.read("input_ids", 0, 2**29).flags.owndata for block in blocks)


def test_a_single_row_of_more_than_two_to_the_31_tokens_is_read_from_a_large_list():
    count = 2**31 + 5
    row = pa.LargeListArray.from_arrays(pa.array([0, count], pa.int64()), long_row(count))
    (block,) = open_stream(streamed([row], LargeList(Value("int8")))).blocks(0)
    assert block.offsets.tolist() == [0, count]
    assert block.read("input_ids", count - 3, count).tolist() == [0, 0, 0]


def test_interleaved_long_rows_are_cut_too():
    sources = [table(DOCUMENTS[:20]).to_iterable_dataset(), table(DOCUMENTS[20:]).to_iterable_dataset()]
    merged = [document for pair in zip(DOCUMENTS[:20], DOCUMENTS[20:], strict=True) for document in pair]
    merged = merged[:39]  # it ends with the first source
    stream = open_stream(interleave_datasets(sources))
    blocks = list(stream.blocks(0))
    assert [documents_in(block) for block in blocks] == naive_blocks(merged)
    for number, block in enumerate(blocks):
        assert [documents_in(b) for b in stream.blocks(0, block.position)] == naive_blocks(merged)[number:]


# what stays in Arrow


def in_json_lines(folder):
    with open(folder / "rows.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in table())
    return load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", streaming=True, cache_dir=str(folder))


FILES = {"Parquet": saved_parquet, "JSON lines": in_json_lines, "Arrow": lambda folder: table().to_iterable_dataset()}
IN_ARROW = {  # as the README says
    "plain": lambda rows: rows,
    "shuffle": lambda rows: rows.shuffle(seed=1, buffer_size=1),
    "take": lambda rows: rows.take(25),
    "skip": lambda rows: rows.skip(11),
    "repeat": lambda rows: rows.repeat(2),
    "select_columns": lambda rows: rows.select_columns(["input_ids"]),
    "cast_column": lambda rows: rows.cast_column("input_ids", List(Value("int16"))),
    "shard": lambda rows: rows.shard(1, 0),
    "concatenate": lambda rows: concatenate_datasets([rows, rows]),
    "interleave": lambda rows: interleave_datasets([rows, rows]),
    "interleave by chance": lambda rows: interleave_datasets([rows, rows], [0.4, 0.6], seed=1),
    "filter of tables": lambda rows: rows.with_format("arrow").filter(lambda part: [True] * len(part), batched=True),
}
BY_ROWS = {
    "map": lambda rows: rows.map(lambda row: row),
    "filter": lambda rows: rows.filter(lambda row: True),
    "rename_column": lambda rows: rows.rename_column("text", "body"),
    "remove_columns": lambda rows: rows.remove_columns(["text"]),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("chain", IN_ARROW | BY_ROWS)
def test_rows_that_no_python_function_makes_are_arrow_buffers(tmp_path, file, chain):
    rows = (IN_ARROW | BY_ROWS)[chain](FILES[file](tmp_path))
    blocks = list(open_stream(rows).blocks(0))
    assert [document for block in blocks for document in documents_in(block)] == [
        d for d in rows.with_format(None)["input_ids"] if d
    ]
    assert {block.read("input_ids", 0, 1).flags.writeable for block in blocks} == {chain in BY_ROWS}
