"""Reports: what a plan costs, and its stages as a table, for terminals and for notebooks.

A line of the table has its numbers by their headings. Of more than 21 lines the first
and the last ten are shown, so that the table of a long warmup still fits on a screen.

Read next: :mod:`slw_data.plan.plotting`, the same stages as a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slw_data.arguments import integer
from slw_data.errors import ScheduleError
from slw_data.plan.timeline import Timeline

__all__ = ["Cost", "cost_of", "html_table", "lines", "summary", "text_table"]

WIDTHS = {"step": 12, "length": 8, "window": 8, "rows": 8, "batches": 8, "tokens/step": 14, "tokens before": 18}
SHOWN = 21
ENDS = 10

Line = dict[str, int]


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


def cost_of(plan: Timeline, *, num_params: int, num_layers: int, hidden_size: int) -> Cost:
    """See :meth:`slw_data.SequenceLengthPlan.cost`."""
    n = integer("num_params", num_params, at_least=1)
    attention = 12 * integer("num_layers", num_layers, at_least=1) * integer("hidden_size", hidden_size, at_least=1)
    if plan.total_steps is None:
        raise ScheduleError("cost is of a whole run, and this one is endless: give total_steps or total_tokens")
    tokens = [(s.stop - s.start) * plan.tokens(s.start) for s in plan.stages]  # type: ignore[operator]
    flops = tuple(t * (6 * n + attention * s.length) for t, s in zip(tokens, plan.stages, strict=True))
    full = sum(tokens) * (6 * n + attention * max((s.length for s in plan.stages), default=0))
    return Cost(stages=flops, total=sum(flops), full_length=full)


def lines(plan: Timeline) -> list[Line]:
    """A line of the table for each stage, with the ``batches`` of a rank in a step where they vary."""
    stages = plan.stages
    varies = len({stage.grad_accum_steps for stage in stages}) > 1
    return [
        {
            **{"step": stage.start, "length": stage.length, "rows": stage.rows},
            **({"batches": stage.grad_accum_steps} if varies else {}),
            **{"tokens/step": plan.tokens(stage.start), "tokens before": stage.tokens_before},
        }
        for stage in stages
    ]


def summary(plan: Timeline) -> str:
    """The whole run in a line."""
    steps = plan.total_steps
    end = "endless" if steps is None else f"{steps:,} steps, {plan.tokens_before(steps):,} tokens"
    rows, length = plan.largest_batch()
    return f"{end}; {len(plan.lengths)} lengths; largest batch {rows:,} x {length:,}"


def text_table(lines: Sequence[Line], summary: str) -> str:
    """The table as text, ``summary`` below it.

    >>> print(text_table([{"step": 0, "length": 8, "rows": 16}, {"step": 3000, "length": 1024, "rows": 16}], "endless"))
            step   length     rows
               0        8       16
           3,000    1,024       16
    endless
    """
    first, left_out, last = _shown(lines)
    head = [" ".join(f"{heading:>{WIDTHS[heading]}}" for heading in line) for line in lines[:1]]
    gap = [f"{'...':>{WIDTHS['step']}} {f'({left_out} more stages)':>40}"] if left_out else []
    return "\n".join([*head, *map(_text, first), *gap, *map(_text, last), summary])


def html_table(lines: Sequence[Line], summary: str) -> str:
    """The same lines as an HTML table, ``summary`` as its caption."""
    first, left_out, last = _shown(lines)
    columns = len(lines[0]) if lines else 1
    gap = [f'<tr><td>...</td><td colspan="{columns - 1}">({left_out} more stages)</td></tr>'] if left_out else []
    head = "".join(f"<th>{heading}</th>" for line in lines[:1] for heading in line)
    body = "\n".join([*map(_html, first), *gap, *map(_html, last)])
    return f"<table>\n<caption>{summary}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _shown(lines: Sequence[Line]) -> tuple[Sequence[Line], int, Sequence[Line]]:
    """The first lines, how many are left out, and the last ones."""
    if len(lines) <= SHOWN:
        return lines, 0, ()
    return lines[:ENDS], len(lines) - 2 * ENDS, lines[-ENDS:]


def _text(line: Line) -> str:
    return " ".join(f"{f'{number:,}':>{WIDTHS[heading]}}" for heading, number in line.items())


def _html(line: Line) -> str:
    return "<tr>" + "".join(f"<td>{number:,}</td>" for number in line.values()) + "</tr>"
