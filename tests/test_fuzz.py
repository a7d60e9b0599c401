"""Hostile arguments: every public function answers, or refuses in words of its own; it never fails by accident or hangs.

An error is the library's own if one of its ``raise`` statements raised it: then it has a message that somebody wrote for
it. What the interpreter, NumPy or PyTorch say of a value that nobody looked at is an accident, whatever its type. The
operating system's own word on a file is an answer too.
"""

import io
import json
import linecache
import os
import signal
import tempfile
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import KINDS

import slw_data
from slw_data import LinearSchedule, SequenceLengthPlan, SLWDataset, SLWLoader, open_stream, open_tokens
from slw_data.cli import main
from slw_data.training import LossRatio, adam_variance, token_lr, warm_up

PACKAGE = str(Path(slw_data.__file__).parent)
SECONDS = 60  # for one call: none of them does anything that takes a second
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))  # of each test

fuzzed = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))

# -- what is hostile ---------------------------------------------------------------------------------------------------


class Odd:
    """Says of itself what no value should."""

    def __eq__(self, other):
        return NotImplemented

    __hash__ = None

    def __repr__(self):
        return "Odd()"


def hostile_callable(*_, **__):
    return "eight"


NUMBERS = [-(2**70), -(2**63), -1, 0, 1, 2, 7, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**30, 10**400, -0.0, 0.5, 1.5, 1e300]
NUMBERS += [float("nan"), float("inf"), float("-inf"), 1 + 2j, Decimal("NaN"), Decimal(3), Fraction(1, 3), True, False]
TEXTS = ["", " ", "0", "8", "8.5", "nan", "None", "ü", "\x00", "\ud800", "a/b", "x" * 5000, b"", b"8", "input_ids", "stream"]
OBJECTS = [None, ..., object(), Odd(), Odd, int, hostile_callable, lambda: 3, date(2020, 1, 1), range(3), slice(2)]
NESTED = [[], (), {}, set(), [[]], [None], [1, [2, [3]]], {"a": {"b": []}}, {1: 2}, [float("nan")], ["a", 1], ({},), [Odd()]]
ARRAYS = [
    *(np.zeros(shape) for shape in [(), (0,), (3,), (2, 2), (1, 0)]),
    *(np.array(values) for values in [["a"], [None], [1, 2], [True], [1j], [2**63]]),
    np.array(["2020-01-01"], "M8[D]"),
    np.int64(3),
    np.float32("nan"),
    np.bool_(True),
    *(torch.zeros(shape) for shape in [(), (0,), (3,), (2, 2)]),
    torch.tensor([1, 2]),
    torch.tensor(3),
    torch.zeros(3, device="meta"),
    torch.eye(3).to_sparse(),
]
hostile = st.sampled_from([*NUMBERS, *TEXTS, *OBJECTS, *NESTED, *ARRAYS])


@contextmanager
def watched():
    """What is raised inside must be the library's own; a hang ends the test."""

    def hang(*_):
        raise AssertionError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    except (OSError, MemoryError):
        pass  # a file that is not there, a batch that no memory holds
    except Exception as error:
        if not own(error):
            raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def own(error):
    """Whether a ``raise`` statement of the library raised it, and says something."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno).strip()
    return last.filename.startswith(PACKAGE) and line.startswith("raise") and bool(str(error))


def replaced(data, arguments, most=3):
    """``arguments`` with one or more of them hostile."""
    names = data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=most, unique=True))
    return {**arguments, **{name: data.draw(hostile, label=name) for name in names}}


# -- schedules and plans -----------------------------------------------------------------------------------------------

SCHEDULES = {kind.__name__: (kind, {"min_length": 8, "max_length": 64, "warmup_steps": 9}) for kind in KINDS.values()} | {
    "ConstantSchedule": (slw_data.ConstantSchedule, {"length": 8}),
    "StagedSchedule": (slw_data.StagedSchedule, {"lengths": [8, 16], "boundaries": [3]}),
    "CyclicSchedule": (slw_data.CyclicSchedule, {"schedule": LinearSchedule(8, 16, warmup_steps=3), "num_cycles": 2}),
    "from_composer": (slw_data.from_composer, {"total_steps": 100}),
    "from_deepspeed": (slw_data.from_deepspeed, {"config": {}}),
    "from_olmo_core": (slw_data.from_olmo_core, {"max_sequence_length": 1024}),
}
FURTHER = ("warmup_fraction", "warmup_tokens", "multiple_of", "max_distinct", "degree", "duration", "step_size", "truncate")


@pytest.mark.parametrize("name", SCHEDULES)
@fuzzed
@given(data=st.data())
def test_a_schedule_is_made_and_asked(name, data):
    make, arguments = SCHEDULES[name]
    accepted = make.__init__ if isinstance(make, type) else make
    codes = accepted.__code__
    further = {key: None for key in FURTHER if key in codes.co_varnames[: codes.co_argcount + codes.co_kwonlyargcount]}
    given_arguments = replaced(data, {**further, **arguments})
    left_out = {key for key in further if given_arguments[key] is None}
    with watched():
        schedule = make(**{key: value for key, value in given_arguments.items() if key not in left_out})
        assert SequenceLengthPlan(schedule, batch_size=1, total_steps=100).length(50) >= 1
        length = schedule(data.draw(hostile, label="step"))
        assert type(length) is int and length >= 1


DEEPSPEED = {
    "curriculum_type": "seqlen",
    "min_difficulty": 8,
    "max_difficulty": 64,
    "schedule_type": "fixed_linear",
    "schedule_config": {"total_curriculum_step": 100, "difficulty_step": 8},
}


@fuzzed
@given(data=st.data())
def test_a_configuration_of_deepspeed_is_read(data):
    config = replaced(data, DEEPSPEED)
    if isinstance(config["schedule_config"], dict) and data.draw(st.booleans()):
        config["schedule_config"] = replaced(data, DEEPSPEED["schedule_config"])
    with watched():
        assert slw_data.from_deepspeed(config)(10) >= 1


PLAN = {
    "schedule": LinearSchedule(8, 64, warmup_steps=9),
    "batch_size": 4,
    "tokens_per_batch": None,
    "grad_accum_steps": 1,
    "world_size": 1,
    "total_steps": 20,
    "total_tokens": None,
}
LOOKUPS = ("length", "rows", "global_rows", "tokens", "tokens_before", "step_at")


@fuzzed
@given(data=st.data())
def test_a_plan_is_made_and_asked(data):
    with watched():
        plan = SequenceLengthPlan(**replaced(data, PLAN))
        assert plan.length(0) >= 1 and plan.describe()


@fuzzed
@given(st.sampled_from(LOOKUPS), hostile)
def test_a_plan_is_asked_for_any_step(name, step):
    with watched():
        assert type(getattr(SequenceLengthPlan(**PLAN), name)(step)) is int


@fuzzed
@given(data=st.data())
def test_a_cost_is_asked_for_any_model(data):
    with watched():
        SequenceLengthPlan(**PLAN).cost(**replaced(data, {"num_params": 1000, "num_layers": 2, "hidden_size": 8}))


# -- sources -----------------------------------------------------------------------------------------------------------


@fuzzed
@given(data=st.data())
def test_a_store_is_opened_and_read(data):
    arguments = {"x": np.arange(50), "dtype": None, "column": "input_ids", "vocab_size": None, "eos_id": None}
    with watched():
        store = open_tokens(**replaced(data, arguments))
        assert len(store) >= 1 and len(store.read(0, 1)) == 1


@fuzzed
@given(hostile, hostile)
def test_any_part_of_a_store_is_read(start, stop):
    with watched():
        found = open_tokens(np.arange(50)).read(start, stop)
        assert found.tolist() == list(range(50))[int(start) : int(stop)]


@fuzzed
@given(data=st.data())
def test_a_stream_is_opened_and_read(data):
    arguments = {"x": [[1, 2, 3], [4]], "column": "input_ids", "columns": None, "text_column": None, "tokenizer": None}
    with watched():
        stream = open_stream(**replaced(data, {**arguments, "append_eos": None}))
        list(islice(stream.blocks(0), 3))


@pytest.mark.filterwarnings("ignore")
@fuzzed
@given(st.lists(hostile | st.lists(hostile, max_size=3) | st.dictionaries(st.just("input_ids"), hostile), max_size=4))
def test_a_stream_of_anything_is_read(documents):
    with watched():
        list(SLWLoader(SLWDataset(documents, PLAN["schedule"], batch_size=1, num_lanes=1), prefetch=0))


# -- datasets and loaders ----------------------------------------------------------------------------------------------

DATASET = {
    "source": np.arange(3000),
    "schedule_or_plan": PLAN["schedule"],
    "batch_size": 2,
    "tokens_per_batch": None,
    "grad_accum_steps": 1,
    "total_steps": None,
    "total_tokens": None,
    "epochs": None,
    "shuffle": False,
    "seed": 0,
    "num_lanes": None,
    "mode": "stream",
    "labels": "unshifted",
    "columns": ("input_ids",),
    "extras": (),
    "vocab_size": None,
    "eos_id": None,
    "pad_id": None,
    "preserve_eos": False,
    "max_documents": None,
    "flat_multiple_of": 1,
    "bos_id": None,
    "sharded": False,
    "dp_rank": None,
    "dp_world_size": None,
    "mesh": None,
}
LOADER = {
    "num_workers": 0,
    "prefetch": 2,
    "pin_memory": False,
    "prefetch_factor": None,
    "persistent_workers": False,
    "multiprocessing_context": None,
    "timeout": 0,
    "progress": False,
}


@pytest.mark.filterwarnings("ignore")
@fuzzed
@given(data=st.data())
def test_a_dataset_is_made_and_iterated(data):
    arguments = replaced(data, DATASET)
    if type(arguments["batch_size"]) is int and arguments["batch_size"] > 1000:
        arguments["batch_size"] = 2  # a batch of any size that memory holds is right, and slow
    with watched():
        for batch in islice(SLWLoader(SLWDataset(**arguments), prefetch=0), 3):
            assert batch["input_ids"].dtype == torch.int64


@pytest.mark.filterwarnings("ignore")
@fuzzed
@given(data=st.data())
def test_a_loader_is_made(data):
    arguments = replaced(data, LOADER)
    with watched():
        loader = SLWLoader(SLWDataset(**DATASET), **arguments)
        if loader.num_workers == 0:
            loader.close() if next(iter(loader)) else None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", ["store", "stream"])
@fuzzed
@given(data=st.data())
def test_a_state_of_anything_is_refused_or_loaded(source, data):
    loader = SLWLoader(SLWDataset(**DATASET | ({} if source == "store" else {"source": [[1, 2, 3]] * 99})), prefetch=0)
    batches = iter(loader)
    next(batches)
    before = loader.state_dict()
    state = data.draw(st.just(replaced(data, before)) | hostile | st.dictionaries(st.sampled_from(sorted(before)), hostile))
    try:
        with watched():
            loader.load_state_dict(state, strict=data.draw(st.booleans()))
            next(iter(loader), None)
            return
    finally:
        loader.close()
    assert loader.state_dict() == before, "a refused state has changed something"


@pytest.mark.filterwarnings("ignore")
@fuzzed
@given(hostile, hostile)
def test_a_loader_is_sought_anywhere(step, expected):
    loader = SLWLoader(SLWDataset(**DATASET), prefetch=0)
    with watched():
        loader.seek(step)
    with watched():
        loader.load_state_dict({"step": 3}, expected_step=expected)


scalars = st.none() | st.integers() | st.text()
json_values = st.recursive(scalars, lambda some: st.lists(some) | st.dictionaries(st.text(), some))


@fuzzed
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_a_state_file_of_anything_is_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.json")
        path.write_bytes(content)
        loader = SLWLoader(SLWDataset(**DATASET))
        before = loader.state_dict()
        with pytest.raises(slw_data.StateError, match=r"state\.json"):
            slw_data.load_state(path, loader)
        assert loader.state_dict() == before


# -- files -------------------------------------------------------------------------------------------------------------


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def index(lengths):
    """A Megatron index of sequences that are documents."""
    sizes, count = np.array(lengths, "<i4"), len(lengths)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1] * 2]).astype("<i8")
    head = b"MMIDIDX\0\0" + np.uint64(1).tobytes() + b"\x08" + np.array([count, count + 1], "<u8").tobytes()
    return head + sizes.tobytes() + offsets.tobytes() + np.arange(count + 1, dtype="<i8").tobytes()


FILES = {"tokens.npy": npy(np.arange(40, dtype="uint16")), "tokens.idx": index([3, 5, 2]), "tokens.bin": bytes(range(20))}


def test_the_files_are_sound_before_they_are_broken():
    assert [len(opened(name, FILES[name])) for name in FILES] == [40, 10, 10]


def opened(name, content):
    """The tokens of a folder whose file ``name`` has ``content``."""
    with tempfile.TemporaryDirectory() as folder:
        for other, whole in FILES.items():
            Path(folder, other).write_bytes(content if other == name else whole)
        if name == "tokens.bin":
            Path(folder, "tokens.idx").unlink()
            return open_tokens(Path(folder, name), dtype="uint16").read(0, 10)
        store = open_tokens(Path(folder, name.replace("idx", "bin")))
        return store.read(0, len(store))


@pytest.mark.parametrize("name", FILES)
@fuzzed
@given(data=st.data())
def test_a_file_that_was_cut_or_changed_is_read_or_refused(name, data):
    content = bytearray(FILES[name])
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    with watched():
        opened(name, bytes(content[:cut]) + data.draw(st.just(b"") | st.binary(max_size=9)))


@pytest.mark.parametrize("name", FILES)
@fuzzed
@given(content=st.binary(max_size=300))
def test_a_file_of_anything_is_read_or_refused(name, content):
    with watched():
        opened(name, content)


# -- beside the data ---------------------------------------------------------------------------------------------------


@fuzzed
@given(data=st.data())
def test_a_batch_of_anything_is_cut(data):
    batch = {"input_ids": torch.arange(24).view(3, 8), "labels": torch.arange(24).view(3, 8)}
    arguments = {"batch": batch, "curr_seq_len": 4, "truncate": True, "preserve_end_of_sequence": False}
    if data.draw(st.booleans()):
        arguments["batch"] = replaced(data, batch)
        arguments["truncate"] = data.draw(st.booleans())
    else:
        arguments = replaced(data, arguments)
    with watched():
        slw_data.set_batch_sequence_length(**arguments)


@fuzzed
@given(hostile, hostile)
def test_the_training_helpers_take_anything(one, other):
    """What a function of the caller's does when it is called is its own: so where one is due, nothing callable is given."""
    plan = SequenceLengthPlan(**PLAN)
    function = None if callable(one) else one
    for call in (
        lambda: token_lr(one, lambda tokens: 1.0)(3),
        lambda: token_lr(plan, function),
        lambda: token_lr(plan, lambda tokens: 1.0)(other),
        lambda: warm_up(lambda rows, length: one, plan),
        lambda: warm_up(function, plan),
        lambda: warm_up(lambda rows, length: torch.ones((), requires_grad=True), one),
        lambda: LossRatio().update(one),
        lambda: adam_variance(one),
        lambda: slw_data.check_ranks_agree(function),
        lambda: slw_data.save_state(one, other),
        lambda: slw_data.load_state(one, other),
    ):
        with watched():
            call()


WORDS = ["--json", "--min-length", "--max-length", "--schedule", "--warmup-steps", "--batch-size", "--total-steps", "--params"]
WORDS += ["linear", "8", "64", "-1", "1e9", "nan", "", "ü", "\x00", "--", "-", "--from-composer", "[", "{}", "/dev/null", "."]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["plan", "plot", "inspect", "check"])
@fuzzed
@given(words=st.lists(st.sampled_from(WORDS), max_size=8))
def test_the_command_line_takes_any_words(command, words):
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            status = main([command, *words])
        except SystemExit as ended:
            status = ended.code
    assert status in (None, 0, 1, 2), status
    assert "Traceback" not in err.getvalue()
    assert status != 2 or err.getvalue().count("error:") == 1, (out.getvalue(), err.getvalue())
