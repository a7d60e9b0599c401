"""R12: random runs, where anything may happen next; compared with the lists at every batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from slw_data import DataError, SLWDataset, SLWLoader, StateError
from tests.faults.ledger import PAD, Counts
from tests.faults.runs import DIVIDED, KINDS, STREAMS, Run
from tests.faults.tally import Tally
from tests.faults.topology import wrong

BAD = PAD + 1  # an id above the vocabulary
FIELDS = ("step", "batch", "rows", "tokens", "epoch", "past", "source", "order", "rest", "checksum")  # of a state


def anything(tally: Tally, small: bool) -> None:
    """R12: next, save, load, crash, other ranks, a bad token, in any order, 50 at a time."""
    part = 50 if small else 500
    for number in tally.each(range(4 if small else 100)):
        tally.call(3000, play, number, part)


def play(folder: Path, number: int, examples: int) -> Counts:
    machine = seed(number)(type("Machine", (Machine,), {"folder": folder}))
    limits = settings(
        max_examples=examples, stateful_step_count=50, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=limits)
    return {"runs": examples}


class Machine(RuleBasedStateMachine):
    """One rank of a run at a time. ``at`` is where it must stand; ``saved`` the states of any number of ranks, with where and
    how many they are. Of a divided run each is a list of all ranks' states, and where the others stand is found when it saves:
    they have begun where this rank has, at ``begun``."""

    folder: Path

    @initialize(kind=st.sampled_from(KINDS), accum=st.integers(1, 2), seed=st.integers(0, 3))
    def begin(self, kind: str, accum: int, seed: int) -> None:
        self.run, self.at, self.rank, self.world = Run(kind, 12, 12, accum, seed), 0, 0, 1
        self.saved: list[tuple[int, int, str]] = []
        self.begun: tuple[int, Any] = 0, None
        self.open()
        self.save()

    @property
    def divided(self) -> bool:
        return self.run.kind in DIVIDED

    def made(self, rank: int, prefetch: int = 0) -> SLWLoader:
        return SLWLoader(self.run.dataset(self.folder, rank, self.world, vocab_size=BAD), prefetch=prefetch)

    def open(self, prefetch: int = 0) -> None:
        self.loader = self.made(self.rank, prefetch)
        self.iterator = None

    @precondition(lambda self: self.at < self.run.batches)
    @rule(count=st.integers(1, 5))
    def next(self, count: int) -> None:
        if self.iterator is None:
            self.iterator = iter(self.loader)
        for _ in range(min(count, self.run.batches - self.at)):
            batch = next(self.iterator)
            assert not wrong(self.run, self.at, self.rank, self.world, batch), f"batch {self.at}"
            self.at += 1
        assert self.loader.step == self.at // self.run.accum

    @rule()
    def save(self) -> None:
        states = [self.loader.state_dict()]
        if self.divided:
            states = [states[0] if rank == self.rank else self.state_of(rank) for rank in range(self.world)]
        self.saved.append((self.at, self.world, json.dumps(states)))

    def state_of(self, rank: int) -> dict[str, Any]:
        """Where another rank stands that has delivered as many batches."""
        begin, state = self.begun
        other = self.made(rank)
        if state is not None:
            other.load_state_dict(state)
        for number, batch in zip(range(begin, self.at), other, strict=False):
            assert not wrong(self.run, number, rank, self.world, batch), f"batch {number} of rank {rank}"
        return other.state_dict()

    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        fitting = [kept for kept in self.saved if self.fits(*kept[:2])]  # the first one does, it is of the start
        self.at, _, text = data.draw(st.sampled_from(fitting))
        states = json.loads(text)
        state = states if self.divided else states[0]
        self.loader.load_state_dict(state)
        self.begun, self.iterator = (self.at, state), None

    def fits(self, at: int, world: int) -> bool:
        return not self.divided or at % self.run.accum == 0 or world == self.world

    @precondition(lambda self: any(not self.fits(*kept[:2]) for kept in self.saved))
    @rule(data=st.data())
    def load_within_a_step(self, data: st.DataObject) -> None:
        """What other numbers of ranks have saved there, of a divided run."""
        _, _, text = data.draw(st.sampled_from([kept for kept in self.saved if not self.fits(*kept[:2])]))
        self.refused(json.loads(text))

    def refused(self, state: Any) -> None:
        before = self.loader.state_dict()
        try:
            self.loader.load_state_dict(state)
            raise AssertionError(f"this state was taken: {state}")
        except StateError:
            assert self.loader.state_dict() == before

    @rule(data=st.data(), prefetch=st.integers(0, 2))
    def crash(self, data: st.DataObject, prefetch: int) -> None:
        """Everything but what was saved is gone."""
        self.loader.close()
        self.open(prefetch)
        self.load(data)

    @rule(data=st.data(), world=st.sampled_from([1, 2, 3, 6]))
    def change_world(self, data: st.DataObject, world: int) -> None:
        self.loader.close()
        self.world, self.rank = world, data.draw(st.integers(0, world - 1))
        self.open()
        self.load(data)

    @rule(data=st.data(), key=st.sampled_from(FIELDS))
    def damaged_state(self, data: st.DataObject, key: str) -> None:
        states = json.loads(data.draw(st.sampled_from(self.saved))[2])
        state, more = data.draw(st.sampled_from(states)), data.draw(st.sampled_from([-1, 1, 1 << 40]))
        state[key] = f"{state[key]} " if isinstance(state[key], str) else (state[key] or 0) + more
        self.refused(states if self.divided else states[0])

    @precondition(lambda self: self.divided)
    @rule(data=st.data(), damage=st.sampled_from(["gone", "swapped", "other", "cut"]))
    def damaged_shard(self, data: st.DataObject, damage: str) -> None:
        """One of the shards that this rank reads."""
        states = json.loads(data.draw(st.sampled_from(self.saved))[2])
        mine = list(self.loader.state_dict()["shards"])
        number = data.draw(st.sampled_from(mine))
        shards = next(state["shards"] for state in states if number in state["shards"])
        if damage == "gone":
            del shards[number]
        elif damage == "swapped":
            shards[number] = data.draw(st.sampled_from([t for s in states for n, t in s["shards"].items() if n != number]))
        elif damage == "other":
            entry = json.loads(shards[number])
            entry["stream"] = entry["stream"].replace("0", "1") if "0" in entry["stream"] else entry["stream"] + "0"
            shards[number] = json.dumps(entry)
        else:
            shards[number] = shards[number][:-1]
        self.refused(states)

    @precondition(lambda self: self.at < self.run.batches and self.run.kind not in STREAMS)
    @rule(data=st.data(), prefetch=st.integers(0, 1))
    def bad_row(self, data: st.DataObject, prefetch: int) -> None:
        """A token above the vocabulary, in some batch that is still to come; its error leaves the last one delivered."""
        bad = data.draw(st.integers(self.at, min(self.at + 4, self.run.batches - 1)))
        tokens = np.arange(self.run.size, dtype=np.uint32)
        source: Any = Spoiled(tokens)
        run, accum = self.run, self.run.accum
        rows = run.rows // accum // self.world
        dataset = SLWDataset(
            run.over(source), run.schedule, batch_size=rows, grad_accum_steps=accum, total_steps=run.steps, labels="shifted",
            dp_rank=self.rank, dp_world_size=self.world, vocab_size=BAD, **run.options,
        )  # fmt: skip
        loader = SLWLoader(dataset, prefetch=prefetch)
        loader.load_state_dict({"step": self.at // accum})
        number = self.at // accum * accum
        source.spoil(int(run.expected(bad, self.rank, self.world)[0][-1, 0]))
        try:
            for batch in loader:
                assert not wrong(run, number, self.rank, self.world, batch)
                number += 1
            raise AssertionError(f"the bad token of batch {bad} was delivered")
        except DataError as error:
            assert str(BAD) in str(error) and number <= bad
        state = loader.state_dict()
        assert state["step"] * accum + state["batch"] == number


class Spoiled:
    """A store in memory, one of whose tokens can be changed."""

    name, documents, dtype, fingerprint = "spoiled", None, np.dtype("uint32"), "spoiled"

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def spoil(self, place: int) -> None:
        self.tokens[place] = BAD

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop].copy()

    def gather(self, starts: np.ndarray, length: int, out: np.ndarray) -> None:
        out[:] = self.tokens[starts[:, None] + np.arange(length)]
