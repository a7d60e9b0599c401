"""Sequence length warmup on the data side: batches arrive at the length that a schedule wants at each step.

    plan         when      the length, rows and accumulation of every step
    order        where     which token comes where
    sources      what      stores (tokens at any position) and streams (documents in order)
    batch        form      tensors, labels, extras
    run          all four, joined once; state says where one stands
    dataset      a run, as torch's IterableDataset
    delivery     how       threads and worker processes, files that keep a state, agreement over ranks
    loader       iterates a dataset, and knows which batch was delivered last

Read next: :mod:`slw_data.plan.schedules`.
"""

from slw_data.compat import from_composer, from_deepspeed, from_megatron, from_olmo_core, from_skyladder
from slw_data.dataset import SLWDataset
from slw_data.delivery.agreement import check_ranks_agree, gather_state
from slw_data.delivery.checkpoint import load_state, save_state
from slw_data.errors import DataError, ScheduleError, StateError
from slw_data.functional import set_batch_sequence_length
from slw_data.loader import SLWLoader
from slw_data.plan import SequenceLengthPlan, Stage
from slw_data.plan.drawn import BucketSchedule
from slw_data.plan.schedules import (
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
from slw_data.sources.stores import TokenStore, open_tokens
from slw_data.sources.streams import Block, DocumentStream, open_stream

__version__ = "0.1.0"

__all__ = [
    "Block",
    "BucketSchedule",
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
    "from_megatron",
    "from_olmo_core",
    "from_skyladder",
    "gather_state",
    "load_state",
    "open_stream",
    "open_tokens",
    "save_state",
    "set_batch_sequence_length",
]
