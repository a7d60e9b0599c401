"""Hugging Face streams: every transformation resumes exactly at every block, in one process and in workers."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import IterableDataset as TorchIterableDataset

from slw_data.errors import DataError, StateError
from slw_data.sources.streams import huggingface, open_stream
from slw_data.sources.streams.huggingface import flat_lists

DOCUMENTS = [[10 * i + k for k in range(i % 5)] for i in range(45)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(huggingface, "BATCH_ROWS", 7)


def documents_in(block, column="input_ids"):
    flat = block.read(column, 0, int(block.offsets[-1])).tolist()
    return [flat[a:b] for a, b in zip(block.offsets[:-1].tolist(), block.offsets[1:].tolist(), strict=True)]


def read(stream, epoch=0, position=None, column="input_ids"):
    return [d for block in stream.blocks(epoch, position) for d in documents_in(block, column)]


def rows(documents=DOCUMENTS, shards=4):
    table = Dataset.from_dict({"input_ids": documents, "text": ["ab" * len(d) for d in documents]})
    return table.to_iterable_dataset(num_shards=shards)


def other_rows(documents=DOCUMENTS[:23]):
    """Rows with a column that the others lack."""
    return Dataset.from_dict({"input_ids": documents, "url": ["u"] * len(documents)}).to_iterable_dataset(num_shards=2)


def generated(documents):
    for document in documents:
        yield {"input_ids": document}


def plus_one(row):
    return {"input_ids": [t + 1 for t in row["input_ids"]]}


def batch_plus_one(batch):
    return {"input_ids": [[t + 1 for t in d] for d in batch["input_ids"]]}


def doubled(batch):
    return {"input_ids": [d for d in batch["input_ids"] for _ in range(2)]}


def is_long(row):
    return len(row["input_ids"]) > 2


CHAINS = {
    "plain": rows,
    "one shard": lambda: rows(shards=1),
    "from a generator": lambda: IterableDataset.from_generator(generated, gen_kwargs={"documents": DOCUMENTS}),
    "map": lambda: rows().map(plus_one),
    "batched map": lambda: rows().map(batch_plus_one, batched=True, batch_size=5, remove_columns=["text"]),
    "batched map that grows": lambda: rows().map(doubled, batched=True, batch_size=11, remove_columns=["text"]),
    "map over a tensor format": lambda: rows().with_format("torch").map(lambda r: {"input_ids": r["input_ids"] + 1}),
    "filter": lambda: rows().filter(is_long),
    "map and filter": lambda: rows().map(plus_one).filter(is_long),
    "skip and take": lambda: rows().skip(9).take(29),
    "repeat": lambda: rows().repeat(2),
    "select_columns": lambda: rows().select_columns(["input_ids"]),
    "numpy format": lambda: rows().with_format("numpy"),
    "arrow format": lambda: rows().with_format("arrow"),
    "arrow batched map": lambda: rows().with_format("arrow").map(lambda t: t, batched=True, batch_size=8),
    "concatenate": lambda: concatenate_datasets([rows(), rows(DOCUMENTS[:17], 2)]),
    "interleave": lambda: interleave_datasets([rows(), rows(DOCUMENTS[:17], 2)]),
    "interleave all": lambda: interleave_datasets([rows(), rows(DOCUMENTS[:17], 2)], stopping_strategy="all_exhausted"),
    "interleave by chance": lambda: interleave_datasets([rows(), rows(DOCUMENTS[:17], 2)], [0.3, 0.7], seed=3),
    "interleave with other columns": lambda: interleave_datasets([rows(), other_rows()]),
    "interleave with empty rows": lambda: interleave_datasets([rows(), other_rows([[]] * 23)]),
    "concatenate with empty rows": lambda: concatenate_datasets([other_rows([[]] * 9), rows()]),
    "concatenate side by side": lambda: concatenate_datasets(
        [rows(DOCUMENTS[:23], 2).select_columns(["text"]), other_rows()], axis=1
    ),
    "interleave of maps": lambda: interleave_datasets([rows().map(plus_one), rows(DOCUMENTS[:17], 2).map(plus_one)]),
    "shuffled shards": lambda: rows().shuffle(seed=5, buffer_size=1),
    "shuffled shards of a map": lambda: rows().map(plus_one).shuffle(seed=5, buffer_size=1),
    "split by shards": lambda: split_dataset_by_node(rows(), 1, 2),
    "split by examples": lambda: split_dataset_by_node(rows(), 1, 3),
}


def by_rows(dataset, epoch):
    """The oracle: the dataset's own iteration by rows."""
    dataset = dataset.with_format(None)
    dataset.set_epoch(epoch)
    return [list(map(int, row["input_ids"])) for row in dataset if len(row["input_ids"])]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("epoch", "tokens"), [(0, 1 << 22), (2, 6)])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_of_transformations_resumes_at_every_block(monkeypatch, chain, epoch, tokens):
    monkeypatch.setattr(huggingface, "BLOCK_TOKENS", tokens)
    expected = by_rows(CHAINS[chain](), epoch)
    found = list(open_stream(CHAINS[chain]()).blocks(epoch))
    parts = [documents_in(block) for block in found]
    assert [d for part in parts for d in part] == expected
    assert len(parts) >= 3
    fresh = open_stream(CHAINS[chain]())
    for k, block in enumerate(found):
        position = json.loads(json.dumps(block.position))
        assert [documents_in(b) for b in fresh.blocks(epoch, position)] == parts[k:]
    # a chain of resumes, each one block long
    position = found[0].position
    for k in range(len(found) - 1):
        resumed = fresh.blocks(epoch, position)
        assert documents_in(next(resumed)) == parts[k]
        position = next(resumed).position


def test_batches_of_the_real_size_resume_across_chunks(monkeypatch):
    monkeypatch.setattr(huggingface, "BATCH_ROWS", 256)
    documents = [[i] * (i % 3) for i in range(900)]
    for dataset in (rows(documents, 7), rows(documents, 7).map(batch_plus_one, batched=True, batch_size=100)):
        found = list(open_stream(dataset).blocks(0))
        assert len(found) == 4
        for k, block in enumerate(found):
            rest = [d for b in found[k:] for d in documents_in(b)]
            assert read(open_stream(dataset), position=block.position) == rest


def test_set_epoch_changes_the_order_of_shuffled_shards():
    stream = open_stream(CHAINS["shuffled shards"]())
    passes = [read(stream, epoch) for epoch in range(4)]
    assert len({json.dumps(p) for p in passes}) > 1
    assert all(sorted(p) == sorted(passes[0]) for p in passes)


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), min_size=1, max_size=40), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_any_documents_are_read_whole(documents, shards):
    source = rows(documents, min(shards, len(documents)))
    expected = [d for d in documents if d]
    assert read(open_stream(source)) == expected
    assert read(open_stream(source.map(plus_one))) == [[t + 1 for t in d] for d in expected]


def test_arrow_batches_are_read_without_a_copy():
    (block,) = open_stream(rows([[1, 2], [3]], 1)).blocks(0)
    tokens = block.read("input_ids", 0, 3)
    assert tokens.dtype == np.int32 and not tokens.flags.writeable and not tokens.flags.owndata


def test_the_users_dataset_is_left_as_it_was():
    source = rows()
    mine = iter(source)
    first = next(mine)
    before = json.dumps(source.state_dict())
    found = open_stream(source).blocks(1)
    next(found), next(found)
    assert json.dumps(source.state_dict()) == before and source.epoch == 0
    assert [first, *mine] == list(rows())


@pytest.mark.parametrize("chain", CHAINS)
def test_reading_leaves_the_chain_of_the_users_dataset_as_it_was(chain):
    dataset = CHAINS[chain]()
    before, fields = open_stream(dataset).fingerprint, dict(vars(dataset))
    for epoch in range(2):
        next(open_stream(dataset).blocks(epoch))
    assert vars(dataset)["_ex_iterable"] is fields["_ex_iterable"]
    assert vars(dataset).keys() == fields.keys() and open_stream(dataset).fingerprint == before


def test_two_iterators_of_one_stream_do_not_meet():
    stream = open_stream(rows().map(plus_one))
    expected = [(block.position, documents_in(block)) for block in stream.blocks(0)]
    one, other = stream.blocks(0), stream.blocks(0)
    first = [next(one), next(one)]
    pairs = list(zip(one, other, strict=False))
    for found in ([*first, *(a for a, _ in pairs)], [*(b for _, b in pairs), *other]):
        got = [(block.position, documents_in(block)) for block in found]
        assert got == expected[: len(got)] and len(got) >= len(expected) - 1


def test_parallel_columns_are_read_in_step():
    table = {"input_ids": [[1, 2], [], [3]], "labels": [[-100, 2], [], [3]]}
    source = Dataset.from_dict(table).to_iterable_dataset()
    for dataset in (source, source.map(lambda row: row)):
        stream = open_stream(dataset, columns=("input_ids", "labels"))
        assert read(stream, column="labels") == [[-100, 2], [3]]


def test_each_document_ends_with_exactly_one_eos():
    source = Dataset.from_dict({"input_ids": [[1, 0], [], [2], [0], [3, 4]]}).to_iterable_dataset()
    assert read(open_stream(source, append_eos=0)) == [[1, 0], [2, 0], [0], [3, 4, 0]]
    assert read(open_stream(source, append_eos=2**40))[1] == [2, 2**40]


def letters(text):
    return [ord(letter) - 97 for letter in text]


def test_text_is_tokenized_from_both_kinds_of_dataset():
    table = Dataset.from_dict({"text": ["ab", "", "c"] * 9, "other": [[1]] * 27})
    expected = [[0, 1], [2]] * 9
    for dataset in (table, table.to_iterable_dataset(), table.to_iterable_dataset().map(lambda row: row)):
        stream = open_stream(dataset, tokenizer=letters)
        found = list(stream.blocks(0))
        assert [d for b in found for d in documents_in(b)] == expected
        last = json.loads(json.dumps(found[-1].position))
        assert read(open_stream(dataset, tokenizer=letters), position=last) == documents_in(found[-1])
    renamed = table.rename_column("text", "body")
    assert read(open_stream(renamed, text_column="body", tokenizer=letters)) == expected


# shuffle buffers, shards, ranks


def test_a_shuffle_buffer_is_not_exact_and_names_the_remedies():
    for dataset in (rows().shuffle(seed=1, buffer_size=30), rows().shuffle(seed=1, buffer_size=30).map(plus_one)):
        message = open_stream(dataset).not_exact
        for fact in ("30 rows", "saving to disk", "shuffle=True", "buffer_size=1"):
            assert fact in message
    mixed = interleave_datasets([rows(), rows().shuffle(seed=1, buffer_size=30)])
    assert open_stream(mixed).not_exact
    assert open_stream(rows().shuffle(seed=1, buffer_size=1)).not_exact is None
    assert open_stream(rows()).not_exact is None


def test_a_buffer_that_is_saved_with_the_state_counts_as_exact(monkeypatch):
    from datasets.iterable_dataset import BufferShuffledExamplesIterable as Buffer

    monkeypatch.setattr(Buffer, "_init_state_dict", lambda self: {"buffer": [], "examples_iterable": {}})
    assert open_stream(rows().shuffle(seed=1, buffer_size=30)).not_exact is None


def test_looking_for_a_buffer_leaves_the_dataset_alone():
    dataset = rows().shuffle(seed=1, buffer_size=30)
    twin = rows().shuffle(seed=1, buffer_size=30)
    mine, theirs = iter(dataset), iter(twin)
    next(mine), next(theirs)
    assert open_stream(dataset).not_exact
    assert list(mine) == list(theirs)
    assert dataset.state_dict() == twin.state_dict()


def test_a_split_dataset_says_so():
    assert open_stream(split_dataset_by_node(rows(), 1, 4)).sharded == (1, 4)
    assert open_stream(rows()).sharded is None


def test_the_fingerprint_is_that_of_the_whole_dataset_on_every_rank():
    whole = open_stream(rows()).fingerprint
    assert "4 shards" in whole and "input_ids" in whole and "0x" not in whole
    assert open_stream(split_dataset_by_node(rows(), 1, 2)).fingerprint == whole


def test_more_shards_or_fewer_than_workers_make_no_difference():
    class EachWorker(TorchIterableDataset):
        def __init__(self, stream):
            self.stream = stream

        def __iter__(self):
            for document in read(self.stream):
                yield get_worker_info().id, document

    for dataset in (rows(), rows(shards=1).map(plus_one), rows(shards=3).shuffle(seed=1, buffer_size=1)):
        pairs = list(DataLoader(EachWorker(open_stream(dataset)), batch_size=None, num_workers=2))
        for worker in (0, 1):
            assert [document for who, document in pairs if who == worker] == by_rows(dataset, 0)


def test_a_stream_pickles_with_its_dataset():
    stream = open_stream(rows().map(plus_one))
    assert read(pickle.loads(pickle.dumps(stream))) == read(stream)


# a state that cannot be trusted


class Forgetful:
    """Makes the dataset resume some rows too far, as older versions of datasets do after a map."""

    def __init__(self, monkeypatch, rows_lost):
        load = IterableDataset.load_state_dict

        def lossy(self, state):
            self._ex_iterable = self.skip(rows_lost)._ex_iterable
            load(self, {"epoch": -1})

        monkeypatch.setattr(IterableDataset, "load_state_dict", lossy)


def test_a_dataset_that_resumes_at_another_row_is_read_again_and_says_so(monkeypatch):
    found = list(open_stream(rows()).blocks(0))
    Forgetful(monkeypatch, 3)
    with pytest.warns(UserWarning, match=r"does not resume at the row.*reading 21 rows again"):
        rest = read(open_stream(rows()), position=found[3].position)
    assert rest == [d for block in found[3:] for d in documents_in(block)]


@pytest.mark.filterwarnings("ignore:.*does not resume at the row")
def test_rows_that_changed_since_the_position_was_saved_are_refused():
    position = list(open_stream(rows()).blocks(0))[3].position
    changed = rows([d if i != 22 else [1, 2, 3, 4] for i, d in enumerate(DOCUMENTS)])
    with pytest.raises(StateError, match=r"row 21 of pass 0 .* are not the ones"):
        read(open_stream(changed), position=position)
    with pytest.raises(StateError, match="row 21"):
        read(open_stream(rows(DOCUMENTS[:9])), position=position)


def test_a_position_of_another_pass_or_kind_is_refused_at_once():
    position = list(open_stream(rows()).blocks(1))[3].position
    with pytest.raises(StateError, match="is in pass 1, but pass 0 was asked"):
        open_stream(rows()).blocks(0, position)
    for other in (7, {"items": 1, "digest": 2}, {**position, "rows": -1}):
        with pytest.raises(StateError, match="saved position"):
            open_stream(rows()).blocks(1, other)


# bad input


def test_a_missing_column_or_a_wrong_type_is_refused_when_opened():
    with pytest.raises(KeyError, match=r"no column 'labels'.*'input_ids', 'text'"):
        open_stream(rows(), columns=("input_ids", "labels"))
    with pytest.raises(TypeError, match=r"column 'text' .* string.*tokenizer="):
        open_stream(rows(), column="text")
    for values, kind in [([[1.5]], "double"), ([[[1]]], "list"), ([[True]], "bool"), ([3], "the type int32")]:
        with pytest.raises(TypeError, match=kind):
            open_stream(Dataset.from_dict({"input_ids": values}).to_iterable_dataset())
    with pytest.raises(KeyError, match=r"no column 'body'"):
        open_stream(rows(), text_column="body", tokenizer=letters)
    table = Dataset.from_dict({"input_ids": [[1]]})
    with pytest.raises(TypeError, match="open_tokens"):
        open_stream(table)
    with pytest.raises(KeyError, match=r"no column 'text'; it has \['input_ids'\]"):
        open_stream(table, tokenizer=letters)


def test_a_column_that_a_map_dropped_is_named_when_read():
    dataset = rows().map(lambda row: {"ids": row["input_ids"]}, remove_columns=["input_ids", "text"])
    with pytest.raises(KeyError, match=r"no column 'input_ids'; it has \['ids'\]"):
        read(open_stream(dataset))


BAD_VALUES = {
    "a None row": ([[1]] * 8 + [None], DataError, "column 'input_ids' of item 8 is None"),
    "a None token": ([[1]] * 8 + [[], [5, None]], DataError, "position 1 of column 'input_ids' of item 9 is None"),
    "a negative id": ([[1]] * 8 + [[], [5, 6, -100]], DataError, "position 2 of column 'input_ids' of item 9 is -100"),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_names_row_and_position(case, mapped):
    values, error, message = BAD_VALUES[case]
    dataset = Dataset.from_dict({"input_ids": values}).to_iterable_dataset()
    dataset = dataset.map(lambda row: row) if mapped else dataset
    with pytest.raises(error, match=message):
        read(open_stream(dataset))


@pytest.mark.parametrize("mapped", [False, True])
def test_columns_of_different_lengths_name_the_row(mapped):
    table = {"input_ids": [[1]] * 8 + [[1, 2, 3]], "mask": [[1]] * 8 + [[1, 1]]}
    dataset = Dataset.from_dict(table).to_iterable_dataset()
    dataset = dataset.map(lambda row: row) if mapped else dataset
    with pytest.raises(DataError, match="item 8 has 3 tokens in 'input_ids' and 2 in 'mask'"):
        read(open_stream(dataset, columns=("input_ids", "mask")))


def test_a_column_that_only_one_of_two_sources_has_is_refused():
    with_labels = Dataset.from_dict({"input_ids": [[1]] * 3, "labels": [[2]] * 3}).to_iterable_dataset()
    without = rows([[1]] * 3, 1)
    for pair in ([with_labels, without], [with_labels.map(plus_one), without.map(plus_one)]):
        with pytest.raises(DataError, match="column 'labels' of item 1 is None"):
            read(open_stream(interleave_datasets(pair), columns=("input_ids", "labels")))


def test_an_error_of_a_map_keeps_its_type_and_a_stop_iteration_is_named():
    def fails(row):
        raise ZeroDivisionError("mine")

    def stops(row):
        return next(iter([]))

    with pytest.raises(ZeroDivisionError, match="mine"):
        read(open_stream(rows().map(fails)))
    with pytest.raises(DataError, match="ended by StopIteration at item 0"):
        read(open_stream(rows().map(stops)))


LISTS = [[1, 2], [], [3], [4, 5], [6, 7]]


@pytest.mark.parametrize("kind", [pa.list_(pa.uint16()), pa.large_list(pa.int64()), pa.list_(pa.uint64())])
def test_sliced_and_chunked_lists_are_read_by_their_offsets(kind):
    whole = pa.array(LISTS, kind)
    for column in (pa.chunked_array([whole.slice(1, 3)]), pa.chunked_array([whole.slice(1, 1), whole.slice(2, 2)])):
        lengths, tokens = flat_lists(column, "input_ids", 0, signed=False)
        assert lengths.tolist() == [0, 1, 2] and tokens.tolist() == [3, 4, 5]


def test_lists_of_a_fixed_size_have_no_offsets_and_are_read_all_the_same():
    column = pa.chunked_array([pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int32(), 2)).slice(1)])
    lengths, tokens = flat_lists(column, "input_ids", 0, signed=False)
    assert lengths.tolist() == [2, 2] and tokens.tolist() == [3, 4, 5, 6]


def test_a_null_before_a_slice_is_not_in_it():
    column = pa.chunked_array([pa.array([None, [None], [1, 2]]).slice(2)])
    assert flat_lists(column, "input_ids", 0, signed=False)[1].tolist() == [1, 2]


def test_uint64_above_int64_names_the_place():
    column = pa.chunked_array([pa.array([[1], [2, 2**63]], pa.list_(pa.uint64()))])
    with pytest.raises(DataError, match="position 1 of column 'ids' of item 41 is 9223372036854775808"):
        flat_lists(column, "ids", 40, signed=False)


def test_opening_a_stream_does_not_import_datasets():
    code = "import sys, slw_data.sources.streams as s; s.open_stream([[1]]); print({'datasets', 'pyarrow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
