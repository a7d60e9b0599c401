"""What a store is: the tokens of one column, readable at any position at once.

Everything above this package (the dataset, the plan's arithmetic) sees a source only through :class:`TokenStore`, so a
source of your own needs no registration: implement the protocol and pass the object where a path would go. Ten lines
are enough; here the tokens are computed instead of stored, so the "file" below is of any size::

    class Counting:
        name, documents, dtype = "counting", None, np.dtype("int64")

        def __init__(self, count):
            self.count, self.fingerprint = count, f"counting x {count}"

        def __len__(self):
            return self.count

        def read(self, start, stop):
            if not 0 <= start <= stop <= self.count:
                raise IndexError(f"tokens {start} to {stop} of {self.count}")
            return np.arange(start, stop)

        def gather(self, starts, length, out):
            out[:] = starts[:, None] + np.arange(length)

Read :mod:`slw_data.sources.stores.pieces` next: the one implementation behind files, arrays and Hugging Face datasets.
"""

from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

__all__ = ["TokenStore", "is_store"]

Tokens = npt.NDArray[Any]
Offsets = npt.NDArray[np.int64]


class TokenStore(Protocol):
    """Tokens of one column, in a fixed order and number, at any position at once.

    A store is read by several processes and threads, is pickled on its way to them, and never changes. Positions are
    counted in tokens and may exceed 2^32, so they are Python ints or int64. Reading the same positions twice gives the
    same tokens, and every array handed out belongs to the caller.
    """

    @property
    def name(self) -> str:
        """What messages call this store: a path, or words such as "numpy array"."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Integer (or bool) dtype of the tokens as :meth:`read` gives them, in the byte order of this machine."""

    @property
    def fingerprint(self) -> str:
        """A short text that is the same for the same tokens, on every host and under every path."""

    @property
    def documents(self) -> Offsets | None:
        """Where documents begin, int64 of shape (documents + 1,), from 0 to ``len``; None where nobody knows."""

    def __len__(self) -> int:
        """Number of tokens."""

    def read(self, start: int, stop: int) -> Tokens:
        """Tokens ``start`` to ``stop`` as a fresh array of shape (stop - start,), in :attr:`dtype`.

        Raises IndexError, naming the numbers, unless ``0 <= start <= stop <= len``.
        """

    def gather(self, starts: Offsets, length: int, out: Tokens) -> None:
        """Set ``out[i, :]`` to the ``length`` tokens from ``starts[i]`` on, for every i at once.

        ``out`` has shape (len(starts), length), may be strided, and is of :attr:`dtype` or int64. Raises IndexError,
        naming the numbers, if a window leaves the store.
        """


def is_store(x: object) -> TypeGuard[TokenStore]:
    """Whether ``x`` looks like a store; its properties are not touched, because some are dear."""
    return all(hasattr(type(x), method) for method in ("read", "gather", "__len__"))
