"""A digest of every token of a store, kept beside it, so that a later check notices a single one that changed.

A fingerprint samples 64 KiB, because it is taken at every start. This reads everything, as ``check`` does anyway. The record
of ``train.bin`` is ``train.bin.digest``, that of a column of a saved dataset ``FOLDER.COLUMN.digest``::

    {"version": 1, "dtype": "uint16", "tokens": 200000, "documents": null, "blake2b": "9f2c..."}

``blake2b`` is of the tokens in their dtype, low byte first; ``documents``, where the store knows them, of their offsets as
int64. A record is never written over: whoever changed a store on purpose deletes it.

Read next: :mod:`slw_data.cli.check`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

from slw_data.cli.faults import Fault, Tokens
from slw_data.sources.stores import TokenStore
from slw_data.sources.stores.arrow import ArrowStore
from slw_data.sources.stores.fingerprints import dtype_text

__all__ = ["Digest", "record_path"]

VERSION = 1
FIELDS = ("dtype", "tokens", "documents", "blake2b")


def record_path(store: TokenStore, path: str, column: str) -> str:
    """Where the record of ``store``, opened by ``path``, is kept."""
    if isinstance(store, ArrowStore):
        return f"{os.path.abspath(path)}.{column}.digest"
    stem, suffix = os.path.splitext(os.path.abspath(path))
    if store.documents is not None:  # of a Megatron pair: it has three names
        return (stem if suffix in (".bin", ".idx") else stem + suffix) + ".bin.digest"
    return f"{stem}{suffix}.digest"


class Digest:
    """Sees all tokens of a store, as the finders of faults do; ``line`` says at last what came of it."""

    def __init__(self, store: TokenStore, record: str, *, write: bool) -> None:
        self.store, self.record, self.write = store, record, write
        self.seen, self.line = 0, ""
        self._hash = blake2b(digest_size=16)

    def see(self, start: int, block: Tokens) -> None:
        self.seen += len(block)
        self._hash.update(_plain(block))

    def found(self) -> Iterator[Fault]:
        """What differs from the record, which is written if there is none. Of a store that was not read whole: nothing."""
        if self.seen != len(self.store):
            return
        now = self._values()
        if not os.path.exists(self.record):
            if self.write:
                self._save(now)
                self.line = f"digest {now['blake2b']}, recorded in {self.record}"
            return
        before = _read(self.record)
        if before is None:
            yield Fault(None, f"{self.record} is no record of a digest of version {VERSION}: delete it, and give --digest")
        elif differing := [name for name in FIELDS if before.get(name) != now[name]]:
            values = "; ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in differing)
            yield Fault(None, f"not as recorded in {self.record}: {values}; delete the record if that was meant")
        elif self.write:
            self.line = f"digest {now['blake2b']}, as recorded in {self.record}"

    def _values(self) -> dict[str, Any]:
        documents, dtype = self.store.documents, getattr(self.store, "source_dtype", self.store.dtype)
        of_documents = None if documents is None else blake2b(_plain(documents), digest_size=16).hexdigest()
        values = (dtype_text(dtype), len(self.store), of_documents, self._hash.hexdigest())
        return {"version": VERSION, **dict(zip(FIELDS, values, strict=True))}

    def _save(self, values: dict[str, Any]) -> None:
        """Whole or not at all."""
        beside = f"{self.record}.{os.getpid()}"
        try:
            with open(beside, "x", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
            os.replace(beside, self.record)
        except BaseException:
            if os.path.exists(beside):
                os.remove(beside)
            raise


def _plain(values: Tokens) -> bytes:
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(values, dict) and values.get("version") == VERSION and isinstance(values.get("blake2b"), str)
    return values if sound else None
