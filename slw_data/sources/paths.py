"""Paths to columns: ``text.tokens`` is the field ``tokens`` of the column ``text``, unless a column has that very name.

Names are those of a mapping, whose values may be mappings again: an item of a source, or :func:`schema_names` of Arrow.
Read :mod:`slw_data.sources.stores.arrow` next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["arrow_column", "arrow_type", "head", "schema_names", "value_at"]


def value_at(item: Mapping[Any, Any], path: str, where: str) -> Any:
    """What the path leads to; None where something on the way is None. KeyError that lists what there is."""
    value: Any = item
    for key in _keys(item, path, where):
        value = value[key]
    return value


def head(names: Mapping[Any, Any], path: str, where: str) -> str:
    """The column that the path begins with. KeyError that lists what there is."""
    return _keys(names, path, where)[0]


def schema_names(schema: pa.Schema) -> dict[str, Any]:
    """The names of an Arrow schema, and their types; those of a struct are a mapping again."""
    return {field.name: _names_of(field.type) for field in schema}


def arrow_type(schema: pa.Schema, path: str, where: str) -> pa.DataType:
    """The type of what the path leads to. KeyError that lists what there is."""
    first, *keys = _keys(schema_names(schema), path, where)
    kind = schema.field(first).type
    for key in keys:
        kind = kind.field(key).type
    return kind


def arrow_column(table: pa.Table, path: str, where: str) -> pa.ChunkedArray:
    """A column of a table, or a field of one: None where the struct around it is. KeyError that lists what there is."""
    import pyarrow.compute as compute

    first, *keys = _keys(schema_names(table.schema), path, where)
    column = table.column(first)
    return compute.struct_field(column, keys) if keys else column


def _names_of(kind: pa.DataType) -> Any:
    import pyarrow.types as types

    return schema_names([kind.field(i) for i in range(kind.num_fields)]) if types.is_struct(kind) else kind


def _keys(names: Mapping[Any, Any], path: str, where: str) -> list[str]:
    keys = _found(names, path)
    if keys is None:
        known = sorted(set(_paths(names)))
        raise KeyError(f"{where} has no column {path!r}; it has {known}: name one of these (column=, columns=, text_column=)")
    return keys


def _found(names: Mapping[Any, Any], path: str) -> list[str] | None:
    """The keys that lead to a path, one inside the other. A longer name goes before a shorter one."""
    if path in names:
        return [path]
    for at in sorted((at for at, letter in enumerate(path) if letter == "."), reverse=True):
        first, rest = path[:at], path[at + 1 :]
        if first in names and names[first] is None:
            return [first]
        if isinstance(inner := names.get(first), Mapping) and (keys := _found(inner, rest)) is not None:
            return [first, *keys]
    return None


def _paths(names: Mapping[Any, Any]) -> Iterator[str]:
    for name, value in names.items():
        if isinstance(value, Mapping) and value:
            yield from (f"{name}.{path}" for path in _paths(value))
        else:
            yield str(name)
