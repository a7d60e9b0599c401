"""Turns: a source that keeps its own position is read by one iteration at a time.

Such a source has a single cursor, whoever iterates it. So whoever begins waits until the item that is being read is read,
and takes over; whoever was reading before is refused from then on, instead of being given what the other one left.

Read ``iterables`` next.
"""

import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

from slw_data.errors import DataError

Item = TypeVar("Item")


class Turns:
    """Of one source, shared by all streams over it: see :func:`turns_of`."""

    def __init__(self, source: Any) -> None:
        self.source = source  # kept, so that no other object gets its id
        self._number = 0
        self.open()

    def open(self) -> None:
        """Begin with a lock that nobody holds."""
        self._lock = threading.RLock()

    def take(self, items: Iterator[Item], name: str) -> Iterator[Item]:
        """``items``, which are read from the source; DataError once somebody else has begun to read it."""
        with self._lock:
            self._number += 1
            mine = self._number
        while True:
            with self._lock:
                if mine != self._number:
                    raise DataError(
                        f"{name} keeps its own position, so one iteration reads it at a time, and another one has begun: go on"
                        " with that one, or give each its own source, or a function that opens one"
                    )
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def __reduce__(self) -> tuple[type["Turns"], tuple[Any]]:
        return Turns, (self.source,)


def turns_of(source: Any) -> Turns:
    """Those of ``source`` in this process."""
    turns = _known.get(id(source))
    return _known.setdefault(id(source), Turns(source)) if turns is None else turns


def _open_all() -> None:
    for turns in list(_known.values()):
        turns.open()


_known: weakref.WeakValueDictionary[int, Turns] = weakref.WeakValueDictionary()
if hasattr(os, "register_at_fork"):  # whoever held a lock in the parent is not in the child
    os.register_at_fork(after_in_child=_open_all)
