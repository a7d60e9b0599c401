"""R1, R2 and R6: stop after any batch, and go on with any number of ranks and workers."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slw_data import SLWDataset, SLWLoader, StateError
from tests.faults import zygote
from tests.faults.kills import PLACES, ended, rank_of
from tests.faults.ledger import Counts, digest
from tests.faults.runs import KINDS, Run
from tests.faults.tally import Tally

State = dict[str, Any]
WORLDS, WORKERS = (1, 2, 3, 4, 6, 8, 12), (0, 1, 2, 3)
ROWS = 48  # of a step with two micro-batches: all these worlds can share them
NEXT = 20  # batches that are compared after a stop


def wrong(run: Run, number: int, rank: int, world: int, batch: dict[str, Any]) -> bool:
    """Whether a batch differs from what the lists say in any bit, shape or type."""
    for found, expected in zip((batch["input_ids"], batch["labels"]), run.expected(number, rank, world), strict=True):
        if found.numpy().dtype != np.int64 or not np.array_equal(found.numpy(), expected):
            return True
    return False


def states_of(run: Run, folder: Path) -> list[State]:
    """After each batch of the uninterrupted run, that of the start first; its batches are compared too."""
    loader = run.loader(folder, prefetch=0)
    states = [loader.state_dict()]
    for number, batch in enumerate(loader):
        assert not wrong(run, number, 0, 1, batch), f"the uninterrupted run is wrong at batch {number}"
        states.append(loader.state_dict())
    return states


# -- R1 ----------------------------------------------------------------------------------------------------------------


def at_every_step(tally: Tally, small: bool) -> None:
    """R1: a state at every step, loaded in each world with 0 and 2 workers; the next 20 batches, and the state after each."""
    steps = 36 if small else 300
    for kind, world in itertools.product(("shuffled", "lanes", "segments") if small else KINDS, (1, 2, 4)):
        for workers in (0, 2):
            many = 12 if workers else 60
            every = 12 if workers and small else 1
            points = [list(range(steps))[::every][i : i + many] for i in range(0, len(range(0, steps, every)), many)]
            for cuts in tally.each(points):
                tally.call(120, go_on_from, Run(kind, steps), cuts, world, workers)


def go_on_from(folder: Path, run: Run, cuts: Sequence[int], world: int, workers: int) -> Counts:
    """With workers one of the ranks is looked at, another one at each cut: starting them takes long."""
    states, changed = states_of(run, folder), 0
    loaders = [run.loader(folder, rank, world, num_workers=workers, prefetch=0) for rank in range(world)]
    for cut in cuts:
        at = cut * run.accum + cut % run.accum
        for rank in [cut % world] if workers else range(world):
            loaders[rank].load_state_dict(json.loads(json.dumps(states[at])))
            changed += loaders[rank].state_dict() != states[at]
            changed += followed(run, loaders[rank], states, at, rank, world)
            loaders[rank].close()
    return {"runs": len(cuts), "changed": changed}


def followed(run: Run, loader: SLWLoader, states: Sequence[State], at: int, rank: int, world: int, count: int = NEXT) -> int:
    """How many of the next batches, and of the states after them, are wrong; a batch that is missing is wrong too."""
    end, changed, number = min(at + count, run.batches), 0, at
    for batch in itertools.islice(loader, end - at):
        changed += wrong(run, number, rank, world, batch)
        number += 1
        changed += loader.state_dict() != states[number]
    return changed + end - number


# -- R2 ----------------------------------------------------------------------------------------------------------------


def in_a_chain(tally: Tally, small: bool) -> None:
    """R2: 200 resumes one after the other, 1 to 7 batches each; some saved right after the load, some with workers."""
    for kind, seed in tally.each([(kind, seed) for kind in KINDS for seed in range(1 if small else 5)]):
        tally.call(300, chain, Run(kind, steps=450, seed=seed), 50 if small else 200)


def chain(folder: Path, run: Run, turns: int) -> Counts:
    states, changed, rng, at, workers = states_of(run, folder), 0, random.Random(run.seed), 0, 0
    state = states[0]
    for turn in range(turns):
        workers = 3 if turn % 20 == 10 else 0  # left before each of them has sent something
        loader = run.loader(folder, num_workers=workers, prefetch=turn % 3)
        loader.load_state_dict(json.loads(json.dumps(state)))
        changed += loader.state_dict() != states[at]
        count = rng.choice([0, *range(1, 8)]) if workers == 0 else rng.randint(1, 2)
        changed += followed(run, loader, states, at, 0, 1, count)
        state, at = loader.state_dict(), at + count
        loader.close()
    assert at > 2 * turns
    return {"runs": turns, "changed": changed}


# -- R6 ----------------------------------------------------------------------------------------------------------------


def to_another_topology(tally: Tally, small: bool) -> None:
    """R6: from each number of ranks and workers to each other, at three cuts; some of them with real worker processes."""
    topologies = list(itertools.product(WORLDS, WORKERS))
    kinds = ("shuffled",) if small else KINDS
    for kind, (world, workers) in tally.each(list(itertools.product(kinds, topologies))):
        others = topologies[::5] if small else topologies
        tally.call(600, move_from, Run(kind, steps=24, rows=ROWS), world, workers, others)
    rng = random.Random(6)
    pairs = [(rng.choice(topologies), (rng.choice(WORLDS[:4]), rng.choice(WORKERS[1:]))) for _ in range(2 if small else 24)]
    for number, ((world, _), (to, workers)) in enumerate(tally.each(pairs)):
        tally.call(120, move_really, Run(KINDS[number % len(KINDS)], steps=24, rows=ROWS), world, to, workers)
    for world, to in tally.each([(2, 1)] if small else [(2, 1), (1, 2), (2, 4), (4, 2)]):
        move_over_gloo(tally, Run("lanes", steps=24, rows=ROWS), world, to)
    for world in tally.each((5, 7, 9)):
        tally.call(60, refuse, Run("shuffled", steps=24, rows=ROWS), world)


def by_hand(dataset: SLWDataset, state: State, workers: int) -> Iterator[dict[str, Any]]:
    """The batches in their order, from what each of ``workers`` would make; as the loader's messages, in one process."""
    position, turn = dataset.run.parse(state), max(workers, 1)
    made = [dataset.run.chunks(position, worker, turn, 1) for worker in range(turn)]
    for chunk in itertools.chain.from_iterable(itertools.zip_longest(*made)):
        if chunk is not None:
            yield from dataset.run.build(chunk)


def move_from(folder: Path, run: Run, world: int, workers: int, others: Sequence[tuple[int, int]]) -> Counts:
    """States saved in a topology, which must be those of the run alone, loaded in all others."""
    states, changed = states_of(run, folder), 0
    ranks = [run.dataset(folder, rank, world) for rank in range(world)]
    targets = {to: [run.dataset(folder, rank, to) for rank in range(to)] for to, _ in others}
    for cut in (1, run.batches // 2 + 1, run.batches - 5):
        for dataset in ranks:
            dataset.load_state_dict(states[cut - 1])
            next(iter(dataset))
            changed += dataset.state_dict() != states[cut]
        state = json.loads(json.dumps(ranks[-1].state_dict()))
        for to, workers_there in others:
            for rank, dataset in enumerate(targets[to]):
                if to > 4 and (rank + cut) % 4:
                    continue
                for number, batch in enumerate(itertools.islice(by_hand(dataset, state, workers_there), 4), cut):
                    changed += wrong(run, number, rank, to, batch)
                changed += number != cut + 3
    return {"runs": 3 * len(others), "changed": changed}


def move_really(folder: Path, run: Run, world: int, to: int, workers: int) -> Counts:
    """With real workers, to the end of the run: a rank of the one world saves, all ranks of the other load."""
    states, cut = states_of(run, folder), run.batches // 2 + 1
    saver = run.loader(folder, world - 1, world, num_workers=2)
    for _ in itertools.islice(saver, cut):
        pass
    saved = json.loads(json.dumps(saver.state_dict()))
    changed = int(saved != states[cut])
    saver.close()
    for rank in range(to):
        loader = run.loader(folder, rank, to, num_workers=workers)
        loader.load_state_dict(saved)
        changed += followed(run, loader, states, cut, rank, to, run.batches)
    return {"changed": changed}


def move_over_gloo(tally: Tally, run: Run, world: int, to: int) -> None:
    """Ranks that speak to each other, killed after their third checkpoint; others, of another number, go to the end."""
    where, saved = f"{run} from {world} ranks to {to}", 9
    with tally.folder() as parent:
        folder, log = parent / "run", parent / "log.txt"
        for ranks, dies in ((world, PLACES["after the rename"]), (to, None)):
            folder.mkdir(exist_ok=True)
            pids = [zygote.fork(log, rank_of, run, folder, rank, ranks, 0, None if rank else dies, 3) for rank in range(ranks)]
            killed = ended(tally, pids, where)
            if dies is not None:
                (parent / "before").mkdir()
                for path in folder.glob("ledger *"):
                    path.rename(parent / "before" / path.name)
                if killed != 1:
                    tally.fault("changed", f"{where}: nobody was killed, {log.read_text()[-1000:]}")
            (folder / "rendezvous").unlink(missing_ok=True)
        for rank in range(to):
            expected = [[number, digest(*run.expected(number, rank, to))] for number in range(saved, run.batches)]
            lines = (folder / f"ledger {rank}").read_text(encoding="ascii").splitlines()
            if [json.loads(line)[:2] for line in lines] != expected:
                tally.fault("changed", f"{where}: rank {rank} wrote {len(lines)} batches, and expected are {len(expected)}")


def refuse(folder: Path, run: Run, world: int) -> Counts:
    """Ranks that cannot share the rows of a step have other rows, and are refused with both numbers."""
    other = Run(run.kind, run.steps, run.accum * world)
    loader, before = other.loader(folder, 0, world), other.loader(folder, 0, world).state_dict()
    text = ""
    try:
        loader.load_state_dict(states_of(run, folder)[3])
    except StateError as error:
        text = str(error)
    named = f"{run.rows} global rows" in text and f"{other.rows} global rows" in text
    return {"changed": int(not named or loader.state_dict() != before)}
