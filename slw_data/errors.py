"""The library's three errors. Each is a :class:`ValueError` and takes one message.

A message states the invariant, the value that broke it, and what to write instead. Taking a single string keeps
the type across a worker process: ``DataLoader`` rebuilds an exception in the main process from its text alone.
"""

__all__ = ["DataError", "ScheduleError", "StateError"]


class DataError(ValueError):
    """A source holds something that is not a stream of token ids, or is too small for what was asked of it."""


class ScheduleError(ValueError):
    """A schedule or a batch shape is impossible: a length below 1, a budget below the longest row, a zero batch."""


class StateError(ValueError):
    """A saved position does not belong to this run, or cannot be saved or loaded exactly."""
