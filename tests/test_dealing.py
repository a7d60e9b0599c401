"""Dealing where rows end with their documents: a lane is dealt to when a row needs it, and no choice of labels changes that.

The documents of these tests have 4 or 8 tokens and the rows 4, so most rows end where a document does, and the token after
them is one that is dealt later: the first of the lane's next row.
"""

import itertools
import json

import numpy as np
import pytest
from delivery import as_lists, built, dealing
from oracle import batches_of, naive_dealing, naive_plan, naive_tensors
from refusals import refused

from slw_data import ConstantSchedule, DataError, SLWDataset, SLWLoader, StagedSchedule
from slw_data.batch.building import LABELS
from slw_data.sources.streams import Block

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
EVEN = [[10 * i + k for k in range(4 if i % 3 else 8)] for i in range(40)]
IGNORE = -100


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", LABELS)
def test_a_lane_that_holds_a_whole_row_is_dealt_nothing(labels):
    """Two lanes, rows of 4: each document of 4 is one row, and that of 8 gives its lane the next row as well."""
    docs = [[1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15, 16], [17, 18, 19, 20], [21, 22]]
    dataset = SLWDataset(docs, ConstantSchedule(4), batch_size=1, num_lanes=2, labels=labels)
    rows = [batch["input_ids"].tolist()[0] for batch in dataset]
    assert rows == [[1, 2, 3, 4], [5, 6, 7, 8], [13, 14, 15, 16], [9, 10, 11, 12], [17, 18, 19, 20]]
    assert dataset.tokens_left == 2


def test_a_shifted_label_over_the_end_of_a_document_is_the_first_token_of_the_lanes_next_row():
    docs = [[1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15, 16], [17, 18, 19, 20], [21, 22]]
    dataset = SLWDataset(docs, ConstantSchedule(4), batch_size=1, num_lanes=2, labels="both")
    assert [batch["shift_labels"].tolist()[0] for batch in dataset] == [
        [2, 3, 4, 13],
        [6, 7, 8, 9],
        [14, 15, 16, 17],
        [10, 11, 12, 21],  # of a row that is never filled
        [18, 19, 20, IGNORE],
    ]


def even(rank, world, num_lanes, labels="unshifted", **options):
    shape = {"batch_size": 2 // world, "grad_accum_steps": 2, "world_size": world}
    dataset = built(EVEN, StagedSchedule([4, 2, 4], [3, 6]), shape, rank, num_lanes=num_lanes, labels=labels)
    return SLWLoader(dataset, **{"prefetch": 0, **options})


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("num_lanes", [1, 3])
def test_rows_that_end_with_documents_are_what_the_oracle_says_and_resume_at_each_batch(num_lanes, world, num_workers):
    shape = {"batch_size": 2 // world, "grad_accum_steps": 2, "world_size": world}
    shapes = naive_plan(StagedSchedule([4, 2, 4], [3, 6]), **shape, total_steps=60)
    run, _ = naive_dealing(EVEN, shapes, num_lanes=num_lanes, **dealing(shape))
    one = even(0, 1, num_lanes)
    states = [one.state_dict() for _ in one]
    assert len(states) == 2 * len(run) > 20
    for rank, labels in itertools.product(range(world), LABELS):
        expected = [
            naive_tensors(rows, shapes[i // 2][0], columns={"input_ids": lambda p: p}, labels=labels)
            for i, rows in enumerate(batches_of(run, rank))
        ]
        loader = even(rank, world, num_lanes, labels, num_workers=num_workers)
        assert [(as_lists(batch), loader.state_dict()) for batch in loader] == list(zip(expected, states, strict=True))
        for cut in range(1, len(states), 1 if num_workers == 0 else 7):
            loader.load_state_dict(json.loads(json.dumps(states[cut - 1])))
            assert [as_lists(batch) for batch in itertools.islice(loader, 5)] == expected[cut : cut + 5]


# -- the end ----------------------------------------------------------------------------------------------------------


def test_the_schedule_is_not_asked_beyond_the_last_step_for_a_label():
    lengths = [4, 2, 4]
    for num_lanes, label in ((1, 14), (2, 20)):
        docs = [[1, 2, 3, 4], [5, 6, 7, 8], [10, 11, 12, 13], [14, 15, 16, 17], [20, 21, 22, 23], [30, 31]]
        docs = docs if num_lanes == 2 else [[1, 2, 3, 4], [5, 6], *docs[2:]]
        dataset = SLWDataset(
            docs, lambda step: lengths[step], batch_size=1, total_steps=3, num_lanes=num_lanes, labels="shifted"
        )
        assert [batch["labels"][0, -1].item() for batch in dataset][-1] == label


class Live:
    """A stream whose blocks are single documents, and which knows how many were read."""

    columns, name, fingerprint = ("input_ids",), "live", "live"
    passes = not_exact = sharded = None
    count = 0

    def __init__(self, docs):
        self.docs = docs

    def blocks(self, epoch, position=None):
        for first in range(position or 0, len(self.docs)):
            self.count = max(self.count, first + 1)
            ids = np.array(self.docs[first])
            yield Block(first, np.array([0, len(ids)]), {"input_ids": ids})


@pytest.mark.parametrize("num_lanes", [1, 3])
@pytest.mark.parametrize("labels", LABELS)
def test_no_document_is_read_long_before_a_row_or_a_label_needs_it(labels, num_lanes):
    stream = Live([[10 * i + k for k in range(4)] for i in range(30)])
    dataset = SLWDataset(stream, ConstantSchedule(4), batch_size=2, num_lanes=num_lanes, labels=labels)
    read = []
    for _ in dataset:
        read.append(stream.count)
    if labels in ("unshifted", "none"):
        assert read == [*range(3, 31, 2), 30]  # those of the rows, and whether there is one more in this pass
    else:  # until the lane of the batch's last row has its next one
        assert read == [min(count, 30) for count in range(3 if num_lanes == 1 else 5, 34, 2)][: len(read)]


# -- a source that fails ----------------------------------------------------------------------------------------------


class Indexed:
    """Documents by index, with an error behind them, and perhaps more."""

    def __init__(self, docs, more=()):
        self.items = [*docs, OSError("disk 7 failed"), *more]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(self.items[index], OSError):
            raise self.items[index]
        return self.items[index]


class Iterated:
    """The same without an index."""

    def __init__(self, docs):
        self.docs = docs

    def __iter__(self):
        yield from self.docs
        raise OSError("disk 7 failed")


class OneByOne(Live):
    """The same as blocks of one document each."""

    def blocks(self, epoch, position=None):
        yield from super().blocks(epoch, position)
        raise OSError("disk 7 failed")


def hugging_face(docs):
    import datasets

    def rows():
        for doc in docs:
            yield {"input_ids": doc}
        raise OSError("disk 7 failed")

    features = datasets.Features({"input_ids": datasets.Sequence(datasets.Value("int64"))})
    return datasets.IterableDataset.from_generator(rows, features=features)


def until_it_fails(source, **options):
    """The batches of each rank before the error of a source."""
    shape = {"batch_size": 2 // options.get("world_size", 1), "grad_accum_steps": 1, "world_size": 1}
    shape["world_size"] = options.pop("world_size", 1)
    loading = {"num_workers": options.pop("num_workers", 0), "prefetch": options.pop("prefetch", 0)}
    ranks = []
    for rank in range(shape["world_size"]):
        loader, found = SLWLoader(built(source, ConstantSchedule(4), shape, rank, **options), **loading), []
        with pytest.raises(OSError, match="disk 7 failed"):
            for batch in loader:
                found.append(as_lists(batch))
        assert loader.step == len(found)
        ranks.append(found)
    return ranks


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("kind", "num_workers", "prefetch"),
    [(Indexed, 0, 0), (Iterated, 0, 2), (OneByOne, 0, 0), (Indexed, 1, 0), (Iterated, 2, 0)],
)
@pytest.mark.parametrize("num_lanes", [1, 2, 3])
def test_every_batch_that_is_complete_before_an_error_is_delivered(kind, num_lanes, num_workers, prefetch, world_size):
    """Ten documents are the ten rows of five batches; a label that nothing is known of keeps its batch back."""
    docs = [[10 * i + k for k in range(4)] for i in range(10)]
    for labels in LABELS:
        ranks = until_it_fails(
            kind(docs), num_lanes=num_lanes, labels=labels, world_size=world_size,
            num_workers=num_workers, prefetch=prefetch,
        )  # fmt: skip
        rows = [row for step in zip(*ranks, strict=True) for batch in step for row in batch["input_ids"]]
        unknown = -(-num_lanes // 2) if labels in ("shifted", "both") else 0  # batches with one of the last num_lanes rows
        assert rows == docs[: 10 - 2 * unknown]


@pytest.mark.parametrize("num_lanes", [1, 2])
@pytest.mark.parametrize("kind", [Indexed, Iterated, OneByOne])
def test_a_label_that_was_dealt_before_the_error_is_enough(kind, num_lanes):
    """The rows that would be next are not filled, and their first tokens are known."""
    docs = [[10 * i + k for k in range(4)] for i in range(10)]
    for more in range(3):
        rest = [[500 + i] for i in range(more)]
        [found] = until_it_fails(kind([*docs, *rest]), num_lanes=num_lanes, labels="shifted")
        assert len(found) == (5 if more and num_lanes == 1 else 4)  # one lane takes all of the rest, for want of a row
        if len(found) == 5:
            assert found[-1]["labels"] == [[81, 82, 83, 90], [91, 92, 93, 500]]
    [found] = until_it_fails(kind([*docs, [500, 501, 502, 503], [600]]), num_lanes=num_lanes, labels="shifted")
    assert len(found) == 5 and found[-1]["labels"][-1][-1] == (500 if num_lanes == 1 else 600)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_no_batch_overtakes_one_whose_label_nobody_knows(num_workers):
    """40 lanes have a row each before the error. That of lane 2, in batch 1, is all of its document."""
    docs = [[10 * i + k for k in range(4 if i == 2 else 6)] for i in range(40)]
    for labels, batches in (("unshifted", 20), ("shifted", 1)):
        [found] = until_it_fails(Indexed(docs), num_lanes=40, labels=labels, num_workers=num_workers)
        assert [row for batch in found for row in batch["input_ids"]] == [doc[:4] for doc in docs[: 2 * batches]]


def test_a_hugging_face_stream_delivers_what_is_complete_before_an_error():
    docs = [[10 * i + k for k in range(4)] for i in range(512)]
    [found] = until_it_fails(hugging_face(docs), labels="unshifted")
    assert [row for batch in found for row in batch["input_ids"]] == docs
    [found] = until_it_fails(hugging_face(docs), labels="shifted")
    assert len(found) == 255


@pytest.mark.parametrize("mode", ["segment", "truncate"])
def test_padded_rows_have_no_label_to_wait_for(mode):
    docs = [[10 * i + k for k in range(4)] for i in range(10)]
    [found] = until_it_fails(OneByOne(docs), mode=mode, pad_id=0, labels="shifted")
    assert [row for batch in found for row in batch["labels"]] == [[*doc[1:], IGNORE] for doc in docs]


def test_a_stream_without_tokens_is_refused_after_its_last_batch():
    """Pass 1 of a callable that is used up: the error is of the source, and comes where the next row is cut."""
    items = iter([[1, 2, 3, 4], [5, 6, 7, 8]])
    dataset = SLWDataset(lambda: items, ConstantSchedule(4), batch_size=1, total_steps=3, labels="none")
    found = []
    refused(lambda: found.extend(dataset), "pass 1", error=DataError)
    assert [batch["input_ids"].tolist() for batch in found] == [[[1, 2, 3, 4]], [[5, 6, 7, 8]]]


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_a_state_from_before_an_error_goes_on_over_the_repaired_source(num_lanes):
    """The error ended the block earlier than it ends once the source is repaired."""
    docs = [[10 * i + k for k in range(5)] for i in range(30)]
    source, found = Indexed(docs[:12], docs[13:]), []

    def loader():
        return SLWLoader(SLWDataset(source, ConstantSchedule(4), batch_size=2, num_lanes=num_lanes), prefetch=0)

    broken = loader()
    with pytest.raises(OSError, match="disk 7 failed"):
        for batch in broken:
            found.append(as_lists(batch))
    source.items[12] = docs[12]
    again = loader()
    again.load_state_dict(broken.state_dict())
    assert len(found) > 5 and found + [as_lists(batch) for batch in again] == [as_lists(batch) for batch in loader()]
