"""Runs over tokens that say their own place: token ``p`` of the source is the number ``p``.

So a batch is judged by itself alone. What a run must deliver is said by the naive lists of ``tests/oracle.py``.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slw_data import SLWDataset, SLWLoader, StagedSchedule, gather_state, load_state, open_tokens, save_state
from slw_data.batch.flat import IGNORE
from slw_data.order.permutation import permute
from slw_data.sources.streams import items, iterables, shuffled
from tests.faults.ledger import PAD, Ledger
from tests.oracle import (
    naive_batches,
    naive_buffer,
    naive_circle,
    naive_dealing,
    naive_lane_positions,
    naive_packed,
    naive_packing,
    naive_pieces,
    naive_plan,
    rows_of,
)

DIVIDED = ("divided", "parquet")
STREAMS = ("documents", "lanes", "buffered", *DIVIDED)
KINDS = ("file", "shuffled", "documents", "lanes", "segments", "buckets", "packed", *STREAMS[2:])
LENGTHS = (4, 8, 3, 6)  # of the four quarters of a run: they grow and shrink
POWERS = (4, 8, 2, 8)  # the same, of the kind "buckets"
NUM_LANES = 3  # of the kind "lanes"
OF_A_SHARD = 2  # lanes of each shard, and rows that a step takes of it
BUFFER = 11  # documents that wait


def small_blocks() -> None:
    """From now on a stream reads few documents at a time, so that runs as short as these go on from the middle of a pass."""
    items.SequenceStream.block_items = iterables.IterableStream.block_items = 16
    shuffled._ITEMS = 8


class Documents:
    """Documents of 1 to ``longest`` tokens, which count up over all of them to ``size``."""

    def __init__(self, size: int, longest: int = 24) -> None:
        self.size, self.longest = size, longest

    def __iter__(self) -> Iterator[np.ndarray]:
        start = 0
        for number in itertools.count():
            stop = min(start + 1 + number * 7 % self.longest, self.size)
            yield np.arange(start, stop)
            if stop == self.size:
                return
            start = stop


class Parts:
    """Documents of 1 to 23 tokens as a function of a shard, which has every ``num_shards``-th of them. 23 is prime, so no
    shard has documents of one length alone."""

    def __init__(self, size: int) -> None:
        self.documents = Documents(size, 23)

    def __call__(self, shard: int, num_shards: int) -> Iterator[np.ndarray]:
        return itertools.islice(self.documents, shard, None, num_shards)


class Indexed:
    """A store that knows its documents."""

    def __init__(self, tokens: Any, documents: np.ndarray) -> None:
        self.tokens, self.documents = tokens, documents
        self.name, self.dtype, self.fingerprint = tokens.name, tokens.dtype, f"{tokens.fingerprint} in documents"

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tokens.read(start, stop)

    def gather(self, starts: np.ndarray, length: int, out: np.ndarray) -> None:
        self.tokens.gather(starts, length, out)


@dataclass(frozen=True)
class Run:
    """``rows`` are those of a step, over all ranks and its ``accum`` micro-batches. A run reads less than one epoch."""

    kind: str
    steps: int = 120
    rows: int = 8
    accum: int = 2
    seed: int = 0

    @functools.cached_property
    def schedule(self) -> StagedSchedule:
        quarter = max(1, self.steps // 4)
        return StagedSchedule(POWERS if self.kind == "buckets" else LENGTHS, [quarter, 2 * quarter, 3 * quarter])

    @property
    def batches(self) -> int:
        return self.steps * self.accum

    @functools.cached_property
    def size(self) -> int:
        """Tokens of the source: some more than the run takes."""
        taken = sum(self.schedule(step) * self.rows for step in range(self.steps))
        return (taken + taken // 8 + 400 * self.rows) * (3 if self.kind == "buckets" else 1)  # a bucket has a part of them

    @property
    def num_shards(self) -> int:
        """1: this kind is not divided."""
        return self.rows // OF_A_SHARD if self.kind in DIVIDED else 1

    def workers(self, wanted: int, world: int = 1) -> int:
        """``wanted``, or as many as a rank has shards."""
        return min(wanted, self.num_shards // world) if self.kind in DIVIDED else wanted

    @property
    def options(self) -> dict[str, Any]:
        shuffled = {"shuffle": True, "seed": self.seed}
        buffered = {"shuffle_buffer": BUFFER, "seed": self.seed}
        divided = {"num_shards": self.num_shards, "num_lanes": OF_A_SHARD}
        return {
            "shuffled": shuffled,
            "lanes": {"num_lanes": NUM_LANES},
            "segments": {**shuffled, "mode": "segment", "pad_id": PAD, "num_lanes": 4 * NUM_LANES},
            "buckets": {**shuffled, "mode": "buckets"},
            "packed": {**shuffled, "mode": "pack", "pad_id": PAD},
            "buffered": {**buffered, "num_lanes": NUM_LANES},
            "divided": divided,
            "parquet": {**divided, **buffered, "mode": "segment", "pad_id": PAD},
        }.get(self.kind, {})

    def source(self, folder: Path) -> Any:
        if self.kind == "divided":
            return list(Parts(self.size).documents) if self.seed % 2 else Parts(self.size)
        if self.kind == "parquet":
            return self._parquet(folder)
        if self.kind in STREAMS:
            return Documents(self.size)
        path = folder / f"{self.size}.bin"
        if not path.exists():  # two ranks may come here at once, and be killed: it is there whole, or not
            part = path.with_suffix(f".{os.getpid()}")
            np.arange(self.size, dtype=np.uint32).tofile(part)
            part.rename(path)  # os.replace is a place to be killed at
        return self.over(open_tokens(path, dtype="uint32"))

    def _parquet(self, folder: Path) -> Any:
        """A Hugging Face stream of a file for each shard, of several row groups."""
        import datasets
        import pyarrow.parquet

        path = folder / f"{self.size} in {self.num_shards}"
        if not path.exists():  # as above
            part = path.with_suffix(f".{os.getpid()}")
            part.mkdir()
            for shard in range(self.num_shards):
                table = pyarrow.table({"input_ids": list(Parts(self.size)(shard, self.num_shards))})
                pyarrow.parquet.write_table(table, part / f"{shard:02}.parquet", row_group_size=16)
            try:
                part.rename(path)
            except OSError:  # the other rank was first
                shutil.rmtree(part)
        files = sorted(map(str, path.glob("*.parquet")))
        return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)

    def over(self, tokens: Any) -> Any:
        """A store of the tokens, with its documents where the kind needs them."""
        if self.kind not in ("segments", "buckets", "packed"):
            return tokens
        return Indexed(tokens, np.cumsum([0, *(len(document) for document in Documents(self.size))]))

    def dataset(self, folder: Path, rank: int = 0, world: int = 1, **options: Any) -> SLWDataset:
        rows, rest = divmod(self.rows, self.accum * world)
        assert rest == 0, f"{self.rows} rows cannot be dealt to {world} ranks"
        return SLWDataset(
            self.source(folder), self.schedule, batch_size=rows, grad_accum_steps=self.accum, total_steps=self.steps,
            labels="shifted", dp_rank=rank, dp_world_size=world, **{**self.options, **options},
        )  # fmt: skip

    def loader(self, folder: Path, rank: int = 0, world: int = 1, **options: Any) -> SLWLoader:
        return SLWLoader(self.dataset(folder, rank, world), **options)

    def expected(self, number: int, rank: int = 0, world: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels of the ``number``-th micro-batch of a rank."""
        if self.kind not in DIVIDED:
            ids, labels = (np.array_split(part, world)[rank] for part in _expected(self)[number])
            return ids, labels
        step, batch = divmod(number, self.accum)  # a rank's rows of a step follow each other
        whole = _expected(self)[step * self.accum : (step + 1) * self.accum]
        parts, place = world * self.accum, rank * self.accum + batch
        ids, labels = (np.split(np.concatenate(of), parts)[place] for of in zip(*whole, strict=True))
        return ids, labels


@functools.lru_cache(8)
def _expected(run: Run) -> list[tuple[np.ndarray, np.ndarray]]:
    """ids and labels of the micro-batches of all ranks."""
    if run.kind == "packed":
        return _packed(run)
    rows = _rows(run)
    return [(np.where(batch[:, :-1] == IGNORE, PAD, batch[:, :-1]), batch[:, 1:]) for batch in rows]


def _packed(run: Run) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same of the kind "packed": the documents are permuted, and the rows of each window."""
    documents = [document.tolist() for document in Documents(run.size)]
    opened = [documents[i] for i in permute(np.arange(len(documents)), len(documents), (run.seed, 0)).tolist()]
    plan = naive_plan(run.schedule, total_steps=run.steps, batch_size=run.rows // run.accum, grad_accum_steps=run.accum)
    found = naive_packing(
        [opened[i : i + 1024] for i in range(0, len(opened), 1024)], plan, grad_accum_steps=run.accum,
        order=lambda window, rows: permute(np.arange(rows), rows, (run.seed, 0, window)).tolist(),
    )  # fmt: skip
    after = {a: b for document in documents for a, b in itertools.pairwise(document)}
    batches = []
    for step, (length, *_) in zip(found, plan, strict=True):
        for [rows] in step:
            batch = naive_packed(rows, length, columns={"input_ids": int}, after=after, labels="shifted", pad_id=PAD)
            batches.append((np.array(batch["input_ids"], np.int64), np.array(batch["labels"], np.int64)))
    return batches


def _rows(run: Run) -> list[np.ndarray]:
    """The micro-batches of all ranks, with the token that follows each row (IGNORE: none)."""
    shape = {"grad_accum_steps": run.accum, "world_size": 1}
    plan = naive_plan(run.schedule, total_steps=run.steps, batch_size=run.rows // run.accum, **shape)
    if run.kind in DIVIDED:
        found = _of_shards(run, plan)
    elif run.kind in STREAMS:
        documents = (document.tolist() for document in Documents(run.size))
        dealt = naive_buffer(documents, BUFFER, (run.seed, 0, 0)) if run.kind == "buffered" else documents
        found, _ = naive_dealing(dealt, plan, num_lanes=1 if run.kind == "documents" else NUM_LANES, **shape)
    elif run.kind == "segments":
        documents = [document.tolist() for document in Documents(run.size)]
        order = permute(np.arange(len(documents)), len(documents), (run.seed, 0)).tolist()
        found, _, _ = naive_circle([documents[i] for i in order], plan, num_lanes=4 * NUM_LANES, **shape)
    elif run.kind == "buckets":
        found = _from_buckets(run, plan)
    elif run.kind == "file":
        found = naive_batches([range(run.size)], plan, look=1, **shape)
    else:
        lanes = 1
        while (2 * lanes * 4) ** 2 <= run.size:  # the largest power of two that is at most a quarter of the root
            lanes *= 2
        order = permute(np.arange(lanes), lanes, (run.seed, 0)).tolist()
        found = naive_batches(naive_lane_positions(run.size, lanes, 1, [order]), plan, look=1, **shape)
    assert len(found) == run.steps
    rows = [micro[0] for step in found for micro in step]
    return [np.array([[IGNORE if p is None else p for p in row] for row in batch], np.int64) for batch in rows]


def _of_shards(run: Run, plan: Any) -> list[list[list[list[Any]]]]:
    """Each shard dealt alone; a step has the rows of the first shard, then those of the second, and so on."""
    shards = []
    for number in range(run.num_shards):
        documents = [document.tolist() for document in Parts(run.size)(number, run.num_shards)]
        alone = [(length, OF_A_SHARD) for length, *_ in plan]
        if run.kind == "parquet":
            dealt = naive_buffer(documents, BUFFER, (run.seed, number, 0))
            found, _ = naive_dealing(dealt, alone, num_lanes=OF_A_SHARD, mode="segment")
        else:
            found, _ = naive_dealing(documents, alone, num_lanes=OF_A_SHARD)
        shards.append(found)
    steps = []
    for of_shards, (length, rows, _) in zip(zip(*shards, strict=True), plan, strict=True):
        step = [row + [None] * (length + 1 - len(row)) for row in rows_of(of_shards)]
        steps.append([[step[i : i + rows]] for i in range(0, len(step), rows)])
    return steps


def _from_buckets(run: Run, plan: Any) -> list[list[list[list[Any]]]]:
    """Each bucket's pieces, permuted, one after the other."""
    lengths = sorted(set(POWERS))
    buckets = naive_pieces([document.tolist() for document in Documents(run.size)], lengths)
    queues = {}
    for number, length in enumerate(lengths):
        pieces = buckets[length]
        queues[length] = iter([pieces[i] for i in permute(np.arange(len(pieces)), len(pieces), (run.seed, number)).tolist()])
    return [[[[next(queues[length]) for _ in range(rows)]] for _ in range(run.accum)] for length, rows, *_ in plan]


@dataclass(frozen=True)
class Kept:
    """A state that is there already, to be saved."""

    state: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


class Trainer:
    """Trains for as long as it lives: loads the last checkpoint, writes each batch down, and saves now and then.

    ``number`` is its own count of micro-batches, saved beside the loader's state in one file, so it is not the loader's
    word that says which batch a batch is.
    """

    def __init__(self, run: Run, folder: Path, rank: int = 0, world: int = 1, **options: Any) -> None:
        self.folder, self.rank, self.number = folder, rank, 0
        self.loader = run.loader(folder.parent, rank, world, **options)
        if self.path.exists():
            load_state(self.path, self)

    @property
    def path(self) -> Path:
        return self.folder / "state.json"

    def state_dict(self) -> dict[str, Any]:
        """Of a divided run with those of all ranks, which have to come here together."""
        return {"number": self.number, "data": gather_state(self.loader)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state["data"])
        self.number = state["number"]

    def steps(self) -> Iterator[int]:
        """After each batch that is delivered and written down, its number."""
        with Ledger(self.folder, self.rank) as ledger:
            for batch in self.loader:
                self.delivered()
                ledger.write(self.number, batch["input_ids"].numpy(), batch["labels"].numpy())
                self.number += 1
                yield self.number

    def delivered(self) -> None:
        """A place to be killed at: a batch is delivered, and nobody has seen it."""

    def train(self, every: int = 3) -> None:
        for number in self.steps():
            if number % every == 0:
                save_state(self.path, self)
        save_state(self.path, self)
        (self.folder / f"finished {self.rank}").touch()
