"""Sources: which of the two kinds a thing is, a store (random access) or a stream (in order), and opening it.

Read next: :mod:`slw_data.dataset`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from slw_data.cached import cached
from slw_data.sources.stores import TokenStore, check_parallel, open_tokens
from slw_data.sources.stores.documents import find_documents
from slw_data.sources.stores.protocol import Offsets, is_store
from slw_data.sources.streams import DocumentStream, open_stream

__all__ = ["Stores", "open_source"]


@dataclass(frozen=True)
class Stores:
    """A store for each column, cut at the same places. ``eos_id`` ends a document, where the store does not know them."""

    columns: Mapping[str, TokenStore]
    eos_id: int | None = None

    passes: ClassVar[int | None] = None
    not_exact: ClassVar[str | None] = None
    sharded: ClassVar[tuple[int, int] | None] = None

    @property
    def num_tokens(self) -> int:
        return len(self.columns["input_ids"])

    @property
    def name(self) -> str:
        return self.columns["input_ids"].name

    @property
    def documents(self) -> Offsets | None:
        """Where documents begin, and the end, int64; None where nobody knows."""
        return self.columns["input_ids"].documents

    @cached
    def bounds(self) -> Offsets:
        """The same, or found by ``eos_id`` in one pass over all tokens. DataError where that is not given either."""
        return find_documents(self.columns["input_ids"], self.eos_id)

    @property
    def fingerprint(self) -> str:
        """That of the ids, then those of the other columns by their names: the order of columns is no part of a run."""
        others = (f"{name}: {self.columns[name].fingerprint}" for name in sorted(self.columns) if name != "input_ids")
        return "; ".join([self.columns["input_ids"].fingerprint, *others])


def open_source(
    source: Any, columns: Sequence[str], *, mode: str, vocab_size: int | None, eos_id: int | None
) -> Stores | DocumentStream:
    """``source`` with ``columns``. ValueError for a store without documents, in a mode that needs them."""
    if isinstance(source, Mapping):
        missing = [name for name in columns if name not in source]
        if missing:
            raise KeyError(f"the source has no column {missing[0]!r}, only {', '.join(map(repr, source))}")
        parts = {name: source[name] for name in columns}
    elif _is_store(source):
        parts = dict.fromkeys(columns, source)
        if len(parts) > 1 and not _has_columns(source):
            raise ValueError(
                f"a {type(source).__name__} is a single column, and columns={tuple(columns)} were asked for: pass a mapping"
                " such as {'input_ids': ..., 'loss_mask': ...}"
            )
    else:
        return open_stream(source, columns=tuple(columns))
    stores = {
        name: open_tokens(part, column=name, vocab_size=vocab_size if name == "input_ids" else None)
        for name, part in parts.items()
    }
    check_parallel(stores)
    if mode != "stream" and stores["input_ids"].documents is None and eos_id is None:
        raise ValueError(
            f"mode={mode!r} needs documents, and {stores['input_ids'].name} knows none: pass eos_id, the token that ends each"
        )
    return Stores(stores, eos_id)


def _is_store(source: Any) -> bool:
    if isinstance(source, (str, os.PathLike, np.ndarray, torch.Tensor)) or is_store(source) or _is_hf_dataset(source):
        return True
    return isinstance(source, (list, tuple)) and bool(source) and isinstance(source[0], (os.PathLike, str))


def _has_columns(source: Any) -> bool:
    return _is_hf_dataset(source) or (isinstance(source, (str, os.PathLike)) and os.path.isdir(source))


def _is_hf_dataset(source: Any) -> bool:
    datasets = sys.modules.get("datasets")  # whoever holds a Dataset has imported it
    return datasets is not None and isinstance(source, datasets.Dataset)
