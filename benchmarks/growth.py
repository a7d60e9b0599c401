"""Whether the cost of a batch grows with the store, the run, the files, the lanes and the ranks:
``python -m benchmarks.growth``.

Microseconds per batch of one shape, and how many times the first line of the table. A short range of batches is made again
and again. What is timed is finding and making batches, not the disk: the tokens of a store are computed, and those of several
files are few. Without a thread that reads ahead, so that no second core is needed.

The last table has the milliseconds that a step of 32 rows costs one of many ranks, for each mode, over a store of 10 million
documents, whose sizes are log-normal, with a median of 400 tokens (for mode "pack" also divided into as many shards as there
are ranks); and over a stream that is divided so, with documents of such sizes, reading them included. There steps follow each
other.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.timing import above_zero, per_item, table
from slw_data import ConstantSchedule, SLWDataset, SLWLoader, open_tokens

ROWS, LENGTH = 16, 256
RANK_ROWS, WORLDS = 32, (1, 8, 64, 512, 4096)
MODES = ("stream", "segment", "truncate", "buckets", "pack")
STREAMS = (("stream", 1), ("stream", 64), ("segment", 64), ("truncate", 1), ("pack", None))  # and their lanes
FLAT = 1.25  # times the cheapest line: what is within the noise


class Computed:
    """A store whose tokens are their places."""

    name = fingerprint = "computed"
    dtype = np.dtype(np.uint16)

    def __init__(self, tokens: int, documents: Any = None) -> None:
        self.tokens, self.documents = tokens, documents

    def __len__(self) -> int:
        return self.tokens

    def read(self, start: int, stop: int) -> Any:
        return np.arange(start, stop).astype(np.uint16)

    def gather(self, starts: Any, length: int, out: Any) -> None:
        out[:] = starts.astype(out.dtype)[:, None] + np.arange(length, dtype=out.dtype)


def sparse(path: Path, tokens: int) -> Path:
    """A file of so many tokens, all 0, that takes no room."""
    with open(path, "wb") as file:
        file.truncate(2 * tokens)
    return path


def of_one_rank(source: Any, mode: str, length: int, shuffle: bool, world: int, num_shards: int = 1) -> SLWLoader:
    """The loader of the middle one of ``world`` ranks."""
    dataset = SLWDataset(
        source,
        ConstantSchedule(length),
        batch_size=RANK_ROWS,
        total_steps=2 * 10**8,
        mode=mode,
        pad_id=0 if mode in ("segment", "truncate", "pack") else None,
        labels="none",
        shuffle=shuffle,
        num_shards=num_shards,
        dp_rank=world // 2,
        dp_world_size=world,
    )
    return SLWLoader(dataset, prefetch=0)


def ranks(seconds: float, rounds: int, documents: int, worlds: Sequence[int]) -> str:
    """The table of the cost of a step on one of many ranks."""
    sizes = np.random.default_rng(0).lognormal(np.log(400), 1, documents).astype(np.int64) + 1
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    source, rows = Computed(int(bounds[-1]), bounds), []


    def add(name: str, made: Callable[[int], SLWLoader]) -> None:
        loaders = {str(world): made(world) for world in worlds}
        measured = per_item({name: partial(iter, loader) for name, loader in loaders.items()}, seconds=seconds, rounds=rounds)
        rows.append([name, *(f"{median(times) * 1e3:.3f}" for times in measured.values())])

    for mode, shuffle, length in product(MODES, (False, True), (8, 1024)):  # a chunk's first step bears its cost
        order = "shuffled" if shuffle else "in order"
        add(f"{mode}, {order}, {length:,}", partial(of_one_rank, source, mode, length, shuffle))
        if mode == "pack":
            divided = partial(of_one_rank, source, mode, length, shuffle)
            add(f"{mode}, {order}, divided, {length:,}", lambda world, made=divided: made(world, max(2, world)))
    for (mode, lanes), length in product(STREAMS, (8, 1024)):
        of_lanes = "" if lanes is None else f" {lanes} lane{'s' * (lanes > 1)},"
        add(f"{mode}, divided stream,{of_lanes} {length:,}", partial(of_one_shard, mode, lanes, length))
    return table(["mode, order, length", *(f"{world:,}" for world in worlds)], rows)


def documents_of(shard: int, num_shards: int) -> Iterator[Any]:
    """Documents of one shard, which cost nothing to make."""
    sizes = np.random.default_rng(shard).lognormal(np.log(400), 1, 1000).astype(np.int64) + 1
    tokens = np.arange(int(sizes.max()))
    while True:
        yield from (tokens[:size] for size in sizes)


def of_one_shard(mode: str, lanes: int | None, length: int, world: int) -> SLWLoader:
    """The loader of the middle one of ``world`` ranks, each of which reads one shard of a stream."""
    dataset = SLWDataset(
        documents_of,
        ConstantSchedule(length),
        batch_size=RANK_ROWS,
        total_steps=10**9,
        mode=mode,
        pad_id=None if mode == "stream" else 0,
        labels="none",
        num_lanes=lanes,
        num_shards=max(2, world),
        dp_rank=world // 2,
        dp_world_size=world,
    )
    return SLWLoader(dataset, prefetch=0)


Case = Callable[[bool], SLWLoader]  # shuffled or not -> a loader at the step to begin at


def made(source: Any, shuffle: bool, *, step: int = 0, num_lanes: int | None = None) -> SLWLoader:
    store = source if isinstance(source, Computed) else open_tokens(source, dtype="uint16")
    shape = {"batch_size": ROWS, "total_steps": 2 * 10**8}
    dataset = SLWDataset(store, ConstantSchedule(LENGTH), **shape, labels="none", shuffle=shuffle, num_lanes=num_lanes)
    loader = SLWLoader(dataset, prefetch=0)
    loader.seek(step)
    return loader


def again_and_again(loader: SLWLoader, batches: int) -> Iterator[Any]:
    """So many batches from where the loader stands, which are read once before, and then the same ones, without an end."""
    step = loader.step
    deque(islice(loader, batches), maxlen=0)
    while True:
        loader.seek(step)
        yield from islice(loader, batches)


def cases(folder: Path, most: int | None) -> dict[str, dict[str, Case]]:
    """For each of the four ways to grow, a case for each line of its table, of which there are at most so many."""

    def sizes(*powers: int, base: int = 10) -> list[int]:
        return [base**power for power in powers[:most]]

    store = Computed(10**8)
    parts = [sparse(folder / f"part{i}.bin", 1 << 20) for i in range(max(sizes(0, 1, 2, 3, 4)))]
    return {
        "tokens in the store": {f"{n:,}": partial(made, Computed(n)) for n in sizes(6, 8, 10, 12)},
        "step": {f"{n:,}": partial(made, store, step=n) for n in sizes(3, 4, 5, 6, 7, 8)},
        "files of 2^20 tokens": {f"{n:,}": partial(made, parts[:n]) for n in sizes(0, 1, 2, 3, 4)},
        "lanes": {f"{n:,}": partial(made, store, num_lanes=n) for n in sizes(0, 2, 4, 6, 8, 10, 12, base=2)},
    }


def opened(case: Case, shuffle: bool) -> float:
    """Seconds to the first batch."""
    start = time.perf_counter()
    next(iter(case(shuffle)))
    return time.perf_counter() - start


def grown(lines: Mapping[str, Case], seconds: float, rounds: int, batches: int) -> tuple[list[list[str]], str]:
    """The table of one way to grow, and in words where it is not flat."""
    took: dict[bool, list[float]] = {}
    for shuffle in (False, True):
        contenders = {name: again_and_again(case(shuffle), batches) for name, case in lines.items()}
        measured = per_item({name: partial(iter, it) for name, it in contenders.items()}, seconds=seconds, rounds=rounds)
        took[shuffle] = [min(times) * 1e6 for times in measured.values()]  # what other programs disturbed least
    first = [min(opened(case, True) for _ in range(3)) * 1e3 for case in lines.values()]
    rows = [
        [name, *(f"{took[way][i]:.2f} ({took[way][i] / took[way][0]:.2f})" for way in took), f"{first[i]:.1f}"]
        for i, name in enumerate(lines)
    ]
    return rows, "; ".join(f"{way}: {verdict(list(lines), took[way == 'shuffled'])}" for way in ("in order", "shuffled"))


def verdict(names: list[str], costs: list[float]) -> str:
    """In words: flat, or at which lines it costs more."""
    dear = [f"{cost / min(costs):.1f} times at {name}" for name, cost in zip(names, costs, strict=True)]
    dear = [text for text, cost in zip(dear, costs, strict=True) if cost > FLAT * min(costs)]
    return "not flat, " + ", ".join(dear) if dear else f"flat, within {max(costs) / min(costs) - 1:.0%}"


def report(seconds: float, rounds: int, batches: int, most: int | None) -> None:
    """Print the four tables, and that of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in cases(Path(folder), most).items():
            rows, words = grown(lines, seconds, rounds, batches)
            print(f"\n{table([name, 'in order, us', 'shuffled, us', 'first batch, ms'], rows)}\n\n{words}", flush=True)
    documents, worlds = (10**7, WORLDS) if most is None else (10**4, WORLDS[:most])
    print(f"\nMilliseconds of one of so many ranks for a step\n\n{ranks(3 * seconds, rounds, documents, worlds)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=above_zero(float), default=0.03, help="of each measurement")
    parser.add_argument("--rounds", type=above_zero(int), default=15, help="of which the fastest counts")
    parser.add_argument("--batches", type=above_zero(int), default=512, help="in the range that is made again and again")
    parser.add_argument("--lines", type=above_zero(int), help="of each table, for a quick look")
    options = parser.parse_args()
    print(f"Growth: one batch of {ROWS} x {LENGTH} of slw_data, in brackets times the first line")
    report(options.seconds, options.rounds, options.batches, options.lines)


if __name__ == "__main__":
    main()
