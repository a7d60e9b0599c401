"""The plan: a schedule and a batch shape together, so that every step's length, rows and tokens are known at once.

A schedule is piecewise constant, so a plan is a short list of *stages*, each with the tokens before it::

    step    0 ........ 24 ........ 48 ...            stages    start  stop  length  rows  tokens_before
    length  8          16          24                          0      24    8       16    0
    tokens  16 x 8     16 x 16     16 x 24                     24     48    16      16    3072

Every look-up is one bisection, at step 10^9 as at step 1, in Python's own integers, so nothing overflows.
A schedule that is just a callable has no list of stages: it is read step by step, as far as it is asked for.

Read next: :mod:`slw_data.order.lanes`, which says where in the source a row's tokens lie.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from slw_data.arguments import integer
from slw_data.errors import ScheduleError
from slw_data.plan.plotting import draw_lengths
from slw_data.plan.report import html_table, text_table
from slw_data.plan.schedules import Changes, Schedule, Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Cost", "SequenceLengthPlan", "Stage"]

# A callable is fingerprinted by its lengths at these steps (those within the run): dense at first, then doubling.
_SAMPLED_STEPS = (*range(256), *(1 << k for k in range(8, 41)))


class Stage(NamedTuple):
    """Steps ``start`` to ``stop`` (exclusive; None: for ever) share one shape.

    ``rows`` are rows of one batch (one micro-batch of one rank), ``length`` tokens in a row, ``tokens_before`` the
    tokens that all ranks have delivered before ``start``.
    """

    start: int
    stop: int | None
    length: int
    rows: int
    grad_accum_steps: int
    rows_before: int
    tokens_before: int


@dataclass(frozen=True)
class Cost:
    """Training FLOPs of a plan: ``stages[i]`` belongs to ``plan.stages[i]``, ``full_length`` is as many tokens at max."""

    stages: tuple[int, ...]
    total: int
    full_length: int

    @property
    def saving(self) -> float:
        """The share of the full-length FLOPs that the plan does not spend, in [0, 1)."""
        return 1 - self.total / self.full_length if self.full_length else 0.0


class SequenceLengthPlan:
    """``SequenceLengthPlan(schedule, batch_size=16)``: the shape of every step, in closed form.

    Args:
        schedule: any callable ``step -> int``; see :mod:`slw_data.plan.schedules`.
        batch_size: rows of a batch, constant, so tokens per step grow with the length; or
        tokens_per_batch: a budget: rows are ``tokens_per_batch // length``. At least ``max_length``.
            Both are per rank and micro-batch. Give exactly one.
        grad_accum_steps: batches of one rank in an optimizer step; they all have one length.
        world_size: data-parallel ranks.
        total_steps: optimizer steps of the run; or
        total_tokens: tokens of the run over all ranks; it has the whole steps that fit in.
            Give at most one; None of them: endless.

    Raises:
        ScheduleError: a size that is not a positive integer, both or neither of a pair, a budget below a length,
            a schedule that returns anything but an int >= 1 or that contradicts itself.

    >>> from slw_data import LinearSchedule
    >>> plan = SequenceLengthPlan(LinearSchedule(8, 1024, warmup_steps=3000), batch_size=16, total_steps=10_000)
    >>> plan.length(0), plan.length(1500), plan.length(3000)
    (8, 512, 1024)
    >>> plan.tokens_before(1500), plan.step_at(plan.tokens_before(1500))
    (6188416, 1500)
    >>> len(plan.stages), plan.largest_batch()
    (128, (16, 1024))
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        grad_accum_steps: int = 1,
        world_size: int = 1,
        total_steps: int | None = None,
        total_tokens: int | None = None,
    ) -> None:
        if not callable(schedule) or isinstance(schedule, type):
            raise TypeError(f"schedule must be a callable step -> int, got {schedule!r}; a fixed length is lambda step: n")
        self.schedule = schedule
        self.batch_size, self.tokens_per_batch = _one_shape(batch_size, tokens_per_batch)
        self.grad_accum_steps = integer("grad_accum_steps", grad_accum_steps, at_least=1)
        self.world_size = integer("world_size", world_size, at_least=1)
        if total_steps is not None and total_tokens is not None:
            raise ScheduleError(f"give total_steps or total_tokens, not both: got {total_steps} and {total_tokens}")
        self._total_steps = None if total_steps is None else integer("total_steps", total_steps, at_least=1)
        self._total_tokens = None if total_tokens is None else integer("total_tokens", total_tokens, at_least=1)
        # The stages, as far as they are known: parallel lists, whose last stage is open.
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._before: list[int] = []
        self._rows_before: list[int] = []
        self._chain: list[str] = []  # digests of all stages before each
        self._extent: list[tuple[int, int]] = []  # the shortest and longest length up to each
        self._read_to: int | None = None  # steps read so far of a callable; None: the stages are complete
        if hasattr(schedule, "changes"):
            self._check_budget(0, schedule.max_length)  # type: ignore[attr-defined]
            self._lay_out(*schedule.changes(self._total_steps, self._total_tokens))
        else:
            self._read_to = 0
            self._check_callable()

    # -- look-ups -----------------------------------------------------------------------------------------------------

    def length(self, step: int) -> int:
        """Tokens in a row at ``step``. Defined for every step >= 0, past the end of the run too."""
        return self._lengths[self._stage_of(step)]

    def rows(self, step: int) -> int:
        """Rows of one batch (one micro-batch of one rank) at ``step``."""
        return self._rows(self.length(step))

    def global_rows(self, step: int) -> int:
        """Rows of the whole step, over all ranks and micro-batches."""
        return self._global_rows(self.length(step))

    def tokens(self, step: int) -> int:
        """Tokens of the whole step, over all ranks and micro-batches: ``global_rows(step) * length(step)``."""
        return self._tokens(self.length(step))

    def tokens_before(self, step: int) -> int:
        """Tokens that all ranks have delivered before ``step``."""
        step = integer("step", step, at_least=0)
        stage = self._stage_before(step)
        return self._before[stage] + (step - self._starts[stage]) * self._tokens(self._lengths[stage])

    def rows_before(self, step: int) -> int:
        """Rows that all ranks have delivered before ``step``."""
        step = integer("step", step, at_least=0)
        stage = self._stage_before(step)
        return self._rows_before[stage] + (step - self._starts[stage]) * self._global_rows(self._lengths[stage])

    def micro_batches(self, step: int) -> int:
        """Batches of one rank in ``step``."""
        integer("step", step, at_least=0)
        return self.grad_accum_steps

    def batches_before(self, step: int) -> int:
        """Batches of one rank before ``step``."""
        return integer("step", step, at_least=0) * self.grad_accum_steps

    def past(self, step: int, batch: int = 0) -> str:
        """What fixes the shapes of all steps before ``step``, and of ``step`` too where ``batch`` of its batches are
        delivered: their lengths and global rows. It is the same for all plans that agree so far, whatever comes later."""
        steps = step + (batch > 0)
        if steps == 0:
            return "nothing yet"
        index = self._stage_before(steps)
        length = self._lengths[index]
        mark = _linked(self._chain[index], self._starts[index], length, self._global_rows(length))
        least, most = self._extent[index]
        return f"{least}..{most} tokens in {steps} steps, {self._global_rows(length)} global rows #{mark}"

    def step_at(self, tokens: int) -> int:
        """The step that delivers token ``tokens`` (counted from 0): the inverse of :meth:`tokens_before`."""
        tokens = integer("tokens", tokens, at_least=0)
        while self._read_to is not None and self._before[-1] + self._open_tokens() < tokens:
            self._read(self._read_to)
        stage = bisect_right(self._before, tokens) - 1
        return self._starts[stage] + (tokens - self._before[stage]) // self._tokens(self._lengths[stage])

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the run; None if it is endless."""
        if self._total_tokens is not None:
            return self.step_at(self._total_tokens)
        return self._total_steps

    @property
    def total_tokens(self) -> int | None:
        """Tokens that the run delivers over all ranks; None if it is endless."""
        steps = self.total_steps
        return None if steps is None else self.tokens_before(steps)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The run as :class:`Stage`\\ s, in order. The last one's ``stop`` is ``total_steps``."""
        end = self.total_steps
        if self._read_to is not None:
            if end is None:
                raise ScheduleError(
                    f"a callable schedule has no last stage, so the stages of an endless run are unknown ({self.schedule!r}):"
                    " give total_steps, or ask length(step) and tokens_before(step)"
                )
            self._read(end - 1)
        starts = self._starts[: None if end is None else bisect_left(self._starts, end)]
        stops = [*starts[1:], end]
        shapes = zip(starts, stops, self._lengths, self._rows_before, self._before, strict=False)
        return tuple(Stage(a, b, n, self._rows(n), self.grad_accum_steps, r, t) for a, b, n, r, t in shapes)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The distinct lengths of the run, ascending."""
        return tuple(sorted({stage.length for stage in self.stages}))

    @cached_property
    def fingerprint(self) -> str:
        """What fixes every step's shape, in short: the lengths and global rows of all stages.

        Left out: how the global rows are dealt to ranks and micro-batches, and how long the run is, so that a run
        may go on with another number of ranks, or longer.
        """
        if self._read_to is None:
            shape = list(zip(self._starts, self._lengths, map(self._tokens, self._lengths), strict=True))
            top = max(self._lengths)
        else:
            shape = [(s, length, self._tokens(length)) for s, length in self._samples()]
            top = max(length for _, length, _ in shape)
        digest = hashlib.sha256(repr(shape).encode()).hexdigest()[:12]
        return f"{shape[0][1]}..{top} tokens, {self._tokens(top) // top} global rows #{digest}"

    def largest_batch(self) -> tuple[int, int]:
        """``(rows, length)`` of the batch with the most tokens, the longest of these: the shape to allocate for."""
        if self.total_steps == 0:
            raise ScheduleError(
                f"total_tokens={self._total_tokens} is less than a step, which has {self.tokens(0)}: give more, or a smaller"
                " batch"
            )
        return max(((s.rows, s.length) for s in self.stages), key=lambda shape: (shape[0] * shape[1], shape[1]))

    def cost(self, *, num_params: int, num_layers: int, hidden_size: int) -> Cost:
        """Training FLOPs, ``6 N + 12 layers hidden length`` per token (Narayanan et al., arXiv 2104.04473, and
        Chowdhery et al., arXiv 2204.02311, appendix B), beside as many tokens at the longest length of the run."""
        n = integer("num_params", num_params, at_least=1)
        attention = 12 * integer("num_layers", num_layers, at_least=1) * integer("hidden_size", hidden_size, at_least=1)
        stages = self._finite("cost")
        tokens = [(s.stop - s.start) * self._tokens(s.length) for s in stages]  # type: ignore[operator]
        flops = tuple(t * (6 * n + attention * s.length) for t, s in zip(tokens, stages, strict=True))
        full = sum(tokens) * (6 * n + attention * max(s.length for s in stages))
        return Cost(stages=flops, total=sum(flops), full_length=full)

    def describe(self) -> str:
        """The stages as a table (the first and last ten of many), with totals."""
        return text_table(self._lines(), self._summary())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the length over the steps on ``ax`` (None: on new axes), and return the axes. Needs matplotlib.

        Several plans on the same axes are compared with ``ax.legend()``: each is labelled by its schedule and lengths.
        """
        name = getattr(self.schedule, "__name__", type(self.schedule).__name__)
        lengths = self.lengths or (0,)  # of a run that is shorter than a step, nothing is drawn
        return draw_lengths(self.stages, ax, label=f"{name}, {lengths[0]:,} to {lengths[-1]:,}")

    def _repr_html_(self) -> str | None:
        """The lines of :meth:`describe` for notebooks; None, and so the plain repr, where no stages are known."""
        try:
            return html_table(self._lines(), self._summary())
        except ScheduleError:
            return None

    def _lines(self) -> list[tuple[int, int, int, int, int]]:
        return [(s.start, s.length, s.rows, self._tokens(s.length), s.tokens_before) for s in self.stages]

    def _summary(self) -> str:
        steps = self.total_steps
        end = "endless" if steps is None else f"{steps:,} steps, {self.tokens_before(steps):,} tokens"
        rows, length = self.largest_batch()
        return f"{end}; {len(self.lengths)} lengths; largest batch {rows:,} x {length:,}"

    def __repr__(self) -> str:
        shape = f"batch_size={self.batch_size}" if self.batch_size else f"tokens_per_batch={self.tokens_per_batch}"
        optional = {
            "grad_accum_steps": self.grad_accum_steps if self.grad_accum_steps > 1 else None,
            "world_size": self.world_size if self.world_size > 1 else None,
            "total_steps": self._total_steps,
            "total_tokens": self._total_tokens,
        }
        given = "".join(f", {name}={value}" for name, value in optional.items() if value is not None)
        return f"SequenceLengthPlan({self.schedule!r}, {shape}{given})"

    # -- building -----------------------------------------------------------------------------------------------------

    def stage_at(self, step: int, ahead: int = 1) -> Stage:
        """The stage that holds ``step``. A callable is read ``ahead`` steps; where its stage is still open then,
        ``stop`` is as far as it has been read."""
        index = self._stage_of(step)
        if self._read_to is not None and self._read_to < step + ahead:
            self._read(step + ahead - 1)
        stop = self._starts[index + 1] if index + 1 < len(self._starts) else self._read_to
        length = self._lengths[index]
        shape = (length, self._rows(length), self.grad_accum_steps)
        return Stage(self._starts[index], stop, *shape, self._rows_before[index], self._before[index])

    def history(self, step: int) -> tuple[list[int], list[int]]:
        """``(rows_before, lengths)`` of every stage up to the one that holds ``step``: what lanes have delivered."""
        stop = self._stage_of(step) + 1
        return self._rows_before[:stop], self._lengths[:stop]

    def ending_at(self, tokens: int) -> SequenceLengthPlan:
        """The same plan for a run of ``tokens`` tokens: stages are not laid out anew, so no warmup is stretched."""
        plan = copy.copy(self)
        plan._total_steps, plan._total_tokens = None, tokens
        return plan

    def of_one_rank(self) -> SequenceLengthPlan:
        """The same stages, counting the rows and tokens of a single rank."""
        plan = copy.deepcopy(self)
        plan.__dict__.pop("fingerprint", None)
        plan.world_size = 1
        plan._total_steps, plan._total_tokens = self.total_steps, None
        plan._rows_before = [rows // self.world_size for rows in self._rows_before]
        plan._before = [tokens // self.world_size for tokens in self._before]
        return plan

    def _finite(self, what: str) -> tuple[Stage, ...]:
        if self.total_steps is None:
            raise ScheduleError(f"{what} is of a whole run, and this one is endless: give total_steps or total_tokens")
        return self.stages

    def _rows(self, length: int) -> int:
        return self.batch_size or self.tokens_per_batch // length  # type: ignore[operator]

    def _global_rows(self, length: int) -> int:
        return self._rows(length) * self.grad_accum_steps * self.world_size

    def _tokens(self, length: int) -> int:
        return self._global_rows(length) * length

    def _stage_of(self, step: int) -> int:
        if type(step) is not int or step < 0:
            step = integer("step", step, at_least=0)
        if self._read_to is not None and step >= self._read_to:
            self._read(step)
        return bisect_right(self._starts, step) - 1

    def _stage_before(self, step: int) -> int:
        """The stage of the step before ``step``: a callable need not be defined where the run has ended."""
        return self._stage_of(step - 1 if type(step) is int and step > 0 else step)

    def _append(self, start: int, length: int) -> None:
        """Let ``length`` hold from step ``start`` on."""
        if self._lengths and length == self._lengths[-1]:
            return
        self._check_budget(start, length)
        rows = 0
        if self._starts:
            rows = (start - self._starts[-1]) * self._global_rows(self._lengths[-1])
        self._before.append(self._before[-1] + rows * self._lengths[-1] if self._starts else 0)
        self._rows_before.append(self._rows_before[-1] + rows if self._starts else 0)
        last = (self._starts[-1], self._lengths[-1]) if self._starts else None
        mark = "" if last is None else _linked(self._chain[-1], last[0], last[1], self._global_rows(last[1]))
        self._chain.append(mark)
        shortest, longest = self._extent[-1] if self._extent else (length, length)
        self._extent.append((min(shortest, length), max(longest, length)))
        self._starts.append(start)
        self._lengths.append(length)

    def _lay_out(self, unit: Unit, changes: Changes) -> None:
        """All stages of a schedule that knows its changes. Those counted in tokens take effect at the next step."""
        step = tokens = 0
        for i, (start, length) in enumerate(changes):
            if unit == "steps":
                self._append(start, length)
            elif i + 1 == len(changes) or changes[i + 1][0] > tokens:  # else no step begins while this length holds
                self._append(step, length)
                if i + 1 < len(changes):
                    held = -(-(changes[i + 1][0] - tokens) // self._tokens(length))
                    step, tokens = step + held, tokens + held * self._tokens(length)

    def _check_budget(self, step: int, length: int) -> None:
        if self.tokens_per_batch is not None and self.tokens_per_batch < length:
            raise ScheduleError(
                f"tokens_per_batch={self.tokens_per_batch} holds no row of {length} tokens (step {step} or later):"
                f" write tokens_per_batch={length} or more, or a smaller max_length"
            )

    # -- schedules that are only callables ----------------------------------------------------------------------------

    def _ask(self, step: int) -> int:
        """The callable's length at ``step``, checked."""
        try:
            length = self.schedule(step)
        except Exception as error:
            raise self._raised(step, error) from error
        return self._checked(step, length)

    def _raised(self, step: int, error: Exception) -> ScheduleError:
        return ScheduleError(f"the schedule raised {type(error).__name__} at step {step}: {error} ({self.schedule!r})")

    def _samples(self) -> list[tuple[int, int]]:
        """The callable's lengths at the sampled steps, beyond the end of the run too, as far as it is defined."""
        samples = []
        for step in _SAMPLED_STEPS:
            try:
                samples.append((step, self._ask(step)))
            except ScheduleError:
                if step == 0:
                    raise
                break
        return samples

    def _checked(self, step: int, length: Any) -> int:
        try:
            return integer(f"the schedule's length at step {step}", length, at_least=1)
        except ScheduleError as error:
            raise ScheduleError(f"{error} (schedule: {self.schedule!r})") from None

    def _read(self, step: int) -> None:
        """Read the callable up to and including ``step``."""
        assert self._read_to is not None
        schedule, last = self.schedule, self._lengths[-1] if self._lengths else None
        try:
            for s in range(self._read_to, step + 1):
                length = schedule(s)
                if length != last or type(length) is not int:
                    length = self._checked(s, length)
                    self._append(s, length)
                    last = length
                self._read_to = s + 1
        except ScheduleError:
            raise
        except Exception as error:
            raise self._raised(self._read_to, error) from error

    def _open_tokens(self) -> int:
        """Tokens from the start of the last stage to the last step read of a callable."""
        return ((self._read_to or 0) - self._starts[-1]) * self._tokens(self._lengths[-1])

    def _check_callable(self) -> None:
        """Refuse a schedule that answers the same question in two ways: ranks and workers ask it independently."""
        steps = [s for s in (0, 1, 2, 3, 10, 100) if s < (self._total_steps or sys.maxsize)]
        for step, length in [(step, self._ask(step)) for step in steps]:
            self._check_budget(step, length)
            again = self._ask(step)
            if again != length:
                raise ScheduleError(
                    f"the schedule must be a pure function of the step, but gave {length} and then {again} at step {step}"
                    f" (schedule: {self.schedule!r})"
                )
        self._read(0)


def _one_shape(batch_size: Any, tokens_per_batch: Any) -> tuple[int | None, int | None]:
    if (batch_size is None) == (tokens_per_batch is None):
        raise ScheduleError(
            "give exactly one of batch_size (rows) and tokens_per_batch (tokens), per rank and micro-batch:"
            f" got batch_size={batch_size} and tokens_per_batch={tokens_per_batch}"
        )
    if batch_size is not None:
        return integer("batch_size", batch_size, at_least=1), None
    return None, integer("tokens_per_batch", tokens_per_batch, at_least=1)


def _linked(before: str, *stage: int) -> str:
    """A digest of a stage and of all before it."""
    return hashlib.sha256(f"{before} {stage}".encode()).hexdigest()[:12]
