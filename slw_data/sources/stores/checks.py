"""What is refused, or warned of, as soon as a store is open: impossible dtypes, ids out of range, unequal columns.

Ids are checked at both ends of every part, which finds a wrong dtype, byte order or vocabulary at once and costs
milliseconds; each later token is checked where batches are made.
Read :mod:`slw_data.sources.stores.opening` next, which calls these.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from slw_data.arguments import as_integer
from slw_data.errors import DataError, warn
from slw_data.sources.stores.fingerprints import dtype_text
from slw_data.sources.stores.protocol import Offsets, Tokens, TokenStore

__all__ = ["check_dtype", "check_ends", "check_parallel", "token_id", "warn_if_too_narrow"]

END_TOKENS = 65536


def token_id(value: Any, what: str, smallest: int) -> int:
    """``value`` as an int; TypeError unless it is one (a bool is not), DataError below ``smallest``."""
    number = as_integer(value)
    if number is None:
        raise TypeError(f"{what} must be an int, found {value!r:.200}")
    if number < smallest:
        raise DataError(f"{what} must be {smallest} or more, found {number}")
    return number


def check_dtype(store: TokenStore, column: str, vocab_size: int | None, eos_id: int | None) -> None:
    """Refuse dtypes that hold no token ids, and ids that the dtype cannot hold."""
    dtype = store.dtype
    if dtype.kind not in "iub" or (dtype.kind == "b" and column == "input_ids"):
        raise TypeError(f"{store.name} has dtype {dtype}, expected integers in column {column!r}: ids are never cast")
    largest = 1 if dtype.kind == "b" else int(np.iinfo(dtype).max)
    if vocab_size is not None and vocab_size > largest + 1:
        raise DataError(
            f"vocab_size {vocab_size} does not fit {store.name}, whose {dtype} holds ids up to {largest}: ids above "
            "were cut off when it was written; write the tokens again with a wider dtype"
        )
    if eos_id is not None and eos_id > largest:
        raise DataError(f"eos_id {eos_id} cannot occur in {store.name}, whose {dtype} holds ids up to {largest}")


def check_ends(store: TokenStore, column: str, vocab_size: int | None) -> None:
    """Refuse ids below 0 or from ``vocab_size`` on, at both ends of every part of ``store``."""
    lowest = 0 if column == "input_ids" or vocab_size is not None else -(2**63)
    limit = 2**63 if vocab_size is None else vocab_size
    if vocab_size is None and store.dtype != np.uint64 and (store.dtype.kind != "i" or lowest < 0):
        return  # nothing that the dtype can hold is out of range
    parts = getattr(store, "parts", None) or [(store.name, 0, len(store))]
    width = max(512, END_TOKENS // len(parts))
    for name, start, stop in parts:
        for low in sorted({start, max(start, stop - width)}):
            block = store.read(low, min(stop, low + width))
            if int(block.min()) < lowest or int(block.max()) >= limit:
                _refuse_id(block.astype(getattr(store, "source_dtype", block.dtype)), low - start, name, lowest, limit)


def _refuse_id(block: Tokens, start: int, name: str, lowest: int, limit: int) -> None:
    wide = block.astype(np.int64) if block.dtype != np.uint64 else block
    at = int(((wide < lowest) | (wide >= limit)).argmax())
    known = limit < 2**63
    expected = f"expected 0 to {limit - 1} (vocab_size {limit})" if known else "expected 0 or more"
    hint = _reading_that_fits(block, limit) if known else "only columns other than input_ids may hold negative values"
    raise DataError(f"{name}: token {start + at} is {block[at]}, {expected}: {hint}")


def _reading_that_fits(block: Tokens, limit: int) -> str:
    """What else the bytes may be, if that makes all ids fit."""
    if block.itemsize > 1 and _fits(block.byteswap(), limit):
        other = dtype_text(block.dtype.newbyteorder())
        return f"in the other byte order all would fit; if it was written so, give dtype={other!r}"
    for narrower in ("uint32", "uint16"):
        if np.dtype(narrower).itemsize < block.itemsize and _fits(block.view(narrower), limit):
            return f"read as {narrower} all would fit; if it was written so, give dtype={narrower!r}"
    if (wider := _wider(block)) is not None:
        return f"zeros at every other position look like {wider}; if it was written so, give dtype={wider!r}"
    return "give the dtype that it was written with, or the vocab_size of the tokenizer that wrote it"


def _fits(block: Tokens, limit: int) -> bool:
    return int(block.min()) >= 0 and int(block.max()) < limit


def warn_if_too_narrow(store: TokenStore) -> None:
    """Warn if a headerless file looks like items of twice the size: their upper halves are mostly zero."""
    if (wider := _wider(store.read(0, min(len(store), END_TOKENS)))) is not None:
        warn(
            f"{store.name} read as {store.dtype} has zeros at every other position, as {wider} would: "
            f"if it was written so, give dtype={wider!r}; give vocab_size to have ids checked",
            RuntimeWarning,
        )


def _wider(block: Tokens) -> str | None:
    if block.itemsize not in (2, 4) or len(block) < 1024:
        return None
    even, odd = ((block[start::2] == 0).mean() for start in (0, 1))
    return {2: "uint32", 4: "int64"}[block.itemsize] if max(even, odd) > 0.3 and min(even, odd) < 0.1 else None


def check_parallel(stores: Mapping[str, TokenStore]) -> None:
    """Raise DataError unless all columns have the same number of tokens and, where both know them, documents."""
    first = "input_ids" if "input_ids" in stores else next(iter(stores))
    reference, known = stores[first], dict[str, Offsets]()  # documents of any two columns are compared, not of the first only
    for column, store in stores.items():
        if store.documents is not None:
            known[column] = store.documents
            _check_documents(*next(iter(known.items())), column, store.documents)
    for column, store in stores.items():
        if len(store) != len(reference):
            raise DataError(
                f"columns must be parallel: column {column!r} ({store.name}) has {len(store)} tokens, "
                f"but {first!r} ({reference.name}) has {len(reference)}"
            )


def _check_documents(first: str, expected: Offsets, column: str, found: Offsets) -> None:
    rows = min(len(expected), len(found)) - 1
    here, there = np.diff(found[: rows + 1]), np.diff(expected[: rows + 1])
    if (here != there).any():
        row = int((here != there).argmax())
        raise DataError(
            f"columns must be parallel: in row {row} (empty rows not counted) column {column!r} has {here[row]} "
            f"tokens, but {first!r} has {there[row]}"
        )
    if len(found) != len(expected):
        raise DataError(
            f"columns must be parallel: column {column!r} has {len(found) - 1} rows with tokens, "
            f"but {first!r} has {len(expected) - 1}; the first that has no partner is row {rows}"
        )
