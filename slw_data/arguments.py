"""Arguments: what callers give, looked at before anything is done with it.

Any object may come: an array whose truth value is an error, a tensor without values, a class. So the type is asked for
first, and what an object says of itself only then. Each function returns the plain Python value.

Read next: :mod:`slw_data.plan.schedules`, which are made of such values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from slw_data.errors import ScheduleError

__all__ = ["as_integer", "as_number", "choice", "flag", "given", "integer", "items", "names", "shown", "token_id"]


def as_integer(value: Any) -> int | None:
    """``value`` as a Python int if it is an integer, which a bool is not."""
    if type(value) is int:  # without a try: while a loop runs, torch raises of dead workers anywhere, from a signal handler
        return value
    if isinstance(value, (bool, np.bool_, type)) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        number = value.__index__()
    except Exception:  # what tensors raise depends on their device and layout
        return None
    return number if type(number) is int else None


def as_number(value: Any) -> float | None:
    """``value`` as a float if it is one real number: of Python or NumPy, or the only item of an array or a tensor."""
    try:
        number = value.item() if hasattr(value, "item") else value
        return float(number) if isinstance(number, Real) and not isinstance(number, bool) else None
    except Exception:  # more items than one, or more than a float holds
        return None


def integer(name: str, value: Any, *, at_least: int) -> int:
    """``value`` as a Python int; ScheduleError naming ``name`` unless it is an integer >= ``at_least``."""
    number = as_integer(value)
    if number is None:
        raise ScheduleError(f"{name} must be an integer >= {at_least}, got {value!r:.200} of type {type(value).__name__}")
    if number < at_least:
        raise ScheduleError(f"{name} must be an integer >= {at_least}, got {number}")
    return number


def flag(name: str, value: Any) -> bool:
    """``value`` as a bool; TypeError for anything but True and False, such as the text "False"."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r:.200} of type {type(value).__name__}")
    return bool(value)


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """``value`` if it is one of ``allowed``, else ValueError listing them."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r:.200}")
    return value


def items(name: str, values: Any, what: str) -> list[Any]:
    """The items of an iterable, which a text is not; TypeError saying ``what`` it must be."""
    try:
        if isinstance(values, Iterable) and not isinstance(values, (str, bytes)):
            return list(values)
    except TypeError:  # a tensor or array without dimensions
        pass
    raise TypeError(f"{name} must be {what}, got {values!r:.200}")


def names(name: str, values: Any, allowed: Sequence[str] | None) -> tuple[str, ...]:
    """``values`` as a tuple of different names, each one of ``allowed``."""
    what = f"a sequence of names such as ({values!r:.200},)" if isinstance(values, str) else "a sequence of names"
    found = tuple(items(name, values, what))
    for value in found:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a sequence of names, got {values!r:.200}")
        if allowed is not None:
            choice(name, value, allowed)
        if found.count(value) > 1:
            raise ValueError(f"{name} must differ from each other, {value!r} comes twice")
    return found


def token_id(name: str, value: Any, vocab_size: int | None) -> int | None:
    """``value`` as a token id below ``vocab_size``; None is left as it is."""
    if value is None:
        return None
    token = integer(name, value, at_least=0)
    if vocab_size is not None and token >= vocab_size:
        raise ValueError(f"{name} must be below vocab_size={vocab_size}, got {token}")
    return token


def given(arguments: Mapping[str, Any]) -> str:
    """Those arguments that are not None, as they are written."""
    return ", ".join(f"{name}={value!r:.80}" for name, value in arguments.items() if value is not None)


def shown(value: Any) -> str:
    """A value in a message. An int of thousands of digits cannot be shown as one."""
    try:
        return repr(value)
    except ValueError:
        return f"an int of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
