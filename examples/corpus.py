"""A real corpus with nothing to download: the source files of Python's own standard library, a token for each byte.

Read next: :mod:`quickstart`, which trains nothing on it, but delivers every batch that a training run would get.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np

EOS = 256  # the end of a document, after the 256 bytes
VOCAB_SIZE = 257


def build_corpus(path: str | Path, *, max_tokens: int | None = None) -> tuple[Path, int]:
    """Write the corpus to ``path`` (headerless uint16, for ``open_tokens(path, dtype="uint16")``).

    A document is a file's bytes and then ``EOS``. They are sorted by path, so one Python gives one corpus: about 30
    million tokens, fewer where a distribution leaves out the tests. With ``max_tokens`` it ends before the document
    that exceeds them. Returns the path and the number of documents; ValueError if there is none.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.rglob("*.py"), key=lambda file: file.relative_to(library).as_posix())
    total = documents = 0
    with open(path, "wb") as corpus:
        for file in files:
            if {"site-packages", "dist-packages"} & set(file.relative_to(library).parts):  # not of Python itself
                continue
            document = np.frombuffer(file.read_bytes(), np.uint8).astype(np.uint16)
            if max_tokens is not None and total + len(document) + 1 > max_tokens:
                break
            np.append(document, np.uint16(EOS)).tofile(corpus)
            total, documents = total + len(document) + 1, documents + 1
    if documents == 0:
        raise ValueError(f"no document of {library} fits into max_tokens={max_tokens}: give more, or leave it out")
    return Path(path), documents
