"""Accelerate passes an SLWLoader through, saves and loads its state, and whatever it would deal out anew is refused.

Everything runs in processes of its own, which ``tests/stacks/accelerate_loop.py`` makes; the answers are of
``stack.expected``. Tests that are named B001 and so on are about public reports of users.
"""

import itertools

import pytest
from stack import LONG, ROWS, SHORT, TOKENS, expected, expected_divided, launch

from slw_data import LinearSchedule, SequenceLengthPlan, SLWDataset, SLWLoader

pytest.importorskip("accelerate", reason="these are tests with Accelerate")

WORLDS = (1, 2)
SHAPES = [(workers, accum) for workers in (0, 2) for accum in (1, 3)]
WRONG = {
    "default": {},
    "with workers": {"workers": 2},
    "not dispatched": {"dispatch_batches": False},
    "stateful": {"use_stateful_dataloader": True},
    "stateful, with workers": {"use_stateful_dataloader": True, "workers": 2},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The results of all jobs: by name, then by rank."""
    plan = {}
    for world in WORLDS:
        for workers, accum in SHAPES:
            folder = {"folder": f"{world} {workers} {accum}", "accum": accum}
            plan[f"whole {world} {workers} {accum}"] = world, ["run", {"accum": accum, "workers": workers}]
            plan[f"cut {world} {workers} {accum}"] = world, ["run", {**folder, "workers": workers, "until": 10}]
            plan[f"resumed {world} {workers} {accum}"] = world, ["run", {**folder, "workers": 2 - workers, "resume": True}]
    plan["early 2 0 1"] = 2, ["run", {"folder": "three", "until": 3, "stateful": True}]
    plan["late 2 0 1"] = 2, ["run", {"folder": "three", "resume": True, "stateful": True, "workers": 2}]
    for name, options in {**WRONG, "split": {"split_batches": True}}.items():
        plan[f"wrong 1 {name}"], plan[f"wrong 2 {name}"] = (1, ["wrong", options]), (2, ["wrong", options])
    plan["sharded"] = 2, ["sharded", {"folder": "sharded"}]
    plan["one rank"] = 1, ["another_world", {"folder": "sharded"}]
    plan["too early"], plan["made before"] = (2, ["too_early", {}]), (2, ["made_before", {}])
    for world in WORLDS:
        saved = {"folder": f"divided {world}"}
        plan[f"divided {world}"] = world, ["divided", saved]
        plan[f"divided {world} cut"] = world, ["divided", {**saved, "until": 9, "workers": 2}]
    for world, to in itertools.product(WORLDS, WORLDS):
        resumed = {"folder": f"divided {world}", "resume": True, "workers": 2 if to == world else 0}
        plan[f"divided {world} to {to}"] = to, ["divided", resumed]
    plan["first shards"] = 2, ["divided", {"folder": "first shards", "until": 3, "gathered": False}]
    plan["first shards again"] = 2, ["divided", {"folder": "first shards", "resume": True, "gathered": False}]
    folder = tmp_path_factory.mktemp("accelerate")
    [results] = launch("accelerate_loop", 1, folder, worlds=[[world, [job]] for world, job in plan.values()])
    return {name: [result for [result] in ranks] for name, ranks in zip(plan, results, strict=True)}


def batches(result):
    assert isinstance(result, dict), result
    return [tuple(batch) for batch in result["seen"]]


@pytest.mark.parametrize("workers, accum", SHAPES)
@pytest.mark.parametrize("world", WORLDS)
def test_each_forward_sees_the_scheduled_length_and_the_next_tokens(found, world, workers, accum):
    ranks = found[f"whole {world} {workers} {accum}"]
    for rank, result in enumerate(ranks):
        assert batches(result) == expected(20, world=world, rank=rank, accum=accum)
        assert result["same"], "prepare returns the loader itself"
    lengths = [[length for _, length, _ in batches(result)] for result in ranks]
    assert all(of == lengths[0] for of in lengths) and (lengths[0][0], lengths[0][-1]) == (SHORT, LONG)


@pytest.mark.parametrize("workers, accum", SHAPES)
@pytest.mark.parametrize("world", WORLDS)
def test_a_run_with_dropout_that_is_stopped_and_resumed_ends_with_the_same_bits(found, world, workers, accum):
    whole, cut, resumed = (found[f"{which} {world} {workers} {accum}"] for which in ("whole", "cut", "resumed"))
    for rank in range(world):
        assert batches(cut[rank]) + batches(resumed[rank]) == batches(whole[rank])
        assert resumed[rank]["parameters"] == whole[rank]["parameters"] != cut[rank]["parameters"]
        assert resumed[rank]["files"] == ["custom_checkpoint_0.pkl"], "one state for all ranks"


# -- divided streams ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", WORLDS)
@pytest.mark.parametrize("world", WORLDS)
def test_a_divided_run_that_is_stopped_goes_on_with_as_many_ranks_or_others(found, world, to):
    whole, cut, resumed = (found[f"divided {name}"] for name in (f"{world}", f"{world} cut", f"{world} to {to}"))
    for rank in range(world):
        wanted = expected_divided(20, world=world, rank=rank)
        assert batches(whole[rank]) == wanted and batches(cut[rank]) == wanted[:9] and whole[rank]["same"]
    for rank in range(to):
        assert batches(resumed[rank]) == expected_divided(20, world=to, rank=rank)[9:]
        assert (resumed[rank]["parameters"] == whole[0]["parameters"]) == (world == to), "dropout is of each rank"


def test_the_shards_of_rank_0_alone_are_refused_on_the_other_rank(found):
    """Rank 0 alone then waits for it in the first collective, so the error of either is enough."""
    assert len(batches(found["first shards"][0])) == 3
    text = found["first shards again"][1]
    assert isinstance(text, str) and text.startswith("StateError: this rank reads shards 2, 3 of 4")
    assert "load the states of all ranks" in text


# -- public reports ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("world", WORLDS)
def test_B007_B011_a_prepared_dataloader_is_refused_before_its_first_batch_on_every_rank(found, world, name):
    for text in found[f"wrong {world} {name}"]:
        assert isinstance(text, str) and text.startswith("ValueError: set_epoch(0) was called"), text
        assert "deal them to other ranks" in text and "pass SLWLoader(dataset)" in text


def test_B008_ranks_that_read_for_themselves_go_one_step_for_each_batch(found):
    first, second = (batches(result) for result in found["whole 2 0 1"])
    assert [step for step, _, _ in first] == [step for step, _, _ in second] == list(range(20))
    assert [length for _, length, _ in first] == [length for _, length, _ in second]
    assert {len(ids) for _, _, ids in first + second} == {ROWS}


def test_B014_accelerate_itself_refuses_to_split_batches_of_size_none(found):
    for world in WORLDS:
        for text in found[f"wrong {world} split"]:
            assert isinstance(text, str) and "Your `dataloader.batch_size` is None" in text
        assert all(result["same"] for result in found[f"whole {world} 0 1"]), "what works"


def test_B030_batch_three_follows_a_save_after_three_on_both_ranks(found):
    for rank in (0, 1):
        early, late = batches(found["early 2 0 1"][rank]), batches(found["late 2 0 1"][rank])
        assert early == expected(3, world=2, rank=rank)
        assert late == expected(20, world=2, rank=rank)[3:]


@pytest.mark.parametrize("world", WORLDS)
def test_B077_the_loaders_own_state_needs_no_stateful_dataloader_with_two_workers(found, world):
    for rank in range(world):
        resumed = found[f"resumed {world} 0 1"][rank]  # with two workers
        assert batches(resumed) == expected(20, world=world, rank=rank)[10:]
    for text in found[f"wrong {world} stateful, with workers"]:
        assert "pass SLWLoader(dataset)" in text
    assert batches(found["late 2 0 1"][0]) == expected(20, world=2)[3:], "and does not mind where that is switched on"


def test_B128_the_rows_that_deepspeed_asks_for_are_known_before_training():
    """Its config's train_micro_batch_size_per_gpu cannot be "auto", which Accelerate takes from a DataLoader's batch_size."""
    schedule = LinearSchedule(4, 16, warmup_steps=8, multiple_of=4)
    constant = SLWDataset(TOKENS, schedule, batch_size=ROWS, total_steps=20).plan
    assert constant.batch_size == ROWS == constant.largest_batch()[0]
    shrinking = SequenceLengthPlan(schedule, tokens_per_batch=32, total_steps=20)
    assert [shrinking.rows(step) for step in (0, 19)] == [8, 2], "there is no one number: state that of the longest rows"
    assert not hasattr(SLWLoader(SLWDataset(TOKENS, shrinking)), "batch_size"), "so there is no None to multiply"


# -- ranks -------------------------------------------------------------------------------------------------------------


def test_the_one_state_that_accelerate_keeps_is_refused_on_the_other_sharded_rank(found):
    (first, step), (second, other) = found["sharded"]
    assert first == "loaded" and step == other == 1, "a refused load changes nothing"
    assert second.startswith("StateError: ") and "dp_rank: saved 0, current 1" in second
    assert "each rank loads its own state" in second


def test_the_state_of_sharded_ranks_is_refused_in_another_world(found):
    [text] = found["one rank"]
    assert text.startswith("StateError: ") and "dp_world_size: saved 2, current 1" in text


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dataset_made_before_the_process_group_is_refused(found, rank):
    too_early, made_before = found["too early"][rank], found["made before"][rank]
    assert "WORLD_SIZE=2, but no process group is initialised" in too_early and "init_process_group first" in too_early
    assert f"made on rank 0 of 1, this process is now {rank} of 2" in made_before
