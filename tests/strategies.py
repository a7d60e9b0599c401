"""Hypothesis strategies that the tests share: schedules of every class, callables, batch shapes, documents.

Lengths and runs are small, so that the naive oracles of :mod:`oracle` keep up and failures are readable.
"""

from dataclasses import dataclass

from hypothesis import strategies as st

from slw_data.plan.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CyclicSchedule,
    DoublingSchedule,
    ExponentialSchedule,
    LinearSchedule,
    RootSchedule,
    SineSchedule,
    StagedSchedule,
)

KINDS = {
    "linear": LinearSchedule,
    "root": RootSchedule,
    "sine": SineSchedule,
    "cosine": CosineSchedule,
    "exponential": ExponentialSchedule,
    "doubling": DoublingSchedule,
}
WARMUPS = tuple(KINDS.values())
UNITS = ("warmup_steps", "warmup_tokens", "warmup_fraction")


@dataclass(frozen=True)
class Table:
    """A schedule that is only a callable: ``lengths`` over and over, each for ``hold`` steps."""

    lengths: tuple[int, ...]
    hold: int = 1

    def __call__(self, step: int) -> int:
        return self.lengths[step // self.hold % len(self.lengths)]


fractions = st.sampled_from([0, 0.0, 0.1, 0.3, 1 / 3, 0.5, 0.999, 1, 1.0]) | st.floats(0, 1)
degrees = st.sampled_from([1, 2, 3, 7, 0.5, 1.5, 2.0]) | st.floats(0.2, 5)


def steps(max_value=40):
    return st.integers(0, max_value)


@st.composite
def warmups(draw, units=("warmup_steps",), kinds=tuple(KINDS), max_length=64, max_steps=40):
    """Any warmup with legal arguments: also ``min == max``, no warmup, one shorter than its ladder, thinned ones."""
    multiple = draw(st.sampled_from([1, 1, 2, 3, 5, 8]))
    low = draw(st.integers(1, max(1, max_length // multiple // 2)))
    high = draw(st.integers(low, max(low, max_length // multiple)))
    kind, unit = draw(st.sampled_from(kinds)), draw(st.sampled_from(units))
    amount = {"warmup_steps": steps(max_steps), "warmup_tokens": st.integers(0, 6000), "warmup_fraction": fractions}
    arguments = {unit: draw(amount[unit]), "multiple_of": multiple}
    if kind == "root":
        arguments["degree"] = draw(degrees)
    if draw(st.booleans()):
        arguments["max_distinct"] = draw(st.integers(2, 9) if high > low else st.integers(1, 9))
    return KINDS[kind](low * multiple, high * multiple, **arguments)


def constants(max_length=64):
    return st.builds(ConstantSchedule, st.integers(1, max_length))


@st.composite
def staged(draw, max_length=64, max_steps=40):
    """Lengths in any order, so most of them shrink somewhere."""
    boundaries = draw(st.lists(st.integers(1, max_steps), unique=True, max_size=6).map(sorted))
    lengths = draw(st.lists(st.integers(1, max_length), min_size=len(boundaries) + 1, max_size=len(boundaries) + 1))
    return StagedSchedule(lengths, boundaries)


def cyclic(units=("warmup_steps",), max_length=64, max_steps=12):
    return st.builds(
        CyclicSchedule, warmups(units, max_length=max_length, max_steps=max_steps), num_cycles=st.integers(1, 4)
    )


def tables(max_length=64):
    """Small callables without a list of changes."""
    lengths = st.lists(st.integers(1, max_length), min_size=1, max_size=6).map(tuple)
    return st.builds(Table, lengths, st.integers(1, 5))


def values(units=("warmup_steps",), max_length=64):
    """The library's own schedules: every class."""
    return st.one_of(
        warmups(units, max_length=max_length),
        staged(max_length),
        cyclic(units, max_length),
        constants(max_length),
    )


def schedules(units=("warmup_steps",), max_length=64):
    """Every class, and callables."""
    return values(units, max_length) | tables(max_length)


def longest(schedule):
    return max(schedule.lengths) if isinstance(schedule, Table) else schedule.max_length


@st.composite
def batch_shapes(draw, schedule, max_rows=4, max_accum=3, max_world=3):
    """Keyword arguments of a plan: either way of counting a batch, with accumulation and ranks."""
    shape = {
        "grad_accum_steps": draw(st.integers(1, max_accum)),
        "world_size": draw(st.integers(1, max_world)),
    }
    if draw(st.booleans()):
        return {"batch_size": draw(st.integers(1, max_rows)), **shape}
    top = longest(schedule)
    return {"tokens_per_batch": draw(st.integers(top, max_rows * top)), **shape}


@st.composite
def runs(draw, units=("warmup_steps",), max_length=64, max_steps=60, max_rows=4, max_accum=3, max_world=3):
    """``(schedule, keyword arguments of the batch shape, total_steps)``."""
    schedule = draw(schedules(units, max_length))
    shape = draw(batch_shapes(schedule, max_rows, max_accum, max_world))
    return schedule, shape, draw(st.integers(1, max_steps))


@st.composite
def documents(draw, max_documents=30, max_tokens=25, first=0):
    """Documents, some empty, whose tokens count up from ``first`` over all of them, so that a token tells its place."""
    sizes = draw(st.lists(st.integers(0, max_tokens), min_size=1, max_size=max_documents))
    numbered = []
    for size in sizes:
        numbered.append(list(range(first, first + size)))
        first += size
    return numbered
