"""All ranks run the same run, or raise the same error: real processes over gloo, and shapes of batches rank by rank."""

import itertools
import json
import random
import re

import numpy as np
import pytest
from refusals import refused
from stack import launch

from slw_data import (
    ConstantSchedule,
    LinearSchedule,
    SequenceLengthPlan,
    SLWDataset,
    SLWLoader,
    StagedSchedule,
    check_ranks_agree,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """From ``(job, options)`` to its results on each rank: one launch for all tests here."""
    folder = tmp_path_factory.mktemp("agreement")
    [results] = launch("agreement", 1, folder, worlds=[(2, jobs(folder)), (3, [("load_fails", fails(folder, [0, 2]))])])
    named = {}
    for world, ran in zip((jobs(folder), [("load_fails", fails(folder, [0, 2]))]), results, strict=True):
        for (job, options), values in zip(world, zip(*ran, strict=True), strict=True):
            named[key(job, options)] = list(values)
    return named


def key(job, options):
    return job + json.dumps({name: value for name, value in options.items() if name != "folder"})


def fails(folder, failing, **options):
    return {"folder": str(folder), "failing": failing, **options}


DIFFERING = {
    "size": (999, "source is 'int64 x 1000 #", " on rank 0 and 'int64 x 999 #"),
    "moved": (3, "step is 0 on rank 0 and 3 on rank 1; rows is 0 on rank 0 and 12 on rank 1; tokens is 0", "48 on rank 1"),
    "batch_size": (3, "plan is '4..4 tokens, 4 global rows #", "'4..4 tokens, 6 global rows #"),
    "total_steps": (51, "num_batches is 50 on rank 0 and 51 on rank 1", ""),
    "grad_accum_steps": (2, "num_batches is 50 on rank 0 and 100 on rank 1", "plan is"),
    "shuffle": (True, "order is 'in order' on rank 0 and 'shuffled with seed 0", ""),
    "vocab_size": (5000, "source is 'int64 x 1000 #", "vocabulary of 5000' on rank 1"),
    "sharded": (True, "sharded is False on rank 0 and True on rank 1", ""),
}


def jobs(folder):
    differing = [("differing", {"name": name, "value": value}) for name, (value, *_) in DIFFERING.items()]
    return [
        ("same", {"moved": 0}),
        ("same", {"moved": 7}),
        *differing,
        ("differing_streams", {}),
        ("shuffled", {"seed": 3}),
        ("shuffled", {"seed": None}),
        ("sharded", {"moved": [4, 4]}),
        ("sharded", {"moved": [4, 5]}),
        ("one_part_twice", {}),
        ("peers", {}),
        ("one_cannot_make_it", {}),
        ("load_fails", fails(folder, [])),
        ("load_fails", fails(folder, [0])),
        ("load_fails", fails(folder, [1])),
        ("load_fails", fails(folder, [0, 1])),
    ]


def of(found, job, **options):
    return found[key(job, options)]


# -- agreement ---------------------------------------------------------------------------------------------------------


def test_ranks_of_one_run_agree_and_get_back_what_they_gave(found):
    for moved in (0, 7):
        assert of(found, "same", moved=moved) == [True, True]
    assert of(found, "load_fails", failing=[]) == [3, 3]


@pytest.mark.parametrize("name", DIFFERING)
def test_all_ranks_raise_the_same_error_which_names_what_differs_and_where(found, name):
    value, *facts = DIFFERING[name]
    one, other = of(found, "differing", name=name, value=value)
    assert one == other and one.startswith("StateError: all ranks must deliver the same run: ")
    for fact in (*facts, "rank 0", "rank 1", "Give each the same files, arguments and state"):
        assert fact in one


def test_positions_of_a_stream_are_compared_in_short(found):
    one, other = of(found, "differing_streams")
    assert one == other and "step is 2 on rank 0 and 3 on rank 1" in one
    assert re.search(r"stream is '[0-9a-f]{12}' on rank 0 and '[0-9a-f]{12}' on rank 1", one) and len(one) < 400


def test_a_stream_that_each_rank_shuffled_without_a_seed_is_noticed(found):
    assert of(found, "shuffled", seed=3) == [True, True]
    one, other = of(found, "shuffled", seed=None)
    assert one == other and 'source is "Hugging Face IterableDataset' in one and one.count(", order #") == 2


def test_ranks_with_parts_of_their_own_need_the_same_step_only(found):
    assert of(found, "sharded", moved=[4, 4]) == [None, None]
    one, other = of(found, "sharded", moved=[4, 5])
    assert one == other and "step is 4 on rank 0 and 5 on rank 1" in one and "source" not in one


def test_a_part_of_the_data_without_a_rank_is_refused(found):
    one, other = of(found, "one_part_twice")
    assert one == other and one.startswith("StateError: all 2 parts of the data must have a rank")
    assert "dp_rank is [0, 0] on ranks 0 to 1" in one and "mesh=device_mesh['dp']" in one


def test_peers_and_smaller_groups_agree(found):
    assert of(found, "peers") == [None, None]


# -- a failure of one rank ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [[0], [1], [0, 1], [0, 2]])
def test_a_state_that_one_rank_cannot_load_is_an_error_on_all_within_a_minute(found, failing):
    results = of(found, "load_fails", failing=failing)
    assert len({result["error"] for result in results}) == 1, "the same words everywhere"
    for rank, result in enumerate(results):
        assert result["error"].startswith("StateError: rank ") and result["seconds"] < 60
        assert result["cause"] == ("StateError" if rank in failing else "NoneType")
        for other in range(len(results)):
            assert (f"rank {other} of {len(results)} failed: StateError: " in result["error"]) == (other in failing)
            assert (f"{other}.json is no whole file of save_state" in result["error"]) == (other in failing)


def test_a_loader_that_one_rank_cannot_make_is_an_error_on_all(found):
    one, other = of(found, "one_cannot_make_it")
    assert one == other
    assert one.startswith("StateError: rank 1 of 2 failed: ScheduleError: batch_size must be")


def test_without_a_process_group_there_is_nothing_to_compare():
    dataset = SLWDataset(np.arange(100), ConstantSchedule(4), batch_size=2)
    loader = SLWLoader(dataset)
    assert check_ranks_agree(dataset) is dataset and check_ranks_agree(lambda: loader) is loader
    refused(lambda: check_ranks_agree(lambda: 1 // 0), "zero", error=ZeroDivisionError)


# -- shapes of batches -------------------------------------------------------------------------------------------------


def random_run(rng):
    """``(length of each step, world, accumulation, how a batch is counted, source size, options)``."""
    world, accum, steps = rng.randint(1, 5), rng.randint(1, 3), rng.randint(1, 12)
    kinds = (ConstantSchedule(rng.randint(1, 9)), LinearSchedule(2, 10, warmup_steps=rng.randint(0, 9), multiple_of=2))
    boundaries = sorted(rng.sample(range(1, 12), 3))
    schedule = rng.choice([*kinds, StagedSchedule([rng.randint(1, 12) for _ in range(4)], boundaries)])
    counted = {"batch_size": rng.randint(1, 4)} if rng.random() < 0.5 else {"tokens_per_batch": rng.randint(12, 40)}
    options = {"shuffle": rng.random() < 0.5, "num_lanes": rng.choice([None, 1, 2, 3])}
    end = rng.choice([{"total_steps": steps}, {"epochs": rng.randint(1, 2)}, {}])
    return schedule, world, accum, counted, rng.randint(1000, 2500), options, end


@pytest.mark.parametrize("seed", range(10))
def test_number_and_shapes_of_batches_are_the_same_on_all_ranks_of_fifty_random_runs(seed):
    rng, lengths = random.Random(seed), set()
    for _ in range(50):
        schedule, world, accum, counted, size, options, end = random_run(rng)
        if rng.random() < 0.3:  # a stream of as many tokens
            source, options = [list(range(i, i + 7)) for i in range(0, size, 7)], {"num_lanes": options["num_lanes"]}
        else:
            source = np.arange(size)
        ranks = []
        for rank in range(world):
            dataset = SLWDataset(
                source, schedule, grad_accum_steps=accum, dp_rank=rank, dp_world_size=world, **counted, **options, **end
            )
            ranks.append([tuple(batch["input_ids"].shape) for batch in SLWLoader(dataset, prefetch=0)])
        assert ranks == [ranks[0]] * world
        for number, (rows, length) in enumerate(ranks[0]):
            expected = schedule(number // accum)
            assert length == expected and rows == counted.get("batch_size", counted.get("tokens_per_batch", 0) // expected)
        assert len(ranks[0]) % accum == 0 and ("total_steps" not in end or len(ranks[0]) == end["total_steps"] * accum)
        lengths.add(len(ranks[0]))
    assert len(lengths) > 10, "runs of many lengths"


def test_a_rank_with_another_plan_would_be_seen():
    """The comparison of shapes can fail: these two ranks were made with different batch sizes."""
    shapes = []
    for rank, rows in ((0, 2), (1, 3)):
        plan = SequenceLengthPlan(ConstantSchedule(4), batch_size=rows, world_size=2)
        dataset = SLWDataset(np.arange(300), plan, dp_rank=rank, dp_world_size=2)
        shapes.append([tuple(batch["input_ids"].shape) for batch in itertools.islice(dataset, 5)])
    assert shapes[0] != shapes[1]
