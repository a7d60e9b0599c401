"""What ``check`` looks for in the tokens of a store, one class for each kind of fault.

Each sees the store block by block and keeps a few numbers; none keeps tokens, so memory stays constant. ``found()``
gives ``(position, text)`` of each fault at the end; the position is None where a fault has no single place.

Read next: :mod:`slw_data.cli.digests`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from slw_data.sources.stores import TokenStore

__all__ = ["PIECE", "Fault", "Finder", "finders"]

PIECE = 4096  # so many equal tokens in a row are no text
ENOUGH = 1024  # tokens, before anything is said of their distribution
SAMPLE = 2**16  # tokens of each block that the distribution is taken from

Tokens = npt.NDArray[Any]


class Fault(NamedTuple):
    """``position``: the token where it is; None: the whole store."""

    position: int | None
    text: str


class Finder(Protocol):
    """One kind of fault."""

    def see(self, start: int, block: Tokens) -> None:
        """Look at the tokens from ``start`` on: blocks come in order, and without gaps where the store can be read."""

    def found(self) -> Iterator[Fault]:
        """The faults in all that was seen."""


def finders(store: TokenStore, column: str, vocab_size: int | None, eos_id: int | None) -> list[Finder]:
    """All that can be looked for in ``store``."""
    dtype: np.dtype[Any] = getattr(store, "source_dtype", store.dtype)
    lowest = 0 if column == "input_ids" or vocab_size is not None else None
    kinds: list[Finder] = [OutOfRange(dtype, lowest, vocab_size)]
    if column == "input_ids":  # a mask may well be the same for long, and mostly 0
        kinds += [Constant(), OtherDtype(dtype, vocab_size)]
    if eos_id is not None:
        kinds.append(Ends(eos_id) if store.documents is None else IndexedEnds(eos_id, store.documents))
    return kinds


class OutOfRange:
    """Ids below 0 or not below the vocabulary's size; with the byte order in which all of them would fit."""

    def __init__(self, dtype: np.dtype[Any], lowest: int | None, limit: int | None) -> None:
        self.dtype, self.lowest, self.limit = dtype, lowest, limit
        self.first: tuple[int, int] | None = None
        self.count = self.seen = 0
        self.swapped_fit = dtype.itemsize > 1

    def see(self, start: int, block: Tokens) -> None:
        self.seen += len(block)
        below = self.lowest is not None and block.dtype.kind == "i" and int(block.min()) < self.lowest
        above = self.limit is not None and int(block.max()) >= self.limit
        if not (below or above):
            return
        bad = np.zeros(len(block), bool)
        if below:
            bad |= block < self.lowest
        if above:
            bad |= block >= self.limit
        if self.first is None:
            at = int(bad.argmax())
            self.first = start + at, int(block[at])
        self.count += int(bad.sum())
        swapped = block.byteswap()
        fit = self.limit is not None and int(swapped.max()) < self.limit and int(swapped.min()) >= 0
        self.swapped_fit = self.swapped_fit and fit

    def found(self) -> Iterator[Fault]:
        if self.first is None:
            return
        position, token = self.first
        expected = "0 or more" if self.limit is None else f"0 to {self.limit - 1} (--vocab-size {self.limit})"
        hint = ""
        if self.swapped_fit:
            hint = f"; in the other byte order all would fit: --dtype '{self.dtype.newbyteorder().str}'"
        yield Fault(position, f"{token}, expected {expected}; out of range in all: {self.count:,} of {self.seen:,}{hint}")


class Constant:
    """The same token over and over: a store that was never filled, or a part of one."""

    def __init__(self) -> None:
        self.only: int | None = None
        self.varies = False
        self.seen = self.count = 0
        self.first: tuple[int, int] | None = None

    def see(self, start: int, block: Tokens) -> None:
        self.seen += len(block)
        if self.only is None:
            self.only = int(block[0])
        whole = len(block) // PIECE * PIECE
        pieces = block[:whole].reshape(-1, PIECE)
        constant = pieces.min(axis=1) == pieces.max(axis=1)
        self.count += int(constant.sum()) * PIECE
        if constant.any() and self.first is None:
            at = int(constant.argmax())
            self.first = start + at * PIECE, int(pieces[at, 0])
        if not self.varies:
            self.varies = not bool((block == self.only).all())

    def found(self) -> Iterator[Fault]:
        if not self.varies and self.seen > 1:
            yield Fault(None, f"every one of the {self.seen:,} tokens is {self.only}")
        elif self.first is not None:
            position, token = self.first
            yield Fault(
                position,
                f"{PIECE:,} or more tokens in a row are {token}, as padding is, or a part that was never written; in such"
                f" runs in all: {self.count:,} of {self.seen:,}",
            )


class OtherDtype:
    """A dtype that the tokens were not written with, by what their bytes look like.

    Read too narrow, every second token (or three of four) is the upper half of one, mostly 0. Read too wide, two
    neighbours make one token, whose halves both look like ids. In the wrong byte order, the lowest byte is the one that
    is mostly 0. All of this shows in the beginning of each block, so that is what is looked at.
    """

    def __init__(self, dtype: np.dtype[Any], limit: int | None) -> None:
        self.dtype, self.size, self.limit = dtype, dtype.itemsize, limit
        phases = 8 // self.size
        self.zeros: npt.NDArray[np.int64] = np.zeros(phases, np.int64)
        self.seen = np.zeros(phases, np.int64)
        self.bytes = np.zeros((2, 256), np.int64)  # of dtypes of one byte: how often each value is at even and odd places
        self.low_bytes = self.high_bytes = 0  # that are 0
        self.halves = {w: np.zeros(self.size // w, np.int64) for w in (2, 4) if w < self.size}  # their largest values
        self.upper = dict.fromkeys(self.halves, 0)  # uppermost halves that are not 0

    def see(self, start: int, block: Tokens) -> None:
        block = block[:SAMPLE]
        for phase in range(len(self.zeros)):
            every = block[(phase - start) % len(self.zeros) :: len(self.zeros)]
            self.seen[phase] += len(every)
            self.zeros[phase] += len(every) - int(np.count_nonzero(every))
        if self.size == 1:
            for phase in (0, 1):
                self.bytes[phase] += np.bincount(block[(phase - start) % 2 :: 2].view(np.uint8), minlength=256)
            return
        if block.dtype.byteorder == ">" or not np.little_endian:
            block = block.astype(block.dtype.newbyteorder("<"))
        parts = block.view(np.uint8).reshape(-1, self.size)
        self.low_bytes += len(block) - int(np.count_nonzero(parts[:, 0]))
        self.high_bytes += len(block) - int(np.count_nonzero(parts[:, -1]))
        if int(block.max()) >= 2**16:
            for width, largest in self.halves.items():
                halves = block.view(f"<u{width}").reshape(-1, self.size // width)
                np.maximum(largest, halves.max(axis=0).astype(np.int64), out=largest)
                self.upper[width] += int(np.count_nonzero(halves[:, -1]))

    def found(self) -> Iterator[Fault]:
        total = int(self.seen.sum())
        if total < ENOUGH:
            return
        for guess, why in (self._wider(), self._two_bytes(total), self._narrower(total), self._swapped(total)):
            if guess:
                yield Fault(None, f"{self.dtype} may be the wrong dtype: {why}; if it was written so, --dtype '{guess}'")
                return

    def _wider(self) -> tuple[str, str]:
        shares = self.zeros / np.maximum(self.seen, 1)
        for items in (width for width in (4, 2, 8) if width <= len(shares)):
            of_item = [float(shares[phase::items].mean()) for phase in range(items)]
            for order, parts in (("", of_item), (">", of_item[::-1])):
                if min(parts[items // 2 :]) > 0.3 and parts[0] < 0.1 and items * self.size in (2, 4, 8):
                    guess = {2: "uint16", 4: "uint32", 8: "int64"}[items * self.size]
                    guess = np.dtype(guess).newbyteorder(">").str if order else guess
                    shown = ", ".join(f"{share:.0%}" for share in of_item)
                    return guess, f"of each {items} neighbours, by their place, {shown} are 0"
        return "", ""

    def _two_bytes(self, total: int) -> tuple[str, str]:
        if self.size > 1:
            return "", ""
        even, odd = (counts / max(1, int(counts.sum())) for counts in self.bytes)
        apart = float(np.abs(even - odd).sum()) / 2
        if apart < 0.3:
            return "", ""
        order = "uint16" if (even > 0).sum() >= (odd > 0).sum() else ">u2"
        return order, f"tokens at even and at odd places are of two kinds ({apart:.0%} apart)"

    def _narrower(self, total: int) -> tuple[str, str]:
        if self.limit is not None and self.limit > 2**16:
            return "", ""
        for width, largest in self.halves.items():
            most, least = int(largest.max()), int(largest.min())
            if self.upper[width] > 0.3 * total and least >= 256 and most < 2 * least:
                shown = " and ".join(str(value) for value in largest)
                return f"uint{8 * width}", f"every token is made of {self.size // width} that look like ids, up to {shown}"
        return "", ""

    def _swapped(self, total: int) -> tuple[str, str]:
        low, high = self.low_bytes / total, self.high_bytes / total
        if self.size == 1 or low <= 0.05 or low <= 4 * high:
            return "", ""
        return self.dtype.newbyteorder().str, f"the lowest byte is 0 in {low:.0%} of the tokens, the highest in {high:.0%}"


class Ends:
    """The end token of a store that has no index of documents."""

    def __init__(self, eos: int) -> None:
        self.eos, self.seen, self.count = eos, 0, 0
        self.empty, self.first_empty = 0, -1
        self.first: int | None = None
        self.last, self.end = -1, -1

    def see(self, start: int, block: Tokens) -> None:
        self.seen = start + len(block)
        ends = np.flatnonzero(block == self.eos) + start
        self.first = int(block[0]) if self.first is None else self.first
        self.last = int(block[-1])
        if len(ends) == 0:
            return
        doubled = ends[np.diff(ends, prepend=self.end if self.count else -2) == 1]
        if len(doubled) and self.empty == 0:
            self.first_empty = int(doubled[0])
        self.empty += len(doubled)
        self.count += len(ends)
        self.end = int(ends[-1])

    def found(self) -> Iterator[Fault]:
        if self.count == 0:
            yield Fault(None, f"eos_id {self.eos} never occurs in {self.seen:,} tokens: documents have no ends")
            return
        begins = self.first == self.eos and self.last != self.eos  # a token that begins documents
        if self.first == self.eos and not begins and self.seen > 1:
            self.empty, self.first_empty = self.empty + 1, 0
        if self.empty:
            yield Fault(
                self.first_empty,
                f"an empty document, eos_id {self.eos} with nothing before it; empty in all: {self.empty:,} of {self.count:,}",
            )
        if self.last != self.eos and not begins:
            after = self.seen - self.end - 1
            yield Fault(self.end + 1, f"the last {after:,} tokens have no eos_id {self.eos}: the store may be cut short")


class IndexedEnds:
    """The end tokens of a store whose index knows its documents: each should be where the index says."""

    def __init__(self, eos: int, documents: npt.NDArray[np.int64]) -> None:
        self.eos, self.ends = eos, documents[1:]
        self.count = self.missing = self.seen = 0
        self.first = -1

    def see(self, start: int, block: Tokens) -> None:
        self.seen += len(block)
        self.count += int(np.count_nonzero(block == self.eos))
        low, high = np.searchsorted(self.ends, [start + 1, start + len(block) + 1])
        missing = np.flatnonzero(block[self.ends[low:high] - 1 - start] != self.eos)
        if len(missing) and self.missing == 0:
            self.first = int(low) + int(missing[0])
        self.missing += len(missing)

    def found(self) -> Iterator[Fault]:
        if self.count == 0:
            yield Fault(None, f"eos_id {self.eos} never occurs in {self.seen:,} tokens: documents have no ends")
        elif self.missing:
            yield Fault(
                int(self.ends[self.first]) - 1,
                f"document {self.first} (empty ones not counted) does not end with eos_id {self.eos}; such documents in all:"
                f" {self.missing:,} of {len(self.ends):,}",
            )
