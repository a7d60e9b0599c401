"""When: the length, rows and accumulation of every optimizer step.

    schedules   step -> length
    plan        a schedule and a batch shape together, as a short list of stages
    report, plotting    the stages as a table and as a picture

Read :mod:`slw_data.plan.schedules` first; :mod:`slw_data.order` comes next: where a row's tokens lie.
"""

from slw_data.plan.plan import Cost, SequenceLengthPlan, Stage

__all__ = ["Cost", "SequenceLengthPlan", "Stage"]
