"""Files of tokens: found, measured and sampled when opened, mapped when read.

A :class:`TokenFile` says where the tokens of one file lie. It holds nothing open and is what travels to other
processes. :class:`FileSources` maps files as they are read, and those that were read last stay mapped, over all stores of the
process: :data:`OPEN_FILES`, or more where the process may have many descriptors (two each), since a shuffled run comes to
thousands of files in turn. So 10,000 files and many columns work under the usual limit of 1,024 descriptors too.

A file may be another one by the time it is mapped: replaced, written over, or on another host. If it is, it must have the
fingerprint that was taken when it was opened.

Reading a mapped page that its file no longer has kills the process with SIGBUS, without an exception. So the size is
asked for before every access, one ``fstat``, and a file that shrank is refused with DataError.
Read :mod:`slw_data.sources.stores.npy` and :mod:`slw_data.sources.stores.megatron` next, for files that describe themselves.
"""

import errno
import itertools
import mmap
import os
import stat
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from slw_data.errors import DataError, warn
from slw_data.sources.stores.fingerprints import PLACES, fingerprint
from slw_data.sources.stores.protocol import Tokens

__all__ = ["FileSources", "TokenFile", "describe_file", "open_regular", "raw_file"]

OPEN_FILES = 128  # whatever the limit
_MOST_OPEN = 1 << 13  # whatever the limit; Linux lets a process have 65,530 maps


@dataclass(frozen=True)
class TokenFile:
    """``count`` tokens of ``dtype`` from byte ``offset`` on; ``size`` (bytes) and ``mtime_ns`` are those at opening."""

    path: str
    dtype: np.dtype[Any]
    offset: int
    count: int
    size: int
    mtime_ns: int
    inode: tuple[int, int]
    mark: str
    places: int = PLACES  # and documents: what the mark was made with
    documents: str = ""


class MappedFile:
    """A file that is mapped into memory, and open to be watched."""

    def __init__(self, file: TokenFile) -> None:
        self._file, self._warned = file, False
        with open_regular(file.path) as (descriptor, status):
            self._check_size(status.st_size)
            self._mtime_ns = file.mtime_ns
            if ((status.st_dev, status.st_ino), status.st_mtime_ns) != (file.inode, file.mtime_ns):
                self._check_mark(descriptor, status)
            self._map = mmap.mmap(descriptor, file.offset + file.count * file.dtype.itemsize, access=mmap.ACCESS_READ)
            self._descriptor = os.dup(descriptor)  # the map has one too, but does not show it
        weakref.finalize(self, os.close, self._descriptor)
        self._tokens = np.frombuffer(self._map, file.dtype, file.count, file.offset)

    def tokens(self) -> Tokens:
        """All tokens of the file, after a look at its size and time of modification."""
        status = os.fstat(self._descriptor)
        self._check_size(status.st_size)
        if status.st_mtime_ns != self._mtime_ns and not self._warned:
            self._warned = True
            message = f"{self._file.path} was modified while it was open: batches may hold old and new tokens"
            warn(message, RuntimeWarning)
        return self._tokens

    def _check_mark(self, descriptor: int, status: os.stat_result) -> None:
        """Another file, or another time of modification: it must have the same tokens, as far as its fingerprint tells."""
        file = self._file
        read = partial(_read_tokens, descriptor, file.dtype, file.offset)
        if fingerprint(file.dtype, file.count, read, places=file.places, documents=file.documents) != file.mark:
            raise DataError(
                f"{file.path} was replaced or written over since it was opened, and holds other tokens now ({file.mark} then): "
                "a store must not change; open it again for a run over the new tokens"
            )
        self._mtime_ns = status.st_mtime_ns

    def _check_size(self, size: int) -> None:
        if size < self._file.size:
            raise DataError(
                f"{self._file.path} shrank from {self._file.size} to {size} bytes while it was open: "
                "a store must not change; write to another path and rename"
            )


class FileSources:
    """The tokens of files by number."""

    def __init__(self, files: Sequence[TokenFile]) -> None:
        self.files = tuple(files)
        self._key = next(_keys)
        weakref.finalize(self, _forget, self._key).atexit = False

    def __getitem__(self, number: int) -> Tokens:
        key = self._key, number
        mapped = _mapped.get(key)
        if mapped is None:
            mapped = _mapped[key] = MappedFile(self.files[number])
        # Without a lock, which a fork might copy while it is held: each call here is one step, also beside other threads.
        with suppress(KeyError):  # another thread has dropped it
            _mapped.move_to_end(key)
            while len(_mapped) > OPEN_FILES and len(_mapped) > _most_open():
                _mapped.popitem(last=False)
        return mapped.tokens()

    def __reduce__(self) -> tuple[type["FileSources"], tuple[tuple[TokenFile, ...]]]:
        return FileSources, (self.files,)


def _most_open() -> int:
    """Files that stay mapped: with two descriptors each, a quarter of what the process may have at most."""
    try:
        import resource
    except ImportError:
        return OPEN_FILES
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if soft == resource.RLIM_INFINITY else max(OPEN_FILES, min(soft // 8, _MOST_OPEN))


_mapped: OrderedDict[tuple[int, int], MappedFile] = OrderedDict()  # of all stores; the one used last is at the end
_keys = itertools.count()


def _forget(key: int) -> None:
    """Unmap the files of a store that is gone."""
    for known in list(_mapped):
        if known[0] == key:
            _mapped.pop(known, None)


@contextmanager
def open_regular(path: str) -> Iterator[tuple[int, os.stat_result]]:
    """(descriptor, status) of a regular file. Anything else is refused before it is opened: a FIFO would block."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a folder, expected a file of tokens", path)
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is not a regular file ({stat.filemode(mode)}): copy the tokens to a file")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor, os.fstat(descriptor)
    finally:
        os.close(descriptor)


def describe_file(
    path: str, dtype: np.dtype[Any], offset: int, count: int, places: int = PLACES, documents: str = ""
) -> TokenFile:
    """The :class:`TokenFile` of tokens whose place in the file is known; samples the file for its fingerprint."""
    with open_regular(path) as (descriptor, status):
        read = partial(_read_tokens, descriptor, dtype, offset)
        mark = fingerprint(dtype, count, read, places=places, documents=documents)
        inode = status.st_dev, status.st_ino
        return TokenFile(path, dtype, offset, count, status.st_size, status.st_mtime_ns, inode, mark, places, documents)


def raw_file(path: str, dtype: np.dtype[Any], places: int = PLACES) -> TokenFile:
    """A headerless file: nothing but tokens of ``dtype``, as nanoGPT and others write them."""
    with open_regular(path) as (descriptor, status):
        size, start = status.st_size, os.pread(descriptor, 12, 0)
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes, expected at least {dtype.itemsize}): leave it out")
    count, spare = divmod(size, dtype.itemsize)
    if spare:
        raise DataError(
            f"{path} has {size} bytes, not a multiple of the item size {dtype.itemsize} of {dtype.name} "
            f"({spare} spare bytes): it was cut short, or written with another dtype"
        )
    _refuse_header(path, dtype, start, size)
    return describe_file(path, dtype, 0, count, places)


def _refuse_header(path: str, dtype: np.dtype[Any], start: bytes, size: int) -> None:
    """Headers that are known and would be read as tokens: NumPy's, and the 1024 bytes of llm.c."""
    if start.startswith(b"\x93NUMPY"):
        raise DataError(f"{path} begins with a .npy header, expected nothing but tokens: rename it to end in .npy")
    if len(start) == 12:
        magic, _, count = np.frombuffer(start, "<i4").tolist()
        if magic in (20240520, 20240801) and 1024 + count * dtype.itemsize == size:
            raise DataError(
                f"{path} begins with the 1024-byte header of llm.c ({count} tokens), expected nothing but tokens: "
                f"write open_tokens(numpy.memmap(path, dtype={dtype.name!r}, mode='r', offset=1024))"
            )


def _read_tokens(descriptor: int, dtype: np.dtype[Any], offset: int, start: int, stop: int) -> Tokens:
    size, position = (stop - start) * dtype.itemsize, offset + start * dtype.itemsize
    return np.frombuffer(os.pread(descriptor, size, position), dtype)
