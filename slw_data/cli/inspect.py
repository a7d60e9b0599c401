"""``slw-data inspect``: what a store holds, and with ``--step`` the exact batch of a step, without training.

Read next: :mod:`slw_data.cli.check`.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt

from slw_data.cli.arguments import KNOWN, add_plan, add_run, merged
from slw_data.cli.batch import Rows, show_step
from slw_data.cli.reading import add_source, counted, kind, open_paths, spans
from slw_data.cli.tokenizers import open_tokenizer
from slw_data.sources.stores import TokenStore

__all__ = ["add_arguments", "run"]

BAR = 40
FIRST = 1024  # documents or rows that can be shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("--tokenizer", metavar="NAME", help="bytes, a tokenizer's file or folder, or a tiktoken encoding")
    parser.add_argument("--rows", type=int, metavar="N", help="rows to show (default: 4; 0: all)")
    parser.add_argument("--ids", type=int, metavar="N", help="ids to show of a row (default: 16; 0: all)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="take the statistics from the first N tokens only")
    parser.add_argument("--step", type=int, metavar="N", help="show the batch of this step, of the plan below")
    add_plan(parser)
    add_run(parser)


def run(given: dict[str, Any]) -> int:
    count, ids, most = (_at_most(given, *limit) for limit in (("rows", 4), ("ids", 16), ("max_tokens", 0)))
    rows = Rows(count, ids, open_tokenizer(given["tokenizer"]) if "tokenizer" in given else None)
    beside = [name for name in (*KNOWN, "config") if name in given]
    if beside and "step" not in given:
        raise ValueError(f"--{beside[0].replace('_', '-')} says what a batch is: give --step, too")
    store = open_paths(given)
    if "step" in given:
        options: dict[str, Any] = {name: given[name] for name in ("vocab_size", "eos_id") if name in given}
        show_step(store, given["step"], merged(given, given.get("config")), options, rows)
    else:
        total = len(store) if most is None else min(most, len(store))
        _show_store(store, given["path"], Statistics(store, given.get("eos_id"), total), rows)
    return 0


def _at_most(given: dict[str, Any], name: str, default: int) -> int | None:
    value: int = given.get(name, default)
    if value < 0:
        raise ValueError(f"--{name.replace('_', '-')} must be 0 (all) or more, got {value}")
    return value or None


class Statistics:
    """The range of the first ``total`` ids and the lengths of the documents in them, in constant memory: lengths are
    counted by powers of two. Documents are the store's own, else what ends with ``eos``; None of them: not known."""

    def __init__(self, store: TokenStore, eos: int | None, total: int) -> None:
        self.total, self.eos = total, eos
        self.known = store.documents is not None or eos is not None
        self.bins: npt.NDArray[np.int64] = np.zeros(65, np.int64)
        self.first: list[int] = [0]  # where the first documents begin and end
        self.smallest, self.largest, self._end = 2**64, -(2**63), 0
        if store.documents is not None:
            self._add(store.documents[1 : int(np.searchsorted(store.documents, total, "right"))])
        for start, stop in spans(total, what="inspect"):
            block = store.read(start, stop)
            self.smallest, self.largest = min(self.smallest, int(block.min())), max(self.largest, int(block.max()))
            if store.documents is None and eos is not None:
                self._add(np.flatnonzero(block == eos) + start + 1)
        if self.known and self._end < total == len(store):  # the last document ends with the store
            self._add(np.array([total]))

    def _add(self, ends: npt.NDArray[np.int64]) -> None:
        """Count the documents that end at these positions, ascending."""
        if len(ends):
            lengths = np.diff(ends, prepend=self._end)
            self.bins += np.bincount(np.frexp(lengths.astype(np.float64))[1], minlength=len(self.bins))
            self.first.extend(ends[: FIRST + 1 - len(self.first)].tolist())
            self._end = int(ends[-1])


def _show_store(store: TokenStore, paths: list[str], found: Statistics, rows: Rows) -> None:
    part = f" (below: of the first {found.total:,})" if found.total < len(store) else ""
    print(f"source       {store.name}")
    print(f"kind         {kind(store, paths)}")
    print(f"dtype        {getattr(store, 'source_dtype', store.dtype)}")
    print(f"tokens       {len(store):,}{part}")
    print(f"fingerprint  {store.fingerprint}")
    print(f"ids          {found.smallest:,} to {found.largest:,}")
    if found.known:
        how = "in the index" if store.documents is not None else f"by --eos-id {found.eos}"
        print(f"documents    {int(found.bins.sum()):,}, {how}")
        _show_histogram(found.bins)
    else:
        print("documents    not known: this kind of store has no index of them, give --eos-id")
    print("begins with")
    _show_first(store, found, rows)


def _show_histogram(bins: npt.NDArray[np.int64]) -> None:
    """A line for each power of two, from the shortest document to the longest."""
    used, most = np.flatnonzero(bins).tolist(), int(bins.max())
    for bits in range(used[0], used[-1] + 1) if used else ():
        low, high = 1 << (bits - 1), (1 << bits) - 1
        span = f"{low:,} to {high:,} tokens" if low < high else "1 token"
        bar = "#" * -(-int(bins[bits]) * BAR // most)
        print(f"  {span:>32}  {int(bins[bits]):>12,}  {bar}".rstrip())


def _show_first(store: TokenStore, found: Statistics, rows: Rows) -> None:
    count, width = min(rows.count or FIRST, FIRST), rows.ids or FIRST
    if len(found.first) > 1:
        for number, (start, stop) in enumerate(list(zip(found.first, found.first[1:], strict=False))[:count]):
            ids = store.read(start, min(stop, start + width) if rows.ids else stop).tolist()
            rows.show(f"document {number}, {counted(stop - start)} from {start:,}", ids, stop - start)
        return
    for start in range(0, min(count * width, len(store)), width):
        ids = store.read(start, min(start + width, len(store))).tolist()
        rows.show(f"from {start:,}", ids, len(ids))
