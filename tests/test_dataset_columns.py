"""``column``, ``text_column``, ``tokenizer`` and ``append_eos`` of a dataset: for stores and streams, and refused by name."""

import itertools
import json

import numpy as np
import pytest
from datasets import Dataset

from slw_data import ConstantSchedule, SLWDataset, SLWLoader, open_stream, open_tokens
from slw_data.errors import DataError
from tests.refusals import refused

ROWS = [
    {
        "tokens": [10 * i + k for k in range(1 + i % 4)],
        "meta": {"ids": [10 * i + k + 1 for k in range(1 + i % 4)]},
        "mask": [-(k % 2) for k in range(1 + i % 4)],
        "text": "ab" * (i % 3),
        "page": {"text": "c" * (1 + i % 2)},
    }
    for i in range(30)
]
TABLE = Dataset.from_list(ROWS)


def letters(text):
    return [ord(letter) - 97 for letter in text]


def expected(documents, length=4, rows=2):
    """Batches of joined documents, by lists."""
    tokens = list(itertools.chain.from_iterable(documents))
    step = length * rows
    return [np.reshape(tokens[at : at + step], (rows, length)).tolist() for at in range(0, len(tokens) - step + 1, step)]


def batches(source, name="input_ids", **options):
    dataset = SLWDataset(source, ConstantSchedule(4), batch_size=2, **options)
    return [batch[name].tolist() for batch in dataset]


SOURCES = {
    "a Dataset": lambda folder: TABLE,
    "a saved Dataset": lambda folder: saved(folder),
    "an IterableDataset": lambda folder: TABLE.to_iterable_dataset(),
    "a list": lambda folder: ROWS,
    "a generator function": lambda folder: lambda: iter(ROWS),
}


def saved(folder):
    TABLE.save_to_disk(folder / "rows")
    return folder / "rows"


@pytest.mark.parametrize("kind", SOURCES)
def test_ids_of_another_column_are_the_input_ids_of_a_batch(tmp_path, kind):
    source = SOURCES[kind](tmp_path)
    assert batches(source, column="tokens") == expected(row["tokens"] for row in ROWS)
    assert batches(source, column="meta.ids") == expected(row["meta"]["ids"] for row in ROWS)
    both = {"column": "meta.ids", "columns": ("mask", "input_ids")}
    assert batches(source, **both) == expected(row["meta"]["ids"] for row in ROWS)
    assert batches(source, "mask", **both) == expected(row["mask"] for row in ROWS)


@pytest.mark.parametrize("kind", SOURCES)
def test_another_column_of_ids_is_checked_as_ids_are(tmp_path, kind):
    source = SOURCES[kind](tmp_path)
    refused(lambda: batches(source, column="mask"), "-1", error=DataError)
    refused(lambda: batches(source, column="tokens", vocab_size=90), "vocab_size", error=DataError)


def test_ids_at_the_ends_of_a_store_are_checked_when_it_is_opened():
    def opened(**options):
        return SLWDataset(TABLE, ConstantSchedule(4), batch_size=2, **options)

    refused(lambda: opened(column="mask"), "-1", "'mask'", error=DataError)
    refused(lambda: opened(column="tokens", vocab_size=90), "vocab_size", "'tokens'", error=DataError)


def test_a_bool_column_of_a_store_holds_no_ids():
    source = Dataset.from_dict({"mask": [[True, False]] * 30})
    refused(lambda: batches(source, column="mask"), "bool", "input_ids", error=TypeError)


@pytest.mark.parametrize("kind", ["a Dataset", "an IterableDataset", "a list", "a generator function"])
def test_text_is_tokenized_by_a_dataset_as_by_open_stream(tmp_path, kind):
    source = SOURCES[kind](tmp_path)
    documents = [letters(row["text"]) for row in ROWS]
    assert batches(source, tokenizer=letters) == expected(documents)
    ended = [[*document, 25] for document in documents if document]
    assert batches(source, tokenizer=letters, append_eos=25) == expected(ended)
    nested = [[*letters(row["page"]["text"]), 25] for row in ROWS]
    options = {"text_column": "page.text", "tokenizer": letters, "append_eos": 25}
    assert batches(source, **options) == expected(nested)
    opened = open_stream(source, **options)
    assert batches(source, **options) == batches(opened)
    assert SLWDataset(source, ConstantSchedule(4), batch_size=2, **options).source.fingerprint == opened.fingerprint


def test_a_list_of_str_is_text_where_there_is_a_tokenizer():
    texts = ["ab" * i for i in range(9)]
    for source in (texts, tuple(texts)):
        assert batches(source, tokenizer=letters) == expected(map(letters, texts))


def test_documents_of_ids_end_with_append_eos():
    for source in (ROWS, TABLE.to_iterable_dataset()):
        assert batches(source, column="tokens", append_eos=7) == expected([*row["tokens"], 7] for row in ROWS)


def test_a_mapping_of_stores_takes_the_column_of_its_ids():
    source = {"input_ids": TABLE, "mask": TABLE}
    options = {"column": "meta.ids", "columns": ("input_ids", "mask")}
    assert batches(source, **options) == expected(row["meta"]["ids"] for row in ROWS)
    assert batches(source, "mask", **options) == expected(row["mask"] for row in ROWS)


@pytest.mark.parametrize("options", [{"column": "meta.ids"}, {"tokenizer": letters, "append_eos": 25}])
@pytest.mark.parametrize("kind", ["a Dataset", "an IterableDataset", "a list"])
def test_a_run_over_another_column_resumes(tmp_path, kind, options):
    def loader():
        return SLWLoader(SLWDataset(SOURCES[kind](tmp_path), ConstantSchedule(4), batch_size=2, **options))

    whole, running = [batch["input_ids"].tolist() for batch in loader()], loader()
    for step, _ in zip(range(len(whole) - 1), running, strict=False):
        state = json.loads(json.dumps(running.state_dict()))
        again = loader()
        again.load_state_dict(state)
        assert [batch["input_ids"].tolist() for batch in again] == whole[step + 1 :]


def test_a_state_of_one_column_is_not_that_of_another():
    for source in (TABLE, TABLE.to_iterable_dataset(), ROWS):
        state = SLWDataset(source, ConstantSchedule(4), batch_size=2, column="tokens").state_dict()
        other = SLWDataset(source, ConstantSchedule(4), batch_size=2, column="meta.ids")
        with pytest.raises(ValueError, match="source"):
            other.load_state_dict(state)


IDS = np.arange(64)
STORES = {"an array": IDS, "an opened store": open_tokens(IDS), "a mapping": {"input_ids": IDS}, "a Dataset": TABLE}


@pytest.mark.parametrize("kind", STORES)
def test_a_store_refuses_by_name_what_only_documents_in_order_have(tmp_path, kind):
    np.save(tmp_path / "ids.npy", IDS)
    for source in (STORES[kind], tmp_path / "ids.npy", [tmp_path / "ids.npy"]):
        refused(lambda source=source: batches(source, append_eos=0), "append_eos=0", "store", error=TypeError)
        refused(lambda source=source: batches(source, text_column="body"), "text_column='body'", "tokenizer=", error=TypeError)
        if source is not TABLE and not isinstance(source, list):
            refused(lambda source=source: batches(source, tokenizer=letters), "tokenizer=", "store", error=TypeError)
    refused(lambda: batches(str(tmp_path / "ids.npy"), tokenizer=letters), "tokenizer=", "store", "str", error=TypeError)
    refused(lambda: batches([tmp_path / "ids.npy"], tokenizer=letters), "item 0", "str", error=TypeError)


def test_a_store_without_columns_refuses_the_name_of_one(tmp_path):
    np.save(tmp_path / "ids.npy", IDS)
    for source in (IDS, open_tokens(IDS), {"input_ids": IDS}, tmp_path / "ids.npy", [str(tmp_path / "ids.npy")]):
        refused(lambda source=source: batches(source, column="meta.ids"), "column='meta.ids'", "none", error=TypeError)


def test_arguments_that_contradict_each_other_are_refused():
    both = ("input_ids", "mask")
    for source in (TABLE, ROWS):
        refused(lambda source=source: batches(source, column="tokens", tokenizer=letters), "column='tokens'", "text_column=",
                error=TypeError)  # fmt: skip
        refused(
            lambda source=source: batches(source, column="mask", columns=both),
            "column='mask'",
            "('input_ids', 'mask')",
            error=ValueError,
        )
        refused(lambda source=source: batches(source, column=3), "column", "3", error=TypeError)
        refused(lambda source=source: batches(source, tokenizer="gpt2"), "'gpt2'", error=TypeError)
    refused(lambda: batches(ROWS, text_column="body"), "text_column='body'", "tokenizer=", error=TypeError)


def test_a_stream_that_is_open_takes_none_of_them():
    stream = open_stream(ROWS, column="meta.ids", columns=("input_ids",))
    assert batches(stream) == expected(row["meta"]["ids"] for row in ROWS)
    for options in ({"column": "tokens"}, {"tokenizer": letters}, {"append_eos": 0}, {"text_column": "text"}):
        refused(lambda options=options: batches(stream, **options), "a stream already", next(iter(options)), error=TypeError)


def test_a_missing_column_lists_what_there_is():
    for source in (TABLE, TABLE.to_iterable_dataset(), ROWS):
        refused(
            lambda source=source: batches(source, column="meta.idz"), "'meta.idz'", "'meta.ids'", "'tokens'", error=KeyError
        )
        refused(
            lambda source=source: batches(source, tokenizer=letters, text_column="page.body"),
            "'page.body'",
            "'page.text'",
            error=KeyError,
        )
