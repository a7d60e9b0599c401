"""Pictures and tables of plans: every figure against the schedule asked step by step, or worked out by hand."""

import re
import sys

import pytest
from refusals import refused

from slw_data.plan import SequenceLengthPlan
from slw_data.plan.plotting import Curve, draw_lengths, picture
from slw_data.plan.report import html_table, text_table
from slw_data.plan.schedules import ConstantSchedule, CyclicSchedule, DoublingSchedule, LinearSchedule, StagedSchedule

GROWING = SequenceLengthPlan(StagedSchedule([8, 16, 12], [3, 5]), batch_size=2, total_steps=9)


@pytest.fixture
def pyplot():
    """Draw without a screen, and close what pyplot has opened."""
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


needs_matplotlib = pytest.mark.usefixtures("pyplot")


def drawn(artist):
    """The steps of a drawn line: ``{step: value}`` for every step that it covers."""
    values, edges, _ = artist.get_data()
    return {
        step: int(value)
        for value, start, stop in zip(values, edges, edges[1:], strict=False)
        for step in range(int(start), int(stop))
    }


# -- plan.plot ---------------------------------------------------------------------------------------------------------


@needs_matplotlib
@pytest.mark.parametrize(
    "schedule",
    [
        LinearSchedule(8, 128, warmup_steps=50),
        DoublingSchedule(8, 128, warmup_steps=50),
        CyclicSchedule(LinearSchedule(8, 64, warmup_steps=20), num_cycles=3),
        StagedSchedule([64, 8, 32], [10, 30]),
        ConstantSchedule(16),
        lambda step: 8 + step % 3,
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_plot_draws_the_length_of_every_step(schedule):
    axes = SequenceLengthPlan(schedule, batch_size=4, total_steps=80).plot()
    [line] = axes.patches
    assert drawn(line) == {step: schedule(step) for step in range(80)}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "sequence length (tokens)")
    assert axes.get_xlim() == (0, 80) and axes.get_ylim()[0] == 0


@needs_matplotlib
def test_plot_draws_on_the_axes_it_is_given_and_later_plans_are_not_cut_off():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert GROWING.plot(axes) is axes
    longer = SequenceLengthPlan(LinearSchedule(8, 1024, warmup_steps=40), batch_size=1, total_steps=50)
    assert longer.plot(ax=axes) is axes
    assert axes.get_xlim() == (0, 50) and axes.get_ylim()[0] == 0 and axes.get_ylim()[1] >= 1024
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["StagedSchedule, 8 to 16", "LinearSchedule, 8 to 1,024"]


@needs_matplotlib
def test_plot_makes_new_axes_each_time():
    assert GROWING.plot() is not GROWING.plot()


@needs_matplotlib
def test_a_function_is_labelled_by_its_name():
    def constant(step):
        return 8

    axes = SequenceLengthPlan(constant, batch_size=1, total_steps=5).plot()
    assert axes.get_legend_handles_labels()[1] == ["constant, 8 to 8"]


@needs_matplotlib
def test_a_plan_without_an_end_is_drawn_beyond_its_last_change():
    plan = SequenceLengthPlan(StagedSchedule([8, 16], [100]), batch_size=2)
    assert drawn(plan.plot().patches[0]) == {step: 8 if step < 100 else 16 for step in range(125)}
    constant = SequenceLengthPlan(ConstantSchedule(8), batch_size=2)
    assert drawn(constant.plot().patches[0]) == dict.fromkeys(range(10), 8)


def test_the_stages_of_an_endless_callable_cannot_be_drawn():
    refused(SequenceLengthPlan(lambda step: 8, batch_size=2).plot, "endless", "total_steps")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(GROWING.plot, "matplotlib", "pip install 'slw_data[plot]'", error=ImportError)
    refused(lambda: picture([]), "matplotlib", "slw_data[plot]", error=ImportError)


# -- the picture of the command line -----------------------------------------------------------------------------------


def curve(label, plan):
    return Curve(label, plan.stages, [plan.tokens(stage.start) for stage in plan.stages])


@needs_matplotlib
def test_the_picture_has_lengths_above_and_tokens_below_with_units_and_a_legend():
    budget = SequenceLengthPlan(StagedSchedule([8, 24], [4]), tokens_per_batch=32, world_size=3)
    figure = picture([curve("growing", GROWING), curve("budget", budget)])
    upper, lower = figure.axes
    assert [drawn(line) for line in upper.patches] == [
        {step: [8, 8, 8, 16, 16, 12, 12, 12, 12][step] for step in range(9)},
        {step: 8 if step < 4 else 24 for step in range(14)},  # endless: ten steps after its last change
    ]
    assert [drawn(line) for line in lower.patches] == [
        {step: [16, 16, 16, 32, 32, 24, 24, 24, 24][step] for step in range(9)},
        {step: 96 if step < 4 else 72 for step in range(14)},  # 4 rows of 8, then 1 of 24, on three ranks
    ]
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("sequence length (tokens)", "tokens per step")
    assert (upper.get_xlabel(), lower.get_xlabel()) == ("", "optimizer step")
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["growing", "budget"]


@needs_matplotlib
def test_endless_plans_are_drawn_as_far_as_the_longest_plan():
    endless = SequenceLengthPlan(StagedSchedule([8, 16], [4]), batch_size=1)
    long = SequenceLengthPlan(ConstantSchedule(8), batch_size=1, total_steps=1000)
    upper, _ = picture([curve("endless", endless), curve("long", long)]).axes
    assert [max(drawn(line)) for line in upper.patches] == [999, 999] and upper.get_xlim() == (0, 1000)


def shown(axis):
    """The tick labels of an axis that lie in view."""
    low, high = axis.get_view_interval()
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def overlapping(boxes):
    return [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


@needs_matplotlib
@pytest.mark.parametrize("steps", [1, 10_000, 123_456_789_012])
@pytest.mark.parametrize("label", ["short.yaml", "a folder with a long name/and a file with a long name, too.yaml"])
def test_no_label_overlaps_another_whatever_the_numbers(steps, label):
    schedule = LinearSchedule(1024, 131_072, warmup_fraction=0.3, multiple_of=1024)
    plan = SequenceLengthPlan(schedule, batch_size=512, world_size=4096, total_steps=steps)
    figure = picture([curve(f"{i} {label}", plan) for i in range(4)])
    figure.draw_without_rendering()
    upper, lower = figure.axes
    texts = [label for axis in (upper.yaxis, lower.yaxis, lower.xaxis) for label in shown(axis)]
    texts += [upper.yaxis.label, lower.yaxis.label, lower.xaxis.label, *figure.legends[0].get_texts()]
    inside = [t.get_window_extent() for t in texts]
    assert len(inside) >= 12 and not overlapping(inside)
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in inside)
    assert figure.legends[0].get_window_extent().y0 >= upper.bbox.y1, "the legend covers no line"


@needs_matplotlib
def test_nothing_to_draw_is_an_empty_picture():
    assert draw_lengths([], None).patches[:] == []


# -- tables ------------------------------------------------------------------------------------------------------------


def cells(html):
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]


@pytest.mark.parametrize(
    "plan", [GROWING, SequenceLengthPlan(LinearSchedule(8, 1024, warmup_steps=3000), tokens_per_batch=2048)]
)
def test_the_notebook_shows_the_lines_of_describe(plan):
    *table, summary = plan.describe().splitlines()
    html = plan._repr_html_()
    assert cells(html) == [re.split(r"\s{2,}|(?<=\d) (?=\d)|(?<=step) |(?<=step) {2,}", line.strip()) for line in table]
    assert f"<caption>{summary}</caption>" in html


def test_the_notebook_falls_back_to_the_repr_where_no_stages_are_known():
    assert SequenceLengthPlan(lambda step: 8, batch_size=2)._repr_html_() is None
    assert SequenceLengthPlan(ConstantSchedule(8), batch_size=2, total_tokens=15)._repr_html_() is None


def test_of_many_lines_the_first_and_last_ten_are_shown():
    for count, left_out in ((21, 0), (22, 2), (1000, 980)):
        numbers = [{"step": i, "length": 8, "rows": 2, "tokens/step": 16, "tokens before": 16 * i} for i in range(count)]
        shown = range(count) if not left_out else [*range(10), *range(count - 10, count)]
        text, html = text_table(numbers, "end").splitlines(), html_table(numbers, "end")
        assert [line.split()[0] for line in text[1:-1] if "more" not in line] == [f"{i:,}" for i in shown]
        assert [row[0] for row in cells(html)[1:] if row[0] != "..."] == [f"{i:,}" for i in shown]
        for found in ("\n".join(text), html):
            assert (f"({left_out} more stages)" in found) == bool(left_out)
