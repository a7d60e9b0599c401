"""What the dataset refuses: arguments where they are given, and bad items of a source after every batch before them."""

import itertools

import numpy as np
import pytest
import torch
from refusals import refused

from slw_data import (
    ConstantSchedule,
    DataError,
    LinearSchedule,
    ScheduleError,
    SequenceLengthPlan,
    SLWDataset,
    SLWLoader,
)

FOUR = ConstantSchedule(4)
DOCS = [list(range(20 * i, 20 * i + 1 + i * 5 % 20)) for i in range(60)]


def dataset_of(source=None, schedule=FOUR, **options):
    source = np.arange(600) if source is None else source
    return SLWDataset(source, schedule, **{"batch_size": 2, "grad_accum_steps": 2, **options})


def first(loader, count):
    return [batch["input_ids"].tolist() for batch in itertools.islice(loader, count)]


# -- arguments ---------------------------------------------------------------------------------------------------------


TOKENS = np.arange(100)
PLAN = SequenceLengthPlan(FOUR, batch_size=2)
ENDED = SequenceLengthPlan(FOUR, batch_size=2, total_steps=3)
ONE_OF_MODE = "'stream', 'segment', 'truncate', 'buckets', 'pack'"
# name: (source, further arguments, error, facts)
REFUSALS = {
    "an unknown mode": (TOKENS, {"mode": "packs"}, ValueError, ("mode", ONE_OF_MODE, "'packs'")),
    "a mode of None": (TOKENS, {"mode": None}, ValueError, ("mode", ONE_OF_MODE, "None")),
    "unknown labels": (TOKENS, {"labels": "next"}, ValueError,
      ("labels", "'unshifted', 'shifted', 'both', 'none'", "'next'")),
    "labels of None": (TOKENS, {"labels": None}, ValueError, ("labels", "'none'", "None")),
    "an unknown extra": (TOKENS, {"extras": ["cu_seqlens"]}, ValueError, ("extras", "'position_ids'", "'cu_seqlens'")),
    "an extra twice": (TOKENS, {"extras": ["step", "step"]}, ValueError, ("extras", "'step'", "twice")),
    "extras in one str": (TOKENS, {"extras": "step"}, TypeError, ("extras", "('step',)")),
    "an extra that is no name": (TOKENS, {"extras": [1]}, TypeError, ("extras", "[1]")),
    "columns in one str": (TOKENS, {"columns": "input_ids"}, TypeError, ("columns", "('input_ids',)")),
    "a column twice": (TOKENS, {"columns": ["input_ids", "input_ids"]}, ValueError,
      ("columns", "'input_ids'", "twice")),
    "columns without ids": (TOKENS, {"columns": ["labels"]}, ValueError, ("columns", "'input_ids'", "labels")),
    "no column": (TOKENS, {"columns": []}, ValueError, ("columns", "'input_ids'", "()")),
    "two columns of one array": (TOKENS, {"columns": ["input_ids", "mask"]}, ValueError,
      ("ndarray", "single column", "mask", "mapping")),
    "a mapping without a column": ({"input_ids": TOKENS}, {"columns": ["input_ids", "mask"]}, KeyError,
      ("no column 'mask'", "'input_ids'")),
    "columns of two lengths": ({"input_ids": TOKENS, "mask": TOKENS[:-1]},
      {"columns": ["input_ids", "mask"]}, DataError,
      ("100", "99", "mask")),
    "documents without a column": ([{"input_ids": [1]}], {"columns": ["input_ids", "mask"]}, KeyError,
      ("item 0", "'mask'", "input_ids")),
    "a seed below 0": (TOKENS, {"seed": -1}, ValueError, ("seed", ">= 0", "-1")),
    "a float seed": (TOKENS, {"seed": 1.0}, ValueError, ("seed", "1.0")),
    "a bool seed": (TOKENS, {"seed": True}, ValueError, ("seed", "True")),
    "no lanes": (TOKENS, {"num_lanes": 0}, ValueError, ("num_lanes", ">= 1", "0")),
    "half a lane": (TOKENS, {"num_lanes": 0.5}, ValueError, ("num_lanes", "0.5")),
    "more lanes than tokens": (TOKENS, {"num_lanes": 101, "total_steps": 5}, DataError,
      ("101 lanes", "100", "num_lanes")),
    "a vocabulary of 0": (TOKENS, {"vocab_size": 0}, ValueError, ("vocab_size", ">= 1", "0")),
    "a vocabulary of True": (TOKENS, {"vocab_size": True}, ValueError, ("vocab_size", "True")),
    "a vocabulary too small": (TOKENS, {"vocab_size": 50}, DataError, ("vocab_size 50", "token 50 is 50")),
    "an eos that is none": (TOKENS, {"eos_id": -1}, ValueError, ("eos_id", ">= 0", "-1")),
    "an eos beyond": (TOKENS, {"eos_id": 200, "vocab_size": 200}, ValueError, ("eos_id", "vocab_size=200", "200")),
    "a pad beyond": (DOCS, {"pad_id": 7000, "vocab_size": 6000, "mode": "segment"}, ValueError,
      ("pad_id", "vocab_size=6000", "7000")),
    "a pad of 1.5": (DOCS, {"pad_id": 1.5, "mode": "segment"}, ValueError, ("pad_id", "1.5")),
    "padding in a stream": (TOKENS, {"pad_id": 0}, ValueError, ("pad_id", "'segment'", "'stream' pads nothing")),
    "preserve_eos in a stream": (TOKENS, {"preserve_eos": True}, ValueError,
      ("preserve_eos", "'truncate'", "'stream'")),
    "preserve_eos in segments": (DOCS, {"mode": "segment", "pad_id": 0, "preserve_eos": True}, ValueError,
      ("preserve_eos", "'truncate'", "'segment'")),
    "segments without a pad": (DOCS, {"mode": "segment"}, ValueError, ("mode='segment'", "pad_id")),
    "truncating without a pad": (DOCS, {"mode": "truncate"}, ValueError, ("mode='truncate'", "pad_id")),
    "a shuffled stream": (DOCS, {"shuffle": True}, ValueError, ("shuffle=True", "store", "shuffle_buffer=n")),
    "segments of an array": (TOKENS, {"mode": "segment", "pad_id": 0}, ValueError,
      ("mode='segment'", "numpy array", "eos_id")),
    "document ids of an array": (TOKENS, {"extras": ["document_ids"]}, ValueError,
      ("document_ids", "numpy array", "eos_id")),
    "no epochs": (TOKENS, {"epochs": 0}, ValueError, ("epochs", ">= 1", "0")),
    "half an epoch": (TOKENS, {"epochs": 0.5}, ValueError, ("epochs", "0.5")),
    "two ends": (TOKENS, {"epochs": 2, "total_steps": 5}, ScheduleError, ("at most one", "total_steps=5", "epochs=2")),
    "three ends": (TOKENS, {"epochs": 2, "total_steps": 5, "total_tokens": 9}, ScheduleError,
      ("total_steps=5", "total_tokens=9", "epochs=2")),
    "no steps": (TOKENS, {"total_steps": 0}, ScheduleError, ("total_steps", ">= 1", "0")),
    "no batch shape": (TOKENS, {"batch_size": None}, ScheduleError,
      ("exactly one", "batch_size=None", "tokens_per_batch=None")),
    "two batch shapes": (TOKENS, {"tokens_per_batch": 8}, ScheduleError,
      ("exactly one", "batch_size=2", "tokens_per_batch=8")),
    "a budget below a row": (TOKENS, {"batch_size": None, "tokens_per_batch": 3}, ScheduleError,
      ("tokens_per_batch=3", "4 tokens")),
    "no rows": (TOKENS, {"batch_size": 0}, ScheduleError, ("batch_size", ">= 1", "0")),
    "True rows": (TOKENS, {"batch_size": True}, ScheduleError, ("batch_size", "True")),
    "float rows": (TOKENS, {"batch_size": 2.0}, ScheduleError, ("batch_size", "2.0")),
    "no micro-batches": (TOKENS, {"grad_accum_steps": 0}, ScheduleError, ("grad_accum_steps", ">= 1", "0")),
    "too few tokens": (TOKENS[:15], {"grad_accum_steps": 2}, DataError,
      ("numpy array", "15 tokens", "4 rows x 4", "total_steps")),
    "no tokens": (TOKENS[:0], {}, DataError, ("numpy array", "no tokens")),
    "a rank alone": (TOKENS, {"dp_rank": 0}, ValueError, ("dp_rank and dp_world_size", "0 and None")),
    "a world alone": (TOKENS, {"dp_world_size": 2}, ValueError, ("dp_rank and dp_world_size", "None and 2")),
    "a rank beyond": (TOKENS, {"dp_rank": 2, "dp_world_size": 2}, ValueError, ("dp_rank", "dp_world_size=2", "2")),
    "a rank below": (TOKENS, {"dp_rank": -1, "dp_world_size": 2}, ValueError, ("dp_rank", "-1")),
    "an empty world": (TOKENS, {"dp_rank": 0, "dp_world_size": 0}, ValueError, ("dp_world_size", ">= 1", "0")),
    "parts without steps": (TOKENS, {"sharded": True}, ValueError, ("sharded=True", "total_steps")),
    "parts with epochs": (TOKENS, {"sharded": True, "epochs": 2}, ValueError, ("sharded=True", "total_steps")),
    "one shot for two ranks": (iter(DOCS), {"dp_rank": 0, "dp_world_size": 2}, DataError,
      ("one-shot", "callable", "list")),
    "a flat list": ([1, 2, 3], {}, TypeError, ("list", "numpy.array")),
    "a number": (7, {}, TypeError, ("int",)),
    "None": (None, {}, TypeError, ("NoneType",)),
    "a set": ({(1, 2)}, {}, TypeError, ("set", "order")),
    "a float array": (TOKENS / 2, {}, TypeError, ("float64",)),
    "a table": (TOKENS.reshape(10, 10), {}, ValueError, ("(10, 10)",)),
    "a missing file": ("/nowhere/tokens.npy", {}, FileNotFoundError, ("/nowhere/tokens.npy",)),
    "an endless fraction": (DOCS, {"schedule": LinearSchedule(8, 16, warmup_fraction=0.5)}, ScheduleError,
      ("warmup_fraction=0.5", "total_steps")),
    "a schedule that is none": (TOKENS, {"schedule": 4}, TypeError, ("callable", "4")),
    "a length of 0": (TOKENS, {"schedule": lambda step: 0}, ScheduleError, ("step 0", "0")),
    "a plan and a shape": (TOKENS, {"schedule": PLAN}, ScheduleError, ("a plan has its own", "batch_size=2")),
    "a plan and an end": (TOKENS, {"schedule": PLAN, "batch_size": None, "total_steps": 3}, ScheduleError,
      ("a plan has its own", "total_steps=3")),
    "a plan and accumulation": (TOKENS, {"schedule": PLAN, "batch_size": None, "grad_accum_steps": 3}, ScheduleError,
      ("grad_accum_steps=3",)),
    "a plan of one rank": (TOKENS,
      {"schedule": PLAN, "batch_size": None, "dp_rank": 1, "dp_world_size": 2}, ScheduleError,
      ("world_size=1", "2 data-parallel", "world_size=2")),
    "a plan with an end and epochs": (TOKENS,
      {"schedule": ENDED, "batch_size": None, "epochs": 2}, ScheduleError,
      ("3 steps", "epochs=2")),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSALS))
def test_arguments_that_cannot_be_meant_are_refused_where_they_are_given(case):
    source, options, error, facts = REFUSALS[case]
    options = {"batch_size": 2, "schedule": ConstantSchedule(4), **options}
    schedule = options.pop("schedule")
    message = refused(lambda: SLWDataset(source, schedule, **options), *facts, error=error)
    assert message, "a message"


def test_a_split_stream_is_refused_unless_it_is_meant():
    import datasets
    from datasets.distributed import split_dataset_by_node

    rows = datasets.Dataset.from_dict({"input_ids": DOCS}).to_iterable_dataset(num_shards=2)
    part = split_dataset_by_node(rows, rank=1, world_size=2)
    ranks = {"dp_rank": 1, "dp_world_size": 2}
    facts = "rank 1 of 2", "sharded=True", "total_steps"
    refused(lambda: dataset_of(part, total_steps=5, **ranks), *facts, error=ValueError)
    found = [b["input_ids"].flatten().tolist() for b in dataset_of(part, total_steps=5, sharded=True, **ranks)]
    assert found[0] == [t for row in part for t in row["input_ids"]][:8]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_one_shot_iterator_is_refused_by_workers(num_workers):
    facts = "one-shot", f"{num_workers} workers", "callable", "num_workers=0"
    refused(lambda: SLWLoader(dataset_of(iter(DOCS)), num_workers=num_workers), *facts, error=DataError)


def test_a_one_shot_iterator_serves_one_pass():
    loader = SLWLoader(dataset_of(iter(DOCS), ConstantSchedule(4)))
    flat = [t for doc in DOCS for t in doc]
    found = [t for batch in loader for row in batch["input_ids"].tolist() for t in row]
    assert found == flat[: len(found)] and len(flat) - len(found) < 16
    loader.reset()
    refused(lambda: next(iter(loader)), "one-shot", "callable", error=DataError)
    longer = SLWLoader(dataset_of(iter(DOCS), ConstantSchedule(4), total_steps=1000), prefetch=0)
    message = "one-shot", "pass 1", "callable"
    refused(lambda: list(longer), *message, error=DataError)
    assert longer.step == len(found) // 16, "the whole steps of its only pass are delivered first"


def test_a_stream_too_short_for_one_step_warns_and_names_itself():
    with pytest.warns(UserWarning, match="the list has too few tokens for the first step"):
        assert list(SLWLoader(dataset_of([[1, 2, 3]]))) == []


# -- what any iterator may yield ---------------------------------------------------------------------------------------


BAD_ITEMS = {
    "floats": ([1.0, 2.0], TypeError, "1.0"),
    "a NaN": ([float("nan")], TypeError, "nan"),
    "text": ("abc", TypeError, "str"),
    "a float tensor": (torch.ones(3), TypeError, "float32"),
    "a 0-d array": (np.array(3), TypeError, "shape ()"),
    "a tensor elsewhere": (torch.ones(3, dtype=torch.int64, device="meta"), TypeError, "meta"),
    "2^63 and -1": ([2**63, -1], DataError, str(2**63)),
    "a negative id": ([5, -100], DataError, "-100"),
    "a bool": ([True, 5], TypeError, "True"),
    "None": (None, DataError, "None"),
    "an id beyond the vocabulary": ([5, 2000], DataError, "2000"),
}


@pytest.mark.parametrize("case", list(BAD_ITEMS))
@pytest.mark.parametrize(("kind", "num_workers"), [("list", 0), ("callable", 0), ("list", 1)])
def test_a_bad_item_comes_after_every_batch_before_it_and_is_named(case, kind, num_workers):
    """60 good documents, then the bad one: all steps that need none of it are delivered, and the state stays there."""
    item, error, fact = BAD_ITEMS[case]
    items = [*DOCS, item, *DOCS]
    loader = SLWLoader(
        dataset_of(items if kind == "list" else lambda: iter(items), ConstantSchedule(5), vocab_size=1999),
        num_workers=num_workers,
    )
    found = []
    with pytest.raises(error, match="60") as caught:
        for batch in loader:
            found.append(batch["input_ids"].tolist())
    assert fact in str(caught.value)
    flat = [t for doc in DOCS for t in doc]
    assert [t for batch in found for row in batch for t in row] == flat[: 10 * len(found)]
    assert len(flat) - 10 * len(found) <= 20 + 5, "a batch before the bad item was kept back"
    assert (loader.step, loader.state_dict()["batch"]) == divmod(len(found), 2)


def ends_by_stop_iteration():
    for i, doc in enumerate(DOCS):
        if i == 40:
            next(iter(()))
        yield doc


def test_a_bare_next_in_the_source_does_not_end_the_data_silently():
    loader = SLWLoader(dataset_of(ends_by_stop_iteration, ConstantSchedule(5)))
    refused(lambda: list(loader), "StopIteration", "item 40", error=DataError)
    assert loader.tokens_seen > sum(map(len, DOCS[:40])) - 25


def reused():
    buffer = np.zeros(11, np.int64)
    for i in range(50):
        buffer[:] = np.arange(11 * i, 11 * i + 11)
        yield buffer


@pytest.mark.parametrize("num_lanes", [1, 3])
def test_a_source_that_reuses_its_buffer_is_copied(num_lanes):
    loader = SLWLoader(dataset_of(reused, ConstantSchedule(5), num_lanes=num_lanes))
    clean = dataset_of([list(range(11 * i, 11 * i + 11)) for i in range(50)], ConstantSchedule(5), num_lanes=num_lanes)
    assert [b["input_ids"].tolist() for b in loader] == [b["input_ids"].tolist() for b in clean]


class Shrinking:
    """Gives other documents each time it is read."""

    times = 0

    def __iter__(self):
        self.times += 1
        return iter([[t + self.times for t in doc] for doc in DOCS * 3])


def test_a_source_that_does_not_repeat_is_refused_on_resuming():
    source = Shrinking()
    loader = SLWLoader(dataset_of(source, ConstantSchedule(5)), prefetch=0)
    assert len(first(loader, 99)) == 99
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match="does not repeat"):
        list(loader)


@pytest.mark.parametrize(("num_workers", "shuffle"), [(0, False), (0, True), (1, False)])
def test_a_bad_token_of_a_store_comes_after_every_batch_before_it_and_is_named(num_workers, shuffle):
    """Opening looks at both ends of a store only; here the array changes after it."""
    tokens = np.arange(600) % 50
    options = {"vocab_size": 60, "shuffle": shuffle, "num_lanes": 2 if shuffle else None}
    clean = [b["input_ids"].tolist() for b in dataset_of(tokens, **options)]
    loader, found = SLWLoader(dataset_of(tokens, **options), num_workers=num_workers), []
    tokens[300] = 60
    with pytest.raises(DataError, match=r"60 at token 300 of numpy array") as caught:
        for batch in loader:
            found.append(batch["input_ids"].tolist())
    assert "vocab_size=60" in str(caught.value)
    unchecked = dataset_of(tokens, shuffle=shuffle, num_lanes=options["num_lanes"])
    bad = [i for i, batch in enumerate(unchecked) if 60 in batch["input_ids"]]
    assert found == clean[: bad[0]] and (shuffle or bad == [300 // 8])
    assert (loader.step, loader.state_dict()["batch"]) == divmod(len(found), 2)
