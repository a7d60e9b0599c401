"""What a stream's fingerprint says of code, tokenizers and documents: short digests, the same on every host.

A stream cannot be read through for its fingerprint. So that says what can be had at once::

    code         module, name and digest of a function: its bytecode, its constants, and small values that it closes over
    a tokenizer  what it serializes itself to (``tokenizers``, ``transformers``) or its code, and its ids of two texts
    documents    of a source with an index: a few, at both ends and between

No path and no memory address goes in, and sets are sorted. What differs when it is looked at twice (a tokenizer that
drops out, documents that are cropped at random) is left out. Another version of Python has other bytecode. Changes that
this does not see are met where a saved position is read again: it has a checksum. Read ``blocks`` next.
"""

import functools
import itertools
import json
import types
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

from slw_data.sources.streams.documents import Arrays, TokenDocuments

__all__ = ["code_mark", "documents_mark", "name_of", "options_mark", "same_source", "short"]

PLACES = 8  # documents
UNKNOWN = "----"  # such a document's digits where it cannot be read, or is another the second time
SAMPLE = 4096  # tokens at each end of such a document
PROBES = ("The quick brown fox jumps over 13 lazy dogs.", " Zażółć gęślą\tjaźń,\n日本語 🙂 x_y=2")
DEPTH = 6  # of functions in functions
_METHODS = ("__call__", "encode", "__iter__", "__getitem__")  # what an object is asked for here


def short(*parts: Any) -> str:
    """``#`` and 12 digits for some texts."""
    digest = blake2b(digest_size=6)
    for part in map(str, parts):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return f"#{digest.hexdigest()}"


def code_mark(thing: Any) -> str:
    """The name of a callable or of an object's class, and a digest of the code behind it, if it is Python's."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    if not _is_ours(thing, getattr(kind, "__module__", None)):
        return name_of(thing)
    return f"{name_of(thing)} {short(_described(thing, DEPTH))}"


def name_of(thing: Any) -> str:
    """What a function, a class or an object of one is called, with its module."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    module = getattr(kind, "__module__", None)
    return str(kind.__qualname__) if module in (None, "builtins") else f"{module}.{kind.__qualname__}"


def _is_ours(thing: Any, module: Any) -> bool:
    """Whether it is the user's own code: that of libraries changes with their versions, and not what it does."""
    owned = str(module).split(".")[0] not in ("builtins", "datasets", "torch", "torchdata", "tokenizers", "transformers")
    return owned and any(isinstance(part, types.FunctionType) for part in _functions(thing))


def _functions(thing: Any) -> Iterator[Any]:
    """The functions that are called when ``thing`` is used."""
    if isinstance(thing, types.MethodType):
        yield thing.__func__
    elif isinstance(thing, types.FunctionType):
        yield thing
    else:
        owner = thing if isinstance(thing, type) else type(thing)
        yield from (found for name in _METHODS if (found := getattr(owner, name, None)) is not None)


def _described(thing: Any, depth: int) -> str:
    """A text for a value: what it is and what it does, as far as that is the same everywhere."""
    if thing is None or isinstance(thing, bool | int | float | bytes | complex):
        return repr(thing)
    if isinstance(thing, str):
        return "a path" if "/" in thing or "\\" in thing else repr(thing)  # which hosts may have in other places
    if depth == 0:
        return type(thing).__qualname__
    if isinstance(thing, list | tuple | set | frozenset):
        if len(thing) > 64:  # data
            return f"{len(thing)} items"
        texts = [_described(part, depth - 1) for part in thing]
        return f"[{', '.join(sorted(texts) if isinstance(thing, set | frozenset) else texts)}]"
    if isinstance(thing, types.CodeType):
        values = [_described(value, depth - 1) for value in thing.co_consts]
        return short(thing.co_code.hex(), *thing.co_names, *values)
    if isinstance(thing, types.FunctionType):
        return _of_function(thing, depth - 1)
    if isinstance(thing, functools.partial):
        given = [*thing.args, *(thing.keywords[name] for name in sorted(thing.keywords))]
        return f"{_described(thing.func, depth - 1)} of {[_described(value, depth - 1) for value in given]}"
    if isinstance(thing, types.MethodType):
        return f"{_described(thing.__func__, depth - 1)} of {_described(thing.__self__, depth - 1)}"
    return f"{_serialized(thing) or ''} {name_of(thing)} {[_described(f, depth - 1) for f in _code_of(thing)]}"


def _code_of(thing: Any) -> list[Any]:
    return [part for part in _functions(thing) if isinstance(part, types.FunctionType)]


def _of_function(function: types.FunctionType, depth: int) -> str:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_full(cell)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    tokenizers = [text for value in named if not isinstance(value, type) and (text := _serialized(value))]
    values = [_described(value, depth) for value in (function.__code__, *cells, *defaults)]
    return short(f"{function.__module__}.{function.__qualname__}", *values, *tokenizers)


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # of a name that is not bound yet
        return False


# -- tokenizers --------------------------------------------------------------------------------------------------------


def options_mark(documents: TokenDocuments, append_eos: int | None) -> str:
    """What is done with the items: columns, tokenizer and end token; empty where ids are taken as they are."""
    parts = []
    if documents.columns != (documents.ids,) or documents.ids != "input_ids" or documents.path != documents.ids:
        ids = documents.ids if documents.path == documents.ids else f"{documents.path!r} as {documents.ids}"
        others = sorted(column for column in documents.columns if column != documents.ids)
        parts.append(f"columns {', '.join([ids, *others])}")
    tokenizer = getattr(documents, "tokenizer", None)
    if tokenizer is not None:
        probed = _probed(documents)
        text = getattr(documents, "text_column", "text")
        parts.append(f"{text!r} by {name_of(tokenizer)} {short(_described(tokenizer, DEPTH), probed)}")
    if append_eos is not None:
        parts.append(f"append_eos={append_eos}")
    return "".join(f", {part}" for part in parts)


def _probed(documents: TokenDocuments) -> list[str] | None:
    """The ids of two texts; None where they are others the second time."""
    found = []
    for _ in range(2):
        try:
            found.append([_sample(documents.tokens(text, 0)) for text in PROBES])
        except Exception as error:  # it knows no such words
            found.append([type(error).__name__])
    return found[0] if found[0] == found[1] else None


def _serialized(thing: Any) -> str | None:
    """What a tokenizer of ``tokenizers`` or ``transformers`` consists of; None for anything else, of which nothing is run."""
    if isinstance(thing, type | types.ModuleType) or not callable(getattr(type(thing), "get_vocab", None)):
        return None
    backend = getattr(thing, "backend_tokenizer", thing)
    if callable(getattr(backend, "to_str", None)):
        whole = json.loads(backend.to_str())
        if backend is not thing:  # set anew by each call of it
            whole |= {"truncation": None, "padding": None}
        return short(json.dumps(whole, sort_keys=True), *_flags(thing))
    special = getattr(thing, "special_tokens_map", {})
    return short(sorted(thing.get_vocab().items()), sorted((str(k), str(v)) for k, v in special.items()), *_flags(thing))


def _flags(tokenizer: Any) -> list[str]:
    """Such as add_bos_token: of what it was made with, only what can be no path."""
    made_with = getattr(tokenizer, "init_kwargs", {})
    return sorted(f"{name}={value}" for name, value in made_with.items() if isinstance(value, bool))


# -- documents ---------------------------------------------------------------------------------------------------------


def documents_mark(source: Any, documents: TokenDocuments, item: Callable[[int], Any]) -> str:
    """The number of documents of a source with an index, and four digits for each of some; none where passes differ."""
    text = f"{name_of(source)} of {len(source)} documents"
    if callable(getattr(source, "set_epoch", None)):
        return text
    last = len(source) - 1
    places = sorted({last * place // (PLACES - 1) for place in range(PLACES)}) if last >= 0 else []
    order = sorted(range(len(documents.columns)), key=lambda k: documents.columns[k])

    def sampled(at: int) -> str:
        try:
            arrays = documents.tokens(documents.pick(item(at), at), at)
            return _sample(tuple(arrays[k] for k in order))[1:5]
        except Exception:  # it is raised when the document's turn comes
            return UNKNOWN

    pairs = [[sampled(at) for at in places] for _ in range(2)]
    found = [one if one == again else UNKNOWN for one, again in zip(*pairs, strict=True)]
    return f"{text} ({' '.join(found)})" if found else text


def same_source(saved: Any, current: Any) -> bool:
    """Whether two fingerprints are of one source: documents that either could not read, or not twice alike, do not count."""
    if not (isinstance(saved, str) and isinstance(current, str)):
        return False
    pairs = list(itertools.zip_longest(*(text.split(" ") for text in (saved, current)), fillvalue=""))
    return all(one == other or UNKNOWN in (one.strip("(),"), other.strip("(),")) for one, other in pairs)


def _sample(arrays: Arrays) -> str:
    ends = [(len(a), *np.concatenate([a[:SAMPLE], a[SAMPLE:][-SAMPLE:]]).astype(np.int64).tolist()) for a in arrays]
    return short(ends)
