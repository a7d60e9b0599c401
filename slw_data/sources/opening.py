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

from slw_data.arguments import given
from slw_data.cached import cached
from slw_data.sources.stores import TokenStore, check_parallel, open_tokens
from slw_data.sources.stores.checks import check_dtype, check_ends
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
    source: Any,
    columns: Sequence[str],
    mode: str,
    vocab_size: int | None,
    eos_id: int | None,
    *,
    column: str = "input_ids",
    text_column: str | None = None,
    tokenizer: Any = None,
    append_eos: int | None = None,
) -> Stores | DocumentStream:
    """``source`` with ``columns``, of which input_ids is read from its ``column``, or made from text.

    ValueError for a store without documents, in a mode that needs them; TypeError for what a kind of source does not take.
    """
    if column != "input_ids" and column in columns:
        raise ValueError(
            f"column={column!r} holds the ids, which a batch has as 'input_ids', and is one of columns={tuple(columns)} too:"
            " leave it out there"
        )
    if column != "input_ids" and tokenizer is not None:
        raise TypeError(f"column={column!r} says where token ids are, and tokenizer= makes them of text: write text_column=")
    if _is_store(source) and not (tokenizer is not None and _holds_text(source)):
        _refuse_of_streams(source, {"text_column": text_column, "tokenizer": tokenizer, "append_eos": append_eos})
        stores = Stores(_open_stores(source, columns, column, vocab_size), eos_id)
        if mode != "stream" and stores.documents is None and eos_id is None:
            raise ValueError(
                f"mode={mode!r} needs documents, and {stores.name} knows none: pass eos_id, the token that ends each"
            )
        return stores
    return open_stream(
        source,
        column=column,
        columns=tuple(columns),
        text_column=text_column,
        tokenizer=tokenizer,
        append_eos=append_eos,
    )


def _open_stores(source: Any, columns: Sequence[str], column: str, vocab_size: int | None) -> dict[str, TokenStore]:
    if isinstance(source, Mapping):
        missing = [name for name in columns if name not in source]
        if missing:
            raise KeyError(f"the source has no column {missing[0]!r}, only {', '.join(map(repr, source))}")
        parts = {name: source[name] for name in columns}
    else:
        parts = dict.fromkeys(columns, source)
        if len(parts) > 1 and not _has_columns(source):
            raise ValueError(
                f"a {type(source).__name__} is a single column, and columns={tuple(columns)} were asked for: pass a mapping"
                " such as {'input_ids': ..., 'loss_mask': ...}"
            )
    stores = {"input_ids": _open_ids(parts.pop("input_ids"), column, vocab_size)}
    stores |= {name: open_tokens(part, column=name) for name, part in parts.items()}
    check_parallel(stores)
    return stores


def _open_ids(part: Any, column: str, vocab_size: int | None) -> TokenStore:
    if column == "input_ids":
        return open_tokens(part, vocab_size=vocab_size)
    if not _has_columns(part):
        raise TypeError(f"column={column!r} is one of several in a Hugging Face Dataset, and a {type(part).__name__} has none")
    store = open_tokens(part, column=column, vocab_size=vocab_size)
    check_dtype(store, "input_ids", vocab_size, None)
    check_ends(store, "input_ids", vocab_size)
    return store


def _refuse_of_streams(source: Any, options: Mapping[str, Any]) -> None:
    """TypeError for options that only documents which are read in order have."""
    if found := given(options):
        raise TypeError(
            f"{found} is for documents that are read in order, and a {type(source).__name__} is opened as a store of token ids:"
            " leave it out, or pass text as a Hugging Face dataset or an iterable of str, with tokenizer="
        )


def _holds_text(source: Any) -> bool:
    """Whether this store may as well be a source of texts."""
    return _is_hf_dataset(source) or (isinstance(source, (list, tuple)) and not is_store(source))


def _is_store(source: Any) -> bool:
    if isinstance(source, (Mapping, str, os.PathLike, np.ndarray, torch.Tensor)) or is_store(source) or _is_hf_dataset(source):
        return True
    return isinstance(source, (list, tuple)) and bool(source) and isinstance(source[0], (os.PathLike, str))


def _has_columns(source: Any) -> bool:
    return _is_hf_dataset(source) or (isinstance(source, (str, os.PathLike)) and os.path.isdir(source))


def _is_hf_dataset(source: Any) -> bool:
    datasets = sys.modules.get("datasets")  # whoever holds a Dataset has imported it
    return datasets is not None and isinstance(source, datasets.Dataset)
