"""Find the warmup for a model by a few short runs, as Li et al. advise (https://arxiv.org/abs/2108.06084): the smallest
starting length, and then the longest warmup, under which the validation perplexity does not fluctuate. The model is tiny,
the text is the source of Python's standard library, and there is nothing to download.

    python examples/tune_warmup.py
    python examples/tune_warmup.py --rate 0.016 --out tuning

Each probe is a new model that trains for a few multiples of the learning rate's warmup. The search is in
:mod:`slw_data.tuning`. Read next: :mod:`stability`, which compares runs with and without a warmup.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from corpus import VOCAB_SIZE, build_corpus
from gpt import GPT, positive
from torch import nn
from tqdm import tqdm

from slw_data import LinearSchedule, SLWDataset, SLWLoader
from slw_data.plan.schedules import Schedule
from slw_data.training import token_lr
from slw_data.tuning import tune_warmup

LONGEST, HELD_OUT = 128, 32  # tokens of the longest rows, and rows of them to validate on
WARMING, EVERY = 20, 5  # steps in which the learning rate grows, and between validations


class Texts(NamedTuple):
    """The tokens to train on, and held-out rows of full length with a label more, int64."""

    train: np.ndarray
    held_out: torch.Tensor


def read_texts(folder: Path, max_tokens: int) -> Texts:
    """The corpus in blocks, of which each tenth is held out."""
    tokens = np.fromfile(build_corpus(folder / "stdlib.bin", max_tokens=max_tokens)[0], dtype="uint16")
    blocks = tokens[: len(tokens) // (10 * HELD_OUT) * 10 * HELD_OUT].reshape(HELD_OUT, 10, -1)
    return Texts(blocks[:, :9].ravel(), torch.from_numpy(blocks[:, 9, : LONGEST + 1].astype(np.int64)))


class Training:
    """A training run from its start: a new tiny GPT, its optimizer, and a loader of ``rows`` rows in each step.

    The learning rate grows to ``rate`` over the first steps, and then follows ``decay``, a function of the tokens so far
    as a fraction of all. It has an end in steps or in tokens: ``total_steps`` or ``total_tokens``.
    """

    def __init__(
        self,
        texts: Texts,
        schedule: Schedule,
        *,
        rows: int,
        rate: float,
        seed: int = 0,
        decay: Callable[[float], float] = lambda done: 1.0,
        **end: int,
    ) -> None:
        torch.manual_seed(seed)
        self.held_out, self.rate = texts.held_out, rate
        self.model = GPT(VOCAB_SIZE, layers=2, width=64, heads=4, max_length=LONGEST)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, foreach=True)
        dataset = SLWDataset(texts.train, schedule, batch_size=rows, shuffle=True, seed=seed, labels="shifted", **end)
        self.loader = SLWLoader(dataset, prefetch=0)
        self.decay = token_lr(dataset.plan, lambda tokens: decay(tokens / dataset.plan.total_tokens))

    def steps(self) -> Iterator[float]:
        """Make every step, one at a time; each gives its training loss, and a loss that is not finite is the last."""
        for step, batch in enumerate(self.loader):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * min(1.0, (step + 1) / WARMING) * self.decay(step)
            loss = self.model(batch["input_ids"], batch["labels"])
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            yield loss.item()
            if not math.isfinite(loss.item()):
                break

    @torch.no_grad()
    def validate(self) -> float:
        """The mean loss of the held-out rows, in nats per token."""
        return self.model(self.held_out[:, :-1], self.held_out[:, 1:]).item()


def probe(texts: Texts, schedule: LinearSchedule, *, rows: int, rate: float, steps: int, bar: tqdm) -> list[float]:
    """The validation losses of a run's first steps."""
    training, losses = Training(texts, schedule, rows=rows, rate=rate, total_steps=steps), []
    bar.set_description(f"{schedule.min_length} to {LONGEST} over {schedule.warmup_steps} steps")
    for step, loss in enumerate(training.steps(), 1):
        bar.update()
        if step % EVERY == 0 or not math.isfinite(loss):
            losses.append(training.validate())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the corpus and tuning.json (default: a temporary one)")
    parser.add_argument("--rate", type=float, default=0.004, help="the learning rate (default: 0.004)")
    parser.add_argument("--rows", type=positive, default=8, help="rows of a batch (default: 8)")
    parser.add_argument("--steps", type=positive, default=8 * WARMING, help=f"of a probe (default: {8 * WARMING})")
    parser.add_argument("--longest", type=positive, default=1600, help="steps of the longest warmup to try (default: 1600)")
    parser.add_argument("--max-tokens", type=positive, default=4_000_000, help="of the corpus (default: 4000000)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, tqdm(unit="step", leave=False, disable=None) as bar:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        texts = read_texts(folder, options.max_tokens)
        tuning = tune_warmup(
            lambda schedule: probe(texts, schedule, rows=options.rows, rate=options.rate, steps=options.steps, bar=bar),
            max_length=LONGEST,
            warmup_steps=range(2 * WARMING, options.longest + 1, WARMING),
        )
        (folder / "tuning.json").write_text(json.dumps(asdict(tuning)))  # with every loss of every probe
    print(tuning.describe())
    print(f"{len(tuning.probes)} probes of {options.steps} steps in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
