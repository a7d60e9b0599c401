""".npy files: NumPy's own header says where the tokens lie, then they are a file of tokens like any other.

The header is read with NumPy's public functions; pickled objects are never loaded.
Read :mod:`slw_data.sources.stores.opening` next, which decides what a path is.
"""

import math
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from slw_data.errors import DataError
from slw_data.sources.stores.files import TokenFile, describe_file, open_regular, raw_file
from slw_data.sources.stores.fingerprints import PLACES

__all__ = ["npy_file"]


def npy_file(path: str, dtype: np.dtype[Any] | None, places: int = PLACES) -> TokenFile:
    """The tokens of a ``.npy`` file. One without a header (OLMo writes such) is read as raw tokens of ``dtype``."""
    with open_regular(path) as (descriptor, status), open(os.dup(descriptor), "rb") as file:
        if status.st_size == 0:
            raise DataError(f"{path} is empty (0 bytes, expected a .npy header and tokens): leave it out")
        has_header = file.read(6) == b"\x93NUMPY"
        if has_header:
            file.seek(0)
            found, count, offset = _read_header(path, file)
    if not has_header and dtype is not None:
        return raw_file(path, dtype, places)
    if not has_header:
        raise DataError(
            f"{path} does not begin with a .npy header: if it holds nothing but tokens, as OLMo writes them, "
            "write the dtype they were written with, such as dtype='uint16'"
        )
    _check_size(path, status.st_size, offset, count, found.itemsize)
    return describe_file(path, found, offset, count, places)


def _read_header(path: str, file: BinaryIO) -> tuple[np.dtype[Any], int, int]:
    """(dtype, tokens, offset in bytes) of a 1-D array."""
    try:
        version = npy_format.read_magic(file)
        read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}.get(version)
        shape, fortran_order, dtype = read(file) if read else ((), False, None)
    except Exception:  # a damaged header raises nearly anything, and NumPy's text offers allow_pickle
        raise DataError(f"{path} has a damaged or truncated .npy header: write it again with numpy.save") from None
    if dtype is None:
        raise DataError(f"{path} has .npy format {version}, expected (1, 0) or (2, 0), in which integers are written")
    if dtype.hasobject:
        raise DataError(f"{path} holds dtype object: pickled objects are not read; save an integer array")
    if dtype.kind not in "iub":
        raise TypeError(f"{path} holds dtype {dtype}, expected an integer dtype: token ids are never cast")
    if len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < 0:
        order = " in Fortran order" if fortran_order else ""
        raise DataError(
            f"{path} holds an array of shape {shape}{order}, expected one dimension: to read it row after row write "
            "open_tokens(numpy.load(path, mmap_mode='r').reshape(-1))"
        )
    return dtype, math.prod(shape), file.tell()


def _check_size(path: str, size: int, offset: int, count: int, itemsize: int) -> None:
    if count == 0:
        raise DataError(f"{path} holds no tokens (shape (0,)): leave it out")
    expected = offset + count * itemsize
    if size != expected:
        what = "truncated" if size < expected else "longer than its header says"
        raise DataError(
            f"{path} is {what}: {size} bytes, expected {expected} ({offset} of header and {count} tokens of {itemsize})"
        )
