"""The command line: golden outputs, figures from naive loops, one line and status 2 for each kind of bad argument."""

import ast
import configparser
import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from store_oracle import write_megatron, write_raw

from slw_data import cli
from slw_data.cli import check, command, faults, plot, reading
from slw_data.cli.command import build_parser
from slw_data.dataset import SLWDataset
from slw_data.plan.schedules import LinearSchedule

ROOT = Path(__file__).parent.parent


def words(text):
    return text.split()


SMALL = words("--max-length 32 --warmup-steps 6 --batch-size 2 --total-steps 10")


def run(capsys, *argv):
    """(status, output, errors) of a command."""
    capsys.readouterr()
    status = cli.main([str(part) for part in argv])
    return status, *capsys.readouterr()


def lines(capsys, *argv, status=0):
    found, output, errors = run(capsys, *argv)
    assert (found, errors) == (status, "")
    return output.splitlines()


def refused(capsys, *argv, facts=(), after_output=False):
    """Status 2, no output, and after the usage one line that holds the facts."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main([str(part) for part in argv])
    output, errors = capsys.readouterr()
    assert caught.value.code == 2 and (output == "") != after_output
    usage, line, *more = errors.splitlines()
    assert usage.startswith("usage: slw-data") and not more, errors
    assert re.match(r"slw-data( \w+)?: error: ", line)
    for fact in facts:
        assert str(fact) in line, f"{fact!r} is missing in: {line}"
    return line


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def lengths_of(plain):
    """The length of each step, from the stages of ``plan --json``."""
    return [stage["length"] for stage in plain["stages"] for _ in range(stage["start"], stage["stop"])]


def planned(capsys, *argv):
    return json.loads("\n".join(lines(capsys, "plan", *argv, "--json")))


# -- plan --------------------------------------------------------------------------------------------------------------

TABLE = """\
LinearSchedule(min_length=8, max_length=32, warmup_steps=6)
        step   length     rows    tokens/step      tokens before
           0        8        2             16                  0
           2       16        2             32                 32
           4       24        2             48                 96
           6       32        2             64                192
10 steps, 448 tokens; 4 lengths; largest batch 2 x 32
"""


def test_plan_prints_the_stages_and_totals(capsys):
    assert run(capsys, "plan", *SMALL) == (0, TABLE, "")


def test_plan_prints_the_flops_worked_out_by_hand(capsys):
    # per token 6 * 1000 + 12 * 2 * 10 * length: 7,920, 9,840, 11,760 and 13,680 for 32, 64, 96 and 256 tokens
    total, full = 32 * 7920 + 64 * 9840 + 96 * 11_760 + 256 * 13_680, 448 * 13_680
    assert (total, full) == (5_514_240, 6_128_640)
    last = "training FLOPs 5.514e+06; as many tokens at 32 tokens a row 6.129e+06; 10.0% saved\n"
    model = ("--params", 1000, "--layers", 2, "--hidden", 10)
    assert run(capsys, "plan", *SMALL, *model) == (0, TABLE + last, "")
    flops = planned(capsys, *SMALL, *model)
    assert flops["flops"] == {"total": total, "full_length": full, "saving": 1 - total / full}
    assert [stage["flops"] for stage in flops["stages"]] == [32 * 7920, 64 * 9840, 96 * 11_760, 256 * 13_680]


def test_json_has_all_stages_and_is_what_a_loop_over_the_steps_counts(capsys):
    argv = words("--warmup-steps 3000 --batch-size 16 --total-steps 10000 --world-size 2 --grad-accum-steps 3")
    plain = planned(capsys, *argv)
    expected = [min(1024, (8 + 1016 * step // 3000) // 8 * 8) for step in range(10_000)]
    assert lengths_of(plain) == expected and len(plain["stages"]) == 128
    before = 0
    for stage in plain["stages"]:
        tokens = 16 * 2 * 3 * stage["length"]
        assert (stage["rows"], stage["tokens_per_step"], stage["tokens_before"]) == (16, tokens, before)
        before += (stage["stop"] - stage["start"]) * tokens
    assert plain["total_tokens"] == before and plain["total_steps"] == 10_000
    assert plain["lengths"] == sorted(set(expected)) and plain["largest_batch"] == [16, 1024]


def test_json_of_an_endless_run_has_null_where_nothing_ends(capsys):
    plain = planned(capsys, "--schedule", "constant", "--length", "5", "--tokens-per-batch", "12")
    assert (plain["total_steps"], plain["total_tokens"], plain["batch_size"]) == (None, None, None)
    shape = {"length": 5, "rows": 2, "grad_accum_steps": 1, "rows_before": 0, "tokens_before": 0, "tokens_per_step": 10}
    assert plain["stages"] == [{"start": 0, "stop": None, **shape}]


def rounded(curve, steps=64):
    """64 to 512 by 64s along a curve of the progress, and 512 from the end of the warmup on."""
    return [int((64 + 448 * curve(step / steps) + 1e-9) // 64 * 64) for step in range(steps)] + [512] * 4


CURVES = {
    "linear": rounded(lambda p: p),
    "root --degree 3": rounded(lambda p: p ** (1 / 3)),
    "root --degree 2.5": rounded(lambda p: p**0.4),
    "sine": rounded(lambda p: math.sin(math.pi * p / 2)),
    "cosine": rounded(lambda p: (1 - math.cos(math.pi * p)) / 2),
    "exponential": rounded(lambda p: (8**p - 1) / 7),
    "doubling": [64 * 2 ** int(math.log2((64 + 7 * step) / 64 + 1e-9)) for step in range(64)] + [512] * 4,
}


@pytest.mark.parametrize("schedule", CURVES)
def test_every_warmup_of_the_library_can_be_named(capsys, schedule):
    argv = words("--min-length 64 --max-length 512 --multiple-of 64 --warmup-steps 64 --batch-size 1 --total-steps 68")
    assert lengths_of(planned(capsys, "--schedule", *schedule.split(), *argv)) == CURVES[schedule]


def test_staged_cyclic_and_thinned_schedules_can_be_named(capsys):
    shape = ("--batch-size", 1, "--total-steps", 6)
    staged = ("--schedule", "staged", "--lengths", 8, 16, 4, "--boundaries", 1, 3)
    assert lengths_of(planned(capsys, *staged, *shape)) == [8, 16, 16, 4, 4, 4]
    assert lengths_of(planned(capsys, "--schedule", "staged", "--lengths", 8, *shape)) == [8] * 6
    cyclic = ("--max-length", 24, "--warmup-steps", 2, "--num-cycles", 2)
    assert lengths_of(planned(capsys, *cyclic, *shape)) == [8, 16, 8, 16, 24, 24]
    assert planned(capsys, "--warmup-steps", 3000, "--max-distinct", 4, *shape[:2])["lengths"][::3] == [8, 1024]


def test_a_warmup_may_be_a_fraction_or_a_number_of_tokens(capsys):
    shape = ("--max-length", 16, "--batch-size", 1)
    assert lengths_of(planned(capsys, *shape, "--warmup-fraction", 0.5, "--total-steps", 4)) == [8, 8, 16, 16]
    # at least 20 tokens at length 8 are three steps; 60 tokens are then two more of 16
    assert lengths_of(planned(capsys, *shape, "--warmup-tokens", 20, "--total-tokens", 60)) == [8, 8, 8, 16, 16]


# -- configuration files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
def test_a_config_has_the_same_names_and_the_command_line_wins(capsys, tmp_path, name):
    values = {"schedule": "linear", "max_length": 32, "warmup_steps": 6, "batch_size": 2, "total_steps": 10, "params": None}
    text = json.dumps(values) if name.endswith("json") else "\n".join(f"{k}: {json.dumps(v)}" for k, v in values.items())
    path = write(tmp_path / name, text)
    assert run(capsys, "plan", "--config", path) == (0, TABLE, "")
    assert lengths_of(planned(capsys, "--config", path, "--total-steps", 7)) == [8, 8, 16, 16, 24, 24, 32]
    # each of these replaces another way to say the same
    plain = planned(capsys, "--config", path, "--warmup-fraction", 1, "--tokens-per-batch", 64, "--total-tokens", 256)
    assert plain["batch_size"] is None and plain["total_tokens"] <= 256 and "warmup_fraction=1.0" in plain["schedule"]


def test_what_decides_the_order_of_batches_may_stand_in_the_same_config(capsys, tmp_path):
    path = write(tmp_path / "run.yaml", "max_length: 32\nwarmup_steps: 6\nbatch_size: 2\ntotal_steps: 10\nshuffle: true\n")
    assert run(capsys, "plan", "--config", path) == (0, TABLE, "")


COMPOSER = """\
max_seq_len: 1024
max_duration: 10000ba
algorithms:
  seq_length_warmup: {duration: 0.3, max_seq_length: "${max_seq_len}", truncate: true, preserve_end_of_sequence: false}
"""


def composer_lengths(steps, total, duration=0.3):
    every = int(total * duration) // ((1024 - 8) // 8)
    return [min(8 + 8 * (step // every), 1024) for step in range(steps)]


@pytest.mark.parametrize(
    "text",
    [
        COMPOSER,
        COMPOSER.replace("  seq_length_warmup: {", "  - seq_length_warmup: {"),
        "trainer: {max_duration: 10000ba}\nalgorithms: [seq_length_warmup]",
        "max_duration: 10000ba\nalgorithms: {seq_length_warmup: }",
        "duration: 0.3\nmax_seq_length: 1024\nmax_duration: 10000ba",
    ],
)
def test_from_composer_reads_the_section_and_the_duration_of_the_run(capsys, tmp_path, text):
    plain = planned(capsys, "--from-composer", write(tmp_path / "composer.yaml", text), "--batch-size", 16)
    assert lengths_of(plain) == composer_lengths(10_000, 10_000)


def test_the_steps_of_a_composer_run_may_be_given(capsys, tmp_path):
    bare = write(tmp_path / "composer.yaml", "duration: 0.6\n")
    plain = planned(capsys, "--from-composer", bare, "--batch-size", 16, "--total-steps", 500)
    assert lengths_of(plain) == composer_lengths(500, 500, 0.6)
    whole = write(tmp_path / "whole.yaml", COMPOSER)
    plain = planned(capsys, "--from-composer", whole, "--batch-size", 1, "--total-tokens", 1000)
    assert lengths_of(plain) == composer_lengths(plain["total_steps"], 10_000) and 900 < plain["total_tokens"] <= 1000


CURRICULUM = {
    "enabled": True,
    "min_difficulty": 8,
    "max_difficulty": 64,
    "schedule_type": "fixed_linear",
    "schedule_config": {"total_curriculum_step": 70, "difficulty_step": 8},
}
METRIC = {k: v for k, v in CURRICULUM.items() if k != "enabled"} | {"difficulty_type": "value"}


@pytest.mark.parametrize(
    "config",
    [
        {"train_batch_size": 4, "curriculum_learning": {**CURRICULUM, "curriculum_type": "seqlen"}},
        CURRICULUM,
        {
            "data_efficiency": {
                "enabled": True,
                "data_sampling": {"enabled": True, "curriculum_learning": {"curriculum_metrics": {"seqlen": METRIC}}},
            }
        },
    ],
)
def test_from_deepspeed_reads_either_section(capsys, tmp_path, config):
    path = write(tmp_path / "deepspeed.json", json.dumps(config))
    plain = planned(capsys, "--from-deepspeed", path, "--batch-size", 1, "--total-steps", 80)
    expected = [min(64, int((step + 1) / 70 * 56 + 8 + 1e-9) // 8 * 8) for step in range(80)]
    assert lengths_of(plain) == expected


def test_a_config_may_name_the_file_beside_it_that_has_the_schedule(capsys, tmp_path):
    write(tmp_path / "composer.yaml", COMPOSER)
    path = write(tmp_path / "run.json", '{"from_composer": "composer.yaml", "batch_size": 16}')
    assert lengths_of(planned(capsys, "--config", path)) == composer_lengths(10_000, 10_000)


# -- bad arguments -----------------------------------------------------------------------------------------------------

SHAPE = words("--batch-size 2")
BAD_PLANS = {
    "no warmup": (SHAPE, ["exactly one of warmup_steps, warmup_fraction and warmup_tokens", "none of them"]),
    "two warmups": ([*SHAPE, *words("--warmup-steps 5 --warmup-tokens 5")], ["warmup_steps=5 and warmup_tokens=5"]),
    "no batch": (words("--warmup-steps 5"), ["batch_size=None and tokens_per_batch=None"]),
    "zero steps": ([*SMALL[:-1], "0"], ["total_steps", ">= 1", "got 0"]),
    "no integer": (words("--warmup-steps five"), ["--warmup-steps", "five"]),
    "unknown schedule": ([*SHAPE, *words("--schedule cubic")], ["schedule", "linear, root", "'cubic'"]),
    "degree of linear": ([*SMALL, *words("--degree 2")], ["--degree", "--schedule linear", "it takes --min-length"]),
    "length of linear": ([*SMALL, *words("--length 8")], ["--length is of no use"]),
    "lengths of root": ([*SMALL, *words("--schedule root --lengths 8")], ["--lengths", "--schedule root"]),
    "cycles of constant": ([*SHAPE, *words("--schedule constant --length 8 --num-cycles 2")], ["--num-cycles", "--length"]),
    "constant without": ([*SHAPE, *words("--schedule constant")], ["--schedule constant needs --length"]),
    "staged without": ([*SHAPE, *words("--schedule staged")], ["--schedule staged needs --lengths"]),
    "boundaries": ([*SHAPE, *words("--schedule staged --lengths 8 16 --boundaries 3 4")], ["2 lengths", "got 2"]),
    "too many lengths": ([*SMALL, "--max-length", str(10**17)], ["1,048,576 lengths", "max_distinct"]),
    "budget": (words("--warmup-steps 5 --tokens-per-batch 1000"), ["tokens_per_batch=1000", "1024"]),
    "multiple": ([*SHAPE, *words("--warmup-steps 5 --min-length 9")], ["min_length", "multiple_of=8", "9", "8 or 16"]),
    "both ends": ([*SMALL, *words("--total-tokens 64")], ["total_steps or total_tokens", "10 and 64"]),
    "shorter than a step": ([*SMALL[:-2], *words("--total-tokens 15")], ["total_tokens=15", "16"]),
    "fraction of nothing": ([*SHAPE, *words("--warmup-fraction 0.5")], ["warmup_fraction=0.5", "total_steps"]),
    "half a model": ([*SMALL, *words("--params 5")], ["--params, --layers and --hidden", "num_layers", "hidden_size"]),
    "cost of endless": ([*SMALL[:-2], *words("--params 5 --layers 1 --hidden 2")], ["endless", "total_steps"]),
    "unknown option": ([*SMALL, "--shuffle"], ["--shuffle"]),
    "abbreviation": (words("--warmup-st 5"), ["--warmup-st"]),
    "a store too large": ([*SMALL, "--num-tokens", str(2**63)], ["--num-tokens", "below 2^63", str(2**63)]),
    "documents without tokens": ([*SMALL, *words("--num-tokens 10 --num-documents 11")], ["--num-documents", "10", "11"]),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_bad_plan_arguments_are_refused_in_one_line(capsys, case):
    argv, facts = BAD_PLANS[case]
    refused(capsys, "plan", *argv, facts=facts)


BAD_CONFIGS = {
    "unknown key": ("a.yaml", "warmup_step: 5", ["a.yaml", "'warmup_step'", "did you mean 'warmup_steps'?"]),
    "strange key": ("a.yaml", "zzz: 5", ["'zzz'", "known are schedule"]),
    "no mapping": ("a.yaml", "- 5", ["a.yaml", "mapping", "list"]),
    "empty": ("a.yaml", "", ["a.yaml", "mapping", "NoneType"]),
    "no YAML": ("a.yaml", "a: [1", ["a.yaml cannot be read"]),
    "no JSON": ("a.json", '{"a": ', ["a.json cannot be read"]),
    "deep JSON": ("a.json", "[" * 100_000, ["a.json cannot be read"]),
    "text for a number": ("a.yaml", "warmup_steps: 1e3\nbatch_size: 2", ["warmup_steps", "'1e3'", "str"]),
    "number for a list": ("a.yaml", "schedule: staged\nlengths: 8\nbatch_size: 2", ["lengths in", "a.yaml", "list", "8"]),
    "useless": ("a.yaml", "degree: 2\nwarmup_steps: 5\nbatch_size: 2", ["degree in", "a.yaml", "--schedule linear"]),
    "number for a path": ("a.yaml", "from_composer: 5", ["a.yaml", "from_composer", "path", "5"]),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configs_are_refused_by_name(capsys, tmp_path, case):
    name, text, facts = BAD_CONFIGS[case]
    refused(capsys, "plan", "--config", write(tmp_path / name, text), facts=facts)


def test_files_that_cannot_be_read_are_refused_by_name(capsys, tmp_path):
    for option in ("--config", "--from-composer", "--from-deepspeed"):
        refused(capsys, "plan", option, tmp_path / "no.yaml", facts=[tmp_path / "no.yaml", "No such file"])
        refused(capsys, "plan", option, tmp_path, facts=[tmp_path, "directory"])
    (tmp_path / "latin.yaml").write_bytes(b"schedule: \xff")
    refused(capsys, "plan", "--config", tmp_path / "latin.yaml", facts=["utf-8"])


def test_a_file_without_permission_is_refused_by_name(capsys, tmp_path):
    path = write(tmp_path / "secret.yaml", "schedule: linear")
    path.chmod(0)
    user = os.geteuid()
    os.seteuid(65_534 if user == 0 else user)  # root may read everything
    try:
        refused(capsys, "plan", "--config", path, facts=["secret.yaml", "Permission denied"])
    finally:
        os.seteuid(user)


BAD_COMPOSER = {
    "max_duration: 1ep\nalgorithms: {seq_length_warmup: }": ["composer.yaml", "'1ep'", "batches", "--total-steps"],
    "algorithms: {seq_length_warmup: }": ["no max_duration", "--total-steps"],
    "algorithms: {alibi: }": ["no seq_length_warmup", "algorithms"],
    "max_duration: 9ba\nalgorithms: {seq_length_warmup: {step: 8}}": ["'step'", "step_size"],
    "max_duration: 9ba\nalgorithms: {seq_length_warmup: 5}": ["mapping", "5"],
    "max_duration: 9ba\nalgorithms: {seq_length_warmup: }": ["composer.yaml", "divides by zero", "LinearSchedule"],
    "max_duration: ${a.b}\nalgorithms: {seq_length_warmup: }": ["${a.b}", "not there"],
    "max_duration: ${a}\na: ${max_duration}\nalgorithms: {seq_length_warmup: }": ["refers to itself"],
}


@pytest.mark.parametrize("text", BAD_COMPOSER)
def test_bad_composer_files_are_refused(capsys, tmp_path, text):
    path = write(tmp_path / "composer.yaml", text)
    refused(capsys, "plan", "--batch-size", 2, "--from-composer", path, facts=BAD_COMPOSER[text])


BAD_DEEPSPEED = {
    "{}": ["deepspeed.json", "curriculum_learning", "nothing"],
    '{"curriculum_learning": 5}': ["curriculum_learning must be a mapping", "5"],
    '{"curriculum_learning": {"enabled": false}}': ["min_difficulty"],
    json.dumps({"curriculum_learning": CURRICULUM | {"schedule_type": "custom"}}): ["deepspeed.json", "'custom'"],
    '{"data_efficiency": {"enabled": false}}': ["data_efficiency", "enabled=False"],
    '{"data_efficiency": {"data_sampling": {}}}': ["curriculum_learning", "missing"],
    json.dumps(
        {
            "data_efficiency": {
                "data_sampling": {
                    "curriculum_learning": {"curriculum_metrics": {"seqlen": METRIC | {"difficulty_type": "percentile"}}}
                }
            }
        }
    ): ["difficulty_type='percentile'"],
}


@pytest.mark.parametrize("text", BAD_DEEPSPEED)
def test_bad_deepspeed_files_are_refused(capsys, tmp_path, text):
    path = write(tmp_path / "deepspeed.json", text)
    refused(capsys, "plan", "--batch-size", 2, "--from-deepspeed", path, facts=BAD_DEEPSPEED[text])


def test_a_schedule_beside_a_file_that_has_one_is_refused(capsys, tmp_path):
    path = write(tmp_path / "composer.yaml", COMPOSER)
    refused(
        capsys, "plan", "--from-composer", path, "--min-length", 8, facts=["--min-length", "--from-composer", "whole schedule"]
    )
    for option in ("--schedule", "--from-deepspeed"):
        argv = ("plan", "--from-composer", path, option, "linear", "--batch-size", 2)
        refused(capsys, *argv, facts=["one schedule", "--from-composer", option])


# -- the program -------------------------------------------------------------------------------------------------------

PLAN_FLAGS = """
--batch-size --boundaries --config --degree --from-composer --from-deepspeed --grad-accum-steps --length --lengths
--max-distinct --max-length --min-length --multiple-of --num-cycles --schedule --tokens-per-batch --total-steps
--total-tokens --warmup-fraction --warmup-steps --warmup-tokens --world-size
"""
SOURCE_FLAGS = "--column --dtype --eos-id --vocab-size"
FLAGS = {
    "plan": PLAN_FLAGS
    + """
    --epochs --hidden --hidden-size --json --layers --num-documents --num-lanes --num-layers --num-params --num-tokens --params
    --shuffle
    """,
    "plot": PLAN_FLAGS + "--output --overwrite",
    "inspect": PLAN_FLAGS
    + SOURCE_FLAGS
    + """
    --dp-rank --epochs --ids --labels --max-tokens --mode --num-lanes --pad-id --preserve-eos --rows --seed --shuffle
    --step --tokenizer
    """,
    "check": SOURCE_FLAGS + " --digest",
}


def test_the_commands_and_their_flags_are_the_frozen_ones():
    _, parsers = build_parser()
    found = {
        name: {option for action in parser._actions for option in action.option_strings} for name, parser in parsers.items()
    }
    assert found == {name: set(flags.split()) | {"-h", "--help"} for name, flags in FLAGS.items()}


def test_help_names_every_command_and_argument(capsys):
    for argv, facts in ((["--help"], FLAGS), (["plan", "--help"], FLAGS["plan"].split())):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        output, errors = capsys.readouterr()
        assert (caught.value.code, errors) == (0, "") and all(fact in output for fact in facts)


def test_no_command_and_an_unknown_one_are_refused(capsys):
    refused(capsys, facts=["COMMAND"])
    refused(capsys, "train", facts=["train", "plan", "check"])


def test_the_console_script_is_the_same_program():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, target = setup["options.entry_points"]["console_scripts"].strip().split(" = ")
    module, function = target.split(":")
    assert name == "slw-data" and getattr(__import__(module, fromlist=[function]), function) is cli.main


def started(*argv, **options):
    code = options.pop("code", None)
    call = [sys.executable, "-c", code] if code else [sys.executable, "-m", "slw_data"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*call, *map(str, argv)], env=environment, **{**pipe, **options})


def test_python_m_slw_data_is_the_program():
    version, bad = started("--version"), started("plan", "--warmup-steps", "5")
    output, errors = version.communicate(timeout=120)
    assert (version.returncode, errors) == (0, "") and re.fullmatch(r"slw-data \d+\.\d+\.\d+\n", output)
    output, errors = bad.communicate(timeout=120)
    assert (bad.returncode, output) == (2, "") and len(errors.splitlines()) == 2 and "Traceback" not in errors


def test_a_reader_that_goes_away_is_met_quietly():
    long = words("--multiple-of 1 --max-length 4000 --warmup-steps 9000 --batch-size 1 --json")
    process = started("plan", *long)
    assert process.stdout.readline() == "{\n"
    process.stdout.close()  # with most of it still to come
    assert (process.stderr.read(), process.wait(timeout=120)) == ("", 141)
    process.stderr.close()


def test_a_reader_that_was_never_there_is_met_quietly(capsys, monkeypatch):
    unread, end = os.pipe()
    os.close(unread)
    with os.fdopen(end, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert cli.main(["plan", *SMALL]) == 141
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("steps", [6, 60_000])  # what fits into a buffer, and what does not
def test_a_full_disk_behind_the_output_is_one_line(capsys, monkeypatch, steps):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        argv = ["plan", "--multiple-of", "1", "--warmup-steps", str(steps), "--batch-size", "1", "--total-steps", str(steps)]
        assert cli.main([*argv, "--json"]) == 2
    line = f"slw-data: error: reading or writing failed: {os.strerror(errno.ENOSPC)}\n"
    assert capsys.readouterr() == ("", line)


def test_an_interrupt_ends_the_program_quietly(capsys, monkeypatch):
    def interrupted(given):
        raise KeyboardInterrupt

    monkeypatch.setitem(command.COMMANDS, "plan", command.COMMANDS["plan"]._replace(run=interrupted))
    assert run(capsys, "plan") == (130, "", "")


def test_a_defect_of_the_program_is_no_bad_input(monkeypatch):
    def broken(given):
        raise AssertionError

    monkeypatch.setitem(command.COMMANDS, "plan", command.COMMANDS["plan"]._replace(run=broken))
    with pytest.raises(AssertionError):
        cli.main(["plan"])


def test_characters_that_the_terminal_lacks_are_shown_escaped(monkeypatch, tmp_path):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    path = write_raw(tmp_path / "smile\N{GRINNING FACE}.bin", [1, 2])
    assert cli.main(["inspect", str(path), "--dtype", "uint16"]) == 0
    assert b"smile\\U0001f600.bin" in raw.getvalue()


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_inspect_describes_a_headerless_file(capsys, tmp_path):
    path = write_raw(tmp_path / "train.bin", [*b"Hi.", 0, *b"Longer\n", 0, *b"cut"])
    mark = re.search(r"#\w+", repr(reading.open_paths({"path": [path], "dtype": "uint16"}))).group()
    expected = f"""\
source       {path}
kind         headerless file
dtype        uint16
tokens       15
fingerprint  uint16 x 15 {mark}
ids          0 to 117
documents    3, by --eos-id 0
                     2 to 3 tokens             1  ########################################
                     4 to 7 tokens             1  ########################################
                    8 to 15 tokens             1  ########################################
begins with
  document 0, 4 tokens from 0: 72 105 46 ... (1 more)
    'Hi.' ...
  document 1, 8 tokens from 4: 76 111 110 ... (5 more)
    'Lon' ...
"""
    argv = ("inspect", path, "--dtype", "uint16", "--eos-id", 0, "--tokenizer", "bytes", "--rows", 2, "--ids", 3)
    assert run(capsys, *argv) == (0, expected, "")


def test_inspect_without_documents_shows_the_first_tokens(capsys, tmp_path):
    np.save(tmp_path / "train.npy", np.arange(300, 340))
    found = lines(capsys, "inspect", tmp_path / "train.npy", "--rows", 2, "--ids", 4, "--tokenizer", "bytes")
    assert found[1:4] == ["kind         .npy file", "dtype        int64", "tokens       40"]
    assert found[5:7] == [
        "ids          300 to 339",
        "documents    not known: this kind of store has no index of them, give --eos-id",
    ]
    assert found[7:] == [
        "begins with",
        "  from 0: 300 301 302 303",
        "    '<300><301><302><303>'",
        "  from 4: 304 305 306 307",
        "    '<304><305><306><307>'",
    ]


def test_the_histogram_counts_as_a_loop_does_whatever_the_blocks(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(reading.spans, "__kwdefaults__", {**reading.spans.__kwdefaults__, "size": 7})
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 200)
    tokens = [int(x) for length in lengths for x in [*rng.integers(1, 9, length - 1), 0]]
    path = write_raw(tmp_path / "train.bin", tokens)
    found = lines(capsys, "inspect", path, "--dtype", "uint16", "--eos-id", 0)
    assert "documents    200, by --eos-id 0" in found
    for low, high in ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63)):
        count = sum(low <= length <= high for length in lengths)
        span = f"{low} to {high} tokens" if low < high else "1 token"
        [line] = [line for line in found if line.strip().startswith(f"{span} ")]
        assert line.split()[-2 if "#" in line else -1] == str(count)
    part = lines(capsys, "inspect", path, "--dtype", "uint16", "--eos-id", 0, "--max-tokens", 100)
    assert f"tokens       {len(tokens):,} (below: of the first 100)" in part
    assert f"documents    {tokens[:100].count(0)}, by --eos-id 0" in part


def test_inspect_names_every_kind_of_store(capsys, tmp_path):
    datasets = pytest.importorskip("datasets")
    write_megatron(tmp_path / "pair", [[1, 2, 3], [], [4]])
    datasets.Dataset.from_dict({"ids": [[1, 2, 3], [4]]}).save_to_disk(tmp_path / "rows")
    paths = [write_raw(tmp_path / f"{i}.bin", [1, 2, 3, 4]) for i in "ab"]
    kinds = {
        "Megatron .bin/.idx pair": [tmp_path / "pair"],
        "Hugging Face Dataset": [tmp_path / "rows", "--column", "ids"],
        "2 headerless files": [*paths, "--dtype", "uint16"],
    }
    for kind, argv in kinds.items():
        found = lines(capsys, "inspect", *argv)
        assert found[1] == f"kind         {kind}" and found[5] == "ids          1 to 4"
        documents = "not known" if "headerless" in kind else "2, in the index"
        assert found[6].startswith(f"documents    {documents}")


def rows_of(found):
    """{row: (the words about its place, its ids)} of the output of ``inspect --step``."""
    matches = (re.fullmatch(r"  row (\d+), tokens ([\d, a-z]+): ([\d ]+)", line) for line in found)
    return {int(m[1]): (m[2], [int(x) for x in m[3].split()]) for m in matches if m}


def spelled(where):
    """The positions that ``1 to 3 and 7`` names."""
    ends = [[int(x.replace(",", "")) for x in run.split(" to ")] for run in where.split(" and ")]
    return [position for run in ends for position in range(run[0], run[-1] + 1)]


TOKENS = [(7 * i + 3) % 5000 for i in range(4000)]


@pytest.mark.parametrize("step", [0, 1, 2, 7, 40])
def test_the_batch_of_a_step_is_what_slicing_the_source_gives(capsys, tmp_path, step):
    path = write_raw(tmp_path / "train.bin", TOKENS)
    length_of = [min(32, (8 + 24 * s // 6) // 8 * 8) for s in range(step + 1)]
    start = sum(2 * length for length in length_of[:step])
    argv = ("--max-length", 32, "--warmup-steps", 6, "--batch-size", 2, "--ids", 0)
    found = lines(capsys, "inspect", path, "--dtype", "uint16", "--step", step, *argv)
    length, total = length_of[step], 6 + (4000 - 2 * 2 * (8 + 16 + 24)) // 64
    assert found[:4] == [
        f"step {step} of {total}: length {length}",
        "batch of rank 0 of 1",
        f"  input_ids       int64 (2, {length})",
        f"  labels          int64 (2, {length})",
    ]
    rows = rows_of(found)
    assert len(rows) == 2
    for row, (where, ids) in rows.items():
        first = start + row * length
        assert spelled(where) == list(range(first, first + length)) and ids == TOKENS[first : first + length]


def test_a_shuffled_batch_shows_its_tokens_where_they_lie_and_is_the_one_that_training_gets(capsys, tmp_path):
    path = write_raw(tmp_path / "train.bin", TOKENS)
    order = ("--shuffle", "--seed", 5, "--epochs", 2, "--labels", "none", "--rows", 0, "--ids", 0)
    argv = ("--max-length", 32, "--warmup-steps", 6, "--batch-size", 2, "--world-size", 2, "--grad-accum-steps", 2)
    dataset = SLWDataset(
        np.array(TOKENS),
        LinearSchedule(8, 32, warmup_steps=6),
        **{"batch_size": 2, "grad_accum_steps": 2, "dp_rank": 1, "dp_world_size": 2},
        **{"shuffle": True, "seed": 5, "epochs": 2},
    )
    trained = [batch["input_ids"].tolist() for batch in dataset]
    for step in (0, 5, len(trained) // 2 - 1):
        found = lines(capsys, "inspect", path, "--dtype", "uint16", "--step", step, *argv, *order, "--dp-rank", 1)
        cut = found.index("batch of rank 1 of 2, micro-batch 1 of 2")
        for part, expected in ((found[:cut], trained[2 * step]), (found[cut:], trained[2 * step + 1])):
            rows = rows_of(part)
            assert [ids for _, ids in rows.values()] == expected
            assert all([TOKENS[at] for at in spelled(where)] == ids for where, ids in rows.values())


def test_a_padded_row_shows_the_places_of_its_real_tokens(capsys, tmp_path):
    path = write_raw(tmp_path / "train.bin", [1, 2, 3, 0, 4, 0, 5, 6, 7, 8, 9, 0])
    argv = words("--schedule constant --length 3 --batch-size 5 --mode segment --pad-id 99 --eos-id 0 --step 0 --rows 0")
    found = lines(capsys, "inspect", path, "--dtype", "uint16", *argv)
    assert found[0] == "step 0: length 3" and "  attention_mask  int64 (5, 3)" in found
    assert rows_of(found) == {
        0: ("0 to 2", [1, 2, 3]),
        1: ("3", [0, 99, 99]),
        2: ("4 to 5", [4, 0, 99]),
        3: ("6 to 8", [5, 6, 7]),
        4: ("9 to 11", [8, 9, 0]),
    }
    line = refused(capsys, "inspect", path, "--dtype", "uint16", *argv[:-3], 1, facts=["--step 1", "past the end"])
    assert "--total-steps" in line


def test_bad_arguments_of_inspect_are_refused_in_one_line(capsys, tmp_path):
    path = write_raw(tmp_path / "train.bin", TOKENS)
    raw = ("inspect", path, "--dtype", "uint16")
    shape = ("--schedule", "constant", "--length", 8, "--batch-size", 2)
    refused(capsys, "inspect", facts=["PATH"])
    refused(capsys, "inspect", tmp_path / "no.bin", "--dtype", "uint16", facts=[tmp_path / "no.bin", "No such file"])
    refused(capsys, "inspect", tmp_path, facts=[tmp_path, "save_to_disk"])
    refused(capsys, "inspect", path, facts=[path, "dtype='uint16'"])
    refused(capsys, "inspect", path, "--dtype", "float32", facts=["--dtype", "'float32'", "uint16"])
    refused(capsys, "inspect", path, "--dtype", "integers", facts=["--dtype", "'integers'"])
    refused(capsys, "inspect", path, "--dtype", "u2,", facts=["--dtype", "'u2,'"])
    refused(capsys, *raw, "--vocab-size", 100, facts=[path, "token 14 is 101", "vocab_size 100"])
    refused(capsys, *raw, "--rows", -1, facts=["--rows", "-1"])
    refused(capsys, *raw, *shape, facts=["--schedule", "--step"])
    refused(capsys, *raw, "--step", 250, *shape, facts=["--step", "250"])
    refused(capsys, *raw, "--step", -1, *shape, facts=["step", "-1"])
    vast = words(f"--schedule constant --length {2**22} --batch-size {2**22} --total-steps 1")
    refused(capsys, *raw, "--step", 0, *vast, facts=["out of memory", "too large"])
    refused(capsys, *raw, "--step", 1, *shape, "--seed", -1, facts=["seed", "-1"])
    refused(capsys, *raw, "--step", 1, *shape, "--dp-rank", 3, facts=["3"])
    refused(capsys, *raw, "--step", 1, "--mode", "packed", *shape, facts=["mode", "'packed'", "'segment'"])
    refused(capsys, *raw, "--tokenizer", "no_such", facts=["no_such"])


def test_a_missing_column_is_refused_with_those_that_are_there(capsys, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"ids": [[1, 2, 3], [4]]}).save_to_disk(tmp_path / "rows")
    refused(capsys, "inspect", tmp_path / "rows", facts=["no column 'input_ids'", "['ids']"])
    refused(capsys, "check", tmp_path / "rows", facts=["'input_ids'", "['ids']"])
    refused(capsys, "check", tmp_path / "rows", "--dtype", "uint16", facts=["--dtype", tmp_path / "rows", "folder"])


def test_a_warning_of_the_library_is_one_line(capsys, tmp_path):
    path = tmp_path / "wide.bin"
    np.array(TOKENS, "uint32").tofile(path)
    status, _, errors = run(capsys, "inspect", path, "--dtype", "uint16")
    assert status == 0 and len(errors.splitlines()) == 1
    assert errors.startswith("slw-data: warning: ") and "dtype='uint32'" in errors


def test_ids_are_decoded_by_a_tokenizer_of_another_package(capsys, tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"zero": 0, "one": 1, "two": 2}, unk_token="zero"))
    (tmp_path / "folder").mkdir()
    words.save(str(tmp_path / "folder" / "tokenizer.json"))
    path = write_raw(tmp_path / "train.bin", [1, 2, 0])
    raw = ("inspect", path, "--dtype", "uint16", "--tokenizer")
    for name in (tmp_path / "folder", tmp_path / "folder" / "tokenizer.json"):
        assert lines(capsys, *raw, name)[-1] == "    'one two zero'"
    write(tmp_path / "bad.json", "{}")
    refused(capsys, *raw, tmp_path / "bad.json", facts=[tmp_path / "bad.json", "cannot be loaded"])
    known = types.SimpleNamespace(decode=lambda ids: " ".join(["zero", "one"][i] for i in ids))
    monkeypatch.setitem(sys.modules, "tiktoken", types.SimpleNamespace(get_encoding={"base": known}.__getitem__))
    refused(capsys, *raw, "base", facts=["base", "[1, 2, 0]"], after_output=True)
    assert lines(capsys, *raw, "base", "--ids", 1, "--rows", 1)[-1] == "    'one'"
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    refused(capsys, *raw, "base", facts=["base", "no such file or folder", "tiktoken"])


# -- check -------------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
TEXT = np.minimum(RNG.zipf(1.3, 20_000) * 3, 50_255).astype("uint16")  # ids as text has them: most of them small
TEXT[99::100] = 50_256


def changed(*changes):
    ids = TEXT.copy()
    for place, value in changes:
        ids[place] = value
    return ids


BROKEN = {
    "out of the vocabulary": (
        changed((9017, 60_000), (9018, 50_257)),
        ["--vocab-size", 50_257],
        ["{path}: token 9,017: 60000, expected 0 to 50256 (--vocab-size 50257); out of range in all: 2 of 20,000"],
    ),
    "the first id beyond the vocabulary": (
        changed((19_998, 50_257)),
        ["--vocab-size", 50_257],
        ["{path}: token 19,998: 50257, expected 0 to 50256 (--vocab-size 50257); out of range in all: 1 of 20,000"],
    ),
    "in the other byte order": (
        TEXT.astype(">u2"),
        ["--vocab-size", 50_257],
        ["in the other byte order all would fit: --dtype '>u2'", "uint16 may be the wrong dtype: the lowest byte is 0"],
    ),
    "no vocabulary, in the other byte order": (TEXT.astype(">u2"), [], ["{path}: uint16 may be the wrong dtype", "'>u2'"]),
    "uint32 read as uint16": (TEXT.astype("uint32"), [], ["uint16 may be the wrong dtype", "0%, 100% are 0", "'uint32'"]),
    "big-endian uint32 read as uint16": (TEXT.astype(">u4"), ["--dtype", ">u2"], ["100%, 0% are 0", "'>u4'"]),
    "int64 read as uint16": (TEXT.astype("int64"), [], ["0%, 100%, 100%, 100% are 0", "'int64'"]),
    "int64 read as int32": (TEXT.astype("int64"), ["--dtype", "int32"], ["int32 may be the wrong dtype", "'int64'"]),
    "uint16 read as uint8": (TEXT, ["--dtype", "uint8"], ["uint8 may be the wrong dtype", "'uint16'"]),
    "large uint16 read as uint8": (
        (TEXT % 20_000 + 300).astype("uint16"),
        ["--dtype", "uint8"],
        ["two kinds", "'uint16'"],
    ),
    "uint16 read as uint32": (
        TEXT,
        ["--dtype", "uint32"],
        ["uint32 may be the wrong dtype: every token is made of 2", "'uint16'"],
    ),
    "too small for the vocabulary": (
        TEXT,
        ["--vocab-size", 70_000],
        ["{path}: uint16 holds ids up to 65535: larger ones of 70000 were cut off"],
    ),
    "empty documents": (
        changed((500, 50_256), (700, 50_256)),
        ["--eos-id", 50_256],
        ["{path}: token 500: an empty document, eos_id 50256 with nothing before it; empty in all: 2 of 202"],
    ),
    "an empty document across two blocks": (
        changed((4095, 50_256), (4096, 50_256)),
        ["--eos-id", 50_256],
        ["{path}: token 4,096: an empty document", "empty in all: 1 of 202"],
    ),
    "an empty first document": (changed((0, 50_256)), ["--eos-id", 50_256], ["{path}: token 0: an empty document", "1 of 201"]),
    "no end": (
        TEXT[:19_950],
        ["--eos-id", 50_256],
        ["{path}: token 19,900: the last 50 tokens have no eos_id 50256: the store may be cut short"],
    ),
    "never an end": (TEXT, ["--eos-id", 1], ["{path}: eos_id 1 never occurs in 20,000 tokens"]),
    "one token": (np.full(5000, 7, "uint16"), [], ["{path}: every one of the 5,000 tokens is 7"]),
    "nothing but ends": (np.full(5, 0, "uint16"), ["--eos-id", 0], ["every one of the 5 tokens is 0", "in all: 5 of 5"]),
    "a hole": (
        changed((slice(8000, 14_000), 0)),
        [],
        ["{path}: token 8,192: 4,096 or more tokens in a row are 0", "in such runs in all: 4,096 of 20,000"],
    ),
}


@pytest.mark.parametrize("block", [2**20, 4096])
@pytest.mark.parametrize("case", BROKEN)
def test_check_finds_the_fault_of_a_broken_file(capsys, tmp_path, monkeypatch, case, block):
    monkeypatch.setattr(reading.spans, "__kwdefaults__", {**reading.spans.__kwdefaults__, "size": block})
    tokens, argv, facts = BROKEN[case]
    path = tmp_path / "train.bin"
    tokens.tofile(path)
    argv = argv if "--dtype" in argv else [*argv, "--dtype", "uint16"]
    found = lines(capsys, "check", path, *argv, status=1)
    for fact in facts:
        assert any(fact.format(path=path) in line for line in found[:-1]), f"{fact} not in {found}"
    assert re.fullmatch(rf"{len(found) - 1} faults? in [\d,]+ tokens of {path} \([\w>]+\)", found[-1])
    assert len(found) - 1 == (2 if case in ("in the other byte order", "nothing but ends") else 1), found


def test_check_is_silent_about_a_good_store(capsys, tmp_path):
    path, good = tmp_path / "train.bin", ("--vocab-size", 50_257, "--eos-id", 50_256)
    TEXT.tofile(path)
    assert run(capsys, "check", path, "--dtype", "uint16", *good) == (0, f"no faults in 20,000 tokens of {path} (uint16)\n", "")
    np.roll(TEXT, 1).tofile(path)  # a token that begins documents instead of ending them
    assert lines(capsys, "check", path, "--dtype", "uint16", *good) == [f"no faults in 20,000 tokens of {path} (uint16)"]
    for dtype in ("uint8", "int32", "int64", ">u2", ">i4"):
        np.minimum(TEXT, 250).astype(dtype).tofile(path)
        assert lines(capsys, "check", path, "--dtype", dtype) == [f"no faults in 20,000 tokens of {path} ({np.dtype(dtype)})"]


def test_text_as_bytes_is_no_wrong_dtype(capsys, tmp_path):
    (tmp_path / "text.bin").write_bytes(Path(__file__).read_bytes())
    assert lines(capsys, "check", tmp_path / "text.bin", "--dtype", "uint8")[0].startswith("no faults")


def test_spare_bytes_are_a_fault_and_the_tokens_before_them_are_read(capsys, tmp_path):
    path = tmp_path / "odd.bin"
    path.write_bytes(changed((17, 60_000)).tobytes() + b"x")
    first, second, last = lines(capsys, "check", path, "--dtype", "uint16", "--vocab-size", 50_257, status=1)
    assert str(path) in first and "40001 bytes" in first and "1 spare bytes" in first
    assert second.startswith(f"{path}: token 17: 60000, expected 0 to 50256")
    assert last == f"2 faults in 20,000 tokens of {path} (uint16)"


def test_negative_ids_are_counted(capsys, tmp_path):
    np.save(tmp_path / "ids.npy", np.array([3, 1, -2, 5, -1]))
    path = tmp_path / "ids.npy"
    assert lines(capsys, "check", path, status=1) == [
        f"{path}: token 2: -2, expected 0 or more; out of range in all: 2 of 5",
        f"1 fault in 5 tokens of {path} (int64)",
    ]
    assert lines(capsys, "check", path, "--column", "labels") == [f"no faults in 5 tokens of {path} (int64)"]


def test_a_mask_may_be_constant_and_mostly_0(capsys, tmp_path):
    for mask in (
        np.ones(9000, "uint16"),
        np.repeat(np.array([0, 1], "uint16"), 4500),
        np.tile(np.array([1, 0], "uint16"), 4500),
    ):
        path = write_raw(tmp_path / "mask.bin", mask)
        argv = ("check", path, "--dtype", "uint16")
        assert lines(capsys, *argv, "--column", "loss_mask")[-1].startswith("no faults")
        assert lines(capsys, *argv, status=1)[-1].startswith("1 fault")


def test_files_that_cannot_be_opened_have_that_as_their_fault(capsys, tmp_path):
    np.save(tmp_path / "floats.npy", np.ones(3))
    (tmp_path / "empty.bin").touch()
    write_megatron(tmp_path / "pair", [[1, 2], [3]], lengths=[2, 2])
    write(tmp_path / "no_header.npy", "tokens")
    facts = {
        "floats.npy": ["float64", "integer dtype"],
        "empty.bin": ["empty.bin is empty", "0 bytes"],
        "pair.idx": ["pair.idx: sequence 1 ends at byte 8", "pair.bin has 6 bytes"],
        "no_header.npy": [".npy header"],
    }
    for name, wanted in facts.items():
        dtype = ("--dtype", "uint16") if name.endswith(".bin") else ()
        fault, last = lines(capsys, "check", tmp_path / name, *dtype, status=1)
        assert all(fact in fault for fact in wanted), fault
        assert last == f"1 fault in 0 tokens of {tmp_path / name}"


def test_empty_documents_of_an_index_are_found(capsys, tmp_path):
    path = write_megatron(tmp_path / "pair", [[1, 9], [], [2, 9], [], [9], [4]])
    for name in (path, tmp_path / "pair.idx", tmp_path / "pair"):
        found = lines(capsys, "check", name, "--eos-id", 9, status=1)
        assert found == [
            f"{name}: document 1 is empty; empty in all: 2 of 6",
            f"{name}: token 5: document 3 (empty ones not counted) does not end with eos_id 9; such documents in all: 1 of 4",
            f"2 faults in 6 tokens of {name} (uint16)",
        ]
    joined = write_megatron(tmp_path / "joined", [[1], [], [2]], documents=[0, 1, 3])  # the empty sequence is no document
    assert lines(capsys, "check", joined) == [f"no faults in 2 tokens of {joined} (uint16)"]


def test_the_first_document_without_an_end_is_found_in_any_block(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(reading.spans, "__kwdefaults__", {**reading.spans.__kwdefaults__, "size": 4096})
    path = write_megatron(tmp_path / "pair", [[1, 2, 3 if i in (2000, 2500) else 9] for i in range(3000)])
    fault = lines(capsys, "check", path, "--eos-id", 9, status=1)[0]
    assert fault.startswith(f"{path}: token 6,002: document 2000 ") and fault.endswith("in all: 2 of 3,000")


def test_rows_of_a_dataset_that_are_null_or_empty_are_found(capsys, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"empty": [[1, 2], [], [3]], "null": [[1, 2], None, [3]], "null_token": [[1, 2], [3, None]]}
    facts = {"empty": "document 1 is empty; empty in all: 1 of 3", "null": "row 1 is None", "null_token": "None at position 1"}
    for name, column in rows.items():
        datasets.Dataset.from_dict({"input_ids": column}).save_to_disk(tmp_path / name)
        fault, last = lines(capsys, "check", tmp_path / name, status=1)
        assert str(tmp_path / name) in fault and facts[name] in fault and last.startswith("1 fault in ")


def test_a_file_that_shrinks_or_changes_while_it_is_read_is_a_fault(capsys, tmp_path, monkeypatch):
    path = tmp_path / "train.bin"
    TEXT.tofile(path)
    spans = check.spans

    def during(change):
        def slow(total, *, what):
            for number, span in enumerate(spans(total, what=what, size=4096)):
                if number == 2:
                    change()
                yield span

        monkeypatch.setattr(check, "spans", slow)
        return lines(capsys, "check", path, "--dtype", "uint16", status=1)

    assert during(lambda: os.utime(path, (1, 1))) == [
        f"{path} was modified while it was open: batches may hold old and new tokens",
        f"1 fault in 20,000 tokens of {path} (uint16)",
    ]
    fault, last = during(lambda: os.truncate(path, 20_000))
    assert f"{path} shrank from 40000 to 20000 bytes" in fault and last.startswith("1 fault in ")


def test_ids_beyond_int64_are_a_fault_wherever_they_are(capsys, tmp_path):
    ids = np.arange(300_000, dtype="uint64") % 1000
    ids[150_000] = 2**63
    np.save(tmp_path / "ids.npy", ids)
    fault, last = lines(capsys, "check", tmp_path / "ids.npy", status=1)
    assert "token 150000 is 9223372036854775808" in fault and last.startswith("1 fault in 300,000 tokens")


def test_several_stores_are_checked_one_by_one_and_then_together(capsys, tmp_path):
    one, two = tmp_path / "one.bin", tmp_path / "two.bin"
    TEXT.tofile(one)
    changed((5, 60_000)).tofile(two)
    found = lines(capsys, "check", one, two, "--dtype", "uint16", "--vocab-size", 50_257, status=1)
    assert found[0].startswith(f"{two}: token 5: 60000") and found[1:] == ["1 fault in 40,000 tokens of 2 stores (uint16)"]
    found = lines(capsys, "check", one, one, "--dtype", "uint16", status=1)
    assert "is the same file as" in found[0] and found[1] == "1 fault in 40,000 tokens of 2 stores (uint16)"


def test_what_the_command_line_leaves_out_is_no_fault_of_the_file(capsys, tmp_path):
    path = write_raw(tmp_path / "train.bin", [1, 2])
    refused(capsys, "check", path, facts=[path, "--dtype uint16"])
    refused(capsys, "check", tmp_path / "no.bin", "--dtype", "uint16", facts=[tmp_path / "no.bin", "No such file"])
    refused(capsys, "check", tmp_path, facts=[tmp_path, "save_to_disk"])


def test_a_bar_is_drawn_where_somebody_sees_it(monkeypatch):
    pytest.importorskip("tqdm")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("TERM", raising=False)
    assert list(reading.spans(10, what="check", size=4)) == [(0, 4), (4, 8), (8, 10)]
    assert "check" in terminal.getvalue() and "tokens" in terminal.getvalue()


def test_pieces_are_whole_parts_of_blocks_so_that_no_run_is_cut():
    assert reading.BLOCK % faults.PIECE == 0 and faults.SAMPLE % 8 == 0


# -- plot --------------------------------------------------------------------------------------------------------------


def test_plot_writes_a_png_or_an_svg_by_the_suffix(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    png, svg = tmp_path / "plan.png", tmp_path / "plan.SVG"
    assert run(capsys, "plot", *SMALL, "--output", png) == (0, f"{png}: 1 plan\n", "")
    assert run(capsys, "plot", *SMALL, "--output", svg) == (0, f"{svg}: 1 plan\n", "")
    assert png.read_bytes().startswith(b"\x89PNG") and b"<svg" in svg.read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["plan.SVG", "plan.png"]
    first = svg.read_bytes()
    lines(capsys, "plot", *SMALL, "--output", svg, "--overwrite")
    assert svg.read_bytes() == first, "the same plan gives the same bytes"


def test_plot_compares_the_plans_of_several_configs_by_their_names(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    seen = []
    monkeypatch.setattr(plot, "_rendered", lambda curves, form: seen.extend(curves) or b"picture")
    one = write(tmp_path / "one.yaml", "max_length: 32\nwarmup_steps: 6\nbatch_size: 2\n")
    (tmp_path / "other").mkdir()
    two = write(tmp_path / "other" / "two.yaml", "schedule: constant\nlength: 32\ntokens_per_batch: 64\n")
    same = write(tmp_path / "other" / "one.yaml", "schedule: constant\nlength: 8\nbatch_size: 1\n")
    for configs in ([one, two], [one, same]):
        argv = ("--config", configs[0], "--config", configs[1], "--total-steps", 10)
        output = lines(capsys, "plot", *argv, "--output", tmp_path / "out.png", "--overwrite")
        assert output == [f"{tmp_path / 'out.png'}: 2 plans"]
    assert [curve.label for curve in seen] == ["one.yaml", "two.yaml", str(one), str(same)]
    assert seen[0].tokens == [16, 32, 48, 64] and [stage[0] for stage in seen[0].stages] == [0, 2, 4, 6]
    assert seen[1].tokens == [64] and seen[1].stages[0][1] == 10


def test_bad_outputs_are_refused_and_left_alone(capsys, tmp_path):
    old = write(tmp_path / "old.png", "old")
    refused(capsys, "plot", *SMALL, facts=["--output"])
    refused(capsys, "plot", *SMALL, "--output", tmp_path / "plan.pdf", facts=[".png or .svg", "plan.pdf"])
    refused(capsys, "plot", *SMALL, "--output", old, facts=[old, "exists", "--overwrite"])
    (tmp_path / "folder.png").mkdir()
    refused(capsys, "plot", *SMALL, "--output", tmp_path / "folder.png", "--overwrite", facts=["folder"])
    assert old.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_is_not_there_and_a_full_disk_leave_no_file(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    nowhere = tmp_path / "nowhere" / "plan.png"
    refused(capsys, "plot", *SMALL, "--output", nowhere, facts=[nowhere, "No such file or directory"])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(plot.os, "fsync", full)
    old = write(tmp_path / "old.png", "old")
    new = tmp_path / "new.png"
    for path in (old, new):
        refused(capsys, "plot", *SMALL, "--output", path, "--overwrite", facts=[path, os.strerror(errno.ENOSPC)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.png"] and old.read_text() == "old"


def test_a_kill_in_the_middle_of_writing_leaves_the_old_picture(tmp_path):
    pytest.importorskip("matplotlib")
    old = write(tmp_path / "old.png", "old")
    code = "import os, sys; from slw_data.cli import main; os.fsync = lambda _: os.kill(os.getpid(), 9); main(sys.argv[1:])"
    process = started("plot", *SMALL, "--output", old, "--overwrite", code=code)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL and old.read_text() == "old"


def test_without_matplotlib_plot_names_the_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(capsys, "plot", *SMALL, "--output", tmp_path / "plan.png", facts=["matplotlib", "slw_data[plot]"])
    assert not list(tmp_path.iterdir())


def test_importing_the_command_line_imports_neither_matplotlib_nor_yaml():
    code = "import sys, torch, numpy; old = set(sys.modules); import slw_data.cli; print(sorted(set(sys.modules) - old))"
    process = started(code=code)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    heavy = {"matplotlib", "yaml", "tqdm", "datasets", "pyarrow", "transformers", "tokenizers", "tiktoken"}
    imported = set(ast.literal_eval(output))
    assert "slw_data.cli" in imported and not heavy & imported
