"""Which order trains best: the experiment behind the order that ``shuffle=True`` has by default.

    stream order   one reader, from the first token on
    shuffle=True   with every default
    random rows    the yardstick: each row begins anywhere in the corpus, all places alike; some tokens come twice, some never
    num_lanes=n    with --num-lanes: shuffle=True, in so many lanes

    python examples/orders.py --quick
    python examples/orders.py --seeds 3 --json examples/figures/orders.json
    python examples/orders.py --num-lanes 16 64 256 1024

All is as in :mod:`train_gpt`: corpus, model, optimizer, learning rate and lengths. The orders are compared in two shapes, the
two ways of ``slw_data`` there, at the rows and the rates that were best for each. One seed gives one model, and all orders
begin with it. Losses are of held-out files, in rows of full length: the mean of the seeds, and half the range.

Beside them stands what can be counted without training: the distinct documents in a batch of 16 rows of 8 tokens and in 100
such batches, of 1,800 documents of 17,500 tokens, and the tokens that are left at the end of an epoch of them.
Read next: :mod:`quickstart`, which counts documents too, in the batches of a real corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
from gpt import positive, split_corpus
from tqdm import tqdm
from train_gpt import FULL, QUICK, Batch, Job, Size, plan_of, read, spread, train, whole, workers

from slw_data import SequenceLengthPlan, SLWDataset, SLWLoader, StagedSchedule

SHAPES = {"4 rows": ("constant rows", 4, 2e-3), "1 row of constant tokens": ("constant tokens", 1, 4e-3)}
STREAM, DEFAULT, RANDOM = "stream order", "shuffle=True", "random rows"
Order = "dict[str, Any] | None"  # arguments of SLWDataset, or None: rows at random


def orders(num_lanes: Iterable[int]) -> dict[str, Order]:
    """Each order under its name."""
    more = {f"num_lanes={lanes}": {"shuffle": True, "num_lanes": lanes} for lanes in num_lanes}
    return {STREAM: {}, DEFAULT: {"shuffle": True}, **more, RANDOM: None}


def random_rows(tokens: np.ndarray, plan: SequenceLengthPlan, seed: int) -> Iterator[Batch]:
    """The batches of a plan, with each row's first token drawn from all that have a row and its last label behind them."""
    generator = np.random.default_rng(seed)
    for step in range(plan.total_steps):
        starts = generator.integers(len(tokens) - plan.length(step), size=(plan.rows(step), 1))
        cut = torch.from_numpy(tokens[starts + np.arange(plan.length(step) + 1)].astype(np.int64))
        yield {"input_ids": cut[:, :-1], "labels": cut[:, 1:]}


# -- what is trained ---------------------------------------------------------------------------------------------------


def loss_of(run: tuple[Job, Order], size: Size, path: Path) -> float:
    """The held-out loss at the end of one run."""
    job, order = run
    plan = plan_of(job, size)
    if order is None:
        batches = random_rows(np.fromfile(path, dtype="uint16"), plan, job.seed)
    else:
        batches = read(path, plan, seed=job.seed, **order)
    return train(job, size, path, whole(batches)).curve[-1].loss


# -- what is counted ---------------------------------------------------------------------------------------------------


def documents_of(order: Order) -> tuple[float, float, int | None]:
    """Distinct documents in a batch and in 100 batches, both in the mean over 500, and the tokens left after an epoch."""
    numbers = np.repeat(np.arange(1_800, dtype=np.uint16), 17_500)  # each token is the number of its document
    dataset = SLWDataset(numbers, StagedSchedule([8, 1024], [500]), batch_size=16, **(order or {}))
    source = random_rows(numbers, dataset.plan, seed=0) if order is None else SLWLoader(dataset, prefetch=0)
    batches = np.stack([batch["input_ids"].numpy() for batch in islice(source, 500)])
    assert batches.shape == (500, 16, 8), batches.shape
    one = np.mean([np.unique(batch).size for batch in batches])
    hundred = np.mean([np.unique(part).size for part in batches.reshape(5, -1)])
    return float(one), float(hundred), None if order is None else dataset.tokens_left


# -- what is shown -----------------------------------------------------------------------------------------------------

Losses = dict[str, dict[str, list[float]]]  # of each shape and each order, one for each seed


def sentence(losses: Losses) -> str:
    """Where the mean of the default lies beside the range of the seeds of random rows."""
    clauses = []
    for (shape, of), range_ in zip(losses.items(), (f"the seeds' range of {RANDOM}", "it"), strict=True):
        mean, low, high = np.mean(of[DEFAULT]), min(of[RANDOM]), max(of[RANDOM])
        away = f"{mean - high:.3f} above" if mean > high else f"{low - mean:.3f} below" if mean < low else "within"
        clauses.append(f"{away} {range_} with {shape}")
    return f"The mean loss of {DEFAULT} is " + ", and ".join(clauses) + "."


def print_table(losses: Losses, documents: dict[str, tuple[float, float, int | None]]) -> None:
    line = "{:<16}{:>16}{:>27}{:>12}{:>17}{:>14}".format
    print(f"\n{'':<59}distinct documents in\n" + line("held-out loss", *losses, "a batch", "100 batches", "tokens left"))
    for name, (one, hundred, left) in documents.items():
        counts = f"{one:.1f}", f"{hundred:,.0f}", "-" if left is None else f"{left:,}"
        print(line(name, *(spread(of[name], 3) for of in losses.values()), *counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a smaller model, 20,000 tokens: a minute, and losses of no meaning"
    )
    parser.add_argument("--seeds", type=positive, default=1, help="repeat all with so many seeds (default: 1)")
    parser.add_argument("--num-lanes", type=positive, nargs="+", default=[], help="numbers of lanes to try too")
    parser.add_argument("--tokens", type=positive, help="that a run trains on (default: 600,000; with --quick 20,000)")
    parser.add_argument("--max-tokens", type=positive, help="a smaller corpus (default: the whole standard library)")
    parser.add_argument("--processes", type=positive, default=os.cpu_count(), help="runs at a time (default: one a core)")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    size = replace(QUICK, tokens=20_000) if options.quick else FULL
    size = replace(size, tokens=options.tokens or size.tokens)
    tried = orders(options.num_lanes)
    names = list(product(range(options.seeds), SHAPES, tried))
    runs = [(Job(*SHAPES[shape], seed, size.tokens, evaluations=1), tried[order]) for seed, shape, order in names]
    with tempfile.TemporaryDirectory() as temporary, workers(options.processes) as pool:
        run = partial(loss_of, size=size, path=split_corpus(Path(temporary), options.max_tokens))
        found = list(tqdm(pool.imap(run, runs), total=len(runs), desc="orders", unit="run", disable=None))
    losses: Losses = {shape: {order: [] for order in tried} for shape in SHAPES}
    for (_, shape, order), loss in zip(names, found, strict=True):
        losses[shape][order].append(loss)
    documents = {name: documents_of(order) for name, order in tried.items()}
    print(sentence(losses))
    print_table(losses, documents)
    if options.seeds == 1:
        print("\nof one seed, which has no range: --seeds 3 tells what is chance")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {"size": asdict(size), "seeds": options.seeds, "losses": losses, "documents": documents}
        options.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
