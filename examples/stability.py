"""How high a learning rate and how large a batch can be, with and without a warmup: the main claim of Li et al.
(https://arxiv.org/abs/2108.06084), at the size of a toy. The text is the source of Python's standard library, and there is
nothing to download.

    python examples/stability.py --quick --out stability
    python examples/stability.py --out stability

For each batch size the learning rate grows fourfold from one setting to the next. At each setting, a run with rows of full
length from the first step on, and one whose rows grow, train on as many tokens, from the same initialisation; the second
makes more steps, as short rows are fewer tokens. Both are judged by the loss on held-out rows of full length, as that of a
batch of short rows is noisy in itself. A run *survives* if

    every loss is finite,
    no held-out loss is above 1.2 times the best before it, the limit beyond which Li et al. count spikes, and
    its last held-out loss is at most 1.05 times that of the baseline at the lowest learning rate of its batch size.

The highest rate that is survived is the last one before the first that is not, so that a lucky run counts for nothing.
The training itself is in :mod:`tune_warmup`.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import product, takewhile
from pathlib import Path

import torch
from gpt import positive
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tqdm import tqdm
from tune_warmup import LONGEST, Texts, Training, read_texts

from slw_data import ConstantSchedule, LinearSchedule
from slw_data.training import LossRatio, adam_variance

ARMS = ("full length", "warmup")
COLORS = {"full length": "C0", "warmup": "C1"}
MEASURES = {
    "loss_ratio": "largest ratio of a held-out loss\nto the best before it",
    "variance_maximum": "largest Adam variance\n(squared gradient)",
    "held_out_loss": "held-out loss at the end\n(nats per token)",
}
WORST = ("steps", "loss_ratio", "variance_maximum")  # of which the table has the largest of all seeds
LIMIT, SLACK = 1.2, 1.05
EVERY = 5  # steps between two looks at the held-out rows


@dataclass(frozen=True)
class Size:
    """Of the experiment: its settings, and how many steps a run of full length has."""

    rows: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: int
    steps: int


FULL = Size(rows=(8, 32), rates=(0.004, 0.016, 0.064, 0.256), seeds=2, steps=300)
QUICK = Size(rows=(8,), rates=(0.004, 0.032, 0.256), seeds=1, steps=200)


@dataclass(frozen=True)
class Outcome:
    """A run, and what became of it."""

    arm: str
    rows: int
    rate: float
    seed: int
    steps: int
    loss_ratio: float  # the largest, of held-out losses
    variance_maximum: float  # the largest of all steps and elements
    held_out_loss: float  # at the end


def train(texts: Texts, size: Size, arm: str, rows: int, rate: float, seed: int) -> Outcome:
    """One run. The learning rate falls to a tenth with the tokens that are done."""
    tokens = size.steps * rows * LONGEST
    schedule = LinearSchedule(8, LONGEST, warmup_tokens=3 * tokens // 10) if arm == "warmup" else ConstantSchedule(LONGEST)
    training = Training(
        texts, schedule, rows=rows, rate=rate, seed=seed, decay=lambda done: max(0.1, 1 - done), total_tokens=tokens
    )
    ratio, maximum, step = LossRatio(), 0.0, 0
    for step, loss in enumerate(training.steps(), 1):
        maximum = max(maximum, adam_variance(training.optimizer).maximum)
        if step % EVERY == 0 or not math.isfinite(loss):
            ratio.update(training.validate())
    last = training.validate()
    ratio.update(last)
    return Outcome(arm, rows, rate, seed, step, ratio.largest, maximum, last)


def survives(outcome: Outcome, outcomes: Iterable[Outcome]) -> bool:
    """As the head of this file says; with ``outcomes`` of all runs, for the baseline's own."""
    same = [other for other in outcomes if (other.rows, other.seed, other.arm) == (outcome.rows, outcome.seed, "full length")]
    reference = min(same, key=lambda other: other.rate).held_out_loss
    return outcome.loss_ratio <= LIMIT and outcome.held_out_loss <= SLACK * reference  # of NaN, neither holds


def highest(outcomes: list[Outcome], arm: str, rows: int) -> float | None:
    """The highest learning rate that every seed survives, as it does all below it; None if there is none."""
    ours = [outcome for outcome in outcomes if (outcome.arm, outcome.rows) == (arm, rows)]
    failed = {outcome.rate for outcome in ours if not survives(outcome, outcomes)}
    return max(takewhile(lambda rate: rate not in failed, sorted({outcome.rate for outcome in ours})), default=None)


# -- what is shown -----------------------------------------------------------------------------------------------------


def table(outcomes: list[Outcome]) -> str:
    """A line for each setting and arm: of the ratios and maxima the largest, of the losses the mean over the seeds."""
    lines = [f"{'rows':>4} {'rate':>6}  {'arm':<11} {'steps':>5} {'loss ratio':>10} {'variance':>8} {'loss':>6}  survive"]
    for rows, rate, arm in dict.fromkeys((run.rows, run.rate, run.arm) for run in outcomes):
        runs = [run for run in outcomes if (run.rows, run.rate, run.arm) == (rows, rate, arm)]
        steps, ratio, variance = (max(getattr(run, name) for run in runs) for name in WORST)
        loss, alive = sum(run.held_out_loss for run in runs) / len(runs), sum(survives(run, outcomes) for run in runs)
        figures = f"{steps:>5} {ratio:>10.2f} {variance:>8.1e} {loss:>6.3f}"
        lines.append(f"{rows:>4} {rate:>6g}  {arm:<11} {figures}  {alive} of {len(runs)}")
    return "\n".join(lines)


def verdicts(outcomes: list[Outcome]) -> list[str]:
    """A sentence for each batch size."""
    lines = []
    for rows in sorted({outcome.rows for outcome in outcomes}):
        found = {arm: highest(outcomes, arm, rows) for arm in ARMS}
        told = ", ".join(f"{arm} {'at none' if rate is None else f'up to {rate:g}'}" for arm, rate in found.items())
        lines.append(f"{rows} rows of {LONGEST} tokens survive the learning rates: {told}")
    return lines


def picture(outcomes: list[Outcome]) -> Figure:
    """A column for each batch size: the largest loss ratio, the variance's maximum and the last loss, over the rates."""
    columns, rates = sorted({run.rows for run in outcomes}), sorted({run.rate for run in outcomes})
    figure = Figure(figsize=(2.5 + 4 * len(columns), 9), dpi=120, layout="constrained")
    grid = figure.subplots(len(MEASURES), len(columns), sharex=True, sharey="row", squeeze=False)
    for column, rows in enumerate(columns):
        for axes, (name, title) in zip(grid[:, column], MEASURES.items(), strict=True):
            for arm, color in COLORS.items():
                draw(axes, name, [run for run in outcomes if (run.arm, run.rows) == (arm, rows)], outcomes, color)
            axes.set_yscale("log" if name == "variance_maximum" else "linear")
            axes.set_ylabel("" if column else title)
            axes.grid(alpha=0.3)
        grid[0, column].axhline(LIMIT, color="black", linestyle=":")
        grid[0, column].set_title(f"{rows} rows of {LONGEST} tokens")
        grid[-1, column].set_xlabel("learning rate at its peak")
        grid[-1, column].set_xscale("log")
        grid[-1, column].set_xticks(rates, [f"{rate:g}" for rate in rates])
        grid[-1, column].minorticks_off()
    entries = [Line2D([], [], color=color, label=f"{arm}, mean over the seeds") for arm, color in COLORS.items()]
    entries.append(Line2D([], [], color="black", linestyle=":", label=f"limit of the ratio, {LIMIT}"))
    entries.append(Line2D([], [], color="black", linestyle="", marker="o", label="a run that survives"))
    entries.append(Line2D([], [], color="black", linestyle="", marker="x", label="a run that does not"))
    figure.legend(handles=entries, loc="outside upper center", ncols=2, frameon=False)
    return figure


def draw(axes: Axes, name: str, ours: list[Outcome], outcomes: list[Outcome], color: str) -> None:
    """The mean over the seeds as a line, and each run as a point."""
    values = {rate: [getattr(run, name) for run in ours if run.rate == rate] for rate in sorted({run.rate for run in ours})}
    axes.plot(list(values), [sum(of_rate) / len(of_rate) for of_rate in values.values()], color=color)
    for run in ours:
        axes.plot(run.rate, getattr(run, name), "o" if survives(run, outcomes) else "x", color=color)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for stability.png and stability.json (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="fewer settings, one seed, shorter runs: about a minute")
    parser.add_argument("--steps", type=positive, help="of a run of full length (default: 300, quick 200)")
    parser.add_argument("--max-tokens", type=positive, default=4_000_000, help="of the corpus (default: 4000000)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = QUICK if options.quick else FULL
    size = replace(size, steps=options.steps or size.steps)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        texts, started, outcomes = read_texts(folder, options.max_tokens), time.process_time(), []
        jobs = list(product(size.rows, size.rates, ARMS, range(size.seeds)))
        for rows, rate, arm, seed in tqdm(jobs, unit="run", disable=None):
            outcomes.append(train(texts, size, arm, rows, rate, seed))
        record = {"size": asdict(size), "runs": [{**asdict(o), "survives": survives(o, outcomes)} for o in outcomes]}
        (folder / "stability.json").write_text(json.dumps(record, indent=1))
        picture(outcomes).savefig(folder / "stability.png")
        print(table(outcomes), *verdicts(outcomes), sep="\n")
        print(f"{len(outcomes)} runs in {time.process_time() - started:.0f} s of one core")


if __name__ == "__main__":
    main()
