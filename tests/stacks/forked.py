"""Several worlds of processes from one script, which has imported its stack once: importing takes longer than training."""

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from stack import SHORT_RUNS

FORK = multiprocessing.get_context("fork")


def in_worlds(do: Callable[[str, dict[str, Any]], Any], worlds: Sequence[tuple[int, list[Any]]]) -> list[list[list[Any]]]:
    """For each ``(world, jobs)``, one after the other: ``do(name, options)`` for each job, on each rank of so many new
    processes. Results by world, rank and job; an error's is its type and message."""
    return [_in_world(do, world, jobs) for world, jobs in worlds]


def _in_world(do: Callable[..., Any], world: int, jobs: list[Any]) -> list[list[Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world):
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_rank, args=(do, jobs, rank, world, port, sender))
        process.start()
        sender.close()
        ranks.append((process, receiver))
    try:
        return [receiver.recv() if receiver.poll(120) else f"no result of jobs {jobs}" for _, receiver in ranks]
    finally:
        for process, _ in ranks:
            process.join(5)
            process.kill()


def _rank(do: Callable[..., Any], jobs: list[Any], rank: int, world: int, port: int, sender: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    if world > 1:  # as torchrun would
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    results = []
    for name, options in jobs:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", SHORT_RUNS)
                results.append(do(name, options))
        except Exception as error:
            results.append(f"{type(error).__name__}: {error}")
    sender.send(results)
