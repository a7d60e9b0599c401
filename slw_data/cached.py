"""A property that is computed once, without a lock.

``functools.cached_property`` holds a lock of the class up to Python 3.11, so a child that is forked while another thread
computes it waits for ever. Here two threads may both compute a value, which is the same.

Read next: :mod:`slw_data.arguments`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["cached"]

T = TypeVar("T")


class cached(Generic[T]):
    """Decorates a method without arguments; its value is kept in the instance's ``__dict__``, frozen or not."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function, self.name, self.__doc__ = function, function.__name__, function.__doc__

    @overload
    def __get__(self, instance: None, owner: Any = None) -> cached[T]: ...

    @overload
    def __get__(self, instance: object, owner: Any = None) -> T: ...

    def __get__(self, instance: object | None, owner: Any = None) -> cached[T] | T:
        if instance is None:
            return self
        value = self.function(instance)
        vars(instance)[self.name] = value
        return value
