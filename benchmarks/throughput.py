"""Tokens per second from a page-cached file of uint16 tokens to int64 batches: ``python -m benchmarks.throughput``.

Beside the loader, in the same run: the *limit*, one NumPy cast of each batch's tokens and nothing else; and *get_batch*,
the way that nanoGPT makes a batch (a slice, a cast and a tensor for each row of inputs and targets, stacked; the file
is mapped anew for each batch). What delivers targets too is compared with two casts, and both tensors are counted.

The consumer does not touch the data, so these are rates of making batches. About five minutes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.timing import above_zero, per_item, ratios, table
from slw_data import SLWDataset, SLWLoader, StagedSchedule, open_tokens

LENGTHS = (8, 64, 256, 1024)
SHAPES = [(16_384 // length, length) for length in LENGTHS] + [(16, length) for length in LENGTHS[:-1]]


def limit(tokens: np.ndarray[Any, Any], rows: int, length: int, tensors: int) -> Iterator[list[torch.Tensor]]:
    """Batches that are one slice and one cast for each tensor."""
    size, start = rows * length, 0
    while True:
        some = tokens[start : start + size]
        yield [torch.from_numpy(some.astype(np.int64)).view(rows, length) for _ in range(tensors)]
        start = (start + size) % (len(tokens) - size)


def get_batch(path: str, rows: int, length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of random windows with their targets, as nanoGPT's ``get_batch`` makes them."""
    while True:
        data = np.memmap(path, np.uint16, "r")
        starts = torch.randint(len(data) - length, (rows,))
        x = torch.stack([torch.from_numpy(data[i : i + length].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + length].astype(np.int64)) for i in starts])
        yield x, y


def batches(path: str, rows: int, length: int, *, labels: str, shuffle: bool, **loader: int) -> Iterator[Any]:
    """Batches of an SLWLoader, at one length of a warmup that ends at 1024."""
    schedule = StagedSchedule((length, 1024), (10**8,)) if length < 1024 else StagedSchedule((1024,), ())
    shape = {"batch_size": rows} if rows * length < 16_384 else {"tokens_per_batch": rows * length}
    store = open_tokens(path, dtype="uint16")
    return iter(
        SLWLoader(SLWDataset(store, schedule, **shape, total_steps=2 * 10**8, labels=labels, shuffle=shuffle), **loader)
    )


def contenders(path: str, rows: int, length: int) -> dict[str, Callable[[], Iterator[Any]]]:
    tokens = np.memmap(path, np.uint16, "r").view(np.ndarray)
    ours = partial(batches, path, rows, length)
    return {
        "limit": partial(limit, tokens, rows, length, 1),
        "limit x, y": partial(limit, tokens, rows, length, 2),
        "get_batch x, y": partial(get_batch, path, rows, length),
        "in order": partial(ours, labels="none", shuffle=False),
        "in order, no thread": partial(ours, labels="none", shuffle=False, prefetch=0),
        "shuffled": partial(ours, labels="none", shuffle=True),
        "shuffled, no thread": partial(ours, labels="none", shuffle=True, prefetch=0),
        "in order x, y": partial(ours, labels="shifted", shuffle=False),
        "shuffled x, y": partial(ours, labels="shifted", shuffle=True),
        "2 workers": partial(ours, labels="none", shuffle=False, num_workers=2),
        "2 workers shuffled": partial(ours, labels="none", shuffle=True, num_workers=2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=above_zero(int), default=1 << 26, help="tokens in the file")
    parser.add_argument("--seconds", type=above_zero(float), default=0.3, help="of each measurement")
    parser.add_argument("--rounds", type=above_zero(int), default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates, against = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokens.bin")
        np.random.default_rng(0).integers(0, 50_000, options.tokens, dtype=np.uint16).tofile(path)
        for rows, length in SHAPES:
            took = per_item(contenders(path, rows, length), seconds=options.seconds, rounds=options.rounds)
            counted = {name: rows * length * (2 if "x, y" in name else 1) for name in took}
            million = {name: counted[name] / sorted(times)[len(times) // 2] / 1e6 for name, times in took.items()}
            beside = {name: took["limit x, y" if "x, y" in name else "limit"] for name in took}
            rates.append(
                [f"{rows} x {length}", *(f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}" for rate in million.values())]
            )
            against.append([f"{rows} x {length}", *(f"{ratios(took[name], beside[name]):.2g}" for name in took)])
            print(f"{rows} x {length}: done", flush=True)
    head = ["rows x length", *took]
    print("\nMillion tokens per second", table(head, rates), sep="\n\n")
    print("\nTimes the limit (x, y: of two casts)", table(head, against), sep="\n\n")


if __name__ == "__main__":
    main()
