"""The state of a run: a flat dict of plain values that describes the last delivered batch.

    version        of this format
    step, batch    the optimizer step of the next batch, and how many of its micro-batches are delivered
    rows, tokens   delivered by all ranks since the run began (padding is not a token)
    epoch          the pass over the source that the next row begins in
    plan, source, order    fingerprints: what fixes the shapes, the tokens, and their order
    dp_rank, dp_world_size None, or the rank whose own part of the data this is (``sharded=True``)
    stream         "" for a store; else the stream's snapshot (:class:`slw_data.order.dealing.Snapshot`) as JSON
    checksum       of all of these, so that a damaged state is refused

It is the same on every rank (but for ``sharded=True``), has the same keys at every step, and survives ``json`` and
``torch.load(weights_only=True)``. Left out are things that do not change which token comes where: labels, extras,
workers, prefetching, how the rows of a step are split over ranks and micro-batches, and when the run ends.

Read next: :mod:`slw_data.loader`.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slw_data.errors import StateError
from slw_data.order.dealing import Snapshot
from slw_data.plan import SequenceLengthPlan
from slw_data.sources.streams.marks import same_source

__all__ = ["VERSION", "Identity", "Position", "dump_state", "parse_state"]

VERSION = 1
_COUNTS = ("step", "batch", "rows", "tokens", "epoch")
_FINGERPRINTS = ("plan", "source", "order")
_RANKS = ("dp_rank", "dp_world_size")
KEYS = ("version", *_COUNTS, *_FINGERPRINTS, *_RANKS, "stream", "checksum")


@dataclass(frozen=True)
class Position:
    """Between two batches of one rank: ``number`` are delivered. ``snapshot`` is a stream's at the beginning of the step,
    and ``tokens`` those delivered by all ranks where padding makes the plan's count too high."""

    number: int = 0
    snapshot: Snapshot | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Identity:
    """What a state must agree with: the run it is loaded into."""

    plan: SequenceLengthPlan
    source: str
    order: str
    num_tokens: int | None  # of a store that is read by arithmetic; None: there is a snapshot
    shard: tuple[int, int] | None
    padded: bool
    num_lanes: int

    def fingerprints(self) -> dict[str, Any]:
        rank, world = self.shard or (None, None)
        return {
            "plan": self.plan.fingerprint,
            "source": self.source,
            "order": self.order,
            "dp_rank": rank,
            "dp_world_size": world,
        }

    def counts(self, at: Position) -> dict[str, int]:
        """The counters at a position."""
        plan = self.plan
        step, batch = divmod(at.number, plan.grad_accum_steps)
        rows = batch * plan.rows(step) * plan.world_size if batch else 0
        tokens = at.tokens
        if tokens is None:
            tokens = plan.tokens_before(step) + (rows * plan.length(step) if rows else 0)
        if at.snapshot is not None:
            epoch = at.snapshot.epoch
        elif self.num_tokens is None:
            epoch = 0
        else:
            epoch = tokens // (self.num_tokens * (self.shard[1] if self.shard else 1))
        return {"step": step, "batch": batch, "rows": plan.rows_before(step) + rows, "tokens": tokens, "epoch": epoch}


def dump_state(identity: Identity, at: Position) -> dict[str, Any]:
    stream = "" if at.snapshot is None else json.dumps(at.snapshot)
    state = {"version": VERSION, **identity.counts(at), **identity.fingerprints(), "stream": stream}
    return {**state, "checksum": _checksum(state)}


def _checksum(state: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps([state[key] for key in KEYS[:-1]]).encode())


def parse_state(identity: Identity, state: Mapping[str, Any], *, strict: bool) -> Position:
    """The position that ``state`` describes; StateError, naming the field and both values, if it is not of this run."""
    if not isinstance(state, Mapping):
        raise TypeError(f"a state is a dict as state_dict() returns it, got {type(state).__name__}")
    if set(state) == {"step"} and identity.num_tokens is not None:
        return Position(_step(identity.plan, state) * identity.plan.grad_accum_steps)
    _check_keys(state)
    counts = {name: _count(state, name) for name in _COUNTS}
    _check_fingerprints(identity, state, strict)
    snapshot = _snapshot(identity, state)
    at = Position(_number(identity.plan, counts), snapshot, counts["tokens"] if identity.padded else None)
    expected = identity.counts(at)
    if identity.padded and counts["tokens"] > identity.counts(Position(at.number))["tokens"]:
        raise StateError(f"tokens must be at most what {counts['rows']} rows hold, the saved state has {counts['tokens']}")
    for name in ("tokens", "epoch"):
        if counts[name] != expected[name]:
            raise StateError(
                f"{name} must be {expected[name]} at step {counts['step']} of this run, the saved state has {counts[name]}:"
                " it is damaged, or of a run with other lengths before this step"
            )
    if not _equal(state["checksum"], _checksum(state)):
        differing = [name for name in _COUNTS if counts[name] != expected[name]]
        wrong = "".join(f"; {name} is {counts[name]}, not {expected[name]}" for name in differing)
        raise StateError(f"the state is corrupt: its checksum must be {_checksum(state)}, and is {state['checksum']!r}{wrong}")
    return at


def _check_keys(state: Mapping[str, Any]) -> None:
    version = state.get("version")
    if type(version) is not int or version != VERSION:
        raise StateError(f"version must be {VERSION}, which this slw_data reads, the saved state has {version!r}")
    missing = [key for key in KEYS if key not in state]
    unknown = [str(key) for key in state if key not in KEYS]
    if missing or unknown:
        raise StateError(
            f"a state has the keys {', '.join(KEYS)}; missing: {', '.join(missing) or 'none'},"
            f" unknown: {', '.join(unknown) or 'none'}. Save what state_dict() returns as it is"
        )


def _count(state: Mapping[str, Any], name: str) -> int:
    value = state[name]
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise StateError(f"{name} must be an int in [0, 2^63), the saved state has {value!r}")
    return value


def _equal(saved: Any, current: Any) -> bool:
    """Of plain values: an array compares, but says neither yes nor no."""
    return type(saved) is type(current) and bool(saved == current)


def _check_fingerprints(identity: Identity, state: Mapping[str, Any], strict: bool) -> None:
    current = identity.fingerprints()
    differing = [name for name in (*_FINGERPRINTS, *_RANKS) if not _equal(state[name], current[name])]
    if "source" in differing and same_source(state["source"], current["source"]):
        differing.remove("source")
    if not differing:
        return
    listed = "; ".join(f"{name}: saved {state[name]!r}, current {current[name]!r}" for name in differing)
    other_rank, hint = bool(set(differing) & set(_RANKS)), ""
    if other_rank:
        hint = " With sharded=True each rank loads its own state (in torch.distributed.checkpoint under a key of its own)."
    if strict or other_rank or not all(isinstance(state[name], str) for name in differing):
        raise StateError(
            f"the state is of another run: {listed}.{hint} Build the dataset as it was when the state was saved; or, where"
            " this run has as many rows and tokens before that step, pass strict=False to go on at the same token of it"
        )
    warnings.warn(f"going on with the state of another run, as strict=False asks: {listed}", stacklevel=4)


def _step(plan: SequenceLengthPlan, state: Mapping[str, Any]) -> int:
    step, total = _count(state, "step"), plan.total_steps
    if total is not None and step > total:
        raise StateError(f"step must be at most total_steps={total}, the saved state has {step}: give more total_steps")
    return step


def _number(plan: SequenceLengthPlan, counts: Mapping[str, int]) -> int:
    """The batch number, from rows: ``grad_accum_steps`` and ``world_size`` may have changed, the rows have not."""
    step, rows = _step(plan, counts), counts["rows"]
    within = rows - plan.rows_before(step)
    if within == 0:
        return step * plan.grad_accum_steps
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
    return step * plan.grad_accum_steps + batch


def _snapshot(identity: Identity, state: Mapping[str, Any]) -> Snapshot | None:
    text = state["stream"]
    if identity.num_tokens is not None:
        if not _equal(text, ""):
            raise StateError(f"stream must be '' for a store, the saved state has {text!r:.80}")
        return None
    try:
        values = json.loads(text)
        snapshot = Snapshot(*values)
        lanes = tuple(snapshot.lanes)
        numbers = (snapshot.epoch, snapshot.first, snapshot.next, *snapshot[5:], *lanes)
        sound = isinstance(values, list) and len(values) == len(snapshot) and all(type(n) is int for n in numbers)
        sound = sound and min(numbers[:6]) >= 0 and len(lanes) % 2 == 0
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise StateError(f"stream must be the JSON that state_dict() wrote, the saved state has {text!r:.80}")
    if len(lanes) not in (0, 2 * identity.num_lanes):
        raise StateError(f"stream has {len(lanes) // 2} lanes in the saved state, this run has num_lanes={identity.num_lanes}")
    return snapshot._replace(lanes=lanes)
