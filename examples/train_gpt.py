"""Train a small GPT on real text in five ways, and compare how soon each has learnt as much as the first has at its end.
The text is the source of Python's own standard library, a token for each byte; there is nothing to download.

    full length        every row has all its tokens from the first step on: the baseline
    truncate           rows of full length are read and cut to the current length; the rest of each is thrown away
    constant rows      slw_data with batch_size: the rows of every step are as many, and grow
    constant tokens    slw_data with tokens_per_batch: many short rows at first, few long ones later
    batch size warmup  the control: the tokens of every step are as many as with constant rows, in rows of full length, so
                       at least one row: with one row it is nearly the baseline

    python examples/train_gpt.py --quick
    python examples/train_gpt.py --seeds 3

All begin with the same parameters and train on as many tokens, with one optimizer and a learning rate that falls with the
tokens. A sweep of equal size chooses rows and rate: for the baseline those of its best loss, for the others those that reach
that loss soonest. The lengths of all that grow do so in one way: from 32 on, as many tokens at each doubling, over the first
80% of the tokens. Losses are of held-out files, in rows of full length. Seconds are processor time of the training steps, in
one thread, so a busy machine does not decide.
Read next: :mod:`gpt`, with the model.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from corpus import VOCAB_SIZE
from gpt import GPT, evaluate, held_out_rows, positive, split_corpus, update
from matplotlib.figure import Figure
from tqdm import tqdm

from slw_data import ConstantSchedule, ExponentialSchedule, SequenceLengthPlan, SLWDataset, SLWLoader, open_tokens
from slw_data import set_batch_sequence_length as cut
from slw_data.plan.plotting import draw_lengths
from slw_data.training import token_lr

BASELINE, TRUNCATE, CONTROL = "full length", "truncate", "batch size warmup"
OURS = "constant rows", "constant tokens"
ARMS = BASELINE, TRUNCATE, *OURS, CONTROL
WARMING = 20  # optimizer steps in which the learning rate grows

warnings.filterwarnings("ignore", "more than half of this run's steps are tiny")  # so they are, to be compared in short runs


@dataclass(frozen=True)
class Size:
    """Of the experiment: the model, the tokens that a run trains on, and what is tried in the sweep. Runs of the sweep are as
    long as the final ones: shorter ones have few steps, and choose one row wherever that gives more of them."""

    layers: int
    width: int
    heads: int
    length: int  # of the longest rows, and of those that are evaluated on
    tokens: int  # of a run
    rows: tuple[int, ...]
    rates: tuple[float, ...]
    evaluations: int  # of a final run, at equal distances in tokens
    held_out_rows: int


FULL = Size(3, 96, 3, 1024, 600_000, rows=(1, 2, 4), rates=(2e-3, 4e-3), evaluations=24, held_out_rows=48)
QUICK = Size(2, 64, 2, 512, 140_000, rows=(1, 2, 4), rates=(2e-3, 4e-3), evaluations=16, held_out_rows=24)


@dataclass(frozen=True)
class Job:
    """A run to make. A step of full length has ``rows`` rows."""

    arm: str
    rows: int
    rate: float
    seed: int
    tokens: int
    evaluations: int


class Point(NamedTuple):
    """An evaluation: the tokens read and trained on until then, the seconds of the steps, and the held-out loss."""

    read: float
    trained: float
    seconds: float
    loss: float


@dataclass(frozen=True)
class Run:
    """A run that was made."""

    job: Job
    updates: int
    curve: list[Point]

    def reaching(self, loss: float) -> Point | None:
        """Where it first has this loss, by straight lines between evaluations; None if it never has."""
        for last, now in pairwise([self.curve[0], *self.curve]):
            if now.loss <= loss:
                part = (last.loss - loss) / (last.loss - now.loss) if last.loss > loss else 1.0
                return Point(*(a + part * (b - a) for a, b in zip(last, now, strict=True)))
        return None


Batch = dict[str, torch.Tensor]
Steps = Iterator[tuple["Batch | None", int]]  # for each step its batch, if there is one, and the tokens that were read


# -- the five ways -----------------------------------------------------------------------------------------------------


def plan_of(job: Job, size: Size) -> SequenceLengthPlan:
    """The length, the rows and the tokens of every step, to which the learning rate keeps too."""
    schedule = ExponentialSchedule(32, size.length, warmup_tokens=4 * job.tokens // 5)
    if job.arm == BASELINE:
        return SequenceLengthPlan(ConstantSchedule(size.length), batch_size=job.rows, total_tokens=job.tokens)
    if job.arm == "constant tokens":
        return SequenceLengthPlan(schedule, tokens_per_batch=job.rows * size.length, total_tokens=job.tokens)
    return SequenceLengthPlan(schedule, batch_size=job.rows, total_tokens=job.tokens)


def steps_of(job: Job, size: Size, path: Path) -> Steps:
    """What to train on in each step of the plan."""
    plan, full = plan_of(job, size), partial(SequenceLengthPlan, ConstantSchedule(size.length))
    shuffled = partial(read, path, seed=job.seed, shuffle=True)
    if job.arm == TRUNCATE:
        return truncated(plan, shuffled(full(batch_size=job.rows, total_steps=plan.total_steps)))
    if job.arm == CONTROL:
        return in_full_rows(plan, size.length, shuffled(full(batch_size=1, total_tokens=plan.total_tokens)))
    return whole(shuffled(plan))


def read(path: Path, plan: SequenceLengthPlan, **order: Any) -> Iterable[Batch]:
    """The batches of a plan, in an order: ``seed``, ``shuffle``, ``num_lanes``."""
    dataset = SLWDataset(open_tokens(path, dtype="uint16"), plan, labels="shifted", **order)
    return SLWLoader(dataset, prefetch=0)


def whole(batches: Iterable[Batch]) -> Steps:
    """Batches that are trained on as they were read."""
    return ((batch, batch["input_ids"].numel()) for batch in batches)


def truncated(plan: SequenceLengthPlan, batches: Iterable[Batch]) -> Steps:
    """Batches of full length, cut to the length of each step: as long, and as many rows, as those of ``plan``."""
    for step, batch in enumerate(batches):
        yield cut(batch, plan.length(step)), batch["input_ids"].numel()


def in_full_rows(plan: SequenceLengthPlan, length: int, rows: Iterable[Batch]) -> Steps:
    """The tokens of each step, in rows of full length. What is less than a row adds up over steps until there is one, and
    a step in which none is due trains nothing: so after any step as many tokens were trained on, but for a row."""
    rows = iter(rows)
    for step in range(plan.total_steps):
        due = plan.tokens_before(step + 1) // length - plan.tokens_before(step) // length
        taken = list(islice(rows, due))
        yield {name: torch.cat([row[name] for row in taken]) for name in taken[0]} if taken else None, due * length


# -- a run -------------------------------------------------------------------------------------------------------------


def train(job: Job, size: Size, path: Path, batches: Steps | None = None) -> Run:
    """Make one run, with a progress bar; on other batches of the same plan, if they are given."""
    torch.manual_seed(job.seed)
    model = GPT(VOCAB_SIZE, layers=size.layers, width=size.width, heads=size.heads, max_length=size.length)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, foreach=True)
    plan, batches = plan_of(job, size), batches or steps_of(job, size, path)
    held_out = held_out_rows(path, size.held_out_rows, size.length)
    decay = token_lr(plan, lambda tokens: max(0.1, 1 - tokens / job.tokens))
    updates, trained, read, seconds, curve = 0, 0, 0, 0.0, []
    bar = tqdm(total=job.tokens, desc=job.arm, unit=" tokens", unit_scale=True, position=place, leave=False, disable=None)
    for step in range(plan.total_steps):
        started = time.process_time()
        batch, taken = next(batches)
        if batch is None:
            continue
        rate = job.rate * min(1, (updates + 1) / WARMING) * decay(step)
        ids, labels = batch["input_ids"], batch["labels"]
        loss = update(model, optimizer, ids, labels, rate)
        seconds += time.process_time() - started
        updates, trained, read = updates + 1, trained + ids.numel(), read + taken
        bar.set_postfix(loss=f"{loss:.3f}", length=ids.shape[1], refresh=False)
        bar.update(ids.numel())
        if trained * job.evaluations >= job.tokens * (len(curve) + 1):
            curve.append(Point(read, trained, seconds, evaluate(model, held_out)))
    bar.close()
    if not curve or curve[-1].trained < trained:
        curve.append(Point(read, trained, seconds, evaluate(model, held_out)))
    return Run(job, updates, curve)


# -- all runs ----------------------------------------------------------------------------------------------------------

place = 0  # of this process's progress bar on the screen


def prepare_worker(lock: Any, places: Any) -> None:
    global place
    place = places.get()
    tqdm.set_lock(lock)
    torch.set_num_threads(1)


def workers(processes: int) -> Any:
    """A pool of processes, which draw their progress bars below that of this one."""
    context = multiprocessing.get_context("spawn")
    lock, places = context.RLock(), context.SimpleQueue()
    tqdm.set_lock(lock)
    for number in range(processes):
        places.put(number + 1)
    return context.Pool(processes, prepare_worker, (lock, places))


def sweep(size: Size, seed: int) -> list[Job]:
    """Each arm with all rows and learning rates, in runs like the final ones."""
    shapes = product(ARMS, size.rows, size.rates)
    return [Job(*shape, seed, size.tokens, size.evaluations) for shape in shapes]


def best(tried: list[Run]) -> list[Run]:
    """Of each arm the run that is soonest at the best loss of the baseline; where none gets there, that of the best loss."""
    target = min(run.curve[-1].loss for run in tried if run.job.arm == BASELINE)

    def rank(run: Run) -> tuple[float, float]:
        reached = run.reaching(target)
        return (reached.seconds if reached and run.job.arm != BASELINE else math.inf), run.curve[-1].loss

    return [min((run for run in tried if run.job.arm == arm), key=rank) for arm in ARMS]


def finals(tried: list[Run], seeds: Iterable[int]) -> list[Job]:
    """Each arm at its best, for each seed. The arms take turns, so that a slow minute of the machine hits all of them."""
    return [replace(run.job, seed=seed) for seed, run in product(seeds, best(tried))]


# -- what is shown -----------------------------------------------------------------------------------------------------

Table = dict[str, dict[str, list["float | None"]]]


def sentence(table: Table) -> str:
    """The result, in means over the seeds."""
    clauses = []
    for arm, loss in zip(OURS, ("the baseline's final loss", "it"), strict=True):
        times, data = table[arm]["time"], table[arm]["data"]
        if None in times:
            seeds = f" with {times.count(None)} of {len(times)} seeds" if len(times) > 1 else ""
            clauses.append(f"{arm} did not reach {loss}{seeds}")
        else:
            shares = f"{np.mean(times):.2f} of its time and {np.mean(data):.2f} of its data"
            clauses.append(f"{arm} reached {loss} in {shares}{'' if np.mean(times) < 1 else ', no gain in time'}")
    return ", and ".join(clauses).capitalize() + "."


def print_sweep(size: Size, tried: list[Run]) -> None:
    shapes = list(product(size.rows, size.rates))
    print(f"\nheld-out loss after {size.tokens:,} tokens, by rows x learning rate (* chosen)\n")
    print(" " * 18 + "".join(f"{f'{rows} x {rate:g}':>10} " for rows, rate in shapes))
    for chosen in best(tried):
        runs = [run for run in tried if run.job.arm == chosen.job.arm]
        print(f"{chosen.job.arm:<18}" + "".join(f"{run.curve[-1].loss:>10.3f}{'*' if run is chosen else ' '}" for run in runs))


def by_arm(runs: list[Run]) -> Table:
    """The figures of each arm, one for each seed: those of its end, and the time and the tokens read until it has the
    final loss of the baseline of its seed, as ratios to that baseline's own."""
    ends = {run.job.seed: run.curve[-1] for run in runs if run.job.arm == BASELINE}
    table: Table = {arm: {} for arm in ARMS}
    for run in runs:
        end = ends[run.job.seed]
        reached = run.reaching(end.loss)
        ratios = (reached.seconds / end.seconds, reached.read / end.read) if reached else (None, None)
        for name, value in (*run.curve[-1]._asdict().items(), ("time", ratios[0]), ("data", ratios[1])):
            table[run.job.arm].setdefault(name, []).append(value)
    return table


def print_finals(runs: list[Run], table: Table) -> None:
    """The mean of each figure, and half the distance from its smallest to its largest; times that overlap are a tie."""
    line = "{:<18}{:>5}{:>7}{:>15}{:>11}{:>12}{:>13}{:>12}{:>14}{:>14}".format
    print(f"\ntime and data: until the final loss of the baseline, {BASELINE!r}, as a ratio to what that takes itself\n")
    print(line("", "rows", "rate", "final loss", "read", "trained on", "thrown away", "seconds", "time", "data read"))
    for run, (arm, figures) in zip(runs, table.items(), strict=False):  # the first runs are those of the first seed
        read, trained = np.mean(figures["read"]), np.mean(figures["trained"])
        counts = (f"{count:,.0f}" for count in (read, trained, read - trained))
        ratios = (spread(figures[name], 2) for name in ("time", "data"))
        shape = run.job.rows, f"{run.job.rate:g}", spread(figures["loss"], 3)
        print(line(arm, *shape, *counts, spread(figures["seconds"], 0), *ratios))
    print()
    if len(runs) == len(ARMS):
        print("of one seed: --seeds 3, or another --seed, tells what is chance")
        return
    for mine in OURS:
        others = (f"{verdict(table[mine]['time'], table[arm]['time'])} {arm!r}" for arm in ARMS if arm != mine)
        print(f"{mine!r} is", ", ".join(others))


def spread(values: list[float | None], digits: int) -> str:
    if None in values:
        return "not reached"
    half = f" ± {(max(values) - min(values)) / 2:,.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.{digits}f}{half}"


def verdict(mine: list[float | None], others: list[float | None]) -> str:
    mine, others = ([float("inf") if time is None else time for time in times] for times in (mine, others))
    return "faster than" if max(mine) < min(others) else "slower than" if min(mine) > max(others) else "a tie with"


def draw(path: Path, size: Size, runs: list[Run]) -> None:
    """The mean loss of each arm over tokens and over seconds, with the range of the seeds, and the lengths below."""
    figure = Figure(figsize=(11, 8), dpi=150, layout="constrained")
    axes = figure.subplot_mosaic([["tokens", "seconds"], ["steps", "steps"]], height_ratios=(5, 3))
    for arm, color, linestyle in zip(ARMS, ("C7", "C1", "C2", "C3", "C0"), ("-", "--", "-", "-", "-."), strict=True):
        mine = [run for run in runs if run.job.arm == arm]
        curves = np.array([run.curve for run in mine])  # (seeds, evaluations, figures)
        style = {"color": color, "linestyle": linestyle, "linewidth": 1.8, "label": arm, "zorder": 2 + (linestyle != "-")}
        (_, tokens, seconds, loss), losses = curves.mean(axis=0).T, curves[:, :, -1]
        for name, over in (("tokens", tokens / 1e6), ("seconds", seconds)):
            axes[name].plot(over, loss, **style)
            axes[name].fill_between(over, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.2, linewidth=0)
        stages = [(0, mine[0].updates, size.length, 0, 0)] if arm == CONTROL else plan_of(mine[0].job, size).stages
        draw_lengths(stages, axes["steps"], **style)
    target = np.mean([run.curve[-1].loss for run in runs if run.job.arm == BASELINE])
    for name, label in (("tokens", "tokens trained on (millions)"), ("seconds", "processor time of the steps (seconds)")):
        axes[name].axhline(target, color="C7", linewidth=0.8)
        axes[name].set(xlabel=label, ylabel="held-out loss (nats per byte)", xlim=(0, None), ylim=(None, target + 1))
        axes[name].grid(alpha=0.3)
    figure.legend(*axes["tokens"].get_legend_handles_labels(), loc="outside upper center", ncols=len(ARMS), frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything: two minutes of one core")
    parser.add_argument("--out", type=Path, default=Path("train_gpt_out"), help="for what is written (default: train_gpt_out)")
    parser.add_argument("--seeds", type=positive, default=1, help="repeat the final runs with so many seeds (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the first of these (default: 0); the sweep takes the next")
    parser.add_argument("--processes", type=positive, default=os.cpu_count(), help="runs at a time (default: one a core)")
    parser.add_argument("--tokens", type=positive, help="that a run trains on (default: 600,000; with --quick 140,000)")
    parser.add_argument("--max-tokens", type=positive, help="a smaller corpus (default: the whole standard library)")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    if options.tokens is not None:
        size = replace(size, tokens=options.tokens)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, workers(options.processes) as pool:
        run = partial(train, size=size, path=split_corpus(Path(temporary), options.max_tokens))
        seeds = range(options.seed, options.seed + options.seeds)
        jobs = sweep(size, seeds.stop)
        tried = list(tqdm(pool.imap(run, jobs), total=len(jobs), desc="sweep", unit="run", disable=None))
        jobs = finals(tried, seeds)
        runs = list(tqdm(pool.imap(run, jobs), total=len(jobs), desc="final runs", unit="run", disable=None))
    table = by_arm(runs)
    print(sentence(table))
    print_finals(runs, table)
    print_sweep(size, tried)
    figures = {"size": asdict(size), "sweep": [*map(asdict, tried)], "runs": [*map(asdict, runs)], "table": table}
    (options.out / "figures.json").write_text(json.dumps(figures))
    draw(options.out / "losses.png", size, runs)
    print(f"\nwrote {options.out / 'figures.json'} and {options.out / 'losses.png'}")


if __name__ == "__main__":
    main()
