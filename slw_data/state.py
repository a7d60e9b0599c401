"""The state of a run: a flat dict of plain values that describes the last delivered batch.

    version        of this format
    step, batch    the optimizer step of the next batch, and how many of its micro-batches are delivered
    rows, tokens   delivered by all ranks since the run began (padding is not a token)
    epoch          the pass over the source that the next row begins in
    past           fingerprint of the lengths and rows of all steps up to here
    source, order  fingerprints of what fixes the tokens, and their order
    rest           None, or the step from which on rows are cut from what the lanes left over at the end of the data
    dp_rank, dp_world_size None, or the rank whose own part of the data this is (``sharded=True``)
    stream         "" where all is arithmetic; else what the order needs to go on, as JSON: of a stream its snapshot
                   (:class:`slw_data.order.dealing.Snapshot`), of a store which of its documents are open
                   (:class:`slw_data.order.circle.Opened`) or being packed (:class:`slw_data.order.packed.Packed`)
    checksum       of all of these, so that a damaged state is refused
    shards         of a divided stream alone (``num_shards``): where each shard stands that this rank reads, under its number

It is the same on every rank (but for ``sharded=True``, and ``shards``), has the same keys at every step, and survives
``json`` and ``torch.load(weights_only=True)``. Left out are things that do not change which token came where: labels, extras,
workers, prefetching, how the rows of a step are split over ranks and micro-batches, and all that lies ahead.

States of version 1 are read too, if they are of a store. They had a fingerprint of the whole ``plan``; of that only the
past matters here, which their rows and tokens tell.

Read next: :mod:`slw_data.run`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slw_data.arguments import shown
from slw_data.errors import StateError, warn
from slw_data.order.divided import DividedOrder
from slw_data.order.position import Order, Position
from slw_data.plan import SequenceLengthPlan
from slw_data.sources.streams.marks import same_source

__all__ = ["VERSION", "Identity", "dump_state", "parse_state"]

VERSION = 2
_COUNTS = ("step", "batch", "rows", "tokens", "epoch")
_RANKS = ("dp_rank", "dp_world_size")
KEYS = ("version", *_COUNTS, "past", "source", "order", "rest", *_RANKS, "stream", "checksum")
KEYS_1 = ("version", *_COUNTS, "plan", "source", "order", *_RANKS, "stream", "checksum")


@dataclass(frozen=True)
class Identity:
    """What a state must agree with: the run it is loaded into. ``padded``: rows may have padding; ``begun``: they begin with
    a token that is none of the source.
    """

    plan: SequenceLengthPlan
    order: Order
    source: str
    shard: tuple[int, int] | None
    padded: bool
    begun: bool = False

    def fingerprints(self, at: Position) -> dict[str, Any]:
        """What fixes which token came where, up to a position."""
        rank, world = self.shard or (None, None)
        return {
            "past": self.plan.past(at.step, at.batch),
            "source": self.source,
            "order": self.order.fingerprint,
            "rest": self.order.rest_at(at),
            "dp_rank": rank,
            "dp_world_size": world,
        }

    def rows_within(self, at: Position) -> int:
        """Rows of the step that all ranks have delivered."""
        return at.batch * self.plan.rows(at.step) * self.plan.world_size if at.batch else 0

    def tokens(self, at: Position) -> int:
        """Tokens that all ranks have delivered."""
        if at.tokens is not None:
            return at.tokens
        rows = self.rows_within(at)
        return self.plan.tokens_before(at.step) + (rows * self.plan.length(at.step) if rows else 0)

    def room(self, at: Position) -> int:
        """Tokens of the source that the rows hold which all ranks have delivered (with ``sharded=True`` this rank), if none is
        padding."""
        tokens = self.tokens(at._replace(tokens=None))
        if self.begun:
            tokens -= self.plan.rows_before(at.step) + self.rows_within(at)
        return tokens // self.shard[1] if self.shard else tokens

    def epoch(self, at: Position) -> int:
        """The pass over the source that the next row begins in."""
        return self.order.epoch(at)

    def counts(self, at: Position) -> dict[str, int]:
        """The counters at a position."""
        rows = self.plan.rows_before(at.step) + self.rows_within(at)
        return {"step": at.step, "batch": at.batch, "rows": rows, "tokens": self.tokens(at), "epoch": self.epoch(at)}


def dump_state(identity: Identity, at: Position) -> dict[str, Any]:
    order = identity.order
    at = order.settle(at)
    state: dict[str, Any] = {"version": VERSION, **identity.counts(at), **identity.fingerprints(at), "stream": order.dump(at)}
    if not isinstance(order, DividedOrder):
        return {**state, "checksum": _checksum(state, KEYS)}
    state["epoch"] = 0  # each shard has its own, and all else is the same on all ranks
    mark = _checksum(state, KEYS)
    return {**state, "checksum": mark, "shards": order.dump_shards(at, mark)}


def _checksum(state: Mapping[str, Any], keys: Sequence[str]) -> int:
    return zlib.crc32(json.dumps([state[key] for key in keys[:-1]]).encode())


def parse_state(
    identity: Identity, state: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, strict: bool
) -> Position:
    """The position that ``state`` describes; StateError, naming the field and both values, if it is not of this run."""
    if isinstance(identity.order, DividedOrder):
        return _parse_divided(identity, identity.order, state, strict)
    return _parse_whole(identity, state, strict)


def _parse_whole(identity: Identity, state: Any, strict: bool) -> Position:
    if not isinstance(state, Mapping):
        one = " of states: all ranks have the same here, so pass one of them" if isinstance(state, (list, tuple)) else ""
        raise TypeError(f"a state is a dict as state_dict() returns it, got {type(state).__name__}{one}")
    if set(state) == {"step"} and identity.order.found_by_step:
        return identity.order.seek(_step(identity.plan, state))
    keys = _check_keys(state)
    counts = {name: _count(state, name) for name in _COUNTS}
    _check_fingerprints(identity, state, Position(_step(identity.plan, counts), min(counts["batch"], 1)), strict)
    at = Position(*_place(identity.plan, counts), None, counts["tokens"] if identity.padded else None)
    if keys is KEYS_1 and identity.order.begin.cursor is not None:
        raise StateError(
            "version 1 said too little of a stream to go on with it exactly: finish that run with the slw_data that began it"
        )
    at = at._replace(cursor=identity.order.load(state["stream"], at))
    expected = identity.counts(at)
    if identity.padded and counts["tokens"] > identity.room(at):
        raise StateError(f"tokens must be at most what {counts['rows']} rows hold, the saved state has {counts['tokens']}")
    if counts["tokens"] != expected["tokens"]:  # the epoch is of the next row, whose length may be another one now
        raise StateError(
            f"tokens must be {expected['tokens']} at step {counts['step']} of this run, the saved state has {counts['tokens']}:"
            " it is damaged, or of a run with other lengths before this step"
        )
    checksum = _checksum(state, keys)
    if not _equal(state["checksum"], checksum):
        differing = [name for name in _COUNTS if counts[name] != expected[name]]
        wrong = "".join(f"; {name} is {counts[name]}, not {expected[name]}" for name in differing)
        raise StateError(f"the state is corrupt: its checksum must be {checksum}, and is {shown(state['checksum'])}{wrong}")
    return at


def _parse_divided(identity: Identity, order: DividedOrder, state: Any, strict: bool) -> Position:
    """The same of a divided stream, from the states of one rank or of several, which differ in their shards alone."""
    states = [state] if isinstance(state, Mapping) else list(state) if isinstance(state, (list, tuple)) else []
    if not states or not all(isinstance(one, Mapping) for one in states):
        got = shown(state)[:80]
        raise TypeError(f"a state is a dict as state_dict() returns it, or a list of those of several ranks, got {got}")
    common, entries = {key: value for key, value in states[0].items() if key != "shards"}, dict[str, Any]()
    for one in states:
        if "shards" not in one or not isinstance(one["shards"], Mapping):
            raise StateError("shards must be there, a dict with an entry for each shard: the state is not of a divided stream")
        differing = [key for key in common if key not in one or not _equal(one[key], common[key])]
        if differing:
            listed = "; ".join(f"{key} is {shown(common[key])} and {shown(one.get(key))}" for key in differing)
            raise StateError(f"the states are not of one step of one run: {listed}. Load what all ranks have saved together")
        entries.update(one["shards"])
    at = _parse_whole(identity, common, strict)
    return at._replace(cursor=order.load_shards(entries, at, common["checksum"]))


def _check_keys(state: Mapping[str, Any]) -> Sequence[str]:
    version = state.get("version")
    if type(version) is not int or version not in (1, VERSION):
        raise StateError(f"version must be {VERSION} or 1, which this slw_data reads, the saved state has {shown(version)}")
    keys = KEYS if version == VERSION else KEYS_1
    missing = [key for key in keys if key not in state]
    unknown = [str(key) for key in state if key not in keys]
    if missing or unknown:
        raise StateError(
            f"a state has the keys {', '.join(keys)}; missing: {', '.join(missing) or 'none'},"
            f" unknown: {', '.join(unknown) or 'none'}. Save what state_dict() returns as it is"
        )
    if version == 1 and not isinstance(state["plan"], str):
        raise StateError(f"plan must be a text in a state of version 1, the saved state has {shown(state['plan'])}")
    return keys


def _count(state: Mapping[str, Any], name: str) -> int:
    value = state[name]
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise StateError(f"{name} must be an int in [0, 2^63), the saved state has {shown(value)}")
    return value


def _equal(saved: Any, current: Any) -> bool:
    """Of plain values: an array compares, but says neither yes nor no."""
    return type(saved) is type(current) and bool(saved == current)


def _check_fingerprints(identity: Identity, state: Mapping[str, Any], at: Position, strict: bool) -> None:
    current = identity.fingerprints(at)
    names = [name for name in current if name in state]  # version 1 has neither past nor rest
    differing = [name for name in names if not _equal(state[name], current[name])]
    if "source" in differing and same_source(state["source"], current["source"]):
        differing.remove("source")
    if not differing:
        return
    listed = "; ".join(f"{name}: saved {shown(state[name])}, current {current[name]!r}" for name in differing)
    other_rank, texts = bool(set(differing) & set(_RANKS)), [name for name in differing if name in ("past", "source", "order")]
    hint = _hint(state, differing)
    if strict or other_rank or "rest" in differing or not all(isinstance(state[name], str) for name in texts):
        raise StateError(
            f"the state is of another run: {listed}.{hint} Build the dataset as it was when the state was saved; or, where"
            " this run has as many rows and tokens before that step, pass strict=False to go on at the same token of it"
        )
    warn(f"going on with the state of another run, as strict=False asks: {listed}")


def _hint(state: Mapping[str, Any], differing: Sequence[str]) -> str:
    if set(differing) & set(_RANKS):
        return " With sharded=True each rank loads its own state (in torch.distributed.checkpoint under a key of its own)."
    if "rest" in differing:
        return (
            " At the end of the data rows are cut from what all lanes have left over, so a run that has come there cannot"
            " get more or fewer epochs: load a state from before that, or begin a run of its own."
        )
    lanes = re.search(r"num_lanes=(\d+)", shown(state["order"]))
    if "order" in differing and state["version"] == 1 and lanes:
        return f" Version 1 chose other lanes by default: write num_lanes={lanes[1]} to go on in its order."
    if "past" in differing:
        return " Only what comes after the saved step may change."
    return ""


def _step(plan: SequenceLengthPlan, state: Mapping[str, Any]) -> int:
    step, total = _count(state, "step"), plan.total_steps
    if total is not None and step > total:
        raise StateError(f"step must be at most total_steps={total}, the saved state has {step}: give more total_steps")
    return step


def _place(plan: SequenceLengthPlan, counts: Mapping[str, int]) -> tuple[int, int]:
    """Step and micro-batch, from rows: ``grad_accum_steps`` and ``world_size`` may have changed, the rows have not."""
    step, rows = counts["step"], counts["rows"]
    within = rows - plan.rows_before(step)
    if within == 0:
        return step, 0
    whole = plan.global_rows(step)
    if not 0 < within < whole:
        raise StateError(
            f"rows must be in [{rows - within}, {rows - within + whole}) at step {step} of this run, the saved state has"
            f" {rows}: it is damaged, or of a run with other rows before this step"
        )
    batch, rest = divmod(within, plan.rows(step) * plan.world_size)
    if rest:
        raise StateError(
            f"the state was saved {within} rows into step {step}, and a micro-batch now has {plan.rows(step)} rows on each"
            f" of {plan.world_size} ranks: resume with the former grad_accum_steps, or save where a step ends"
        )
    return step, batch
