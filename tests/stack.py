"""Training stacks in processes of their own, and what the plain loop would have trained on.

A script of ``tests/stacks`` is run once for each rank, with the environment that ``torchrun`` would give it. It calls
:func:`main` with a function from options to a result that JSON can hold; :func:`launch` collects the results::

    [first, second] = launch("accelerate", 2, folder, workers=2, accum=3)

:func:`expected` is the independent answer: lists and loops over the tokens, nothing of the library. :func:`expected_divided`
is that of a stream in shards, each behind a buffer of its own.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from oracle import naive_buffer, naive_dealing, rows_of

VOCAB = 97
ROWS = 2  # of a batch
SHORT, LONG, WARMUP = 4, 16, 8  # lengths, and the steps from one to the other, by multiples of 4
TOKENS = np.random.default_rng(0).integers(1, VOCAB, 60_000).astype(np.uint16)

Batch = tuple[int, int, list[list[int]]]  # step, length, ids


def length(step: int) -> int:
    return min(LONG, SHORT + (LONG - SHORT) * step // WARMUP // 4 * 4)


def expected(steps: int, *, world: int = 1, rank: int = 0, accum: int = 1) -> list[Batch]:
    """The micro-batches of one rank: rows are cut one after the other, and dealt to micro-batches, then to ranks."""
    batches, position = [], 0
    for step in range(steps):
        for _ in range(accum):
            for of in range(world):
                rows = []
                for _ in range(ROWS):
                    rows.append(TOKENS[position : position + length(step)].tolist())
                    position += length(step)
                if of == rank:
                    batches.append((step, length(step), rows))
    return batches


SHARDS, OF_STEP = 4, 8  # of a divided stream, and the rows of a step over all ranks
DIVIDED = {"num_shards": SHARDS, "shuffle_buffer": 5, "seed": 3}


def part(shard: int, num_shards: int) -> list[list[int]]:
    """The documents of a shard, so few that a run of 20 steps reads them more than once."""
    documents = [TOKENS[40 * i : 40 * i + 1 + i * 7 % 23].tolist() for i in range(120)]
    return documents[shard::num_shards]


def expected_divided(steps: int, *, world: int = 1, rank: int = 0, accum: int = 1) -> list[Batch]:
    """The micro-batches of one rank: a step has as many rows of each shard, and a rank those that follow each other."""
    shapes = [(length(step), OF_STEP // SHARDS) for step in range(steps)]
    shards = []
    for shard in range(SHARDS):
        documents = part(shard, SHARDS)
        read = [document for number in range(9) for document in naive_buffer(documents, 5, (3, shard, number))]
        shards.append(naive_dealing(read, shapes)[0])
    batches, many = [], OF_STEP // world // accum
    for step, of_shards in enumerate(zip(*shards, strict=True)):
        rows = [row[: length(step)] for row in rows_of(list(of_shards))]
        for micro in range(accum):
            first = (rank * accum + micro) * many
            batches.append((step, length(step), rows[first : first + many]))
    assert len(batches) == steps * accum
    return batches


def launch(script: str, world: int, folder: Path, *, timeout: float = 240, **options: Any) -> list[Any]:
    """The results of ``tests/stacks/SCRIPT.py`` on each of ``world`` ranks; raises with its output where a rank fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path, processes = Path(__file__).parent / "stacks" / f"{script}.py", []
    for rank in range(world):
        found = os.pathsep.join(map(str, path.parents[1:3]))
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": found,
        }  # fmt: skip
        if world == 1:  # an ordinary process, started without torchrun
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                environment.pop(name)
        result, output = folder / f"{rank}.json", folder / f"{rank}.txt"
        result.unlink(missing_ok=True)
        command = [sys.executable, str(path), json.dumps(options), str(result)]
        with output.open("wb") as file:
            processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=folder))
    deadline = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break  # the others would wait for it
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank in range(world):
        if not (folder / f"{rank}.json").exists():
            text = (folder / f"{rank}.txt").read_text(errors="replace")
            raise AssertionError(f"{script}: rank {rank} of {world} gave no result with {options}:\n{text[-4000:]}")
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(world)]


# How warnings begin of plans that are as short as those of tests.
SHORT_RUNS = "|".join(
    (
        "this run ends before its warmup does",
        "more than half of this run's steps are tiny",
        "in stream order the first step",
        ".* would each read the whole of",
    )
)


def main(function: Callable[..., Any]) -> None:
    """In a script: call ``function`` with the options, and write what it returns."""
    result = function(**json.loads(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
