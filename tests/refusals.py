"""What every test of an error checks: its type, and the facts that its message names."""

from collections.abc import Callable

import pytest

from slw_data.errors import ScheduleError


def refused(make: Callable[[], object], *facts: str, error: type[Exception] = ScheduleError) -> str:
    """``make()`` raises ``error``; returns the message, which holds every one of ``facts``."""
    with pytest.raises(error) as caught:
        make()
    for fact in facts:
        assert fact in str(caught.value), f"{fact!r} is missing in: {caught.value}"
    return str(caught.value)


def shown(value: object) -> str:
    """How a message shows a value."""
    return str(value) if type(value) is int else repr(value)
