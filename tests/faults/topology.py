"""R1, R2 and R6: stop after any batch, and go on with any number of ranks and workers."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from slw_data import SLWDataset, SLWLoader, StateError
from slw_data.batch.divided import DividedBatches
from tests.faults import zygote
from tests.faults.kills import PLACES, ended, rank_of
from tests.faults.ledger import Counts, digest
from tests.faults.runs import DIVIDED, KINDS, Run
from tests.faults.tally import Tally

State = dict[str, Any]
WORLDS, WORKERS = (1, 2, 3, 4, 6, 8, 12), (0, 1, 2, 3)
ROWS = 48  # of a step with two micro-batches: all these worlds can share them
FEW = (1, 2, 4)  # worlds that can share 8 rows
NEXT = 20  # batches that are compared after a stop


def wrong(run: Run, number: int, rank: int, world: int, batch: dict[str, Any]) -> bool:
    """Whether a batch differs from what the lists say in any bit, shape or type."""
    for found, expected in zip((batch["input_ids"], batch["labels"]), run.expected(number, rank, world), strict=True):
        if found.numpy().dtype != np.int64 or not np.array_equal(found.numpy(), expected):
            return True
    return False


def states_of(run: Run, folder: Path, rank: int = 0, world: int = 1) -> list[State]:
    """After each batch of the uninterrupted run, that of the start first; its batches are compared too."""
    loader = run.loader(folder, rank, world, prefetch=0)
    states = [loader.state_dict()]
    for number, batch in enumerate(loader):
        assert not wrong(run, number, rank, world, batch), f"the uninterrupted run is wrong at batch {number}"
        states.append(loader.state_dict())
    return states


class States:
    """What must be saved after each batch, and what may be loaded there. Of a divided run each rank has shards of its own, so
    ``worlds`` have other states, those of all ranks of one go to any other where a step ends; all else has one."""

    def __init__(self, run: Run, folder: Path, worlds: Sequence[int] = (1,)) -> None:
        self.run, self.divided, kept = run, run.kind in DIVIDED, worlds if run.kind in DIVIDED else (1,)
        self.kept = {world: [states_of(run, folder, rank, world) for rank in range(world)] for world in kept}

    def of(self, at: int, rank: int = 0, world: int = 1) -> State:
        return self.kept[world][rank][at] if self.divided else self.kept[1][0][at]

    def to_load(self, at: int, rank: int, world: int, choice: int) -> Any:
        """A state for this rank, by JSON: its own, or those of all ranks of a world that has saved there."""
        given: Any = self.of(at, rank, world)
        worlds = list(self.kept) if at % self.run.accum == 0 else [world]
        if self.divided and choice % (len(worlds) + 1):
            saver = worlds[choice % (len(worlds) + 1) - 1]
            given = [self.of(at, other, saver) for other in range(saver)]
        return json.loads(json.dumps(given))

    def taken_within(self, loader: SLWLoader | SLWDataset, at: int, world: int) -> bool:
        """Whether a loader of this world takes, or is changed by, what others of a divided run have saved within a step."""
        if not self.divided or at % self.run.accum == 0:
            return False
        others, taken, before = [other for other in self.kept if other != world], 0, loader.state_dict()
        for other in others:
            with suppress(StateError):
                loader.load_state_dict([self.of(at, rank, other) for rank in range(other)])
                taken += 1
        return bool(taken) or loader.state_dict() != before


# -- R1 ----------------------------------------------------------------------------------------------------------------


def at_every_step(tally: Tally, small: bool) -> None:
    """R1: a state at every step, loaded in each world with 0 and 2 workers; the next 20 batches, and the state after each."""
    steps = 36 if small else 300
    kinds = ("shuffled", "lanes", "segments", "buffered", *DIVIDED) if small else KINDS
    for kind, world in itertools.product(kinds, FEW):
        for workers in (0, 2):
            many = 12 if workers else 60
            every = 12 if workers and small else 1
            points = [list(range(steps))[::every][i : i + many] for i in range(0, len(range(0, steps, every)), many)]
            for cuts in tally.each(points):
                tally.call(120, go_on_from, Run(kind, steps), cuts, world, workers)


def go_on_from(folder: Path, run: Run, cuts: Sequence[int], world: int, workers: int) -> Counts:
    """With workers one of the ranks is looked at, another one at each cut: starting them takes long."""
    states, changed, workers = States(run, folder, FEW), 0, run.workers(workers, world)
    loaders = [run.loader(folder, rank, world, num_workers=workers, prefetch=0) for rank in range(world)]
    for cut in cuts:
        at = cut * run.accum + cut % run.accum
        for rank in [cut % world] if workers else range(world):
            changed += states.taken_within(loaders[rank], at, world)
            loaders[rank].load_state_dict(states.to_load(at, rank, world, at // 2 + rank))
            changed += loaders[rank].state_dict() != states.of(at, rank, world)
            changed += followed(run, loaders[rank], states, at, rank, world)
            loaders[rank].close()
    return {"runs": len(cuts), "changed": changed}


def followed(run: Run, loader: SLWLoader, states: States, at: int, rank: int, world: int, count: int = NEXT) -> int:
    """How many of the next batches, and of the states after them, are wrong; a batch that is missing is wrong too."""
    end, changed, number = min(at + count, run.batches), 0, at
    for batch in itertools.islice(loader, end - at):
        changed += wrong(run, number, rank, world, batch)
        number += 1
        changed += loader.state_dict() != states.of(number, rank, world)
    return changed + end - number


# -- R2 ----------------------------------------------------------------------------------------------------------------


def in_a_chain(tally: Tally, small: bool) -> None:
    """R2: 200 resumes one after the other, 1 to 7 batches each; some saved right after the load, some with workers."""
    for kind, seed in tally.each([(kind, seed) for kind in KINDS for seed in range(1 if small else 5)]):
        tally.call(300, chain, Run(kind, steps=450, seed=seed), 50 if small else 200)


def chain(folder: Path, run: Run, turns: int) -> Counts:
    states, changed, rng, at, workers = States(run, folder), 0, random.Random(run.seed), 0, 0
    state = states.of(0)
    for turn in range(turns):
        workers = 3 if turn % 20 == 10 else 0  # left before each of them has sent something
        loader = run.loader(folder, num_workers=workers, prefetch=turn % 3)
        loader.load_state_dict(json.loads(json.dumps(state)))
        changed += loader.state_dict() != states.of(at)
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
    kinds = ("shuffled", "divided") if small else KINDS
    for kind, (world, workers) in tally.each(list(itertools.product(kinds, topologies))):
        others = topologies[::5] if small else topologies
        tally.call(600, move_from, Run(kind, steps=24, rows=ROWS), world, workers, others)
    rng = random.Random(6)
    pairs = [(rng.choice(topologies), (rng.choice(WORLDS[:4]), rng.choice(WORKERS[1:]))) for _ in range(2 if small else 24)]
    for number, ((world, _), (to, workers)) in enumerate(tally.each(pairs)):
        kind = DIVIDED[number % 2] if small else KINDS[number % len(KINDS)]
        tally.call(120, move_really, Run(kind, steps=24, rows=ROWS, seed=number), world, to, workers)
    pairs = [(2, 1)] if small else [(2, 1), (1, 2), (2, 4), (4, 2)]
    for kind, (world, to) in tally.each(list(itertools.product(("lanes", "divided") if small else ("lanes", *DIVIDED), pairs))):
        move_over_gloo(tally, Run(kind, steps=24, rows=ROWS), world, to)
    for world in tally.each((5, 7, 9)):
        tally.call(60, refuse, Run("shuffled", steps=24, rows=ROWS), world)


def by_hand(dataset: SLWDataset, state: State, workers: int) -> Iterator[dict[str, Any]]:
    """The batches in their order, from what each of ``workers`` would make; as the loader's messages, in one process."""
    position, batches = dataset.run.parse(state), dataset.run.batches
    if isinstance(batches, DividedBatches):
        turn = max(1, min(workers, len(batches.shards)))
        made = [batches.part(position, worker, turn) for worker in range(turn)]
        chunks: Any = batches.joined(position, made)
    else:
        turn = max(workers, 1)
        made = [dataset.run.chunks(position, worker, turn, 1) for worker in range(turn)]
        chunks = itertools.chain.from_iterable(itertools.zip_longest(*made))
    for chunk in chunks:
        if chunk is not None:
            yield from dataset.run.build(chunk)


def move_from(folder: Path, run: Run, world: int, workers: int, others: Sequence[tuple[int, int]]) -> Counts:
    """States saved in a topology, which must be those of the run alone, loaded in all others. Of a divided run each rank must
    save its own part of them, and they are loaded together; within a step where there are as many ranks only."""
    states, changed = States(run, folder, sorted({1, world})), 0
    ranks = [run.dataset(folder, rank, world) for rank in range(world)]
    targets = {to: [run.dataset(folder, rank, to) for rank in range(to)] for to, _ in others}
    for cut in (1, run.batches // 2 + (not states.divided), run.batches - 5 + states.divided):
        begin = (cut - 1) // run.accum * run.accum if states.divided else cut - 1
        for rank, dataset in enumerate(ranks):
            dataset.load_state_dict(states.to_load(begin, rank, world, cut))
            for _ in itertools.islice(dataset, cut - begin):
                pass
            changed += dataset.state_dict() != states.of(cut, rank, world)
        saved = [dataset.state_dict() for dataset in ranks]
        state = json.loads(json.dumps(saved if states.divided else saved[-1]))
        for to, workers_there in others:
            for rank, dataset in enumerate(targets[to]):
                if to > 4 and (rank + cut) % 4:
                    continue
                if to != world and states.divided and cut % run.accum:
                    changed += taken(dataset, state)
                    continue
                for number, batch in enumerate(itertools.islice(by_hand(dataset, state, workers_there), 4), cut):
                    changed += wrong(run, number, rank, to, batch)
                changed += number != cut + 3
    return {"runs": 3 * len(others), "changed": changed}


def taken(dataset: SLWDataset, state: Any) -> bool:
    try:
        dataset.run.parse(state)
    except StateError as error:
        return "within a step" not in str(error)
    return True


def move_really(folder: Path, run: Run, world: int, to: int, workers: int) -> Counts:
    """With real workers, to the end of the run: a rank of the one world saves (all of them, if each has its shards),
    all ranks of the other load."""
    states, cut = States(run, folder, sorted({1, world, to})), run.batches // 2 + (run.kind not in DIVIDED)
    saved, changed = [], 0
    for rank in range(world) if states.divided else [world - 1]:
        saver = run.loader(folder, rank, world, num_workers=run.workers(2, world))
        for _ in itertools.islice(saver, cut):
            pass
        saved.append(json.loads(json.dumps(saver.state_dict())))
        changed += saved[-1] != states.of(cut, rank, world)
        saver.close()
    for rank in range(to):
        loader = run.loader(folder, rank, to, num_workers=run.workers(workers, to))
        loader.load_state_dict(saved if states.divided else saved[0])
        changed += followed(run, loader, states, cut, rank, to, run.batches)
    return {"changed": changed}


def move_over_gloo(tally: Tally, run: Run, world: int, to: int) -> None:
    """Ranks that speak to each other, killed after their third checkpoint; others, of another number, go to the end."""
    every = 4 if run.kind in DIVIDED else 3  # where a step ends
    where, saved = f"{run} from {world} ranks to {to}", 3 * every
    with tally.folder() as parent:
        folder, log = parent / "run", parent / "log.txt"
        for ranks, dies in ((world, PLACES["after the rename"]), (to, None)):
            folder.mkdir(exist_ok=True)
            deaths = [dies, *[None] * (ranks - 1)]
            pids = [zygote.fork(log, rank_of, run, folder, r, ranks, 0, death, 3, every) for r, death in enumerate(deaths)]
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
