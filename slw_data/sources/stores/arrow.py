"""Hugging Face datasets as stores: the Arrow buffers themselves, never rows, never Python lists.

A column of token lists is, chunk by chunk, one flat array of values and one array of offsets. Without row indices
a chunk is one piece; after ``select`` or ``shuffle`` every row is, and rows that follow each other are joined again::

    chunk 0  values  [ a a a b b | c ]  offsets [0 3 5 6]        rows  0 = aaa  1 = bb  2 = c
    chunk 1  values  [ d d d ]          offsets [0 3]                  3 = ddd

Offsets are used as they are, so that a slice shows its own rows only. Empty rows are skipped.
Read :mod:`slw_data.sources.stores.opening` next, which decides what a source is.
"""

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slw_data.errors import DataError
from slw_data.sources.paths import arrow_column, head, schema_names
from slw_data.sources.stores.pieces import PiecedStore, Pieces
from slw_data.sources.stores.protocol import Offsets, Tokens

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = ["ArrowStore", "open_folder", "refuse_transform"]

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Chunk(NamedTuple):
    """One chunk of a column: row i is ``values[offsets[i] : offsets[i + 1]]``; ``valid`` is None without nulls."""

    values: Tokens
    offsets: Tokens
    valid: Tokens | None


class ArrowStore(PiecedStore):
    """The tokens of one column of a Hugging Face ``Dataset``: lists of integers, or one integer per row.

    Pickled as the dataset is: by path if it was loaded from disk, else by value.
    """

    def __init__(self, dataset: "datasets.Dataset", column: str, name: str | None = None) -> None:
        self._dataset, self._column = dataset, column
        where = name or "Dataset"
        refuse_transform(dataset, column, where)
        arrays, listed = _column_chunks(dataset, column, where)
        name = f"{where} column {column!r}"
        rows = _row_indices(dataset)
        _refuse_null_rows(arrays, rows, name)
        chunks = [_list_chunk(array) if listed else _flat_chunk(array, rows) for array in arrays]
        _refuse_null_tokens(chunks, rows, name)
        self._chunks, self._rows = chunks, rows
        values = [chunk.values for chunk in chunks]
        dtype = values[0].dtype if values else np.dtype(np.int64)
        documents = self._row_documents if listed else None
        super().__init__(values, _pieces(chunks, rows), dtype, name, documents=documents)

    def __reduce__(self) -> tuple[Any, ...]:
        name = self.name.removesuffix(f" column {self._column!r}")
        return ArrowStore, (self._dataset, self._column, name)

    def _row_documents(self) -> Offsets:
        lengths = _of_rows([np.diff(chunk.offsets) for chunk in self._chunks], self._rows)
        return np.concatenate([[0], np.cumsum(lengths[lengths > 0])]).astype(np.int64)


def open_folder(path: str, column: str) -> ArrowStore:
    """The tokens of one column of a dataset that ``Dataset.save_to_disk`` wrote to the folder ``path``."""
    import datasets
    import pyarrow as pa

    if os.path.exists(os.path.join(path, "dataset_dict.json")):
        splits = sorted(entry for entry in os.listdir(path) if os.path.isdir(os.path.join(path, entry)))
        raise DataError(f"{path} holds a DatasetDict with splits {splits}, expected one Dataset: open one of them")
    if not os.path.exists(os.path.join(path, "state.json")):
        raise IsADirectoryError(errno.EISDIR, "Is a folder that Dataset.save_to_disk did not write", path)
    _check_shards(path)
    try:
        return ArrowStore(datasets.load_from_disk(path), column, path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read ({error}): write it again with save_to_disk") from error


def refuse_transform(dataset: "datasets.Dataset", column: str, where: str = "the Dataset") -> None:
    """Refuse a dataset whose rows are not what lies in its table: it makes them anew whenever one is asked for."""
    shown = dataset.format
    if shown["type"] == "custom":
        transform = shown["format_kwargs"].get("transform")
        called = getattr(transform, "__qualname__", type(transform).__qualname__)
        raise TypeError(
            f"the Dataset has a transform, {called}, which makes its rows when they are asked for, and a table is read here "
            "without it: write dataset.with_format(None).map(...) to have it applied once, or with_format(None) to go without"
        )
    first = head(schema_names(dataset.data.schema), column, where)
    if first not in shown["columns"] and not shown["output_all_columns"]:
        raise KeyError(f"the format of the Dataset hides column {first!r}, it shows {shown['columns']}: with_format(None)")


def _check_shards(path: str) -> None:
    """A shard that was cut is refused by name. Cut between two batches, Arrow would take it for a shorter one."""
    for entry in sorted(entry for entry in os.listdir(path) if entry.endswith(".arrow")):
        shard = os.path.join(path, entry)
        with open(shard, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(END_OF_STREAM)))
            if file.read() != END_OF_STREAM:
                raise DataError(f"{shard} is truncated: its {size} bytes do not end with Arrow's end mark")


def _column_chunks(dataset: "datasets.Dataset", column: str, where: str) -> "tuple[list[pa.Array], bool]":
    """The non-empty chunks of a column, and whether they are lists."""
    import pyarrow as pa

    chunks = arrow_column(dataset.data.table, column, where)
    kind = chunks.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    item = kind.value_type if listed else kind
    if not (pa.types.is_integer(item) or pa.types.is_boolean(item)):
        raise TypeError(f"{where} column {column!r} has type {kind}, expected lists of integers, one list of token ids per row")
    return [chunk for chunk in chunks.chunks if len(chunk)], listed


def _row_indices(dataset: "datasets.Dataset") -> Offsets | None:
    """Which rows of the table make up the dataset; None for all of them in order."""
    indices = getattr(dataset, "_indices", None)
    return None if indices is None else indices.column(0).to_numpy().astype(np.int64)


def _list_chunk(array: "pa.Array") -> Chunk:
    """Views of an array of lists. Its slice is kept in the offsets: ``values`` of a slice are those of the whole."""
    import pyarrow as pa

    values = array.values
    if pa.types.is_fixed_size_list(array.type):
        offsets = (array.offset + np.arange(len(array) + 1)) * array.type.list_size
    else:
        offsets = array.offsets.to_numpy()
    has_nulls = values.slice(int(offsets[0]), int(offsets[-1] - offsets[0])).null_count > 0
    return Chunk(_flat(values), offsets, values.is_valid().to_numpy(zero_copy_only=False) if has_nulls else None)


def _flat_chunk(array: "pa.Array", rows: Offsets | None) -> Chunk:
    """An array of integers: one token per row, or one long row where nobody asks for single ones."""
    return Chunk(_flat(array), np.arange(len(array) + 1) if rows is not None else np.array([0, len(array)]), None)


def _flat(values: "pa.Array") -> Tokens:
    """The values as they lie in memory, nulls or not. Booleans are bits there, so those are copied."""
    import pyarrow as pa

    if pa.types.is_boolean(values.type):
        return np.asarray(values.fill_null(False).to_numpy(zero_copy_only=False))
    dtype = np.dtype(values.type.to_pandas_dtype())
    data = values.buffers()[1]
    if data is None or len(values) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(data, dtype, len(values), values.offset * dtype.itemsize)


def _pieces(chunks: list[Chunk], rows: Offsets | None) -> Pieces:
    if rows is None:
        spans = np.array([(c.offsets[0], c.offsets[-1] - c.offsets[0]) for c in chunks], np.int64).reshape(-1, 2)
        return Pieces(np.arange(len(chunks)), spans[:, 0], spans[:, 1])
    source = np.repeat(np.arange(len(chunks)), [len(chunk.offsets) - 1 for chunk in chunks])[rows]
    begin = _of_rows([chunk.offsets[:-1] for chunk in chunks], rows)
    return Pieces(source, begin, _of_rows([np.diff(chunk.offsets) for chunk in chunks], rows))


def _of_rows(fields: list[Tokens], rows: Offsets | None) -> Offsets:
    """A field of all rows of the table, as int64, for the rows of the dataset."""
    field = np.concatenate([np.empty(0, np.int64), *fields])
    return field if rows is None else field[rows]


def _refuse_null_rows(arrays: "list[pa.Array]", rows: Offsets | None, name: str) -> None:
    if any(array.null_count for array in arrays):
        null = _of_rows([array.is_null().to_numpy(zero_copy_only=False) for array in arrays], rows)
        if null.any():
            raise DataError(f"{name}: row {null.argmax()} is None, expected token ids: filter such rows out")


def _refuse_null_tokens(chunks: list[Chunk], rows: Offsets | None, name: str) -> None:
    if all(chunk.valid is None for chunk in chunks):
        return
    counts = _of_rows([np.diff(_nulls_before(chunk)[chunk.offsets]) for chunk in chunks], rows)
    if counts.any():
        row = int((counts > 0).argmax())
        piece = _pieces(chunks, np.array([row]) if rows is None else rows[row : row + 1])
        source, begin, length = (int(field[0]) for field in piece)
        valid = chunks[source].valid
        position = 0 if valid is None else int((~valid[begin : begin + length]).argmax())
        raise DataError(f"{name}: row {row} holds None at position {position}, expected token ids: filter it out")


def _nulls_before(chunk: Chunk) -> Offsets:
    """How many nulls the values hold before each position, one more than there are values."""
    null = np.zeros(len(chunk.values), bool) if chunk.valid is None else ~chunk.valid
    return np.concatenate([[0], np.cumsum(null)]).astype(np.int64)
