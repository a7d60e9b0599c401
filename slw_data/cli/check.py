"""``slw-data check``: read whole stores at the speed of memory and report every fault, one line each.

A file that cannot be opened as it is has that as its fault. Where a headerless file has bytes to spare at its end, the
tokens before them are read all the same.

This is the last module of the command line.
"""

from __future__ import annotations

import argparse
import os
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from slw_data.cli.digests import Digest, record_path
from slw_data.cli.faults import Fault, finders
from slw_data.cli.reading import add_source, counted, spans
from slw_data.errors import DataError
from slw_data.sources.stores import TokenStore, open_tokens
from slw_data.sources.stores.arrow import ArrowStore, open_folder
from slw_data.sources.stores.megatron import HEADER

__all__ = ["add_arguments", "run"]

ANY_COLUMN = "any column"  # open_tokens then refuses no negative ids: they are found, and counted, by reading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source(parser)
    text = "digest every token and record it beside the store, as PATH.digest; a record that is there is always compared"
    parser.add_argument("--digest", action="store_true", help=text)


def run(given: dict[str, Any]) -> int:
    paths, total, count, dtypes = given["path"], 0, 0, set()
    for path in paths:
        _refuse_unknown_dtype(path, given.get("dtype"))
    for path in paths:
        store, faults = _opened(path, given)
        if store is not None:
            faults = [*faults, *_faults(store, path, given, complete=not faults)]
            total += len(store)
            dtypes.add(str(getattr(store, "source_dtype", store.dtype)))
        for text in faults:
            print(text, flush=True)
        count += len(faults)
    if len(paths) > 1 and count == 0:
        count += _joined(paths, given)
    found = {0: "no faults", 1: "1 fault"}.get(count, f"{count} faults")
    where = paths[0] if len(paths) == 1 else f"{len(paths)} stores"
    kinds = f" ({', '.join(sorted(dtypes))})" if dtypes else ""
    print(f"{found} in {counted(total)} of {where}{kinds}")
    return 1 if count else 0


def _refuse_unknown_dtype(path: str, dtype: str | None) -> None:
    """What was not said, or said of the wrong thing, is no fault of the file."""
    stem, suffix = os.path.splitext(path)
    indexed = suffix == ".idx" or (suffix == ".bin" and os.path.exists(stem + ".idx"))
    if dtype is not None and os.path.isdir(path):
        raise ValueError(f"--dtype is of headerless files, and {path} is a folder: leave it out")
    if dtype is None and suffix != ".npy" and os.path.isfile(path) and not indexed:
        raise ValueError(f"{path} does not say what its tokens are: give --dtype, such as --dtype uint16")


def _opened(path: str, given: dict[str, Any]) -> tuple[TokenStore | None, list[str]]:
    """The store, and what is wrong with it before a token is read; None if it cannot be read at all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a dtype that looks too narrow is found by reading
            if os.path.isdir(path):
                return open_folder(os.path.abspath(path), given.get("column", "input_ids")), []
            return open_tokens(path, dtype=given.get("dtype"), column=ANY_COLUMN), []
    except (DataError, TypeError) as error:
        text = " ".join(str(error).split())
    return _without_spare_bytes(path, given.get("dtype")), [text]


def _without_spare_bytes(path: str, dtype: str | None) -> TokenStore | None:
    if dtype is None or not os.path.isfile(path):
        return None
    whole, spare = divmod(os.path.getsize(path), np.dtype(dtype).itemsize)
    return open_tokens(np.memmap(path, dtype, "r", shape=(whole,)), column=ANY_COLUMN) if spare and whole else None


def _faults(store: TokenStore, path: str, given: dict[str, Any], *, complete: bool) -> list[str]:
    """``complete``: the store is all of what lies at ``path``."""
    column, vocab_size, eos_id = given.get("column", "input_ids"), given.get("vocab_size"), given.get("eos_id")
    largest = 1 if store.dtype.kind == "b" else int(np.iinfo(store.dtype).max)
    faults = []
    if store.dtype.kind == "b" and column == "input_ids":
        faults.append(Fault(None, "dtype bool holds no token ids"))
    if vocab_size is not None and vocab_size > largest + 1:
        faults.append(Fault(None, f"{store.dtype} holds ids up to {largest}: larger ones of {vocab_size} were cut off"))
    faults.extend(_empty_documents(store, path, column))
    looking, unread = finders(store, column, vocab_size, eos_id), dict[str, int]()
    record = record_path(store, path, column)
    digest = Digest(store, record, write=given.get("digest", False))
    if complete and (digest.write or os.path.exists(record)):
        looking.append(digest)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        for start, stop in spans(len(store), what=f"check {os.path.basename(path)}"):
            try:
                block = store.read(start, stop)
            except DataError as error:
                unread.setdefault(str(error), start)
                if len(unread) > 8:
                    break
                continue
            for finder in looking:
                finder.see(start, block)
    texts = [f"{path}: {text}" if path not in text else text for text in (*unread, *(str(w.message) for w in raised))]
    faults.extend(fault for finder in looking for fault in finder.found())
    if digest.line:
        print(digest.line, flush=True)
    return texts + [f"{path}: {'' if at is None else f'token {at:,}: '}{text}" for at, text in faults]


def _empty_documents(store: TokenStore, path: str, column: str) -> Iterator[Fault]:
    """Documents without tokens, which a store leaves out."""
    if store.documents is None:
        return
    lengths = _row_lengths(path, column) if isinstance(store, ArrowStore) else _document_lengths(path)
    empty = np.flatnonzero(lengths == 0)
    if len(empty):
        yield Fault(None, f"document {empty[0]:,} is empty; empty in all: {len(empty):,} of {len(lengths):,}")


def _row_lengths(path: str, column: str) -> Any:
    import datasets
    import pyarrow.compute as pc

    rows = datasets.load_from_disk(path).data.column(column)
    return pc.list_value_length(rows).to_numpy()


def _document_lengths(path: str) -> Any:
    """The tokens of each document of a Megatron index, which has been checked."""
    stem, suffix = os.path.splitext(path)
    with open((stem if suffix in (".bin", ".idx") else path) + ".idx", "rb") as file:
        *_, sequences, documents = struct.unpack(HEADER.format, file.read(HEADER.size))
        lengths = np.fromfile(file, "<i4", sequences)
        file.seek(8 * sequences, os.SEEK_CUR)
        starts = np.fromfile(file, "<i8", documents)
    return np.diff(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[starts])


def _joined(paths: list[str], given: dict[str, Any]) -> int:
    """Files that are good on their own may still not be one store: the same file twice, two dtypes."""
    try:
        open_tokens(paths, dtype=given.get("dtype"), column=ANY_COLUMN)
    except DataError as error:
        print(" ".join(str(error).split()))
        return 1
    return 0
