"""R3 and R4: ``kill -9`` of the whole run, at any time and at chosen places, again and again until it is finished."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from slw_data import SLWLoader, check_ranks_agree, save_state
from slw_data.batch import divided
from slw_data.batch.stored import StoreBatches
from slw_data.delivery import checkpoint
from slw_data.delivery.workers import WorkerChunks
from slw_data.order.cutting import Dealer
from slw_data.order.dealing import Window
from slw_data.sources.streams import shuffled
from tests.faults import zygote
from tests.faults.ledger import verdict
from tests.faults.runs import KINDS, Kept, Run, Trainer
from tests.faults.tally import Tally

LIMIT = 60  # seconds for a run that nobody kills


# -- at any time -------------------------------------------------------------------------------------------------------


def at_any_time(tally: Tally, small: bool) -> None:
    """R3: one run after the other, of each kind; a process of it lives for up to 60 ms (300 if it has files to open)."""
    rng, leaders = random.Random(3), set()
    with tally.folder() as parent:
        log, run = parent / "log.txt", Run(KINDS[0], steps=60)
        for number in tally.each(range(500 if small else 10_000)):
            folder = parent / f"{run.kind} {run.seed}"
            folder.mkdir(exist_ok=True)
            workers = 2 if rng.random() < 0.05 else 0
            pid = zygote.fork(log, train, run, folder, num_workers=workers, prefetch=rng.choice([0, 2]))
            time.sleep(rng.uniform(0.005, 0.3 if workers or run.kind == "parquet" else 0.06))
            zygote.kill(pid)
            leaders.add(pid)
            if (folder / "finished 0").exists():
                tally.add(verdict(run, folder), run)
                run = Run(KINDS[(number + 1) % len(KINDS)], steps=60 if small else 200, seed=number + 1)
        if folder.name == f"{run.kind} {run.seed}":
            finish(tally, run, folder, log)
        check_remains(tally, leaders, log)


def train(run: Run, folder: Path, every: int = 3, **options: Any) -> None:
    Trainer(run, folder, **options).train(every)


def finish(tally: Tally, run: Run, folder: Path, log: Path) -> None:
    """Let a run come to its end, and look at all that it has delivered."""
    outcome(tally, zygote.fork(log, train, run, folder), str(run))
    tally.add(verdict(run, folder), run)


def check_remains(tally: Tally, leaders: set[int], log: Path) -> None:
    """No process is left, no shared memory, and nobody has said anything (killed processes have no time to)."""
    for pid in zygote.orphans(leaders):
        tally.fault("hangs", f"process {pid} outlived its parent by {zygote.ORPHANS_END} s")
    for name in zygote.shared_memory(leaders):
        tally.fault("changed", f"/dev/shm/{name} is left")
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if "Traceback" in text:
        tally.fault("changed", f"a process raised: {text[text.index('Traceback') :][:1500]}")


# -- at chosen places --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Place:
    """The ``name`` of ``owner``; a process dies ``when`` one of its first ``often`` calls begins or has ended."""

    owner: Any
    name: str
    when: str
    often: int = 1
    kind: str | None = None  # of run that comes here; None: any
    saves: bool = False  # only rank 0 comes here


PLACES = {
    "before a store is read": Place(StoreBatches, "chunks", "before", kind="shuffled"),
    "before a stream is read": Place(Window, "pull", "before", kind="lanes"),
    "mid-buffer": Place(shuffled._Documents, "next", "after", 50, kind="buffered"),
    "shards put together": Place(divided, "_joined", "after", kind="divided"),
    "mid-carry": Place(Dealer, "cut", "after", 50, kind="lanes"),
    "after a yield": Place(Trainer, "delivered", "before", 6),
    "before the temporary file is written": Place(checkpoint, "_write", "before", 3, saves=True),
    "temporary file written": Place(os, "fsync", "before", 6, saves=True),
    "before the rename": Place(os, "replace", "before", 3, saves=True),
    "after the rename": Place(os, "replace", "after", 3, saves=True),
    "mid-load": Place(SLWLoader, "_move", "before"),
    "loaded": Place(SLWLoader, "_move", "after"),
    "worker start": Place(WorkerChunks, "__iter__", "before"),
}


def die_at(place: Place, nth: int) -> None:
    """From now on this process is killed when it, one of its threads or workers comes to ``place`` for the nth time."""
    original, main, seen = getattr(place.owner, place.name), os.getpid(), itertools.count(1)

    def patched(*args: Any, **options: Any) -> Any:
        now = next(seen) == nth
        if now and place.when == "before":
            kill_if_there(main)
        result = original(*args, **options)
        if now:
            kill_if_there(main)
        return result

    setattr(place.owner, place.name, patched)


def kill_if_there(main: int) -> None:
    """A second worker may find that the first has done it."""
    with suppress(ProcessLookupError):
        os.kill(main, signal.SIGKILL)


def at_chosen_places(tally: Tally, small: bool) -> None:
    """R4: one rank alone in the small form; two over gloo, with two workers each, in the full one too."""
    worlds, times = ([(1, 0)], 2) if small else ([(1, 0), (2, 0), (2, 2)], 25)
    for name, (world, workers), seed in tally.each(list(itertools.product(PLACES, worlds, range(times)))):
        run = Run(PLACES[name].kind or KINDS[seed % len(KINDS)], steps=16, seed=seed)
        killed_run(tally, run, name, world, 2 if name == "worker start" else workers)


def killed_run(tally: Tally, run: Run, name: str, world: int, workers: int) -> None:
    """Two processes of a run die at the place, the third goes to the end. To load, there must be something saved."""
    place = PLACES[name]
    first = PLACES["after the rename"] if place.name == "_move" else place
    with tally.folder() as parent:
        folder, log, leaders, deaths = parent / "run", parent / "log.txt", set(), 0
        folder.mkdir()
        for dies in (first, place, None):
            nth = 1 + run.seed % dies.often if dies else 0
            victim = 0 if dies and dies.saves else run.seed % world
            pids = [
                zygote.fork(log, rank_of, run, folder, rank, world, workers, dies if rank == victim else None, nth)
                for rank in range(world)
            ]
            deaths += ended(tally, pids, f"{name}, {run}, {world} ranks, {workers} workers")
            leaders.update(pids)
            (folder / "rendezvous").unlink(missing_ok=True)
        if deaths != 2:
            tally.fault("changed", f"{deaths} of 2 processes came to the place {name!r} of {run}: {log.read_text()[-1500:]}")
        tally.add(verdict(run, folder, world), (name, run))
        check_remains(tally, leaders, parent / "none" if world > 1 else log)


def rank_of(
    run: Run, folder: Path, rank: int, world: int, workers: int, dies: Place | None, nth: int, every: int = 3
) -> None:
    if dies is not None:
        die_at(dies, nth)
    if world == 1:
        return train(run, folder, every, num_workers=workers)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=30))
    trainer = Trainer(run, folder, rank, world, num_workers=run.workers(workers, world))
    check_ranks_agree(trainer.loader)
    for number in trainer.steps():
        at = torch.tensor([number])
        dist.all_reduce(at)  # as gradients: after it every rank has delivered this batch
        assert at.item() == world * number
        if number % every == 0:
            kept = Kept(trainer.state_dict())
            if rank == 0:
                save_state(trainer.path, kept)
    dist.barrier()
    (folder / f"finished {rank}").touch()
    dist.destroy_process_group()


def ended(tally: Tally, pids: list[int], where: str) -> bool:
    """Whether one of the ranks was killed at its place; once one has gone the others are ended, as torchrun does."""
    end, left = time.monotonic() + LIMIT, list(pids)
    while left and time.monotonic() < end:
        for pid in left:
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                continue
            left.remove(pid)
            if os.WIFSIGNALED(status):
                for other in left:
                    zygote.kill(other)
                return True
            if status:  # it misses the other, which is dead or about to be
                return any(outcome(tally, other, where) < 0 for other in left)
            break
        time.sleep(0.005)
    for pid in left:
        zygote.kill(pid)
        tally.fault("hangs", where)
    return False


def outcome(tally: Tally, pid: int, where: str) -> int:
    """The exit status of a child that has to end; 0, and a hang, if it does not."""
    try:
        return zygote.reap(pid, LIMIT)
    except zygote.Hung as error:
        tally.fault("hangs", f"{where}: {error}")
        return 0
