"""Plan arguments: from the command line and from a configuration file, merged, and made a schedule and a batch shape.

The command line wins over the file. Of arguments that exclude each other (three ways to give a warmup, two to give
a batch, two to give an end) one on the command line replaces all those in the file. What the chosen schedule has no
use for is refused by name, so that no argument is ever without effect.

Read next: :mod:`slw_data.cli.plan`, the command that shows what comes of it.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slw_data.cli.configs import composer_schedule, deepspeed_schedule, read_mapping
from slw_data.plan import SequenceLengthPlan
from slw_data.plan.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    DoublingSchedule,
    ExponentialSchedule,
    LinearSchedule,
    RootSchedule,
    Schedule,
    SineSchedule,
    StagedSchedule,
)

__all__ = ["COST", "STORE", "Arguments", "add_cost", "add_plan", "add_run", "add_store", "merged"]

SCHEDULES: dict[str, Any] = {
    "linear": LinearSchedule,
    "root": RootSchedule,
    "sine": SineSchedule,
    "cosine": CosineSchedule,
    "exponential": ExponentialSchedule,
    "doubling": DoublingSchedule,
    "constant": ConstantSchedule,
    "staged": StagedSchedule,
}
WARMUPS = ("warmup_steps", "warmup_fraction", "warmup_tokens")
WARMUP = ("min_length", "max_length", *WARMUPS, "multiple_of", "max_distinct", "num_cycles")
TAKES = dict.fromkeys(SCHEDULES, WARMUP) | {
    "root": (*WARMUP, "degree"),
    "constant": ("length",),
    "staged": ("lengths", "boundaries"),
}
OF_SCHEDULES = (*WARMUP, "degree", "length", "lengths", "boundaries")
FILES = ("from_composer", "from_deepspeed")
SHAPE = ("batch_size", "tokens_per_batch", "grad_accum_steps", "world_size", "total_steps", "total_tokens")
EXCLUSIVE = (WARMUPS, SHAPE[:2], SHAPE[4:], ("schedule", *FILES))
COST = ("num_params", "num_layers", "hidden_size")
ORDER = ("shuffle", "seed", "num_lanes", "epochs")
RUN = (*ORDER, "mode", "labels", "pad_id", "preserve_eos", "dp_rank")
STORE = ("num_tokens", "num_documents")
KNOWN = ("schedule", *FILES, *OF_SCHEDULES, *SHAPE, *COST, *RUN, *STORE)
SHORT = {"params": "num_params", "layers": "num_layers", "hidden": "hidden_size"}


@dataclass(frozen=True)
class Arguments:
    """Merged arguments by their Python names; ``origin`` says where each came from, in the words of a message."""

    values: Mapping[str, Any]
    origin: Mapping[str, str]
    label: str | None = None

    def pick(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of ``names`` that were given."""
        return {name: self.values[name] for name in names if name in self.values}

    def schedule(self) -> tuple[Schedule, int | None]:
        """The schedule, and the steps of the run where its own file knows them."""
        ways = [name for name in ("schedule", *FILES) if name in self.values]
        if len(ways) > 1:
            raise ValueError(f"give one schedule: got {' and '.join(self.origin[name] for name in ways)}")
        for name in FILES:
            if name in self.values:
                self._refuse_useless((), name)
                if name == "from_deepspeed":
                    return deepspeed_schedule(self.values[name]), None
                return composer_schedule(self.values[name], self.values.get("total_steps"))
        kind = self.values.get("schedule", "linear")
        if not isinstance(kind, str) or kind not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {kind!r}")
        self._refuse_useless(TAKES[kind], f"schedule {kind}")
        return self._made(kind, self.pick(TAKES[kind])), None

    def _made(self, kind: str, given: dict[str, Any]) -> Schedule:
        cycles = given.pop("num_cycles", None)
        if kind in ("constant", "staged"):
            given = ({"boundaries": []} if kind == "staged" else {}) | given
            if missing := [name for name in TAKES[kind] if name not in given]:
                raise ValueError(f"--schedule {kind} needs {_option(missing[0])}")
        else:
            given = {"min_length": 8, "max_length": 1024} | given
        for name in ("lengths", "boundaries"):
            if name in given and not isinstance(given[name], list):
                raise ValueError(f"{self.origin[name]} must be a list of integers, got {given[name]!r}")
        schedule: Schedule = SCHEDULES[kind](**given)
        return schedule if cycles is None else CyclicSchedule(schedule, cycles)  # type: ignore[arg-type]

    def _refuse_useless(self, takes: Sequence[str], chosen: str) -> None:
        useless = [name for name in OF_SCHEDULES if name in self.values and name not in takes]
        if useless:
            uses = f"it takes {', '.join(map(_option, takes))}" if takes else "that file has the whole schedule"
            raise ValueError(f"{self.origin[useless[0]]} is of no use to {_option(chosen)}: {uses}")

    def plan(self) -> SequenceLengthPlan:
        """The plan, of a run that has at least one step."""
        schedule, steps = self.schedule()
        shape = self.pick(SHAPE)
        if steps is not None and "total_tokens" not in shape:
            shape["total_steps"] = steps
        plan = SequenceLengthPlan(schedule, **shape)
        plan.largest_batch()  # refuses a run that is shorter than a step
        return plan

    def name(self, plan: SequenceLengthPlan) -> str:
        """What the plan is called in a legend."""
        if self.label is not None:
            return self.label
        for name in FILES:
            if name in self.values:
                return os.path.basename(str(self.values[name]))
        cycles = f" x {self.values['num_cycles']}" if "num_cycles" in self.values else ""
        return f"{self.values.get('schedule', 'linear')}{cycles}, {plan.lengths[0]:,} to {plan.lengths[-1]:,} tokens"


def merged(given: Mapping[str, Any], config: str | None = None, label: str | None = None) -> Arguments:
    """The arguments of the command line, and those in the file ``config`` that they do not replace."""
    values = {name: value for name, value in given.items() if name in KNOWN}
    origin = {name: _option(name) for name in values}
    if config is None:
        return Arguments(values, origin, label)
    replaced = {name for group in EXCLUSIVE if set(group) & set(values) for name in group}
    for key, value in read_mapping(config).items():
        name = SHORT.get(key, key)
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KNOWN)}"
            raise ValueError(f"{config}: unknown argument {key!r}; {hint}")
        if value is not None and name not in values and name not in replaced:
            values[name] = _beside(config, name, value) if name in FILES else value
            origin[name] = f"{key} in {config}"
    return Arguments(values, origin, label)


def _beside(config: str, name: str, value: Any) -> str:
    """A path in a configuration file is relative to that file."""
    if not isinstance(value, str):
        raise ValueError(f"{config}: {name} must be a path, got {value!r}")
    return os.path.join(os.path.dirname(config), value)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def add_plan(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    """The arguments of a schedule and of a batch shape. ``many``: several configuration files."""
    files = parser.add_argument_group("configuration files", "the command line wins over --config")
    text = "YAML or JSON with the arguments' Python names as keys (min_length: 8)"
    if many:
        files.add_argument(
            "--config", nargs="+", action="extend", metavar="FILE", help=text + "; each file is drawn as a line of its own"
        )
    else:
        files.add_argument("--config", metavar="FILE", help=text)
    files.add_argument("--from-composer", metavar="FILE", help="Composer YAML with algorithms: seq_length_warmup")
    files.add_argument("--from-deepspeed", metavar="FILE", help="DeepSpeed JSON with a curriculum on seqlen")
    group = parser.add_argument_group("schedule")
    group.add_argument("--schedule", metavar="NAME", help=f"{', '.join(SCHEDULES)} (default: linear)")
    group.add_argument("--min-length", type=int, metavar="N", help="tokens in a row at step 0 (default: 8)")
    group.add_argument("--max-length", type=int, metavar="N", help="tokens in a row after the warmup (default: 1024)")
    group.add_argument("--warmup-steps", type=int, metavar="N", help="the warmup in optimizer steps, or")
    group.add_argument("--warmup-fraction", type=float, metavar="X", help="as a fraction of the steps of the run, or")
    group.add_argument("--warmup-tokens", type=int, metavar="N", help="in tokens over all ranks")
    group.add_argument("--multiple-of", type=int, metavar="N", help="of which lengths are multiples (default: 8)")
    group.add_argument("--max-distinct", type=int, metavar="N", help="at most so many lengths")
    group.add_argument("--num-cycles", type=int, metavar="N", help="the warmup so many times in a row")
    group.add_argument("--degree", type=_number, metavar="X", help="of --schedule root (default: 2)")
    group.add_argument("--length", type=int, metavar="N", help="of --schedule constant")
    group.add_argument("--lengths", type=int, nargs="+", metavar="N", help="of --schedule staged, and")
    group.add_argument("--boundaries", type=int, nargs="+", metavar="N", help="the steps at which they change")
    shape = parser.add_argument_group("batch and run")
    shape.add_argument("--batch-size", type=int, metavar="N", help="rows of a batch, per rank and micro-batch; or")
    shape.add_argument("--tokens-per-batch", type=int, metavar="N", help="tokens of a batch: rows shrink as lengths grow")
    shape.add_argument("--grad-accum-steps", type=int, metavar="N", help="batches in an optimizer step (default: 1)")
    shape.add_argument("--world-size", type=int, metavar="N", help="data-parallel ranks (default: 1)")
    shape.add_argument("--total-steps", type=int, metavar="N", help="the run in optimizer steps, or")
    shape.add_argument("--total-tokens", type=int, metavar="N", help="in tokens over all ranks")


def add_cost(parser: argparse.ArgumentParser) -> None:
    """The size of a model, for FLOPs."""
    group = parser.add_argument_group("model, for training FLOPs")
    group.add_argument("--params", "--num-params", dest="num_params", type=int, metavar="N", help="parameters")
    group.add_argument("--layers", "--num-layers", dest="num_layers", type=int, metavar="N", help="layers")
    group.add_argument("--hidden", "--hidden-size", dest="hidden_size", type=int, metavar="N", help="hidden size")


def add_store(parser: argparse.ArgumentParser) -> None:
    """The size of a store and its order, for what a batch holds."""
    group = parser.add_argument_group("store and order, for the documents in a batch")
    group.add_argument("--num-tokens", type=int, metavar="N", help="tokens of the store; it ends the run if nothing else does")
    group.add_argument("--num-documents", type=int, metavar="N", help="documents in it")
    group.add_argument("--shuffle", action="store_true", help="permute blocks of the store")
    group.add_argument("--num-lanes", type=int, metavar="N", help="readers that rows are dealt to")
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the store, where the run has no other end")


def add_run(parser: argparse.ArgumentParser) -> None:
    """What else decides which tokens a batch holds: the arguments of ``SLWDataset``."""
    group = parser.add_argument_group("order and form of batches, as in SLWDataset")
    group.add_argument("--shuffle", action="store_true", help="permute blocks of the store")
    group.add_argument("--seed", type=int, metavar="N", help="of the permutations (default: 0)")
    group.add_argument("--num-lanes", type=int, metavar="N", help="readers that rows are dealt to")
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the source, where the run has no other end")
    group.add_argument("--mode", metavar="NAME", help="stream, segment, truncate, buckets or pack (default: stream)")
    group.add_argument("--labels", metavar="NAME", help="unshifted, shifted, both or none (default: unshifted)")
    group.add_argument("--pad-id", type=int, metavar="N", help="fills rows in modes segment, truncate and pack")
    group.add_argument("--preserve-eos", action="store_true", help="in mode truncate, keep a document's last token")
    group.add_argument("--dp-rank", type=int, metavar="N", help="the rank whose batch is shown (default: 0)")
