"""``open_tokens``: whatever tokens lie in, as a store.

==========================================  ==========================================================
``x``                                       becomes
==========================================  ==========================================================
a store                                     itself
a path that ends in ``.npy``                :mod:`slw_data.sources.stores.npy`
an ``.idx``, its ``.bin``, their prefix     :mod:`slw_data.sources.stores.megatron`
any other file, with ``dtype``              nothing but tokens (:mod:`slw_data.sources.stores.files`)
a folder                                    a saved Hugging Face dataset (:mod:`slw_data.sources.stores.arrow`)
a list of paths to files                    those files, one after the other, in the order given
a 1-D array or tensor                       itself, not copied (:mod:`slw_data.sources.stores.arrays`)
a Hugging Face ``Dataset``                  one column of it (:mod:`slw_data.sources.stores.arrow`)
==========================================  ==========================================================

Read :mod:`slw_data.order.lanes` next: which tokens of a store make which row.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from slw_data.errors import DataError
from slw_data.sources.stores.arrays import open_array, open_tensor
from slw_data.sources.stores.arrow import ArrowStore, open_folder
from slw_data.sources.stores.checks import check_dtype, check_ends, token_id, warn_if_too_narrow
from slw_data.sources.stores.files import FileSources, TokenFile, raw_file
from slw_data.sources.stores.fingerprints import PLACES, dtype_text, mark
from slw_data.sources.stores.megatron import megatron_documents, megatron_file
from slw_data.sources.stores.npy import npy_file
from slw_data.sources.stores.pieces import PiecedStore, whole
from slw_data.sources.stores.protocol import Offsets, TokenStore, is_store

__all__ = ["open_tokens"]

MANY_FILES = 64  # from here on fewer samples of each are taken for the fingerprint


class Part(NamedTuple):
    """One file, the index that knows its documents if there is one, and whether its dtype is the caller's word only."""

    file: TokenFile
    idx: str | None = None
    headerless: bool = False


def open_tokens(
    x: Any,
    *,
    dtype: npt.DTypeLike | None = None,
    column: str = "input_ids",
    vocab_size: int | None = None,
    eos_id: int | None = None,
) -> TokenStore:
    """Open ``x``, one of the kinds in the module's table, as a :class:`~slw_data.sources.stores.TokenStore`.

    ``dtype``: of headerless files, required there (``">u2"`` for a high byte first); elsewhere it must be the source's
    own. With it, a ``.bin`` beside an ``.idx`` is read as headerless.
    ``column``: of a Hugging Face dataset, or a field of a struct as ``"meta.ids"``. Only columns other than
    ``"input_ids"`` may be bool or negative.
    ``vocab_size``: if given, ids at both ends must be below it. ``eos_id``: if given, the dtype must hold it.

    Raises TypeError for a wrong kind of source or of tokens, DataError for wrong content, KeyError for a missing
    column, and the OSError of the system for a path that cannot be read.

    >>> store = open_tokens(np.arange(10, dtype=np.uint16))
    >>> len(store), store.read(2, 5)
    (10, array([2, 3, 4], dtype=uint16))
    """
    vocab_size = None if vocab_size is None else token_id(vocab_size, "vocab_size", 1)
    eos_id = None if eos_id is None else token_id(eos_id, "eos_id", 0)
    if not isinstance(column, str):
        raise TypeError(f"column must be the name of a column, got {column!r:.200}")
    wanted = None if dtype is None else _parse_dtype(dtype)
    parts = _find_parts(x, wanted)
    store = _join(parts) if parts else _open_object(x, column)
    if wanted is not None and wanted.newbyteorder("=") != store.dtype:
        raise DataError(f"{store.name} says that it holds {store.dtype}, not dtype={wanted.name!r}: leave dtype out")
    check_dtype(store, column, vocab_size, eos_id)
    check_ends(store, column, vocab_size)
    if vocab_size is None and parts and parts[0].headerless:
        warn_if_too_narrow(store)
    return store


def _find_parts(x: Any, dtype: np.dtype[Any] | None) -> list[Part]:
    """The files that ``x`` names; none if it is something else than paths to files."""
    if isinstance(x, (str, os.PathLike)):
        path = _absolute(x)
        return [] if os.path.isdir(path) else [_find(path, dtype, PLACES)]
    if not isinstance(x, (list, tuple)) or is_store(x):
        return []
    if not x:
        raise DataError("the list of paths is empty, expected at least one path")
    for number, entry in enumerate(x):
        if not isinstance(entry, (str, os.PathLike)):
            raise TypeError(
                f"item {number} of the list is {type(entry).__name__}, expected a path: a list of token ids is opened "
                "with open_tokens(numpy.array(x))"
            )
    places = PLACES if len(x) < MANY_FILES else 2
    return [_find(_absolute(entry), dtype, places) for entry in x]


def _find(path: str, dtype: np.dtype[Any] | None, places: int) -> Part:
    """What kind of file ``path`` is, by its name and by its neighbours."""
    stem, suffix = os.path.splitext(path)
    if suffix == ".npy":
        return Part(npy_file(path, dtype, places))
    if suffix == ".idx":
        return Part(megatron_file(stem, places), path)
    if suffix == ".bin" and dtype is None and os.path.exists(stem + ".idx"):
        return Part(megatron_file(stem, places), stem + ".idx")
    if not os.path.lexists(path) and os.path.exists(path + ".idx"):
        return Part(megatron_file(path, places), path + ".idx")
    os.stat(path)  # a path that is not there matters more than a dtype that is not given
    if dtype is None:
        raise DataError(
            f"{path} does not say what its tokens are: if it holds nothing but tokens, write the dtype they were "
            f"written with, such as dtype='uint16'; a Megatron file needs its index beside it, {stem + '.idx'}"
        )
    return Part(raw_file(path, dtype, places), headerless=True)


def _join(parts: Sequence[Part]) -> PiecedStore:
    """Files one after the other. Their dtypes must be equal, and no file may occur twice."""
    files = [part.file for part in parts]
    _refuse_mixture(files)
    counts = [file.count for file in files]
    documents = None
    if all(part.idx is not None for part in parts):
        documents = partial(_joined_documents, [str(part.idx) for part in parts])
    first, last = files[0], files[-1]
    if len(files) == 1:
        name, text = first.path, first.mark
    else:
        name = f"{len(files)} files from {first.path} to {last.path}"
        label = f"{dtype_text(first.dtype)} x {sum(counts)} in {len(files)} files"
        text = mark(label, *(file.mark.encode() for file in files))
    ends = np.cumsum(counts).tolist()
    places = [(file.path, end - file.count, end) for file, end in zip(files, ends, strict=True)]
    sources = FileSources(files)
    return PiecedStore(sources, whole(*counts), first.dtype, name, mark=text, documents=documents, parts=places)


def _refuse_mixture(files: Sequence[TokenFile]) -> None:
    seen: dict[tuple[int, int], str] = {}
    for file in files:
        if file.inode in seen:
            raise DataError(f"{file.path} is the same file as {seen[file.inode]}: its tokens would be read twice")
        seen[file.inode] = file.path
        if file.dtype != files[0].dtype:
            raise DataError(
                f"{file.path} holds {dtype_text(file.dtype)}, but {files[0].path} holds {dtype_text(files[0].dtype)}: "
                "files of one list must have one dtype"
            )


def _joined_documents(indexes: Sequence[str]) -> Offsets:
    joined = [np.zeros(1, np.int64)]
    for path in indexes:
        joined.append(megatron_documents(path)[1:] + joined[-1][-1])
    return np.concatenate(joined)


def _open_object(x: Any, column: str) -> TokenStore:
    if is_store(x):
        if len(x) == 0:
            raise DataError(f"{x.name} holds no tokens (0 found, at least 1 expected): leave it out")
        return x
    if isinstance(x, (str, os.PathLike)):
        return open_folder(_absolute(x), column)
    if isinstance(x, np.ndarray):
        return open_array(x)
    if isinstance(x, torch.Tensor):
        return open_tensor(x)
    datasets = sys.modules.get("datasets")  # whoever holds a Dataset has imported it
    if datasets is not None and isinstance(x, datasets.Dataset):
        return ArrowStore(x, column)
    which = f" with keys {sorted(map(str, x))}: open one of its values" if isinstance(x, dict) else ""
    raise TypeError(
        f"no tokens can be read at any position of a {type(x).__name__}{which}; expected a path, a list of paths, "
        "a 1-D NumPy array or CPU tensor of integers, a Hugging Face Dataset, or an object with read, gather and len"
    )


def _parse_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        parsed = np.dtype(dtype)
    except (TypeError, ValueError):
        raise TypeError(f"dtype {dtype!r:.200} is unknown to NumPy, expected one such as 'uint16' or '>u2'") from None
    if parsed.kind not in "iub":
        raise TypeError(f"dtype {parsed} holds no token ids, expected an integer dtype such as 'uint16'")
    return parsed


def _absolute(path: "str | os.PathLike[str]") -> str:
    """An absolute path, because the working directory may change before a file is opened again."""
    text = os.fsdecode(path)
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError
    except ValueError:
        raise DataError(f"{text!r:.200} is no path: a path holds no null and no lone surrogate") from None
    return os.path.abspath(text)
