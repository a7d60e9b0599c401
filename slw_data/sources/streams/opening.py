"""``open_stream``: which kind of stream a source is, and every refusal that can be made before reading.

Hugging Face types are recognised only where ``datasets`` is already imported, so that looking never imports it.
The parts are in reading order: ``protocol``, ``documents``, ``marks``, ``blocks``, ``items``, ``iterables``, ``huggingface``.
"""

import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from slw_data.arguments import items
from slw_data.errors import DataError, warn
from slw_data.sources.paths import head, schema_names
from slw_data.sources.stores.arrow import refuse_transform
from slw_data.sources.streams.documents import TokenDocuments
from slw_data.sources.streams.huggingface import HuggingFaceStream
from slw_data.sources.streams.items import SequenceStream
from slw_data.sources.streams.iterables import IterableStream, LoaderStream, OneShotStream, StatefulStream
from slw_data.sources.streams.marks import name_of
from slw_data.sources.streams.protocol import DocumentStream
from slw_data.sources.streams.text import TextDocuments


def open_stream(
    x: Any,
    *,
    column: str = "input_ids",
    columns: Sequence[str] | None = None,
    text_column: str | None = None,
    tokenizer: Any = None,
    append_eos: int | None = None,
) -> DocumentStream:
    """A stream of the documents in ``x``.

    ``x`` is a Hugging Face ``IterableDataset`` (a ``Dataset`` too, for text), a list or a map-style torch ``Dataset``
    of documents, a torch ``DataLoader`` with ``batch_size=None``, any other iterable, a callable that returns a fresh
    iterator, or a one-shot iterator (one pass, one process). A stream is returned as it is. A document is a list, an
    array or a tensor of token ids, or a mapping with such a value for each of ``columns`` (default: ``column`` alone).
    ``column`` is where the ids are, as input_ids if that is one of ``columns`` and ``column`` is not. A name with dots, as
    ``"meta.ids"``, is a field of a struct or of a mapping, unless a column has that very name.

    With ``tokenizer`` (a callable, or an object with ``encode``) documents are str, or mappings with ``text_column``
    (default "text"). ``append_eos`` ends each non-empty document with that id unless it already does.

    Raises TypeError for what is not a source of documents, KeyError for a missing column; documents are checked when
    they are read.

    >>> [block.read("input_ids", 0, 3).tolist() for block in open_stream([[1, 2], [], [3]]).blocks(0)]
    [[1, 2, 3]]
    """
    if not isinstance(column, str):
        raise TypeError(f"column must be the name of a column, got {column!r:.200}")
    wanted = _column_names(column, columns)
    if isinstance(x, DocumentStream):
        named = None if column == "input_ids" else column
        return _as_it_is(x, wanted if columns is not None else (), (named, text_column, tokenizer, append_eos))
    documents = _documents(*_ids_column(column, wanted), wanted, text_column, tokenizer)
    _check_append_eos(append_eos, wanted)
    if type(x).__module__.partition(".")[0] == "pandas" and getattr(x, "ndim", 0) == 1:
        x = list(x)  # of a Series: its index is by label
    _refuse(x)
    if _is_hugging_face(x, "IterableDataset"):
        return HuggingFaceStream(x, documents, append_eos)
    if _is_hugging_face(x, "Dataset"):
        x = _text_rows(x, documents)
    return _open_items(x, documents, append_eos)


def _open_items(x: Any, documents: TokenDocuments, append_eos: int | None) -> DocumentStream:
    name = name_of(x)
    if isinstance(x, DataLoader):
        _check_loader(x, name)
        return LoaderStream(x, documents, append_eos, name, sharded=_loader_split(x))
    if hasattr(x, "__len__") and hasattr(x, "__getitem__") and not isinstance(x, IterableDataset):
        if isinstance(x, list | tuple) and x:
            documents.pick(x[0], 0)
        return SequenceStream(x, documents, append_eos, f"the {name}")
    if hasattr(x, "state_dict") and hasattr(x, "load_state_dict") and _gives_its_state(x, name):
        return StatefulStream(x, documents, append_eos, name)
    if isinstance(x, Iterator) and iter(x) is x:
        return OneShotStream(x, documents, append_eos, name)
    if hasattr(x, "__iter__") or callable(x):
        return IterableStream(x, documents, append_eos, name)
    raise TypeError(
        f"a {name} is not a source of documents: pass a Hugging Face IterableDataset, a list, an iterable, a map-style "
        "Dataset, a DataLoader, or a callable that returns a fresh iterator (tokens without documents: open_tokens)"
    )


def _column_names(column: str, columns: Sequence[str] | None) -> tuple[str, ...]:
    what = "a sequence of names, such as ('input_ids', 'loss_mask')"
    wanted = tuple(items("columns", (column,) if columns is None else columns, what))
    if not all(isinstance(name, str) for name in wanted):
        raise TypeError(f"columns must be {what}, got {wanted!r:.200}")
    if not wanted or len(set(wanted)) != len(wanted):
        raise DataError(f"columns holds at least one name and none twice, but is {wanted}")
    return wanted


def _ids_column(column: str, wanted: tuple[str, ...]) -> tuple[str, str]:
    """The column of token ids, and the path to them: the column that is named, else ``input_ids``, else the only one."""
    if column in wanted:
        return column, column
    if "input_ids" in wanted:
        return "input_ids", column
    if len(wanted) == 1 and column == "input_ids":
        return wanted[0], wanted[0]
    raise DataError(
        f"one of the columns {wanted} holds the token ids, which are checked, and column={column!r} is none of them: "
        f"write column={wanted[0]!r}, or whichever it is, or columns=('input_ids', ...) for the ids of {column!r} as input_ids"
    )


def _as_it_is(x: DocumentStream, columns: Sequence[str], others: tuple[Any, ...]) -> DocumentStream:
    if any(option is not None for option in others):
        raise TypeError(f"{x.name} is a stream already: give column, tokenizer, text_column and append_eos where it is opened")
    for name in columns:
        if name not in x.columns:
            raise KeyError(f"{x.name} has no column {name!r}; it has {sorted(x.columns)}")
    return x


def _documents(ids: str, path: str, wanted: tuple[str, ...], text_column: str | None, tokenizer: Any) -> TokenDocuments:
    if not isinstance(text_column, str | None):
        raise TypeError(f"text_column must be the name of a column, got {text_column!r:.200}")
    if tokenizer is None:
        if text_column is not None:
            raise TypeError(f"text_column={text_column!r} says that documents are text, which needs tokenizer=")
        return TokenDocuments(wanted, ids, path)
    if isinstance(tokenizer, str):
        raise TypeError(f"tokenizer must be an object, such as AutoTokenizer.from_pretrained({tokenizer[:80]!r}), got a str")
    if isinstance(tokenizer, type):
        raise TypeError(f"tokenizer must be an object, got the class {tokenizer.__name__}: make one of it first")
    if not callable(tokenizer) and not hasattr(tokenizer, "encode"):
        raise TypeError(f"a tokenizer is callable or has encode, but a {type(tokenizer).__name__} is neither")
    return TextDocuments(wanted, ids, path, tokenizer, "text" if text_column is None else text_column)


def _check_append_eos(append_eos: int | None, wanted: tuple[str, ...]) -> None:
    if append_eos is None:
        return
    if isinstance(append_eos, bool) or not isinstance(append_eos, int):
        raise TypeError(f"append_eos is a token id, an int, not {append_eos!r}")
    if not 0 <= append_eos < 2**63:
        raise DataError(f"append_eos is a token id, from 0 to 2**63 - 1, not {append_eos}")
    if len(wanted) > 1:
        raise DataError(
            f"append_eos adds a token to input_ids, but nobody can say what the other columns {wanted} hold there: "
            "end the documents where the columns are made"
        )


def _refuse(x: Any) -> None:
    kind = type(x).__name__
    if isinstance(x, str | bytes | os.PathLike):
        raise TypeError(
            f"{x!r} is a path or a text, not a source of documents: open_tokens reads files of token ids; "
            "for text, pass an iterable of str or of rows with text_column, and tokenizer="
        )
    if isinstance(x, np.ndarray | torch.Tensor):
        raise TypeError(f"a {kind} is a store: use open_tokens, or list(x) for one document per row")
    if hasattr(x, "iloc"):
        raise TypeError(
            f"a {kind} has columns, not documents, in its order: pass x.to_dict('records'), or list(x['input_ids']) for one"
        )
    if isinstance(x, Mapping):
        raise TypeError(f"a {kind} is not a sequence of documents: pass one of its values {sorted(map(str, x))[:8]}")
    if isinstance(x, AbstractSet):
        raise TypeError(f"a {kind} has no order of its own, and every process must see one order: pass a list")
    if isinstance(x, list | tuple) and x and isinstance(x[0], int | np.integer):
        raise TypeError(
            f"a flat {kind} of ints is not a {kind} of documents: pass numpy.array(x) for one sequence of token ids, "
            "or [x] for a single document"
        )


def _is_hugging_face(x: Any, kind: str) -> bool:
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(x, getattr(datasets, kind, ()))


def _text_rows(x: Any, documents: TokenDocuments) -> Any:
    if not isinstance(documents, TextDocuments):
        raise TypeError("a Hugging Face Dataset of token ids is a store: use open_tokens; for text, pass tokenizer=")
    column = head(schema_names(x.features.arrow_schema), documents.text_column, "the Dataset")
    refuse_transform(x, documents.text_column)
    return x.select_columns([column]).with_format(None)


def _check_loader(loader: Any, name: str) -> None:
    if loader.batch_size is not None or loader.batch_sampler is not None:
        raise TypeError(
            f"{name} has batch_size={loader.batch_size}, so its items are batches; documents come one by one: "
            "pass DataLoader(..., batch_size=None)"
        )
    if isinstance(loader.sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
        raise TypeError(
            f"{name} draws a new order in each process ({type(loader.sampler).__name__}), and every rank must see one "
            "order: use shuffle=False and shuffle the dataset with a seed"
        )


def _loader_split(loader: Any) -> tuple[int, int] | None:
    if isinstance(loader.sampler, torch.utils.data.DistributedSampler):
        return loader.sampler.rank, loader.sampler.num_replicas
    return None


def _gives_its_state(x: Any, name: str) -> bool:
    """Whether ``state_dict()`` can be called so, without arguments that only the source's own loader knows."""
    try:
        parameters = inspect.signature(x.state_dict).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return True
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]
    if needed:
        warn(
            f"the state_dict of {name} takes arguments ({', '.join(needed)}) that only its own loader knows, so it is not "
            "used. Items are counted and skipped on resuming instead, which is slow",
        )
    return not needed
