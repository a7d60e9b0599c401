"""What is refused, when, and what the message names."""

import functools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from slw_data.errors import DataError
from slw_data.sources.streams import open_stream


def read(stream):
    return [b.read("input_ids", 0, int(b.offsets[-1])).tolist() for b in stream.blocks(0)]


def read_before_error(stream, error, match):
    found = []
    with pytest.raises(error, match=match):
        for block in stream.blocks(0):
            found += block.read("input_ids", 0, int(block.offsets[-1])).tolist()
    return found


BAD_DOCUMENTS = {
    "None": (None, DataError, "item 2 is None"),
    "a None inside": ([1, None], DataError, "position 1 of column 'input_ids' of item 2 is None"),
    "a float inside": ([1, 2.0], TypeError, "position 1 .* item 2 is 2.0 of type float"),
    "a NaN inside": ([float("nan")], TypeError, "position 0 .* item 2 is nan"),
    "a bool inside": ([5, True, 7], TypeError, "position 1 .* item 2 is True: a bool is not a token id"),
    "a False inside": ([5, 6, False], TypeError, "position 2 .* item 2 is False: a bool"),
    "a NumPy bool inside": ([5, np.bool_(True)], TypeError, "position 1 .* a bool is not a token id"),
    "a bool tensor inside": ([torch.tensor(True)], TypeError, "position 0 .* a bool is not a token id"),
    "a str inside": (["a"], TypeError, "position 0 .* 'a' of type str"),
    "a list inside": ([[1], [2]], TypeError, r"position 0 .* \[1\] of type list"),
    "2**63 beside -1": ([2**63, -1], DataError, "position 0 .* item 2 is 9223372036854775808"),
    "2**64": ([1, 2**64], DataError, "position 1 .* 18446744073709551616"),
    "a negative id": ([3, -100], DataError, "position 1 of column 'input_ids' of item 2 is -100"),
    "a negative id in an array": (np.array([3, -7], np.int16), DataError, "position 1 .* item 2 is -7"),
    "uint64 above int64": (np.array([0, 2**63], np.uint64), DataError, "position 1 .* item 2 is 9223372036854775808"),
    "a float array": (np.array([1.0]), TypeError, "item 2 is an array of dtype float64"),
    "a bool array": (np.array([True]), TypeError, "item 2 is an array of dtype bool"),
    "an object array": (np.array([1, None], object), TypeError, "dtype object"),
    "a float tensor": (torch.tensor([1.0]), TypeError, "item 2 is a tensor of dtype torch.float32"),
    "a bfloat16 tensor": (torch.tensor([1.0], dtype=torch.bfloat16), TypeError, "torch.bfloat16"),
    "a bool tensor": (torch.tensor([True]), TypeError, "item 2 is an array of dtype bool"),
    "a 0-d array": (np.array(5), TypeError, r"item 2 has shape \(\)"),
    "a 0-d tensor": (torch.tensor(5), TypeError, r"item 2 has shape \(\)"),
    "a 2-d array": (np.zeros((2, 3), np.int64), TypeError, r"item 2 has shape \(2, 3\)"),
    "an empty 2-d tensor": (torch.empty(1, 0), TypeError, "item 2 is a tensor of dtype torch.float32"),
    "a tensor elsewhere": (torch.empty(2, dtype=torch.int64, device="meta"), TypeError, r"item 2 is a tensor on meta"),
    "text": ("abc", TypeError, "item 2 is str, not token ids: pass tokenizer="),
    "bytes": (b"abc", TypeError, "item 2 is bytes"),
    "an int": (7, TypeError, r"item 2 is the single integer 7.*numpy.array"),
    "an object": (object(), TypeError, "item 2 is a object"),
    "a dict without the column": ({"ids": [1], "t": ""}, KeyError, r"item 2 has no column 'input_ids'.*'ids', 't'"),
    "a dict with None": ({"input_ids": None}, DataError, "column 'input_ids' of item 2 is None"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*scalars to be interpreted as an index:DeprecationWarning")  # before NumPy 2.3
@pytest.mark.parametrize("case", BAD_DOCUMENTS)
def test_a_bad_document_is_refused_after_the_good_ones_before_it(case):
    bad, error, message = BAD_DOCUMENTS[case]
    items = [[1, 2], [3], bad, [4]]
    assert read_before_error(open_stream(items), error, message) == [1, 2, 3]
    assert read_before_error(open_stream(lambda: iter(items)), error, message) == [1, 2, 3]


@pytest.mark.parametrize("empty", [torch.tensor([]), np.array([]), [], (), np.array([], bool), {"input_ids": []}])
def test_an_empty_document_of_any_dtype_contributes_nothing(empty):
    (block,) = open_stream([[1, 2], empty, np.array([3], np.int64)]).blocks(0)
    assert block.read("input_ids", 0, 3).dtype == np.int64
    assert block.offsets.tolist() == [0, 2, 3]


def test_a_list_of_zeros_and_ones_is_not_taken_for_bools():
    assert read(open_stream([[0, 1, 1, 0], [np.int64(1), np.int32(0)], (1,), range(3)])) == [
        [0, 1, 1, 0, 1, 0, 1, 0, 1, 2]
    ]


def test_columns_of_different_lengths_name_the_item_and_both_lengths():
    rows = [{"input_ids": [1, 2], "mask": [1, 1]}, {"input_ids": [1, 2, 3], "mask": [1, 1]}]
    stream = open_stream(rows, columns=("input_ids", "mask"))
    assert read_before_error(stream, DataError, "item 1 has 3 tokens in 'input_ids' and 2 in 'mask'") == [1, 2]


def test_a_column_that_is_none_or_missing_names_column_and_item():
    for row, error, message in [
        ({"input_ids": [1], "labels": None}, DataError, "column 'labels' of item 1 is None"),
        ({"input_ids": [1]}, KeyError, r"item 1 has no column 'labels'; it has \['input_ids'\]"),
        ([1], TypeError, r"item 1 is a list, but columns=\('input_ids', 'labels'\) need a mapping"),
    ]:
        stream = open_stream([{"input_ids": [5], "labels": [-100]}, row], columns=("input_ids", "labels"))
        assert read_before_error(stream, error, message) == [5]


def test_a_bad_first_document_of_a_list_is_refused_when_the_list_is_opened():
    with pytest.raises(DataError, match="item 0 is None"):
        open_stream([None])
    with pytest.raises(KeyError, match="input_ids"):
        open_stream([{"text": "a"}])


SOURCES = {
    "a str": ("tokens.bin", TypeError, r"'tokens.bin' is a path or a text.*open_tokens.*text_column"),
    "a path": (Path("tokens.bin"), TypeError, r"tokens.bin.*open_tokens"),
    "bytes": (b"x", TypeError, "open_tokens"),
    "a flat list": ([1, 2, 3], TypeError, r"flat list of ints.*numpy.array"),
    "a flat tuple": ((np.int64(1),), TypeError, r"flat tuple of ints.*numpy.array"),
    "an array": (np.array([1]), TypeError, "ndarray is a store: use open_tokens"),
    "a tensor": (torch.tensor([1]), TypeError, "Tensor is a store: use open_tokens"),
    "a dict": ({"train": [[1]]}, TypeError, r"dict is not a sequence of documents.*'train'"),
    "a set": ({(1, 2)}, TypeError, "set has no order"),
    "a number": (5, TypeError, "a int is not a source of documents"),
    "None": (None, TypeError, "NoneType is not a source"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_what_is_not_a_source_is_refused_when_it_is_opened(case):
    source, error, message = SOURCES[case]
    with pytest.raises(error, match=message):
        open_stream(source)


OPTIONS = {
    "append_eos with columns": ({"column": "a", "columns": ("a", "b"), "append_eos": 1}, DataError, r"append_eos .* the other"),
    "a bool as eos": ({"append_eos": True}, TypeError, "append_eos is a token id, an int, not True"),
    "a negative eos": ({"append_eos": -1}, DataError, "append_eos .* not -1"),
    "text without a tokenizer": ({"text_column": "body"}, TypeError, r"text_column='body'.*tokenizer="),
    "no tokenizer": ({"tokenizer": 5}, TypeError, "a int is neither"),
    "a tokenizer's name": ({"tokenizer": "gpt2"}, TypeError, r"from_pretrained\('gpt2'\), got a str"),
    "a tokenizer's class": ({"tokenizer": Counter}, TypeError, "must be an object, got the class Counter"),
    "a slice of text": ({"tokenizer": list, "text_column": slice(2)}, TypeError, r"name of a column, got slice\("),
    "a text column of bytes": ({"text_column": b"text"}, TypeError, r"text_column .* name of a column, got b'text'"),
    "columns as a str": ({"columns": "input_ids"}, TypeError, "columns must be a sequence of names"),
    "no columns": ({"columns": ()}, DataError, "at least one name"),
    "a column twice": ({"columns": ("a", "a")}, DataError, r"none twice, but is \('a', 'a'\)"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_cannot_be_meant_are_refused(case):
    options, error, message = OPTIONS[case]
    with pytest.raises(error, match=message):
        open_stream([], **options)


def test_an_open_stream_takes_no_further_options():
    stream = open_stream([[1]])
    with pytest.raises(TypeError, match="is a stream already"):
        open_stream(stream, append_eos=0)
    with pytest.raises(KeyError, match=r"no column 'labels'; it has \['input_ids'\]"):
        open_stream(stream, columns=("input_ids", "labels"))


def test_bad_text_names_the_item():
    for bad, error, message in [
        (None, DataError, "text of item 1 is None"),
        ({"text": None}, DataError, "text of item 1 is None"),
        ({"body": "a"}, KeyError, r"item 1 has no column 'text'; it has \['body'\]"),
        ([1], TypeError, "text of item 1 is a list"),
    ]:
        stream = open_stream(["A", bad], tokenizer=lambda text: [ord(c) for c in text])
        assert read_before_error(stream, error, message) == [65]


def test_a_tokenizer_that_gives_no_ids_is_refused():
    with pytest.raises(KeyError, match=r"tokenizer's result for item 0 has no column 'input_ids'; it has \['ids'\]"):
        read(open_stream(["a"], tokenizer=lambda text: {"ids": [1]}))
    with pytest.raises(TypeError, match=r"item 0 has shape \(1, 1\)"):
        read(open_stream(["a"], tokenizer=lambda text: {"input_ids": torch.tensor([[1]])}))


# errors of the source


class Broken(OSError):
    pass


def breaks(items, error):
    yield from items
    raise error


def test_an_error_of_the_source_keeps_its_type_and_comes_after_what_was_read():
    error = Broken("disk gone")
    stream = open_stream(functools.partial(breaks, [[1], [2, 3]], error))
    assert read_before_error(stream, Broken, "disk gone") == [1, 2, 3]

    class Lookup:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return [[7], [8]][index]

    assert read_before_error(open_stream(Lookup()), IndexError, "range") == [7, 8]


def test_a_runtime_error_of_the_source_is_left_alone():
    stream = open_stream(functools.partial(breaks, [[1]], RuntimeError("mine")))
    assert read_before_error(stream, RuntimeError, "^mine$") == [1]


def test_a_stop_iteration_from_inside_the_source_is_an_error_and_not_the_end():
    def bare_next():
        yield [1]
        yield [2]
        next(iter([]))

    class Lookup:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return [index] if index < 2 else next(iter([]))

    for source in (bare_next, Lookup()):
        assert len(read_before_error(open_stream(source), DataError, "ended by StopIteration at item 2")) == 2

    def tokenizer(text):
        return next(iter([]))

    with pytest.raises(DataError, match="ended by StopIteration at item 0"):
        read(open_stream(["a"], tokenizer=tokenizer))


def test_the_good_part_before_an_error_can_be_resumed_once_the_error_is_gone():
    stream = open_stream(functools.partial(breaks, [[1], [2]], Broken("x")))
    found = stream.blocks(0)
    position = next(found).position
    assert read(open_stream(lambda: iter([[1], [2], [3]]))) == [[1, 2, 3]]
    (again,) = open_stream(lambda: iter([[1], [2], [3]])).blocks(0, position)
    assert again.position["block"][0] == 3 and again.position | {"block": None} == position | {"block": None}


# torch DataLoaders


class Documents(IterableDataset):
    def __iter__(self):
        return iter([[1], [2]])


def test_a_data_loader_of_batches_is_refused():
    with pytest.raises(TypeError, match=r"batch_size=4.*batch_size=None"):
        open_stream(DataLoader([[1], [2]], batch_size=4))


def test_a_data_loader_in_random_order_is_refused():
    with pytest.raises(TypeError, match=r"RandomSampler.*shuffle=False"):
        open_stream(DataLoader([[1], [2]], batch_size=None, shuffle=True))


def test_a_data_loader_with_a_distributed_sampler_is_one_ranks_part():
    sampler = torch.utils.data.DistributedSampler([[1], [2], [3], [4]], num_replicas=2, rank=1, shuffle=False)
    stream = open_stream(DataLoader([[1], [2], [3], [4]], batch_size=None, sampler=sampler))
    assert stream.sharded == (1, 2)
    assert read(stream) == [[2, 4]]
    assert open_stream([[1]]).sharded is None
    list(stream.blocks(3))
    assert sampler.epoch == 3


class Outer(IterableDataset):
    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        try:
            self.stream.blocks(0)
        except TypeError as error:
            yield str(error)


def test_a_data_loader_inside_a_worker_is_refused_and_names_the_remedy():
    stream = open_stream(DataLoader(Documents(), batch_size=None))
    (message,) = DataLoader(Outer(stream), batch_size=None, num_workers=1)
    assert "num_workers=0 above" in message
