"""Packed rows: each beside a naive packing of lists, at lengths that grow and shrink, on any number of ranks."""

import contextlib
import itertools
import json

import numpy as np
import pytest
from delivery import Documented, as_lists, drawn_end, rows_in, small_runs, some_extras
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import naive_best_fit, naive_packed, naive_packing, naive_permutation, naive_plan
from refusals import refused
from strategies import documents

from slw_data import ConstantSchedule, DataError, ScheduleError, SLWDataset, SLWLoader, StagedSchedule, StateError
from slw_data.batch.building import LABELS
from slw_data.order.packed import DocumentWindows
from slw_data.order.packing import count_rows
from slw_data.order.permutation import permute
from slw_data.sources.streams.items import SequenceStream

pytestmark = pytest.mark.filterwarnings("ignore:this run is finished")

PAD = 7_000
some_documents = documents(max_documents=40, max_tokens=25).filter(any)


def stored(docs, dtype=np.int64):
    source = Documented([t for doc in docs for t in doc], np.cumsum([0, *map(len, docs)])[:-1])
    source.tokens, source.dtype = source.tokens.astype(dtype), np.dtype(dtype)
    return source


def streamed(docs, dtype=np.int64):
    return [np.array(doc, dtype) for doc in docs]


@contextlib.contextmanager
def windows_and_blocks(size, block):
    """A window has ``size`` documents, and ``block`` of a list are read together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DocumentWindows, "size", size)
        patch.setattr(SequenceStream, "block_items", block)
        yield


def windows_of(docs, passes, seed, size, part=slice(None)):
    """The documents of each window; ``seed`` None: in the store's order. ``part``: which of those of a pass, of a shard."""
    kept = [doc for doc in docs if doc]
    for epoch in range(passes):
        order = range(len(kept)) if seed is None else naive_permutation(len(kept), seed, epoch)
        opened = [kept[i] for i in order][part]
        yield from (opened[i : i + size] for i in range(0, len(opened), size))


def order_of(docs, seed, size, part=slice(None)):
    """The order in which rows of a window are delivered."""
    in_pass = -(-len([doc for doc in docs if doc][part]) // size)

    def order(window, rows):
        return range(rows) if seed is None else permute(np.arange(rows), rows, (seed, *divmod(window, in_pass))).tolist()

    return order


def following(docs):
    return {a: b for doc in docs for a, b in itertools.pairwise(doc)}


@st.composite
def packed_runs(draw):
    """``(docs, opened, options, shape, schedule, run, shapes, sizes)``: a run of packed rows, as lists of pieces. ``opened``
    makes a store of documents, or a stream; ``sizes`` are of windows and blocks."""
    schedule, shape, total = draw(small_runs)
    docs, size = draw(some_documents), draw(st.sampled_from([1, 2, 3, 7, 50]))
    opened = draw(st.sampled_from([stored, streamed]))
    options = {"mode": "pack", "pad_id": PAD, "shuffle": opened is stored and draw(st.booleans())}
    options["seed"] = draw(st.integers(0, 9))
    end, shapes, passes = drawn_end(draw, schedule, shape, total, sum(map(len, docs)))
    options |= end
    if passes is None:
        passes = sum(rows_in(shapes, shape)) + 1
    if min(length for length, *_ in shapes) > 1 and draw(st.booleans()):
        options["bos_id"] = PAD + 1
    seed = options["seed"] if options["shuffle"] else None
    run = naive_packing(
        windows_of(docs, passes, seed, size), shapes, order=order_of(docs, seed, size), lead=int("bos_id" in options),
        grad_accum_steps=shape["grad_accum_steps"], world_size=shape["world_size"],
    )  # fmt: skip
    return docs, opened, options, shape, schedule, run, shapes, (size, draw(st.sampled_from([2, 3, 5, 50])))


@pytest.fixture
def small_windows(monkeypatch):
    """Sets how many documents a window has."""
    return lambda size: monkeypatch.setattr(DocumentWindows, "size", size)


def loader_of(source, schedule, shape, rank=0, world=None, *, num_workers=0, **options):
    shape = dict(shape)
    world = world or shape["world_size"]
    shape.pop("world_size")
    dataset = SLWDataset(source, schedule, dp_rank=rank, dp_world_size=world, **shape, **options)
    return SLWLoader(dataset, num_workers=num_workers, prefetch=0)


def pieces_of(run):
    """All pieces of a run, in the order of delivery."""
    return [piece for step in run for micro in step for rank in micro for row in rank for piece in row]


def joined(parts):
    return [value for part in parts for value in part]


def tokens_of(batches):
    """The tokens of documents in batches, row by row."""
    for batch in batches:
        rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
        yield [[t for t, kept in zip(row, mask, strict=True) if kept and t != PAD + 1] for row, mask in rows]


@given(packed_runs(), st.sampled_from(LABELS), some_extras, st.sampled_from(["plain", "narrow", "columns"]))
def test_every_batch_of_every_rank_is_what_naive_packing_gives_and_so_are_the_counts(case, labels, extras, kind):
    docs, opened, options, shape, schedule, run, shapes, sizes = case
    accum, columns = shape["grad_accum_steps"], {"input_ids": lambda t: t}
    source = opened(docs, np.uint16 if kind == "narrow" else np.int64)
    if kind == "columns":
        columns |= {"weights": lambda t: t % 5 + 1, "labels": lambda t: t + 100}
        parts = {name: [[column(t) for t in doc] for doc in docs] for name, column in columns.items()}
        source = {name: stored(part) for name, part in parts.items()}
        if opened is streamed:
            source = [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    tokens = sum(map(len, pieces_of(run)))
    rows = sum(len(rank) * (length - ("bos_id" in options)) for step, (length, *_) in zip(run, shapes, strict=False)
               for micro in step for rank in micro)  # fmt: skip
    with windows_and_blocks(*sizes):
        for rank in range(shape["world_size"]):
            loader = loader_of(source, schedule, shape, rank, labels=labels, extras=extras, columns=tuple(columns), **options)
            expected = [
                naive_packed(
                    micro[rank], length, step=number, columns=columns, labels=labels, extras=extras, pad_id=PAD,
                    bos_id=options.get("bos_id"), after=following(docs),
                )
                for number, (step, (length, *_)) in enumerate(zip(run, shapes, strict=False))
                for micro in step
            ]  # fmt: skip
            assert [as_lists(batch) for batch in loader] == expected
            assert len(expected) == len(run) * accum
            assert (loader.tokens_seen, loader.tokens_padded, loader.tokens_discarded) == (tokens, rows - tokens, 0)
            if "epochs" in options:
                assert loader.tokens_left == options["epochs"] * sum(map(len, docs)) - tokens


@given(packed_runs(), st.data())
def test_a_state_of_any_batch_and_a_sought_step_go_on_as_naive_packing_does(case, data):
    docs, opened, options, shape, schedule, run, _, sizes = case
    accum = shape["grad_accum_steps"]
    cut = data.draw(st.integers(0, len(run) * accum))
    expected = [[joined(row) for rank in micro for row in rank] for step in run for micro in step]
    with windows_and_blocks(*sizes):
        loader = loader_of(opened(docs), schedule, shape, **options)
        list(itertools.islice(loader, cut))
        state = json.loads(json.dumps(loader.state_dict()))
        worlds, other = [shape["world_size"]], dict(shape)
        if isinstance(shape.get("batch_size"), int):
            rows = shape["batch_size"] * shape["world_size"]
            worlds = [world for world in range(1, 6) if rows % world == 0]
        world = data.draw(st.sampled_from(worlds))
        if isinstance(shape.get("batch_size"), int):
            other["batch_size"] = rows // world
        ranks = [loader_of(opened(docs), schedule, other, rank, world, **options) for rank in range(world)]
        step = data.draw(st.integers(0, len(run)))
        for begin, move, argument in ((cut, SLWLoader.load_state_dict, state), (step * accum, SLWLoader.seek, step)):
            for loader in ranks:
                move(loader, argument)
            found = zip(*(tokens_of(loader) for loader in ranks), strict=True)
            assert [[row for part in parts for row in part] for parts in found] == expected[begin:]
        for loader in ranks:
            loader.load_state_dict(state)
            assert loader.state_dict() == state


@given(packed_runs())
def test_states_do_not_depend_on_how_many_batches_were_looked_up_together(case):
    docs, opened, options, shape, schedule, *_, sizes = case
    with windows_and_blocks(*sizes):
        loader = loader_of(opened(docs), schedule, shape, **options)
        states = [loader.state_dict()] + [loader.state_dict() for _ in loader]
        for before, after in itertools.pairwise(states):
            again = loader_of(opened(docs), schedule, shape, **options)
            again.load_state_dict(before)
            next(iter(again))
            assert again.state_dict() == after


@given(st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=40), min_size=1, max_size=5), st.integers(1, 45))
def test_counting_many_windows_gives_the_rows_of_each(windows, room):
    sizes = np.zeros((len(windows), max(map(len, windows))), np.int64)
    for row, window in zip(sizes, windows, strict=True):
        row[: len(window)] = window
    expected = [len(naive_best_fit([[0] * size for size in window], room)) for window in windows]
    assert count_rows(sizes, room).tolist() == expected


@given(st.integers(1, 2_000), st.integers(0, 99))
@settings(max_examples=20)
def test_counting_windows_of_a_thousand_documents_gives_the_rows_that_packing_makes(length, seed):
    rng = np.random.default_rng(seed)
    sizes = np.maximum(1, rng.lognormal(rng.uniform(0, 8), rng.uniform(0.1, 2), 3_000)).astype(np.int64)
    windows = DocumentWindows(documents_of(sizes, shuffle=True))
    table = np.zeros((3, windows.size), np.int64)
    for number in range(3):
        fragments = windows.fragments(number)
        table[number, : len(fragments.sizes)] = fragments.sizes
    packed = [windows.pack(number, windows.fragments(number), length).count for number in range(3)]
    assert count_rows(table, length).tolist() == packed


def documents_of(sizes, **options):
    return SLWDataset(
        Lengths(sizes), ConstantSchedule(8), batch_size=1, mode="pack", pad_id=0, **options
    ).run.batches.order.windows.documents  # fmt: skip


class Lengths:
    """A store of documents of these sizes, whose tokens are their places."""

    name = fingerprint = "lengths"
    dtype = np.dtype(np.int64)

    def __init__(self, sizes):
        self.documents = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self):
        return int(self.documents[-1])

    def read(self, start, stop):
        return np.arange(start, stop)

    def gather(self, starts, length, out):
        out[:] = starts[:, None] + np.arange(length)


LOG_NORMAL = np.maximum(1, np.random.default_rng(5).lognormal(np.log(400), 1.0, 20_000)).astype(np.int64)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("length", "most"), [(64, 0.01), (512, 0.01), (2048, 0.01)])
def test_a_corpus_is_delivered_once_with_little_padding_and_no_document_that_fits_is_cut(length, most, shuffle):
    source = Lengths(LOG_NORMAL)
    loader = loader_of(
        source, ConstantSchedule(length), {"batch_size": 16, "world_size": 1}, mode="pack", pad_id=0, labels="none",
        shuffle=shuffle, extras=("document_ids",),
    )  # fmt: skip
    seen, first = np.zeros(len(source), np.int64), []
    for batch in loader:
        ids, mask, numbers = (batch[name].numpy() for name in ("input_ids", "attention_mask", "document_ids"))
        np.add.at(seen, ids[mask == 1], 1)
        begins = np.ones_like(mask)
        begins[:, 1:] = (numbers[:, 1:] != numbers[:, :-1]) | (ids[:, 1:] != ids[:, :-1] + 1)
        first.append(ids[(begins == 1) & (mask == 1)])
    assert seen.max() == 1 and seen.sum() == len(source) - loader.tokens_left
    pieces = np.concatenate(first)
    document = np.searchsorted(source.documents, pieces, side="right") - 1
    assert (LOG_NORMAL[document][pieces != source.documents[document]] > length).all()
    padding = loader.tokens_padded / (loader.tokens_seen + loader.tokens_padded)
    print(f"length {length}, shuffle={shuffle}: {padding:.3%} padding")
    assert padding < most


@st.composite
def divided_runs(draw):
    """``(docs, opened, options, rows, schedule, steps, sizes)``: rows of each step, the packed ones of each shard."""
    num_shards, times = draw(st.sampled_from([2, 3, 4, 6])), draw(st.integers(1, 2))
    docs, size = draw(some_documents) + [[8_000 + i] for i in range(num_shards)], draw(st.sampled_from([1, 2, 3, 50]))
    opened = draw(st.sampled_from([stored, streamed]))
    options = {"mode": "pack", "pad_id": PAD, "num_shards": num_shards, "total_steps": 7, "seed": draw(st.integers(0, 9))}
    options["shuffle"] = opened is stored and draw(st.booleans())
    lengths = draw(st.lists(st.integers(2, 9), min_size=1, max_size=3))
    schedule = StagedSchedule(lengths, [2 * (i + 1) for i in range(len(lengths) - 1)])
    if draw(st.booleans()):
        options["bos_id"] = PAD + 1
    seed = options["seed"] if options["shuffle"] else None
    shapes = [(schedule(step), times) for step in range(7)]
    steps = [[] for _ in shapes]
    docs = [doc for doc in docs if doc]  # a list counts empty documents, when it is divided, and a store does not
    for shard in range(num_shards):
        part = slice(shard, None, num_shards)
        run = naive_packing(
            windows_of(docs, 7 * times, seed, size, part), shapes, order=order_of(docs, seed, size, part),
            lead=int("bos_id" in options),
        )  # fmt: skip
        for step, [[rows]] in zip(steps, run, strict=True):
            step += [joined(row) for row in rows]
    return docs, opened, options, num_shards * times, schedule, steps, (size, draw(st.sampled_from([2, 3, 50])))


@given(divided_runs(), st.integers(0, 6), st.data())
def test_shards_of_a_store_and_of_a_stream_are_packed_alone_and_go_on_on_any_number_of_ranks(case, cut, data):
    docs, opened, options, rows, schedule, steps, sizes = case
    worlds = [world for world in (1, 2, 3) if options["num_shards"] % world == 0]
    world, other = data.draw(st.sampled_from(worlds)), data.draw(st.sampled_from(worlds))

    def loaders(world):
        shape = {"batch_size": rows // world, "world_size": world}
        return [loader_of(opened(docs), schedule, shape, rank, **options) for rank in range(world)]

    with windows_and_blocks(*sizes):
        saved = loaders(world)
        found = zip(*(tokens_of(itertools.islice(loader, cut)) for loader in saved), strict=True)
        assert [[row for part in parts for row in part] for parts in found] == steps[:cut]
        states = [json.loads(json.dumps(loader.state_dict())) for loader in saved]
        again = loaders(other)
        for begin, move, argument in ((cut, SLWLoader.load_state_dict, states), (7 - cut, SLWLoader.seek, 7 - cut)):
            for loader in again:
                move(loader, argument)
            found = zip(*(tokens_of(loader) for loader in again), strict=True)
            assert [[row for part in parts for row in part] for parts in found] == steps[begin:]
        lead = int("bos_id" in options)
        room = sum((schedule(step) - lead) * len(rows) for step, rows in enumerate(steps))
        assert sum(loader.tokens_padded for loader in again) == room - sum(len(row) for rows in steps for row in rows)


def test_a_stream_that_fails_delivers_the_windows_before_and_goes_on_once_it_is_repaired(small_windows):
    small_windows(4)
    docs = [[10 * i + k for k in range(9)] for i in range(40)]
    schedule, shape = StagedSchedule([4, 7], [6]), {"batch_size": 2, "world_size": 1}
    options = {"mode": "pack", "pad_id": 0, "labels": "both", "total_steps": 40}
    expected = [as_lists(batch) for batch in loader_of(docs, schedule, shape, **options)]

    class Failing(list):
        broken = True

        def __getitem__(self, index):
            if self.broken and index == 26:
                raise OSError("no such disk")
            return super().__getitem__(index)

    source = Failing(docs)
    loader, found = loader_of(source, schedule, shape, **options), []
    with pytest.raises(OSError, match="no such disk"):
        for batch in loader:
            found.append(as_lists(batch))
    assert len(found) > 12 and found == expected[: len(found)]
    held = {token for batch in expected[: len(found) + 1] for row in batch["input_ids"] for token in row}
    assert max(held) >= 240, "the next step needs the window that was not read"
    Failing.broken = False
    again = loader_of(source, schedule, shape, **options)
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert [as_lists(batch) for batch in again] == expected[len(found) :]


@pytest.mark.filterwarnings("ignore:going on with the state of another run")
def test_a_stream_without_the_documents_of_a_state_is_refused(small_windows):
    small_windows(4)
    docs = [[10 * i + k for k in range(9)] for i in range(40)]
    shape = {"batch_size": 2, "world_size": 1}

    def loader(documents):
        return loader_of(lambda: iter(documents), ConstantSchedule(4), shape, mode="pack", pad_id=0, total_steps=60)

    whole = loader(docs)
    list(itertools.islice(whole, 22))
    state = whole.state_dict()
    assert json.loads(state["stream"])["rows"]
    shorter = loader(docs[:17])
    shorter.load_state_dict(state, strict=False)
    refused(lambda: next(iter(shorter)), "ended", "17", error=StateError)
    others = loader([[1]] * 40)
    others.load_state_dict(state, strict=False)
    refused(lambda: next(iter(others)), "not the same", error=StateError)


@pytest.mark.parametrize("kind", ["store", "stream"])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_any_number_of_workers_gives_the_same_batches_to_the_end_of_the_data(num_workers, kind, small_windows):
    small_windows(8)
    docs = [[100 * i + k for k in range(1 + i * 7 % 24)] for i in range(90)]
    source = stored(docs) if kind == "store" else docs
    schedule, shape = StagedSchedule([3, 8, 2], [9, 18]), {"batch_size": 3, "grad_accum_steps": 2, "world_size": 1}
    options = {"mode": "pack", "pad_id": 0, "shuffle": kind == "store", "epochs": 2, "labels": "both"}
    alone = loader_of(source, schedule, shape, **options)
    expected = [(as_lists(batch), alone.state_dict()) for batch in alone]
    loader = loader_of(source, schedule, shape, num_workers=num_workers, **options)
    assert [(as_lists(batch), loader.state_dict()) for batch in loader] == expected
    assert loader.tokens_seen + loader.tokens_left == 2 * sum(map(len, docs))


@pytest.mark.parametrize("length", [4, 40])
def test_a_rank_of_many_that_counts_the_windows_of_others_has_the_rows_of_one_that_packs_all(length, small_windows):
    small_windows(4)
    sizes = np.random.default_rng(1).integers(1, 60, 6_000)
    options = {"mode": "pack", "pad_id": 0, "shuffle": True, "epochs": 1}
    whole = loader_of(Lengths(sizes), ConstantSchedule(length), {"batch_size": 2 * 512, "world_size": 1}, **options)
    expected, states = zip(*((batch["input_ids"].tolist(), whole.state_dict()) for batch in whole), strict=True)
    for rank in (0, 77, 511):
        loader = loader_of(Lengths(sizes), ConstantSchedule(length), {"batch_size": 2, "world_size": 512}, rank, **options)
        found = list(loader)
        assert [batch["input_ids"].tolist() for batch in found] == [rows[2 * rank : 2 * rank + 2] for rows in expected]
        assert loader.state_dict() == states[-1] and loader.tokens_left == whole.tokens_left
        for step in (1, len(expected) // 2, len(expected)):
            loader.seek(step)
            assert loader.state_dict() == states[step - 1]


@pytest.mark.parametrize("bos_id", [None, 500])
@pytest.mark.parametrize("labels", LABELS)
def test_flat_rows_have_each_piece_and_the_padding_of_each_row_as_a_sequence(bos_id, labels, small_windows):
    small_windows(6)
    docs = [[20 * i + k for k in range(1 + i * 7 % 17)] for i in range(20)]
    schedule, lead = StagedSchedule([5, 8, 3], [3, 6]), int(bos_id is not None)
    options = {"mode": "pack", "pad_id": 0, "labels": labels, "epochs": 1, "bos_id": bos_id}
    found = list(SLWDataset(stored(docs), schedule, tokens_per_batch=20, extras=("cu_seq_lens",), **options))
    shapes = naive_plan(schedule, total_steps=500, tokens_per_batch=20)
    run = naive_packing(windows_of(docs, 1, None, 6), shapes, order=order_of(docs, None, 6), lead=lead)
    assert len(found) == len(run) > 8
    for batch, [[rows]], (length, *_) in zip(found, run, shapes, strict=False):
        table = naive_packed(
            rows, length, columns={"input_ids": lambda t: t}, labels=labels, bos_id=bos_id, after=following(docs)
        )  # fmt: skip
        flat = {name: joined(values) for name, values in table.items() if name != "attention_mask"}
        if labels in ("unshifted", "both"):
            flat["labels"] = [-100 if i % length == 0 else label for i, label in enumerate(flat["labels"])]
        rest, sizes = 20 - len(rows) * length, []
        for row in rows:
            parts = [len(piece) for piece in row]
            parts[0] += lead
            sizes += parts + [length - sum(parts)] * (sum(parts) < length)
        sizes += [rest] * (rest > 0)
        for name, values in flat.items():
            assert batch[name].tolist() == [values + [0 if name == "input_ids" else -100] * rest]
        assert batch["position_ids"].tolist() == [[i for size in sizes for i in range(size)]]
        assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, *itertools.accumulate(sizes)]
        assert batch["max_length_q"] == max(sizes) and "attention_mask" not in batch


def test_every_batch_before_a_bad_token_is_delivered_and_the_run_goes_on_over_the_repaired_store(small_windows):
    small_windows(5)
    docs = [[10 * i + k for k in range(9)] for i in range(40)]
    schedule, shape = StagedSchedule([4, 7], [6]), {"batch_size": 2, "world_size": 1}
    options = {"mode": "pack", "pad_id": 0, "shuffle": True}
    source = stored(docs)
    expected = list(tokens_of(loader_of(source, schedule, shape, **options)))
    bad = expected[11][0][0]
    broken = stored(docs)
    loader, found = loader_of(broken, schedule, shape, vocab_size=500, **options), []
    broken.tokens[broken.tokens == bad] = 1000  # the ends were looked at when the store was opened
    with pytest.raises(DataError, match="found 1000 at token"):
        for batch in loader:
            found += tokens_of([batch])
    assert found == expected[:11]
    repaired = loader_of(source, schedule, shape, vocab_size=500, **options)
    repaired.load_state_dict(loader.state_dict())
    assert list(tokens_of(repaired)) == expected[11:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": -1}, "JSON"),
        ({"window": 1.0}, "JSON"),
        ({"window": True}, "JSON"),
        ({"rows": [[4, 2, 1]]}, "JSON"),
        ({"rows": [[4, 1.5]]}, "JSON"),
        ({"rows": [[4]]}, "JSON"),
        ({"rows": [[0, 1]]}, "JSON"),
        ({"rows": 3}, "JSON"),
        ({"more": 1}, "JSON"),
        ({"delivered": -1}, "JSON"),
        ({"delivered": 9}, "tokens must be in"),
        ({"window": 3}, "tokens must be in"),
        ({"window": 6}, "this run has 6 windows"),
        ({"window": 7, "rows": []}, "this run has 6 windows"),
        ({"rows": [[4, 8]]}, "has not 8 rows of 4"),
    ],
)
def test_a_damaged_cursor_is_refused_in_words(change, words, small_windows):
    small_windows(3)
    docs = [list(range(10 * i, 10 * i + 7)) for i in range(9)]
    loader = loader_of(stored(docs), ConstantSchedule(4), {"batch_size": 2, "world_size": 1}, mode="pack", pad_id=0, epochs=2)
    next(iter(loader))
    state = loader.state_dict()
    assert json.loads(state["stream"]) == {"window": 0, "rows": [[4, 2]], "delivered": 8}
    state["stream"] = json.dumps({**json.loads(state["stream"]), **change})
    refused(lambda: loader.load_state_dict(state), words, error=StateError)


def test_what_makes_no_sense_is_refused_in_words(small_windows):
    docs = [list(range(10)), list(range(20, 27))]
    source, packed = stored(docs), {"mode": "pack", "batch_size": 1}
    refused(lambda: SLWDataset(source, ConstantSchedule(4), **packed), "pad_id", "mode='pack'", error=ValueError)
    refused(lambda: SLWDataset(docs, ConstantSchedule(4), pad_id=0, num_lanes=2, **packed), "num_lanes=2", error=ValueError)
    refused(
        lambda: SLWDataset(source, ConstantSchedule(1), pad_id=0, bos_id=1, **packed),
        "bos_id", "length >= 2", "a length of 1", error=ScheduleError,
    )  # fmt: skip
    shrinking = SLWDataset(source, StagedSchedule([4, 1], [1]), pad_id=0, bos_id=1, **packed)
    refused(lambda: list(shrinking), "bos_id", "length >= 2", error=ScheduleError)
    refused(lambda: SLWDataset(source, ConstantSchedule(4), batch_size=1, bos_id=1), "'pack'", "'stream'", error=ValueError)
    beyond = {"bos_id": 9, "vocab_size": 9, "pad_id": 0}
    refused(lambda: SLWDataset(source, ConstantSchedule(4), **beyond, **packed), "bos_id", "got 9", error=ValueError)
    refused(
        lambda: SLWDataset(np.arange(9), ConstantSchedule(4), pad_id=0, **packed), "mode='pack'", "eos_id", error=ValueError
    )
    ends = {"pad_id": 0, "num_shards": 3, "total_steps": 5, "batch_size": 3}
    refused(lambda: SLWDataset(source, ConstantSchedule(4), mode="pack", **ends), "num_shards=3", "has 2", error=DataError)
    ends["num_shards"], ends["batch_size"] = 2, 2
    refused(lambda: SLWDataset(source, ConstantSchedule(4), mode="segment", **ends), "'pack'", "leave it out", error=ValueError)
    del ends["total_steps"]
    refused(lambda: SLWDataset(source, ConstantSchedule(4), mode="segment", **ends), "leave it out", error=ValueError)
    loader = loader_of(source, ConstantSchedule(4), {"batch_size": 1, "world_size": 1}, mode="pack", pad_id=0)
    loader.seek(5)
    assert list(loader) == []
    refused(lambda: loader.seek(6), "after 5 steps", "step 6", error=StateError)


def test_describe_says_how_many_documents_are_mixed_and_what_is_padding():
    dataset = SLWDataset(
        Lengths(LOG_NORMAL), ConstantSchedule(512), batch_size=16, total_steps=100, mode="pack", pad_id=0, labels="none",
        shuffle=True,
    )  # fmt: skip
    text = dataset.describe()
    ends = Lengths(LOG_NORMAL).documents
    held = [set(), set()]
    for step, batch in enumerate(dataset):
        found = np.searchsorted(ends, batch["input_ids"][batch["attention_mask"] == 1].numpy(), side="right")
        held[1].update(found.tolist())
        if step == 0:
            held[0].update(found.tolist())
    padding = dataset.tokens_padded / (100 * 16 * 512)
    assert f"of {len(held[0]):,} of 20,000 documents, 100 steps of {len(held[1]):,}; {padding:.2%} is padding" in text
