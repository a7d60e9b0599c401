"""Hugging Face's Trainer trains at the scheduled lengths, resumes exactly, and what cannot go well is refused.

Everything runs in processes of its own, which ``tests/stacks/huggingface.py`` makes; the answers are of ``stack.expected``.
"""

import importlib.util

import pytest
from stack import LONG, ROWS, SHORT, TOKENS, expected, expected_divided, launch

pytest.importorskip("transformers", reason="SLWTrainer needs transformers")
pytest.importorskip("accelerate", reason="Hugging Face's Trainer needs accelerate")

TRL = importlib.util.find_spec("trl") is not None
WORLDS = (1, 2)
SHAPES = [(workers, accum) for workers in (0, 2) for accum in (1, 3)]
REFUSED = {  # of the constructor: its arguments, the dataset's options, and what the message says
    "accumulation": (
        {"gradient_accumulation_steps": 3},
        {"accum": 2},
        ("gradient_accumulation_steps=3", "grad_accum_steps=2", "SLWDataset(..., grad_accum_steps=3)"),
    ),
    "max_steps": ({"max_steps": 21}, {}, ("max_steps=21", "ends after 20 steps", "total_steps=21")),
    "epochs": (
        {"num_train_epochs": 2},
        {"steps": None},
        ("num_train_epochs=2", "the dataset makes 1", "SLWDataset(..., epochs=2)"),
    ),
    "shifted": ({}, {"labels": "shifted"}, ("GPT2LMHeadModel shifts labels itself", "labels='both'", "labels='unshifted'")),
    "endless": ({}, {"source": [[1, 2]] * 99, "steps": None}, ("total_steps", "max_steps")),
    "world": (
        {},
        {"dp_rank": 1, "dp_world_size": 2},
        ("rank 1 of 2", "trains on 1 data-parallel ranks", "process 0 of 1", "after the TrainingArguments"),
    ),
}
MADE = {
    "epochs of the dataset": ({"num_train_epochs": 2}, {"steps": None, "epochs": 2}),
    "one epoch": ({"num_train_epochs": 1}, {"steps": None}),
    "both": ({}, {"labels": "both"}),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The results of all jobs: by world, then by rank."""

    def cut(world, accum, workers):
        run = {"folder": f"cut{world}", "accum": accum, "workers": workers}
        return ["run", {**run, "stop": 10}], ["run", {**run, "resume": True, "workers": 2 - workers}]

    first = [["sequence", {"workers": workers, "accum": accum}] for workers, accum in SHAPES]
    (cut1, resumed1), (cut2, resumed2) = cut(1, 1, 2), cut(2, 3, 0)
    alone = [
        *first, ["run", {"folder": "whole1"}], cut1, ["shorter", {}], ["evaluate", {}],
        ["losses", {"labels": "both"}], ["losses", {"labels": "unshifted"}],
        ["by_hand", {"rows": [TOKENS[:5].tolist(), TOKENS[4:9].tolist()]}],
        ["plain", {"loader": True}], ["plain", {"rows": 1}], ["plain", {"rows": 2}],
        ["bare_array", {}], ["changing_accumulation", {}], ["shuffle_buffer", {"save_strategy": "steps"}],
        ["make", {"options": {"labels": "shifted"}, "loss": True}],
        *(["make", {"args": args, "options": options}] for args, options, _ in REFUSED.values()),
        *(["make", {"args": args, "options": options}] for args, options in MADE.values()),
    ]  # fmt: skip
    later = [
        resumed1, ["resume_from", {"folder": "cut1"}], ["resume_from", {"folder": "cut1", "content": '{"step": 1'}],
        ["resume_from", {"folder": "cut1", "content": '{"step": 9}'}],
        ["resume_from", {"folder": "cut1", "edit": {"past": "x"}}],
    ]  # fmt: skip
    both = [
        ["too_early", {}], *first, ["run", {"folder": "whole2", "accum": 3}], cut2, ["sharded", {"folder": "sharded"}],
        ["make", {"explicit": {"dp_rank": 0, "dp_world_size": 1}}], ["make", {"explicit": {"dp_rank": 0, "dp_world_size": 2}}],
        ["plain", {"rows": 1}], ["plain", {"rows": 1, "accelerator_config": {"dispatch_batches": False}}],
    ]  # fmt: skip
    both_later = [
        resumed2,
        ["sharded", {"folder": "sharded", "resume": True}],
        ["sharded", {"folder": "sharded", "resume": True, "swap": True}],
    ]
    alone.append(["divided", {"folder": "divided1"}])
    both.append(["divided", {"folder": "divided2", "accum": 2}])
    both_later += [["divided", {"folder": "divided1", "resume": True}],
                   ["divided", {"folder": "divided2", "resume": True, "accum": 2, "workers": 2}]]  # fmt: skip
    fewer = [["divided", {"folder": "divided2", "resume": True, "accum": 4, "workers": 2}]]
    worlds = {"alone": [1, alone], "later": [1, later], "both": [2, both], "both later": [2, both_later], "fewer": [1, fewer]}
    if TRL:
        sft = {"folder": "sft"}
        worlds["trl"] = [1, [["sft", sft], ["sft", {"folder": "other", "extras": []}]]]
        worlds["trl later"] = [1, [["sft", {**sft, "resume": True}]]]
    folder = tmp_path_factory.mktemp("huggingface")
    [results] = launch("huggingface", 1, folder, worlds=list(worlds.values()))
    named = {}
    for (name, (_, jobs)), ranks in zip(worlds.items(), results, strict=True):
        named[name] = [[(job, options, result) for (job, options), result in zip(jobs, rank, strict=True)] for rank in ranks]
    return named


def results(found, world, job, rank=0, **options):
    """Those of all jobs of this name with these options, in order."""
    return [
        result
        for name, given, result in found[world][rank]
        if name == job and all(given.get(option) == value for option, value in options.items())
    ]


def result(found, world, job, rank=0, **options):
    [only] = results(found, world, job, rank, **options)
    return only


def message(found, world, job, rank=0, **options):
    text = result(found, world, job, rank, **options)
    assert isinstance(text, str), f"not refused: {text}"
    return text


def batches(seen):
    return [tuple(batch) for batch in seen]


@pytest.mark.parametrize("workers, accum", SHAPES)
@pytest.mark.parametrize("world", WORLDS)
def test_each_forward_sees_the_scheduled_length_and_the_next_tokens(found, world, workers, accum):
    ranks = [
        batches(result(found, "alone" if world == 1 else "both", "sequence", rank, workers=workers, accum=accum))
        for rank in range(world)
    ]
    for rank, seen in enumerate(ranks):
        assert seen == expected(10, world=world, rank=rank, accum=accum)
    lengths = [[length for _, length, _ in seen] for seen in ranks]
    assert all(of == lengths[0] for of in lengths) and (lengths[0][0], lengths[0][-1]) == (SHORT, LONG)


@pytest.mark.parametrize("world", WORLDS)
def test_a_run_with_dropout_that_is_stopped_and_resumed_ends_with_the_same_bits(found, world):
    first, later = ("alone", "later") if world == 1 else ("both", "both later")
    for rank in range(world):
        whole = result(found, first, "run", rank, folder=f"whole{world}")
        cut = result(found, first, "run", rank, stop=10)
        resumed = result(found, later, "run", rank)
        assert resumed["parameters"] == whole["parameters"] != cut["parameters"]
        assert resumed["log"] == whole["log"] and len(whole["log"]) == 4, "the epochs that are logged too"
        assert resumed["tokens"] == whole["tokens"], "num_input_tokens_seen"
        assert cut["files"] == ["slw_data.json"] and cut["loader"]


def test_what_is_logged_is_of_the_last_step_and_over_all_ranks(found):
    for world, name, accum in ((1, "alone", 1), (2, "both", 3)):
        whole = result(found, name, "run", folder=f"whole{world}")
        tokens = [sum(length * ROWS * world for _, length, _ in expected(step, accum=accum)) for step in (5, 10, 15, 20)]
        assert [entry["slw/tokens_seen"] for entry in whole["log"]] == tokens and whole["tokens"] == tokens[-1]
        assert [entry["slw/sequence_length"] for entry in whole["log"]] == [8, 16, 16, 16]
        assert {entry["slw/rows"] for entry in whole["log"]} == {ROWS}
        assert [entry["epoch"] for entry in whole["log"]] == [0.25, 0.5, 0.75, 1.0]


def test_max_steps_may_end_a_run_before_the_plan_and_must_be_given_for_a_stream_without_end(found):
    steps, seen, text = result(found, "alone", "shorter")
    assert steps == [4, 6, 1.0]
    assert batches(seen) == expected(6)
    assert "training begins at step 0, and the loader stands at step 6" in text and "reset()" in text


def test_evaluation_is_at_full_length_and_does_not_move_the_data(found):
    seen, shapes, steps = result(found, "alone", "evaluate")
    assert batches(seen) == expected(6)
    assert shapes == [[4, LONG]] * 3 and steps == [2, 4, 6]


def test_labels_both_lose_no_target_and_unshifted_ones_the_last_of_each_row(found):
    all_targets, without_last = result(found, "alone", "by_hand")
    assert result(found, "alone", "losses", labels="both") == pytest.approx(all_targets, abs=1e-5)
    assert result(found, "alone", "losses", labels="unshifted") == pytest.approx(without_last, abs=1e-5)
    assert abs(all_targets - without_last) > 1e-3


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_contradict_the_dataset_are_refused_with_both_values(found, name):
    args, options, facts = REFUSED[name]
    text = message(found, "alone", "make", args=args, options=options)
    assert text.startswith("ValueError: ")
    for fact in facts:
        assert fact in text


@pytest.mark.parametrize("name", MADE)
def test_arguments_that_agree_with_the_dataset_are_taken(found, name):
    args, options = MADE[name]
    assert result(found, "alone", "make", args=args, options=options) == "made"


def test_shifted_labels_are_for_a_loss_of_ones_own(found):
    assert result(found, "alone", "make", loss=True) == "made"


def test_a_dataset_is_asked_for_and_one_that_cannot_be_saved_is_refused_at_once(found):
    assert "TypeError: train_dataset must be an SLWLoader or an SLWDataset, got ndarray" in message(
        found, "alone", "bare_array"
    )
    text = message(found, "alone", "shuffle_buffer")
    assert "this run cannot be resumed exactly" in text


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dataset_of_other_ranks_is_refused(found, rank):
    of_one = message(found, "both", "make", rank, explicit={"dp_rank": 0, "dp_world_size": 1})
    assert "rank 0 of 1, the Trainer trains on 2" in of_one and f"process {rank} of 2" in of_one
    same = result(found, "both", "make", rank, explicit={"dp_rank": 0, "dp_world_size": 2})
    assert same == "made" if rank == 0 else "rank 0 of 2" in same and "process 1 of 2" in same


def test_ranks_without_a_process_group_are_refused(found):
    text = message(found, "both", "too_early")
    assert "WORLD_SIZE=2" in text and "no process group is initialised" in text and "dp_rank" in text


def test_a_checkpoint_without_the_state_of_its_data_or_with_another_is_refused(found):
    missing, damaged, of_step_9, of_another = results(found, "later", "resume_from")
    assert all(text.startswith("StateError: ") for text in (missing, damaged, of_step_9, of_another))
    assert "checkpoint-10 has no slw_data.json" in missing and 'write {"step": 10} into that file' in missing
    assert "slw_data.json is damaged" in damaged and "another checkpoint" in damaged
    assert "the state is of step 9" in of_step_9 and "expected_step=10" in of_step_9
    assert "past: saved 'x'" in of_another


def test_an_accumulation_that_changes_is_refused_by_name(found):
    text = message(found, "alone", "changing_accumulation")
    assert text.startswith("ScheduleError: the Trainer accumulates a fixed number") and "loader.steps()" in text


def test_sharded_ranks_keep_states_of_their_own_and_take_no_others(found):
    half = len(TOKENS) // 2
    for rank in (0, 1):
        whole, files = result(found, "both", "sharded", rank)
        assert files == ["slw_data_0.json", "slw_data_1.json"]
        lengths = [length for _, length, _ in expected(6)]
        assert [token for row in whole[0] for token in row] == TOKENS[rank * half :][: ROWS * lengths[0]].tolist()
        resumed, _ = results(found, "both later", "sharded", rank, swap=None)[0]
        assert resumed == whole[3:] and [len(rows[0]) for rows in whole] == lengths
        swapped = message(found, "both later", "sharded", rank, swap=True)
        assert f"dp_rank: saved {1 - rank}, current {rank}" in swapped and "each rank loads its own state" in swapped


def test_a_divided_run_of_two_ranks_goes_on_from_its_checkpoint_with_the_same_bits(found):
    """Dropout too, and with workers: each rank has its shards of the one file."""
    for rank in (0, 1):
        whole = result(found, "both", "divided", rank)
        resumed = result(found, "both later", "divided", rank, folder="divided2")
        wanted = expected_divided(20, world=2, rank=rank, accum=2)
        assert whole["shards"] == ["0", "1", "2", "3"], "of both ranks"
        assert batches(whole["seen"]) == wanted and batches(resumed["seen"]) == wanted[20:]
        assert resumed["parameters"] == whole["parameters"]


def test_a_divided_run_goes_on_with_other_ranks(found):
    fewer = result(found, "fewer", "divided")
    assert batches(fewer["seen"]) == expected_divided(20, accum=4)[40:], "from two ranks to one"
    assert batches(result(found, "alone", "divided")["seen"]) == expected_divided(20)
    for rank in (0, 1):
        more = result(found, "both later", "divided", rank, folder="divided1")
        assert batches(more["seen"]) == expected_divided(20, world=2, rank=rank)[10:], "from one to two"


# -- Hugging Face's own Trainer ----------------------------------------------------------------------------------------


def test_a_loader_in_the_plain_trainer_is_refused(found):
    text = message(found, "alone", "plain", loader=True)
    assert text.startswith("TypeError: an SLWLoader is iterated, not indexed") and "Use SLWTrainer" in text


@pytest.mark.parametrize("rows", [1, 2])
def test_B058_a_dataset_in_the_plain_trainer_is_refused_before_its_rows_are_batched_again(found, rows):
    text = message(found, "alone", "plain", rows=rows, loader=None)
    assert "set_epoch(0) was called" in text and "instead of Trainer use SLWTrainer" in text


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("config", [None, {"dispatch_batches": False}], ids=["default", "not dispatched"])
def test_B058_nor_are_they_cut_up_over_two_processes(found, rank, config):
    text = message(found, "both", "plain", rank, accelerator_config=config)
    assert "set_epoch(0) was called" in text and "instead of Trainer use SLWTrainer" in text


# -- TRL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not TRL, reason="this is about TRL's SFTTrainer")
def test_trls_sft_trainer_trains_at_the_scheduled_lengths_and_resumes(found):
    seen, parameters, log = result(found, "trl", "sft", folder="sft")
    assert batches(seen) == expected(8)
    assert [entry["slw/sequence_length"] for entry in log if "loss" in entry] == [4, 8, 8, 12]
    resumed, as_well, _ = result(found, "trl later", "sft")
    assert batches(resumed) == expected(8)[4:] and as_well == parameters


@pytest.mark.skipif(not TRL, reason="this is about TRL's SFTTrainer")
def test_trls_sft_trainer_asks_for_position_ids(found):
    text = message(found, "trl", "sft", folder="other")
    assert "Expected 'attention_mask' or 'position_ids'" in text, "it counts tokens by one of them"
