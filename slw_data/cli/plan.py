"""``slw-data plan``: the stages of a plan, its totals, and what it costs.

Read next: :mod:`slw_data.cli.plot`.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from slw_data.cli.arguments import COST, add_cost, add_plan, merged
from slw_data.plan import Cost, SequenceLengthPlan

__all__ = ["add_arguments", "run"]

WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_plan(parser)
    add_cost(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with all stages")


def run(given: dict[str, Any]) -> int:
    arguments = merged(given, given.get("config"))
    plan = arguments.plan()
    cost = _cost(plan, arguments.pick(COST))
    if given.get("json"):
        print(json.dumps(_plain(plan, cost), indent=2))
        return 0
    print(textwrap.shorten(repr(plan.schedule), WIDTH, placeholder=" ..."))
    print(plan.describe())
    if cost is not None:
        print(
            f"training FLOPs {cost.total:.3e}; as many tokens at {plan.lengths[-1]:,} tokens a row {cost.full_length:.3e};"
            f" {cost.saving:.1%} saved"
        )
    return 0


def _cost(plan: SequenceLengthPlan, sizes: dict[str, Any]) -> Cost | None:
    if not sizes:
        return None
    if missing := [name for name in COST if name not in sizes]:
        raise ValueError(f"FLOPs need --params, --layers and --hidden, {' and '.join(missing)} not given")
    return plan.cost(**sizes)


def _plain(plan: SequenceLengthPlan, cost: Cost | None) -> dict[str, Any]:
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
    if cost is not None:
        plain["flops"] = {"total": cost.total, "full_length": cost.full_length, "saving": cost.saving}
        for stage, flops in zip(stages, cost.stages, strict=True):
            stage["flops"] = flops
    return plain
