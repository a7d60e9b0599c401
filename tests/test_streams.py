"""Every kind of stream against the list it was made of, from the start and from every block's position."""

import functools
import json
import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from slw_data.errors import DataError, StateError
from slw_data.sources.streams import blocks, open_stream
from slw_data.sources.streams.items import SequenceStream
from slw_data.sources.streams.iterables import IterableStream

document_lists = st.lists(st.lists(st.integers(0, 2**63 - 1), max_size=6), max_size=40)
EXAMPLE = [[10 * i + k for k in range(i % 4)] for i in range(50)]


def documents_in(block, column="input_ids"):
    flat = block.read(column, 0, int(block.offsets[-1])).tolist()
    return [flat[a:b] for a, b in zip(block.offsets[:-1].tolist(), block.offsets[1:].tolist(), strict=True)]


def read(stream, epoch=0, position=None, column="input_ids"):
    return [d for block in stream.blocks(epoch, position) for d in documents_in(block, column)]


def filled(documents):
    return [list(d) for d in documents if len(d)]


def check_every_position(make, expected, epoch=0):
    """A fresh stream resumes at each block's position, after a trip through JSON, with exactly the rest."""
    found = list(make().blocks(epoch))
    parts = [documents_in(block) for block in found]
    assert [d for part in parts for d in part] == expected
    for k, block in enumerate(found):
        position = json.loads(json.dumps(block.position))
        again = list(make().blocks(epoch, position))
        assert [documents_in(b) for b in again] == parts[k:]
        assert [b.position for b in again] == [b.position for b in found[k:]]
    return len(found)


@contextmanager
def small_blocks(items=5, tokens=12, times=1):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MOST_TIMES", times)
        for kind in (SequenceStream, IterableStream):
            patch.setattr(kind, "block_items", items)
            patch.setattr(kind, "block_tokens", tokens)
        yield


class MapStyle(Dataset):
    def __init__(self, documents):
        self.documents = documents

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        if not 0 <= index < len(self.documents):
            raise IndexError(index)
        return {"input_ids": torch.tensor(self.documents[index])}


class Again(IterableDataset):
    def __init__(self, documents):
        self.documents = documents

    def __iter__(self):
        return iter(self.documents)


class SplitsItself(Again):
    """As torch's documentation advises: each worker takes its part."""

    def __iter__(self):
        info = get_worker_info()
        return iter(self.documents if info is None else self.documents[info.id :: info.num_workers])


class Bookmarked:
    """Saves its position as the torchdata protocol has it: iter() goes on where the state stands."""

    def __init__(self, documents, read_ahead=0):
        self.documents, self.at, self.read_ahead, self.opened_at = documents, 0, read_ahead, []

    def __iter__(self):
        self.opened_at.append(self.at)
        while self.at < len(self.documents):
            self.at += 1
            yield self.documents[self.at - 1]

    def state_dict(self):
        return {"at": self.at + self.read_ahead}

    def load_state_dict(self, state):
        self.at = state["at"]


class Reversing(Again):
    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(self.documents[:: -1 if self.epoch % 2 else 1])


def fresh_iterator(documents):
    yield from documents


def by_list(documents):
    return open_stream(documents)


KINDS = {
    "a list": by_list,
    "a tuple of arrays": lambda d: open_stream(tuple(np.array(x, dtype=np.int64) for x in d)),
    "a list of dicts": lambda d: open_stream([{"input_ids": x, "title": "t"} for x in d]),
    "a list of tensors": lambda d: open_stream([torch.tensor(x) for x in d]),
    "a map-style dataset": lambda d: open_stream(MapStyle(d)),
    "an iterable dataset": lambda d: open_stream(Again(d)),
    "a callable": lambda d: open_stream(functools.partial(fresh_iterator, d)),
    "a DataLoader": lambda d: open_stream(DataLoader(Again(d), batch_size=None)),
    "a DataLoader over a map-style dataset": lambda d: open_stream(DataLoader(MapStyle(d), batch_size=None)),
    "a source with a state": lambda d: open_stream(Bookmarked(d)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_reads_the_list_it_was_made_of_from_every_position(kind):
    with small_blocks():
        count = check_every_position(lambda: KINDS[kind](EXAMPLE), filled(EXAMPLE))
    assert count >= 8


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "a source with a state"])
def test_later_blocks_of_a_pass_are_larger_and_every_position_reads_them_again(kind):
    docs = [[i, i + 1] for i in range(300)]
    with small_blocks(items=5, tokens=1000, times=8):
        assert check_every_position(lambda: KINDS[kind](docs), docs) == 10
        sizes = [len(block) for block in KINDS[kind](docs).blocks(0)]
    assert sizes[:4] == [5, 10, 20, 40] and set(sizes[4:-1]) == {40}  # as many times 5 as there were before, 8 times at most


@pytest.mark.parametrize("kind", KINDS)
@given(documents=document_lists)
def test_any_documents_are_read_whole_and_resumed(kind, documents):
    with small_blocks():
        check_every_position(lambda: KINDS[kind](documents), filled(documents))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_the_default_size_hold_the_same_documents(kind):
    documents = [list(range(i % 300)) for i in range(700)]
    stream = KINDS[kind](documents)
    assert read(stream) == filled(documents)
    assert read(stream, epoch=1) == filled(documents)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_holds_offsets_from_zero_and_no_empty_document(kind):
    for block in KINDS[kind](EXAMPLE).blocks(0):
        assert block.offsets.dtype == np.int64 and block.offsets[0] == 0
        assert (np.diff(block.offsets) > 0).all()
        assert len(block) == len(block.offsets) - 1
        whole = block.read("input_ids", 0, int(block.offsets[-1]))
        assert whole.ndim == 1 and np.issubdtype(whole.dtype, np.integer)
        np.testing.assert_array_equal(block.read("input_ids", 1, 3), whole[1:3])


def test_a_stream_of_nothing_but_empty_documents_ends():
    for kind in KINDS.values():
        assert list(kind([[]] * 1000).blocks(0)) == []
        assert list(kind([]).blocks(0)) == []


def test_a_thousand_empty_documents_do_not_end_a_stream():
    documents = [[1, 2], *[[]] * 1000, [3, 4]]
    for kind in KINDS.values():
        assert read(kind(documents)) == [[1, 2], [3, 4]]


def test_an_endless_run_of_empty_documents_is_an_error_that_names_the_limit(monkeypatch):
    monkeypatch.setattr(blocks, "MAX_CONSECUTIVE_EMPTY", 200)

    def endless():
        yield [1]
        while True:
            yield []

    with pytest.raises(DataError, match="more than 200 empty documents in a row"):
        read(open_stream(endless))
    assert read(open_stream([[1], *[[]] * 200, [2]])) == [[1], [2]]
    with pytest.raises(DataError, match="more than 200 empty"):
        read(open_stream([[1], *[[]] * 201, [2]]))


def test_the_limit_of_empty_documents_is_a_million():
    assert blocks.MAX_CONSECUTIVE_EMPTY == 1_000_000


# columns


def rows_of(documents):
    return [{"input_ids": d, "labels": [-1 - t for t in d], "mask": [t % 2 for t in d]} for d in documents]


@given(documents=st.lists(st.lists(st.integers(0, 2**40), max_size=5), max_size=30))
def test_parallel_columns_stay_in_step(documents):
    rows = rows_of(documents)
    with small_blocks():
        for source in (rows, Again(rows), functools.partial(fresh_iterator, rows)):
            stream = open_stream(source, columns=("input_ids", "labels"))
            assert stream.columns == ("input_ids", "labels")
            assert read(stream, column="labels") == [[-1 - t for t in d] for d in documents if d]
            assert read(stream) == filled(documents)


def test_the_column_of_ids_may_have_another_name():
    rows = [{"tokens": [1, 2], "weight": [-3, 4]}]
    assert read(open_stream(rows, column="tokens"), column="tokens") == [[1, 2]]
    assert read(open_stream(rows, column="tokens", columns=("tokens", "weight")), column="weight") == [[-3, 4]]


def test_a_mixture_of_dtypes_stays_an_integer_array():
    documents = [np.array([1], np.uint64), torch.tensor([2], dtype=torch.int16), [3], np.array([], np.float64)]
    (block,) = open_stream(documents).blocks(0)
    assert block.read("input_ids", 0, 3).dtype == np.int64
    assert documents_in(block) == [[1], [2], [3]]


def test_a_small_dtype_is_kept():
    documents = [np.array([1, 2], np.uint16), np.array([], np.float32), np.array([3], np.uint16)]
    (block,) = open_stream(documents).blocks(0)
    assert block.read("input_ids", 0, 3).dtype == np.uint16


def test_an_array_of_the_other_byte_order_is_read_right():
    assert read(open_stream([np.array([1, 256], ">u2")])) == [[1, 256]]


def test_a_source_that_reuses_its_buffer_is_copied():
    def one_buffer():
        buffer = np.zeros(3, np.int64)
        for i in range(10):
            buffer[:] = i
            yield buffer

    class Shared(MapStyle):
        buffer = torch.zeros(3, dtype=torch.int64)

        def __getitem__(self, index):
            return self.buffer.fill_(index)

    assert read(open_stream(one_buffer)) == [[i] * 3 for i in range(10)]
    assert read(open_stream(Shared(range(10)))) == [[i] * 3 for i in range(10)]


# the end of a document


@given(documents=st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=30))
def test_each_document_ends_with_exactly_one_eos(documents):
    expected = [d if d[-1] == 0 else [*d, 0] for d in filled(documents)]
    with small_blocks():
        check_every_position(lambda: open_stream(documents, append_eos=0), expected)
        check_every_position(lambda: open_stream(Again(documents), append_eos=0), expected)
    assert read(open_stream(documents)) == filled(documents)


def test_an_eos_that_does_not_fit_the_dtype_widens_it():
    assert read(open_stream([np.array([1, 2], np.uint8)], append_eos=50256)) == [[1, 2, 50256]]


# passes


def test_set_epoch_is_called_with_the_number_of_the_pass():
    stream = open_stream(Reversing(EXAMPLE))
    assert read(stream, 0) == filled(EXAMPLE)
    assert read(stream, 1) == filled(EXAMPLE[::-1])
    assert read(open_stream(DataLoader(Reversing(EXAMPLE), batch_size=None)), 1) == filled(EXAMPLE[::-1])
    with small_blocks():
        check_every_position(lambda: open_stream(Reversing(EXAMPLE)), filled(EXAMPLE[::-1]), epoch=3)


def test_a_one_shot_iterator_serves_one_pass():
    stream = open_stream(iter(EXAMPLE))
    assert stream.passes == 1
    assert read(stream) == filled(EXAMPLE)
    for epoch in (0, 1):
        with pytest.raises(DataError, match=r"one-shot.*pass a callable that returns a fresh iterator.*list"):
            stream.blocks(epoch)


def test_a_one_shot_iterator_resumes_in_a_new_process_by_counting():
    with small_blocks():
        check_every_position(lambda: open_stream(fresh_iterator(EXAMPLE)), filled(EXAMPLE))


def test_a_callable_that_gives_the_same_iterator_again_is_found_out():
    used = iter(EXAMPLE)
    stream = open_stream(lambda: used)
    read(stream)
    with pytest.raises(DataError, match=r"pass 1 of .* has no items: it is one-shot"):
        read(stream, 1)


def test_an_endless_source_resumes_in_its_second_loop():
    def looping():
        while True:
            yield from ([i] for i in range(10))

    with small_blocks(items=5):
        found = open_stream(looping).blocks(0)
        position = [next(found).position for _ in range(6)][5]
        assert documents_in(next(open_stream(looping).blocks(0, position))) == [[5], [6], [7], [8], [9]]
    assert position["items"] == 25


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_reads_at_most_one_block_ahead(kind):
    seen = []

    class Spy(MapStyle):
        def __getitem__(self, index):
            seen.append(index)
            return [index] * 3

    with small_blocks(items=5):
        found = open_stream(Spy(range(100))).blocks(0)
        assert seen == []
        next(found)
        assert seen == [0, 1, 2, 3]


# positions


def test_resuming_by_index_reads_nothing_before_the_position():
    class Late(MapStyle):
        def __getitem__(self, index):
            if index < 300:
                raise AssertionError(index)
            return [index]

    assert read(open_stream(Late(range(303))), position={"items": 300, "block": [0, 0]}) == [[300], [301], [302]]


def test_a_source_that_does_not_repeat_is_refused_on_resuming():
    with small_blocks():
        *_, last = open_stream(lambda: iter(EXAMPLE)).blocks(0)
        changed = [*EXAMPLE[:3], [7], *EXAMPLE[4:]]
        with pytest.raises(StateError, match=rf"checksum of its first {last.position['items']} items"):
            read(open_stream(lambda: iter(changed)), position=last.position)
        moved = [*EXAMPLE[:2], [20, 21, 30], [31, 32], *EXAMPLE[4:]]
        with pytest.raises(StateError, match="does not repeat"):
            read(open_stream(lambda: iter(moved)), position=last.position)
        with pytest.raises(StateError, match=rf"after {last.position['items']} items, but .* ended after 4"):
            read(open_stream(lambda: iter(EXAMPLE[:4])), position=last.position)


def test_a_source_with_a_state_starts_where_the_state_says():
    source = Bookmarked([[i] for i in range(100)])
    position = list(open_stream(Bookmarked([[i] for i in range(100)])).blocks(0))[90].position
    assert position["state"] == {"at": 90}
    assert read(open_stream(source), position=position) == [[i] for i in range(90, 100)]
    assert source.opened_at == [90]


def test_a_source_with_a_state_starts_again_for_a_new_pass():
    stream = open_stream(Bookmarked([[i] for i in range(10)]))
    found = stream.blocks(0)
    next(found)
    assert read(stream, 0) == read(stream, 1) == [[i] for i in range(10)]


def test_a_state_that_runs_ahead_of_the_items_is_refused():
    documents = [[i] for i in range(100)]
    position = list(open_stream(Bookmarked(documents, read_ahead=3)).blocks(0))[50].position
    with pytest.raises(StateError, match=r"did not resume at item 50.*last item handed out"):
        read(open_stream(Bookmarked(documents, read_ahead=3)), position=position)


def test_a_state_that_is_not_plain_data_is_replaced_by_counting_and_says_so():
    class Tensors(Bookmarked):
        def state_dict(self):
            return {"at": torch.tensor(self.at)}

    class Tuples(Bookmarked):
        def state_dict(self):
            return (self.at, 0)

    for kind in (Tensors, Tuples):
        stream = open_stream(kind(EXAMPLE))
        with pytest.warns(UserWarning, match=r"counted and skipped"):
            first = next(stream.blocks(0))
        assert set(first.position) == {"items", "digest", "block"}


@pytest.mark.parametrize("position", [-1, True, 1.0, "1", {"items": 1}, [1]])
def test_a_position_of_another_kind_is_refused(position):
    for kind in KINDS.values():
        with pytest.raises(StateError, match="position"):
            kind(EXAMPLE).blocks(0, position)


def test_a_position_beyond_the_end_names_both_numbers():
    with pytest.raises(StateError, match=r"item 51, but .* has 50 items"):
        open_stream(EXAMPLE).blocks(0, {"items": 51, "block": [0, 0]})
    assert list(open_stream(EXAMPLE).blocks(0, {"items": 50, "block": [0, 0]})) == []


# text


class Letters:
    """Knows no words, has a voice: 'abc' is 0, 1, 2."""

    calls = 0

    def encode(self, text):
        type(self).calls += 1
        return [ord(letter) - ord("a") for letter in text]


class Mappings(Letters):
    def __call__(self, text):
        ids = self.encode(text)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}


class Encodings(Letters):
    def encode(self, text):
        return type("Encoding", (), {"ids": super().encode(text)})()


@pytest.mark.parametrize("tokenizer", [Letters(), Letters().encode, Mappings(), Encodings()])
def test_text_is_tokenized_where_it_is_read(tokenizer):
    texts = ["abc", "", "da", "z" * 30] * 5
    expected = [[ord(c) - 97 for c in t] for t in texts if t]
    rows = [{"text": t, "id": 1} for t in texts]
    other = [{"body": t} for t in texts]
    with small_blocks():
        check_every_position(lambda: open_stream(texts, tokenizer=tokenizer), expected)
        check_every_position(lambda: open_stream(rows, tokenizer=tokenizer), expected)
        check_every_position(lambda: open_stream(lambda: iter(rows), tokenizer=tokenizer), expected)
        check_every_position(lambda: open_stream(other, text_column="body", tokenizer=tokenizer), expected)


def test_a_tokenizer_that_ends_its_texts_is_not_doubled_and_an_empty_text_gives_nothing():
    ends = lambda text: [*map(ord, text), 0]  # noqa: E731
    for tokenizer in (ends, lambda text: [*map(ord, text)]):
        assert read(open_stream(["A", "", "BC"], tokenizer=tokenizer, append_eos=0)) == [[65, 0], [66, 67, 0]]


def test_a_tokenizer_may_give_further_columns():
    stream = open_stream(["ab", ""], tokenizer=Mappings(), columns=("input_ids", "attention_mask"))
    assert read(stream, column="attention_mask") == [[1, 1]]


def test_skipping_text_costs_no_tokenizing():
    texts = ["ab"] * 200
    *_, last = open_stream(lambda: iter(texts), tokenizer=Letters()).blocks(0)
    Letters.calls = 0
    rest = read(open_stream(lambda: iter(texts), tokenizer=Letters()), position=last.position)
    assert Letters.calls == len(rest) < 65


# processes


class EachWorker(IterableDataset):
    """What every worker of a loader reads from a stream, as (worker, document)."""

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        for document in read(self.stream):
            yield get_worker_info().id, document


@pytest.mark.parametrize("source", [SplitsItself(EXAMPLE), EXAMPLE, functools.partial(fresh_iterator, EXAMPLE)])
def test_every_worker_reads_the_whole_source_even_if_it_splits_itself(source):
    pairs = list(DataLoader(EachWorker(open_stream(source)), batch_size=None, num_workers=2))
    for worker in (0, 1):
        assert [document for who, document in pairs if who == worker] == filled(EXAMPLE)


def test_workers_may_stand_below_the_stream():
    stream = open_stream(DataLoader(MapStyle(EXAMPLE), batch_size=None, num_workers=2))
    assert read(stream) == filled(EXAMPLE)
    with small_blocks():
        position = list(stream.blocks(0))[3].position
        assert read(stream, position=position) == filled(EXAMPLE[position["items"] :])


def test_the_worker_is_visible_again_after_reading():
    class Looks(IterableDataset):
        def __iter__(self):
            found = open_stream(Again([[1], [2]])).blocks(0)
            next(found)
            yield get_worker_info().id
            list(found)
            yield get_worker_info().id

    assert list(DataLoader(Looks(), batch_size=None, num_workers=1)) == [0, 0]


@pytest.mark.parametrize("source", [EXAMPLE, MapStyle(EXAMPLE), Again(EXAMPLE), Bookmarked(EXAMPLE)])
def test_a_stream_pickles_with_its_source(source):
    stream = open_stream(source)
    copy = pickle.loads(pickle.dumps(stream))
    assert read(copy) == read(stream)
    assert copy.fingerprint == stream.fingerprint


def test_a_fingerprint_is_readable_and_names_no_memory_address():
    assert open_stream(EXAMPLE).fingerprint == "list of 50 documents (e1a9 6915 006d c422 e1a9 9594 6947 56e5)"
    for kind in KINDS.values():
        assert "0x" not in kind(EXAMPLE).fingerprint
        assert kind(EXAMPLE).fingerprint == kind(EXAMPLE).fingerprint


def test_a_stream_is_returned_as_it_is():
    stream = open_stream([{"input_ids": [1], "labels": [2]}], columns=("input_ids", "labels"))
    assert open_stream(stream) is stream
    assert open_stream(stream, columns=("labels",)) is stream
