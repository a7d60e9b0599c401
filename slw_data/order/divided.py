"""The order of a divided stream: every step takes as many rows from each shard.

Shard p of P gives rows ``p R / P`` to ``(p + 1) R / P`` of a step of R rows; it is an independent stream, with lanes of its
own, that begins its next pass by itself. A rank has shards that follow each other, and reads no others::

    4 shards, 2 ranks, steps of 8 rows     shard 0  0 1 |  8  9 | ...     rank 0
                                           shard 1  2 3 | 10 11 | ...
                                           shard 2  4 5 | 12 13 | ...     rank 1
                                           shard 3  6 7 | 14 15 | ...

So any number of ranks that divides P delivers the same run. A position has a cursor for each shard of this rank, and a state
an entry under its number; where other ranks go on, each takes those of its own shards.

Read next: :mod:`slw_data.batch.chunk`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from slw_data.arguments import shown
from slw_data.errors import StateError
from slw_data.order.position import Order, Position

__all__ = ["DividedOrder"]


@dataclass(frozen=True)
class DividedOrder:
    """``shards``: the orders of the shards that this rank reads, under their numbers, of ``num_shards`` in all."""

    shards: Mapping[int, Order]
    num_shards: int
    world: int

    found_by_step: ClassVar[bool] = False

    @property
    def fingerprint(self) -> str:
        """What fixes the order, in words."""
        return f"{next(iter(self.shards.values())).fingerprint}, num_shards={self.num_shards}"

    @property
    def begin(self) -> Position:
        return Position(cursor={number: order.begin.cursor for number, order in self.shards.items()})

    def of_shard(self, at: Position, number: int) -> Position:
        """Where a shard stands: at the beginning of the step."""
        return Position(at.step, 0, at.cursor[number])

    def seek(self, step: int) -> Position:
        """The beginning of ``step``: each shard is read up to there."""
        return Position(step, 0, {number: order.seek(step).cursor for number, order in self.shards.items()})

    def settle(self, at: Position) -> Position:
        cursors = {number: order.settle(self.of_shard(at, number)).cursor for number, order in self.shards.items()}
        return at._replace(cursor=cursors)

    def epoch(self, at: Position) -> int:
        """The pass of the shard that is behind the others, of those of this rank; 0 where no shard is known."""
        return 0 if at.cursor is None else min(order.epoch(self.of_shard(at, number)) for number, order in self.shards.items())

    def rest_at(self, at: Position) -> int | None:
        return None

    def leftover(self, at: Position) -> int | None:
        """None: shards begin again where they end."""

    def dump(self, at: Position) -> str:
        """Nothing: each shard has an entry of its own."""
        return ""

    def dump_shards(self, at: Position, mark: int) -> dict[str, str]:
        """What a state keeps of each shard of a settled position. ``mark`` is the checksum of the state that they belong to."""
        entries = dict[str, str]()
        for number, order in self.shards.items():
            kept = {"stream": order.dump(self.of_shard(at, number)), "world": self.world}
            entries[str(number)] = json.dumps({**kept, "checksum": _mark(mark, number, kept)})
        return entries

    def load(self, text: Any, at: Position) -> None:
        if text != "":
            raise StateError(f"stream must be '' for a divided stream, the saved state has {shown(text):.80}")

    def load_shards(self, entries: Any, at: Position, mark: int) -> dict[int, Any]:
        """The cursors that :meth:`dump_shards` wrote. StateError for an entry that is missing, damaged, or of another state."""
        if not isinstance(entries, Mapping):
            raise StateError(f"shards must be a dict with an entry for each shard, the saved state has {shown(entries):.80}")
        missing = [number for number in self.shards if str(number) not in entries]
        if missing:
            raise StateError(
                f"this rank reads shards {', '.join(map(str, self.shards))} of {self.num_shards}, and the state has none of"
                f" {', '.join(map(str, missing))}, only {', '.join(map(str, entries)) or 'none'}: load the states of all ranks"
                " that were saved together, as a list"
            )
        return {number: self._load(entries[str(number)], number, at, mark) for number in self.shards}

    def _load(self, entry: Any, number: int, at: Position, mark: int) -> Any:
        try:
            kept = json.loads(entry)
            checksum = kept.pop("checksum")
            sound = set(kept) == {"stream", "world"}
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise StateError(f"shard {number} must be the JSON that state_dict() wrote, the saved state has {shown(entry):.80}")
        if checksum != _mark(mark, number, kept):
            raise StateError(f"shard {number} is of another state than the step, or damaged: load what was saved together")
        if at.batch and kept["world"] != self.world:
            raise StateError(
                f"the state was saved within a step, {at.batch} batches into it on each of {kept['world']} ranks, and there are"
                f" {self.world} now: go on with as many, or load a state from where a step ends"
            )
        return self.shards[number].load(kept["stream"], Position(at.step))


def _mark(mark: int, number: int, kept: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps([mark, number, kept]).encode())
