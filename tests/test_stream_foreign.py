"""Sources that other libraries make: nodes and loaders with a state, random generators, transforms, rows by label."""

import itertools
import json
import random
import sqlite3

import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from refusals import refused
from torch.utils.data import DataLoader, IterableDataset
from torchdata.nodes import IterableWrapper, Loader, SamplerWrapper
from torchdata.stateful_dataloader import StatefulDataLoader

from slw_data import ConstantSchedule, DataError, SLWDataset, SLWLoader, open_stream, open_tokens

DOCUMENTS = [[10 * i + k for k in range(1 + i % 4)] for i in range(60)]


def read(stream, epoch=0, position=None):
    return [
        document.tolist()
        for block in stream.blocks(epoch, position)
        for document in np.split(block.read("input_ids", 0, int(block.offsets[-1])), block.offsets[1:-1])
    ]


def loader_of(source, total_steps=40, **options):
    return SLWLoader(SLWDataset(source, ConstantSchedule(4), batch_size=2, total_steps=total_steps), **options)


def ids(batches):
    return [batch["input_ids"].tolist() for batch in batches]


# -- states of others --------------------------------------------------------------------------------------------------


NODES = {
    "an iterable": lambda: Loader(IterableWrapper(DOCUMENTS)),
    "a sampler": lambda: Loader(SamplerWrapper(DOCUMENTS)),
}


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("taken", [0, 1, 7, 15, 17, 22, 38])
def test_a_loader_of_nodes_goes_on_in_a_new_process(node, prefetch, taken):
    """150 tokens a pass are 18 steps of 8: the state is of the first, the second or the third pass."""
    whole = ids(loader_of(NODES[node](), prefetch=0))
    assert len(whole) == 40
    first = loader_of(NODES[node](), prefetch=prefetch)
    found = ids(itertools.islice(first, taken))
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    again = loader_of(NODES[node](), prefetch=prefetch)
    again.load_state_dict(state)
    assert found + ids(again) == whole


class Watched:
    """Goes on where its state stands, and remembers what was asked of it."""

    def __init__(self):
        self.at, self.asked = 0, []

    def __iter__(self):
        self.asked.append("iter")
        while self.at < len(DOCUMENTS):
            self.at += 1
            yield DOCUMENTS[self.at - 1]

    def state_dict(self):
        self.asked.append("state_dict")
        return {"at": self.at}

    def load_state_dict(self, state):
        self.asked.append("load_state_dict")
        self.at = state["at"]


def test_opening_asks_a_source_for_nothing_and_going_on_asks_for_no_state_first():
    source = Watched()
    stream = open_stream(source)
    SLWDataset(stream, ConstantSchedule(4), batch_size=2)
    assert source.asked == []
    position = [block.position for block in open_stream(Watched()).blocks(0)][5]
    next(stream.blocks(0, position))
    assert source.asked[:2] == ["load_state_dict", "iter"]


def test_a_source_with_a_state_that_went_on_in_the_middle_begins_its_next_pass_at_the_start():
    position = json.loads(json.dumps([block.position for block in open_stream(Watched()).blocks(0)][5]))
    stream = open_stream(Watched())
    assert read(stream, 0, position) == DOCUMENTS[5:]
    assert read(stream, 1) == read(stream, 2) == DOCUMENTS


class WithArguments:
    """As the datasets of litdata and of mosaicml-streaming: the state is asked for with arguments."""

    def __init__(self):
        self.documents = DOCUMENTS

    def __iter__(self):
        return iter(self.documents)

    def load_state_dict(self, state):
        raise AssertionError("there is no state to load")


class Litdata(WithArguments):
    def state_dict(self, num_samples_yielded: int, num_workers: int, batch_size: int):
        return {"num_samples_yielded": num_samples_yielded}


class Mosaic(WithArguments, IterableDataset):
    def __len__(self):
        return len(self.documents)

    def __getitem__(self, index):
        return self.documents[index]

    def state_dict(self, num_samples: int, from_beginning: bool):
        return {"sample_in_epoch": num_samples}


class Keyword(WithArguments):
    def state_dict(self, *, yielded):
        return {"yielded": yielded}


@pytest.mark.parametrize("kind", [Litdata, Mosaic, Keyword])
def test_a_state_that_is_asked_for_with_arguments_is_not_used_and_items_are_counted(kind):
    with pytest.warns(UserWarning, match=r"state_dict of .* takes arguments.*counted and skipped"):
        stream = open_stream(kind())
    blocks = list(stream.blocks(0))
    assert read(stream) == DOCUMENTS
    assert read(stream, 0, blocks[-1].position) == read(stream, 0)[-len(blocks[-1]) :]


def test_a_state_whose_arguments_have_defaults_is_used():
    class Defaults(Watched):
        def state_dict(self, flat=True, *, destination=None, **options):
            return super().state_dict()

    assert set(next(open_stream(Defaults()).blocks(0)).position) == {"items", "state", "check", "initial"}


# -- random generators -------------------------------------------------------------------------------------------------


class Iterated(IterableDataset):
    def __iter__(self):
        return iter(DOCUMENTS)


class RandomRows(IterableDataset):
    """Documents that a worker draws with its own generator."""

    def __iter__(self):
        for _ in range(40):
            yield torch.randint(0, 1000, (4,)).tolist()


def generators():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()


LOADERS = {
    "iterable": lambda: DataLoader(Iterated(), batch_size=None),
    "map-style": lambda: DataLoader(DOCUMENTS, batch_size=None),
    "workers": lambda: DataLoader(Iterated(), batch_size=None, num_workers=1),
    "persistent workers": lambda: DataLoader(Iterated(), batch_size=None, num_workers=1, persistent_workers=True),
    "the global generator": lambda: DataLoader(DOCUMENTS, batch_size=None, generator=torch.default_generator),
    "stateful": lambda: StatefulDataLoader(Iterated(), batch_size=None),
}


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 with torch 2.13
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_reading_through_a_data_loader_moves_no_global_generator(kind, prefetch):
    before = generators()
    found = ids(loader_of(LOADERS[kind](), prefetch=prefetch))
    assert generators() == before
    assert found == ids(loader_of(DOCUMENTS, prefetch=0))


def test_a_generator_of_the_users_is_left_alone_and_so_is_the_loader():
    generator = torch.Generator().manual_seed(7)
    before = generator.get_state()
    source = DataLoader(Iterated(), batch_size=None, generator=generator)
    attributes = dict(vars(source))
    ids(loader_of(source))
    assert torch.equal(generator.get_state(), before) and vars(source) == attributes


def test_what_workers_draw_is_the_same_in_every_run_and_another_in_each_pass_and_for_each_seed():
    def stream(seed=None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return open_stream(DataLoader(RandomRows(), batch_size=None, num_workers=1, generator=generator))

    first, second = read(stream(), 0), read(stream(), 1)
    assert first == read(stream(), 0) != second == read(stream(), 1)
    assert read(stream(3), 0) == read(stream(3), 0) not in (first, second, read(stream(4), 0))
    position = list(stream().blocks(1))[-1].position
    assert read(stream(), 1, position) == second[-len(read(stream(), 1, position)) :]


def test_a_data_loader_is_read_whatever_the_default_device():
    torch.set_default_device("meta")
    try:
        found = read(open_stream(DataLoader(Iterated(), batch_size=None)))
    finally:
        torch.set_default_device(None)
    assert found == DOCUMENTS


# -- Hugging Face transforms -------------------------------------------------------------------------------------------


def plus_one(batch):
    return {**batch, "input_ids": [[token + 1 for token in row] for row in batch["input_ids"]]}


@pytest.mark.parametrize("in_place", [False, True])
def test_a_dataset_with_a_transform_is_refused_since_its_rows_are_not_what_it_stores(in_place):
    rows = Dataset.from_dict({"input_ids": DOCUMENTS})
    if in_place:
        rows.set_transform(plus_one)
    else:
        rows = rows.with_transform(plus_one)
    assert rows[1]["input_ids"] == [11, 12]
    for make in (open_tokens, lambda x: SLWDataset(x, ConstantSchedule(4), batch_size=2)):
        refused(lambda make=make: make(rows), "transform", "plus_one", ".map(", "with_format(None)", error=TypeError)
    assert open_tokens(rows.with_format(None)).read(0, 3).tolist() == [0, 10, 11]


def test_texts_with_a_transform_are_refused_too():
    rows = Dataset.from_dict({"text": ["a", "b"]}).with_transform(lambda batch: {"text": ["x" for _ in batch["text"]]})
    refused(lambda: open_stream(rows, tokenizer=lambda text: [*map(ord, text)]), "transform", ".map(", error=TypeError)


@pytest.mark.parametrize("kind", ["torch", "numpy", "arrow", "pandas", None])
def test_a_dataset_with_a_format_of_the_same_values_is_read_as_it_is(kind):
    rows = Dataset.from_dict({"input_ids": DOCUMENTS, "other": DOCUMENTS}).with_format(kind)
    assert open_tokens(rows).read(0, 150).tolist() == [token for document in DOCUMENTS for token in document]


def test_a_column_that_a_format_hides_is_refused():
    rows = Dataset.from_dict({"input_ids": DOCUMENTS, "other": DOCUMENTS}).with_format("torch", columns=["other"])
    refused(lambda: open_tokens(rows), "'input_ids'", "with_format", error=KeyError)


# -- rows by label, rows of one thread ---------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [range(60), range(60, 0, -1), [f"row {i}" for i in range(60)], [5] * 60])
def test_a_series_is_read_in_its_order_whatever_its_labels(index):
    assert read(open_stream(pandas.Series(DOCUMENTS, index=list(index)))) == DOCUMENTS


def test_a_series_of_texts_is_read_in_its_order():
    texts = pandas.Series(["ab", "c", "d"], index=[2, 1, 0])
    assert read(open_stream(texts, tokenizer=lambda text: [*map(ord, text)])) == [[97, 98], [99], [100]]


def test_a_frame_is_refused_and_its_remedy_works():
    frame = pandas.DataFrame({"input_ids": DOCUMENTS, "mask": DOCUMENTS})
    refused(lambda: open_stream(frame), "DataFrame", "to_dict('records')", error=TypeError)
    assert read(open_stream(frame.to_dict("records"))) == DOCUMENTS


class Table:
    """Rows of a connection that only the thread which has opened it may use."""

    def __init__(self):
        self.connection = sqlite3.connect(":memory:")
        self.connection.execute("create table rows (text text)")
        self.connection.executemany("insert into rows values (?)", [("ab" * (1 + i % 3),) for i in range(40)])

    def __iter__(self):
        for (text,) in self.connection.execute("select text from rows"):
            yield [*map(ord, text)]


def test_a_source_of_one_thread_names_prefetch_0_which_reads_it():
    table = Table()
    refused(lambda: list(loader_of(table)), "another thread", "prefetch=0", "SQLite", error=DataError)
    assert len(ids(loader_of(table, prefetch=0))) == 40
    table.connection.close()


def test_an_error_of_one_thread_sources_elsewhere_keeps_its_type():
    def broken():
        yield [1, 2, 3, 4]
        raise sqlite3.OperationalError("no such table: threads")

    for prefetch in (0, 2):
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            list(loader_of(broken, prefetch=prefetch))
