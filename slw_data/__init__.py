"""Sequence length warmup on the data side: batches arrive at the length that a schedule wants at each step.

    schedules   step -> length
    plan        a schedule and a batch shape: every step's length, rows and tokens
    stores      tokens at any position    } sources
    streams     documents in order        }
    lanes       which token comes where in a store;   rows        cuts batches from it
    dealing     which document goes where in a stream; documents  cuts batches from it
    batches     tensors, labels, extras
    dataset     all of it together
    workers     chunks from other processes
    loader      iterates it, and knows which batch was delivered last
    checkpoint  keeps its state in a file;   agreement   compares it over ranks

Read next: :mod:`slw_data.schedules`.
"""

from slw_data.agreement import check_ranks_agree
from slw_data.checkpoint import load_state, save_state
from slw_data.compat import from_composer, from_deepspeed, from_olmo_core
from slw_data.dataset import SLWDataset
from slw_data.errors import DataError, ScheduleError, StateError
from slw_data.functional import set_batch_sequence_length
from slw_data.loader import SLWLoader
from slw_data.plan import SequenceLengthPlan, Stage
from slw_data.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    DoublingSchedule,
    ExponentialSchedule,
    LinearSchedule,
    RootSchedule,
    SineSchedule,
    StagedSchedule,
)
from slw_data.stores import TokenStore, open_tokens
from slw_data.streams import Block, DocumentStream, open_stream

__version__ = "0.1.0"

__all__ = [
    "Block",
    "ConstantSchedule",
    "CosineSchedule",
    "CyclicSchedule",
    "DataError",
    "DocumentStream",
    "DoublingSchedule",
    "ExponentialSchedule",
    "LinearSchedule",
    "RootSchedule",
    "SLWDataset",
    "SLWLoader",
    "ScheduleError",
    "SequenceLengthPlan",
    "SineSchedule",
    "Stage",
    "StagedSchedule",
    "StateError",
    "TokenStore",
    "check_ranks_agree",
    "from_composer",
    "from_deepspeed",
    "from_olmo_core",
    "load_state",
    "open_stream",
    "open_tokens",
    "save_state",
    "set_batch_sequence_length",
]
