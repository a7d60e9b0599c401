"""A state in a file: written whole or not at all, and read only as it was written.

The file is JSON, for a person to read and no program to run, and says by which hash its state is known to be whole::

    {"format": "slw_data state", "version": 1, "sha256": "9f2c...", "state": {"step": 1200, "batch": 0, ...}}

It is written beside the one it replaces, reaches the disk, and takes its name in one move. So whenever the machine stops,
there is the former file or the new one under that name, and never half of either; a process that is killed meanwhile leaves
at most a ``.tmp`` file, which nothing reads. Read next: :mod:`slw_data.delivery.agreement`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from slw_data.errors import StateError

__all__ = ["load_state", "save_state"]

FORMAT, VERSION = "slw_data state", 1

Path = str | os.PathLike[str]


class Stateful(Protocol):
    """Whatever has a state: an :class:`~slw_data.SLWLoader`, an :class:`~slw_data.SLWDataset`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, *args: Any, **options: Any) -> Any: ...


def save_state(path: Path, loader: Stateful) -> None:
    """Write ``loader.state_dict()`` to ``path``, in place of what is there; the folder must exist.

    On data-parallel ranks one of them saves, as the state is the same on all; but with ``sharded=True`` and ``num_shards``
    each saves to a path of its own.
    Raises the system's OSError, naming ``path``, where it cannot be written: what was there before is there still, and no
    temporary file is left. StateError for a state that JSON would give back changed.

    >>> import numpy as np, tempfile
    >>> from slw_data import ConstantSchedule, SLWDataset, SLWLoader
    >>> make_loader = lambda: SLWLoader(SLWDataset(np.arange(100), ConstantSchedule(4), batch_size=2))
    >>> loader, again, folder = make_loader(), make_loader(), tempfile.TemporaryDirectory()
    >>> batches = iter(loader)
    >>> for _ in range(3):
    ...     batch = next(batches)
    >>> save_state(f"{folder.name}/state.json", loader)
    >>> load_state(f"{folder.name}/state.json", again)
    >>> again.step, next(iter(again))["input_ids"].tolist()
    (3, [[24, 25, 26, 27], [28, 29, 30, 31]])
    >>> folder.cleanup()
    """
    _check_stateful(loader)
    text = _text(loader.state_dict())
    try:
        _replace(os.path.realpath(path), text.encode("ascii"))
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def load_state(path: Path | Sequence[Path], loader: Stateful, **options: Any) -> None:
    """``loader.load_state_dict(state, **options)`` with the state that :func:`save_state` wrote to ``path``; of a divided
    stream, whose ranks have each saved their own shards, give all their paths.

    Raises StateError, and changes nothing, if the file is damaged or the state is of another run (see
    :meth:`SLWLoader.load_state_dict <slw_data.SLWLoader.load_state_dict>` for ``strict`` and ``expected_step``). A file
    that is not there is FileNotFoundError, so that a first start can be told from a bad one.
    """
    _check_stateful(loader)
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    states = [_read(one) for one in paths]
    try:
        loader.load_state_dict(states[0] if len(states) == 1 else states, **options)
    except StateError as error:
        raise StateError(f"{', '.join(os.fspath(one) for one in paths)}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        content = file.read()
    return _state(os.fspath(path), content)


def _check_stateful(loader: Any) -> None:
    if not (hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")):
        raise TypeError(f"loader must have state_dict and load_state_dict, as SLWLoader has, got {type(loader).__name__}")


# -- what a file says --------------------------------------------------------------------------------------------------


def _text(state: dict[str, Any]) -> str:
    """The content of the file: the same for the same state."""
    try:
        text = json.dumps(state, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StateError(f"a state must hold plain values that JSON can: {error}") from error
    if json.loads(text) != state:
        raise StateError(f"a state must come back from JSON as it was (str keys, lists and no tuples), got {state!r:.200}")
    return json.dumps({"format": FORMAT, "version": VERSION, "sha256": _digest(state), "state": state}, indent=2) + "\n"


def _digest(state: Any) -> str:
    return hashlib.sha256(json.dumps(state, allow_nan=False, sort_keys=True).encode()).hexdigest()


def _state(path: str, content: bytes) -> dict[str, Any]:
    """The state in a file's content; StateError if that is not, to the letter of its state, what was written."""
    try:
        found = json.loads(content)
        keys = set(found) if isinstance(found, dict) else set()
        whole = keys == {"format", "version", "sha256", "state"} and found["format"] == FORMAT
        digest = _digest(found["state"]) if whole else ""
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"expected JSON, found {len(content)} bytes that are none: {error}") from error
    if not whole:
        raise _refused(path, f'expected JSON that begins with {{"format": "{FORMAT}", found {content[:60]!r}')
    if type(found["version"]) is not int or found["version"] != VERSION:
        raise _refused(path, f"expected version {VERSION}, which this slw_data reads, found {found['version']!r}")
    if found["sha256"] != digest:
        raise _refused(path, f"expected a state whose sha256 is {found['sha256']!r}, found one whose is {digest}")
    state: dict[str, Any] = found["state"]
    return state


def _refused(path: str, facts: str) -> StateError:
    return StateError(f"{path} is no whole file of save_state: {facts}. It was cut short or changed: load an earlier one")


# -- how it comes to the disk ------------------------------------------------------------------------------------------


def _replace(path: str, content: bytes) -> None:
    """Put a file with ``content`` in the place of ``path``, on the disk too, in one move."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(errno.EEXIST, "Is no regular file, and would be replaced by one")
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with _opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            _write(file, content)
            os.fsync(file)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    with _opened(folder, os.O_RDONLY) as directory:
        os.fsync(directory)  # else the move itself may be lost with the power


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    """All of it: a disk that is nearly full takes a part first."""
    while content:
        content = content[os.write(descriptor, content) :]
