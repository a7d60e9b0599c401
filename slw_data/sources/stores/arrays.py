"""NumPy arrays and PyTorch tensors as stores, without a copy.

A ``numpy.memmap`` is recognised and opened by its path, so that it travels to workers as a path and is watched for
shrinking like any other file. Read :mod:`slw_data.sources.stores.opening` next, which decides what a source is.
"""

import os
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from slw_data.errors import DataError
from slw_data.sources.stores.files import FileSources, TokenFile, describe_file
from slw_data.sources.stores.fingerprints import fingerprint
from slw_data.sources.stores.pieces import PiecedStore, whole
from slw_data.sources.stores.protocol import Tokens

__all__ = ["open_array", "open_tensor"]


def open_array(array: np.ndarray[Any, Any], name: str = "numpy array") -> PiecedStore:
    """A 1-D integer or bool array as a store that shares its memory."""
    if array.dtype.kind not in "iub":
        raise TypeError(f"{name} has dtype {array.dtype}, expected an integer dtype: token ids are never cast")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} is masked, and a store has no mask: write x.filled(id) or x.compressed()")
    if array.ndim != 1:
        raise DataError(
            f"{name} has shape {array.shape}, expected one dimension: to read it row after row write x.reshape(-1)"
        )
    file = _behind(array) if isinstance(array, np.memmap) and len(array) else None
    if file is not None:
        return PiecedStore(FileSources([file]), whole(len(array)), file.dtype, file.path, mark=file.mark)
    tokens: Tokens = np.asarray(array)
    return PiecedStore([tokens], whole(len(tokens)), tokens.dtype, name)


def open_tensor(tensor: torch.Tensor) -> PiecedStore:
    """A 1-D integer or bool CPU tensor as a store that shares its memory."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise TypeError(f"tensor on {tensor.device} ({tensor.layout}), expected a dense CPU tensor: write x.cpu()")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized:
        raise TypeError(f"tensor has dtype {tensor.dtype}, expected an integer dtype: token ids are never cast")
    return open_array(tensor.numpy(), "torch tensor")


def _behind(array: "np.memmap[Any, Any]") -> TokenFile | None:
    """The file behind a map, or None where the map is private or its path now leads to another file."""
    mapped: Any = array
    while isinstance(mapped.base, np.memmap):
        mapped = mapped.base
    if array.mode == "c" or array.filename is None or not array.flags.c_contiguous:
        return None
    path = os.fspath(array.filename)
    offset = mapped.offset + array.ctypes.data - mapped.ctypes.data
    if not os.path.isfile(path) or os.path.getsize(path) < offset + array.nbytes or _is_deleted(array):
        return None
    file = describe_file(path, array.dtype, offset, len(array))
    shown = fingerprint(array.dtype, len(array), lambda start, stop: np.asarray(array[start:stop]))
    return file if file.mark == shown else None


def _is_deleted(array: "np.memmap[Any, Any]") -> bool:
    """Whether the mapped file has lost its name, as when another was renamed to it: where the system tells of its maps."""
    address = array.ctypes.data
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, _, rest = line.partition(" ")
            low, _, high = span.partition("-")
            if int(low, 16) <= address < int(high, 16):
                return rest.rstrip("\n").endswith(" (deleted)")
    return False
