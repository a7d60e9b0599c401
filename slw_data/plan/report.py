"""Reports: the stages of a plan as a table, for terminals and for notebooks.

A line of the table is ``(step, length, rows, tokens per step, tokens before)``, all ints. Of more than 21 lines the first
and the last ten are shown, so that the table of a long warmup still fits on a screen.

Read next: :mod:`slw_data.plan.plotting`, the same stages as a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["html_table", "text_table"]

HEADINGS = ("step", "length", "rows", "tokens/step", "tokens before")
WIDTHS = (12, 8, 8, 14, 18)
SHOWN = 21
ENDS = 10

Line = tuple[int, int, int, int, int]


def text_table(lines: Sequence[Line], summary: str) -> str:
    """The table as text, ``summary`` below it.

    >>> print(text_table([(0, 8, 16, 128, 0), (3000, 1024, 16, 16384, 384000)], "endless"))
            step   length     rows    tokens/step      tokens before
               0        8       16            128                  0
           3,000    1,024       16         16,384            384,000
    endless
    """
    first, left_out, last = _shown(lines)
    gap = [f"{'...':>{WIDTHS[0]}} {f'({left_out} more stages)':>40}"] if left_out else []
    return "\n".join([_aligned(HEADINGS), *map(_text, first), *gap, *map(_text, last), summary])


def html_table(lines: Sequence[Line], summary: str) -> str:
    """The same lines as an HTML table, ``summary`` as its caption."""
    first, left_out, last = _shown(lines)
    gap = [f'<tr><td>...</td><td colspan="4">({left_out} more stages)</td></tr>'] if left_out else []
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    body = "\n".join([*map(_html, first), *gap, *map(_html, last)])
    return f"<table>\n<caption>{summary}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _shown(lines: Sequence[Line]) -> tuple[Sequence[Line], int, Sequence[Line]]:
    """The first lines, how many are left out, and the last ones."""
    if len(lines) <= SHOWN:
        return lines, 0, ()
    return lines[:ENDS], len(lines) - 2 * ENDS, lines[-ENDS:]


def _aligned(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


def _text(line: Line) -> str:
    return _aligned([f"{number:,}" for number in line])


def _html(line: Line) -> str:
    return "<tr>" + "".join(f"<td>{number:,}</td>" for number in line) + "</tr>"
