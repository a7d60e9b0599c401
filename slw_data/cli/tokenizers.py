"""Ids as text: bytes, which need nothing, and tokenizers of other packages where these are installed.

Nothing is downloaded on purpose: a file or a folder is read where it is; a name is tiktoken's, which keeps a cache.

Read next: :mod:`slw_data.cli.inspect`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

__all__ = ["open_tokenizer"]

Decode = Callable[[Sequence[int]], str]


def open_tokenizer(name: str) -> Decode:
    """A function from ids to text: of ``"bytes"``, of a tokenizer's file or folder, or of an encoding of tiktoken."""
    if name == "bytes":
        return _bytes
    if os.path.isdir(name):
        whole = os.path.join(name, "tokenizer.json")
        return _file(whole) if os.path.exists(whole) else _folder(name)
    if os.path.exists(name):
        return _file(name)
    try:
        tiktoken = _package("tiktoken", name)
    except ImportError as error:
        raise ValueError(f"--tokenizer {name}: there is no such file or folder, and {error}") from None
    return _guarded(name, _loaded(name, lambda: tiktoken.get_encoding(name)).decode)


def _bytes(ids: Sequence[int]) -> str:
    """Each id below 256 is a byte of UTF-8 text; others are shown as <id>."""
    text, run = "", bytearray()
    for token in ids:
        if token < 256:
            run.append(token)
        else:
            text, run = text + run.decode(errors="replace") + f"<{token}>", bytearray()
    return text + run.decode(errors="replace")


def _file(path: str) -> Decode:
    tokenizer = _loaded(path, lambda: _package("tokenizers", path).Tokenizer.from_file(path))
    return _guarded(path, lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False))


def _folder(path: str) -> Decode:
    load = _package("transformers", path).AutoTokenizer.from_pretrained
    tokenizer = _loaded(path, lambda: load(path, local_files_only=True))
    return _guarded(path, tokenizer.decode)


def _package(package: str, name: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        raise ImportError(f"the package {package} is not installed, which --tokenizer {name} needs") from None


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ImportError:
        raise
    except Exception as error:  # each package has errors of its own
        raise ValueError(f"--tokenizer {name} cannot be loaded: {error}") from None


def _guarded(name: str, decode: Decode) -> Decode:
    def guarded(ids: Sequence[int]) -> str:
        try:
            return str(decode(ids))
        except Exception as error:
            raise ValueError(f"--tokenizer {name} cannot decode {list(ids)[:8]}: {error}") from None

    return guarded
