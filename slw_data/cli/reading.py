"""Paths as stores, and a walk over all of their tokens, block by block, in constant memory.

Read next: :mod:`slw_data.cli.tokenizers`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from slw_data.sources.stores import TokenStore, open_tokens
from slw_data.sources.stores.arrow import ArrowStore

__all__ = ["BLOCK", "add_source", "counted", "kind", "open_paths", "spans"]

BLOCK = 2**20  # tokens read at once: few enough to stay in a processor's cache


def add_source(parser: argparse.ArgumentParser) -> None:
    """What says where the tokens are, and how to read them."""
    parser.add_argument(
        "path",
        nargs="+",
        metavar="PATH",
        help=".npy file, headerless file (with --dtype), Megatron .bin/.idx pair, or folder of Dataset.save_to_disk",
    )
    parser.add_argument("--dtype", type=_dtype, metavar="NAME", help="of headerless files, such as uint16 or '>u2'")
    parser.add_argument("--column", metavar="NAME", help="of a folder (default: input_ids)")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="ids must be below it")
    parser.add_argument("--eos-id", type=int, metavar="N", help="the id that ends a document")


def _dtype(text: str) -> str:
    try:
        known = np.dtype(text).kind in "iu"
    except (TypeError, ValueError, SyntaxError):
        known = False
    if not known:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer dtype; write one such as uint16 or '>u2'")
    return text


def open_paths(given: dict[str, Any]) -> TokenStore:
    """The store that the arguments of :func:`add_source` name."""
    paths = given["path"]
    return open_tokens(
        paths[0] if len(paths) == 1 else paths,
        dtype=given.get("dtype"),
        column=given.get("column", "input_ids"),
        vocab_size=given.get("vocab_size"),
        eos_id=given.get("eos_id"),
    )


def kind(store: TokenStore, paths: Sequence[str]) -> str:
    """What a store is, in words."""
    many = f"{len(paths)} " if len(paths) > 1 else ""
    plural = "s" if many else ""
    if isinstance(store, ArrowStore):
        return "Hugging Face Dataset"
    if all(path.endswith(".npy") for path in paths):
        return f"{many}.npy file{plural}"
    if store.documents is not None:
        return f"{many}Megatron .bin/.idx pair{plural}"
    return f"{many}headerless file{plural}"


def counted(tokens: int) -> str:
    """``1 token``, ``2,000 tokens``."""
    return f"{tokens:,} token{'s' if tokens != 1 else ''}"


def spans(total: int, *, what: str, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` of each block of ``total`` tokens, with a progress bar where somebody can see it."""
    bar = _bar(total, what)
    try:
        for start in range(0, total, size):
            stop = min(start + size, total)
            yield start, stop
            if bar is not None:
                bar.update(stop - start)
    finally:
        if bar is not None:
            bar.close()


def _bar(total: int, what: str) -> Any:
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=what, unit=" tokens", unit_scale=True, leave=False, mininterval=0.5)
