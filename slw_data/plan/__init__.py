"""When: the length, rows and accumulation of every optimizer step.

    schedules          step -> length, or rows
    stages             steps of one shape, each with all that came before it
    reading, layout    step functions, joined to stages
    timeline, plan     what is known of every step; made of a schedule and a batch shape
    sharded            what a plan asks of each shard of a divided stream
    advice, report, plotting    warnings, and the stages as a table and as a picture
    windows            rows of one length, cut into windows of the scheduled one

Read :mod:`slw_data.plan.schedules` first; :mod:`slw_data.order` comes next: where a row's tokens lie.
"""

from slw_data.plan.plan import SequenceLengthPlan
from slw_data.plan.report import Cost
from slw_data.plan.sharded import ShardPlan
from slw_data.plan.stages import Stage

__all__ = ["Cost", "SequenceLengthPlan", "ShardPlan", "Stage"]
