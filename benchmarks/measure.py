"""One task in a process of its own, that nothing measured before can warm up: ``python -m benchmarks.measure '{...}'``.

The argument says in JSON which of the functions here, and with which arguments; the last line printed is what it returns.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.corpus import Corpus, write_corpus
from benchmarks.peers import LIMIT, PEERS, READY, Peer
from benchmarks.steps import effect, step_time
from benchmarks.timing import per_item, ratios

SOME = 64  # batches of each length, before memory is asked for


def write(folder: str, tokens: int, counted: bool) -> dict[str, Any]:
    """Make a corpus."""
    write_corpus(Path(folder), tokens, counted=counted)
    return {}


def prepare(
    peer: str, folder: str, counted: str, rows: int, lengths: list[int], resume: int
) -> dict[str, list[float] | list[None]]:
    """Make what ``peer`` reads. Seconds for each length; and the share of tokens that it never delivers, at the shortest
    and at the longest."""
    one, took, ends = PEERS[peer], [], (min(lengths), max(lengths))
    make = one.imported.prepare
    for length in lengths:
        start = time.perf_counter()
        make(Corpus(Path(folder)), length)
        took.append(time.perf_counter() - start)
    if hasattr(one.imported, "snapshot"):
        one.imported.snapshot(Corpus(Path(folder)), rows, min(lengths), resume)
    if not one.delivers:
        return {"prepared": took, "lost": [None, None]}
    return {"prepared": took, "lost": [never_delivered(one, Corpus(Path(counted)), length, max(lengths)) for length in ends]}


def never_delivered(peer: Peer, corpus: Corpus, length: int, size: int) -> float:
    """The share of a counted corpus that has not come once as many tokens came as it has, in batches of ``size`` tokens."""
    peer.imported.prepare(corpus, length)
    seen = np.zeros(len(corpus.tokens()), np.bool_)
    number = len(seen) // size
    for batch in islice(peer.batches(corpus, size // length, length), number):
        seen[batch.numpy()] = True
    return 1 - int(seen.sum()) / (number * size)


def measure(
    peer: str, folder: str, rows: int, lengths: list[int], seconds: float, resume: int, steps: int, workers: int = 0
) -> dict[str, Any]:
    """Seconds for the import and to the first batch (after it); without workers seconds to the batch of step ``resume``, MB
    of memory at the peak, and the effect on a training step; and at each length tokens per second, and how many times
    those of the limit in turn with it."""
    one, corpus, shortest, start = PEERS[peer], Corpus(Path(folder)), min(lengths), time.perf_counter()
    make = partial(one.batches, corpus, rows, workers=workers)
    one.imported  # noqa: B018 - imports it
    found: dict[str, Any] = {"import": time.perf_counter() - start}
    into_cache(corpus.folder)
    found["first"] = first_batch(lambda: make(max(lengths)), (rows, max(lengths)))
    if not workers:
        found["resume"] = first_batch(lambda: make(shortest, step=resume), (rows, shortest)) if one.resumes else None
        for length in lengths:
            deque(islice(make(length), SOME), maxlen=0)
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found["waited"], found["longer"] = effect(make(shortest), steps)
    beside = partial(PEERS[READY if workers else LIMIT].batches, corpus, rows, workers=workers)
    rates = [rate(partial(make, length), partial(beside, length), seconds) for length in lengths]
    found["rates"] = [rows * length * each for length, (each, _) in zip(lengths, rates, strict=True)]
    found["times"] = [times for _, times in rates]
    return found


def into_cache(folder: Path) -> None:
    """Read all files once: the system may have given up pages that nobody has used for a while."""
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass


def first_batch(make: Callable[[], Iterator[torch.Tensor]], shape: tuple[int, int]) -> float:
    """Seconds to the first batch, which has to be what all peers are asked for."""
    start = time.perf_counter()
    batch = next(make())
    took = time.perf_counter() - start
    if batch.dtype != torch.int64 or batch.shape != shape:
        raise ValueError(f"expected int64 tensors of shape {shape}, got {batch.dtype} of {tuple(batch.shape)}")
    return took


def rate(make: Any, beside: Any, seconds: float) -> tuple[float, float]:
    """Batches per second, and how many times those of ``beside``, in three turns each."""
    took = per_item({"peer": make, "beside": beside}, seconds=seconds / 3, rounds=3)
    return 1 / statistics.median(took["peer"]), ratios(took["peer"], took["beside"])


def training_steps(rows: int, lengths: list[int], steps: int) -> dict[str, list[float]]:
    """Seconds of a training step at each length; of long ones fewer are made."""
    return {"steps": [step_time(rows, length, max(3, steps * min(lengths) // length)) for length in lengths]}


TASKS = {function.__name__: function for function in (write, prepare, measure, training_steps)}


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    print(json.dumps(TASKS[job.pop("task")](**job)), flush=True)


if __name__ == "__main__":
    main()
