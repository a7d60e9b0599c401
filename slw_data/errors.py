"""The library's three errors, and its warnings. An error is a :class:`ValueError` and takes one message.

A message states the invariant, the value that broke it, and what to write instead. Taking a single string keeps
the type across a worker process: ``DataLoader`` rebuilds an exception in the main process from its text alone.
"""

import sys
import warnings

__all__ = ["DataError", "ScheduleError", "StateError", "warn"]


class DataError(ValueError):
    """A source holds something that is not a stream of token ids, or is too small for what was asked of it."""


class ScheduleError(ValueError):
    """A schedule or a batch shape is impossible: a length below 1, a budget below the longest row, a zero batch."""


class StateError(ValueError):
    """A saved position does not belong to this run, or cannot be saved or loaded exactly."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the caller's that led here: the innermost one outside of this package."""
    package, frame, level = __name__.partition(".")[0], sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
