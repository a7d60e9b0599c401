"""A corpus in the forms that the peers read: headerless tokens, where documents end, and a Hugging Face ``Dataset``.

Two are made. The one that is timed has ids below 257, a token for each byte, as the corpora of the examples. In the one
that is counted each token is its own position, so whatever a peer delivers says which tokens it has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE = 257
EOS = 256
MEAN_DOCUMENT = 600  # tokens


@dataclass(frozen=True)
class Corpus:
    """The files in ``folder``. Peers that need a form of their own write it to ``own(name)``."""

    folder: Path

    @cached_property
    def path(self) -> Path:
        """Of the tokens; the suffix is their dtype."""
        return next(self.folder.glob("tokens.*"))

    @property
    def dtype(self) -> str:
        return self.path.suffix[1:]

    @property
    def documents(self) -> Path:
        """A folder that ``Dataset.save_to_disk`` wrote: a row of ``input_ids`` for each document."""
        return self.folder / "documents"

    def tokens(self) -> np.ndarray[Any, Any]:
        """All tokens, mapped."""
        return np.memmap(self.path, self.dtype, "r").view(np.ndarray)

    def offsets(self) -> np.ndarray[Any, Any]:
        """Where documents begin, and the number of tokens."""
        return np.load(self.folder / "offsets.npy")

    def own(self, name: str) -> Path:
        return self.folder / name


def write_corpus(folder: Path, tokens: int, *, counted: bool) -> Corpus:
    """Make a corpus of so many tokens, in documents of log-normal length."""
    import datasets  # what only reads a corpus starts without it
    import pyarrow as pa

    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(0, 1, 2 + 2 * tokens // MEAN_DOCUMENT)) * MEAN_DOCUMENT / np.exp(0.5)
    ends = np.unique(np.cumsum(1 + lengths.astype(np.int64)))
    offsets = np.concatenate([[0], ends[ends < tokens], [tokens]])
    if counted:
        values = np.arange(tokens, dtype=np.uint32)
    else:
        values = random.integers(0, EOS, tokens, dtype=np.uint16)
        values[offsets[1:] - 1] = EOS
    folder.mkdir(parents=True, exist_ok=True)
    values.tofile(folder / f"tokens.{values.dtype}")
    np.save(folder / "offsets.npy", offsets)
    column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values.astype(np.int32)))
    datasets.Dataset(pa.table({"input_ids": column})).save_to_disk(folder / "documents")
    return Corpus(folder)
