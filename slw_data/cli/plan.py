"""``slw-data plan``: the stages of a plan, its totals, what it costs, and how many documents a step will hold.

Read next: :mod:`slw_data.cli.plot`.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import dataclass
from typing import Any

from slw_data.arguments import integer
from slw_data.cli.arguments import COST, ORDER, STORE, Arguments, add_cost, add_plan, add_store, merged
from slw_data.cli.batch import Places, dataset_of
from slw_data.dataset import SLWDataset
from slw_data.order.diversity import describe_order, documents_in, pieces_of
from slw_data.order.store import StoreOrder
from slw_data.plan import Cost, SequenceLengthPlan

__all__ = ["add_arguments", "run"]

WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_plan(parser)
    add_cost(parser)
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with all stages")


def run(given: dict[str, Any]) -> int:
    arguments = merged(given, given.get("config"))
    over = _over_store(arguments, given)
    plan = arguments.plan() if over is None else over.dataset.plan
    cost = _cost(plan, arguments.pick(COST))
    if given.get("json"):
        print(json.dumps(_plain(plan, cost, over), indent=2))
        return 0
    print(textwrap.shorten(repr(plan.schedule), WIDTH, placeholder=" ..."))
    print(plan.describe())
    if over is not None:
        end = "" if over.left is None else f"; {over.left:,} tokens are left over at the end"
        print(describe_order(over.order, over.documents) + end)
    if cost is not None:
        print(
            f"training FLOPs {cost.total:.3e}; as many tokens at {plan.lengths[-1]:,} tokens a row {cost.full_length:.3e};"
            f" {cost.saving:.1%} saved"
        )
    return 0


@dataclass(frozen=True)
class OverStore:
    """A run over a store of a given size: ``documents`` are how many it has, if that is known."""

    dataset: SLWDataset
    order: StoreOrder
    documents: int | None

    @property
    def left(self) -> int | None:
        return self.dataset.tokens_left

    def counts(self, steps: int) -> dict[str, Any]:
        """Places that the first steps are read from, and documents to expect in them."""
        starts, sizes = pieces_of(self.order, steps)
        tokens = self.order.lanes.num_tokens
        documents = None if self.documents is None else documents_in(starts, sizes, self.documents, tokens)
        return {"places": len(starts), "documents": documents}


def _over_store(arguments: Arguments, given: dict[str, Any]) -> OverStore | None:
    sizes = arguments.pick(STORE)
    if "num_tokens" not in sizes:
        useless = [name for name in (*STORE, *ORDER) if name in given]  # a configuration file may be of other commands too
        if useless:
            raise ValueError(f"--{useless[0].replace('_', '-')} is of a store: give --num-tokens, too")
        return None
    checked = {name: integer(name, value, at_least=1) for name, value in sizes.items()}
    tokens, documents = checked["num_tokens"], checked.get("num_documents", 1)
    if tokens >= 1 << 63:
        raise ValueError(f"--num-tokens must be below 2^63, as positions in a store are, got {tokens}")
    if documents > tokens:
        raise ValueError(f"--num-documents must be at most --num-tokens {tokens}, as each holds one, got {documents}")
    dataset = dataset_of({"input_ids": Places(checked["num_tokens"])}, arguments, ORDER)
    order = dataset.run.batches.order
    assert isinstance(order, StoreOrder)
    return OverStore(dataset, order, checked.get("num_documents"))


def _cost(plan: SequenceLengthPlan, sizes: dict[str, Any]) -> Cost | None:
    if not sizes:
        return None
    if missing := [name for name in COST if name not in sizes]:
        raise ValueError(f"FLOPs need --params, --layers and --hidden, {' and '.join(missing)} not given")
    return plan.cost(**sizes)


def _plain(plan: SequenceLengthPlan, cost: Cost | None, over: OverStore | None) -> dict[str, Any]:
    """The plan as JSON has it; what is endless is null."""
    stages = [{**stage._asdict(), "tokens_per_step": plan.tokens(stage.start)} for stage in plan.stages]
    plain: dict[str, Any] = {
        "schedule": repr(plan.schedule),
        "batch_size": plan.batch_size,
        "tokens_per_batch": plan.tokens_per_batch,
        "grad_accum_steps": plan.grad_accum_steps,
        "world_size": plan.world_size,
        "total_steps": plan.total_steps,
        "total_tokens": plan.total_tokens,
        "lengths": plan.lengths,
        "largest_batch": plan.largest_batch(),
        "fingerprint": plan.fingerprint,
        "stages": stages,
    }
    if over is not None:
        plain["order"] = over.order.fingerprint
        plain["of_a_step"], plain["of_100_steps"], plain["tokens_left"] = over.counts(1), over.counts(100), over.left
    if cost is not None:
        plain["flops"] = {"total": cost.total, "full_length": cost.full_length, "saving": cost.saving}
        for stage, flops in zip(stages, cost.stages, strict=True):
            stage["flops"] = flops
    return plain
