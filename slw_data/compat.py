"""Schedules of other libraries, step for step, for runs that must go on as they were planned there.

Each function re-states one library's formula, floats and all, in optimizer steps counted from 0, and returns a
:class:`~slw_data.StagedSchedule`: the lengths that library trains at, its oddities included. What crashes there, or
gives a length of 0, is refused here with its reason. For a new run, write one of :mod:`slw_data.plan.schedules`: those end
when they were asked to.

Read next: :mod:`slw_data.functional`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from slw_data.arguments import integer
from slw_data.errors import ScheduleError
from slw_data.plan.schedules import LONGEST, StagedSchedule, check_ladder

__all__ = ["from_composer", "from_deepspeed", "from_megatron", "from_olmo_core", "from_skyladder"]

_SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def from_composer(
    *,
    total_steps: int,
    duration: float = 0.3,
    min_seq_length: int = 8,
    max_seq_length: int = 1024,
    step_size: int = 8,
) -> StagedSchedule:
    """Composer's ``SeqLengthWarmup`` in a run of ``total_steps`` batches, by its own argument names.

    With ``n = (max_seq_length - min_seq_length) // step_size`` increments in ``w = int(total_steps * duration)`` steps,
    ``step_size`` is added every ``w // n`` steps. So the warmup may end early, by up to half, and it ends late where
    ``step_size`` does not divide the range. ``total_steps`` is over all epochs
    (``composer/algorithms/seq_length_warmup``).

    Raises ScheduleError for arguments out of range, and where Composer divides by zero: no increment at all, or fewer
    warmup steps than increments.

    >>> schedule = from_composer(total_steps=10_000)
    >>> [schedule(step) for step in (0, 22, 23, 2920, 2921, 3000)]
    [8, 8, 16, 1016, 1024, 1024]
    """
    total = integer("total_steps", total_steps, at_least=1)
    if total > LONGEST:
        raise ScheduleError(f"total_steps must be at most 2^62, got {total}: no run is longer")
    low = integer("min_seq_length", min_seq_length, at_least=1)
    high = integer("max_seq_length", max_seq_length, at_least=1)
    increment = integer("step_size", step_size, at_least=1)
    if isinstance(duration, bool) or not isinstance(duration, (int, float)) or not 0 <= duration <= 1:
        raise ScheduleError(f"duration must be a number in [0, 1], a fraction of the run, got {duration!r}")
    warmup, increments = int(total * duration), (high - low) // increment
    if high < low:
        raise ScheduleError(
            f"max_seq_length must be at least min_seq_length={low}, got {high};"
            f" to shrink, write StagedSchedule([{low}, {high}], [{max(warmup, 1)}])"
        )
    check_ladder(low, high, increment, "give a larger step_size")
    every = warmup // increments if increments else 0
    if every == 0:
        raise ScheduleError(
            f"Composer divides by zero: {warmup} warmup steps (total_steps={total}, duration={duration}) for"
            f" {increments} increments from {low} to {high}, step_size={increment}; write {_linear(low, high, warmup)}"
        )
    lengths = [*range(low, high, increment), high]
    return StagedSchedule(lengths, [every * i for i in range(1, len(lengths))])


def from_deepspeed(config: Mapping[str, Any]) -> StagedSchedule:
    """DeepSpeed's curriculum scheduler, from its configuration: the values that its engine trains at.

    ``config`` has ``min_difficulty``, ``max_difficulty``, ``schedule_type`` ("fixed_linear", "fixed_root" or
    "fixed_discrete") and ``schedule_config``; ``enabled`` and ``curriculum_type`` ("seqlen") may be there, too. At step
    s the engine takes the difficulty of step s + 1 and, once it is not below the maximum, never changes it again. So a
    maximum that is no multiple of ``difficulty_step`` is reached late, a minimum at or above the maximum stays, and
    rounding down may go below the minimum, as it does in ``deepspeed/runtime/data_pipeline/curriculum_scheduler.py`` at
    edaa722; later versions begin with the minimum rounded up.

    Raises TypeError if ``config`` is no mapping; ScheduleError for what is missing or out of range, for a length of 0,
    and for "custom", which is a Python function there: pass that function itself as the schedule.

    >>> schedule = from_deepspeed({
    ...     "min_difficulty": 8, "max_difficulty": 1024, "schedule_type": "fixed_linear",
    ...     "schedule_config": {"total_curriculum_step": 15000, "difficulty_step": 8},
    ... })
    >>> [schedule(step) for step in (0, 117, 118, 7500, 14998, 14999)]
    [8, 8, 16, 512, 1016, 1024]
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, DeepSpeed's curriculum configuration, got {type(config).__name__}")
    low = integer("min_difficulty", _key(config, "min_difficulty"), at_least=1)
    high = integer("max_difficulty", _key(config, "max_difficulty"), at_least=1)
    kind = _key(config, "schedule_type")
    curriculum = config.get("curriculum_type", "seqlen")
    if not isinstance(curriculum, str) or curriculum != "seqlen":
        raise ScheduleError(
            f"curriculum_type must be 'seqlen', got {curriculum!r:.200}: only that one is a length of rows"
        )
    if config.get("enabled", True) is not True:
        raise ScheduleError(
            f"enabled must be True, got {config['enabled']!r}: DeepSpeed leaves the rows as they are then;"
            f" write ConstantSchedule({high})"
        )
    if not isinstance(kind, str) or kind not in ("fixed_linear", "fixed_root", "fixed_discrete"):
        raise ScheduleError(
            f"schedule_type must be 'fixed_linear', 'fixed_root' or 'fixed_discrete', got {kind!r}; a 'custom' schedule"
            " is a function of the step: pass that function itself, or write LinearSchedule(...)"
        )
    details = _key(config, "schedule_config")
    if kind == "fixed_discrete":
        return _discrete(low, high, details)
    return _root(low, high, details, _key(details, "root_degree") if kind == "fixed_root" else 1)


def _root(low: int, high: int, details: Any, degree: Any) -> StagedSchedule:
    total = integer("total_curriculum_step", _key(details, "total_curriculum_step"), at_least=0)
    multiple = integer("difficulty_step", _key(details, "difficulty_step"), at_least=1)
    if isinstance(degree, bool) or not isinstance(degree, (int, float)) or not 0 < degree < math.inf:
        raise ScheduleError(f"root_degree must be a positive number, got {degree!r}; a degree of 1 is linear")
    _no_warmup_of_0("DeepSpeed", "total_curriculum_step", total, high)
    check_ladder(low, high, multiple, "give a larger difficulty_step")
    if low >= high:  # never below the maximum, so never updated
        return StagedSchedule([low], [])

    def difficulty(step: int) -> int:
        try:
            value: int = math.floor((float(step + 1) / total) ** (1.0 / degree) * (high - low) + low)
        except OverflowError:
            raise ScheduleError(
                f"DeepSpeed's floats overflow at step {step}, with total_curriculum_step={total} and"
                f" root_degree={degree}; write {_linear(low, high, total)}"
            ) from None
        return min(value - value % multiple, high)

    if difficulty(0) == 0:
        nearest = f"min_difficulty={multiple}, or " if multiple < high else ""
        raise ScheduleError(
            f"DeepSpeed gives length 0: min_difficulty={low} is rounded down to a multiple of"
            f" difficulty_step={multiple}; write {nearest}{_linear(low, high, total)}"
        )
    return _stages(difficulty, high, total - 1)


def _discrete(low: int, high: int, details: Any) -> StagedSchedule:
    lengths = _integers("difficulty", _key(details, "difficulty"))
    ends = _integers("max_step", _key(details, "max_step"))
    if not ends or len(ends) != len(lengths) - 1:
        raise ScheduleError(
            f"max_step must have at least one entry, and one fewer than difficulty, got {len(ends)} for {len(lengths)};"
            " write StagedSchedule(lengths, boundaries) for other stages"
        )
    for i in range(1, len(ends)):
        if ends[i] <= ends[i - 1]:  # DeepSpeed skips a stage without a word
            raise ScheduleError(
                f"max_step must ascend: max_step[{i}] = {ends[i]} after {ends[i - 1]};"
                " write StagedSchedule(lengths, boundaries) with the stages that you mean"
            )
    if low >= high:
        return StagedSchedule([low], [])
    last = next((i for i, length in enumerate(lengths) if length >= high), len(ends))
    return StagedSchedule(lengths[: last + 1], ends[:last])


def from_olmo_core(
    *,
    min_sequence_length: int = 128,
    max_sequence_length: int,
    warmup_steps: int = 2000,
    truncate: bool = False,
    keep_multiple_of: int = 128,
) -> StagedSchedule:
    """OLMo-core's ``SequenceLengthSchedulerCallback``; ``max_sequence_length`` is its trainer's sequence length.

    The value goes linearly from ``min_sequence_length`` to ``max_sequence_length``, over ``warmup_steps`` counted from
    1. With ``truncate`` it is rounded down to ``keep_multiple_of``, otherwise to ``min_sequence_length`` times a power
    of two. After ``warmup_steps`` the callback rests, and rows are whole
    (``olmo_core/train/callbacks/sequence_length_scheduler.py``).

    Raises ScheduleError for arguments out of range, for a length of 0, and where rows cannot be split: without
    ``truncate``, the maximum must be the minimum times a power of two.

    >>> schedule = from_olmo_core(max_sequence_length=4096)
    >>> [schedule(step) for step in (0, 63, 64, 1998, 1999, 2000)]
    [128, 128, 256, 2048, 4096, 4096]
    """
    low = integer("min_sequence_length", min_sequence_length, at_least=1)
    high = integer("max_sequence_length", max_sequence_length, at_least=1)
    warmup = integer("warmup_steps", warmup_steps, at_least=0)
    multiple = integer("keep_multiple_of", keep_multiple_of, at_least=1)
    if not isinstance(truncate, bool):
        raise ScheduleError(f"truncate must be True or False, got {truncate!r}")
    _no_warmup_of_0("OLMo-core", "warmup_steps", warmup, high)
    if high <= low:
        raise ScheduleError(
            f"max_sequence_length must be above min_sequence_length={low}, got {high};"
            f" write StagedSchedule([{low}, {high}], [{warmup}]) to shrink, ConstantSchedule({low}) to stay"
        )

    def linear(step: int) -> float:
        return low + (high - low) * (step + 1) / warmup

    def length(step: int) -> int:
        if step >= warmup:
            return high
        if truncate:
            return int(multiple * (linear(step) // multiple))
        return int(low * 2 ** math.floor(math.log(linear(step) // low, 2)))

    if truncate and linear(0) < multiple:
        raise ScheduleError(
            f"OLMo-core gives length 0: min_sequence_length={low} is rounded down to a multiple of"
            f" keep_multiple_of={multiple}; write {_linear(low, high, warmup)}"
        )
    if not truncate and high not in (low << k for k in range(high.bit_length())):
        raise ScheduleError(
            f"OLMo-core splits rows in halves: max_sequence_length must be min_sequence_length={low} times a power of"
            f" two, got {high}; write truncate=True, or {_linear(low, high, warmup)}"
        )
    return _stages(length, high, warmup)


def from_skyladder(
    *, max_length: int = 8192, initial_length: int = 32, steps_per_increase: int = 8, round_to: int | None = None
) -> StagedSchedule:
    """SkyLadder's linear schedule (Zhu et al., arXiv 2503.15450), for ``mode="window"``: ``min(max_length, initial_length +
    step // steps_per_increase)``, the size of its windows in rows of ``max_length`` tokens.

    In its configurations ``dm8`` is ``steps_per_increase=8`` (the paper's alpha = 1/8), ``st64`` is ``initial_length=64`` (32
    without it), and ``inc1024`` is ``round_to=1024``: windows are rounded down to a multiple, and where that is 0 they have
    ``initial_length`` (``lit_gpt/packed_dataset.py`` of sail-sg/SkyLadder; the maximum there is a token more than a row has,
    which changes no window). ``intradm8`` is the same with windows cut at documents too, as "position_ids" and "cu_seq_lens"
    are where documents are known.

    Raises ScheduleError for arguments out of range.

    >>> schedule = from_skyladder()
    >>> [schedule(step) for step in (0, 7, 8, 16, 65_279, 65_280)]
    [32, 32, 33, 34, 8191, 8192]
    """
    high = integer("max_length", max_length, at_least=1)
    low = integer("initial_length", initial_length, at_least=1)
    every = integer("steps_per_increase", steps_per_increase, at_least=1)
    multiple = 1 if round_to is None else integer("round_to", round_to, at_least=1)
    if low > high:
        raise ScheduleError(f"initial_length must not exceed max_length={high}, got {low}")
    check_ladder(low, high, multiple, "give a larger round_to")

    def window(step: int) -> int:
        value = low + step // every
        return min(value - value % multiple or low, high)

    return _stages(window, high, (high - low) * every)


def from_megatron(
    text: str, *, sequence_length: int | None = None, micro_batch_size: int | None = None, world_size: int = 1
) -> StagedSchedule:
    """Megatron-LM's ``--step-batch-size-schedule``: how many rows a step has, from which threshold on.

    ``text`` has entries ``THRESHOLD:ROWS``, the first from 0 on; rows are those of a whole step, and numbers may end in K, M, B
    or T (``megatron/core/num_microbatches_calculator.py``). With ``sequence_length`` thresholds are tokens, which Megatron
    counts in whole rows of that length: the result has ``unit="tokens"``. Without, they are rows, and the result counts steps.

    Returns ``batch_size=`` of a plan of ``world_size`` ranks, with one batch to a step; or with ``micro_batch_size``, the rows
    of a batch, ``grad_accum_steps=``::

        grad_accum_steps = from_megatron("0:768 250B:1536", sequence_length=8192, micro_batch_size=2, world_size=64)
        plan = SequenceLengthPlan(schedule, batch_size=2, grad_accum_steps=grad_accum_steps, world_size=64)

    ScheduleError for what Megatron refuses too: another text, a first threshold that is not 0, two thresholds in one row, rows
    that ranks and micro-batches do not share evenly.

    >>> from_megatron("0:768 250B:1536 500B:3072", sequence_length=4096)
    StagedSchedule(lengths=(768, 1536, 3072), boundaries=(249999998976, 499999997952), unit='tokens')
    >>> from_megatron("0:8 100:16", micro_batch_size=2, world_size=4)
    StagedSchedule(lengths=(1, 2), boundaries=(13,))
    """
    length = None if sequence_length is None else integer("sequence_length", sequence_length, at_least=1)
    share = integer("world_size", world_size, at_least=1)
    if micro_batch_size is not None:
        share *= integer("micro_batch_size", micro_batch_size, at_least=1)
    if not isinstance(text, str):
        raise TypeError(f"text must be a str such as '0:768 250B:1536', got {type(text).__name__}")
    entries = sorted(_entry(entry) for entry in text.replace(",", " ").split())
    thresholds = [threshold if length is None else threshold // length for threshold, _ in entries]
    if not entries or thresholds[0] != 0:
        raise ScheduleError(f"the first threshold must be 0, got {text!r:.200}: write '0:768 250B:1536'")
    for i, (low, high) in enumerate(pairwise(thresholds)):
        if low == high:
            raise ScheduleError(
                f"thresholds must ascend, and {entries[i][0]} and {entries[i + 1][0]} are the same"
                f"{'' if length is None else f' in rows of {length} tokens'}: leave one of them out"
            )
    for _, rows in entries:
        if rows % share:
            raise ScheduleError(
                f"{rows} rows of a step must be a multiple of {share}, micro_batch_size times world_size: write"
                f" {rows - rows % share or share} or {rows - rows % share + share}"
            )
    values = [rows // share for _, rows in entries]
    if length is not None:
        return StagedSchedule(values, [threshold * length for threshold in thresholds[1:]], unit="tokens")
    return _by_steps(values, thresholds, share)


def _entry(entry: str) -> tuple[int, int]:
    """Threshold and rows of an entry such as ``250B:1536``."""
    numbers = []
    for part in entry.split(":"):
        factor = _SUFFIXES.get(part[-1:].upper(), 1)
        try:
            value = float(part[:-1] if factor > 1 else part) * factor
            numbers.append(int(value))
        except (ValueError, OverflowError):
            numbers.append(-1)
    if len(numbers) != 2 or not 0 <= numbers[0] <= LONGEST or not 0 < numbers[1] <= LONGEST:
        raise ScheduleError(f"an entry must be THRESHOLD:ROWS, such as 250B:1536, got {entry!r:.200}")
    return numbers[0], numbers[1]


def _by_steps(values: list[int], thresholds: list[int], share: int) -> StagedSchedule:
    """The same values at the first steps that begin at or after ``thresholds``, in rows."""
    kept, starts, rows = values[:1], [0], 0
    for value, threshold in zip(values[1:], thresholds[1:], strict=True):
        steps = max(-(-(threshold - rows) // (kept[-1] * share)), 0)
        if steps == 0:  # a step reaches beyond two thresholds: the value between them never holds
            kept[-1] = value
            continue
        rows += steps * kept[-1] * share
        starts.append(starts[-1] + steps)
        kept.append(value)
    return StagedSchedule(kept, starts[1:])


def _key(config: Any, key: str) -> Any:
    if not isinstance(config, Mapping):
        raise ScheduleError(f"schedule_config must be a mapping with {key!r}, got {config!r}")
    if key not in config:
        raise ScheduleError(f"the configuration must have {key!r}, it has {', '.join(map(repr, config)) or 'no keys'}")
    return config[key]


def _integers(name: str, values: Any) -> list[int]:
    if not isinstance(values, (list, tuple)):
        raise ScheduleError(f"{name} must be a list of integers, got {values!r}")
    return [integer(f"{name}[{i}]", value, at_least=1) for i, value in enumerate(values)]


def _no_warmup_of_0(library: str, name: str, steps: int, high: int) -> None:
    if steps == 0:
        raise ScheduleError(f"{library} divides by zero: {name} must be >= 1, got 0; write ConstantSchedule({high})")


def _linear(low: int, high: int, steps: int) -> str:
    return f"LinearSchedule({low}, {high}, warmup_steps={steps}, multiple_of={math.gcd(low, high)})"


def _stages(formula: Callable[[int], int], high: int, end: int) -> StagedSchedule:
    """The stages of a formula that never shrinks and reaches ``high`` at step ``end`` or later, if it ever does."""
    late = 0
    while formula(end + late) < high and end + late < LONGEST:
        late = 2 * late + 1
    last = min(end + late, LONGEST)
    lengths, starts = [formula(0)], [0]
    while lengths[-1] < formula(last):
        starts.append(bisect_right(range(last), lengths[-1], lo=starts[-1], key=formula))
        lengths.append(formula(starts[-1]))
    return StagedSchedule(lengths, starts[1:])
