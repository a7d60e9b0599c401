"""Pictures of plans: the length over the steps, as the steps it goes in, and the tokens of each step below it.

Only plain stages are known here, ``(start, stop, length, ...)`` each, as ``plan.stages`` has them.
A plan without an end is drawn a little beyond the start of its last stage, or as far as the plan beside it that ends last.
matplotlib is imported when something is drawn.

Read next: :mod:`slw_data.plan`, whose ``plot`` is what most people use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "draw_lengths", "picture"]

STYLES = ("solid", "dashed", "dashdot", "dotted")
LONG_LABEL = 40  # characters; legends with a longer one have one entry a line

PlainStage = tuple[int, "int | None", int, int, int, int, int]


class Curve(NamedTuple):
    """What is drawn of one plan: its stages, the tokens of a step in each of them, and its name in the legend."""

    label: str
    stages: Sequence[PlainStage]
    tokens: Sequence[int]


def draw_lengths(stages: Sequence[PlainStage], ax: Axes | None = None, *, end: int | None = None, **style: Any) -> Axes:
    """Draw the length over the steps on ``ax`` (None: on new axes of pyplot's), and return the axes.

    ``end`` is the last step to draw of stages without an end; ``style`` goes to matplotlib's ``Axes.stairs``.
    Raises ImportError, naming the extra to install, where matplotlib is missing.
    """
    _need_matplotlib()
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots(layout="constrained")[1]
    _stairs(ax, stages, [stage[2] for stage in stages], end, style)
    _name_axes(ax, "sequence length (tokens)", "{x:,.0f}")
    ax.set_xlabel("optimizer step")
    return ax


def picture(curves: Sequence[Curve]) -> Figure:
    """A figure of all ``curves``: lengths above, tokens per step below, over the same steps, with a legend."""
    _need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    end = max((_end(curve.stages) for curve in curves), default=0)
    for i, curve in enumerate(curves):
        style = {"color": f"C{i % 10}", "linestyle": STYLES[i % len(STYLES)], "label": curve.label}
        draw_lengths(curve.stages, upper, end=end, **style)
        _stairs(lower, curve.stages, curve.tokens, end, style)
    _name_axes(lower, "tokens per step", None)
    upper.set_xlabel("")
    lower.set_xlabel("optimizer step")
    long = any(len(curve.label) > LONG_LABEL for curve in curves)
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=1 if long else min(len(curves), 3), frameon=False)
    return figure


def _need_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install 'slw_data[plot]'") from None


def _end(stages: Sequence[PlainStage]) -> int:
    """The step to draw up to: where the last stage stops, or if it never does a quarter of the steps before it."""
    start, stop, *_ = stages[-1]
    return start + max(start // 4, 10) if stop is None else stop


def _stairs(ax: Axes, stages: Sequence[PlainStage], values: Sequence[int], end: int | None, style: dict[str, Any]) -> None:
    if not stages:
        return
    stop = stages[-1][1]
    last = max(_end(stages), end or 0) if stop is None else stop
    ax.stairs(values, [*(stage[0] for stage in stages), last], baseline=None, **{"linewidth": 1.8, **style})


def _name_axes(ax: Axes, unit: str, numbers: str | None) -> None:
    """Labels with units, ticks at integers, from 0 up. Steps and tokens are many, so they are written 10k, 2.5M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

    ax.set_ylabel(unit)
    ax.margins(x=0)
    ax.set_xlim(left=0, auto=True)  # what is drawn next may still widen the limits
    ax.set_ylim(bottom=0, auto=True)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.yaxis.set_major_formatter(EngFormatter(sep="") if numbers is None else StrMethodFormatter(numbers))
    ax.grid(alpha=0.3)
